//! Our side of a replication link when we are the master: feeds a server of our own what is to be restored.
//!
//! Replaying by a client would lose data: keys whose time has passed by now would vanish before the command that made them
//! permanent, scripts would see other times, `INCR` would revive without a life. A replica applies what its master says and expires
//! nothing by itself. So the server is told `REPLICAOF` us, asks, and gets a copy (an RDB file) and the stream behind it; then it is
//! asked for its offset, which must be ours to the byte.
//!
//! Blocking: one thread feeds one server. It listens on loopback for one connection, which must know the password. It waits for
//! nothing longer than its patience, and stops when told to.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine::{Progress, Secret};

use crate::link::encode;

/// How often a waiting thread looks whether it shall stop.
const TICK: Duration = Duration::from_millis(200);
/// How often it looks for the first connection.
const TICK_ACCEPT: Duration = Duration::from_millis(5);
/// How much of the copy is sent at once.
const COPY_BYTES: usize = 256 * 1024;
/// Limits of what a replica may say to us.
const WORDS_MAX: usize = 64;
const LINE_BYTES_MAX: u64 = 4096;

/// Why a server could not be fed.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A socket failed.
    #[error("connection to the server that is fed broke")]
    Broken(#[source] std::io::Error),
    /// What is to be fed could not be read.
    #[error("read what is to be fed")]
    Source(#[source] std::io::Error),
    /// The server said or did nothing for longer than it may.
    #[error("server that is fed did nothing for {0:?}")]
    Stalled(Duration),
    /// It did not know the password, or speaks something else.
    #[error("server that is fed said {0}")]
    Unexpected(String),
    /// It stands somewhere else than where all that it was sent ends.
    #[error("server that is fed stands at {found}, sent was {expected}")]
    Apart {
        /// Where it must be.
        expected: u64,
        /// Where it says it is.
        found: u64,
    },
    /// Somebody asked to stop.
    #[error("stopped on request")]
    Cancelled,
}

/// A listener for the one server that will be fed.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// What to tell the server: `REPLICAOF 127.0.0.1 port`.
    pub port: u16,
}

impl Listener {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// That of the socket.
    pub fn bind() -> std::io::Result<Listener> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        Ok(Listener { listener, port })
    }

    /// Waits for the server and goes through the handshake, up to where it has been promised a copy that is consistent at `offset`
    /// of `replid`. `patience` is how long the server may do nothing, here and later.
    ///
    /// # Errors
    /// As [`FeedError`].
    pub fn accept(
        self,
        password: &Secret,
        replid: &str,
        offset: u64,
        patience: Duration,
        progress: Arc<dyn Progress>,
    ) -> Result<Feed, FeedError> {
        let begun = Instant::now();
        let socket = loop {
            match self.listener.accept() {
                Ok((socket, _)) => break socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if progress.cancelled() {
                        return Err(FeedError::Cancelled);
                    }
                    if begun.elapsed() > patience {
                        return Err(FeedError::Stalled(patience));
                    }
                    std::thread::sleep(TICK_ACCEPT);
                }
                Err(error) => return Err(FeedError::Broken(error)),
            }
        };
        let prepare = || {
            socket.set_nonblocking(false)?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(TICK))?;
            socket.set_write_timeout(Some(TICK))?;
            socket.try_clone()
        };
        let read = prepare().map_err(FeedError::Broken)?;
        let mut feed = Feed { write: socket, read: BufReader::new(read), offset, patience, progress };
        feed.shake_hands(password, replid)?;
        Ok(feed)
    }
}

/// A server that takes us for its master. Dropping it closes the connection.
pub struct Feed {
    write: TcpStream,
    read: BufReader<TcpStream>,
    offset: u64,
    patience: Duration,
    progress: Arc<dyn Progress>,
}

