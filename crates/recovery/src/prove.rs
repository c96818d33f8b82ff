//! `prove`: a restore that is run and checked.
//!
//! The target is restored into a sandbox, the real servers are started, the engines run their own integrity checks, and all content is counted and
//! digested. Then the same positions are restored once more, from the next best snapshot of each cluster, and the content must be the same
//! (*crossed*): that needs nothing from the source, and finds whatever a snapshot or a follower dropped in silence. One sandbox after the
//! other, so that memory and disk hold one at a time; both are gone at the end, whatever happened.
//!
//! A snapshot is recorded as proven when nothing differed and it was crossed with every other snapshot's log that could be had: where a
//! second snapshot reaches the target and cannot be restored, that is a difference; where there is none, the proof says so in a note and stands
//! on the checks alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic};

use async_trait::async_trait;
use mainstay_engine::{self as engine, Content, Progress, Ttl};
use mainstay_model::{Cluster, Instant, Position};
use serde::{Deserialize, Serialize};

use crate::Protected;
use crate::error::{Doing, Error, Result};
use crate::plan::{Command, PlanOptions, Planned, PointTarget, Ready, Target, plan, say_instead};
use crate::restore::{RestoredCluster, RunOptions, Site, one, site_of, within};
use crate::together::together;

/// How long the checks of one cluster may take.
const CHECKS: Duration = Duration::from_secs(3600);

/// Where sandboxes are made.
#[async_trait]
pub trait Sandboxes: Send + Sync {
    /// Makes a sandbox: for each cluster a site with empty folders and free ports.
    ///
    /// # Errors
    /// `Io`, `NotInstalled`.
    async fn make(&self, id: &str, clusters: &[&Cluster]) -> engine::Result<BTreeMap<String, Site>>;

    /// Stops whatever runs of a sandbox and removes its folders. Nothing to do is no error.
    ///
    /// # Errors
    /// `Io`, `Deadline`.
    async fn remove(&self, id: &str) -> engine::Result<()>;
}

/// What is to be proven, and where its record is filed.
#[derive(Clone)]
pub struct ProveOptions {
    /// The proof's id, unique; also the sandboxes' name.
    pub id: String,
    /// The fleet.
    pub fleet: String,
    /// The environment.
    pub environment: String,
    /// The cluster or the group.
    pub subject: String,
    /// As [`PlanOptions::snapshots`].
    pub snapshots: Vec<String>,
    /// How it was asked for, where somebody did.
    pub command: Option<Command>,
    /// How many files are written at once.
    pub jobs: usize,
    /// When the command began.
    pub began: Monotonic,
    /// How far it is.
    pub progress: Arc<dyn Progress>,
}

/// The record of a restore that was run and checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// Its id.
    pub proof: String,
    /// The cluster or the group.
    pub subject: String,
    /// When it was made.
    pub made_at: Instant,
    /// What was asked for, in words.
    pub target: String,
    /// The instant that was restored.
    pub at: Instant,
    /// Cluster by cluster.
    pub clusters: Vec<ProvenCluster>,
    /// All that was checked.
    pub checks: Vec<ProofCheck>,
    /// Those that did not find what must be found; empty when proven.
    pub differences: Vec<ProofCheck>,
    /// From the command to checked, running clusters.
    pub rto_seconds: f64,
    /// The window's end less what was restored.
    pub rpo_seconds: f64,
    /// By how much the clusters' cuts can be apart.
    pub skew_ms: f64,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// One cluster of a proof.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProvenCluster {
    /// The cluster.
    pub cluster: String,
    /// The snapshot that it was restored from.
    pub snapshot: String,
    /// The one that it was crossed with.
    pub crossed_with: Option<String>,
    /// The position that was restored.
    pub position: Position,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofCheck {
    /// The cluster.
    pub cluster: String,
    /// `checksums`, `amcheck`, `rdb`, `crossed`, …
    pub kind: String,
    /// What was looked at.
    pub what: String,
    /// What must be found.
    pub expected: String,
    /// What was found.
    pub found: String,
}

