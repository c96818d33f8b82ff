//! What the vault holds of a cluster, put together: its [`Past`], and the objects that the past is made of.
//!
//! Everything comes from the objects in the vault. A snapshot whose manifest is damaged is told beside the good ones, never in place of
//! them; one that a prune has marked is no longer offered. Log whose chain does not fit is kept out by `VaultFetch`, which names it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use mainstay_model::{Branch, Instant, Lane, Offset};
use mainstay_vault::{ClusterVault, LogContent, LogKind, LogObject, SnapshotRecord, SnapshotState};

use crate::Protected;
use crate::error::{Doing, Error, Result};
use crate::fetch::{Source, VaultFetch};
use crate::history::{Beat, Branched, Gap, History, Piece};
use crate::log::{LaneLog, StoredLog};
use crate::past::{Life, Past, SnapshotAt, Stretch};

/// What the vault holds of a cluster.
#[derive(Clone)]
pub struct Catalogue {
    /// The cluster's backups.
    pub vault: ClusterVault,
    /// What can be had of it.
    pub past: Past,
    /// Its snapshots, by id; those that a prune has marked too.
    pub records: BTreeMap<String, SnapshotRecord>,
    /// Snapshots whose manifest is damaged: the id, and what is wrong.
    pub damaged: Vec<(String, String)>,
    /// Whether log was taken out of the past since it is damaged.
    pub(crate) is_without_log: bool,
    /// The log's objects, per incarnation and lane.
    lanes: BTreeMap<(String, Lane), Objects>,
}

/// A lane's objects, sorted.
#[derive(Clone, Default)]
pub(crate) struct Objects {
    /// In the order of the history's pieces.
    pub pieces: Vec<LogObject>,
    pub branches: Vec<LogObject>,
    /// Pieces whose chain does not fit, by index.
    pub broken: BTreeSet<usize>,
}

impl Catalogue {
    /// Reads names and manifests, and no content.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(vault: &ClusterVault) -> Result<Self> {
        let (records, damaged) = vault.snapshots_and_damaged().await.doing(|| "list snapshots".to_owned())?;
        let mut incarnations: BTreeSet<String> = records.iter().map(|r| r.incarnation.clone()).collect();
        incarnations.extend(vault.incarnations().await.doing(|| "list incarnations".to_owned())?);
        let mut lives = Vec::new();
        let mut lanes = BTreeMap::new();
        for incarnation in incarnations {
            let mut streams = BTreeMap::new();
            for lane in vault.lanes(&incarnation).await.doing(|| "list lanes".to_owned())? {
                let objects =
                    vault.log_objects(&incarnation, &lane).await.doing(|| format!("list log of {lane}"))?;
                let told =
                    records.iter().filter(|r| r.incarnation == incarnation).flat_map(|r| &r.taken.branches);
                let told = told.filter(|(of, _)| *of == lane).map(|(_, branch)| branch);
                let (history, objects) = read_names(objects, told);
                streams.insert(lane.clone(), history.into());
                lanes.insert((incarnation.clone(), lane), objects);
            }
            let mut snapshots: Vec<SnapshotAt> = records
                .iter()
                .filter(|r| r.incarnation == incarnation && !r.leaving)
                .map(|r| SnapshotAt {
                    id: r.id.clone(),
                    position: r.taken.position.clone(),
                    started: r.taken.started.clone(),
                    at: r.taken.at,
                })
                .collect();
            snapshots.sort_by_key(|s| s.at.latest);
            lives.push(Life { incarnation, snapshots, lanes: streams });
        }
        // Never by name: by when the life's first snapshot was begun.
        let begun = |life: &Life| {
            let of = records.iter().filter(|r| r.incarnation == life.incarnation);
            of.map(|r| r.begun_at).min().unwrap_or(Instant::MIN)
        };
        lives.sort_by_key(begun);
        let records = records.into_iter().map(|r| (r.id.clone(), r)).collect();
        let damaged = damaged.into_iter().map(|(id, error)| (id, error.to_string())).collect();
        Ok(Self {
            vault: vault.clone(),
            past: Past { lives },
            records,
            damaged,
            is_without_log: false,
            lanes,
        })
    }

    /// The same as though a damaged object were not there, and no snapshot that needs it. `None` where nothing here needs it.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn without(&self, of: &Protected, object: Option<&str>) -> Result<Option<Self>> {
        let Some(object) = object else { return Ok(None) };
        for ((incarnation, lane), objects) in &self.lanes {
            let Some(piece) = objects.pieces.iter().position(|piece| piece.key == object) else { continue };
            let mut less = self.clone();
            let lives = less.past.lives.iter_mut().filter(|life| life.incarnation == *incarnation);
            for stream in lives.filter_map(|life| life.lanes.get_mut(lane)) {
                *stream = stream.history.clone().without(piece).into();
            }
            less.is_without_log = true;
            return Ok(Some(less));
        }
        let is_in = |id: &String| {
            object.contains(&format!("/snap/{id}/")) || object.ends_with(&format!("/snap/{id}"))
        };
        let mut needing: Vec<String> = self.records.keys().filter(|id| is_in(id)).cloned().collect();
        if object.contains("/packs/") {
            for id in self.records.keys() {
                match of.vault.packs_needed(id).await {
                    Ok(needed) if !needed.contains_key(object) => {}
                    // One that cannot say what it needs is not to be had either.
                    Ok(_)
                    | Err(mainstay_vault::Error::Damaged { .. } | mainstay_vault::Error::NotFound(_)) => {
                        needing.push(id.clone());
                    }
                    Err(source) => {
                        let what = format!("read what snapshot {id} needs");
                        return Err(Error::Vault { what, source });
                    }
                }
            }
        }
        Ok((!needing.is_empty()).then(|| self.without_snapshots(&needing)))
    }

    /// The same without some snapshots.
    pub(crate) fn without_snapshots(&self, ids: &[String]) -> Self {
        let mut less = self.clone();
        for life in &mut less.past.lives {
            life.snapshots.retain(|snapshot| !ids.contains(&snapshot.id));
        }
        less
    }

    /// The same candidates; of each life, those first that no verification found damaged. The newest life stays the first: another holds other data.
    pub(crate) fn whole_first(&self, mut candidates: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
        let is_damaged =
            |&(life, copy): &(usize, usize)| self.is_damaged(&self.past.lives[life].snapshots[copy].id);
        candidates.sort_by_key(|candidate| (Reverse(candidate.0), is_damaged(candidate)));
        candidates
    }

    /// Whether a verification found a snapshot damaged.
    pub(crate) fn is_damaged(&self, id: &str) -> bool {
        self.records.get(id).is_some_and(|record| record.state == SnapshotState::Damaged)
    }

    /// Whether a snapshot is among those that can be had.
    pub(crate) fn has_snapshot(&self, id: &str) -> bool {
        self.past.lives.iter().flat_map(|life| &life.snapshots).any(|snapshot| snapshot.id == id)
    }

    /// The log behind the snapshots of one life: of each lane the stretch that is given.
    ///
    /// # Errors
    /// The vault's, when the records of epochs on the way cannot be read.
    pub async fn log(&self, life: usize, stretches: BTreeMap<Lane, Stretch>) -> Result<StoredLog> {
        let life = &self.past.lives[life];
        let mut lanes = BTreeMap::new();
        let mut sources: BTreeMap<Lane, Source> = BTreeMap::new();
        for (lane, stretch) in stretches {
            let Some(stream) = life.lanes.get(&lane) else { continue };
            let objects = self.lanes.get(&(life.incarnation.clone(), lane.clone()));
            let branches = self.branches(objects, &stretch, &stream.history).await?;
            lanes.insert(lane.clone(), LaneLog::new(&stretch, stream.history.pieces(), branches));
            if let Some(objects) = objects {
                sources.insert(lane, Source::new(objects.clone()));
            }
        }
        let fetch = VaultFetch::new(self.vault.clone(), life.incarnation.clone(), sources);
        Ok(StoredLog::new(lanes, Arc::new(fetch)))
    }

    /// How the epochs of a stretch came to be, with the engine's own records of them.
    async fn branches(
        &self,
        objects: Option<&Objects>,
        stretch: &Stretch,
        history: &History,
    ) -> Result<Vec<(Branch, Option<Bytes>)>> {
        let mut branches = Vec::new();
        for leg in &stretch.line.legs {
            let Some(branch) = history.branch(&leg.epoch) else { continue };
            let same = |o: &&LogObject| o.segment.first.epoch == leg.epoch && o.parent == branch.parent;
            let record = match objects.and_then(|o| o.branches.iter().rfind(same)) {
                None => None,
                Some(object) => {
                    match self.vault.read_log(object).await.doing(|| format!("read {}", object.key))? {
                        LogContent::Branch { history, .. } => history,
                        _ => None,
                    }
                }
            };
            branches.push((branch.clone(), record));
        }
        Ok(branches)
    }
}

