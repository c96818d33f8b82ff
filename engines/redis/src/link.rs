//! Our side of a replication link: what a Redis replica says to its master, and no more than that.
//!
//! [`Link::open`] and [`Link::copy`] authenticate, announce what we can read, and ask for the stream from an offset on or for a full copy. Either is
//! handed out in pieces as they arrive; nothing is gathered, so memory does not grow with the data. Beside the stream a task of its own
//! sends `REPLCONF ACK` each second, because a master that hears nothing for `repl-timeout` drops the link.
//!
//! It never announces a port: neither Sentinel nor a client that lists replicas can then be sent to us. What it acknowledges
//! is for its caller to say ([`Acks`]): `WAIT` and `min-replicas-to-write` count it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mainstay_engine::Secret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::copy::Copy;

/// How much is read from the socket at once.
const READ_BYTES: usize = 256 * 1024;
/// The longest line that a master may answer with.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// How often we acknowledge.
const ACK_PERIOD: Duration = Duration::from_secs(1);
/// How often we do so at first: a master that has not yet noticed that its copy was sent loses acknowledgements.
const ACK_PERIOD_FIRST: Duration = Duration::from_millis(100);
/// For how many acknowledgements.
const ACKS_FIRST: u32 = 30;

/// Why a link could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection, or it broke.
    #[error("replication link broke")]
    Broken(#[source] std::io::Error),
    /// The other side closed it.
    #[error("replication link was closed by the server")]
    Closed,
    /// Nothing came for longer than the server's own pings are apart.
    #[error("replication link has been silent for {0:?}")]
    Silent(Duration),
    /// The server will not have us: password, grant.
    #[error("server refused the replication link: {0}")]
    Refused(String),
    /// The server cannot serve us now, and may later.
    #[error("server is not ready for a replication link: {0}")]
    NotReady(String),
    /// What came is not what a master sends.
    #[error("not the replication protocol: {0}")]
    Protocol(&'static str),
    /// A full copy was offered where the stream was asked for; the link was given up before it began.
    #[error("server no longer has the asked part of its stream")]
    Gone,
}

/// Where and as whom.
#[derive(Debug, Clone)]
pub struct Door {
    /// Host name or address.
    pub host: String,
    /// Port for clients.
    pub port: u16,
    /// The user, `default` if none was made.
    pub user: String,
    /// Its password, if it has one.
    pub password: Option<Secret>,
}

/// What the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The replication id from here on; another than the asked one after a failover.
    pub replid: String,
    /// The offset that the copy is consistent at, or the one that was asked for.
    pub offset: u64,
}

/// An open replication link. Dropping it closes it.
#[derive(Debug)]
pub struct Link {
    read: OwnedReadHalf,
    incoming: Incoming,
    acks: Arc<Acks>,
    acker: JoinHandle<()>,
}

/// What has come and was not handed out, and when anything came last: waits that are given up and begun again add up.
#[derive(Debug)]
struct Incoming {
    buffer: BytesMut,
    patience: Duration,
    heard: Instant,
}

/// A connection on which the stream or a copy is still to be asked for.
struct Handshake {
    stream: TcpStream,
    incoming: Incoming,
}

/// What is acknowledged, shared with the task that sends it.
#[derive(Debug, Default)]
pub struct Acks {
    offset: AtomicU64,
    withheld: AtomicU64,
    now: Notify,
}

impl Acks {
    /// Says that everything below `offset` is durable here. Sent with the next acknowledgement.
    pub fn durable(&self, offset: u64) {
        self.offset.fetch_max(offset, Ordering::Relaxed);
    }

    /// Holds back the last byte (`true`) so that a server with other replicas never finds us the best of them.
    pub fn withhold(&self, withhold: bool) {
        self.withheld.store(u64::from(withhold), Ordering::Relaxed);
    }

    /// Sends an acknowledgement at once: the server asked for one.
    pub fn send_now(&self) {
        self.now.notify_one();
    }

    fn value(&self) -> u64 {
        let offset = self.offset.load(Ordering::Relaxed);
        offset.saturating_sub(self.withheld.load(Ordering::Relaxed))
    }
}

