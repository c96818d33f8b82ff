//! Reading packs: whole ones, or the frames of one that are wanted.

use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};

use mainstay_store::{Kind, Store};

use crate::index::{Extent, FRAME_BYTES_MAX};
use crate::{Error, Result, Vault};

/// A pack is fetched whole when at least one part in so many of it is wanted.
const WHOLE_FROM: u64 = 4;
/// A range is asked for in steps of this, so that frames side by side come in one request.
const RANGE_BYTES: u64 = 512 << 10;

/// A pack that is open for reading, decrypted as far as it is read. What it gives was authenticated by age; pieces' hashes are for the caller to
/// compare.
pub(crate) struct Pack {
    key: String,
    plain: Box<dyn Plain>,
}

trait Plain: Read + Seek + Send {}
impl<T: Read + Seek + Send> Plain for T {}

impl Pack {
    /// Opens a pack of `bytes` ciphertext, of which about `wanted` bytes will be read. Blocks.
    pub fn open(vault: &Vault, key: String, bytes: u64, wanted: u64) -> Result<Self> {
        vault.require_identity()?;
        let plain = if wanted >= bytes / WHOLE_FROM || bytes <= RANGE_BYTES {
            let (store, wanted_key) = (vault.store().clone(), key.clone());
            let cipher = mainstay_store::wait(async move { store.get(&wanted_key).await });
            let cipher = cipher.map_err(|error| missing(error, &key))?;
            decrypted(vault, &key, Cursor::new(cipher))?
        } else {
            let ranges = StoreRange::new(vault.store().clone(), &key, bytes);
            decrypted(vault, &key, BufReader::with_capacity(64 << 10, ranges))?
        };
        Ok(Self { key, plain })
    }

    /// Decompresses the frame that an extent names into `frame`. Fastest in the order of the frames.
    pub fn frame(
        &mut self,
        extent: &Extent,
        decompressor: &mut zstd::bulk::Decompressor<'static>,
        packed: &mut Vec<u8>,
        frame: &mut Vec<u8>,
    ) -> Result<()> {
        let length = usize::try_from(extent.packed)
            .map_err(|_| Error::damaged(&self.key, "its index names an impossible frame"))?;
        packed.resize(length, 0);
        let read =
            self.plain.seek(SeekFrom::Start(extent.offset)).and_then(|_| self.plain.read_exact(packed));
        read.map_err(|error| range_error(error, &self.key))?;
        frame.clear();
        frame.reserve(usize::try_from(FRAME_BYTES_MAX).unwrap_or(0));
        decompressor
            .decompress_to_buffer(packed, frame)
            .map_err(|_| Error::damaged(&self.key, "a frame of it does not decompress"))?;
        Ok(())
    }
}

fn decrypted(
    vault: &Vault,
    key: &str,
    cipher: impl BufRead + Seek + Send + 'static,
) -> Result<Box<dyn Plain>> {
    let decryptor = age::Decryptor::new_buffered(cipher).map_err(|error| header_error(error, key))?;
    let plain = decryptor.decrypt(vault.keys().identities()).map_err(|error| header_error(error, key))?;
    Ok(Box::new(plain))
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever a pack holds and an index says of it, the answer is bytes or damage.
        #[test]
        fn foreign_frames_never_panic(
            plain in proptest::collection::vec(any::<u8>(), 0..400),
            offset in 0_u64..500,
            packed in 0_u64..500,
        ) {
            let mut pack = Pack { key: "p".into(), plain: Box::new(Cursor::new(plain)) };
            let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
            let extent = Extent { at: 0, length: 1, pack: 0, offset, packed, skip: 0 };
            let read = pack.frame(&extent, &mut decompressor, &mut Vec::new(), &mut Vec::new());
            let told = matches!(read, Ok(()) | Err(Error::Damaged { .. }));
            prop_assert!(told);
        }

        /// Frames in any order, as if the pack were a file.
        #[test]
        fn frames_are_found(lengths in proptest::collection::vec(1_usize..90_000, 1..6), order in any::<u64>()) {
            let mut plain = Vec::new();
            let mut extents = Vec::new();
            for (n, length) in lengths.iter().enumerate() {
                let frame = zstd::bulk::compress(&vec![n as u8; *length], 3).unwrap();
                extents.push(Extent {
                    at: n as u64,
                    length: *length as u64,
                    pack: 0,
                    offset: plain.len() as u64,
                    packed: frame.len() as u64,
                    skip: 0,
                });
                plain.extend_from_slice(&frame);
            }
            let first = order as usize % extents.len();
            extents.rotate_left(first);
            let mut pack = Pack { key: "p".into(), plain: Box::new(Cursor::new(plain)) };
            let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
            let (mut packed, mut frame) = (Vec::new(), Vec::new());
            for extent in extents {
                pack.frame(&extent, &mut decompressor, &mut packed, &mut frame).unwrap();
                prop_assert_eq!(frame.len() as u64, extent.length);
                prop_assert!(frame.iter().all(|b| u64::from(*b) == extent.at));
            }
        }
    }
}
