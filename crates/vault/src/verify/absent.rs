//! What is not there, though something that is there proves that it was.
//!
//! Nothing is ever deleted but by a prune, and that names it in a tomb first. So a snapshot's folder without a manifest and without `started`, packs
//! that neither a snapshot nor an attempt explains, a pin or a state of no snapshot, a state that tells of no proof, and log that a snapshot needs and
//! a later object names, are each the trace of something that was lost. What comes and goes while one looks is seen in one look and not in
//! the next: only what both find is told.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use mainstay_model::Place;

use crate::cluster::{Found, SnapFolder};
use crate::manifest::attempt_of;
use crate::{ClusterVault, Error, Result, Vault, log};

/// Something that was lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Absent {
    /// Its key, as far as it is known.
    pub object: String,
    pub reason: String,
    pub snapshots: Vec<String>,
}

/// What the marks of prunes explain.
#[derive(Default)]
struct Marked {
    snapshots: HashSet<String>,
    objects: HashSet<String>,
}

impl Marked {
    /// `None` when one of them cannot be read: then nothing can be called unexplained.
    async fn of(cluster: &ClusterVault) -> Result<Option<Self>> {
        let tombs = match cluster.tombs().await {
            Ok(tombs) => tombs,
            Err(Error::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut marked = Self::default();
        for (_, tomb) in tombs {
            marked.snapshots.extend(tomb.snapshots);
            marked.objects.extend(tomb.objects);
        }
        Ok(Some(marked))
    }
}

/// What an incarnation has lost. `needed`: the keys of the packs that its snapshots and attempts need.
pub(super) async fn of_cluster(
    cluster: &ClusterVault,
    incarnation: &str,
    needed: &BTreeSet<String>,
) -> Result<Vec<Absent>> {
    let first = look(cluster, incarnation, needed).await?;
    if first.is_empty() {
        return Ok(Vec::new());
    }
    let again = look(cluster, incarnation, needed).await?;
    Ok(first.into_iter().filter(|absent| again.contains(absent)).collect())
}

async fn look(
    cluster: &ClusterVault,
    incarnation: &str,
    needed: &BTreeSet<String>,
) -> Result<BTreeSet<Absent>> {
    // In this order: who writes a pack has a folder before, and who deletes either has a tomb until all of it is gone.
    let packs = cluster.packs_stored(incarnation).await?;
    let (folders, _) = cluster.folders(incarnation).await?;
    let Some(marked) = Marked::of(cluster).await? else { return Ok(BTreeSet::new()) };
    let prefix = format!("{}/{incarnation}", cluster.prefix());
    let mut absent = BTreeSet::new();
    for folder in folders.iter().filter(|f| !f.has_manifest && !f.has_started) {
        if !marked.snapshots.contains(&folder.id) {
            absent.insert(Absent {
                object: format!("{prefix}/snap/{}/manifest", folder.id),
                reason: "it is missing: the rest of a finished snapshot is there".to_owned(),
                snapshots: vec![folder.id.clone()],
            });
        }
    }
    let attempts: HashSet<&str> = folders.iter().map(|folder| attempt_of(&folder.id)).collect();
    let mut strays: BTreeMap<&str, u64> = BTreeMap::new();
    for key in packs.keys().filter(|key| !needed.contains(*key) && !marked.objects.contains(*key)) {
        let attempt = key.rsplit('/').next().and_then(|id| id.split_once('-')).map(|(attempt, _)| attempt);
        if let Some(attempt) = attempt.filter(|attempt| !attempts.contains(attempt)) {
            *strays.entry(attempt).or_default() += 1;
        }
    }
    for (attempt, packs) in strays {
        absent.insert(Absent {
            object: format!("{prefix}/snap/…-{attempt}/manifest"),
            reason: format!("it is missing: packs are there ({packs}) that nothing else explains"),
            snapshots: Vec::new(),
        });
    }
    lost_log(cluster, incarnation, &folders, &marked, &mut absent).await?;
    Ok(absent)
}

/// Log before the first object that lasts of a generation, where a snapshot needs it.
async fn lost_log(
    cluster: &ClusterVault,
    incarnation: &str,
    folders: &[SnapFolder],
    marked: &Marked,
    absent: &mut BTreeSet<Absent>,
) -> Result<()> {
    let mut manifests = Vec::new();
    for folder in folders.iter().filter(|folder| folder.has_manifest) {
        match cluster.manifest(incarnation, &folder.id).await {
            Ok(manifest) => manifests.push(manifest),
            Err(Error::Damaged { .. }) => {}
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    for lane in cluster.lanes(incarnation).await? {
        let begin =
            manifests.iter().filter_map(|m| Some((m.id.clone(), m.taken.started.get(&lane)?.clone())));
        let begin: Vec<(String, Place)> = begin.collect();
        let objects = cluster.log_objects(incarnation, &lane).await?;
        for generation in objects.chunk_by(|a, b| a.generation == b.generation) {
            for (object, snapshots) in log::needed_before(generation, &begin) {
                let was = format!("_{}", object.previous);
                if marked.objects.iter().any(|key| key.ends_with(&was)) {
                    continue;
                }
                let folder = object.key.rsplit_once('/').map_or("", |(folder, _)| folder);
                absent.insert(Absent {
                    object: format!("{folder}/…{was}"),
                    reason: "it is missing: a later object of the log names it, and a snapshot needs it"
                        .to_owned(),
                    snapshots,
                });
            }
        }
    }
    Ok(())
}

/// What pins and states tell of, and is not there. Of the whole vault: their names do not say whose they are.
pub(super) async fn beside(vault: &Vault) -> Result<Vec<Absent>> {
    let first = look_beside(vault).await?;
    if first.is_empty() {
        return Ok(Vec::new());
    }
    let again = look_beside(vault).await?;
    Ok(first.into_iter().filter(|absent| again.contains(absent)).collect())
}

async fn look_beside(vault: &Vault) -> Result<BTreeSet<Absent>> {
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut proofs: Vec<(String, String)> = Vec::new();
    for object in vault.store().list_level("pins").await?.objects {
        told.insert(object.key["pins/".len()..].to_owned(), object.key.clone());
    }
    for object in vault.store().list("states").await? {
        let Some((id, state)) = object.key.strip_prefix("states/").and_then(|rest| rest.split_once('/'))
        else {
            continue;
        };
        told.insert(id.to_owned(), object.key.clone());
        if let Some((kind @ "proven", _)) = state.split_once('-')
            && let Ok(Found { proof: Some(proof), .. }) = vault.get_small(&object.key, kind).await
        {
            proofs.push((proof, id.to_owned()));
        }
    }
    let mut absent = BTreeSet::new();
    let mut finished: HashSet<String> = HashSet::new();
    let mut unfinished: BTreeMap<String, String> = BTreeMap::new();
    for (fleet, environment, name) in vault.clusters().await? {
        let cluster = vault.cluster(&fleet, &environment, &name);
        for incarnation in cluster.incarnations().await? {
            for folder in cluster.folders(&incarnation).await?.0 {
                if folder.has_manifest {
                    finished.insert(folder.id);
                } else {
                    let manifest = format!("{}/{incarnation}/snap/{}/manifest", cluster.prefix(), folder.id);
                    unfinished.insert(folder.id, manifest);
                }
            }
        }
        let Some(marked) = Marked::of(&cluster).await? else { return Ok(BTreeSet::new()) };
        finished.extend(marked.snapshots);
    }
    for (id, by) in told.into_iter().filter(|(id, _)| !finished.contains(id)) {
        let somewhere = || format!("c/…/snap/{id}/manifest");
        absent.insert(Absent {
            object: unfinished.get(&id).cloned().unwrap_or_else(somewhere),
            reason: format!("it is missing: `{by}` is about its snapshot"),
            snapshots: vec![id],
        });
    }
    let stored = vault.store().list("proofs").await?;
    let stored: HashSet<&str> = stored.iter().filter_map(|object| object.key.rsplit('/').next()).collect();
    for (proof, id) in proofs.into_iter().filter(|(proof, _)| !stored.contains(proof.as_str())) {
        absent.insert(Absent {
            object: format!("proofs/…/{proof}"),
            reason: format!("it is missing: snapshot {id} was proven by it"),
            snapshots: Vec::new(),
        });
    }
    Ok(absent)
}
