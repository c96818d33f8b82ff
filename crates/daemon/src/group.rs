//! The keeper of one recovery group: fleet points, at their intervals, by whoever holds the group's lease.

use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use mainstay_model::{Instant, RecoveryGroup};
use mainstay_recovery::Protected;
use mainstay_recovery::catalogue::Catalogue;
use mainstay_recovery::follow::Follower;
use mainstay_recovery::point::{FleetPoint, Member, PointOptions, set_point};
use mainstay_vault::{self as vault, Lease, Vault};
use serde_json::json;
use tokio::sync::watch;

use crate::jobs::{LEASE_TTL, Outcome, release};
use crate::metrics::Bytes;
use crate::view::GroupView;
use crate::{Daemon, due, lock, why};

/// How often an exact point is tried, when one is due.
const EXACT_ATTEMPTS: u32 = 3;
/// How many points are read to find the last that was to be exact.
const LOOK_BACK: usize = 50;
/// How long points stay that nothing needs, before they thin out.
const KEEP_ALL: Duration = Duration::from_secs(24 * 3600);
/// How often old points are looked for.
const THIN_EVERY: Duration = Duration::from_secs(3600);
/// How many points go at once.
const THIN_MAX: usize = 5000;
/// How long one waits while somebody else sets the points, or a member is not up.
const STANDBY: Duration = Duration::from_secs(5);

