//! Whether what is in the vault is what was written.

mod absent;
mod word;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt;
use mainstay_store::{Kind, Object};
use serde::{Deserialize, Serialize};

use crate::cluster::SnapFolder;
use crate::format::{FORMAT_KEY, Format};
use crate::index::{Line, PackInfo, open_part, pack_key};
use crate::keys::Keys;
use crate::log;
use crate::manifest::{Beside, Manifest};
use crate::tree::{What, what};
use crate::{ClusterVault, Error, LogObject, Result, SnapshotReader, Vault, place, sealed};

/// What to verify, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifyOptions {
    /// One snapshot only; `None`: everything.
    pub snapshot: Option<String>,
    /// The part of packs and log objects to read, from 0 to 1, chosen at random. Indexes and small objects are always read.
    pub sample: f64,
    /// Also decrypt, decompress and compare every page's hash, where this home has the identity.
    pub contents: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { snapshot: None, sample: 1.0, contents: true }
    }
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// What is wrong; empty when all is well.
    pub damaged: Vec<Damage>,
    /// Snapshots that were looked at.
    pub snapshots: u64,
    /// Objects that were read.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Objects that belong to nothing; the next prunes remove them.
    pub leftovers: u64,
}

/// An object that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Damage {
    /// Its key.
    pub object: String,
    /// What is wrong.
    pub reason: String,
    /// The snapshots that need it.
    pub snapshots: Vec<String>,
}

/// Objects that are read at once.
const READS: usize = 4;
const CONTENT_JOBS: usize = 2;

pub(crate) async fn vault(vault: &Vault, options: &VerifyOptions) -> Result<Verified> {
    let mut verifier = Verifier::new(vault, options);
    if let Some(id) = &options.snapshot {
        for (fleet, environment, name) in vault.clusters().await? {
            let cluster = vault.cluster(&fleet, &environment, &name);
            match cluster.find(id).await {
                Err(Error::NotFound(_)) => {}
                _ => return self::cluster(&cluster, options).await,
            }
        }
        return Err(Error::NotFound(format!("snapshot {id}")));
    }
    verifier.format().await?;
    verifier.small(vault.store().list("").await?).await?;
    for (fleet, environment, name) in vault.clusters().await? {
        verifier.cluster(&vault.cluster(&fleet, &environment, &name)).await?;
    }
    verifier.absent(absent::beside(vault).await?);
    Ok(verifier.done())
}

pub(crate) async fn cluster(cluster: &ClusterVault, options: &VerifyOptions) -> Result<Verified> {
    let mut verifier = Verifier::new(cluster.vault(), options);
    // A damaged one is told below.
    if let Some(id) = &options.snapshot
        && let Err(error @ Error::NotFound(_)) = cluster.find(id).await
    {
        return Err(error);
    }
    verifier.beside(cluster).await?;
    verifier.cluster(cluster).await?;
    Ok(verifier.done())
}

struct Verifier<'a> {
    vault: &'a Vault,
    options: &'a VerifyOptions,
    found: Verified,
    /// By object: what is wrong, and who needs it.
    damage: BTreeMap<String, (String, BTreeSet<String>)>,
    checked: Arc<Mutex<HashSet<u64>>>,
}

/// A pack, and who needs it.
#[derive(Default)]
struct Needed {
    info: Option<PackInfo>,
    snapshots: BTreeSet<String>,
}

impl<'a> Verifier<'a> {
    fn new(vault: &'a Vault, options: &'a VerifyOptions) -> Self {
        let (found, damage, checked) = Default::default();
        Self { vault, options, found, damage, checked }
    }

    fn done(mut self) -> Verified {
        let damage = |(object, (reason, snapshots)): (String, (String, BTreeSet<String>))| Damage {
            object,
            reason,
            snapshots: snapshots.into_iter().collect(),
        };
        self.found.damaged = self.damage.into_iter().map(damage).collect();
        self.found
    }