impl Feed {
    /// The offset after the last byte sent.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Sends the copy; `length` says how long it is, `None` sends it with an end mark instead.
    ///
    /// # Errors
    /// As [`FeedError`]; a copy that is not as long as it was said to be is [`FeedError::Source`].
    pub fn send_copy(&mut self, length: Option<u64>, copy: &mut dyn Read) -> Result<(), FeedError> {
        let mark: String = format!("{:032x}{:08x}", rand::random::<u128>(), rand::random::<u32>());
        let head = match length {
            Some(length) => format!("${length}\r\n"),
            None => format!("$EOF:{mark}\r\n"),
        };
        self.write(head.as_bytes())?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut sent = 0_u64;
        loop {
            let read = match copy.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(FeedError::Source(error)),
            };
            sent += read as u64;
            self.write(&buffer[..read])?;
            self.progress.advance(read as u64);
        }
        match length {
            Some(length) if length != sent => Err(FeedError::Source(std::io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("the copy has {sent} bytes instead of {length}"),
            ))),
            Some(_) => Ok(()),
            None => {
                self.write(mark.as_bytes())?;
                // What follows the mark is taken for commands only once the server has seen the mark.
                self.hear_ack().map(|_| ())
            }
        }
    }

    /// Sends stream, byte for byte.
    ///
    /// # Errors
    /// As [`FeedError`].
    pub fn send(&mut self, stream: &[u8]) -> Result<(), FeedError> {
        self.write(stream)?;
        self.offset += stream.len() as u64;
        Ok(())
    }

    /// Sends a command of our own.
    ///
    /// # Errors
    /// As [`FeedError`].
    pub fn send_command(&mut self, words: &[&[u8]]) -> Result<(), FeedError> {
        self.send(&encode(words))
    }

    /// Waits until the server has applied all that was sent, and checks that it stands where it must.
    ///
    /// # Errors
    /// [`FeedError::Apart`] if it stands elsewhere; otherwise as [`FeedError`].
    pub fn confirm(&mut self) -> Result<u64, FeedError> {
        let expected = self.offset;
        self.send_command(&[b"REPLCONF", b"GETACK", b"*"])?;
        // It acknowledges each second too, so that an answer of less is one of before.
        let mut last = None;
        let mut since = Instant::now();
        loop {
            let found = self.hear_ack()?;
            // The request itself counts only once it was answered.
            if found == expected {
                return Ok(expected);
            }
            if found > expected {
                return Err(FeedError::Apart { expected, found });
            }
            if last != Some(found) {
                last = Some(found);
                since = Instant::now();
            } else if since.elapsed() > self.patience {
                return Err(FeedError::Apart { expected, found });
            }
        }
    }

    fn shake_hands(&mut self, password: &Secret, replid: &str) -> Result<(), FeedError> {
        let mut known = false;
        loop {
            let words = self.hear()?;
            let name = words.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
            match &name[..] {
                b"PING" if known => self.write(b"+PONG\r\n")?,
                b"PING" => self.write(b"-NOAUTH Authentication required.\r\n")?,
                b"AUTH"
                    if words.len() > 1
                        && words.last().is_some_and(|word| word == password.expose().as_bytes()) =>
                {
                    known = true;
                    self.write(b"+OK\r\n")?;
                }
                b"REPLCONF" if known => self.write(b"+OK\r\n")?,
                b"PSYNC" if known => {
                    let answer = format!("+FULLRESYNC {replid} {}\r\n", self.offset);
                    return self.write(answer.as_bytes());
                }
                // Its arguments may be a password.
                name => return Err(FeedError::Unexpected(String::from_utf8_lossy(name).into_owned())),
            }
        }
    }

    fn hear_ack(&mut self) -> Result<u64, FeedError> {
        loop {
            let words = self.hear()?;
            match &words[..] {
                [name, what, offset, ..]
                    if name.eq_ignore_ascii_case(b"REPLCONF") && what.eq_ignore_ascii_case(b"ACK") =>
                {
                    let offset = std::str::from_utf8(offset).ok().and_then(|offset| offset.parse().ok());
                    return offset.ok_or_else(|| FeedError::Unexpected("an offset that is no number".into()));
                }
                _ => continue,
            }
        }
    }

    /// The next command of the server. Lines without anything on them are its way to say that it is still loading.
    fn hear(&mut self) -> Result<Vec<Vec<u8>>, FeedError> {
        let line = loop {
            let line = self.hear_line()?;
            if !line.is_empty() {
                break line;
            }
        };
        let unexpected = || FeedError::Unexpected("something that is no command".into());
        let number = |line: &[u8], prefix: u8| -> Option<usize> {
            let digits = line.strip_prefix(&[prefix])?;
            std::str::from_utf8(digits).ok()?.parse().ok()
        };
        let count = number(&line, b'*').filter(|count| *count <= WORDS_MAX).ok_or_else(unexpected)?;
        let mut words = Vec::with_capacity(count);
        for _ in 0..count {
            let length = number(&self.hear_line()?, b'$').ok_or_else(unexpected)?;
            // A word of a replica has no line end in it, so it can be read as a line.
            let word = self.hear_line()?;
            if word.len() != length {
                return Err(unexpected());
            }
            words.push(word);
        }
        Ok(words)
    }

    fn hear_line(&mut self) -> Result<Vec<u8>, FeedError> {
        let begun = Instant::now();
        let mut line = Vec::new();
        loop {
            let room = LINE_BYTES_MAX.saturating_sub(line.len() as u64);
            match (&mut self.read).take(room).read_until(b'\n', &mut line) {
                Ok(_) if line.last() == Some(&b'\n') => {
                    line.pop();
                    if line.last() == Some(&b'\r') {
                        line.pop();
                    }
                    return Ok(line);
                }
                Ok(_) if room == 0 => return Err(FeedError::Unexpected("a line without an end".into())),
                Ok(_) => return Err(FeedError::Broken(ErrorKind::UnexpectedEof.into())),
                Err(error) => self.go_on(begun, error)?,
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), FeedError> {
        let mut begun = Instant::now();
        while !bytes.is_empty() {
            match self.write.write(bytes) {
                Ok(0) => return Err(FeedError::Broken(ErrorKind::WriteZero.into())),
                Ok(written) => {
                    bytes = &bytes[written..];
                    begun = Instant::now();
                }
                Err(error) => self.go_on(begun, error)?,
            }
        }
        if self.progress.cancelled() { Err(FeedError::Cancelled) } else { Ok(()) }
    }

    /// After a timeout of the socket: whether to try again.
    fn go_on(&self, begun: Instant, error: std::io::Error) -> Result<(), FeedError> {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {
                if self.progress.cancelled() {
                    Err(FeedError::Cancelled)
                } else if begun.elapsed() > self.patience {
                    Err(FeedError::Stalled(self.patience))
                } else {
                    Ok(())
                }
            }
            _ => Err(FeedError::Broken(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine::Quiet;

    const OFFSET: u64 = 1000;
    const PATIENCE: Duration = Duration::from_millis(400);
    /// Of `REPLCONF GETACK *`.
    const REQUEST_BYTES: u64 = 37;

    /// What comes of a server that was sent ten bytes and a request, and then acknowledges these, one each 50 ms.
    fn confirm(acks: Vec<u64>) -> Result<u64, FeedError> {
        let listener = Listener::bind().unwrap();
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, listener.port)).unwrap();
        for words in [&[&b"AUTH"[..], b"sesame"][..], &[b"PSYNC", b"?", b"-1"]] {
            server.write_all(&encode(words)).unwrap();
        }
        let secret = Secret::new("sesame");
        let mut feed = listener.accept(&secret, &"a".repeat(40), OFFSET, PATIENCE, Arc::new(Quiet)).unwrap();
        feed.send(b"0123456789").unwrap();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for ack in acks {
                    let words = encode(&[b"REPLCONF", b"ACK", ack.to_string().as_bytes()]);
                    let closed = server.write_all(&words).is_err();
                    if closed || ended.recv_timeout(Duration::from_millis(50)).is_ok() {
                        return;
                    }
                }
                // Silent, and there.
                let _ = ended.recv();
            });
            let confirmed = feed.confirm();
            let _ = end.send(());
            confirmed
        })
    }

    #[test]
    fn a_server_must_stand_where_all_that_it_was_sent_ends() {
        let right = OFFSET + 10;
        assert_eq!(confirm(vec![OFFSET, right - 1, right]).unwrap(), right);
        // It applied what we never sent, be it the request.
        for high in [right + 1, right + REQUEST_BYTES] {
            let found = confirm(vec![high]);
            assert!(
                matches!(found, Err(FeedError::Apart { expected, found }) if (expected, found) == (right, high))
            );
        }
        // It goes on without taking in the rest, or says nothing more.
        let low = right - 1;
        let found = confirm(vec![low; 100]);
        assert!(
            matches!(found, Err(FeedError::Apart { expected, found }) if (expected, found) == (right, low))
        );
        assert!(matches!(confirm(vec![low]), Err(FeedError::Stalled(PATIENCE))));
    }
}
