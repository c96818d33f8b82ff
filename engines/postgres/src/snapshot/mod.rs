//! Snapshots: a base backup over the replication protocol, or parallel reading of the files beside the server.
//!
//! Either way the snapshot holds the log from its start to its end (`pg_wal/`), fetched over a replication link of its own, with
//! a temporary slot that keeps it meanwhile: no archive is needed. What it stores is a data directory that a server can be
//! started on as it is; tablespaces lie inside it. Kept beside it under `mainstay/`: the original tablespace map, and the server's
//! configuration files where they lie outside the data directory.
//!
//! Dropping the future ends the server's backup (its session is closed) and the readers.

mod files;
mod own_log;
mod protocol;
mod settings;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mainstay_engine::{
    Access, Error, FileKind, FileSpec, Kind, NodeAccess, Progress, Result, Snapshot, SnapshotOptions,
    SnapshotSink, Taken, Way,
};
use mainstay_model::{Bracket, Instant, Lane, Position};
use serde::{Deserialize, Serialize};

use self::own_log::OwnLog;
use crate::connect::{self, Standing};
use crate::lsn::{self, Lsn, Timeline};
use crate::replication::Tablespace;
use crate::{Postgres, pages};

/// How long the rest of the log may take once the copy is done.
const LOG_DEADLINE: Duration = Duration::from_secs(600);

/// The only lane.
pub fn lane() -> Lane {
    Lane::new("wal")
}

/// What a restore wants to know of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// `server_version_num`
    pub version_num: u32,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// `files` or `protocol`.
    pub way: String,
    /// Tablespaces and where they lay.
    pub tablespaces: Vec<(u32, String)>,
    /// The name of the superuser that initdb made.
    pub superuser: String,
    /// Settings that the data needs, by name.
    pub settings: std::collections::BTreeMap<String, String>,
}

/// Settings that a restored cluster takes over: what its data or its log needs, nothing that reaches out.
const KEPT: &[&str] = &[
    "max_connections",
    "max_worker_processes",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "shared_preload_libraries",
    "track_commit_timestamp",
    "default_text_search_config",
    "max_files_per_process",
];

/// Where a base copy begins and ends.
struct Copied {
    start: (Lsn, Timeline),
    stop: Lsn,
    tablespaces: Vec<(u32, String)>,
    /// The source's clock, before and after the end of the copy.
    at: Bracket,
}

/// What both ways need.
struct Job<'a> {
    access: &'a Access,
    node: &'a NodeAccess,
    options: &'a SnapshotOptions,
    sink: Arc<dyn SnapshotSink>,
    progress: Arc<dyn Progress>,
    major: u32,
    checksums: bool,
}

#[async_trait]
impl Snapshot for Postgres {
    async fn snapshot(
        &self,
        access: &Access,
        options: &SnapshotOptions,
        sink: Arc<dyn SnapshotSink>,
        progress: Arc<dyn Progress>,
    ) -> Result<Taken> {
        let source = source(access).await?;
        let node = &access.nodes[source.index];
        let (version, mut meta) = describe(&source.sql).await?;
        let job = Job {
            access,
            node,
            options,
            sink,
            progress,
            major: meta.version_num / 10_000,
            checksums: meta.checksums,
        };
        let data = match options.way {
            Way::Protocol => None,
            Way::Auto => files::data_dir(node, source.system_id).ok(),
            Way::Files => Some(files::data_dir(node, source.system_id)?),
        };
        settings::copy(&job, &source.sql, data.is_some()).await?;
        let mut own = OwnLog::reserve(&job, meta.segment_size).await?;
        job.progress.stage("copy files");
        meta.way = if data.is_some() { "files" } else { "protocol" }.into();
        let copied = match data {
            Some(data) => files::copy(&job, &source.sql, data, &mut own).await,
            None => protocol::copy(&job, &source.sql, &mut own).await,
        }?;
        job.progress.stage("fetch the log of the copy");
        let finishing = tokio::time::timeout(LOG_DEADLINE, own.finish(copied.stop));
        let finished = finishing.await.map_err(|_| {
            Error::new(
                Kind::Deadline,
                format!("fetch the snapshot's own log: not there after {LOG_DEADLINE:?}"),
            )
        })??;
        let (start, timeline) = copied.start;
        let mut client = connect::replicate(access, node).await?;
        let (history, bytes) = connect::history(&mut client, timeline).await?;
        if let Some(bytes) = bytes {
            put(&job, format!("pg_wal/{}", lsn::history_name(timeline)), bytes.to_vec()).await?;
        }
        meta.tablespaces = copied.tablespaces;
        let epoch = lsn::epoch(timeline, &history);
        let earliest = finished.last_commit.map_or(copied.at.earliest, |last| last.min(copied.at.latest));
        Ok(Taken {
            position: Position::single(lane(), lsn::place(&epoch, copied.stop)),
            started: Position::single(lane(), lsn::place(&epoch, start)),
            at: Bracket::between(earliest, copied.at.latest),
            incarnation: Some(source.system_id.to_string()),
            version,
            branches: connect::branches(timeline, &history)
                .into_iter()
                .map(|branch| (lane(), branch))
                .collect(),
            meta: serde_json::to_value(meta)
                .map_err(|error| Error::new(Kind::Invalid, "describe the snapshot").source(error))?,
        })
    }
}

/// The node to copy: the primary, or where none takes writes now a standby that answers.
async fn source(access: &Access) -> Result<Standing> {
    match connect::primary(access).await {
        Err(error) if error.kind == Kind::Unreachable => {
            let standbys = connect::standings(access).await.into_iter().flatten();
            standbys.max_by_key(|standing| (standing.timeline, standing.flushed)).ok_or(error)
        }
        found => found,
    }
}