/// Proves a target: restores, checks, crosses, and files the record in the vault.
///
/// # Errors
/// `Refused`; what a step said. What differs is no error but in the proof. No sandbox is left.
pub async fn prove(
    members: &[Protected],
    target: &Target,
    sandboxes: &dyn Sandboxes,
    options: &ProveOptions,
) -> Result<Proof> {
    let begin = PlanOptions { snapshots: options.snapshots.clone(), ..PlanOptions::default() };
    let first = plan(members, target, &begin).await?.accepted()?;
    let id = &options.id;
    let looked = match (with_sandbox(&first, sandboxes, id, true, options).await, &options.command) {
        (Err(error), Some(command)) => return Err(say_instead(error, &first, command).await),
        (looked, _) => looked?,
    };
    let rto_seconds = options.began.elapsed().as_secs_f64();
    let mut proof = Proof {
        proof: id.clone(),
        subject: options.subject.clone(),
        made_at: Instant::now(),
        target: first.plan.target.clone(),
        at: first.plan.at.unwrap_or(Instant::MIN),
        clusters: vec![],
        checks: vec![],
        differences: vec![],
        rto_seconds,
        rpo_seconds: first.plan.rpo_seconds,
        skew_ms: first.plan.skew_ms,
        notes: looked.clusters.iter().flat_map(|c| c.notes.clone()).collect(),
    };
    for ready in &first.ready {
        proof.clusters.push(ProvenCluster {
            cluster: ready.plan.cluster.clone(),
            snapshot: ready.plan.snapshot.clone(),
            crossed_with: None,
            position: ready.plan.position.clone(),
        });
    }
    proof.checks.extend(looked.checks.iter().cloned());
    cross(&first, &looked, sandboxes, options, &mut proof).await?;
    proof.differences = proof.checks.iter().filter(|c| c.expected != c.found).cloned().collect();
    file(&first, &proof, options).await?;
    Ok(proof)
}

/// Restores the same positions from other snapshots, and compares the content.
async fn cross(
    first: &Planned,
    looked: &Looked,
    sandboxes: &dyn Sandboxes,
    options: &ProveOptions,
    proof: &mut Proof,
) -> Result<()> {
    let mut crossing = Vec::new();
    for ready in &first.ready {
        match ready.plan.others.is_empty() {
            true => {
                let cluster = &ready.plan.cluster;
                proof.notes.push(format!(
                    "{cluster} is not crossed: only snapshot {} reaches the target",
                    ready.plan.snapshot
                ));
            }
            false => crossing.push(ready.of.clone()),
        }
    }
    if crossing.is_empty() {
        return Ok(());
    }
    let positions = first.ready.iter().map(|r| (r.plan.cluster.clone(), r.plan.position.clone())).collect();
    let at = first.plan.at.unwrap_or(Instant::MIN);
    let same = Target::Point(PointTarget {
        id: "of the first restore".to_owned(),
        at,
        skew: Duration::ZERO,
        positions,
    });
    let avoid = first.ready.iter().map(|r| r.plan.snapshot.clone()).collect();
    let second = plan(&crossing, &same, &PlanOptions { avoid, ..PlanOptions::default() }).await?;
    let crossed = |cluster: &str, what: String, expected: String, found: String| ProofCheck {
        cluster: cluster.to_owned(),
        kind: "crossed".to_owned(),
        what,
        expected,
        found,
    };
    if !second.plan.refusals.is_empty() {
        for refusal in &second.plan.refusals {
            let what = "another snapshot".to_owned();
            proof.checks.push(crossed(&refusal.subject, what, "restorable".to_owned(), refusal.what.clone()));
        }
        return Ok(());
    }
    let again = with_sandbox(&second, sandboxes, &format!("{}-x", options.id), false, options).await;
    let again = match again {
        Err(Error::Engine { what, source }) if source.kind == engine::Kind::Damaged => {
            // Which cluster's it is stands in its name.
            let is_of = |r: &&Ready| source.what.contains(&format!("{}/", r.of.vault.prefix()));
            let hurt = second.ready.iter().find(is_of).or(second.ready.first());
            let cluster = hurt.map_or(options.subject.as_str(), |r| r.plan.cluster.as_str());
            let snapshot = hurt.map_or("another snapshot", |r| r.plan.snapshot.as_str());
            let found = format!("{what}: {}", source.what);
            proof.checks.push(crossed(cluster, snapshot.to_owned(), "restorable".to_owned(), found));
            return Ok(());
        }
        again => again?,
    };
    for ready in &second.ready {
        let cluster = &ready.plan.cluster;
        if let Some(of) = proof.clusters.iter_mut().find(|c| c.cluster == *cluster) {
            of.crossed_with = Some(ready.plan.snapshot.clone());
        }
        let (Some(left), Some(right)) = (looked.contents.get(cluster), again.contents.get(cluster)) else {
            continue;
        };
        for (what, expected, found) in compare(left, right) {
            proof.checks.push(crossed(cluster, what, expected, found));
        }
    }
    Ok(())
}

