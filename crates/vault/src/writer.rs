//! Writing a snapshot.
//!
//! Begun with a lease and a word of what it takes over from, so that no prune deletes that; files come from several threads; the manifest is
//! written last, after looking whether every pack it needs is there.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_engine::{self as engine, FileKind, FileSpec, SnapshotSink, Stored, Taken};
use mainstay_model::Instant;

use crate::content::Content;
use crate::index::{Index, Line, PackInfo, Part, path_is_ok, seal_part, write_line};
use crate::manifest::{Manifest, Started, attempt_lease, new_id};
use crate::pipeline::Pipeline;
use crate::sources::Sources;
use crate::{ClusterVault, Error, Lease, Packs, Result, SnapshotRecord};

/// A snapshot that is being written: where the adapter's files go. Dropped without [`Self::commit`], it leaves what the next attempt takes
/// up, or the second prune removes.
pub struct SnapshotWriter {
    cluster: ClusterVault,
    incarnation: String,
    id: String,
    folder: String,
    begun_at: Instant,
    begun: std::time::Instant,
    sources: Vec<String>,
    content: Content,
    lease: Mutex<Option<Lease>>,
    /// Short keyed hashes of the paths that were given.
    seen: Mutex<HashSet<[u8; 16]>>,
    files: AtomicU64,
    bytes_total: AtomicU64,
    bytes_read: AtomicU64,
    bytes_new: AtomicU64,
    /// That the source's content could not be read, or the vault not written: then it must not be committed.
    failed: AtomicBool,
}

/// How long an attempt's lease lasts without a beat.
pub(crate) const ATTEMPT_TTL: Duration = Duration::from_secs(30);
/// Attempts that were broken off and are taken up, the newest first.
const ATTEMPTS_TAKEN_UP_MAX: usize = 3;
/// How often a snapshot is begun again because a prune marked what it wanted to take over.
const BEGINNINGS_MAX: usize = 5;

impl SnapshotWriter {
    pub(crate) async fn begin(cluster: &ClusterVault, incarnation: &str, holder: &str) -> Result<Arc<Self>> {
        let (begun_at, begun) = (Instant::now(), std::time::Instant::now());
        let vault = cluster.vault();
        let (id, attempt) = new_id(begun_at);
        let prefix = format!("{}/{incarnation}", cluster.prefix());
        let folder = format!("{prefix}/snap/{id}");
        let lease = vault.lease(&attempt_lease(&id), holder, ATTEMPT_TTL).await?;
        let started_key = format!("{folder}/started");
        let known = cluster.damage_known().await?;
        let mut chosen = choose(cluster, incarnation, &known.snapshots).await?;
        for _ in 0..BEGINNINGS_MAX {
            let sources: Vec<_> = chosen.iter().map(|(id, _)| id.clone()).collect();
            let started = Started { id: id.clone(), holder: holder.to_owned(), begun_at, sources };
            let bytes = crate::sealed::seal(vault.keys(), &started_key, "started", true, &started)?;
            vault.store().put(&started_key, bytes).await?;
            // From here on no prune deletes these; if one marked them before, they are not to be used.
            let marked = cluster.marked_snapshots().await?;
            if !chosen.iter().any(|(id, _)| marked.contains(id)) {
                break;
            }
            chosen.retain(|(id, _)| !marked.contains(id));
        }
        let mut sources = Vec::new();
        let mut indexes = Vec::new();
        for (source, parts) in chosen {
            match Index::load(vault, &format!("{prefix}/snap/{source}"), parts).await {
                Ok(index) => {
                    indexes.push(Arc::new(index));
                    sources.push(source);
                }
                // What cannot be read cannot be taken over; it is stored again.
                Err(error @ Error::Damaged { .. }) => {
                    tracing::warn!(snapshot = source, %error, "cannot take anything over from a damaged index");
                }
                Err(error) => return Err(error),
            }
        }
        // Listed after the indexes were read: the packs that they speak of were there before.
        let stored = match indexes.is_empty() {
            true => Packs::default(),
            false => cluster.packs_stored(incarnation).await?,
        };
        let is_whole = |pack: &PackInfo| {
            let key = crate::index::pack_key(&prefix, &pack.id);
            stored.get(&key) == Some(&pack.bytes) && !known.objects.contains(&key)
        };
        let sources_of_pieces = Sources::new(indexes, is_whole);
        let pipeline = Pipeline::start(vault, &prefix, &folder, &attempt)?;
        Ok(Arc::new(Self {
            cluster: cluster.clone(),
            incarnation: incarnation.to_owned(),
            id,
            folder,
            begun_at,
            begun,
            sources,
            content: Content::new(Arc::clone(vault.keys()), pipeline, sources_of_pieces),
            lease: Mutex::new(Some(lease)),
            seen: Mutex::default(),
            files: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_new: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }))
    }

