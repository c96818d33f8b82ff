//! A vault's keys, and what is done with them.
//!
//! - The *recipients* are public keys that content is encrypted to; their *identities* are nowhere in the vault.
//! - The *bundle* is what a host that backs up holds (0600): the catalogue's identity (file lists, hashes, places), the key that names pieces, the key
//!   that authenticates, and the recipients, so that nobody who can write to the store can put a recipient of his own among them.
//! - In the store the bundle lies encrypted to the recipients: whoever has an identity can make himself a host.
//!
//! No key is in any `Debug` or error text.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret;
use age::x25519;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A piece of content is known by this many bytes of its keyed hash.
pub(crate) const PIECE_HASH_BYTES: usize = 16;
/// The keyed hash of a piece of content.
pub(crate) type PieceHash = [u8; PIECE_HASH_BYTES];

/// What this home holds of a vault's keys.
pub(crate) struct Keys {
    pub vault: String,
    pub home: PathBuf,
    pub recipients: Vec<String>,
    content_to: Vec<x25519::Recipient>,
    catalogue: x25519::Identity,
    naming: [u8; 32],
    authentication: [u8; 32],
    /// Those of this home that belong to one of the recipients.
    identities: Vec<x25519::Identity>,
}

/// The bundle, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bundle {
    version: u32,
    vault: String,
    recipients: Vec<String>,
    catalogue: String,
    naming: String,
    authentication: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl Keys {
    /// New keys for a new vault.
    pub fn generate(home: &Path, recipients: &[String]) -> Result<Self> {
        let bundle = Bundle {
            version: 1,
            vault: hex::encode(rand::random::<[u8; 8]>()),
            recipients: recipients.to_vec(),
            catalogue: x25519::Identity::generate().to_string().expose_secret().to_owned(),
            naming: hex::encode(rand::random::<[u8; 32]>()),
            authentication: hex::encode(rand::random::<[u8; 32]>()),
        };
        Self::from_bundle(bundle, home)
    }

    fn from_bundle(bundle: Bundle, home: &Path) -> Result<Self> {
        let bad =
            |what: &str| Error::Invalid(format!("the keys of vault {} have a bad {what}", bundle.vault));
        if bundle.version != 1 {
            return Err(Error::Version { version: bundle.version });
        }
        let key = |text: &str, what| -> Result<[u8; 32]> {
            hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| bad(what))
        };
        let content_to = parse_recipients(&bundle.recipients)?;
        let mut identities = read_identities(home)?;
        let public: Vec<_> = content_to.iter().map(ToString::to_string).collect();
        identities.retain(|identity| public.contains(&identity.to_public().to_string()));
        Ok(Self {
            content_to,
            identities,
            catalogue: bundle.catalogue.parse().map_err(|_| bad("catalogue identity"))?,
            naming: key(&bundle.naming, "naming key")?,
            authentication: key(&bundle.authentication, "authentication key")?,
            vault: bundle.vault,
            recipients: bundle.recipients,
            home: home.to_owned(),
        })
    }

    fn bundle(&self) -> Vec<u8> {
        let bundle = Bundle {
            version: 1,
            vault: self.vault.clone(),
            recipients: self.recipients.clone(),
            catalogue: self.catalogue.to_string().expose_secret().to_owned(),
            naming: hex::encode(self.naming),
            authentication: hex::encode(self.authentication),
        };
        // A struct of strings always has a JSON form.
        serde_json::to_vec(&bundle).unwrap_or_default()
    }

    /// The bundle, encrypted to the recipients.
    pub fn wrapped(&self) -> Result<Vec<u8>> {
        encrypt(&self.bundle(), self.content_to.iter().map(|r| r as _))
    }

    /// Keys from the wrapped bundle, by an identity in `home`.
    pub fn unwrap(vault: &str, wrapped: &[u8], home: &Path) -> Result<Self> {
        let identities = read_identities(home)?;
        let here = || home.display().to_string();
        if identities.is_empty() {
            return Err(Error::NoKeys { vault: vault.to_owned(), home: here() });
        }
        let plain = decrypt(wrapped, &identities)
            .map_err(|_| Error::WrongKey { vault: vault.to_owned(), home: here() })?;
        Self::from_bundle(parse_bundle(&plain, vault)?, home)
    }

    /// Keys that this home keeps for the vault, if it does.
    pub fn load(vault: &str, home: &Path) -> Result<Option<Self>> {
        let path = host_key(home, vault);
        match fs::read(&path) {
            Ok(bytes) => Self::from_bundle(parse_bundle(&bytes, vault)?, home).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(format!("read {}", path.display()), e)),
        }
    }

    /// Keeps the bundle in this home.
    pub fn save(&self) -> Result<()> {
        let path = host_key(&self.home, &self.vault);
        write_private(&path, &self.bundle(), true)
            .map(drop)
            .map_err(|e| Error::io(format!("write {}", path.display()), e))
    }

    /// The folder that they are kept in.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Whether content can be decrypted here.
    pub fn has_identity(&self) -> bool {
        !self.identities.is_empty()
    }

    /// An error unless content can be decrypted here.
    pub fn require_identity(&self) -> Result<()> {
        if self.has_identity() {
            return Ok(());
        }
        Err(Error::NoIdentity { vault: self.vault.clone(), home: self.home.display().to_string() })
    }

    /// Encrypts content, which hosts cannot read again.
    pub fn encrypt_content(&self, plain: &[u8]) -> Result<Vec<u8>> {
        encrypt(plain, self.content_to.iter().map(|r| r as _))
    }

    /// As [`Self::encrypt_content`], into a buffer that is there already.
    pub fn encrypt_content_into(&self, plain: &[u8], cipher: &mut Vec<u8>) -> Result<()> {
        encrypt_into(plain, self.content_to.iter().map(|r| r as _), cipher)
    }

    /// Encrypts what hosts read again: to the catalogue and to the recipients.
    pub fn encrypt_catalogue(&self, plain: &[u8]) -> Result<Vec<u8>> {
        let catalogue = self.catalogue.to_public();
        let all = std::iter::once(&catalogue as &dyn age::Recipient);
        encrypt(plain, all.chain(self.content_to.iter().map(|r| r as _)))
    }

    /// Decrypts content. `object` is named when it is damaged.
    pub fn decrypt_content(&self, object: &str, cipher: &[u8]) -> Result<Vec<u8>> {
        self.require_identity()?;
        decrypt(cipher, &self.identities).map_err(|reason| Error::damaged(object, reason))
    }

    /// Decrypts what was encrypted to the catalogue.
    pub fn decrypt_catalogue(&self, object: &str, cipher: &[u8]) -> Result<Vec<u8>> {
        let identities = std::slice::from_ref(&self.catalogue);
        decrypt(cipher, identities).map_err(|reason| Error::damaged(object, reason))
    }

    /// The identities that decrypt content.
    pub fn identities(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.identities.iter().map(|identity| identity as _)
    }

    /// What a piece of content is known by. Keyed, so that nobody without the key can tell whether a known piece is in the vault.
    pub fn piece_hash(&self, piece: &[u8]) -> PieceHash {
        let mut hash = [0; PIECE_HASH_BYTES];
        let whole = blake3::keyed_hash(&self.naming, piece);
        hash.copy_from_slice(&whole.as_bytes()[..PIECE_HASH_BYTES]);
        hash
    }

    /// Authenticates parts of a text; each part is preceded by its length, so that no two lists of parts look the same.
    pub fn authenticate(&self, parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.authentication);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize()
    }

    /// The first 12 bytes of [`Self::authenticate`], in hexadecimal: what objects carry in their names.
    pub fn tag(&self, parts: &[&[u8]]) -> String {
        hex::encode(&self.authenticate(parts).as_bytes()[..TAG_BYTES])
    }
}

