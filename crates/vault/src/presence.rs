//! Whether what a snapshot needs is there: by listing, and without reading any content.

use std::collections::BTreeMap;

use crate::index::pack_key;
use crate::prune::read_packs;
use crate::{ClusterVault, Error, Result};

/// Keys of packs, with their sizes.
pub type Packs = BTreeMap<String, u64>;

impl ClusterVault {
    /// The packs that a snapshot needs.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` when its manifest or its list of packs is; the store's.
    pub async fn packs_needed(&self, snapshot: &str) -> Result<Packs> {
        let manifest = self.find(snapshot).await?;
        let prefix = format!("{}/{}", self.prefix(), manifest.incarnation);
        let packs = read_packs(self, &format!("{prefix}/snap/{snapshot}"), &manifest.packs.name).await?;
        Ok(packs.into_iter().map(|pack| (pack_key(&prefix, &pack.id), pack.bytes)).collect())
    }

    /// The packs of an incarnation that are there.
    ///
    /// # Errors
    /// The store's.
    pub async fn packs_stored(&self, incarnation: &str) -> Result<Packs> {
        let listed = self.vault().store().list(&format!("{}/{incarnation}/packs", self.prefix())).await?;
        Ok(listed.into_iter().map(|object| (object.key, object.bytes)).collect())
    }
}

/// The first pack that is needed and not there, or not whole, as `Damaged`.
pub fn missing_pack(needed: &Packs, stored: &Packs) -> Option<Error> {
    needed.iter().find_map(|(key, bytes)| match stored.get(key) {
        None => Some(Error::damaged(key, "it is missing")),
        Some(found) if found != bytes => {
            Some(Error::damaged(key, format!("it is of {found} bytes, and {bytes} were written")))
        }
        Some(_) => None,
    })
}
