//! The backups of one cluster.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mainstay_model::{Instant, Keep, Lane};
use mainstay_store::{Kind, Object};
use serde::{Deserialize, Serialize};

use crate::index::Part;
use crate::log::{self, parse_object};
use crate::manifest::{Beside, Manifest, Tomb};
use crate::sealed::seal;
use crate::{
    Error, Lease, LogContent, LogObject, LogWriter, PrunePlan, Pruned, Result, SnapshotReader,
    SnapshotRecord, SnapshotState, SnapshotWriter, Vault, Verified, VerifyOptions,
};

/// The backups of one cluster of one environment of one fleet. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterVault {
    vault: Vault,
    prefix: Arc<str>,
}

/// What is in the folder of a snapshot, or of an attempt at one.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapFolder {
    pub id: String,
    pub has_manifest: bool,
    pub has_started: bool,
    /// The parts of its index, ordered.
    pub index: Vec<Part>,
    pub objects: Vec<Object>,
}

/// A pin.
#[derive(Debug, Serialize, Deserialize)]
struct Pin {
    at: Instant,
}

/// What was found of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    pub at: Instant,
    pub proof: Option<String>,
}

/// Manifests in memory at most.
const MANIFESTS_CACHED_MAX: usize = 4096;

impl ClusterVault {
    pub(crate) fn new(vault: Vault, fleet: &str, environment: &str, cluster: &str) -> Self {
        Self { vault, prefix: format!("c/{fleet}/{environment}/{cluster}").into() }
    }

    /// The vault.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// What all its keys begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The lives of this cluster's data that have backups.
    ///
    /// # Errors
    /// The store's.
    pub async fn incarnations(&self) -> Result<Vec<String>> {
        Ok(self.vault.store().list_level(&self.prefix).await?.folders)
    }

    /// Begins a snapshot. What was stored before (by the newest finished snapshot of that incarnation, and by attempts that were
    /// broken off since) is not stored again. `holder` is for people.
    ///
    /// # Errors
    /// The store's.
    pub async fn begin(&self, incarnation: &str, holder: &str) -> Result<Arc<SnapshotWriter>> {
        SnapshotWriter::begin(self, incarnation, holder).await
    }

