//! Small objects: one line of JSON that tells when one bit of it is wrong, and that it was written by somebody with the vault's keys, under this very
//! name.
//!
//! `{"mainstay":1,"kind":"manifest","sealed":true,"body":"…","mac":"…"}`: the body is JSON text, or (sealed) base64 of an age file of it,
//! encrypted to the catalogue and the recipients. What is read must be, byte for byte, what this module writes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::keys::Keys;
use crate::{Error, Result};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    mainstay: u32,
    kind: String,
    sealed: bool,
    body: String,
    mac: String,
}

impl Envelope {
    fn authenticate(&self, keys: &Keys, key: &str) -> String {
        let sealed: &[u8] = if self.sealed { b"sealed" } else { b"clear" };
        let parts =
            [b"small-object".as_slice(), key.as_bytes(), self.kind.as_bytes(), sealed, self.body.as_bytes()];
        keys.authenticate(&parts).to_hex().to_string()
    }
}

/// Seals `value` for the object `key`.
pub(crate) fn seal<T: Serialize>(
    keys: &Keys,
    key: &str,
    kind: &str,
    secret: bool,
    value: &T,
) -> Result<Vec<u8>> {
    let json =
        serde_json::to_string(value).map_err(|e| Error::Invalid(format!("write {kind} as JSON: {e}")))?;
    let body = if secret { BASE64.encode(keys.encrypt_catalogue(json.as_bytes())?) } else { json };
    let mut envelope =
        Envelope { mainstay: 1, kind: kind.to_owned(), sealed: secret, body, mac: String::new() };
    envelope.mac = envelope.authenticate(keys, key);
    // A struct of strings always has a JSON form.
    Ok(serde_json::to_vec(&envelope).unwrap_or_default())
}

/// Opens what [`seal`] made for the object `key`.
pub(crate) fn unseal<T: DeserializeOwned>(keys: &Keys, key: &str, kind: &str, bytes: &[u8]) -> Result<T> {
    let damaged = |reason: &str| Error::damaged(key, reason);
    let envelope = check(keys, key, bytes)?;
    if envelope.kind != kind {
        return Err(damaged("it is of another kind than its name says"));
    }
    let json = match envelope.sealed {
        false => envelope.body.into_bytes(),
        true => {
            let cipher = BASE64.decode(&envelope.body).map_err(|_| damaged("its body is not base64"))?;
            keys.decrypt_catalogue(key, &cipher)?
        }
    };
    serde_json::from_slice(&json).map_err(|e| damaged(&format!("its content is not a {kind}: {e}")))
}

/// Checks a small object of any kind without looking into it.
pub(crate) fn verify(keys: &Keys, key: &str, bytes: &[u8]) -> Result<()> {
    check(keys, key, bytes).map(drop)
}

fn check(keys: &Keys, key: &str, bytes: &[u8]) -> Result<Envelope> {
    let damaged = |reason: &str| Error::damaged(key, reason);
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|_| damaged("it is not what a small object looks like"))?;
    if envelope.mainstay != 1 {
        return Err(Error::Version { version: envelope.mainstay });
    }
    // JSON has many ways to write one thing; only ours is right, so that no bit goes unnoticed.
    if serde_json::to_vec(&envelope).ok().as_deref() != Some(bytes) {
        return Err(damaged("it is not written as it was"));
    }
    // Comparing in constant time matters to nobody here: who can write objects sees no answers.
    if envelope.mac != envelope.authenticate(keys, key) {
        return Err(damaged("its authentication is wrong"));
    }
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::OnceLock;

    fn keys() -> &'static Keys {
        static KEYS: OnceLock<Keys> = OnceLock::new();
        KEYS.get_or_init(|| {
            let recipient = age::x25519::Identity::generate().to_public().to_string();
            Keys::generate(std::path::Path::new("/nowhere"), &[recipient]).unwrap()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn what_is_sealed_is_read_under_its_own_name_only(text in "\\PC{0,80}", secret in any::<bool>()) {
            let bytes = seal(keys(), "a/b", "note", secret, &text).unwrap();
            prop_assert_eq!(unseal::<String>(keys(), "a/b", "note", &bytes).unwrap(), text);
            prop_assert!(unseal::<String>(keys(), "a/c", "note", &bytes).is_err());
            prop_assert!(unseal::<String>(keys(), "a/b", "other", &bytes).is_err());
        }

        #[test]
        fn no_changed_byte_goes_unnoticed(secret in any::<bool>(), at in any::<prop::sample::Index>(), by in 1_u8..=255) {
            let mut bytes = seal(keys(), "a/b", "note", secret, &"some text").unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert!(verify(keys(), "a/b", &bytes).is_err());
            prop_assert!(unseal::<String>(keys(), "a/b", "note", &bytes).is_err());
        }

        #[test]
        fn foreign_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(verify(keys(), "a", &bytes).is_err());
            prop_assert!(crate::format::Format::parse(&bytes).is_err());
            prop_assert!(crate::index::open_part(keys(), "a", "index-00000-0", &bytes).is_err());
            prop_assert!(keys().decrypt_catalogue("a", &bytes).is_err());
        }
    }

    #[test]
    fn no_changed_byte_of_the_format_goes_unnoticed() {
        let format = crate::format::Format::new(keys(), crate::format::keys_name(&keys().vault), b"wrapped");
        let bytes = format.bytes();
        assert!(crate::format::Format::parse(&bytes).unwrap().is_of(keys()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(crate::format::Format::parse(&changed).is_err(), "byte {at}");
        }
        // A later version says so, and not that it is damaged.
        let later = br#"{"mainstay_vault":2,"anything":"else"}"#;
        assert!(matches!(crate::format::Format::parse(later), Err(Error::Version { version: 2 })));
    }
}
