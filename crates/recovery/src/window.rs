//! `recover window`: what a cluster can be restored to, from the vault's objects alone, and what would be lost now.

use mainstay_model::{Instant, Lane};
use serde::Serialize;

use crate::Protected;
use crate::catalogue::Catalogue;
use crate::error::Result;
use crate::follow::spooled_to;
use crate::plan::blocking;

/// What a cluster can be restored to.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterWindow {
    /// The cluster.
    pub cluster: String,
    /// The earliest instant; `None` if it has no snapshot.
    pub from: Option<Instant>,
    /// The latest instant.
    pub to: Option<Instant>,
    /// What would be lost now.
    pub rpo: Rpo,
    /// What cannot be had of the time in between.
    pub holes: Vec<HoleRow>,
    /// When its newest snapshot was consistent.
    pub snapshot_at: Option<Instant>,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// Snapshots whose manifest is damaged.
    pub damaged: Vec<String>,
}

/// What would be lost now, in seconds; `None` where there is nothing to go back to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Rpo {
    /// If the cluster were lost, and this machine not.
    pub spool_seconds: Option<f64>,
    /// If this machine were lost too.
    pub vault_seconds: Option<f64>,
}

/// Time that cannot be had.
#[derive(Clone, Debug, Serialize)]
pub struct HoleRow {
    /// From here,
    pub from: Instant,
    /// to here,
    pub to: Instant,
    /// because of this.
    pub reason: String,
}

/// The window of a cluster, and what the spool of this machine has beyond it.
///
/// # Errors
/// The store's.
pub async fn window(of: &Protected) -> Result<ClusterWindow> {
    let catalogue = Catalogue::load(&of.vault).await?;
    let newest = catalogue.past.lives.iter().rev().find_map(|life| Some((life, life.snapshots.last()?)));
    let spooled_to = match newest {
        None => None,
        Some((life, copy)) => {
            let lanes: Vec<Lane> = copy.position.0.keys().cloned().collect();
            let (of, incarnation) = (of.clone(), life.incarnation.clone());
            blocking(move || spooled_to(&of, &incarnation, &lanes)).await?
        }
    };
    Ok(describe(of.cluster.name.as_str(), &catalogue, spooled_to, Instant::now()))
}

/// As [`window`], of a catalogue that was read already.
pub fn describe(
    cluster: &str,
    catalogue: &Catalogue,
    spooled_to: Option<Instant>,
    now: Instant,
) -> ClusterWindow {
    let windows = catalogue.past.windows();
    let to = windows.iter().map(|w| w.to).max();
    let lost = |to: Instant| now.since(to).as_secs_f64();
    let holes = catalogue.past.holes(now);
    ClusterWindow {
        cluster: cluster.to_owned(),
        from: windows.iter().map(|w| w.from).min(),
        to,
        rpo: Rpo {
            spool_seconds: to.map(|to| lost(spooled_to.map_or(to, |s| s.max(to)))),
            vault_seconds: to.map(lost),
        },
        holes: holes.into_iter().map(|h| HoleRow { from: h.from, to: h.to, reason: h.reason }).collect(),
        snapshot_at: catalogue.records.values().map(|r| r.taken.at.latest).max(),
        snapshots: catalogue.records.len(),
        damaged: catalogue.damaged.iter().map(|(id, _)| id.clone()).collect(),
    }
}