const TAG_BYTES: usize = 12;
/// How long a tag is, in hexadecimal digits.
pub(crate) const TAG_DIGITS: usize = TAG_BYTES * 2;

/// Reads `age1…` texts.
pub(crate) fn parse_recipients(texts: &[String]) -> Result<Vec<x25519::Recipient>> {
    let parse = |text: &String| {
        text.trim().parse().map_err(|_| Error::Invalid(format!("`{text}` is not an age recipient (age1…)")))
    };
    let parsed = texts.iter().map(parse).collect::<Result<Vec<_>>>()?;
    if parsed.is_empty() {
        return Err(Error::Invalid("a vault needs at least one recipient".into()));
    }
    Ok(parsed)
}

/// The public key of the first identity of this home, which is made where there is none; and whether it was.
pub(crate) fn identity_or_new(home: &Path) -> Result<(String, Option<PathBuf>)> {
    let path = identity_file(home);
    let mut made = None;
    if !path.exists() {
        let identity = x25519::Identity::generate();
        let text = format!(
            "# The identity of this home's vaults. Without it nothing that was backed up can be restored: keep a copy elsewhere.\n\
             # public key: {}\n{}\n",
            identity.to_public(),
            identity.to_string().expose_secret()
        );
        let new = write_private(&path, text.as_bytes(), false)
            .map_err(|e| Error::io(format!("write {}", path.display()), e))?;
        made = new.then(|| path.clone());
    }
    let identities = read_identities(home)?;
    let first = identities
        .first()
        .ok_or_else(|| Error::Invalid(format!("{} holds no identity (AGE-SECRET-KEY-1…)", path.display())))?;
    Ok((first.to_public().to_string(), made))
}

