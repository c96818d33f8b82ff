//! Connections: SQL and replication, to one node, or to whichever node is the primary now.
//!
//! A session of ours waits for nothing without a deadline, and nothing ends it from the side: the server's idle timeouts are
//! switched off for it, because a backup lives as long as its session.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_engine::{Access, Error, Kind, NodeAccess, Result};
use tokio_postgres::{Client as Sql, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::fault;
use crate::lsn::{self, History, Lsn, Timeline};
use crate::replication::{self, Client, Host, Login};

/// How long a connection may take to be made.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The way into one node.
pub fn login(access: &Access, node: &NodeAccess) -> Login {
    let host = if node.host.starts_with('/') {
        Host::Unix(PathBuf::from(&node.host))
    } else {
        Host::Tcp(node.host.clone())
    };
    Login {
        host,
        port: node.port,
        user: access.user.clone(),
        password: access.password.as_ref().map(|password| password.expose().to_owned()),
        application: application(access),
    }
}

/// What servers see us as: never a name that `synchronous_standby_names` would list by chance.
pub fn application(access: &Access) -> String {
    format!("mainstay_{}", access.scope)
}

/// The name of our slots.
pub fn slot(access: &Access) -> String {
    let name = format!("mainstay_{}", access.scope);
    // A slot's name has at most 63 characters of a small alphabet; the scope keeps to that by contract.
    name.chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' })
        .take(63)
        .collect()
}

/// A replication connection.
///
/// # Errors
/// `Unreachable`, `Refused`.
pub async fn replicate(access: &Access, node: &NodeAccess) -> Result<Client> {
    let connected = Client::connect(&login(access, node), CONNECT_DEADLINE).await;
    connected.map_err(|error| fault::replication(format!("connect to {} for replication", node.name), error))
}

/// A session in `database`.
///
/// # Errors
/// `Unreachable`, `Refused`.
pub async fn session(access: &Access, node: &NodeAccess, database: &str) -> Result<Sql> {
    let mut config = tokio_postgres::Config::new();
    if node.host.starts_with('/') {
        config.host_path(Path::new(&node.host));
    } else {
        config.host(&node.host);
    }
    config.port(node.port).user(&access.user).dbname(database).connect_timeout(CONNECT_DEADLINE);
    config.application_name(application(access));
    config.options("-c statement_timeout=0 -c lock_timeout=60s -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0 -c TimeZone=UTC -c DateStyle=ISO");
    if let Some(password) = &access.password {
        config.password(password.expose());
    }
    let what = || format!("connect to {}", node.name);
    let connecting = tokio::time::timeout(CONNECT_DEADLINE, config.connect(NoTls)).await;
    let (client, connection) = connecting
        .map_err(|_| Error::new(Kind::Unreachable, format!("{}: no answer in {CONNECT_DEADLINE:?}", what())))?
        .map_err(|error| fault::sql(what(), error))?;
    // The task ends when the client is dropped or the server goes away; whoever uses the client sees the error.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// The rows of a query in the simple protocol: all columns as text.
///
/// # Errors
/// What the server says.
pub async fn rows(sql: &Sql, what: &str, query: &str) -> Result<Vec<SimpleQueryRow>> {
    let messages = sql.simple_query(query).await.map_err(|error| fault::sql(what, error))?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect())
}

/// The only row of a query.
///
/// # Errors
/// What the server says; `Server` when there is none.
pub async fn row(sql: &Sql, what: &str, query: &str) -> Result<SimpleQueryRow> {
    let found = rows(sql, what, query).await?.into_iter().next();
    found.ok_or_else(|| Error::new(Kind::Server, format!("{what}: no answer")))
}

/// A column of such a row, read as `T`.
///
/// # Errors
/// `Server` when it is NULL or nothing of the kind.
pub fn column<T: std::str::FromStr>(row: &SimpleQueryRow, index: usize, what: &str) -> Result<T> {
    let text = row.try_get(index).ok().flatten();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::new(Kind::Server, format!("{what}: unexpected answer {text:?}")))
}

/// What one node says of itself.
pub struct Standing {
    /// Its index in the access.
    pub index: usize,
    /// Whether it only replays.
    pub in_recovery: bool,
    /// The timeline that it writes or replays.
    pub timeline: Timeline,
    /// The cluster's identifier.
    pub system_id: u64,
    /// How far its log is.
    pub flushed: Lsn,
    /// An open session in the database `postgres`.
    pub sql: Sql,
}

