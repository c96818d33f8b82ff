//! A vault: opened with this home's keys.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_store::{Kind, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::format::{FORMAT_KEY, Format, keys_name};
use crate::keys::{Keys, identity_or_new, parse_recipients};
use crate::manifest::Manifest;
use crate::sealed::{seal, unseal};
use crate::{ClusterVault, Error, Lease, Result, Verified, VerifyOptions};

/// An opened vault. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vault {
    store: Store,
    keys: Arc<Keys>,
    /// Manifests that were read, by key: they never change.
    pub(crate) manifests: Arc<Mutex<HashMap<String, Arc<Manifest>>>>,
    /// Whether the store was seen to hold this vault.
    confirmed: Arc<AtomicBool>,
}

/// A vault that was opened or made.
#[derive(Debug)]
pub struct Opened {
    /// The vault.
    pub vault: Vault,
    /// Whether it was made just now.
    pub created: bool,
    /// The file of an identity that was made just now, since no recipients were given. Without a copy of it elsewhere, all
    /// backups are lost with this machine: say so loudly.
    pub made_identity: Option<PathBuf>,
    /// Why its store could not be asked: then it is the vault that this home knows to be there, and nothing is written to it before
    /// that was seen ([`Vault::confirm`]).
    pub away: Option<Error>,
}

impl Vault {
    fn with(store: Store, keys: Keys) -> Self {
        let confirmed = Arc::new(AtomicBool::new(true));
        Self { store, keys: Arc::new(keys), manifests: Arc::default(), confirmed }
    }

    /// The id of the vault that this home last opened in such a store, if it did.
    ///
    /// # Errors
    /// `Io`.
    pub fn known_in(store: &Store, key_dir: &Path) -> Result<Option<String>> {
        crate::keys::known(key_dir, &store.name())
    }