impl Link {
    /// Asks for the stream behind `offset` of the history `replid`, and begins to acknowledge. `patience` is how long the server may be silent, at
    /// the handshake and afterwards.
    ///
    /// # Errors
    /// As [`LinkError`]; [`LinkError::Gone`] when the server has that part no longer.
    pub async fn open(
        door: &Door,
        replid: &str,
        offset: u64,
        patience: Duration,
    ) -> Result<(Link, Opening), LinkError> {
        let mut handshake = Handshake::greet(door, patience).await?;
        // A replica names the first byte that it lacks.
        let next = (offset + 1).to_string();
        let answer = handshake.ask(&[b"PSYNC", replid.as_bytes(), next.as_bytes()]).await?;
        let mut words = check(&answer)?.split_ascii_whitespace();
        match words.next() {
            Some("CONTINUE") => {}
            Some("FULLRESYNC") => return Err(LinkError::Gone),
            _ => return Err(LinkError::Protocol("unexpected answer to PSYNC")),
        }
        let replid = words.next().unwrap_or(replid);
        if !is_replid(replid) {
            return Err(LinkError::Protocol("CONTINUE with something that is no replication id"));
        }
        let acks = Arc::new(Acks::default());
        acks.durable(offset);
        let (read, write) = handshake.stream.into_split();
        let acker = tokio::spawn(acknowledge(write, Arc::clone(&acks)));
        let link = Link { read, incoming: handshake.incoming, acks, acker };
        Ok((link, Opening { replid: replid.to_owned(), offset }))
    }

    /// Asks for a copy of all.
    ///
    /// # Errors
    /// As [`LinkError`].
    pub async fn copy(door: &Door, patience: Duration) -> Result<(Copy, Opening), LinkError> {
        let mut handshake = Handshake::greet(door, patience).await?;
        // Nobody waits here for the stream behind the copy, and a server that gathers it for us cuts us off at its limit
        // (client-output-buffer-limit). One that does not know the word sends both.
        handshake.ask(&[b"REPLCONF", b"rdb-only", b"1"]).await?;
        let answer = handshake.ask(&[b"PSYNC", b"?", b"-1"]).await?;
        let mut words = check(&answer)?.split_ascii_whitespace();
        if words.next() != Some("FULLRESYNC") {
            return Err(LinkError::Protocol("unexpected answer to PSYNC"));
        }
        let replid = words.next().filter(|replid| is_replid(replid));
        let offset = words.next().and_then(|offset| offset.parse().ok());
        let (Some(replid), Some(offset)) = (replid, offset) else {
            return Err(LinkError::Protocol("FULLRESYNC without id and offset"));
        };
        let socket = handshake.stream.into_std().map_err(LinkError::Broken)?;
        let copy = Copy::new(socket, handshake.incoming.buffer, patience);
        Ok((copy, Opening { replid: replid.to_owned(), offset }))
    }

    /// The next piece of the stream, byte for byte. Safe to drop while it waits.
    ///
    /// # Errors
    /// As [`LinkError`]; [`LinkError::Silent`] when not even a ping came.
    pub async fn next(&mut self) -> Result<Bytes, LinkError> {
        if self.incoming.buffer.is_empty() {
            self.incoming.fill(&mut self.read).await?;
        }
        Ok(self.incoming.buffer.split().freeze())
    }

    /// What is acknowledged.
    pub fn acks(&self) -> &Arc<Acks> {
        &self.acks
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.acker.abort();
    }
}

