//! Waiting until the vault has what it must: a position, or all that there is now. Following here, if nobody else does.

use std::time::{Duration, Instant as Monotonic};

use mainstay_model::{Instant, Position};
use mainstay_vault::ClusterVault;

use super::follower::{FollowOptions, FollowStatus, Follower, Phase};
use super::resume::InVault;
use crate::Protected;
use crate::error::{Doing, Error, Result};

/// How often is looked, in this process and in the vault.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_VAULT: Duration = Duration::from_secs(1);
/// How often an upload is asked for out of turn.
const URGE: Duration = Duration::from_millis(400);

/// What must be in the vault.
#[derive(Clone, Debug)]
pub enum Until {
    /// All log up to a position, on the surviving history.
    Position(Position),
    /// All log that there is when it is asked.
    Now,
}

/// Whether the vault has all log up to `position`, on the surviving history, in every lane of it. Reads names alone.
///
/// # Errors
/// The store's.
pub async fn vault_covers(vault: &ClusterVault, incarnation: &str, position: &Position) -> Result<bool> {
    for (lane, place) in &position.0 {
        let objects =
            vault.log_objects(incarnation, lane).await.doing(|| format!("list the log of {lane}"))?;
        if !InVault::of(&objects).covers(place) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Follower {
    /// Waits until the vault has what `until` says, at most `within`. Whoever follows, it is what is in the vault that counts.
    ///
    /// # Errors
    /// `Deadline`, with what is wrong.
    pub async fn wait_until(&self, until: &Until, within: Duration) -> Result<()> {
        let began = Monotonic::now();
        let since = Instant::now();
        let mut looked: Option<Monotonic> = None;
        let mut urged: Option<Monotonic> = None;
        let mut target = match until {
            Until::Position(position) => Some(position.clone()),
            Until::Now => None,
        };
        loop {
            let status = self.status();
            if target.is_none() {
                target = self.reached(since, &status);
            }
            if let Some(target) = &target {
                if self.has_vaulted(target) && self.is_told_of_epochs(target) {
                    return Ok(());
                }
                if urged.is_none_or(|urged| urged.elapsed() >= URGE) {
                    urged = Some(Monotonic::now());
                    self.urge();
                }
                let is_due = looked.is_none_or(|looked| looked.elapsed() >= LOOK_VAULT);
                if let Some(incarnation) = status.incarnation.as_ref().filter(|_| is_due) {
                    looked = Some(Monotonic::now());
                    // What the store cannot answer now it may answer the next time.
                    let covers = vault_covers(&self.of().vault, incarnation, target).await.unwrap_or(false);
                    if covers && self.is_told_of_epochs(target) {
                        return Ok(());
                    }
                }
            } else if standby_only(&status) && looked.is_none_or(|looked| looked.elapsed() >= LOOK_VAULT) {
                // Somebody else follows: his log tells when it has come this far.
                looked = Some(Monotonic::now());
                if self.is_complete_to(since, &status).await {
                    return Ok(());
                }
            }
            if began.elapsed() >= within {
                let cluster = &self.of().cluster.name;
                let what = match status.error() {
                    Some(error) => format!("bring the log of {cluster} to the vault ({error})"),
                    None => format!("bring the log of {cluster} to the vault"),
                };
                return Err(Error::Deadline { what, seconds: within.as_secs() });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the vault has been told of the epochs that we are in. Before that it takes what ended with a failover for what survived.
    fn is_told_of_epochs(&self, position: &Position) -> bool {
        let status = self.status();
        position.0.keys().filter_map(|lane| status.lanes.get(lane)).all(|lane| {
            let told = lane.vault_end.as_ref().map(|end| &end.epoch);
            lane.spool_end.as_ref().is_none_or(|end| told == Some(&end.epoch))
        })
    }

    /// The end of the log here, once it is known to hold all that there was at `since`.
    fn reached(&self, since: Instant, status: &FollowStatus) -> Option<Position> {
        if status.lanes.is_empty() || status.incarnation.is_none() {
            return None;
        }
        let lanes = self.lanes();
        let ends = lanes.iter().map(|lane| {
            let spool = lane.spool()?;
            let is_complete = spool.complete_to().is_some_and(|to| to >= since);
            // What came and is not durable yet is part of what there is now: its times may have said so.
            let end = spool.end().or_else(|| spool.durable().borrow().clone())?;
            is_complete.then(|| (lane.lane.clone(), end))
        });
        ends.collect()
    }

    async fn is_complete_to(&self, since: Instant, status: &FollowStatus) -> bool {
        let Some(incarnation) = &status.incarnation else { return false };
        for lane in status.lanes.keys() {
            let Ok(objects) = self.of().vault.log_objects(incarnation, lane).await else { return false };
            if InVault::of(&objects).complete_to.is_none_or(|to| to < since) {
                return false;
            }
        }
        true
    }
}

/// Brings the log of a cluster to the vault as far as `until` says, following here unless somebody else does, and ends.
///
/// # Errors
/// `Deadline`, with what is wrong.
pub async fn catch_up(
    of: &Protected,
    options: FollowOptions,
    until: &Until,
    within: Duration,
) -> Result<FollowStatus> {
    let follower = Follower::start(of.clone(), options);
    let result = follower.wait_until(until, within).await;
    let status = follower.status();
    follower.stop().await;
    result.map(|()| status)
}

fn standby_only(status: &FollowStatus) -> bool {
    !status.lanes.is_empty() && status.lanes.values().all(|lane| matches!(lane.phase, Phase::Standby { .. }))
}