    /// The id that the snapshot will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Makes it a snapshot: waits for all that is on its way, checks that everything is there, and writes the manifest last.
    ///
    /// # Errors
    /// What an upload gave, `LeaseLost`, `Invalid` when the source says another incarnation, when a file could not be stored, or when it was
    /// committed already.
    pub async fn commit(self: Arc<Self>, taken: Taken) -> Result<SnapshotRecord> {
        if taken.incarnation.as_ref().is_some_and(|named| *named != self.incarnation) {
            return Err(Error::Invalid(format!(
                "the source is {}, and not {}, of which this snapshot was begun",
                taken.incarnation.as_deref().unwrap_or_default(),
                self.incarnation
            )));
        }
        if self.failed.load(Ordering::SeqCst) {
            return Err(Error::Invalid("a file of the snapshot could not be stored".into()));
        }
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lease = lease.ok_or_else(|| Error::Invalid("the snapshot was finished already".into()))?;
        let this = Arc::clone(&self);
        let written = mainstay_store::spawn_blocking(move || {
            this.content.flush()?;
            this.content.pipeline.finish()
        })
        .await?;
        let vault = self.cluster.vault();
        let (packs, packs_bytes) = self.put_packs(&written.packs).await?;
        self.look_for_packs(&written.packs).await?;
        lease.beat().await?;
        let manifest = Manifest {
            id: self.id.clone(),
            incarnation: self.incarnation.clone(),
            taken,
            begun_at: self.begun_at,
            committed_at: Instant::now(),
            files: self.files.load(Ordering::SeqCst),
            bytes_total: self.bytes_total.load(Ordering::SeqCst),
            bytes_read: self.bytes_read.load(Ordering::SeqCst),
            bytes_new: self.bytes_new.load(Ordering::SeqCst),
            bytes_stored: written.bytes_stored + packs_bytes,
            seconds: self.begun.elapsed().as_secs_f64(),
            sources: self.sources.clone(),
            index: written.parts,
            packs,
        };
        vault.create_small(&format!("{}/manifest", self.folder), "manifest", &manifest).await?;
        // The snapshot is one; what follows is tidiness, and a prune does it as well.
        if let Err(error) = self.tidy(lease).await {
            tracing::warn!(snapshot = self.id, %error, "could not tidy up after a snapshot");
        }
        self.cluster.record_of(&Arc::new(manifest)).await
    }

    async fn tidy(&self, lease: Lease) -> Result<()> {
        self.cluster.vault().store().delete(&format!("{}/started", self.folder)).await?;
        let name = lease.name().to_owned();
        lease.release().await?;
        crate::lease::forget(self.cluster.vault(), &name).await
    }

    /// Writes the list of all packs that the snapshot needs.
    async fn put_packs(&self, packs: &[PackInfo]) -> Result<(Part, u64)> {
        let lines: Vec<u8> = packs.iter().flat_map(|pack| write_line(&Line::Pack(pack.clone()))).collect();
        let (part, cipher) = seal_part(self.cluster.vault().keys(), &self.folder, "packs", &lines)?;
        let bytes = part.bytes;
        self.cluster.vault().store().put(&format!("{}/{}", self.folder, part.name), cipher).await?;
        Ok((part, bytes))
    }

