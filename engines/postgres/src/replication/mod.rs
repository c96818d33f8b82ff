//! A small client of PostgreSQL's physical replication protocol: identify, histories, slots, log, base backups.
//!
//! Why not tokio-postgres: it has no replication mode. Plain TCP on loopback and unix sockets, with trust, cleartext,
//! MD5 and SCRAM-SHA-256; a server that insists on anything else is refused by name. Nothing that the server sends makes
//! this panic or take memory without limit (see `wire`). The password is never printed.
//!
//! Protocol facts: PostgreSQL's documentation, chapter "Streaming Replication Protocol", and `src/backend/replication`.

mod backup;
mod stream;
pub(crate) mod wire;

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::{md5_hash, sasl};

pub use self::backup::{Archive, BackupOptions, BackupStart, BaseBackup, Tablespace};
pub use self::stream::{EPOCH_OFFSET_US, NextTimeline, Started, Streamed, WalStream};
use self::wire::{Frame, Wire, message};
use crate::lsn::{Lsn, Timeline};

const ROWS_MAX: usize = 100_000;

/// What went wrong on a replication connection.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The socket failed.
    #[error("talk to the server")]
    Io(#[from] std::io::Error),
    /// The server ended the connection.
    #[error("the server closed the connection")]
    Closed,
    /// Nothing came for too long.
    #[error("the server said nothing for {0:?}")]
    Silent(Duration),
    /// The server answered with an error.
    #[error("the server refused: {0}")]
    Server(ServerError),
    /// The server answered something that the protocol does not know.
    #[error("not PostgreSQL's protocol: {0}")]
    Protocol(String),
    /// The server wants a way to log in that is not spoken here.
    #[error("the server asks for {0}, which is not spoken here (use scram-sha-256)")]
    Authentication(String),
}

/// An error as the server words it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// SQLSTATE.
    pub code: String,
    /// What.
    pub message: String,
    /// DETAIL, or empty.
    pub detail: String,
    /// HINT, or empty.
    pub hint: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        if !self.detail.is_empty() {
            write!(f, "; {}", self.detail)?;
        }
        Ok(())
    }
}

impl ReplicationError {
    /// Whether the server refused with this SQLSTATE.
    pub fn is_code(&self, code: &str) -> bool {
        matches!(self, Self::Server(error) if error.code == code)
    }
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The folder of a unix socket.
    Unix(PathBuf),
}

/// Where to, and as whom.
#[derive(Clone)]
pub struct Login {
    /// Where the server listens.
    pub host: Host,
    /// Its port, which also names the unix socket.
    pub port: u16,
    /// The role.
    pub user: String,
    /// Its password, if it has one.
    pub password: Option<String>,
    /// What the server shows in `pg_stat_replication`.
    pub application: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}@{:?}:{})", self.user, self.host, self.port)
    }
}

/// Who a server is and how far it is: the answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's identifier, minted by initdb.
    pub system_id: u64,
    /// The timeline that it writes or replays.
    pub timeline: Timeline,
    /// How far its log is flushed (a standby: replayed or received).
    pub flushed: Lsn,
}

/// A physical slot as the server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// From where log is kept; none for a slot that reserves nothing yet or that the server invalidated.
    pub restart: Option<Lsn>,
}

/// A connection in physical replication mode.
pub struct Client {
    wire: Wire,
}

impl Client {
    /// Connects and logs in.
    ///
    /// # Errors
    /// The server is not there, refuses, or takes longer than `deadline`.
    pub async fn connect(login: &Login, deadline: Duration) -> Result<Self, ReplicationError> {
        let connecting = async {
            let mut client = Self { wire: open(login).await? };
            client.log_in(login).await?;
            Ok(client)
        };
        tokio::time::timeout(deadline, connecting).await.map_err(|_| ReplicationError::Silent(deadline))?
    }

