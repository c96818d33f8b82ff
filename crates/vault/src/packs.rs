//! Reading packs: whole ones, or the frames of one that are wanted.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use mainstay_store::{Kind, Store};

use crate::index::{Extent, FRAME_BYTES_MAX};
use crate::keys::Keys;
use crate::{Error, Result, Vault};

/// A pack is fetched whole when at least one part in so many of it is wanted.
const WHOLE_FROM: u64 = 4;
/// A range is asked for in steps of this, so that frames side by side come in one request.
const RANGE_BYTES: u64 = 512 << 10;

/// A pack that is open for reading. What it gives was authenticated by age; pages' hashes are for the caller to compare.
pub(crate) struct Pack {
    key: String,
    content: Content,
}

enum Content {
    Whole(Vec<u8>),
    Ranges(Box<age::stream::StreamReader<StoreRange>>),
}

impl Pack {
    /// Opens a pack of `bytes` ciphertext, of which about `wanted` bytes will be read. Blocks.
    pub fn open(vault: &Vault, key: String, bytes: u64, wanted: u64) -> Result<Self> {
        vault.require_identity()?;
        let content = if wanted >= bytes / WHOLE_FROM || bytes <= RANGE_BYTES {
            let (store, wanted_key) = (vault.store().clone(), key.clone());
            let cipher = mainstay_store::wait(async move { store.get(&wanted_key).await });
            let cipher = cipher.map_err(|error| missing(error, &key))?;
            Content::Whole(vault.keys().decrypt_content(&key, &cipher)?)
        } else {
            Content::Ranges(Box::new(open_ranges(vault, &key, bytes)?))
        };
        Ok(Self { key, content })
    }

    /// Decompresses the frame that an extent names into `frame`.
    pub fn frame(
        &mut self,
        extent: &Extent,
        decompressor: &mut zstd::bulk::Decompressor<'static>,
        packed: &mut Vec<u8>,
        frame: &mut Vec<u8>,
    ) -> Result<()> {
        let damaged = |reason: &str| Error::damaged(&self.key, reason);
        let length =
            usize::try_from(extent.packed).map_err(|_| damaged("its index names an impossible frame"))?;
        let bytes: &[u8] = match &mut self.content {
            Content::Whole(plain) => {
                let start = usize::try_from(extent.offset).ok();
                let range = start.and_then(|start| plain.get(start..start.checked_add(length)?));
                range.ok_or_else(|| damaged("it ends before a frame that its index names"))?
            }
            Content::Ranges(reader) => {
                packed.resize(length, 0);
                let read =
                    reader.seek(SeekFrom::Start(extent.offset)).and_then(|_| reader.read_exact(packed));
                read.map_err(|error| range_error(error, &self.key))?;
                packed
            }
        };
        frame.clear();
        frame.reserve(usize::try_from(FRAME_BYTES_MAX).unwrap_or(0));
        decompressor
            .decompress_to_buffer(bytes, frame)
            .map_err(|_| Error::damaged(&self.key, "a frame of it does not decompress"))?;
        Ok(())
    }
}

fn open_ranges(vault: &Vault, key: &str, bytes: u64) -> Result<age::stream::StreamReader<StoreRange>> {
    let source = StoreRange::new(vault.store().clone(), key, bytes);
    let decryptor = age::Decryptor::new(source).map_err(|error| header_error(error, key))?;
    let keys: &Arc<Keys> = vault.keys();
    decryptor.decrypt(keys.identities()).map_err(|error| header_error(error, key))
}

fn header_error(error: age::DecryptError, key: &str) -> Error {
    match error {
        age::DecryptError::Io(error) => range_error(error, key),
        _ => Error::damaged(key, "its header is not what was written"),
    }
}

/// A store's error that came through a reader, or what the reader found wrong.
fn range_error(error: std::io::Error, key: &str) -> Error {
    match error.downcast::<mainstay_store::Error>() {
        Ok(store) => missing(store, key),
        Err(_) => Error::damaged(key, "its bytes are not those that were written"),
    }
}

fn missing(error: mainstay_store::Error, key: &str) -> Error {
    match error.kind {
        Kind::NotFound => Error::damaged(key, "it is missing"),
        _ => error.into(),
    }
}

/// An object that is read in ranges, as if it were a file.
pub(crate) struct StoreRange {
    store: Store,
    key: String,
    size: u64,
    at: u64,
    buffer: bytes::Bytes,
    buffer_at: u64,
}

impl StoreRange {
    fn new(store: Store, key: &str, size: u64) -> Self {
        Self { store, key: key.to_owned(), size, at: 0, buffer: bytes::Bytes::new(), buffer_at: 0 }
    }
}

impl Read for StoreRange {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at >= self.size || into.is_empty() {
            return Ok(0);
        }
        let inside = self.at.checked_sub(self.buffer_at).filter(|skip| *skip < self.buffer.len() as u64);
        let skip = match inside {
            Some(skip) => skip,
            None => {
                let (store, key, at) = (self.store.clone(), self.key.clone(), self.at);
                let got = mainstay_store::wait(async move { store.get_range(&key, at, RANGE_BYTES).await });
                self.buffer = got.map_err(std::io::Error::other)?;
                self.buffer_at = self.at;
                0
            }
        };
        let available = &self.buffer[usize::try_from(skip).unwrap_or(usize::MAX).min(self.buffer.len())..];
        let n = available.len().min(into.len());
        into[..n].copy_from_slice(&available[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for StoreRange {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