/// Sorts what the names of a lane's objects say.
pub(crate) fn read_names<'a>(
    objects: Vec<LogObject>,
    told: impl Iterator<Item = &'a Branch>,
) -> (History, Objects) {
    let mut found = Objects::default();
    let mut pieces = Vec::new();
    // What snapshots know of epochs fills in what the log's writers did not see begin.
    let mut branches: Vec<Branched> =
        told.map(|branch| Branched { generation: 0, seq: 0, branch: branch.clone() }).collect();
    let (mut beats, mut gaps) = (Vec::new(), Vec::new());
    let mut before: Option<(u64, u64, String, bool)> = None;
    for object in objects {
        let (generation, seq, lasts) = (object.generation, object.sequence, object.kind.lasts());
        // What lasts names the last one that does, and not the tail or beat before it.
        let follows = |(g, s, tag, lasted): &(u64, u64, String, bool)| {
            *g != generation || s + 1 != seq || (lasts && !lasted) || *tag == object.previous
        };
        let fits = before.as_ref().is_none_or(follows);
        before = Some((generation, seq, object.tag.clone(), lasts));
        let segment = object.segment.clone();
        match object.kind {
            LogKind::Tail | LogKind::Sealed => {
                if !fits {
                    found.broken.insert(pieces.len());
                }
                let (first, last, bracket) = (segment.first, segment.last, segment.bracket);
                let is_sealed = object.kind == LogKind::Sealed;
                pieces.push(Piece { generation, seq, is_sealed, first, last, bracket });
                found.pieces.push(object);
            }
            LogKind::Beat => beats.push(Beat { generation, at: segment.first, time: segment.bracket }),
            LogKind::Hole => {
                let reason = object.reason.unwrap_or_default().replace('-', " ");
                gaps.push(Gap { from: segment.first, reason });
            }
            LogKind::Branch => {
                let (epoch, first): (_, Offset) = (segment.first.epoch, segment.first.offset);
                let branch = Branch { epoch, parent: object.parent.clone(), first };
                branches.push(Branched { generation, seq, branch });
                found.branches.push(object);
            }
        }
    }
    (History::new(pieces, branches, beats, gaps), found)
}