async fn describe(sql: &tokio_postgres::Client) -> Result<(String, Meta)> {
    let what = "ask for the server's settings";
    let answer = connect::row(
        sql,
        what,
        "SELECT current_setting('server_version'), current_setting('server_version_num'), \
         pg_size_bytes(current_setting('wal_segment_size')), current_setting('data_checksums'), \
         current_setting('block_size'), (SELECT rolname FROM pg_roles WHERE oid = 10)",
    )
    .await?;
    let version: String = connect::column(&answer, 0, what)?;
    let version_num: u32 = connect::column(&answer, 1, what)?;
    let block_size: usize = connect::column(&answer, 4, what)?;
    if block_size != pages::PAGE_BYTES {
        return Err(Error::new(
            Kind::Unsupported,
            format!("a server built with pages of {block_size} bytes"),
        ));
    }
    if !crate::install::MAJORS.contains(&(version_num / 10_000)) {
        return Err(Error::new(Kind::Unsupported, format!("PostgreSQL {version}: 15 to 18 are supported")));
    }
    let names: Vec<_> = KEPT.iter().map(|name| connect::quote_text(name)).collect();
    let query = format!("SELECT name, setting FROM pg_settings WHERE name IN ({})", names.join(", "));
    let mut settings = std::collections::BTreeMap::new();
    for row in connect::rows(sql, what, &query).await? {
        settings.insert(connect::column(&row, 0, what)?, row.get(1).unwrap_or("").to_owned());
    }
    let meta = Meta {
        version_num,
        segment_size: connect::column(&answer, 2, what)?,
        checksums: answer.get(3) == Some("on"),
        way: String::new(),
        tablespaces: Vec::new(),
        superuser: connect::column(&answer, 5, what)?,
        settings,
    };
    // `15.18 (Debian 15.18-0+deb12u1)`
    Ok((version.split_whitespace().next().unwrap_or(&version).to_owned(), meta))
}

/// The source's clock.
async fn clock(sql: &tokio_postgres::Client) -> Result<Instant> {
    let what = "ask for the server's clock";
    let row =
        connect::row(sql, what, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?;
    Ok(Instant(connect::column(&row, 0, what)?))
}

/// How a file of the data directory is stored.
fn spec(path: &str, mode: u32) -> FileSpec {
    let rewritten = pages::first_block(path).is_some()
        || ["pg_xact/", "pg_multixact/", "pg_commit_ts/"].iter().any(|folder| path.starts_with(folder));
    let cut = if rewritten {
        mainstay_engine::Cut::Pages(pages::PAGE_BYTES as u32)
    } else {
        mainstay_engine::Cut::Whole
    };
    FileSpec { path: path.to_owned(), kind: FileKind::Regular, mode, cut }
}

fn directory(path: &str) -> FileSpec {
    FileSpec {
        path: path.to_owned(),
        kind: FileKind::Directory,
        mode: 0o700,
        cut: mainstay_engine::Cut::Whole,
    }
}

/// Stores a small file.
async fn put(job: &Job<'_>, path: String, content: Vec<u8>) -> Result<()> {
    store(&job.sink, spec(&path, 0o600), std::io::Cursor::new(content)).await
}

/// Stores what `content` gives, on a thread of its own.
async fn store(
    sink: &Arc<dyn SnapshotSink>,
    spec: FileSpec,
    mut content: impl Read + Send + 'static,
) -> Result<()> {
    let sink = Arc::clone(sink);
    joined(tokio::task::spawn_blocking(move || sink.put(&spec, &mut content).map(drop)).await)
}

fn joined<T>(outcome: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    outcome.unwrap_or_else(|error| {
        Err(Error::new(Kind::Io, "a thread of the snapshot ended early").source(error))
    })
}

/// Parses `backup_label`: where redo starts and on which timeline.
fn parse_label(label: &str) -> Option<(Lsn, Timeline)> {
    let field = |name: &str| label.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let start = field("START WAL LOCATION:")?.split_whitespace().next()?.parse().ok()?;
    Some((start, field("START TIMELINE:")?.parse().ok()?))
}

/// Parses `tablespace_map`: OID and directory, backslash before what would end a line.
fn parse_map(map: &str) -> Vec<(u32, String)> {
    let mut all = Vec::new();
    let mut line = String::new();
    let mut escaped = false;
    for c in map.chars().chain(['\n']) {
        match c {
            '\\' if !escaped => escaped = true,
            '\n' if !escaped => {
                if let Some((oid, path)) = line.split_once(' ')
                    && let Ok(oid) = oid.parse()
                {
                    all.push((oid, path.to_owned()));
                }
                line.clear();
            }
            other => {
                line.push(other);
                escaped = false;
            }
        }
    }
    all
}

fn tablespaces(list: &[Tablespace]) -> Vec<(u32, String)> {
    list.iter().map(|tablespace| (tablespace.oid, tablespace.location.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_maps_are_read() {
        let label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
                     BACKUP METHOD: streamed\nSTART TIMELINE: 3\n";
        assert_eq!(parse_label(label), Some((Lsn(0x200_0028), 3)));
        assert_eq!(parse_label("nothing"), None);
        assert_eq!(
            parse_map("16400 /srv/a b\n16401 /srv/c\\\nd\n"),
            [(16400, "/srv/a b".into()), (16401, "/srv/c\nd".into())]
        );
    }
}