    async fn log_in(&mut self, login: &Login) -> Result<(), ReplicationError> {
        let mut startup = BytesMut::new();
        let parameters = [
            ("user", login.user.as_str()),
            ("database", "replication"),
            ("replication", "true"),
            ("application_name", login.application.as_str()),
            ("client_encoding", "UTF8"),
        ];
        postgres_protocol::message::frontend::startup_message(parameters, &mut startup)?;
        self.wire.send(&startup).await?;
        let mut scram: Option<sasl::ScramSha256> = None;
        loop {
            let frame = self.wire.frame().await?;
            match frame.tag {
                b'R' => self.authenticate(login, frame.body, &mut scram).await?,
                b'K' => {}
                b'Z' => return Ok(()),
                _ => return Err(unexpected(&frame, "logging in")),
            }
        }
    }

    async fn authenticate(
        &mut self,
        login: &Login,
        body: Bytes,
        scram: &mut Option<sasl::ScramSha256>,
    ) -> Result<(), ReplicationError> {
        let bad = || ReplicationError::Protocol("authentication request cut short".into());
        let kind = u32::from_be_bytes(*body.first_chunk().ok_or_else(bad)?);
        let rest = body.slice(4..);
        let password = || {
            let none = || ReplicationError::Authentication("a password, and none is known".into());
            login.password.as_deref().map(str::as_bytes).ok_or_else(none)
        };
        let answer = match kind {
            0 => return Ok(()),
            3 => text_message(password()?),
            5 => {
                let salt = *rest.first_chunk::<4>().ok_or_else(bad)?;
                text_message(md5_hash(login.user.as_bytes(), password()?, salt).as_bytes())
            }
            10 => {
                if !rest.split(|byte| *byte == 0).any(|name| name == sasl::SCRAM_SHA_256.as_bytes()) {
                    return Err(ReplicationError::Authentication(
                        "a SASL mechanism other than SCRAM-SHA-256".into(),
                    ));
                }
                let exchange = sasl::ScramSha256::new(password()?, sasl::ChannelBinding::unsupported());
                let first = exchange.message().to_vec();
                *scram = Some(exchange);
                message(b'p', |bytes| {
                    bytes.extend_from_slice(sasl::SCRAM_SHA_256.as_bytes());
                    bytes.push(0);
                    bytes.extend_from_slice(&(first.len() as u32).to_be_bytes());
                    bytes.extend_from_slice(&first);
                })
            }
            11 => {
                let exchange = scram.as_mut().ok_or_else(bad)?;
                exchange.update(&rest)?;
                let next = exchange.message().to_vec();
                message(b'p', |bytes| bytes.extend_from_slice(&next))
            }
            12 => return Ok(scram.as_mut().ok_or_else(bad)?.finish(&rest)?),
            7 | 8 => return Err(ReplicationError::Authentication("GSSAPI".into())),
            9 => return Err(ReplicationError::Authentication("SSPI".into())),
            other => return Err(ReplicationError::Authentication(format!("authentication method {other}"))),
        };
        self.wire.send(&answer).await
    }