/// What each object of two restores of one instant holds, written so that equal texts mean that it is the same.
fn compare(left: &[Content], right: &[Content]) -> Vec<(String, String, String)> {
    let by_name = |all: &[Content]| -> BTreeMap<String, Content> {
        all.iter().map(|c| (c.what.clone(), c.clone())).collect()
    };
    let (left, mut right) = (by_name(left), by_name(right));
    let write = |c: &Content| format!("{} ({})", c.count, c.digest);
    let mut rows = Vec::new();
    for (what, one) in left {
        let found = match right.remove(&what) {
            None => "absent".to_owned(),
            // Some counters (sequences) run ahead in the log by a known amount; their digest is of no use then.
            Some(other)
                if one.tolerance > 0 && one.count.abs_diff(other.count) <= one.tolerance.unsigned_abs() =>
            {
                write(&one)
            }
            Some(other) => write(&other),
        };
        rows.push((what, write(&one), found));
    }
    rows.extend(right.into_iter().map(|(what, other)| (what, "absent".to_owned(), write(&other))));
    rows
}

/// Files the record, and says of the snapshots that they are proven if they are.
async fn file(first: &Planned, proof: &Proof, options: &ProveOptions) -> Result<()> {
    let Some(vault) = first.ready.first().map(|r| r.of.vault.vault()) else { return Ok(()) };
    vault
        .put_proof(&options.fleet, &options.environment, &options.subject, &proof.proof, proof)
        .await
        .doing(|| format!("file proof {}", proof.proof))?;
    for ready in &first.ready {
        let cluster = &ready.plan.cluster;
        if proof.differences.iter().any(|d| d.cluster == *cluster) {
            continue;
        }
        let snapshot = &ready.plan.snapshot;
        ready
            .of
            .vault
            .record_proven(snapshot, proof.made_at, &proof.proof)
            .await
            .doing(|| format!("record that {snapshot} is proven"))?;
    }
    Ok(())
}

/// What was seen of a sandbox.
struct Looked {
    clusters: Vec<RestoredCluster>,
    checks: Vec<ProofCheck>,
    contents: BTreeMap<String, Vec<Content>>,
}