    /// Every finished snapshot, ordered by (incarnation, time at which it is consistent).
    ///
    /// # Errors
    /// `Damaged` when a manifest is, the store's.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotRecord>> {
        let (records, damaged) = self.snapshots_and_damaged().await?;
        match damaged.into_iter().next() {
            None => Ok(records),
            Some((_, error)) => Err(error),
        }
    }

    /// As [`Self::snapshots`], with the damaged ones told beside and not instead: (id, what is wrong).
    ///
    /// # Errors
    /// The store's.
    pub async fn snapshots_and_damaged(&self) -> Result<(Vec<SnapshotRecord>, Vec<(String, Error)>)> {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        let beside = BesideSnapshots::read(self).await?;
        for incarnation in self.incarnations().await? {
            for folder in self.folders(&incarnation).await?.0.iter().filter(|f| f.has_manifest) {
                match self.manifest(&incarnation, &folder.id).await {
                    Ok(manifest) => records.push(beside.record(&manifest)),
                    // Pruned since it was listed.
                    Err(error) if error.is_missing() => {}
                    Err(error @ Error::Damaged { .. }) => damaged.push((folder.id.clone(), error)),
                    Err(error) => return Err(error),
                }
            }
        }
        records.sort_by(|a, b| order(a).cmp(&order(b)));
        Ok((records, damaged))
    }

    /// Opens a snapshot for reading. Needs the identity only when content is read.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`.
    pub async fn open_snapshot(&self, id: &str) -> Result<Arc<SnapshotReader>> {
        let manifest = self.find(id).await?;
        let record = self.record_of(&manifest).await?;
        SnapshotReader::open(self, record, &manifest).await
    }

    /// The manifest of a snapshot of any incarnation, read anew.
    pub(crate) async fn find(&self, id: &str) -> Result<Arc<Manifest>> {
        for incarnation in self.incarnations().await? {
            match self.manifest_again(&incarnation, id).await {
                Err(error) if error.is_missing() => {}
                found => return found,
            }
        }
        Err(Error::NotFound(format!("snapshot {id}")))
    }

    /// Pins a snapshot, or takes the pin away.
    ///
    /// # Errors
    /// `NotFound`, the store's.
    pub async fn set_pinned(&self, id: &str, pinned: bool) -> Result<()> {
        self.find(id).await?;
        let key = format!("pins/{id}");
        if !pinned {
            return Ok(self.vault.store().delete(&key).await?);
        }
        match self.vault.create_small(&key, "pin", &Pin { at: Instant::now() }).await {
            Err(Error::Store(error)) if error.kind == Kind::Exists => Ok(()),
            other => other,
        }
    }

    /// Records that every object of a snapshot was re-read and found right.
    ///
    /// # Errors
    /// The store's.
    pub async fn record_intact(&self, id: &str, at: Instant) -> Result<()> {
        self.record_found(id, "intact", Found { at, proof: None }).await
    }

    /// Records that a snapshot was restored, started and checked.
    ///
    /// # Errors
    /// The store's.
    pub async fn record_proven(&self, id: &str, at: Instant, proof: &str) -> Result<()> {
        self.record_found(id, "proven", Found { at, proof: Some(proof.to_owned()) }).await
    }

    /// The name tells when, so that listing is enough; only the newest is kept. Nothing is recorded of a snapshot that is gone: that would seem to
    /// have lost its manifest.
    async fn record_found(&self, id: &str, what: &str, found: Found) -> Result<()> {
        if let Err(Error::NotFound(_)) = self.find(id).await {
            return Ok(());
        }
        let folder = format!("states/{id}");
        let key = format!("{folder}/{what}-{:016x}", found.at.0.max(0));
        match self.vault.create_small(&key, what, &found).await {
            Err(Error::Store(error)) if error.kind == Kind::Exists => return Ok(()),
            other => other?,
        }
        let older =
            |object: &&Object| object.key.starts_with(&format!("{folder}/{what}-")) && object.key < key;
        for object in self.vault.store().list_level(&folder).await?.objects.iter().filter(older) {
            self.vault.store().delete(&object.key).await?;
        }
        Ok(())
    }

    /// What pruning each snapshot alone would free, in bytes, by id.
    ///
    /// # Errors
    /// `Damaged`, the store's.
    pub async fn bytes_unique(&self) -> Result<BTreeMap<String, u64>> {
        crate::prune::bytes_unique(self).await
    }

    /// The lanes of an incarnation that have log.
    ///
    /// # Errors
    /// The store's.
    pub async fn lanes(&self, incarnation: &str) -> Result<Vec<Lane>> {
        let folders =
            self.vault.store().list_level(&format!("{}/{incarnation}/log", self.prefix)).await?.folders;
        Ok(folders.into_iter().map(Lane).collect())
    }

    /// The right to write a lane's log. Its generation is larger than any that has log.
    ///
    /// # Errors
    /// As [`Vault::lease`].
    pub async fn lane_lease(
        &self,
        incarnation: &str,
        lane: &Lane,
        holder: &str,
        ttl: Duration,
    ) -> Result<Lease> {
        let prefix = format!("{}/{incarnation}/log/{lane}", self.prefix);
        let generations = self.vault.store().list_level(&prefix).await?.folders;
        let floor = generations.iter().filter_map(|g| u64::from_str_radix(g, 16).ok()).max().unwrap_or(0);
        // One part of the name for each of these, so that no two lanes share a lease.
        let name = format!("log.{}", blake3::hash(prefix.as_bytes()).to_hex().get(..32).unwrap_or_default());
        let holder = format!("{holder} (log of {}, lane {lane})", self.prefix.trim_start_matches("c/"));
        Lease::take(self.vault.clone(), &name, &holder, ttl, floor).await
    }

    /// Begins to write a lane's log in a generation that was leased.
    ///
    /// # Errors
    /// `LeaseLost` when a later generation has log already.
    pub async fn log_writer(&self, incarnation: &str, lane: &Lane, generation: u64) -> Result<LogWriter> {
        LogWriter::begin(self, incarnation, lane, generation).await
    }

    /// Every object of a lane's log, ordered by (generation, sequence), from their names alone. See [`crate::surviving`].
    ///
    /// # Errors
    /// The store's. Names that are not a log's are left out; verify names them.
    pub async fn log_objects(&self, incarnation: &str, lane: &Lane) -> Result<Vec<LogObject>> {
        let prefix = format!("{}/{incarnation}/log/{lane}", self.prefix);
        let listed = self.vault.store().list(&prefix).await?;
        let parse = |o: &Object| parse_object(&o.key, &o.key[prefix.len() + 1..], incarnation, lane, o.bytes);
        let mut objects: Vec<_> = listed.iter().filter_map(parse).collect();
        objects.sort_by_key(|object| (object.generation, object.sequence));
        Ok(objects)
    }

    /// Reads an object of the log, checked; what lies behind its `cut_at` is cut off.
    ///
    /// # Errors
    /// `Damaged`, `NoIdentity`, the store's.
    pub async fn read_log(&self, object: &LogObject) -> Result<LogContent> {
        let found = self.find_log(object).await?;
        found.ok_or_else(|| Error::damaged(&object.key, "it is missing"))
    }

    /// As [`Self::read_log`]; `None` where the object is not there any more, since a tail goes when a sealed object covers it.
    ///
    /// # Errors
    /// `Damaged`, `NoIdentity`, the store's.
    pub async fn find_log(&self, object: &LogObject) -> Result<Option<LogContent>> {
        let body = match self.vault.store().get(&object.key).await {
            Ok(body) => body,
            Err(error) if error.kind == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (keys, object) = (Arc::clone(self.vault.keys()), object.clone());
        let decode = move || {
            log::check(&keys, &object, &body)?;
            log::decode(&keys, &object, &body)
        };
        mainstay_store::spawn_blocking(decode).await.map(Some)
    }

    /// As [`Self::find_log`], and blocks.
    ///
    /// # Errors
    /// As [`Self::find_log`].
    pub fn find_log_blocking(&self, object: &LogObject) -> Result<Option<LogContent>> {
        let (this, object) = (self.clone(), object.clone());
        mainstay_store::wait(async move { this.find_log(&object).await })
    }

    /// As [`Self::log_objects`], and blocks.
    ///
    /// # Errors
    /// As [`Self::log_objects`].
    pub fn log_objects_blocking(&self, incarnation: &str, lane: &Lane) -> Result<Vec<LogObject>> {
        let (this, incarnation, lane) = (self.clone(), incarnation.to_owned(), lane.clone());
        mainstay_store::wait(async move { this.log_objects(&incarnation, &lane).await })
    }

    /// What a prune would do now. Touches nothing. What an earlier prune marked more than `grace` ago is to be deleted.
    ///
    /// # Errors
    /// `Damaged` (nothing is pruned that cannot be read), the store's.
    pub async fn plan_prune(&self, keep: &Keep, grace: Duration, now: Instant) -> Result<PrunePlan> {
        crate::prune::plan(self, keep, grace, now).await
    }

    /// Does what a plan says, having looked again: what has come into use since stays.
    ///
    /// # Errors
    /// As [`Self::plan_prune`].
    pub async fn apply_prune(&self, plan: &PrunePlan) -> Result<Pruned> {
        crate::prune::apply(self, plan).await
    }

    /// Verifies this cluster's backups, or one snapshot of them.
    ///
    /// # Errors
    /// As [`Vault::verify`].
    pub async fn verify(&self, options: &VerifyOptions) -> Result<Verified> {
        crate::verify::cluster(self, options).await
    }

    /// The folders of snapshots and attempts of an incarnation, and keys in them that are not ours to have written.
    pub(crate) async fn folders(&self, incarnation: &str) -> Result<(Vec<SnapFolder>, Vec<Object>)> {
        let prefix = format!("{}/{incarnation}/snap", self.prefix);
        let mut folders: BTreeMap<String, SnapFolder> = BTreeMap::new();
        let mut strange = Vec::new();
        for object in self.vault.store().list(&prefix).await? {
            let below = &object.key[prefix.len() + 1..];
            let Some((id, name)) = below.split_once('/') else {
                strange.push(object);
                continue;
            };
            let Some(what) = Beside::of(name) else {
                strange.push(object);
                continue;
            };
            let folder = folders
                .entry(id.to_owned())
                .or_insert_with(|| SnapFolder { id: id.into(), ..Default::default() });
            match what {
                Beside::Manifest => folder.has_manifest = true,
                Beside::Started => folder.has_started = true,
                Beside::Index => folder.index.push(Part { name: name.to_owned(), bytes: object.bytes }),
                Beside::Packs => {}
            }
            folder.objects.push(object);
        }
        Ok((folders.into_values().collect(), strange))
    }

    /// A manifest, from memory if it was read before.
    pub(crate) async fn manifest(&self, incarnation: &str, id: &str) -> Result<Arc<Manifest>> {
        let key = format!("{}/{incarnation}/snap/{id}/manifest", self.prefix);
        let known = self.vault.manifests.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        match known {
            Some(manifest) => Ok(manifest),
            None => self.manifest_again(incarnation, id).await,
        }
    }

    pub(crate) async fn manifest_again(&self, incarnation: &str, id: &str) -> Result<Arc<Manifest>> {
        let key = format!("{}/{incarnation}/snap/{id}/manifest", self.prefix);
        let manifest: Manifest = self.vault.get_small(&key, "manifest").await?;
        if manifest.id != id || manifest.incarnation != incarnation {
            return Err(Error::damaged(key, "it speaks of another snapshot"));
        }
        let manifest = Arc::new(manifest);
        let mut known = self.vault.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MANIFESTS_CACHED_MAX {
            known.clear();
        }
        known.insert(key, Arc::clone(&manifest));
        Ok(manifest)
    }

    pub(crate) async fn record_of(&self, manifest: &Arc<Manifest>) -> Result<SnapshotRecord> {
        Ok(BesideSnapshots::read(self).await?.record(manifest))
    }

    /// All tombs, by key.
    pub(crate) async fn tombs(&self) -> Result<Vec<(String, Tomb)>> {
        let prefix = self.tombs_prefix();
        let tombs = self.vault.all_small(&prefix, "tomb").await?;
        Ok(tombs.into_iter().map(|(id, tomb)| (format!("{prefix}/{id}"), tomb)).collect())
    }

    pub(crate) fn tombs_prefix(&self) -> String {
        format!("tombs/{}", self.prefix.trim_start_matches("c/"))
    }

    pub(crate) async fn put_tomb(&self, tomb: &Tomb) -> Result<()> {
        let key = format!("{}/{:016x}", self.tombs_prefix(), rand::random::<u64>());
        let bytes = seal(self.vault.keys(), &key, "tomb", true, tomb)?;
        Ok(self.vault.store().put(&key, bytes).await?)
    }

    /// Snapshots and attempts that a prune has marked. What a damaged tomb says is left out: while that is there, nothing is pruned.
    pub(crate) async fn marked_snapshots(&self) -> Result<HashSet<String>> {
        let mut marked = HashSet::new();
        for object in self.vault.store().list_level(&self.tombs_prefix()).await?.objects {
            match self.vault.get_small::<Tomb>(&object.key, "tomb").await {
                Ok(tomb) => marked.extend(tomb.snapshots),
                // Deleted since it was listed.
                Err(error) if error.is_missing() => {}
                Err(error @ Error::Damaged { .. }) => {
                    tracing::warn!(%error, "cannot read what a prune has marked");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(marked)
    }
}

fn order(record: &SnapshotRecord) -> (&str, Instant, Instant, &str) {
    (&record.incarnation, record.taken.at.latest, record.committed_at, &record.id)
}

/// What lies beside manifests and changes: pins, states, tombs.
pub(crate) struct BesideSnapshots {
    pub pinned: HashSet<String>,
    states: HashMap<(String, String), Instant>,
    marked: HashSet<String>,
}

impl BesideSnapshots {
    pub async fn read(cluster: &ClusterVault) -> Result<Self> {
        let store = cluster.vault.store();
        let name = |object: &Object| object.key.rsplit('/').next().unwrap_or_default().to_owned();
        let pinned = store.list_level("pins").await?.objects.iter().map(name).collect();
        let mut states = HashMap::new();
        for object in store.list("states").await? {
            let mut parts = object.key.split('/').skip(1);
            let (Some(id), Some((what, at))) =
                (parts.next(), parts.next().and_then(|name| name.split_once('-')))
            else {
                continue;
            };
            let Ok(at) = i64::from_str_radix(at, 16) else { continue };
            let newest = states.entry((id.to_owned(), what.to_owned())).or_insert(Instant(at));
            *newest = (*newest).max(Instant(at));
        }
        Ok(Self { pinned, states, marked: cluster.marked_snapshots().await? })
    }

    pub fn record(&self, manifest: &Manifest) -> SnapshotRecord {
        let state = |what: &str| self.states.get(&(manifest.id.clone(), what.to_owned())).copied();
        let (intact_at, proven_at, damaged_at) = (state("intact"), state("proven"), state("damaged"));
        let m = manifest.clone();
        SnapshotRecord {
            pinned: self.pinned.contains(&m.id),
            leaving: self.marked.contains(&m.id),
            state: match (damaged_at, proven_at, intact_at) {
                // Whatever was known before; it is taken back when all of it is found right again.
                (Some(_), _, _) => SnapshotState::Damaged,
                (None, Some(_), _) => SnapshotState::Proven,
                (None, None, Some(_)) => SnapshotState::Intact,
                (None, None, None) => SnapshotState::Stored,
            },
            intact_at,
            proven_at,
            id: m.id,
            incarnation: m.incarnation,
            taken: m.taken,
            begun_at: m.begun_at,
            committed_at: m.committed_at,
            files: m.files,
            bytes_total: m.bytes_total,
            bytes_read: m.bytes_read,
            bytes_new: m.bytes_new,
            bytes_stored: m.bytes_stored,
            seconds: m.seconds,
        }
    }
}
