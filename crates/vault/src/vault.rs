//! A vault: opened with this home's keys.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_store::Store;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ClusterVault, Error, Lease, Result, Verified, VerifyOptions};

/// An opened vault. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vault {
    store: Store,
}

/// A vault that was opened or made.
#[derive(Debug)]
pub struct Opened {
    /// The vault.
    pub vault: Vault,
    /// Whether it was made just now.
    pub created: bool,
    /// The file of an identity that was made just now, since no recipients were given. Without a copy of it elsewhere, all backups are lost with
    /// this machine: say so loudly.
    pub made_identity: Option<PathBuf>,
}

fn not_yet<T>() -> Result<T> {
    Err(Error::Invalid("the vault is not there yet".into()))
}

impl Vault {
    /// Makes a vault, encrypted to `recipients` (`age1…`). Where none are given, to the identity in `key_dir/identity.txt`, which is made if there is
    /// none. The store is probed first.
    ///
    /// # Errors
    /// `VaultExists`; a store's `Unfit`; `Invalid` for text that is no recipient.
    pub async fn create(store: Store, recipients: &[String], key_dir: &Path) -> Result<Opened> {
        let _ = (store, recipients, key_dir);
        not_yet()
    }

    /// Opens a vault with the keys in `key_dir`: `<vault id>/host.key`, or what `identity.txt` unwraps. Writes nothing to the store.
    ///
    /// # Errors
    /// `NoVault`, `NoKeys`, `WrongKey`, `Version`, `Damaged`.
    pub async fn open(store: Store, key_dir: &Path) -> Result<Self> {
        let _ = (store, key_dir);
        not_yet()
    }

    /// Opens a vault, or makes it where there is none.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::create`]; `Invalid` when it is encrypted to other recipients than those given.
    pub async fn open_or_create(store: Store, recipients: &[String], key_dir: &Path) -> Result<Opened> {
        let _ = (store, recipients, key_dir);
        not_yet()
    }

    /// Its id: 16 hexadecimal digits.
    pub fn id(&self) -> &str {
        ""
    }

    /// Where it is.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// To whom it is encrypted.
    pub fn recipients(&self) -> &[String] {
        &[]
    }

    /// Whether this home holds an identity, so that it can restore.
    pub fn can_restore(&self) -> bool {
        false
    }

    /// An error unless [`Self::can_restore`].
    ///
    /// # Errors
    /// `NoIdentity`.
    pub fn require_identity(&self) -> Result<()> {
        not_yet()
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
        not_yet()
    }

    /// Takes a lease, or says who holds it. Where a holder may be dead, waits at most `ttl` to find out; one of this machine that is
    /// dead is told at once. The lease beats by itself.
    ///
    /// `name`: `[a-z0-9._-]`; `holder` is for people.
    ///
    /// # Errors
    /// `Held` by one that is alive; the store's.
    pub async fn lease(&self, name: &str, holder: &str, ttl: Duration) -> Result<Lease> {
        let _ = (name, holder, ttl);
        not_yet()
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
        let _ = (fleet, environment, group, id, point);
        not_yet()
    }

    /// The ids of all points of a group, ordered.
    ///
    /// # Errors
    /// The store's.
    pub async fn point_ids(&self, fleet: &str, environment: &str, group: &str) -> Result<Vec<String>> {
        let _ = (fleet, environment, group);
        not_yet()
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
        let _ = (fleet, environment, group, id);
        not_yet()
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
        let _ = (fleet, environment, group);
        not_yet()
    }

    /// Deletes a point (retention is the caller's to decide).
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_point(&self, fleet: &str, environment: &str, group: &str, id: &str) -> Result<()> {
        let _ = (fleet, environment, group, id);
        not_yet()
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
        let _ = (fleet, environment, subject, id, proof);
        not_yet()
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
        let _ = (fleet, environment, subject);
        not_yet()
    }

    /// Verifies the whole vault, or one snapshot of it.
    ///
    /// # Errors
    /// The store's, when it does not answer. What is damaged is no error but in the result.
    pub async fn verify(&self, options: &VerifyOptions) -> Result<Verified> {
        let _ = options;
        not_yet()
    }
}