/// What a node says of itself now.
///
/// # Errors
/// `Unreachable`, `Refused`, `Server`.
pub async fn standing(access: &Access, index: usize) -> Result<Standing> {
    let node = &access.nodes[index];
    let sql = session(access, node, "postgres").await?;
    let what = format!("ask {} for its role", node.name);
    // A standby knows the timeline that it replays from its last restart point on; nobody needs it more exactly.
    let query = "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), \
                 CASE WHEN pg_is_in_recovery() \
                 THEN (SELECT greatest(c.timeline_id, r.min_recovery_end_timeline) FROM pg_control_checkpoint() c, pg_control_recovery() r) \
                 ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END, \
                 CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END";
    let answer = row(&sql, &what, query).await?;
    Ok(Standing {
        index,
        in_recovery: answer.get(0) == Some("t"),
        system_id: column(&answer, 1, &what)?,
        timeline: column(&answer, 2, &what)?,
        flushed: column(&answer, 3, &what)?,
        sql,
    })
}

/// The node that takes writes now: of several that say so (an old primary that came back), the one on the newest timeline.
///
/// # Errors
/// `Unreachable` when no node that answers takes writes.
pub async fn primary(access: &Access) -> Result<Standing> {
    let all = standings(access).await;
    let mut last = None;
    let mut best: Option<Standing> = None;
    for outcome in all {
        match outcome {
            Ok(standing) if !standing.in_recovery => {
                if best.as_ref().is_none_or(|best| best.timeline < standing.timeline) {
                    best = Some(standing);
                }
            }
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    match (best, last) {
        (Some(best), _) => Ok(best),
        // A password that is wrong everywhere is not a network that is down.
        (None, Some(error)) if error.kind == Kind::Refused => Err(error),
        (None, last) => {
            let error = Error::new(Kind::Unreachable, format!("no node of {} takes writes", access.cluster));
            Err(match last {
                Some(last) => error.source(last),
                None => error,
            })
        }
    }
}

/// What every node says of itself, in the order of the access.
pub async fn standings(access: &Access) -> Vec<Result<Standing>> {
    futures::future::join_all((0..access.nodes.len()).map(|index| standing(access, index))).await
}

/// The tablespaces (OID and name) that lie inside the data directory and that a base backup does not send: 15 passes over them without a
/// word. Every tablespace of a cluster that was restored lies there.
///
/// # Errors
/// What the server says.
pub async fn left_out(sql: &Sql, sent: &[replication::Tablespace]) -> Result<Vec<(u32, String)>> {
    let what = "list the tablespaces inside the data directory";
    let query = "SELECT oid, spcname FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE 'pg_tblspc/%'";
    let mut all = Vec::new();
    for row in rows(sql, what, query).await? {
        let oid: u32 = column(&row, 0, what)?;
        if !sent.iter().any(|tablespace| tablespace.oid == oid) {
            all.push((oid, row.get(1).unwrap_or("").to_owned()));
        }
    }
    Ok(all)
}

/// How `timeline` came to be, byte for byte and parsed; the first timeline has no history.
///
/// # Errors
/// `Server` when the server does not know it, `Damaged` when it is none.
pub async fn history(client: &mut Client, timeline: Timeline) -> Result<(History, Option<bytes::Bytes>)> {
    if timeline <= 1 {
        return Ok((History::default(), None));
    }
    let what = format!("read the history of timeline {timeline}");
    let bytes = client.timeline_history(timeline).await.map_err(|error| fault::replication(&*what, error))?;
    let text = String::from_utf8_lossy(&bytes);
    let history = History::parse(&text).map_err(|error| Error::new(Kind::Damaged, what).source(error))?;
    Ok((history, Some(bytes)))
}

/// The contract's branches of a timeline and all its ancestors, each with the place where it left its parent.
pub fn branches(timeline: Timeline, history: &History) -> Vec<mainstay_model::Branch> {
    let mut branches = Vec::new();
    let mut parent: Option<mainstay_model::Place> = None;
    for index in 0..=history.branches.len() {
        let (number, left) =
            history.branches.get(index).map_or((timeline, None), |(number, left)| (*number, Some(*left)));
        let epoch = lsn::epoch(number, &History { branches: history.branches[..index].to_vec() });
        let first = parent.as_ref().map_or_else(Default::default, |place| place.offset);
        branches.push(mainstay_model::Branch { epoch: epoch.clone(), parent: parent.take(), first });
        parent = left.map(|left| lsn::place(&epoch, left));
    }
    branches
}

/// A name as SQL takes it.
pub use replication::quote_name;
/// A text as SQL takes it.
pub use replication::quote_text;
