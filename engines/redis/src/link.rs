//! Our side of a replication link: what a Redis replica says to its master, and no more than that.
//!
//! [`Link::open`] authenticates, announces what it can read and asks for a full copy or for the stream from an offset on. After
//! that the RDB file (if any) and the stream are handed out in pieces as they arrive; nothing is gathered, so memory does not
//! grow with the data. A task of its own sends `REPLCONF ACK` each second, because a master that hears nothing for
//! `repl-timeout` drops the link, and because after a copy without a length nothing comes before an acknowledgement.
//!
//! It never announces a port: neither Sentinel nor a client that lists replicas can then be sent to us. What it acknowledges
//! is for its caller to say ([`Acks`]): `WAIT` and `min-replicas-to-write` count it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use mainstay_engine::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// How much is read from the socket at once.
const READ_BYTES: usize = 256 * 1024;
/// How long more of a copy is waited for when little came. The server sends it in pieces of 16 KiB, and whoever wakes up for each of them, on the
/// server's own machine, takes the processor that makes them.
const COPY_PAUSE: Duration = Duration::from_millis(4);
/// The longest line that a master may answer with.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// The length of the mark that ends a copy without a length.
const MARK_BYTES: usize = 40;
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

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A copy of all, and the stream behind it.
    Full,
    /// The stream from an offset on: that many bytes of it are known already.
    Resume {
        /// The replication id that the offset counts in.
        replid: String,
        /// The offset reached.
        offset: u64,
    },
}

/// What the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The replication id from here on; another than the asked one after a failover.
    pub replid: String,
    /// The offset that the copy is consistent at, or the one that was asked for.
    pub offset: u64,
    /// Whether a copy comes first.
    pub full: bool,
}

#[derive(Debug)]
enum Body {
    /// The line that says how the copy comes has not been read.
    Unread,
    /// So many bytes of it are still to come.
    Length { left: u64 },
    /// It ends at this mark.
    Mark([u8; MARK_BYTES]),
    /// There is none, or it is over.
    Over,
}

