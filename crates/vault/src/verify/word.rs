//! What a verification leaves in the vault for whoever comes after it: `states/ID/intact-…` of a snapshot that was found whole,
//! `states/ID/damaged-…` of one that was not, with the keys of what is wrong.
//!
//! Nothing is taken over from what is named there, and no restore begins with such a snapshot while another one reaches the target. Damage of
//! the log is not said of snapshots: whoever plans sees that for himself.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use mainstay_model::Instant;
use mainstay_store::{Kind, Object};
use serde::{Deserialize, Serialize};

use super::{Damage, Verified, VerifyOptions};
use crate::{ClusterVault, Error, Result};

/// What is wrong with a snapshot.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Word {
    at: Instant,
    /// Keys of what it needs and is damaged or missing, ordered.
    objects: BTreeSet<String>,
}

/// All that the vault's words of damage say.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Ids of damaged snapshots.
    pub snapshots: HashSet<String>,
    /// Keys of objects that are damaged or missing, as far as the words can be read.
    pub objects: HashSet<String>,
}

const DAMAGED: &str = "damaged";

impl ClusterVault {
    /// Leaves word of what a verification with `options` found that began at `began_at`: of each snapshot that it found damaged, and, where it
    /// read everything, of each that it found whole. Of these, what was said before is taken back.
    ///
    /// # Errors
    /// The store's. The next verification makes up for what was left out.
    pub async fn record_verified(
        &self,
        options: &VerifyOptions,
        verified: &Verified,
        began_at: Instant,
    ) -> Result<()> {
        self.record_damaged(&verified.damaged).await?;
        if options.sample < 1.0 {
            return Ok(());
        }
        let (records, _) = self.snapshots_and_damaged().await?;
        for record in records.iter().filter(|r| options.snapshot.as_ref().is_none_or(|only| *only == r.id)) {
            let mut hurt = verified.damaged.iter().filter(|d| d.snapshots.contains(&record.id)).peekable();
            if hurt.peek().is_none() {
                self.record_intact(&record.id, Instant::now()).await?;
            }
            if !hurt.any(|damage| !is_log(&damage.object)) {
                self.take_back(&record.id, began_at).await?;
            }
        }
        Ok(())
    }

    /// Leaves word with every snapshot that needs a damaged object, also with those that the damage does not name.
    ///
    /// # Errors
    /// The store's.
    pub async fn record_damaged(&self, damaged: &[Damage]) -> Result<()> {
        let ours: Vec<&Damage> = damaged.iter().filter(|damage| !is_log(&damage.object)).collect();
        let mut hurt: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for damage in &ours {
            for id in damage.snapshots.iter().chain(&snapshot_of(&damage.object)) {
                hurt.entry(id.clone()).or_default().insert(damage.object.clone());
            }
        }
        if ours.iter().any(|damage| is_pack(&damage.object)) {
            let (records, _) = self.snapshots_and_damaged().await?;
            for record in records {
                let needed = match self.packs_needed(&record.id).await {
                    Ok(needed) => needed,
                    // Who looks at that one says so.
                    Err(Error::Damaged { .. } | Error::NotFound(_)) => continue,
                    Err(error) => return Err(error),
                };
                let objects = ours.iter().map(|d| &d.object).filter(|object| needed.contains_key(*object));
                for object in objects {
                    hurt.entry(record.id.clone()).or_default().insert(object.clone());
                }
            }
        }
        for (id, objects) in hurt {
            self.say_damaged(&id, objects).await?;
        }
        Ok(())
    }

    /// What is said already is kept, until a verification finds the snapshot whole.
    async fn say_damaged(&self, id: &str, objects: BTreeSet<String>) -> Result<()> {
        // Of a snapshot that is gone nothing is said: it would seem to have lost its manifest.
        if let Err(Error::NotFound(_)) = self.find(id).await {
            return Ok(());
        }
        let before = self.words(&format!("states/{id}")).await?;
        let mut said = BTreeSet::new();
        for word in &before {
            said.extend(self.word(&word.key).await?.unwrap_or_default().objects);
        }
        if !before.is_empty() && objects.is_subset(&said) {
            return Ok(());
        }
        said.extend(objects);
        let at = Instant::now();
        let key = format!("states/{id}/{DAMAGED}-{:016x}", at.0.max(0));
        match self.vault().create_small(&key, DAMAGED, &Word { at, objects: said }).await {
            Err(Error::Store(error)) if error.kind == Kind::Exists => return Ok(()),
            other => other?,
        }
        for word in before.iter().filter(|word| word.key < key) {
            self.vault().store().delete(&word.key).await?;
        }
        Ok(())
    }

    /// What was said since `began_at` stays: whoever said it may have seen what we had read before.
    async fn take_back(&self, id: &str, began_at: Instant) -> Result<()> {
        let folder = format!("states/{id}");
        let limit = format!("{folder}/{DAMAGED}-{:016x}", began_at.0.max(0));
        for word in self.words(&folder).await?.iter().filter(|word| word.key < limit) {
            self.vault().store().delete(&word.key).await?;
        }
        Ok(())
    }

    /// The words of damage below a prefix.
    async fn words(&self, prefix: &str) -> Result<Vec<Object>> {
        let is_word = |object: &Object| {
            object
                .key
                .rsplit_once('/')
                .is_some_and(|(_, name)| name.strip_prefix(DAMAGED).is_some_and(|rest| rest.starts_with('-')))
        };
        let mut listed = self.vault().store().list(prefix).await?;
        listed.retain(is_word);
        Ok(listed)
    }

    /// `None` when it was taken back since it was listed, or is damaged itself: its name says enough to be careful.
    async fn word(&self, key: &str) -> Result<Option<Word>> {
        match self.vault().get_small(key, DAMAGED).await {
            Ok(word) => Ok(Some(word)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error @ Error::Damaged { .. }) => {
                tracing::warn!(%error, "cannot read which objects of a snapshot are damaged");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What is known to be damaged, of the whole vault.
    pub(crate) async fn damage_known(&self) -> Result<Known> {
        let mut known = Known::default();
        for object in self.words("states").await? {
            known.snapshots.extend(object.key.split('/').nth(1).map(ToOwned::to_owned));
            known.objects.extend(self.word(&object.key).await?.unwrap_or_default().objects);
        }
        Ok(known)
    }
}

/// `c/FLEET/ENVIRONMENT/CLUSTER/INCARNATION/log/…`
fn is_log(object: &str) -> bool {
    object.split('/').nth(5) == Some("log")
}

fn is_pack(object: &str) -> bool {
    object.split('/').nth(5) == Some("packs")
}

/// Whose own object it is: `c/FLEET/ENVIRONMENT/CLUSTER/INCARNATION/snap/ID/…`.
fn snapshot_of(object: &str) -> Option<String> {
    let mut parts = object.split('/').skip(5);
    (parts.next() == Some("snap")).then(|| parts.next().map(ToOwned::to_owned))?
}