    /// Sends one command and gives its rows. The text is a command of ours: names in it were checked or quoted.
    ///
    /// # Errors
    /// The server refuses, or answers something else than rows.
    pub async fn query(&mut self, command: &str) -> Result<Vec<Vec<Option<Bytes>>>, ReplicationError> {
        self.send_query(command).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let frame = match self.wire.frame().await {
                // The server says that it is ready again after an error; the connection stays in step.
                Err(error @ ReplicationError::Server(_)) => {
                    failed = Some(error);
                    continue;
                }
                other => other?,
            };
            match frame.tag {
                b'T' | b'C' | b'I' => {}
                b'D' if rows.len() < ROWS_MAX => rows.push(wire::row(frame.body)?),
                b'Z' => return failed.map_or(Ok(rows), Err),
                _ => return Err(unexpected(&frame, command)),
            }
        }
    }

    pub(crate) async fn send_query(&mut self, command: &str) -> Result<(), ReplicationError> {
        self.wire
            .send(&message(b'Q', |bytes| {
                bytes.extend_from_slice(command.as_bytes());
                bytes.push(0);
            }))
            .await
    }

    /// Who the server is.
    ///
    /// # Errors
    /// As [`Client::query`].
    pub async fn identify(&mut self) -> Result<Identity, ReplicationError> {
        let mut columns = one_row(self.query("IDENTIFY_SYSTEM").await?, "IDENTIFY_SYSTEM")?;
        Ok(Identity {
            system_id: parsed(columns.pop_front(), "system identifier")?,
            timeline: parsed(columns.pop_front(), "timeline")?,
            flushed: parsed(columns.pop_front(), "flushed place")?,
        })
    }

    /// The history file of a timeline, byte for byte.
    ///
    /// # Errors
    /// The server does not have it (it is not an ancestor, or it is the first timeline, which has none).
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<Bytes, ReplicationError> {
        let mut columns =
            one_row(self.query(&format!("TIMELINE_HISTORY {timeline}")).await?, "TIMELINE_HISTORY")?;
        let _name = columns.pop_front();
        columns
            .pop_front()
            .flatten()
            .ok_or_else(|| ReplicationError::Protocol("TIMELINE_HISTORY without a file".into()))
    }

    /// What the server knows of a slot; `None` when there is no such slot.
    ///
    /// # Errors
    /// As [`Client::query`].
    pub async fn read_slot(&mut self, name: &str) -> Result<Option<Slot>, ReplicationError> {
        let rows = self.query(&format!("READ_REPLICATION_SLOT {}", quote_name(name))).await?;
        let mut columns = one_row(rows, "READ_REPLICATION_SLOT")?;
        if columns.pop_front().flatten().is_none() {
            return Ok(None);
        }
        let restart = match columns.pop_front().flatten() {
            None => None,
            text => Some(parsed(Some(text), "restart place")?),
        };
        Ok(Some(Slot { restart }))
    }

    /// Makes a physical slot that keeps log from now on.
    ///
    /// # Errors
    /// Code 42710 when it is there already; no free slot; as [`Client::query`].
    pub async fn create_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        self.query(&format!("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL", quote_name(name)))
            .await
            .map(drop)
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// It is in use, or not there.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        self.query(&format!("DROP_REPLICATION_SLOT {}", quote_name(name))).await.map(drop)
    }

    /// A setting's value.
    ///
    /// # Errors
    /// The server has no such setting.
    pub async fn show(&mut self, name: &str) -> Result<String, ReplicationError> {
        let mut columns = one_row(self.query(&format!("SHOW {name}")).await?, "SHOW")?;
        parsed(columns.pop_front(), "setting")
    }
}

async fn open(login: &Login) -> Result<Wire, ReplicationError> {
    Ok(match &login.host {
        Host::Tcp(host) => {
            let socket = tokio::net::TcpStream::connect((host.as_str(), login.port)).await?;
            socket.set_nodelay(true)?;
            Wire::new(socket)
        }
        Host::Unix(folder) => {
            Wire::new(tokio::net::UnixStream::connect(folder.join(format!(".s.PGSQL.{}", login.port))).await?)
        }
    })
}

fn text_message(text: &[u8]) -> Vec<u8> {
    message(b'p', |bytes| {
        bytes.extend_from_slice(text);
        bytes.push(0);
    })
}

pub(crate) fn unexpected(frame: &Frame, doing: &str) -> ReplicationError {
    let doing: String = doing.chars().take(40).collect();
    ReplicationError::Protocol(format!("message {:?} in answer to {doing}", char::from(frame.tag)))
}

fn one_row(rows: Vec<Vec<Option<Bytes>>>, what: &str) -> Result<VecDeque<Option<Bytes>>, ReplicationError> {
    rows.into_iter()
        .next()
        .map(VecDeque::from)
        .ok_or_else(|| ReplicationError::Protocol(format!("no row for {what}")))
}

pub(crate) fn parsed<T: std::str::FromStr>(
    column: Option<Option<Bytes>>,
    what: &str,
) -> Result<T, ReplicationError> {
    let text = column.flatten().ok_or_else(|| ReplicationError::Protocol(format!("no {what}")))?;
    let text =
        std::str::from_utf8(&text).map_err(|_| ReplicationError::Protocol(format!("{what} is not text")))?;
    text.parse().map_err(|_| {
        ReplicationError::Protocol(format!("{what} is {:?}", text.chars().take(80).collect::<String>()))
    })
}

/// A name in double quotes. The replication grammar takes the same form as SQL.
pub fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\"").replace('\0', ""))
}

/// A text in single quotes; with standard_conforming_strings a backslash is only a backslash.
pub fn quote_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''").replace('\0', ""))
}