    /// Whether each pack is there with the size that it must have: a store that forgets, or a prune that went wrong, is seen before the snapshot
    /// is believed.
    async fn look_for_packs(&self, packs: &[PackInfo]) -> Result<()> {
        let prefix = format!("{}/{}", self.cluster.prefix(), self.incarnation);
        let listed = self.cluster.vault().store().list(&format!("{prefix}/packs")).await?;
        let there: HashMap<_, _> = listed.iter().map(|object| (object.key.as_str(), object.bytes)).collect();
        for pack in packs {
            let key = crate::index::pack_key(&prefix, &pack.id);
            match there.get(key.as_str()) {
                Some(bytes) if *bytes == pack.bytes => {}
                Some(_) => return Err(Error::damaged(key, "it has not the size that was written")),
                None => return Err(Error::damaged(key, "it is missing, though it was written")),
            }
        }
        Ok(())
    }

    /// Gives up: stops the uploads and says that nobody is at work on it.
    pub async fn abort(self: Arc<Self>) {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        mainstay_store::spawn_blocking(move || self.content.pipeline.stop()).await;
        if let Some(lease) = lease {
            // Whether or not that is heard: without beats it ends by itself.
            let _ = lease.release().await;
        }
    }

    fn store(&self, file: &FileSpec, content: &mut dyn Read) -> engine::Result<Stored> {
        if !path_is_ok(&file.path) {
            return Err(Error::Invalid(format!(
                "`{}` is not a path within a snapshot",
                file.path.escape_debug()
            ))
            .into());
        }
        let known = self.cluster.vault().keys().piece_hash(file.path.as_bytes());
        if !self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(known) {
            return Err(Error::Invalid(format!("{} was given twice", file.path)).into());
        }
        let (stored, size) = match file.kind {
            FileKind::Regular => self.content.store(file, content)?,
            FileKind::Directory | FileKind::Symlink { .. } => {
                self.content.store_empty(file)?;
                (Stored::default(), 0)
            }
        };
        self.files.fetch_add(1, Ordering::SeqCst);
        self.bytes_total.fetch_add(size, Ordering::SeqCst);
        self.bytes_read.fetch_add(stored.bytes_read, Ordering::SeqCst);
        self.bytes_new.fetch_add(stored.bytes_new, Ordering::SeqCst);
        Ok(stored)
    }
}

impl SnapshotSink for SnapshotWriter {
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> engine::Result<Stored> {
        self.store(file, content).inspect_err(|_| self.failed.store(true, Ordering::SeqCst))
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take() {
            lease.release_later();
        }
    }
}

impl fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotWriter").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// What a new snapshot is compared with, best first: broken-off attempts newer than the newest snapshot, and that. With the parts of their
/// indexes. Nothing that is damaged, or going.
async fn choose(
    cluster: &ClusterVault,
    incarnation: &str,
    damaged: &HashSet<String>,
) -> Result<Vec<(String, Vec<Part>)>> {
    let mut marked = cluster.marked_snapshots().await?;
    marked.extend(damaged.iter().cloned());
    let (folders, _) = cluster.folders(incarnation).await?;
    let mut newest: Option<Arc<Manifest>> = None;
    for folder in folders.iter().filter(|f| f.has_manifest && !marked.contains(&f.id)) {
        match cluster.manifest(incarnation, &folder.id).await {
            Ok(manifest) if newest.as_ref().is_none_or(|n| n.committed_at < manifest.committed_at) => {
                newest = Some(manifest);
            }
            Ok(_) => {}
            Err(error) if error.is_missing() => {}
            Err(error @ Error::Damaged { .. }) => {
                tracing::warn!(snapshot = folder.id, %error, "cannot take anything over from a damaged snapshot");
            }
            Err(error) => return Err(error),
        }
    }
    let attempts =
        folders.into_iter().filter(|f| !f.has_manifest && !f.index.is_empty() && !marked.contains(&f.id));
    // Ids begin with the time; which attempt is the newest matters to nothing but the saving.
    let mut attempts: Vec<_> = attempts.map(|f| (f.id, f.index)).collect();
    attempts.sort_by(|a, b| b.0.cmp(&a.0));
    attempts.truncate(ATTEMPTS_TAKEN_UP_MAX);
    attempts.extend(newest.map(|manifest| (manifest.id.clone(), manifest.index.clone())));
    Ok(attempts)
}