/// An open replication link. Dropping it closes it.
#[derive(Debug)]
pub struct Link {
    read: OwnedReadHalf,
    write: Option<OwnedWriteHalf>,
    buffer: BytesMut,
    body: Body,
    acks: Arc<Acks>,
    acker: Option<JoinHandle<()>>,
    patience: Duration,
    /// When anything came last: waits that are given up and begun again add up.
    heard: Instant,
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
    /// Opens a link. `patience` is how long the server may be silent, at the handshake and afterwards.
    ///
    /// # Errors
    /// As [`LinkError`]; [`LinkError::Gone`] when a resumption was asked for and cannot be had.
    pub async fn open(door: &Door, wish: &Wish, patience: Duration) -> Result<(Link, Opening), LinkError> {
        let address = (door.host.as_str(), door.port);
        let stream = timeout(patience, TcpStream::connect(address))
            .await
            .map_err(|_| LinkError::Silent(patience))?
            .map_err(LinkError::Broken)?;
        stream.set_nodelay(true).map_err(LinkError::Broken)?;
        let (read, write) = stream.into_split();
        let mut link = Link {
            read,
            write: Some(write),
            buffer: BytesMut::new(),
            body: Body::Over,
            acks: Arc::default(),
            acker: None,
            patience,
            heard: Instant::now(),
        };
        if let Some(password) = &door.password {
            link.say(&[b"AUTH", door.user.as_bytes(), password.expose().as_bytes()]).await?;
            let answer = link.line().await?;
            check(&answer)?;
        }
        link.say(&[b"PING"]).await?;
        let answer = link.line().await?;
        check(&answer)?;
        link.say(&[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"]).await?;
        let answer = link.line().await?;
        check(&answer)?;
        if *wish == Wish::Full {
            // Nobody waits here for the stream behind the copy, and a server that gathers it for us cuts us off at its limit
            // (client-output-buffer-limit). One that does not know the word sends both.
            link.say(&[b"REPLCONF", b"rdb-only", b"1"]).await?;
            link.line().await?;
        }
        let opening = link.psync(wish).await?;
        Ok((link, opening))
    }

    /// The next piece of the copy; `None` when it is over. Acknowledging begins then.
    ///
    /// # Errors
    /// As [`LinkError`].
    pub async fn next_of_copy(&mut self) -> Result<Option<Bytes>, LinkError> {
        loop {
            match &mut self.body {
                Body::Over => return Ok(None),
                Body::Unread => self.read_copy_head().await?,
                Body::Length { left: 0 } => self.end_copy(),
                Body::Length { left } if !self.buffer.is_empty() => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                    *left -= take as u64;
                    return Ok(Some(self.buffer.split_to(take).freeze()));
                }
                Body::Mark(mark) => match memchr::memmem::find(&self.buffer, &mark[..]) {
                    Some(0) => {
                        self.buffer.advance(MARK_BYTES);
                        self.end_copy();
                    }
                    Some(at) => return Ok(Some(self.buffer.split_to(at).freeze())),
                    None if self.buffer.len() >= MARK_BYTES => {
                        // The mark may have begun in the last bytes.
                        let sure = self.buffer.len() - (MARK_BYTES - 1);
                        return Ok(Some(self.buffer.split_to(sure).freeze()));
                    }
                    None => self.fill_of_copy().await?,
                },
                Body::Length { .. } => self.fill_of_copy().await?,
            }
        }
    }

    /// The next piece of the stream, byte for byte. Safe to drop while it waits.
    ///
    /// # Errors
    /// As [`LinkError`]; [`LinkError::Silent`] when not even a ping came.
    pub async fn next(&mut self) -> Result<Bytes, LinkError> {
        if self.buffer.is_empty() {
            self.fill().await?;
        }
        Ok(self.buffer.split().freeze())
    }

    /// What is acknowledged.
    pub fn acks(&self) -> &Arc<Acks> {
        &self.acks
    }

    async fn psync(&mut self, wish: &Wish) -> Result<Opening, LinkError> {
        match wish {
            Wish::Full => self.say(&[b"PSYNC", b"?", b"-1"]).await?,
            Wish::Resume { replid, offset } => {
                // A replica names the first byte that it lacks.
                let next = (offset + 1).to_string();
                self.say(&[b"PSYNC", replid.as_bytes(), next.as_bytes()]).await?;
            }
        }
        let answer = self.line().await?;
        let text = check(&answer)?;
        let mut words = text.split_ascii_whitespace();
        match (words.next(), wish) {
            (Some("FULLRESYNC"), Wish::Full) => {
                let replid = words.next().filter(|replid| is_replid(replid));
                let offset = words.next().and_then(|offset| offset.parse().ok());
                let (Some(replid), Some(offset)) = (replid, offset) else {
                    return Err(LinkError::Protocol("FULLRESYNC without id and offset"));
                };
                self.body = Body::Unread;
                self.acks.durable(offset);
                Ok(Opening { replid: replid.to_owned(), offset, full: true })
            }
            (Some("CONTINUE"), Wish::Resume { replid, offset }) => {
                let replid = words.next().unwrap_or(replid);
                if !is_replid(replid) {
                    return Err(LinkError::Protocol("CONTINUE with something that is no replication id"));
                }
                self.acks.durable(*offset);
                self.begin_acks();
                Ok(Opening { replid: replid.to_owned(), offset: *offset, full: false })
            }
            (Some("FULLRESYNC"), Wish::Resume { .. }) => Err(LinkError::Gone),
            _ => Err(LinkError::Protocol("unexpected answer to PSYNC")),
        }
    }

    async fn read_copy_head(&mut self) -> Result<(), LinkError> {
        let line = self.line().await?;
        if line.starts_with('-') {
            check(&line)?;
        }
        let head = line.strip_prefix('$').ok_or(LinkError::Protocol("a copy without its head"))?;
        self.body = match head.strip_prefix("EOF:") {
            Some(mark) => Body::Mark(
                mark.as_bytes()
                    .try_into()
                    .map_err(|_| LinkError::Protocol("an end mark of a wrong length"))?,
            ),
            None => {
                Body::Length { left: head.parse().map_err(|_| LinkError::Protocol("a copy of no length"))? }
            }
        };
        Ok(())
    }

    fn end_copy(&mut self) {
        self.body = Body::Over;
        self.begin_acks();
    }

    fn begin_acks(&mut self) {
        if let Some(write) = self.write.take() {
            self.acker = Some(tokio::spawn(acknowledge(write, Arc::clone(&self.acks))));
        }
    }

    async fn say(&mut self, words: &[&[u8]]) -> Result<(), LinkError> {
        let Some(write) = &mut self.write else {
            return Err(LinkError::Protocol("a handshake after its end"));
        };
        write.write_all(&encode(words)).await.map_err(LinkError::Broken)
    }

    /// The next line that is not empty. Empty ones are the heartbeats of a master that prepares a copy.
    async fn line(&mut self) -> Result<String, LinkError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line = self.buffer.split_to(end + 1);
                let line = line.trim_ascii();
                if !line.is_empty() {
                    let line = std::str::from_utf8(line)
                        .map_err(|_| LinkError::Protocol("a line that is no text"))?;
                    return Ok(line.to_owned());
                }
                continue;
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(LinkError::Protocol("a line without an end"));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), LinkError> {
        self.buffer.reserve(READ_BYTES);
        let read = timeout_at(self.heard + self.patience, self.read.read_buf(&mut self.buffer)).await;
        self.heard = if matches!(read, Ok(Ok(1..))) { Instant::now() } else { self.heard };
        match read {
            Err(_) => Err(LinkError::Silent(self.patience)),
            Ok(Err(error)) => Err(LinkError::Broken(error)),
            Ok(Ok(0)) => Err(LinkError::Closed),
            Ok(Ok(_)) => Ok(()),
        }
    }