impl Handshake {
    /// Connects, logs in, and says what we can read.
    async fn greet(door: &Door, patience: Duration) -> Result<Handshake, LinkError> {
        let address = (door.host.as_str(), door.port);
        let stream = timeout(patience, TcpStream::connect(address))
            .await
            .map_err(|_| LinkError::Silent(patience))?
            .map_err(LinkError::Broken)?;
        stream.set_nodelay(true).map_err(LinkError::Broken)?;
        let incoming = Incoming { buffer: BytesMut::new(), patience, heard: Instant::now() };
        let mut handshake = Handshake { stream, incoming };
        if let Some(password) = &door.password {
            let words: [&[u8]; 3] = [b"AUTH", door.user.as_bytes(), password.expose().as_bytes()];
            check(&handshake.ask(&words).await?)?;
        }
        check(&handshake.ask(&[b"PING"]).await?)?;
        check(&handshake.ask(&[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"]).await?)?;
        Ok(handshake)
    }

    /// Says something, and hears the answer. Empty lines are the heartbeats of a master that prepares it.
    async fn ask(&mut self, words: &[&[u8]]) -> Result<String, LinkError> {
        self.stream.write_all(&encode(words)).await.map_err(LinkError::Broken)?;
        loop {
            if let Some(line) = first_line(&mut self.incoming.buffer)? {
                return Ok(line);
            }
            self.incoming.fill(&mut self.stream).await?;
        }
    }
}

impl Incoming {
    async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<(), LinkError> {
        self.buffer.reserve(READ_BYTES);
        match timeout_at(self.heard + self.patience, from.read_buf(&mut self.buffer)).await {
            Err(_) => Err(LinkError::Silent(self.patience)),
            Ok(Err(error)) => Err(LinkError::Broken(error)),
            Ok(Ok(0)) => Err(LinkError::Closed),
            Ok(Ok(_)) => {
                self.heard = Instant::now();
                Ok(())
            }
        }
    }
}

/// The first line that is not empty, if it is there as a whole.
pub(crate) fn first_line(buffer: &mut BytesMut) -> Result<Option<String>, LinkError> {
    while let Some(end) = memchr::memchr(b'\n', buffer) {
        let line = buffer.split_to(end + 1);
        let line = line.trim_ascii();
        if !line.is_empty() {
            let line =
                std::str::from_utf8(line).map_err(|_| LinkError::Protocol("a line that is no text"))?;
            return Ok(Some(line.to_owned()));
        }
    }
    match buffer.len() > LINE_BYTES_MAX {
        true => Err(LinkError::Protocol("a line without an end")),
        false => Ok(None),
    }
}

/// A command as an array of bulk strings.
pub fn encode(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

async fn acknowledge(mut write: OwnedWriteHalf, acks: Arc<Acks>) {
    let mut sent = 0_u32;
    loop {
        let offset = acks.value().to_string();
        if write.write_all(&encode(&[b"REPLCONF", b"ACK", offset.as_bytes()])).await.is_err() {
            // The reading side finds the same broken connection and says so.
            return;
        }
        sent = sent.saturating_add(1);
        let period = if sent < ACKS_FIRST { ACK_PERIOD_FIRST } else { ACK_PERIOD };
        let _either = timeout(period, acks.now.notified()).await;
    }
}

/// The text of a positive answer; a negative one as an error of its kind.
pub(crate) fn check(answer: &str) -> Result<&str, LinkError> {
    let Some(error) = answer.strip_prefix('-') else {
        return answer.strip_prefix('+').ok_or(LinkError::Protocol("an answer that is no status"));
    };
    let passing = ["NOMASTERLINK", "LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN", "CLUSTERDOWN"];
    let refusing = ["NOAUTH", "WRONGPASS", "NOPERM", "DENIED"];
    let word = error.split_ascii_whitespace().next().unwrap_or_default();
    if passing.contains(&word) {
        Err(LinkError::NotReady(error.to_owned()))
    } else if refusing.contains(&word) {
        Err(LinkError::Refused(error.to_owned()))
    } else if error.contains("not loaded") || error.contains("in progress") || error.contains("ry again") {
        Err(LinkError::NotReady(error.to_owned()))
    } else {
        Err(LinkError::Refused(error.to_owned()))
    }
}

fn is_replid(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const REPLID: &str = "0123456789abcdef0123456789abcdef01234567";
    const OTHER: &str = "89abcdef0123456789abcdef0123456789abcdef";
    const MARK: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee";
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A master that takes any handshake, then writes these pieces, each in a packet of its own as far as TCP allows.
    async fn master(answer: String, pieces: Vec<Vec<u8>>) -> (Door, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            // Room for a whole message at once.
            let mut heard = Vec::with_capacity(64 << 10);
            let mut shaken = false;
            while !shaken {
                let before = heard.len();
                while heard.len() == before {
                    socket.read_buf(&mut heard).await.unwrap();
                }
                let says = |word: &[u8]| memchr::memmem::find(&heard[before..], word).is_some();
                shaken = says(b"PSYNC");
                let reply = match shaken {
                    true => format!("\n\n{answer}\r\n"),
                    // An older server; that is no reason to give up.
                    false if says(b"rdb-only") => "-ERR Unrecognized REPLCONF option: rdb-only\r\n".into(),
                    false => "+OK\r\n".into(),
                };
                socket.write_all(reply.as_bytes()).await.unwrap();
            }
            for piece in pieces {
                socket.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            while !heard.ends_with(b"ACK\r\n$1\r\n7\r\n") {
                // A connection that is closed with something unread in it is reset.
                if socket.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            heard
        });
        let password = Some(Secret::new("p"));
        (Door { host: "127.0.0.1".into(), port, user: "default".into(), password }, task)
    }

    /// All of a copy; what is behind it in the link is left alone.
    async fn copy_of(mut copy: Copy) -> Result<Vec<u8>, LinkError> {
        let read = move || {
            let mut all = Vec::new();
            while let Some(piece) = copy.next(|| Ok::<(), LinkError>(()))? {
                all.extend_from_slice(&piece);
            }
            Ok(all)
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    async fn stream_of(link: &mut Link, bytes: usize) -> Vec<u8> {
        let mut stream = Vec::new();
        while stream.len() < bytes {
            stream.extend_from_slice(&link.next().await.unwrap());
        }
        stream
    }

    #[tokio::test]
    async fn the_end_mark_is_found_wherever_the_reads_are_cut() {
        // The copy ends in what looks like the beginning of the mark.
        let body = format!("REDIS0010eeeee\n{}", "e".repeat(17));
        let all = format!("\n$EOF:{MARK}\r\n{body}X{MARK}*1\r\n$4\r\nPING\r\n").into_bytes();
        for cut in 1..all.len() {
            let pieces = vec![all[..cut].to_vec(), all[cut..].to_vec()];
            let (door, task) = master(format!("+FULLRESYNC {REPLID} 7"), pieces).await;
            let (copy, opening) = Link::copy(&door, PATIENCE).await.unwrap();
            assert_eq!(opening, Opening { replid: REPLID.into(), offset: 7 });
            assert_eq!(copy_of(copy).await.unwrap(), format!("{body}X").into_bytes());
            let heard = task.await.unwrap();
            let text = String::from_utf8(heard).unwrap();
            assert!(text.contains("PSYNC") && text.contains("psync2") && !text.contains("listening-port"));
        }
    }

    #[tokio::test]
    async fn a_copy_with_a_length_is_read_to_its_length() {
        let pieces = vec![b"\n\n$5\r\nRED".to_vec(), b"IS*1\r\n".to_vec()];
        let (door, task) = master(format!("+FULLRESYNC {REPLID} 7"), pieces).await;
        let (copy, _) = Link::copy(&door, PATIENCE).await.unwrap();
        assert_eq!(copy_of(copy).await.unwrap(), b"REDIS");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_resumption_may_be_given_under_another_id() {
        let (door, task) = master(format!("+CONTINUE {OTHER}"), vec![b"x".to_vec()]).await;
        let (mut link, opening) = Link::open(&door, REPLID, 7, PATIENCE).await.unwrap();
        assert_eq!(opening, Opening { replid: OTHER.into(), offset: 7 });
        assert_eq!(stream_of(&mut link, 1).await, b"x");
        let heard = String::from_utf8(task.await.unwrap()).unwrap();
        assert!(heard.contains(&format!("PSYNC\r\n$40\r\n{REPLID}\r\n$1\r\n8")));
    }

    #[tokio::test]
    async fn a_full_copy_instead_of_a_resumption_is_not_taken() {
        let (door, _task) = master(format!("+FULLRESYNC {OTHER} 7"), vec![]).await;
        assert!(matches!(Link::open(&door, REPLID, 7, PATIENCE).await, Err(LinkError::Gone)));
    }

    #[tokio::test]
    async fn refusals_and_delays_are_told_apart() {
        for (answer, passing) in [
            ("-NOMASTERLINK Can't SYNC while not connected with my master", true),
            ("-LOADING Redis is loading the dataset in memory", true),
            ("-NOPERM User x has no permissions to run the 'psync' command", false),
        ] {
            let (door, _task) = master(answer.into(), vec![]).await;
            match Link::copy(&door, PATIENCE).await {
                Err(LinkError::NotReady(_)) => assert!(passing),
                Err(LinkError::Refused(_)) => assert!(!passing),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn silence_ends_the_link() {
        let (door, _task) = master(format!("+CONTINUE {OTHER}"), vec![]).await;
        // The fake master goes on listening until it hears an acknowledgement of 7.
        let (mut link, _) = Link::open(&door, REPLID, 9, Duration::from_millis(300)).await.unwrap();
        assert!(matches!(link.next().await, Err(LinkError::Silent(_))));
    }

    #[tokio::test]
    async fn a_copy_that_ends_early_or_stands_still_is_no_copy() {
        let head = format!("$EOF:{MARK}\r\nREDIS").into_bytes();
        let (door, task) = master(format!("+FULLRESYNC {REPLID} 7"), vec![head.clone()]).await;
        let (copy, _) = Link::copy(&door, Duration::from_millis(300)).await.unwrap();
        assert!(matches!(copy_of(copy).await, Err(LinkError::Silent(_))));
        task.await.unwrap();
        let (door, task) = master(format!("+FULLRESYNC {REPLID} 7"), vec![head]).await;
        let (copy, _) = Link::copy(&door, PATIENCE).await.unwrap();
        task.abort();
        assert!(matches!(copy_of(copy).await, Err(LinkError::Closed | LinkError::Broken(_))));
    }
}
