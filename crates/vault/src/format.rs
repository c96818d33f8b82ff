//! `format.json`, the only object in clear: which version of the format this is, and where the keys are.
//!
//! It carries a plain hash, so that a flipped bit is told apart from a strange vault by somebody without keys, and a keyed one for those
//! who hold them. Recipients are repeated in it for people; the ones that count are in the bundle.

use mainstay_model::Instant;
use serde::{Deserialize, Serialize};

use crate::keys::Keys;
use crate::{Error, Result};

/// Where it is.
pub(crate) const FORMAT_KEY: &str = "format.json";
/// Where the keys of a vault are.
pub(crate) fn keys_name(vault: &str) -> String {
    format!("keys/{vault}.age")
}

/// The only version there is.
const VERSION: u32 = 1;

/// What the object holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Format {
    pub mainstay_vault: u32,
    pub id: String,
    pub created_at: Instant,
    pub recipients: Vec<String>,
    pub keys: KeyObject,
    pub mac: String,
    pub check: String,
}

/// The wrapped bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyObject {
    pub name: String,
    pub hash: String,
}

impl Format {
    pub fn new(keys: &Keys, name: String, wrapped: &[u8]) -> Self {
        let mut format = Self {
            mainstay_vault: VERSION,
            id: keys.vault.clone(),
            created_at: Instant::now(),
            recipients: keys.recipients.clone(),
            keys: KeyObject { name, hash: blake3::hash(wrapped).to_hex().to_string() },
            mac: String::new(),
            check: String::new(),
        };
        format.mac = keys.authenticate(&[b"format", &format.blank()]).to_hex().to_string();
        format.check = format.plain_hash();
        format
    }

    pub fn bytes(&self) -> Vec<u8> {
        // A struct of strings always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads it without keys.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            mainstay_vault: u32,
        }
        let damaged = |reason| Error::damaged(FORMAT_KEY, reason);
        let format = match serde_json::from_slice::<Self>(bytes) {
            Ok(format) => format,
            Err(_) => {
                return Err(match serde_json::from_slice::<Version>(bytes) {
                    Ok(v) if v.mainstay_vault != VERSION => Error::Version { version: v.mainstay_vault },
                    _ => damaged("it is not the format of a vault"),
                });
            }
        };
        if format.check != format.plain_hash() || format.bytes() != bytes {
            return Err(damaged("its hash is wrong"));
        }
        if format.mainstay_vault != VERSION {
            return Err(Error::Version { version: format.mainstay_vault });
        }
        let name_ok = |text: &str| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !name_ok(&format.id) || format.keys.name != keys_name(&format.id) {
            return Err(damaged("it names no vault"));
        }
        Ok(format)
    }

    /// Whether somebody with these keys wrote it.
    pub fn is_of(&self, keys: &Keys) -> bool {
        let mac = keys.authenticate(&[b"format", &self.blank()]).to_hex().to_string();
        self.mac == mac && self.recipients == keys.recipients && self.id == keys.vault
    }

    fn plain_hash(&self) -> String {
        let unchecked = Self { check: String::new(), ..self.clone() };
        blake3::hash(&unchecked.bytes()).to_hex().to_string()
    }

    fn blank(&self) -> Vec<u8> {
        Self { check: String::new(), mac: String::new(), ..self.clone() }.bytes()
    }
}
