//! The frames of PostgreSQL's protocol, from a socket that may say anything.
//!
//! Refuses frames above [`FRAME_BYTES_MAX`]: nothing that a replication connection legitimately sends comes near it, and
//! a length is foreign bytes. Reading is cancel-safe: a frame that was read in part stays in the buffer.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{ReplicationError as Error, ServerError};

/// The longest frame that is taken. Log comes in frames of at most 128 KiB, archives in smaller ones; rows are short.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
const READ_BYTES: usize = 256 << 10;

/// A socket: TCP or unix.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// One message of the server.
#[derive(Debug)]
pub(crate) struct Frame {
    pub tag: u8,
    pub body: Bytes,
}

pub(crate) struct Wire {
    socket: Box<dyn Socket>,
    input: BytesMut,
}

impl Wire {
    pub fn new(socket: impl Socket + 'static) -> Self {
        Self { socket: Box::new(socket), input: BytesMut::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.socket.write_all(bytes).await?;
        self.socket.flush().await?;
        Ok(())
    }

    /// The next frame. Errors of the server are given as errors; notices and parameters are passed over.
    pub async fn frame(&mut self) -> Result<Frame, Error> {
        loop {
            while let Some(frame) = split(&mut self.input)? {
                match frame.tag {
                    b'E' => return Err(Error::Server(ServerError::parse(&frame.body))),
                    b'N' | b'S' | b'A' => {}
                    _ => return Ok(frame),
                }
            }
            self.input.reserve(READ_BYTES);
            if self.socket.read_buf(&mut self.input).await? == 0 {
                return Err(Error::Closed);
            }
        }
    }
}

/// Takes one whole frame from the buffer's front, if there is one.
fn split(input: &mut BytesMut) -> Result<Option<Frame>, Error> {
    let Some((&tag, rest)) = input.split_first() else { return Ok(None) };
    let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if !(4..=FRAME_BYTES_MAX).contains(&length) {
        return Err(Error::Protocol(format!("frame {:?} of {length} bytes", char::from(tag))));
    }
    if input.len() <= length {
        return Ok(None);
    }
    let mut frame = input.split_to(length + 1);
    frame.advance(5);
    Ok(Some(Frame { tag, body: frame.freeze() }))
}

/// A frame of ours: tag, length, and what `fill` writes.
pub(crate) fn message(tag: u8, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![tag, 0, 0, 0, 0];
    fill(&mut bytes);
    let length = (bytes.len() - 1) as u32;
    bytes[1..5].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// The columns of a data row, `None` for NULL.
pub(crate) fn row(mut body: Bytes) -> Result<Vec<Option<Bytes>>, Error> {
    let short = || Error::Protocol("data row cut short".into());
    let columns = body.try_get_u16().map_err(|_| short())?;
    let mut row = Vec::new();
    for _ in 0..columns {
        let length = body.try_get_i32().map_err(|_| short())?;
        row.push(match usize::try_from(length) {
            Err(_) => None,
            Ok(length) if length <= body.len() => Some(body.split_to(length)),
            Ok(_) => return Err(short()),
        });
    }
    Ok(row)
}

/// Splits a zero-terminated text from the front.
pub(crate) fn cstr(body: &mut Bytes) -> Result<Bytes, Error> {
    let end = body
        .iter()
        .position(|byte| *byte == 0)
        .ok_or_else(|| Error::Protocol("text without its end".into()))?;
    let text = body.split_to(end);
    body.advance(1);
    Ok(text)
}

impl ServerError {
    fn parse(mut body: &[u8]) -> Self {
        let mut error = Self::default();
        while let Some((&field, rest)) = body.split_first() {
            let Some(end) = rest.iter().position(|byte| *byte == 0) else { break };
            let text = String::from_utf8_lossy(&rest[..end.min(2000)]).into_owned();
            match field {
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = text,
                b'H' => error.hint = text,
                _ => {}
            }
            body = &rest[end + 1..];
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_split_and_lengths_are_limited() {
        let mut input = BytesMut::from(&b"Z\0\0\0\x05ID\0"[..]);
        let frame = split(&mut input).unwrap().unwrap();
        assert_eq!((frame.tag, &frame.body[..]), (b'Z', &b"I"[..]));
        assert!(split(&mut input).unwrap().is_none());
        assert!(split(&mut BytesMut::from(&b"D\xff\xff\xff\xff"[..])).is_err());
        assert!(split(&mut BytesMut::from(&b"D\0\0\0\x03"[..])).is_err());
    }

    proptest::proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = split(&mut BytesMut::from(&bytes[..]));
            let _ = row(Bytes::from(bytes.clone()));
            let _ = cstr(&mut Bytes::from(bytes.clone()));
            let _ = ServerError::parse(&bytes);
        }
    }
}
