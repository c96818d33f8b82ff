//! What may go, and its going in two phases.
//!
//! A prune marks what nothing needs (a *tomb* names it), and deletes what an earlier one marked, if after the grace period nothing needs it still.
//! Whoever begins a snapshot in between takes nothing over from what is marked, and says what it takes over before it does; so a pack that is in use
//! is never deleted, and one that nobody uses is gone after the second prune. Order is by (incarnation, time), never by name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use mainstay_model::{Instant, Keep, Lane};
use mainstay_store::Kind;
use serde::{Deserialize, Serialize};

use crate::cluster::SnapFolder;
use crate::index::{Line, PackInfo, open_part, pack_key};
use crate::keep::kept;
use crate::lease::{self, Lease};
use crate::manifest::{Manifest, Started, Tomb, attempt_lease, attempt_of};
use crate::writer::ATTEMPT_TTL;
use crate::{ClusterVault, Error, LogKind, LogObject, Result, SnapshotRecord, surviving};

/// What a prune will do: a value, made without touching anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrunePlan {
    /// When it was made.
    pub at: Instant,
    /// What stays, and why.
    pub keep: Vec<Kept>,
    /// What is marked now and deleted by a prune after the grace period.
    pub mark: Vec<Going>,
    /// What an earlier prune marked, and is deleted now.
    pub delete: Vec<Going>,
    /// The marks whose time has come, by key; they go when all is done.
    pub tombs: Vec<String>,
}

/// A snapshot that stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Which.
    pub snapshot: String,
    /// Why: `within 30d`, `daily`, `pinned`, …
    pub why: Vec<String>,
}

/// Something that goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Going {
    /// What it is.
    pub kind: GoingKind,
    /// The snapshot's or the attempt's id, or the object's key.
    pub what: String,
    /// The incarnation that it is of.
    pub incarnation: String,
    /// Why.
    pub why: String,
    /// Its size; for a snapshot, that of its own index.
    pub bytes: u64,
}

/// What goes, in the order in which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GoingKind {
    /// A snapshot, with its manifest and index.
    Snapshot,
    /// What a snapshot that never became one has left.
    Attempt,
    /// A pack that no snapshot needs.
    Pack,
    /// Log that no snapshot needs.
    Log,
}

/// What a prune did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Things newly marked.
    pub marked: u64,
    /// Snapshots deleted.
    pub snapshots: u64,
    /// Objects deleted.
    pub objects: u64,
    /// Bytes freed.
    pub bytes: u64,
}

/// An incarnation, as it is now.
struct Seen {
    incarnation: String,
    prefix: String,
    /// Listed before the folders: whoever wrote one of these is among them.
    packs: BTreeMap<String, u64>,
    folders: Vec<SnapFolder>,
    /// Attempts that somebody is at work on.
    live: BTreeMap<String, Started>,
    /// When the attempts that nobody is at work on were begun, where that is known.
    begun: HashMap<String, Instant>,
    /// Keys of the packs that each snapshot or attempt needs.
    needs: BTreeMap<String, BTreeSet<String>>,
}

impl Seen {
    async fn look(cluster: &ClusterVault, incarnation: &str) -> Result<Self> {
        let prefix = format!("{}/{incarnation}", cluster.prefix());
        let store = cluster.vault().store();
        let packs =
            store.list(&format!("{prefix}/packs")).await?.into_iter().map(|o| (o.key, o.bytes)).collect();
        let (folders, _) = cluster.folders(incarnation).await?;
        let mut seen = Self {
            incarnation: incarnation.to_owned(),
            prefix,
            packs,
            folders: Vec::new(),
            live: BTreeMap::new(),
            begun: HashMap::new(),
            needs: BTreeMap::new(),
        };
        for folder in folders {
            if folder.has_started && !folder.has_manifest {
                seen.started(cluster, &folder).await?;
            }
            let needs = match seen.packs_of(cluster, &folder).await {
                // What a broken-off attempt says counts only where it can be read.
                Err(Error::Damaged { .. }) if !folder.has_manifest => BTreeSet::new(),
                needs => needs?,
            };
            seen.needs.insert(folder.id.clone(), needs);
            seen.folders.push(folder);
        }
        Ok(seen)
    }

