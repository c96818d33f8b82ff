//! Metrics, in Prometheus's text format.
//!
//! Ages and windows come from the vault's objects. What cannot be read now is left out, never repeated from before: a missing metric is
//! what an alert looks for. Names begin with `mainstay_`, units are in the names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

use mainstay_model::Instant;
use mainstay_recovery::follow::{FollowStatus, Phase};

use crate::view::{ClusterView, VaultView};
use crate::{Daemon, lock};

/// What runs did since the start.
#[derive(Default)]
pub(crate) struct Counters(Mutex<BTreeMap<(&'static str, String), Count>>);

#[derive(Clone, Copy, Default)]
struct Count {
    done: u64,
    failed: u64,
    seconds_last: f64,
    bytes: Bytes,
}

/// Bytes that a run moved.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bytes {
    /// Read at the source.
    pub read: u64,
    /// Of these, those that the vault did not have.
    pub new: u64,
    /// Ciphertext that was written.
    pub stored: u64,
}

impl Counters {
    pub fn done(&self, kind: &'static str, what: &str, took: Duration, bytes: Bytes) {
        let mut counts = lock(&self.0);
        let count = counts.entry((kind, what.to_owned())).or_default();
        count.done += 1;
        count.seconds_last = took.as_secs_f64();
        count.bytes.read += bytes.read;
        count.bytes.new += bytes.new;
        count.bytes.stored += bytes.stored;
    }

    pub fn failed(&self, kind: &'static str, what: &str) {
        lock(&self.0).entry((kind, what.to_owned())).or_default().failed += 1;
    }
}

/// The text that `/metrics` gives.
pub(crate) fn render(daemon: &Daemon) -> String {
    let mut page = Page::default();
    let now = Instant::now();
    page.gauge("mainstay_up", "Whether the daemon runs.", &[], 1.0);
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.gauge("mainstay_build_info", "The daemon's version.", &version, 1.0);
    page.gauge(
        "mainstay_uptime_seconds",
        "Since the daemon began.",
        &[],
        daemon.started.elapsed().as_secs_f64(),
    );
    for cluster in daemon.kept() {
        let name = cluster.name.as_str();
        let view = daemon.view(&cluster.name);
        let status = daemon.follower(&cluster.name).map(|follower| follower.status());
        of_cluster(
            &mut page,
            name,
            &view,
            view.vault.as_ref().filter(|vault| is_fresh(daemon, vault)),
            status.as_ref(),
            now,
        );
        if let Some(status) = &status {
            of_lanes(&mut page, name, status);
        }
    }
    for group in daemon.config.fleet.recovery_groups.values() {
        of_group(&mut page, daemon, group, now);
    }
    of_runs(&mut page, daemon);
    page.finish()
}

/// What was read longer ago than this is no longer known.
fn is_fresh(daemon: &Daemon, vault: &VaultView) -> bool {
    vault.read.elapsed() < daemon.config.rhythm.refresh * 3 + Duration::from_secs(10)
}

fn of_cluster(
    page: &mut Page,
    name: &str,
    view: &ClusterView,
    vault: Option<&VaultView>,
    status: Option<&FollowStatus>,
    now: Instant,
) {
    let of = [("cluster", name)];
    let age = |at: Instant| now.since(at).as_secs_f64();
    let stamp = |at: Instant| at.micros() as f64 / 1e6;
    page.gauge("mainstay_cluster_known", "Whether the cluster's nodes are known.", &of, flag(view.is_known));
    page.gauge("mainstay_vault_reachable", "Whether the vault could be read.", &of, flag(vault.is_some()));
    if let Some(status) = status {
        page.gauge(
            "mainstay_follower_well",
            "Whether every lane is followed, here or elsewhere.",
            &of,
            flag(status.is_well()),
        );
        let wanted = status.wants_snapshot().is_some();
        page.gauge(
            "mainstay_snapshot_wanted",
            "Whether the log is worth nothing without a new snapshot.",
            &of,
            flag(wanted),
        );
        if let Some(to) = status.spool_complete_to() {
            let help = "What would be lost if the cluster were lost and this machine not.";
            page.gauge("mainstay_rpo_spool_seconds", help, &of, age(to));
        }
    }
    let Some(vault) = vault else { return };
    let window = &vault.window;
    page.gauge("mainstay_snapshots", "Finished snapshots in the vault.", &of, window.snapshots as f64);
    page.gauge(
        "mainstay_snapshots_damaged",
        "Snapshots whose manifest is damaged.",
        &of,
        window.damaged.len() as f64,
    );
    page.gauge(
        "mainstay_holes",
        "Stretches within the window that cannot be had.",
        &of,
        window.holes.len() as f64,
    );
    if let Some(at) = window.snapshot_at {
        page.gauge(
            "mainstay_last_snapshot_age_seconds",
            "Since the newest snapshot was consistent.",
            &of,
            age(at),
        );
        page.gauge(
            "mainstay_last_snapshot_timestamp_seconds",
            "When the newest snapshot was consistent.",
            &of,
            stamp(at),
        );
    }
    if let Some(at) = vault.proven_at {
        page.gauge("mainstay_last_proof_age_seconds", "Since a snapshot was last proven.", &of, age(at));
    }
    if let Some(seconds) = vault.proof_rto_seconds {
        page.gauge(
            "mainstay_proof_rto_seconds",
            "How long the restore of the last proof took.",
            &of,
            seconds,
        );
    }
    if let Some(at) = window.from {
        page.gauge(
            "mainstay_window_start_timestamp_seconds",
            "The earliest instant that can be had.",
            &of,
            stamp(at),
        );
    }
    // What this process knows to be in the vault is there, if the log leads to it from a snapshot.
    let leads = status.is_some_and(|status| status.wants_snapshot().is_none());
    let here = status.filter(|_| leads).and_then(FollowStatus::vault_complete_to);
    if let Some(to) = window.to.max(here.filter(|_| window.to.is_some())) {
        page.gauge(
            "mainstay_window_end_timestamp_seconds",
            "The latest instant that can be had.",
            &of,
            stamp(to),
        );
        page.gauge(
            "mainstay_log_age_seconds",
            "Since the latest instant that the vault's log reaches.",
            &of,
            age(to),
        );
        page.gauge(
            "mainstay_rpo_vault_seconds",
            "What would be lost if only the vault were left.",
            &of,
            age(to),
        );
    }
}

fn of_lanes(page: &mut Page, name: &str, status: &FollowStatus) {
    for (lane, status) in &status.lanes {
        let of = [("cluster", name), ("lane", lane.0.as_str())];
        let here = matches!(status.phase, Phase::Following);
        page.gauge(
            "mainstay_lane_following",
            "Whether this process has a link to the lane.",
            &of,
            flag(here),
        );
        page.gauge(
            "mainstay_lane_spool_only",
            "Whether the lane's log goes to this machine's spool alone, since the vault cannot be asked.",
            &of,
            flag(status.is_alone),
        );
        page.gauge("mainstay_spool_bytes", "What the lane's spool holds.", &of, status.spool_bytes as f64);
        page.counter(
            "mainstay_log_vaulted_bytes_total",
            "Bytes of log given to the vault.",
            &of,
            status.vaulted_bytes as f64,
        );
        page.counter(
            "mainstay_log_failures_total",
            "Failures of links and uploads.",
            &of,
            status.failures as f64,
        );
        page.counter("mainstay_log_holes_total", "Holes that were declared.", &of, status.holes as f64);
    }
}

fn of_group(page: &mut Page, daemon: &Daemon, group: &mainstay_model::RecoveryGroup, now: Instant) {
    let view = daemon.group_view(group);
    let of = [("group", group.name.as_str())];
    let limit = daemon.config.rhythm.refresh * 3 + Duration::from_secs(10);
    if let Some(last) = view.last.filter(|_| view.read.is_some_and(|read| read.elapsed() < limit)) {
        page.gauge(
            "mainstay_last_point_age_seconds",
            "Since the newest fleet point.",
            &of,
            now.since(last).as_secs_f64(),
        );
    }
    if view.exact_tried > 0 {
        let ratio = view.exact_done as f64 / view.exact_tried as f64;
        page.gauge(
            "mainstay_point_exact_ratio",
            "Of the points that were to be exact, those that were.",
            &of,
            ratio,
        );
    }
    page.counter("mainstay_points_exact_total", "Points that were exact.", &of, view.exact_done as f64);
    if let Some(point) = &view.newest {
        page.gauge(
            "mainstay_point_stall_seconds",
            "How long writes waited for the newest point.",
            &of,
            point.stall_us as f64 / 1e6,
        );
        page.gauge(
            "mainstay_point_skew_seconds",
            "The time between the newest point's marks.",
            &of,
            point.skew_us as f64 / 1e6,
        );
    }
}

fn of_runs(page: &mut Page, daemon: &Daemon) {
    let mut counts = lock(&daemon.counters.0).clone();
    // What never ran is 0, not missing: an increase is what alerts look for.
    for cluster in daemon.kept() {
        for kind in ["snapshot", "proof", "prune"] {
            counts.entry((kind, cluster.name.to_string())).or_default();
        }
    }
    for group in daemon.config.fleet.recovery_groups.keys() {
        counts.entry(("point", group.to_string())).or_default();
    }
    for ((kind, what), count) in &counts {
        let of = [("kind", *kind), ("what", what.as_str())];
        page.counter("mainstay_runs_total", "What was due and was done.", &of, count.done as f64);
        page.counter("mainstay_failures_total", "What was due and failed.", &of, count.failed as f64);
        if count.done > 0 {
            page.gauge(
                "mainstay_run_duration_seconds",
                "How long the last one took.",
                &of,
                count.seconds_last,
            );
        }
        if *kind == "snapshot" {
            let of = [("cluster", what.as_str())];
            page.counter(
                "mainstay_snapshot_read_bytes_total",
                "Bytes read for snapshots.",
                &of,
                count.bytes.read as f64,
            );
            page.counter(
                "mainstay_snapshot_new_bytes_total",
                "Of these, bytes that the vault did not have.",
                &of,
                count.bytes.new as f64,
            );
            page.counter(
                "mainstay_snapshot_stored_bytes_total",
                "Ciphertext written for snapshots.",
                &of,
                count.bytes.stored as f64,
            );
        }
    }
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// A page of metrics: each name's samples together, under its HELP and TYPE.
#[derive(Default)]
struct Page(BTreeMap<&'static str, (String, String)>);

impl Page {
    fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.sample(name, "gauge", help, labels, value);
    }

    fn counter(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.sample(name, "counter", help, labels, value);
    }

    fn sample(&mut self, name: &'static str, kind: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        let (_, samples) = self
            .0
            .entry(name)
            .or_insert_with(|| (format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"), String::new()));
        let label = |(key, value): &(&str, &str)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{key}=\"{value}\"")
        };
        let labels: Vec<String> = labels.iter().map(label).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        // Writing to a string does not fail.
        let _ = writeln!(samples, "{name}{labels} {value}");
    }

    fn finish(self) -> String {
        self.0.into_values().map(|(head, samples)| head + &samples).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_explained() {
        let told = include_str!("../../../docs/metrics.md");
        let source = include_str!("metrics.rs").split("mod tests").next().unwrap();
        let names: Vec<&str> = source.split('"').filter(|text| text.starts_with("mainstay_")).collect();
        assert!(names.len() > 30);
        for name in names {
            assert!(told.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
        }
    }

    #[test]
    fn samples_of_one_name_stand_together() {
        let mut page = Page::default();
        page.gauge("mainstay_b", "B.", &[("cluster", "a\"b\\c\n")], 1.5);
        page.counter("mainstay_a_total", "A.", &[], 3.0);
        page.gauge("mainstay_b", "B.", &[], 2.0);
        let expect = "# HELP mainstay_a_total A.\n# TYPE mainstay_a_total counter\nmainstay_a_total 3\n\
                      # HELP mainstay_b B.\n# TYPE mainstay_b gauge\nmainstay_b{cluster=\"a\\\"b\\\\c\\n\"} 1.5\nmainstay_b 2\n";
        assert_eq!(page.finish(), expect);
    }
}