    /// Sees that the store holds this vault, once. Whoever takes a lease has seen it, and nobody writes log or snapshots without one.
    ///
    /// # Errors
    /// The store's; `NoVault`, `WrongKey`, `Damaged`.
    pub async fn confirm(&self) -> Result<()> {
        if self.confirmed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let Some(format) = Self::format(&self.store).await? else {
            Self::refuse_headless(&self.store).await?;
            return Err(Error::NoVault { store: self.store.name() });
        };
        if !format.is_of(&self.keys) {
            return Err(Error::WrongKey { vault: format.id, home: self.keys.home().display().to_string() });
        }
        self.confirmed.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// As [`Self::open_or_create`]; where the store cannot be asked, or has lost what was there, the vault that this home last opened
    /// there. For those who keep log on this machine meanwhile.
    ///
    /// # Errors
    /// As [`Self::open_or_create`], where this home knows of none there.
    pub async fn open_or_known(store: Store, recipients: &[String], key_dir: &Path) -> Result<Opened> {
        let known = Self::known_in(&store, key_dir)?;
        match (Self::open_or_create(store.clone(), recipients, key_dir).await, known) {
            (Err(error @ (Error::Store(_) | Error::NoVault { .. } | Error::Damaged { .. })), Some(id)) => {
                let Some(keys) = Keys::load(&id, key_dir)? else { return Err(error) };
                let mut vault = Self::with(store, keys);
                vault.confirmed = Arc::default();
                Ok(Opened { away: Some(error), ..Self::opened(vault, recipients)? })
            }
            (opened, _) => opened,
        }
    }

    /// Makes a vault, encrypted to `recipients` (`age1…`). Where none are given, to the identity in `key_dir/identity.txt`, which
    /// is made if there is none. The store is probed first.
    ///
    /// # Errors
    /// `VaultExists`; `Damaged` where a vault's objects are there and its format is not; a store's `Unfit`; `Invalid` for text that is no recipient.
    pub async fn create(store: Store, recipients: &[String], key_dir: &Path) -> Result<Opened> {
        if Self::format(&store).await?.is_some() {
            return Err(Error::VaultExists { store: store.name() });
        }
        // Another vault over what is left of one would make that unreadable for good.
        Self::refuse_headless(&store).await?;
        if !recipients.is_empty() {
            parse_recipients(recipients)?;
        }
        store.probe().await?;
        let (recipients, made_identity) = match recipients {
            [] => {
                let (own, made) = identity_or_new(key_dir)?;
                (vec![own], made)
            }
            given => (given.iter().map(|r| r.trim().to_owned()).collect(), None),
        };
        let keys = Keys::generate(key_dir, &recipients)?;
        // Kept here before anybody can see the vault: no vault without its keys.
        keys.save()?;
        let wrapped = keys.wrapped()?;
        let name = keys_name(&keys.vault);
        let format = Format::new(&keys, name.clone(), &wrapped);
        store.put(&name, wrapped).await?;
        match store.create(FORMAT_KEY, format.bytes()).await {
            Ok(()) => {}
            Err(error) if error.kind == Kind::Exists => {
                store.delete(&name).await?;
                return Err(Error::VaultExists { store: store.name() });
            }
            Err(error) => return Err(error.into()),
        }
        crate::keys::know(key_dir, &store.name(), &keys.vault);
        let vault = Self::with(store, keys);
        Ok(Opened { vault, created: true, made_identity, away: None })
    }

    /// Opens a vault with the keys in `key_dir`: `<vault id>/host.key`, or what `identity.txt` unwraps. Writes nothing to the
    /// store.
    ///
    /// # Errors
    /// `NoVault`, `NoKeys`, `WrongKey`, `Version`, `Damaged`.
    pub async fn open(store: Store, key_dir: &Path) -> Result<Self> {
        let Some(format) = Self::format(&store).await? else {
            Self::refuse_headless(&store).await?;
            return Err(Error::NoVault { store: store.name() });
        };
        let wrong = || Error::WrongKey { vault: format.id.clone(), home: key_dir.display().to_string() };
        if let Some(keys) = Keys::load(&format.id, key_dir)? {
            if !format.is_of(&keys) {
                return Err(wrong());
            }
            crate::keys::know(key_dir, &store.name(), &format.id);
            return Ok(Self::with(store, keys));
        }
        let name = &format.keys.name;
        let wrapped = store.get(name).await.map_err(|error| match error.kind {
            Kind::NotFound => Error::damaged(name, "it is missing"),
            _ => error.into(),
        })?;
        if blake3::hash(&wrapped).to_hex().as_str() != format.keys.hash {
            return Err(Error::damaged(name, "its hash is not what format.json says"));
        }
        let keys = Keys::unwrap(&format.id, &wrapped, key_dir)?;
        if !format.is_of(&keys) {
            return Err(wrong());
        }
        keys.save()?;
        crate::keys::know(key_dir, &store.name(), &format.id);
        Ok(Self::with(store, keys))
    }

    /// Opens a vault, or makes it where there is none and this home knows of none. One that was there is not made a second time: its disk
    /// may only not be mounted.
    ///
    /// # Errors
    /// As [`Self::open`] (`NoVault` where this home knows of one) and [`Self::create`] (`Damaged` where a vault's objects are there and its
    /// format is not); `Invalid` when it is encrypted to other recipients than those given.
    pub async fn open_or_create(store: Store, recipients: &[String], key_dir: &Path) -> Result<Opened> {
        match Self::known_in(&store, key_dir)? {
            Some(_) => Self::opened(Self::open(store, key_dir).await?, recipients),
            None => Self::open_or_init(store, recipients, key_dir).await,
        }
    }

    /// Opens a vault, or makes it where there is none, whatever this home knows to have been there: for when somebody asks for it.
    ///
    /// # Errors
    /// As [`Self::open_or_create`], never `NoVault`.
    pub async fn open_or_init(store: Store, recipients: &[String], key_dir: &Path) -> Result<Opened> {
        match Self::open(store.clone(), key_dir).await {
            Err(Error::NoVault { .. }) => {}
            opened => return Self::opened(opened?, recipients),
        }
        match Self::create(store.clone(), recipients, key_dir).await {
            // Somebody else was faster.
            Err(Error::VaultExists { .. }) => Self::opened(Self::open(store, key_dir).await?, recipients),
            created => created,
        }
    }

    fn opened(vault: Self, recipients: &[String]) -> Result<Opened> {
        let mut asked: Vec<_> = recipients.iter().map(|r| r.trim().to_owned()).collect();
        let mut has = vault.keys.recipients.clone();
        asked.sort();
        has.sort();
        if !asked.is_empty() && asked != has {
            return Err(Error::Invalid(format!(
                "the vault in {} is encrypted to {}, not to the recipients that the fleet file names",
                vault.store.name(),
                has.join(", ")
            )));
        }
        Ok(Opened { vault, created: false, made_identity: None, away: None })
    }

    /// Writes the format of a vault anew that has lost it, with the keys that this home holds or can unwrap. Nothing is done where nothing is
    /// lost. Gives whether it was written.
    ///
    /// # Errors
    /// `NoKeys`, `WrongKey`; `Damaged` when the wrapped keys are gone as well.
    pub async fn put_format_back(store: &Store, key_dir: &Path) -> Result<bool> {
        if Self::format(store).await?.is_some() || Self::refuse_headless(store).await.is_ok() {
            return Ok(false);
        }
        let mut outcome = Err(Error::damaged("keys", "no wrapped keys are there"));
        for object in store.list_level("keys").await?.objects {
            let id = object.key.strip_prefix("keys/").and_then(|name| name.strip_suffix(".age"));
            let Some(id) = id else { continue };
            let wrapped = store.get(&object.key).await?;
            let keys = match Keys::load(id, key_dir)? {
                Some(keys) => Ok(keys),
                None => Keys::unwrap(id, &wrapped, key_dir),
            };
            match keys {
                Ok(keys) if Self::is_whose(store, &keys).await? => {
                    let format = Format::new(&keys, keys_name(id), &wrapped);
                    keys.save()?;
                    store.create(FORMAT_KEY, format.bytes()).await?;
                    return Ok(true);
                }
                Ok(_) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// Whether the store's manifests were written with these keys: a vault that lost a race leaves keys behind.
    async fn is_whose(store: &Store, keys: &Keys) -> Result<bool> {
        for place in ["c", "leases", "points", "proofs", "states"] {
            for object in store.list(place).await? {
                if place == "c" && !object.key.ends_with("/manifest") {
                    continue;
                }
                match store.get(&object.key).await {
                    Ok(bytes) if crate::sealed::verify(keys, &object.key, &bytes).is_ok() => return Ok(true),
                    Ok(_) => {}
                    Err(error) if error.kind == Kind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(false)
    }

    /// `Damaged` where a store has no format, and what only a vault has.
    async fn refuse_headless(store: &Store) -> Result<()> {
        let folders = store.list_level("").await?.folders;
        // Keys alone are those of a vault that is being made, or was not made to its end.
        let of_a_vault =
            |folder: &&String| ["c", "points", "proofs", "states", "tombs"].contains(&folder.as_str());
        match folders.iter().find(of_a_vault) {
            None => Ok(()),
            Some(folder) => Err(Error::damaged(
                FORMAT_KEY,
                format!("it is missing, and `{folder}/` holds objects of a vault"),
            )),
        }
    }

    async fn format(store: &Store) -> Result<Option<Format>> {
        match store.get(FORMAT_KEY).await {
            Ok(bytes) => Format::parse(&bytes).map(Some),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Its id: 16 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.keys.vault
    }

    /// Where it is.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// To whom it is encrypted.
    pub fn recipients(&self) -> &[String] {
        &self.keys.recipients
    }

    /// Whether this home holds an identity, so that it can restore.
    pub fn can_restore(&self) -> bool {
        self.keys.has_identity()
    }

    /// An error unless [`Self::can_restore`].
    ///
    /// # Errors
    /// `NoIdentity`.
    pub fn require_identity(&self) -> Result<()> {
        self.keys.require_identity()
    }

    /// The backups of one cluster of one environment of one fleet, whether there are any or not.
    pub fn cluster(&self, fleet: &str, environment: &str, cluster: &str) -> ClusterVault {
        ClusterVault::new(self.clone(), fleet, environment, cluster)
    }

    /// Every (fleet, environment, cluster) that has backups here.
    ///
    /// # Errors
    /// The store's.
    pub async fn clusters(&self) -> Result<Vec<(String, String, String)>> {
        let mut clusters = Vec::new();
        for fleet in self.store.list_level("c").await?.folders {
            for environment in self.store.list_level(&format!("c/{fleet}")).await?.folders {
                for cluster in self.store.list_level(&format!("c/{fleet}/{environment}")).await?.folders {
                    clusters.push((fleet.clone(), environment.clone(), cluster));
                }
            }
        }
        Ok(clusters)
    }

    /// Takes a lease, or says who holds it. Where a holder may be dead, waits at most `ttl` to find out; one of this machine that
    /// is dead is told at once. The lease beats by itself.
    ///
    /// `name`: `[A-Za-z0-9._-]`; `holder` is for people.
    ///
    /// # Errors
    /// `Held` by one that is alive; the store's.
    pub async fn lease(&self, name: &str, holder: &str, ttl: Duration) -> Result<Lease> {
        Lease::take(self.clone(), name, holder, ttl, 0).await
    }

    /// Stores a fleet point, signed with the vault's key and encrypted. Once: a point of that id must not exist.
    ///
    /// # Errors
    /// A store's `Exists`, and others.
    pub async fn put_point<T: Serialize>(
        &self,
        fleet: &str,
        environment: &str,
        group: &str,
        id: &str,
        point: &T,
    ) -> Result<()> {
        self.create_small(&format!("points/{fleet}/{environment}/{group}/{id}"), "point", point).await
    }

    /// The ids of all points of a group, ordered.
    ///
    /// # Errors
    /// The store's.
    pub async fn point_ids(&self, fleet: &str, environment: &str, group: &str) -> Result<Vec<String>> {
        let prefix = format!("points/{fleet}/{environment}/{group}");
        let objects = self.store.list_level(&prefix).await?.objects;
        Ok(objects.iter().map(|object| object.key[prefix.len() + 1..].to_owned()).collect())
    }

    /// One point.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`.
    pub async fn point<T: DeserializeOwned>(
        &self,
        fleet: &str,
        environment: &str,
        group: &str,
        id: &str,
    ) -> Result<T> {
        let key = format!("points/{fleet}/{environment}/{group}/{id}");
        self.get_small(&key, "point").await.map_err(|error| match error.is_missing() {
            true => Error::NotFound(format!("point {id} of {group}")),
            false => error,
        })
    }

    /// All points of a group, ordered by id.
    ///
    /// # Errors
    /// As [`Self::point`].
    pub async fn points<T: DeserializeOwned>(
        &self,
        fleet: &str,
        environment: &str,
        group: &str,
    ) -> Result<Vec<(String, T)>> {
        self.all_small(&format!("points/{fleet}/{environment}/{group}"), "point").await
    }

    /// Deletes a point (retention is the caller's to decide).
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_point(&self, fleet: &str, environment: &str, group: &str, id: &str) -> Result<()> {
        Ok(self.store.delete(&format!("points/{fleet}/{environment}/{group}/{id}")).await?)
    }

    /// Stores the record of a proof of `subject` (a cluster or a group).
    ///
    /// # Errors
    /// A store's `Exists`, and others.
    pub async fn put_proof<T: Serialize>(
        &self,
        fleet: &str,
        environment: &str,
        subject: &str,
        id: &str,
        proof: &T,
    ) -> Result<()> {
        self.create_small(&format!("proofs/{fleet}/{environment}/{subject}/{id}"), "proof", proof).await
    }

    /// All proofs of `subject`, ordered by id.
    ///
    /// # Errors
    /// `Damaged`, the store's.
    pub async fn proofs<T: DeserializeOwned>(
        &self,
        fleet: &str,
        environment: &str,
        subject: &str,
    ) -> Result<Vec<(String, T)>> {
        self.all_small(&format!("proofs/{fleet}/{environment}/{subject}"), "proof").await
    }

    /// Verifies the whole vault, or one snapshot of it.
    ///
    /// # Errors
    /// The store's, when it does not answer. What is damaged is no error but in the result.
    pub async fn verify(&self, options: &VerifyOptions) -> Result<Verified> {
        crate::verify::vault(self, options).await
    }

    /// Writes a small secret object where there is none.
    pub(crate) async fn create_small<T: Serialize>(&self, key: &str, kind: &str, value: &T) -> Result<()> {
        let bytes = seal(&self.keys, key, kind, true, value)?;
        Ok(self.store.create(key, bytes).await?)
    }

    /// Reads a small object.
    pub(crate) async fn get_small<T: DeserializeOwned>(&self, key: &str, kind: &str) -> Result<T> {
        let bytes = self.store.get(key).await?;
        unseal(&self.keys, key, kind, &bytes)
    }

    /// Reads all small objects directly below `prefix`, with the last parts of their keys.
    pub(crate) async fn all_small<T: DeserializeOwned>(
        &self,
        prefix: &str,
        kind: &str,
    ) -> Result<Vec<(String, T)>> {
        let mut values = Vec::new();
        for object in self.store.list_level(prefix).await?.objects {
            match self.get_small(&object.key, kind).await {
                Ok(value) => values.push((object.key[prefix.len() + 1..].to_owned(), value)),
                // Deleted since it was listed.
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(values)
    }
}