    async fn started(&mut self, cluster: &ClusterVault, folder: &SnapFolder) -> Result<()> {
        let key = format!("{}/snap/{}/started", self.prefix, folder.id);
        match cluster.vault().get_small::<Started>(&key, "started").await {
            Ok(started) => {
                let held = lease::is_held(cluster.vault(), &attempt_lease(&folder.id), ATTEMPT_TTL).await?;
                match held {
                    true => drop(self.live.insert(folder.id.clone(), started)),
                    false => drop(self.begun.insert(folder.id.clone(), started.begun_at)),
                }
                Ok(())
            }
            Err(error) if error.is_missing() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn packs_of(&self, cluster: &ClusterVault, folder: &SnapFolder) -> Result<BTreeSet<String>> {
        let place = format!("{}/snap/{}", self.prefix, folder.id);
        let parts = match folder.has_manifest {
            true => match cluster.manifest(&self.incarnation, &folder.id).await {
                Ok(manifest) => vec![manifest.packs.name.clone()],
                Err(error) if error.is_missing() => Vec::new(),
                Err(error) => return Err(error),
            },
            false => folder.index.iter().map(|part| part.name.clone()).collect(),
        };
        let mut needs = BTreeSet::new();
        for part in parts {
            for pack in read_packs(cluster, &place, &part).await? {
                needs.insert(pack_key(&self.prefix, &pack.id));
            }
        }
        Ok(needs)
    }

    /// Ids that those who are at work take over from.
    fn sources(&self) -> BTreeSet<&String> {
        self.live.values().flat_map(|started| &started.sources).collect()
    }

    /// Keys of the packs that must stay when the snapshots and attempts in `gone` do not.
    fn packs_in_use(&self, gone: &HashSet<String>) -> HashSet<&String> {
        let stay = self.needs.iter().filter(|(id, _)| !gone.contains(*id));
        let mut packs: HashSet<_> = stay.flat_map(|(_, packs)| packs).collect();
        let attempts: HashSet<_> = self.live.keys().map(|id| attempt_of(id)).collect();
        let attempt = |key: &String| {
            key.rsplit('/').next().and_then(|id| id.split_once('-')).map(|(a, _)| a.to_owned())
        };
        packs.extend(
            self.packs.keys().filter(|key| attempt(key).is_some_and(|a| attempts.contains(a.as_str()))),
        );
        packs
    }
}

pub(crate) async fn read_packs(cluster: &ClusterVault, place: &str, part: &str) -> Result<Vec<PackInfo>> {
    let key = format!("{place}/{part}");
    let cipher = match cluster.vault().store().get(&key).await {
        Ok(cipher) => cipher,
        Err(error) if error.kind == Kind::NotFound => return Err(Error::damaged(key, "it is missing")),
        Err(error) => return Err(error.into()),
    };
    let lines = open_part(cluster.vault().keys(), place, part, &cipher)?;
    let pack = |line: &[u8]| match serde_json::from_slice(line) {
        Ok(Line::Pack(pack)) => Some(pack),
        _ => None,
    };
    Ok(lines.split(|b| *b == b'\n').filter_map(pack).collect())
}

pub(crate) async fn plan(
    cluster: &ClusterVault,
    keep: &Keep,
    grace: Duration,
    now: Instant,
) -> Result<PrunePlan> {
    let tombs = cluster.tombs().await?;
    let records = cluster.snapshots().await?;
    let mut why = kept(&records, keep, now);
    let mut seen = Vec::new();
    for incarnation in cluster.incarnations().await? {
        let look = Seen::look(cluster, &incarnation).await?;
        for source in look.sources() {
            why.entry(source.clone())
                .or_default()
                .push("a snapshot that is being written takes over from it".into());
        }
        seen.push(look);
    }
    let (ripe, unripe): (Vec<_>, Vec<_>) =
        tombs.into_iter().partition(|(_, tomb)| tomb.marked_at + grace <= now);
    let ripe_names = names(&ripe);
    let marked: HashSet<_> = ripe_names.union(&names(&unripe)).cloned().collect();

    let mut plan =
        PrunePlan { at: now, keep: Vec::new(), mark: Vec::new(), delete: Vec::new(), tombs: Vec::new() };
    for look in &seen {
        let folders = going_folders(look, &records, &why, &marked, grace, now);
        let gone_now: HashSet<_> =
            folders.iter().map(|g| g.what.clone()).filter(|id| ripe_names.contains(id)).collect();
        let gone: HashSet<_> = folders.iter().map(|going| going.what.clone()).collect();
        let log = going_log(cluster, look, &records, &gone, keep, now).await?;
        let (now_in_use, in_use) = (look.packs_in_use(&gone_now), look.packs_in_use(&gone));
        for going in folders.into_iter().chain(log) {
            sort_in(&mut plan, going, &ripe_names, &marked);
        }
        for (key, bytes) in &look.packs {
            let going = Going {
                kind: GoingKind::Pack,
                what: key.clone(),
                incarnation: look.incarnation.clone(),
                why: "no snapshot needs it".into(),
                bytes: *bytes,
            };
            // One that a later prune frees is not in use, but not free yet either.
            if ripe_names.contains(key) && !now_in_use.contains(key) {
                plan.delete.push(going);
            } else if !marked.contains(key) && !in_use.contains(key) {
                plan.mark.push(going);
            }
        }
    }
    plan.keep = why.into_iter().map(|(snapshot, why)| Kept { snapshot, why }).collect();
    plan.tombs = ripe.into_iter().map(|(key, _)| key).collect();
    plan.mark.sort();
    plan.delete.sort();
    Ok(plan)
}

fn names(tombs: &[(String, Tomb)]) -> HashSet<String> {
    tombs.iter().flat_map(|(_, tomb)| tomb.snapshots.iter().chain(&tomb.objects)).cloned().collect()
}

fn sort_in(plan: &mut PrunePlan, going: Going, ripe: &HashSet<String>, marked: &HashSet<String>) {
    if ripe.contains(&going.what) {
        plan.delete.push(going);
    } else if !marked.contains(&going.what) {
        plan.mark.push(going);
    }
}

/// Snapshots that no rule keeps, and attempts that nobody is at work on and nobody will take up.
fn going_folders(
    look: &Seen,
    records: &[SnapshotRecord],
    why: &BTreeMap<String, Vec<String>>,
    marked: &HashSet<String>,
    grace: Duration,
    now: Instant,
) -> Vec<Going> {
    let newest = records.iter().filter(|r| r.incarnation == look.incarnation).map(|r| r.committed_at).max();
    let mut going = Vec::new();
    for folder in &look.folders {
        let bytes = folder.objects.iter().map(|object| object.bytes).sum();
        let (kind, reason) = if folder.has_manifest {
            (GoingKind::Snapshot, "no rule keeps it")
        } else if !folder.has_started && !marked.contains(&folder.id) {
            // A snapshot whose manifest was lost, and no attempt: that is for verify to say, and for nobody to tidy away.
            continue;
        } else {
            // One that is not known to have begun is half deleted.
            let begun = look.begun.get(&folder.id).copied().unwrap_or(Instant::MIN);
            let outdated = begun + grace <= now || newest.is_some_and(|newest| begun < newest);
            if look.live.contains_key(&folder.id) || !outdated {
                continue;
            }
            (GoingKind::Attempt, "it was broken off")
        };
        if !why.contains_key(&folder.id) {
            let (what, incarnation) = (folder.id.clone(), look.incarnation.clone());
            going.push(Going { kind, what, incarnation, why: reason.into(), bytes });
        }
    }
    going
}

/// Log from before the oldest snapshot that stays, and log that others stand for.
async fn going_log(
    cluster: &ClusterVault,
    look: &Seen,
    records: &[SnapshotRecord],
    gone: &HashSet<String>,
    keep: &Keep,
    now: Instant,
) -> Result<Vec<Going>> {
    let stay: Vec<_> =
        records.iter().filter(|r| r.incarnation == look.incarnation && !gone.contains(&r.id)).collect();
    let begin = stay.iter().map(|r| r.taken.at.earliest.min(r.begun_at)).min();
    let until = begin.unwrap_or(Instant::MAX).min(now - keep.log);
    let mut going = Vec::new();
    for lane in cluster.lanes(&look.incarnation).await? {
        let objects = cluster.log_objects(&look.incarnation, &lane).await?;
        let alive: HashSet<_> = surviving(&objects).into_iter().map(|object| object.key).collect();
        // Only from the beginning on, so that what is left has no gaps, whatever clocks said.
        let mut beginning = true;
        for object in objects {
            let why = if !alive.contains(&object.key) {
                "another object stands for it"
            } else if beginning && is_older(&object, &lane, until, &stay) {
                "it is older than every snapshot that stays"
            } else {
                // How epochs came to be, and that log was lost, outlives what was in them.
                beginning &= matches!(object.kind, LogKind::Branch | LogKind::Hole);
                continue;
            };
            going.push(Going {
                kind: GoingKind::Log,
                what: object.key,
                incarnation: look.incarnation.clone(),
                why: why.into(),
                bytes: object.bytes,
            });
        }
    }
    Ok(going)
}

fn is_older(object: &LogObject, lane: &Lane, until: Instant, stay: &[&SnapshotRecord]) -> bool {
    // How epochs came to be is small, and needed for all that grew out of them. A hole is nothing but its name, and without it what follows
    // would seem to have lost what was before.
    if matches!(object.kind, LogKind::Branch | LogKind::Hole) && !stay.is_empty() {
        return false;
    }
    let needed = stay.iter().filter_map(|r| r.taken.started.get(lane)).any(|started| {
        started.epoch == object.segment.last.epoch && object.segment.last.offset > started.offset
    });
    !needed && object.segment.bracket.latest < until
}

pub(crate) async fn apply(cluster: &ClusterVault, plan: &PrunePlan) -> Result<Pruned> {
    let name = format!("prune.{}", &blake3::hash(cluster.prefix().as_bytes()).to_hex()[..32]);
    let lease = cluster.vault().lease(&name, "a prune", ATTEMPT_TTL).await?;
    let pruned = apply_leased(cluster, plan, &lease).await;
    let released = lease.release().await;
    let pruned = pruned?;
    released?;
    Ok(pruned)
}

async fn apply_leased(cluster: &ClusterVault, plan: &PrunePlan, lease: &Lease) -> Result<Pruned> {
    let mut pruned = Pruned::default();
    if !plan.mark.is_empty() {
        let mut tomb = Tomb { marked_at: plan.at, ..Tomb::default() };
        for going in &plan.mark {
            match going.kind {
                GoingKind::Snapshot | GoingKind::Attempt => tomb.snapshots.push(going.what.clone()),
                GoingKind::Pack | GoingKind::Log => tomb.objects.push(going.what.clone()),
            }
        }
        cluster.put_tomb(&tomb).await?;
        pruned.marked = plan.mark.len() as u64;
    }
    let mut by_incarnation: BTreeMap<&str, Vec<&Going>> = BTreeMap::new();
    for going in &plan.delete {
        by_incarnation.entry(&going.incarnation).or_default().push(going);
    }
    let pinned = crate::cluster::BesideSnapshots::read(cluster).await?.pinned;
    for (incarnation, going) in by_incarnation {
        // What has come into use since the plan was made stays.
        let look = Seen::look(cluster, incarnation).await?;
        let sources = look.sources();
        let folder_goes =
            |id: &String| !pinned.contains(id) && !sources.contains(id) && !look.live.contains_key(id);
        let is_folder = |going: &&&Going| matches!(going.kind, GoingKind::Snapshot | GoingKind::Attempt);
        let gone: HashSet<_> =
            going.iter().filter(is_folder).map(|g| g.what.clone()).filter(|id| folder_goes(id)).collect();
        let in_use = look.packs_in_use(&gone);
        for going in going {
            if lease.lost() {
                return Err(Error::LeaseLost { lease: lease.name().to_owned() });
            }
            let deleted = match going.kind {
                GoingKind::Snapshot | GoingKind::Attempt if !gone.contains(&going.what) => continue,
                GoingKind::Snapshot | GoingKind::Attempt => {
                    delete_folder(cluster, &look, &going.what).await?
                }
                GoingKind::Pack if in_use.contains(&going.what) => continue,
                GoingKind::Pack | GoingKind::Log => {
                    cluster.vault().store().delete(&going.what).await?;
                    1
                }
            };
            pruned.snapshots += u64::from(going.kind == GoingKind::Snapshot);
            pruned.objects += deleted;
            pruned.bytes += going.bytes;
        }
    }
    for tomb in &plan.tombs {
        cluster.vault().store().delete(tomb).await?;
    }
    tidy(cluster).await?;
    Ok(pruned)
}

/// Removes what processes that were killed at a bad moment have left, and nobody can need: no mark is wanted for that.
async fn tidy(cluster: &ClusterVault) -> Result<()> {
    let (vault, store) = (cluster.vault(), cluster.vault().store());
    for incarnation in cluster.incarnations().await? {
        for folder in
            cluster.folders(&incarnation).await?.0.iter().filter(|f| f.has_manifest && f.has_started)
        {
            store.delete(&format!("{}/{incarnation}/snap/{}/started", cluster.prefix(), folder.id)).await?;
        }
    }
    lease::forget_dead(vault, &attempt_lease("")).await?;
    for folder in store.list_level("").await?.folders.iter().filter(|folder| folder.starts_with("probe-")) {
        for object in store.list(folder).await? {
            store.delete(&object.key).await?;
        }
    }
    for object in store.list_level("keys").await?.objects {
        // Of somebody who made this vault at the same time and lost.
        if object.key != crate::format::keys_name(vault.id()) {
            store.delete(&object.key).await?;
        }
    }
    Ok(store.sweep().await?)
}

/// Deletes a snapshot or an attempt: its manifest first, so that it is none any more; what is known of it last.
async fn delete_folder(cluster: &ClusterVault, look: &Seen, id: &str) -> Result<u64> {
    let store = cluster.vault().store();
    let place = format!("{}/snap/{id}", look.prefix);
    let manifest = format!("{place}/manifest");
    store.delete(&manifest).await?;
    {
        // A block: the guard must not live up to the next await.
        let mut manifests =
            cluster.vault().manifests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        manifests.remove(&manifest);
    }
    for state in store.list_level(&format!("states/{id}")).await?.objects {
        store.delete(&state.key).await?;
    }
    store.delete(&format!("pins/{id}")).await?;
    lease::forget(cluster.vault(), &attempt_lease(id)).await?;
    let objects = store.list_level(&place).await?.objects;
    for object in &objects {
        store.delete(&object.key).await?;
    }
    Ok(objects.len() as u64 + 1)
}

pub(crate) async fn bytes_unique(cluster: &ClusterVault) -> Result<BTreeMap<String, u64>> {
    let mut unique = BTreeMap::new();
    for incarnation in cluster.incarnations().await? {
        let prefix = format!("{}/{incarnation}", cluster.prefix());
        let mut users: HashMap<String, (u64, Vec<String>)> = HashMap::new();
        let (folders, _) = cluster.folders(&incarnation).await?;
        for folder in folders.iter().filter(|folder| folder.has_manifest) {
            let manifest: std::sync::Arc<Manifest> = match cluster.manifest(&incarnation, &folder.id).await {
                Ok(manifest) => manifest,
                Err(error) if error.is_missing() => continue,
                Err(error) => return Err(error),
            };
            let own: u64 = folder.objects.iter().map(|object| object.bytes).sum();
            unique.insert(folder.id.clone(), own);
            for pack in
                read_packs(cluster, &format!("{prefix}/snap/{}", folder.id), &manifest.packs.name).await?
            {
                users.entry(pack.id).or_insert((pack.bytes, Vec::new())).1.push(folder.id.clone());
            }
        }
        for (bytes, users) in users.into_values() {
            if let [only] = &users[..] {
                *unique.entry(only.clone()).or_default() += bytes;
            }
        }
    }
    Ok(unique)
}