    async fn fill_of_copy(&mut self) -> Result<(), LinkError> {
        self.fill().await?;
        if self.buffer.len() < READ_BYTES / 2 {
            tokio::time::sleep(COPY_PAUSE).await;
        }
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(acker) = &self.acker {
            acker.abort();
        }
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
fn check(answer: &str) -> Result<&str, LinkError> {
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
                if socket.read_buf(&mut heard).await.unwrap() == 0 {
                    break;
                }
            }
            heard
        });
        let password = Some(Secret::new("p"));
        (Door { host: "127.0.0.1".into(), port, user: "default".into(), password }, task)
    }

    async fn copy_of(link: &mut Link) -> Vec<u8> {
        let mut copy = Vec::new();
        while let Some(piece) = link.next_of_copy().await.unwrap() {
            copy.extend_from_slice(&piece);
        }
        copy
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
            let (mut link, opening) = Link::open(&door, &Wish::Full, PATIENCE).await.unwrap();
            assert_eq!(opening, Opening { replid: REPLID.into(), offset: 7, full: true });
            assert_eq!(copy_of(&mut link).await, format!("{body}X").into_bytes());
            assert_eq!(stream_of(&mut link, 14).await, b"*1\r\n$4\r\nPING\r\n");
            let heard = task.await.unwrap();
            let text = String::from_utf8(heard).unwrap();
            assert!(text.contains("PSYNC") && text.contains("psync2") && !text.contains("listening-port"));
        }
    }

    #[tokio::test]
    async fn a_copy_with_a_length_is_read_to_its_length() {
        let pieces = vec![b"\n\n$5\r\nRED".to_vec(), b"IS*1\r\n".to_vec()];
        let (door, task) = master(format!("+FULLRESYNC {REPLID} 7"), pieces).await;
        let (mut link, _) = Link::open(&door, &Wish::Full, PATIENCE).await.unwrap();
        assert_eq!(copy_of(&mut link).await, b"REDIS");
        assert_eq!(stream_of(&mut link, 4).await, b"*1\r\n");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_resumption_may_be_given_under_another_id() {
        let (door, task) = master(format!("+CONTINUE {OTHER}"), vec![b"x".to_vec()]).await;
        let wish = Wish::Resume { replid: REPLID.into(), offset: 7 };
        let (mut link, opening) = Link::open(&door, &wish, PATIENCE).await.unwrap();
        assert_eq!(opening, Opening { replid: OTHER.into(), offset: 7, full: false });
        assert_eq!(stream_of(&mut link, 1).await, b"x");
        let heard = String::from_utf8(task.await.unwrap()).unwrap();
        assert!(heard.contains(&format!("PSYNC\r\n$40\r\n{REPLID}\r\n$1\r\n8")));
    }

    #[tokio::test]
    async fn a_full_copy_instead_of_a_resumption_is_not_taken() {
        let (door, _task) = master(format!("+FULLRESYNC {OTHER} 7"), vec![]).await;
        let wish = Wish::Resume { replid: REPLID.into(), offset: 7 };
        assert!(matches!(Link::open(&door, &wish, PATIENCE).await, Err(LinkError::Gone)));
    }

    #[tokio::test]
    async fn refusals_and_delays_are_told_apart() {
        for (answer, passing) in [
            ("-NOMASTERLINK Can't SYNC while not connected with my master", true),
            ("-LOADING Redis is loading the dataset in memory", true),
            ("-NOPERM User x has no permissions to run the 'psync' command", false),
        ] {
            let (door, _task) = master(answer.into(), vec![]).await;
            match Link::open(&door, &Wish::Full, PATIENCE).await {
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
        let wish = Wish::Resume { replid: REPLID.into(), offset: 9 };
        let (mut link, _) = Link::open(&door, &wish, Duration::from_millis(300)).await.unwrap();
        assert!(matches!(link.next().await, Err(LinkError::Silent(_))));
    }
}