/// Keeps a group until `stop` says so.
pub(crate) async fn keep(daemon: Arc<Daemon>, group: RecoveryGroup, mut stop: watch::Receiver<bool>) {
    if group.every.is_none() && group.exact.is_none() {
        return;
    }
    let mut held: Option<Lease> = None;
    let mut thinned: Option<Monotonic> = None;
    while !*stop.borrow() {
        let wait = tokio::select! {
            wait = turn(&daemon, &group, &mut held, &mut thinned) => wait,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let _ = tokio::time::timeout(wait, stop.wait_for(|stop| *stop)).await;
    }
    if let Some(lease) = held {
        release(lease).await;
    }
}

/// One look; how long until the next.
async fn turn(
    daemon: &Daemon,
    group: &RecoveryGroup,
    held: &mut Option<Lease>,
    thinned: &mut Option<Monotonic>,
) -> Duration {
    let members = match daemon.members(group).await {
        Ok(members) => members,
        Err(e) => return daemon.stand_by(group, e),
    };
    if held.as_ref().is_some_and(Lease::lost) {
        *held = None;
    }
    // A mark in log that nobody takes in yet may never be covered, and would be waited for in vain.
    if daemon.started.elapsed() < daemon.config.rhythm.cover && !daemon.are_followed(&members) {
        daemon.stand_by(group, "its members are not followed yet".to_owned());
        return daemon.config.rhythm.tick;
    }
    let vault = members[0].vault.vault().clone();
    if held.is_none() {
        match daemon.group_lease(group, &vault).await {
            Ok(Some(lease)) => *held = Some(lease),
            Ok(None) => {
                let _ = daemon.read_ids(group, &vault, daemon.config.rhythm.refresh).await;
                return STANDBY;
            }
            Err(e) => return daemon.stand_by(group, e),
        }
        // Somebody else may have set some since we looked.
        if let Err(e) = daemon.read_ids(group, &vault, Duration::ZERO).await {
            return daemon.stand_by(group, e);
        }
    }
    if let Err(e) = daemon.read_ids(group, &vault, daemon.config.rhythm.refresh).await {
        return daemon.stand_by(group, e);
    }
    let _ = daemon.set_if_due(group, &members).await;
    if thinned.is_none_or(|thinned| thinned.elapsed() >= THIN_EVERY) {
        *thinned = Some(Monotonic::now());
        if let Err(e) = daemon.thin_out(group, &members).await {
            tracing::warn!(group = %group.name, error = e, "delete old points");
        }
    }
    daemon.config.rhythm.tick
}

impl Daemon {
    /// For `serve --once`.
    pub(crate) async fn point_if_due(&self, group: &RecoveryGroup) -> Result<bool, String> {
        if group.every.is_none() && group.exact.is_none() {
            return Ok(false);
        }
        let members = self.members(group).await?;
        let vault = members[0].vault.vault().clone();
        let Some(lease) = self.group_lease(group, &vault).await? else { return Ok(false) };
        let result = match self.read_ids(group, &vault, Duration::ZERO).await {
            Ok(()) => self.set_if_due(group, &members).await,
            Err(e) => Err(e),
        };
        release(lease).await;
        result
    }

    /// The members, all of them up.
    async fn members(&self, group: &RecoveryGroup) -> Result<Vec<Protected>, String> {
        let mut members = Vec::with_capacity(group.members.len());
        for name in &group.members {
            let Some(cluster) = self.config.fleet.cluster(name.as_str()) else {
                return Err(format!("{} names {name}, which is not in the fleet", group.name));
            };
            let of = self.config.world.protected(cluster).await.map_err(|e| why(&*e))?;
            if of.access.nodes.is_empty() {
                return Err(format!("{name} is not up"));
            }
            members.push(of);
        }
        if members.is_empty() { Err(format!("{} has no members", group.name)) } else { Ok(members) }
    }

    fn are_followed(&self, members: &[Protected]) -> bool {
        members.iter().all(|of| self.follower(&of.cluster.name).is_some_and(|f| f.status().is_well()))
    }

    async fn group_lease(&self, group: &RecoveryGroup, vault: &Vault) -> Result<Option<Lease>, String> {
        let (fleet, environment) = (&self.config.fleet.name, &self.config.fleet.environment.name);
        let name = format!("daemon.point.{fleet}.{environment}.{}", group.name);
        match vault.lease(&name, &self.config.holder, LEASE_TTL).await {
            Ok(lease) => Ok(Some(lease)),
            Err(vault::Error::Held { .. }) => Ok(None),
            Err(e) => Err(why(&e)),
        }
    }

    async fn set_if_due(&self, group: &RecoveryGroup, members: &[Protected]) -> Result<bool, String> {
        let view = self.group_view(group);
        let now = Instant::now();
        let exact = group.exact.filter(|exact| due::every(exact.every, view.last_exact_tried, now));
        let is_due = exact.is_some() || group.every.is_some_and(|every| due::every(every, view.last, now));
        if !is_due || !view.retry.is_open() {
            return Ok(false);
        }
        let stall = exact.map(|exact| exact.stall);
        let done = self.run("point", group.name.as_str(), self.set(group, members, stall)).await;
        let (first, longest) = self.config.rhythm.retry;
        let longest = group.every.map_or(longest, |every| longest.min(every));
        self.change_group(group, |view| match &done {
            Ok(_) => {
                view.error = None;
                view.retry.succeeded();
            }
            Err(e) => {
                view.error = Some(e.clone());
                view.retry.failed((first.min(longest), longest));
            }
        });
        done
    }

    async fn set(
        &self,
        group: &RecoveryGroup,
        members: &[Protected],
        stall: Option<Duration>,
    ) -> Result<Outcome, String> {
        let followers: Vec<Option<Arc<Follower>>> =
            members.iter().map(|of| self.follower(&of.cluster.name)).collect();
        let pairs = members.iter().zip(&followers);
        let members: Vec<Member<'_>> =
            pairs.map(|(of, follower)| Member { of, follower: follower.as_deref() }).collect();
        let options = PointOptions {
            fleet: self.config.fleet.name.to_string(),
            environment: self.config.fleet.environment.name.to_string(),
            group: group.name.to_string(),
            stall,
            attempts: EXACT_ATTEMPTS,
            cover_within: self.config.rhythm.cover,
            follow: self.config.follow.clone(),
        };
        let point = set_point(&members, &options).await.map_err(|e| why(&e))?;
        if let Some(why) = &point.why_not_exact {
            tracing::warn!(group = %group.name, point = point.id, why, "point is not exact");
        }
        let detail = json!({ "point": point.id, "exact": point.exact });
        self.change_group(group, |view| {
            view.last = Some(due::time_of_point(&point.id).unwrap_or_else(Instant::now)).max(view.last);
            if stall.is_some() {
                view.last_exact_tried = view.last;
                view.exact_tried += 1;
                view.exact_done += u64::from(point.exact);
            }
            view.newest = Some(point);
        });
        Ok(Outcome::Done(Bytes::default(), detail))
    }

    /// Reads which points there are, if that was longer ago than `at_most`.
    async fn read_ids(&self, group: &RecoveryGroup, vault: &Vault, at_most: Duration) -> Result<(), String> {
        let view = self.group_view(group);
        if view.read.is_some_and(|read| read.elapsed() < at_most) {
            return Ok(());
        }
        let (fleet, environment) =
            (self.config.fleet.name.as_str(), self.config.fleet.environment.name.as_str());
        let ids = match vault.point_ids(fleet, environment, group.name.as_str()).await {
            Ok(ids) => ids,
            Err(e) => {
                self.change_group(group, |view| view.read = None);
                return Err(why(&e));
            }
        };
        let mut tried = view.last_exact_tried;
        if group.exact.is_some() && tried.is_none() {
            for id in ids.iter().rev().take(LOOK_BACK) {
                let point: FleetPoint = match vault.point(fleet, environment, group.name.as_str(), id).await {
                    Ok(point) => point,
                    // One that is damaged, or gone by now, is no reason to set no more.
                    Err(vault::Error::Damaged { .. } | vault::Error::NotFound(_)) => continue,
                    Err(e) => return Err(why(&e)),
                };
                if point.exact || point.why_not_exact.is_some() {
                    tried = due::time_of_point(id);
                    break;
                }
            }
        }
        self.change_group(group, |view| {
            view.set_ids(&ids);
            view.last_exact_tried = view.last_exact_tried.max(tried);
        });
        Ok(())
    }

    async fn thin_out(&self, group: &RecoveryGroup, members: &[Protected]) -> Result<(), String> {
        let mut reached_from = None;
        for of in members {
            let catalogue = Catalogue::load(&of.vault).await.map_err(|e| why(&e))?;
            // Of a member without any window nothing can be said: all stays.
            let Some(from) = catalogue.past.windows().iter().map(|window| window.from).min() else {
                return Ok(());
            };
            reached_from = reached_from.max(Some(from));
        }
        let (fleet, environment) =
            (self.config.fleet.name.as_str(), self.config.fleet.environment.name.as_str());
        let keeps = members.iter().filter_map(|of| of.cluster.backup.as_ref()).map(|backup| backup.keep.log);
        let keep_all = keeps.max().unwrap_or(KEEP_ALL).max(KEEP_ALL);
        for of in members {
            let vault = of.vault.vault();
            let ids = vault.point_ids(fleet, environment, group.name.as_str()).await.map_err(|e| why(&e))?;
            let gone = due::points_to_delete(&ids, reached_from, keep_all, Instant::now());
            for id in gone.iter().take(THIN_MAX) {
                vault.delete_point(fleet, environment, group.name.as_str(), id).await.map_err(|e| why(&e))?;
            }
        }
        Ok(())
    }

    fn stand_by(&self, group: &RecoveryGroup, error: String) -> Duration {
        tracing::debug!(group = %group.name, error, "no point can be set now");
        self.change_group(group, |view| view.error = Some(error));
        STANDBY
    }

    pub(crate) fn group_view(&self, group: &RecoveryGroup) -> GroupView {
        lock(&self.groups).get(group.name.as_str()).cloned().unwrap_or_default()
    }

    fn change_group(&self, group: &RecoveryGroup, change: impl FnOnce(&mut GroupView)) {
        change(lock(&self.groups).entry(group.name.to_string()).or_default());
    }
}