    fn damaged<'s>(&mut self, object: &str, reason: &str, snapshots: impl IntoIterator<Item = &'s String>) {
        let entry =
            self.damage.entry(object.to_owned()).or_insert_with(|| (reason.to_owned(), BTreeSet::new()));
        entry.1.extend(snapshots.into_iter().cloned());
    }

    /// Takes an error as damage, if it is one.
    fn take(&mut self, error: Error, snapshots: &[String]) -> Result<()> {
        match error {
            Error::Damaged { object, reason } => self.damaged(&object, &reason, snapshots),
            other => return Err(other),
        }
        Ok(())
    }

    fn sampled(&self) -> bool {
        self.options.sample >= 1.0 || rand::random::<f64>() < self.options.sample
    }

    fn absent(&mut self, absent: Vec<absent::Absent>) {
        for absent::Absent { object, reason, snapshots } in absent {
            self.damaged(&object, &reason, &snapshots);
        }
    }

    /// An object's bytes; `None`, and damage, if it is not there.
    async fn read(&mut self, key: &str, snapshots: &[String]) -> Result<Option<Bytes>> {
        match self.vault.store().get(key).await {
            Ok(bytes) => {
                self.found.objects += 1;
                self.found.bytes += bytes.len() as u64;
                Ok(Some(bytes))
            }
            Err(error) if error.kind == Kind::NotFound => {
                self.damaged(key, "it is missing", snapshots);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// All that lies outside of clusters, and keys that nobody of us wrote.
    async fn small(&mut self, objects: Vec<Object>) -> Result<()> {
        for object in objects {
            let key = &object.key;
            match what(&object) {
                What::Strange if key.starts_with("probe-") => self.found.leftovers += 1,
                What::Strange => self.damaged(key, "no object of a vault has such a name", []),
                What::Small => {
                    // Beats come and go while we look.
                    match self.vault.store().get(key).await {
                        Ok(bytes) => {
                            self.found.objects += 1;
                            self.found.bytes += bytes.len() as u64;
                            if let Err(error) = sealed::verify(self.vault.keys(), key, &bytes) {
                                self.take(error, &[])?;
                            }
                        }
                        Err(error) if error.kind == Kind::NotFound => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                What::Keys if *key != crate::format::keys_name(self.vault.id()) => self.found.leftovers += 1,
                // The format is looked for whether it is listed or not, and names the keys; all else belongs to clusters.
                What::Format | What::Keys | What::Snap { .. } | What::Pack { .. } | What::Log(_) => {}
            }
        }
        Ok(())
    }

    /// What lies outside of the cluster and is about it: states of its snapshots, and tombs.
    async fn beside(&mut self, cluster: &ClusterVault) -> Result<()> {
        let mut ids: HashSet<String> = self.options.snapshot.iter().cloned().collect();
        let mut objects = Vec::new();
        if ids.is_empty() {
            for incarnation in cluster.incarnations().await? {
                ids.extend(cluster.folders(&incarnation).await?.0.into_iter().map(|folder| folder.id));
            }
            objects = self.vault.store().list(&cluster.tombs_prefix()).await?;
        }
        let states = self.vault.store().list("states").await?.into_iter();
        objects.extend(states.filter(|o| o.key.split('/').nth(1).is_some_and(|id| ids.contains(id))));
        self.small(objects).await
    }

    async fn format(&mut self) -> Result<()> {
        let Some(bytes) = self.read(FORMAT_KEY, &[]).await? else { return Ok(()) };
        let format = match Format::parse(&bytes) {
            Ok(format) => format,
            Err(error) => return self.take(error, &[]),
        };
        if !format.is_of(self.vault.keys()) {
            self.damaged(FORMAT_KEY, "its authentication is wrong", []);
        }
        let name = &format.keys.name;
        if let Some(wrapped) = self.read(name, &[]).await?
            && blake3::hash(&wrapped).to_hex().as_str() != format.keys.hash
        {
            self.damaged(name, "its hash is not what format.json says", []);
        }
        Ok(())
    }

    async fn cluster(&mut self, cluster: &ClusterVault) -> Result<()> {
        for incarnation in cluster.incarnations().await? {
            let prefix = format!("{}/{incarnation}", cluster.prefix());
            let mut packs: BTreeMap<String, Needed> = BTreeMap::new();
            let mut readers = Vec::new();
            let (folders, _) = cluster.folders(&incarnation).await?;
            for folder in folders {
                let wanted = self.options.snapshot.as_ref().is_none_or(|id| *id == folder.id);
                if wanted && folder.has_manifest {
                    if let Some(manifest) = self.snapshot(cluster, &incarnation, &folder, &mut packs).await? {
                        readers.push(manifest);
                    }
                } else if wanted {
                    self.attempt(&prefix, &folder, &mut packs).await?;
                }
            }
            let needed: BTreeSet<String> = packs.keys().cloned().collect();
            self.packs(cluster, &prefix, packs).await?;
            if self.options.snapshot.is_none() {
                self.absent(absent::of_cluster(cluster, &incarnation, &needed).await?);
            }
            if self.options.contents && self.options.sample >= 1.0 && self.vault.can_restore() {
                for manifest in readers {
                    self.contents(cluster, &manifest).await?;
                }
            }
            if self.options.snapshot.is_none() {
                for lane in cluster.lanes(&incarnation).await? {
                    self.log(cluster.log_objects(&incarnation, &lane).await?).await?;
                }
            }
        }
        Ok(())
    }

    /// Everything of a snapshot but its packs, which are collected.
    async fn snapshot(
        &mut self,
        cluster: &ClusterVault,
        incarnation: &str,
        folder: &SnapFolder,
        packs: &mut BTreeMap<String, Needed>,
    ) -> Result<Option<Arc<Manifest>>> {
        self.found.snapshots += 1;
        let ids = [folder.id.clone()];
        let prefix = format!("{}/{incarnation}", cluster.prefix());
        let place = format!("{prefix}/snap/{}", folder.id);
        let manifest = match cluster.manifest_again(incarnation, &folder.id).await {
            Ok(manifest) => manifest,
            // Pruned since it was listed.
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => {
                self.take(error, &ids)?;
                return Ok(None);
            }
        };
        self.found.objects += 1;
        let mut named = HashSet::new();
        for part in manifest.index.iter().chain([&manifest.packs]) {
            named.insert(part.name.as_str());
            if let Some(lines) = self.part(&place, &part.name, &ids).await?
                && part.name == manifest.packs.name
            {
                collect(&prefix, &lines, Some(&folder.id), packs);
            }
        }
        for object in &folder.objects {
            let name = object.key.rsplit('/').next().unwrap_or_default();
            match Beside::of(name) {
                Some(Beside::Manifest) => {}
                Some(Beside::Started) => self.leftover(&object.key).await?,
                _ if named.contains(name) => {}
                _ => self.found.leftovers += 1,
            }
        }
        Ok(Some(manifest))
    }

    /// What an attempt has left: nobody needs it, and the next one takes it up.
    async fn attempt(
        &mut self,
        prefix: &str,
        folder: &SnapFolder,
        packs: &mut BTreeMap<String, Needed>,
    ) -> Result<()> {
        let place = format!("{prefix}/snap/{}", folder.id);
        for object in &folder.objects {
            let name = object.key.rsplit('/').next().unwrap_or_default();
            if Beside::of(name) == Some(Beside::Started) {
                self.leftover(&object.key).await?;
                continue;
            }
            self.found.leftovers += 1;
            match self.vault.store().get(&object.key).await {
                Ok(cipher) => match open_part(self.vault.keys(), &place, name, &cipher) {
                    Ok(lines) => collect(prefix, &lines, None, packs),
                    Err(error) => self.take(error, &[])?,
                },
                Err(error) if error.kind == Kind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A small object that may be gone by now.
    async fn leftover(&mut self, key: &str) -> Result<()> {
        self.found.leftovers += 1;
        match self.vault.store().get(key).await {
            Ok(bytes) => match sealed::verify(self.vault.keys(), key, &bytes) {
                Ok(()) => Ok(()),
                Err(error) => self.take(error, &[]),
            },
            Err(error) if error.kind == Kind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn part(&mut self, place: &str, name: &str, ids: &[String]) -> Result<Option<Vec<u8>>> {
        let Some(cipher) = self.read(&format!("{place}/{name}"), ids).await? else { return Ok(None) };
        match open_part(self.vault.keys(), place, name, &cipher) {
            Ok(lines) => Ok(Some(lines)),
            Err(error) => self.take(error, ids).map(|()| None),
        }
    }

    async fn packs(
        &mut self,
        cluster: &ClusterVault,
        prefix: &str,
        needed: BTreeMap<String, Needed>,
    ) -> Result<()> {
        let listed = cluster.vault().store().list(&format!("{prefix}/packs")).await?;
        let there: BTreeMap<_, _> = listed.into_iter().map(|object| (object.key, object.bytes)).collect();
        let mut read = Vec::new();
        for (key, Needed { info, snapshots }) in &needed {
            let size = info.as_ref().map(|info| info.bytes);
            match there.get(key) {
                // What an attempt says it has may have been pruned since.
                None if snapshots.is_empty() => {}
                None => self.damaged(key, "it is missing", snapshots),
                Some(bytes) if size.is_some_and(|size| size != *bytes) => {
                    self.damaged(key, "it has not the size that was written", snapshots);
                }
                Some(_) if self.sampled() => read.push((key.clone(), info.clone())),
                Some(_) => {}
            }
        }
        if self.options.snapshot.is_none() {
            for key in there.keys().filter(|key| !needed.contains_key(*key)) {
                self.found.leftovers += 1;
                // No index knows its hash; who has the identity can tell all the same.
                if self.options.contents && self.vault.can_restore() && self.sampled() {
                    read.push((key.clone(), None));
                }
            }
        }
        let reads = read.into_iter().map(|(key, info)| read_pack(self.vault.clone(), key, info));
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS);
        while let Some((key, outcome)) = reads.next().await {
            match outcome {
                Ok(bytes) => {
                    self.found.objects += 1;
                    self.found.bytes += bytes;
                }
                Err(error) => {
                    let snapshots: Vec<_> =
                        needed.get(&key).map(|n| n.snapshots.iter().cloned().collect()).unwrap_or_default();
                    if !(snapshots.is_empty() && error.is_missing()) {
                        self.take(error, &snapshots)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Compares every piece of a snapshot that no other one has shown already.
    async fn contents(&mut self, cluster: &ClusterVault, manifest: &Arc<Manifest>) -> Result<()> {
        let record = cluster.record_of(manifest).await?;
        let ids = [manifest.id.clone()];
        let reader = match SnapshotReader::open(cluster, record, manifest).await {
            Ok(reader) => reader,
            Err(error) => return self.take(error, &ids),
        };
        let checked = Arc::clone(&self.checked);
        let wrong =
            mainstay_store::spawn_blocking(move || place::check(&reader, &checked, CONTENT_JOBS)).await;
        for error in wrong {
            if error.kind != mainstay_engine::Kind::Damaged {
                return Err(Error::Invalid(error.what));
            }
            // `OBJECT` is damaged: REASON
            let text = error.what.strip_prefix('`').and_then(|rest| rest.split_once("` is damaged: "));
            let (object, reason) = text.unwrap_or((&error.what, "it is damaged"));
            self.damaged(object, reason, &ids);
        }
        Ok(())
    }

    async fn log(&mut self, objects: Vec<LogObject>) -> Result<()> {
        for generation in objects.chunk_by(|a, b| a.generation == b.generation) {
            for object in log::missing_before(generation) {
                let folder = object.key.rsplit_once('/').map_or("", |(folder, _)| folder);
                let name = format!("{folder}/…_{}", object.previous);
                self.damaged(&name, "it is missing: a later object of the log names it", []);
            }
        }
        let keys = Arc::clone(self.vault.keys());
        let contents = self.options.contents && self.vault.can_restore();
        let sampled: Vec<_> = objects.into_iter().filter(|_| self.sampled()).collect();
        let reads = sampled
            .into_iter()
            .map(|object| read_log(self.vault.clone(), Arc::clone(&keys), object, contents));
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS);
        while let Some(outcome) = reads.next().await {
            match outcome {
                Ok(bytes) => {
                    self.found.objects += 1;
                    self.found.bytes += bytes;
                }
                // Superseded since it was listed.
                Err(error) if error.is_missing() => {}
                Err(error) => self.take(error, &[])?,
            }
        }
        Ok(())
    }
}

async fn read_pack(vault: Vault, key: String, info: Option<PackInfo>) -> (String, Result<u64>) {
    let read = async {
        let cipher = vault.store().get(&key).await?;
        let (vault, key) = (vault.clone(), key.clone());
        mainstay_store::spawn_blocking(move || match info {
            Some(info) if blake3::hash(&cipher).to_hex().as_str() == info.hash => Ok(cipher.len() as u64),
            Some(_) => Err(Error::damaged(key, "its bytes are not those that were written")),
            None => vault.keys().decrypt_content(&key, &cipher).map(|_| cipher.len() as u64),
        })
        .await
    };
    let outcome = read.await;
    (key, outcome)
}

async fn read_log(vault: Vault, keys: Arc<Keys>, object: LogObject, contents: bool) -> Result<u64> {
    let body = vault.store().get(&object.key).await?;
    mainstay_store::spawn_blocking(move || {
        log::check(&keys, &object, &body)?;
        if contents {
            log::decode(&keys, &object, &body)?;
        }
        Ok(body.len() as u64)
    })
    .await
}

/// Takes the packs that an index names.
fn collect(prefix: &str, lines: &[u8], snapshot: Option<&String>, packs: &mut BTreeMap<String, Needed>) {
    for line in lines.split(|b| *b == b'\n') {
        if let Ok(Line::Pack(info)) = serde_json::from_slice(line) {
            let needed = packs.entry(pack_key(prefix, &info.id)).or_default();
            needed.info = Some(info);
            needed.snapshots.extend(snapshot.cloned());
        }
    }
}