/// Restores into a sandbox of its own, looks at it, and removes it.
async fn with_sandbox(
    planned: &Planned,
    sandboxes: &dyn Sandboxes,
    id: &str,
    integrity: bool,
    options: &ProveOptions,
) -> Result<Looked> {
    let clusters: Vec<&Cluster> = planned.ready.iter().map(|r| &r.of.cluster).collect();
    let made = sandboxes.make(id, &clusters).await.doing(|| format!("make sandbox {id}"));
    let looked = match made {
        Ok(sites) => look(planned, &sites, id, integrity, options).await,
        Err(error) => Err(error),
    };
    let removed = sandboxes.remove(id).await.doing(|| format!("remove sandbox {id}"));
    if let (Err(_), Err(error)) = (&looked, &removed) {
        tracing::error!(sandbox = id, %error, "sandbox not removed");
    }
    let looked = looked?;
    removed?;
    Ok(looked)
}

async fn look(
    planned: &Planned,
    sites: &BTreeMap<String, Site>,
    id: &str,
    integrity: bool,
    options: &ProveOptions,
) -> Result<Looked> {
    let run = RunOptions {
        sandbox: id.to_owned(),
        // Proofs compare what was there at the instant; nothing of it may have expired since.
        ttl: Ttl::Shift,
        jobs: options.jobs,
        in_place: false,
        compared: true,
        began: options.began,
        objectives: vec![],
        progress: options.progress.clone(),
    };
    let run = &run;
    // Who is restored first is looked at while the others are still on their way.
    let looks = together(&planned.ready, &options.progress, |ready, turn| async move {
        let site = site_of(ready, sites)?;
        let restored = one(ready, site, run, &turn).await?;
        let (ready, site) = (ready.clone(), site.clone());
        let look = turn.apart(async move { look_at(&ready, &site, integrity).await });
        Ok((restored, look.await?))
    });
    let mut looked = Looked { clusters: vec![], checks: vec![], contents: BTreeMap::new() };
    for (restored, (checks, content)) in looks.await? {
        looked.checks.extend(checks);
        looked.contents.insert(restored.cluster.clone(), content);
        looked.clusters.push(restored);
    }
    Ok(looked)
}

/// All that one restored cluster holds and, if it is wanted, what the engine's own checks say of it.
async fn look_at(ready: &Ready, site: &Site, integrity: bool) -> Result<(Vec<ProofCheck>, Vec<Content>)> {
    let cluster = &ready.plan.cluster;
    let engine = ready.of.engine;
    let Some(prove) = engine.prove() else {
        return Err(Error::Unsupported { engine: engine.name(), verb: "be proven" });
    };
    let access = site.layout.access();
    // Before the checks: what expires soon must still be there.
    let content = within(CHECKS, || format!("read all of {cluster}"), prove.content(&access)).await?;
    if !integrity {
        return Ok((vec![], content));
    }
    let found = prove.integrity(&site.layout, site.host.as_ref(), ready.snapshot.as_ref());
    let found = within(CHECKS, || format!("check the integrity of {cluster}"), found).await?;
    let checks = found.into_iter().map(|c| ProofCheck {
        cluster: cluster.clone(),
        kind: c.kind,
        what: c.what,
        expected: c.expected,
        found: c.found,
    });
    Ok((checks.collect(), content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(what: &str, count: i64, digest: &str, tolerance: i64) -> Content {
        Content { what: what.into(), count, digest: digest.into(), tolerance }
    }

    fn differ(left: &[Content], right: &[Content]) -> Vec<String> {
        compare(left, right).into_iter().filter(|(_, e, f)| e != f).map(|(what, ..)| what).collect()
    }

    #[test]
    fn contents_are_compared_by_name_with_tolerance() {
        let one = [content("table a", 3, "x", 0), content("sequence s", 3, "3", 32)];
        assert!(differ(&one, &one).is_empty());
        assert!(
            differ(&one, &[content("table a", 3, "x", 0), content("sequence s", 33, "33", 32)]).is_empty()
        );
        assert_eq!(
            differ(&one, &[content("table a", 3, "y", 0), content("sequence s", 36, "36", 32)]),
            ["sequence s", "table a"]
        );
        assert_eq!(differ(&one, &one[..1]), ["sequence s"]);
        assert_eq!(differ(&one[..1], &one), ["sequence s"]);
    }
}
