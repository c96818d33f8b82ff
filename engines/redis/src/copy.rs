//! The copy that comes first on a replication link: an RDB file, read on a thread of its own.
//!
//! The server sends it in pieces of 16 KiB. Whoever waits for each of them, on the server's own machine, takes the processor from the process that
//! makes them, tens of thousands of times; and an event loop wakes up for each even while nobody reads. So the socket is taken
//! out of the event loop, read when something is likely to be there, and left alone in between.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

use crate::link::{LinkError, check, first_line};

/// How much is read from the socket at once.
const READ_BYTES: usize = 256 * 1024;
/// How long the socket is left alone when little was there.
const PAUSE: Duration = Duration::from_millis(4);
/// The length of the mark that ends a copy without a length.
const MARK_BYTES: usize = 40;

/// A copy on its way. Dropping it closes the link.
#[derive(Debug)]
pub struct Copy {
    socket: std::net::TcpStream,
    buffer: BytesMut,
    body: Body,
    patience: Duration,
    /// Since when nothing was there: not since anything came, as nobody looks while the vault takes its time.
    silent: Option<Instant>,
}

#[derive(Debug)]
enum Body {
    /// The line that says how the copy comes has not been read.
    Unread,
    /// So many bytes of it are still to come.
    Length { left: u64 },
    /// It ends at this mark.
    Mark([u8; MARK_BYTES]),
    /// It is over.
    Over,
}

impl Copy {
    /// `buffer` is what came already; `socket` does not block.
    pub(crate) fn new(socket: std::net::TcpStream, buffer: BytesMut, patience: Duration) -> Copy {
        Copy { socket, buffer, body: Body::Unread, patience, silent: None }
    }

    /// The next piece of at most 256 KiB; `None` when it is over. Blocks for a few milliseconds at a time, and asks `go_on` in between.
    ///
    /// # Errors
    /// As [`LinkError`], and those of `go_on`.
    pub fn next<E: From<LinkError>>(
        &mut self,
        go_on: impl Fn() -> Result<(), E>,
    ) -> Result<Option<Bytes>, E> {
        loop {
            match &mut self.body {
                Body::Over => return Ok(None),
                Body::Unread => match self.head()? {
                    Some(body) => self.body = body,
                    None => self.fill(&go_on)?,
                },
                Body::Length { left: 0 } => self.body = Body::Over,
                Body::Length { left } if !self.buffer.is_empty() => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                    *left -= take as u64;
                    return Ok(Some(self.buffer.split_to(take).freeze()));
                }
                Body::Mark(mark) => match memchr::memmem::find(&self.buffer, &mark[..]) {
                    Some(0) => {
                        self.buffer.advance(MARK_BYTES);
                        self.body = Body::Over;
                    }
                    Some(at) => return Ok(Some(self.buffer.split_to(at).freeze())),
                    None if self.buffer.len() >= MARK_BYTES => {
                        // The mark may have begun in the last bytes.
                        let sure = self.buffer.len() - (MARK_BYTES - 1);
                        return Ok(Some(self.buffer.split_to(sure).freeze()));
                    }
                    None => self.fill(&go_on)?,
                },
                Body::Length { .. } => self.fill(&go_on)?,
            }
        }
    }

    /// How the copy comes, once that line is there.
    fn head(&mut self) -> Result<Option<Body>, LinkError> {
        let Some(line) = first_line(&mut self.buffer)? else { return Ok(None) };
        if line.starts_with('-') {
            check(&line)?;
        }
        let head = line.strip_prefix('$').ok_or(LinkError::Protocol("a copy without its head"))?;
        let body = match head.strip_prefix("EOF:").map(|mark| mark.as_bytes().try_into()) {
            Some(Ok(mark)) => Body::Mark(mark),
            Some(Err(_)) => return Err(LinkError::Protocol("an end mark of a wrong length")),
            None => {
                Body::Length { left: head.parse().map_err(|_| LinkError::Protocol("a copy of no length"))? }
            }
        };
        Ok(Some(body))
    }

    /// Reads what is there, up to [`READ_BYTES`], and waits when that is little.
    fn fill<E: From<LinkError>>(&mut self, go_on: &impl Fn() -> Result<(), E>) -> Result<(), E> {
        let had = self.buffer.len();
        self.buffer.resize(had + READ_BYTES, 0);
        let mut filled = had;
        let ended = loop {
            match self.socket.read(&mut self.buffer[filled..]) {
                Ok(0) => break Some(LinkError::Closed),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Some(LinkError::Broken(error)),
            }
            if filled == self.buffer.len() {
                break None;
            }
        };
        self.buffer.truncate(filled);
        if filled > had {
            self.silent = None;
        } else if let Some(error) = ended {
            return Err(error.into());
        } else if self.silent.get_or_insert_with(Instant::now).elapsed() > self.patience {
            return Err(LinkError::Silent(self.patience).into());
        }
        // What is read again below tells of an end as well.
        if filled - had < READ_BYTES / 2 && ended.is_none() {
            go_on()?;
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}