fn identity_file(home: &Path) -> PathBuf {
    home.join("identity.txt")
}

fn host_key(home: &Path, vault: &str) -> PathBuf {
    home.join(vault).join("host.key")
}

/// The identities of this home, in age's own file format.
fn read_identities(home: &Path) -> Result<Vec<x25519::Identity>> {
    let path = identity_file(home);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(format!("read {}", path.display()), e)),
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parse = |line: &str| {
        line.parse()
            .map_err(|_| Error::Invalid(format!("{} holds a line that is no identity", path.display())))
    };
    lines.map(parse).collect()
}

fn parse_bundle(bytes: &[u8], vault: &str) -> Result<Bundle> {
    let bundle: Bundle = serde_json::from_slice(bytes)
        .map_err(|_| Error::Invalid(format!("the keys of vault {vault} cannot be read")))?;
    if bundle.vault != vault {
        return Err(Error::Invalid(format!("the keys of vault {vault} are those of vault {}", bundle.vault)));
    }
    Ok(bundle)
}

fn encrypt<'a>(plain: &[u8], to: impl Iterator<Item = &'a dyn age::Recipient>) -> Result<Vec<u8>> {
    // A tag for every 64 KiB, and the header.
    let mut cipher = Vec::with_capacity(plain.len() + plain.len() / 4096 + 1024);
    encrypt_into(plain, to, &mut cipher)?;
    Ok(cipher)
}

fn encrypt_into<'a>(
    plain: &[u8],
    to: impl Iterator<Item = &'a dyn age::Recipient>,
    cipher: &mut Vec<u8>,
) -> Result<()> {
    let failed = |e: std::io::Error| Error::io("encrypt", e);
    let encryptor = age::Encryptor::with_recipients(to).map_err(|e| Error::Invalid(e.to_string()))?;
    cipher.clear();
    let mut writer = encryptor.wrap_output(cipher).map_err(failed)?;
    writer.write_all(plain).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(())
}

fn decrypt(cipher: &[u8], identities: &[x25519::Identity]) -> Result<Vec<u8>, String> {
    let decryptor = age::Decryptor::new_buffered(cipher).map_err(|_| "it is not an age file".to_owned())?;
    let mut reader =
        decryptor.decrypt(identities.iter().map(|identity| identity as _)).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => "it is encrypted to somebody else".to_owned(),
            _ => "its header is not what was written".to_owned(),
        })?;
    let mut plain = Vec::with_capacity(cipher.len());
    reader.read_to_end(&mut plain).map_err(|_| "its bytes are not those that were written".to_owned())?;
    Ok(plain)
}

/// Where a home keeps which vault it last opened at which place: lines of `ID STORE`.
const KNOWN: &str = "known";

/// The id of the vault that was last opened at a place, if one was.
pub(crate) fn known(home: &Path, store: &str) -> Result<Option<String>> {
    let path = home.join(KNOWN);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("read {}", path.display()), e)),
    };
    let line = text.lines().filter_map(|line| line.split_once(' ')).find(|(_, place)| *place == store);
    Ok(line.map(|(id, _)| id.to_owned()))
}

/// Remembers it, if that can be: a home that cannot be written to opens its vaults all the same. Two that do so at once may forget one of two
/// places; it is remembered again when it is next opened.
pub(crate) fn know(home: &Path, store: &str, id: &str) {
    if matches!(known(home, store), Ok(Some(known)) if known == id) || store.contains('\n') {
        return;
    }
    let path = home.join(KNOWN);
    let before = fs::read_to_string(&path).unwrap_or_default();
    let others = before.lines().filter(|line| line.split_once(' ').is_none_or(|(_, place)| place != store));
    let mut text: String = others.flat_map(|line| [line, "\n"]).collect();
    text.push_str(&format!("{id} {store}\n"));
    if let Err(error) = write_private(&path, text.as_bytes(), true) {
        tracing::debug!(path = %path.display(), %error, "remember where a vault is");
    }
}

/// Writes a file that is nobody else's to read, whole and durable; says whether it did: without `replace`, what is there stays.
fn write_private(path: &Path, bytes: &[u8], replace: bool) -> std::io::Result<bool> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let temporary = folder.join(format!(".new-{}-{:016x}", std::process::id(), rand::random::<u64>()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| match replace {
        true => fs::rename(&temporary, path).map(|()| true),
        false => match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            other => other.map(|()| true),
        },
    });
    let _ = fs::remove_file(&temporary);
    let written = written?;
    fs::File::open(folder)?.sync_all()?;
    Ok(written)
}
