//! `backup run`: a consistent copy of a cluster, into the vault.
//!
//! One at a time per cluster (a lease), and each builds on the newest finished one of the same incarnation. It may be killed anywhere: without
//! its manifest, which is written last, there is no snapshot, and the next run takes up what this one stored.

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use mainstay_engine::{Progress, Role, SnapshotOptions, Way};
use mainstay_model::{Instant, Position};
use mainstay_vault::SnapshotRecord;

use crate::Protected;
use crate::error::{Doing, Error, Result};

/// How long a snapshot's lease lasts without a beat.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// A snapshot that was taken.
#[derive(Clone, Debug)]
pub struct Backup {
    /// Its id.
    pub snapshot: String,
    /// The cluster.
    pub cluster: String,
    /// When it was consistent.
    pub taken_at: Instant,
    /// Where it is consistent.
    pub position: Position,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Of these, bytes that the vault did not have.
    pub bytes_new: u64,
    /// Bytes of ciphertext that this run wrote.
    pub bytes_stored: u64,
    /// How long it took.
    pub seconds: f64,
    /// What the vault says of it.
    pub record: SnapshotRecord,
}

/// Takes a snapshot. `holder` says who does, for people.
///
/// # Errors
/// `Unsupported`; `Vault` with `Held` when another takes one now; what the engine and the vault say.
pub async fn backup(
    of: &Protected,
    way: Way,
    jobs: usize,
    holder: &str,
    progress: Arc<dyn Progress>,
) -> Result<Backup> {
    let cluster = of.cluster.name.as_str();
    let Some(snapshot) = of.engine.snapshot() else {
        return Err(Error::Unsupported { engine: of.engine.name(), verb: "be snapshot" });
    };
    let began = Monotonic::now();
    let incarnation = incarnation(of).await?;
    let name = format!("snapshot.{}", of.vault.prefix().replace('/', "."));
    let lease = of
        .vault
        .vault()
        .lease(&name, holder, LEASE_TTL)
        .await
        .doing(|| format!("begin a snapshot of {cluster}"))?;
    let writer =
        of.vault.begin(&incarnation, holder).await.doing(|| format!("begin a snapshot of {cluster}"))?;
    let options = SnapshotOptions { way, jobs, label: format!("mainstay {}", writer.id()) };
    let taken = snapshot.snapshot(&of.access, &options, writer.clone(), progress).await;
    let taken = match taken {
        Ok(taken) => taken,
        Err(source) => {
            writer.abort().await;
            // The next one need not wait; if this fails it waits for the lease's end.
            let _ = lease.release().await;
            return Err(Error::Engine {
                what: format!("take a snapshot of {cluster}"),
                source: Box::new(source),
            });
        }
    };
    lease.beat().await.doing(|| format!("keep the right to snapshot {cluster}"))?;
    let record = writer.commit(taken).await.doing(|| format!("finish the snapshot of {cluster}"))?;
    if let Err(error) = lease.release().await {
        tracing::warn!(cluster, %error, "lease not released");
    }
    Ok(Backup {
        snapshot: record.id.clone(),
        cluster: cluster.to_owned(),
        taken_at: record.taken.at.latest,
        position: record.taken.position.clone(),
        bytes_read: record.bytes_read,
        bytes_new: record.bytes_new,
        bytes_stored: record.bytes_stored,
        seconds: began.elapsed().as_secs_f64(),
        record,
    })
}

/// The life that the cluster's data is in now: the engine's own name for it, or the one that the runtime minted.
///
/// # Errors
/// What the engine says; `Invalid` where neither has one, and while no node answers.
pub async fn incarnation(of: &Protected) -> Result<String> {
    let cluster = of.cluster.name.as_str();
    if let Some(observe) = of.engine.observe() {
        let view = observe.observe(&of.access).await.doing(|| format!("look at {cluster}"))?;
        if let Some(own) = view.incarnation {
            return Ok(own);
        }
        // Of one that does not answer nobody knows whether it has a name of its own: the minted one would begin another life.
        if !view.nodes.is_empty() && view.nodes.iter().all(|node| node.role == Role::Down) {
            return Err(Error::Invalid {
                what: format!("no node of {cluster} answers"),
                hint: Some(format!("see `mainstay status` for whether {cluster} runs")),
            });
        }
    }
    of.incarnation.clone().ok_or_else(|| match of.access.nodes.is_empty() {
        true => Error::Invalid {
            what: format!("{cluster} was never brought up (`mainstay up` does)"),
            hint: Some("bring it up: mainstay up".to_owned()),
        },
        false => Error::Invalid {
            what: format!("{cluster} does not say which incarnation its data is"),
            hint: Some(format!("see `mainstay status` for whether {cluster} runs")),
        },
    })
}
