//! Replaying: the target becomes a place by our own reading of the log, and the log is cut there by what we supply.
//!
//! The server gets no recovery target. It asks for segments (`restore_command`), gets the log up to the cut and zeros behind it,
//! and ends recovery at the end of what there is; then the place where it began its new timeline is compared with the cut. So an instant
//! after the last commit works, and the place right behind a mark, which PostgreSQL's own targets refuse or overshoot.

mod cut;
mod feed;
mod supply;

use std::path::Path;
use std::time::{Duration, Instant as Clock};

use async_trait::async_trait;
use mainstay_engine::{
    Cutting, Error, Kind, Layout, LogSource, NodeAccess, NodeLayout, Replay, Replayed, RestoreJob, Result,
    Target,
};
use mainstay_model::{Lane, Place, Position};

use self::feed::{Fed, Feed, Step};
use self::supply::Supply;
use crate::config::{self, Role};
use crate::lsn::{History, Lsn};
use crate::snapshot::{Meta, lane};
use crate::{Postgres, connect, disk, fault, launch, restore};

const POLL: Duration = Duration::from_millis(20);
/// Recovery says how far it is every ten seconds while it works.
const SILENCE_MAX: Duration = Duration::from_secs(300);
const STOP_GRACE: Duration = Duration::from_secs(20);
/// Room for whatever the log prepared; PostgreSQL ends recovery with an error when it is too small.
const PREPARED_LEAST: i32 = 1000;

#[async_trait]
impl Replay for Postgres {
    fn cut(&self, lane: &Lane, from: &Place, log: &dyn LogSource, target: &Target) -> Result<Cutting> {
        cut::find(lane, from, log, target)
    }

    async fn replay(&self, job: &RestoreJob<'_>) -> Result<Replayed> {
        let Some(node) = job.layout.nodes.first() else {
            return Err(Error::new(Kind::Invalid, "replay into a cluster without nodes"));
        };
        let replayed = replay(job, node).await;
        if replayed.is_err() && job.host.running(&node.name).is_some() {
            // INT would wait for a checkpoint of data that nobody wants.
            if let Err(error) = job.host.stop(&node.name, "QUIT", STOP_GRACE).await {
                tracing::warn!(%error, node = node.name, "server of a failed replay not stopped");
            }
        }
        let cleaned = disk::remove_all(&feed::folder(node));
        let replayed = replayed?;
        cleaned?;
        Ok(replayed)
    }
}

async fn replay(job: &RestoreJob<'_>, node: &NodeLayout) -> Result<Replayed> {
    let meta = restore::meta(job)?;
    let cut =
        job.cut.get(&lane()).ok_or_else(|| Error::new(Kind::Invalid, "replay without a place to stop at"))?;
    let supply = Supply::new(job, &meta, cut)?;
    job.progress.stage("replay log");
    job.progress.expect(supply.bytes());
    let target = supply.timeline();
    prepare(job, node, &meta, target)?;
    let log_from = disk::length(&node.log());
    let feed = Feed::new(job, node, &meta, supply)?;
    launch::start_server(job.layout, node, job.host).await?;
    let (fed, sql) = drive(job, node, &meta, feed, log_from).await?;
    check_end(node, target, &fed)?;
    open(job, node, &meta, sql)
        .await
        .map(|notes| Replayed { position: Position::single(lane(), cut.clone()), notes })
}

/// What a sandbox is denied: to archive, to replicate, to wait for standbys, to run others' workers.
fn quiet(meta: &Meta) -> Vec<(String, String)> {
    let mut settings = vec![
        ("archive_mode", "off".to_owned()),
        ("archive_command", String::new()),
        ("synchronous_standby_names", String::new()),
        ("max_logical_replication_workers", "0".to_owned()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
    ];
    // From 17 on they can fire at a login too: what they write would be another content after each look.
    if meta.version_num >= 170_000 {
        settings.push(("event_triggers", "off".to_owned()));
    }
    let libraries = restore::libraries(meta);
    if libraries.iter().any(|name| name == "timescaledb") {
        settings.push(("timescaledb.max_background_workers", "0".to_owned()));
        settings.push(("timescaledb.telemetry_level", "off".to_owned()));
    }
    if libraries.iter().any(|name| name == "pg_cron") {
        settings.push(("cron.launch_active_jobs", "off".to_owned()));
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Settings that the data and its log need of any server.
fn needed(layout: &Layout, meta: &Meta) -> Vec<(String, String)> {
    let number = |name: &str| {
        let ours = layout.cluster.config.get(name).and_then(|text| text.parse::<i32>().ok()).unwrap_or(0);
        ours.max(meta.settings.get(name).and_then(|text| text.parse::<i32>().ok()).unwrap_or(0))
    };
    let mut settings = vec![
        ("max_connections", number("max_connections").max(100).to_string()),
        ("max_worker_processes", number("max_worker_processes").max(8).to_string()),
        ("max_prepared_transactions", number("max_prepared_transactions").to_string()),
        ("max_locks_per_transaction", number("max_locks_per_transaction").max(64).to_string()),
    ];
    if !layout.cluster.config.contains_key("shared_preload_libraries") {
        settings.push(("shared_preload_libraries", restore::libraries(meta).join(",")));
    }
    for name in ["track_commit_timestamp", "default_text_search_config"] {
        if let (false, Some(value)) = (layout.cluster.config.contains_key(name), meta.settings.get(name)) {
            settings.push((name, value.clone()));
        }
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Settings of the server while it recovers.
fn recovering(job: &RestoreJob<'_>, node: &NodeLayout, meta: &Meta, timeline: u32) -> Vec<(String, String)> {
    let mut settings = needed(job.layout, meta);
    settings.extend(quiet(meta));
    let prepared =
        meta.settings.get("max_prepared_transactions").and_then(|text| text.parse::<i32>().ok()).unwrap_or(0);
    let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
    set("max_prepared_transactions", prepared.max(PREPARED_LEAST).to_string());
    // Nobody reads before the end, and so a setting below the source's is no obstacle.
    set("hot_standby", "off".into());
    if job.layout.sandbox {
        // Made anew from the vault if this machine loses power; switched on again once it is open.
        set("fsync", "off".into());
    }
    set("restore_command", feed::command(node));
    // Never `latest`: a history that is not ours must not be looked for.
    set("recovery_target_timeline", timeline.to_string());
    set("unix_socket_directories", socket(node).to_string_lossy().into_owned());
    settings
}

fn prepare(job: &RestoreJob<'_>, node: &NodeLayout, meta: &Meta, timeline: u32) -> Result<()> {
    let settings = recovering(job, node, meta, timeline);
    // Only through the socket, in a folder that is the server's own: the roles' passwords are the source's.
    let hba = "local all all trust\n";
    launch::write_files(job.layout, node, &Role::Primary, &settings, hba)?;
    disk::folder(&socket(node), job.layout.owner)?;
    disk::write(&node.data().join("recovery.signal"), b"", 0o600, job.layout.owner)
}

/// The folder of the socket that we come in by.
fn socket(node: &NodeLayout) -> std::path::PathBuf {
    match config::socket_folder(node) {
        Some(folder) => folder.to_owned(),
        None => {
            std::env::temp_dir().join(format!("mainstay-pg-{}-{}", std::process::id(), launch::port(node)))
        }
    }
}

/// Feeds the log and waits until recovery has ended; gives a superuser's session.
async fn drive(
    job: &RestoreJob<'_>,
    node: &NodeLayout,
    meta: &Meta,
    mut feed: Feed<'_>,
    log_from: u64,
) -> Result<(Fed, tokio_postgres::Client)> {
    let mut moved = (Clock::now(), 0, 0);
    let mut fed = None;
    loop {
        job.progress.check()?;
        if fed.is_none() {
            match crate::blocking(|| feed.step())? {
                Step::Fed => continue,
                Step::Full => {}
                Step::Done(done) => fed = Some(done),
            }
        }
        if let Some(done) = &fed
            && launch::says_ready(node)
            && let Some(sql) = recovered(job.layout, node, meta).await
        {
            return Ok((done.clone(), sql));
        }
        if job.host.running(&node.name).is_none() {
            let what = format!("replay the log: the server ended\n{}", disk::log_tail(&node.log(), log_from));
            return Err(
                Error::new(Kind::Server, what).hint(format!("the whole log is {}", node.log().display()))
            );
        }
        let now = (disk::length(&node.log()), disk::length(&feed::asked(node)));
        if (moved.1, moved.2) != now {
            moved = (Clock::now(), now.0, now.1);
        } else if moved.0.elapsed() > SILENCE_MAX {
            let what = format!(
                "replay the log: nothing moved for {SILENCE_MAX:?}\n{}",
                disk::log_tail(&node.log(), log_from)
            );
            return Err(Error::new(Kind::Deadline, what));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A superuser's session, once recovery has ended.
async fn recovered(layout: &Layout, node: &NodeLayout, meta: &Meta) -> Option<tokio_postgres::Client> {
    for user in [layout.user.as_str(), meta.superuser.as_str(), "postgres"] {
        let access = local(layout, node, user);
        let Ok(sql) = connect::session(&access, &access.nodes[0], "postgres").await else { continue };
        let query = "SELECT pg_is_in_recovery(), usesuper FROM pg_user WHERE usename = current_user";
        let Ok(row) = connect::row(&sql, "ask whether recovery has ended", query).await else { continue };
        if row.get(0) == Some("f") && row.get(1) == Some("t") {
            return Some(sql);
        }
    }
    None
}

fn local(layout: &Layout, node: &NodeLayout, user: &str) -> mainstay_engine::Access {
    let mut access = layout.access();
    access.user = user.to_owned();
    access.password = None;
    let host = socket(node).to_string_lossy().into_owned();
    access.nodes =
        vec![NodeAccess { name: node.name.clone(), host, port: launch::port(node), data_dir: None }];
    access
}

/// Compares where the server began its new timeline with where it was to stop.
fn check_end(node: &NodeLayout, target: u32, fed: &Fed) -> Result<()> {
    let folder = node.data().join("pg_wal");
    let history = newest_history(&folder)
        .ok_or_else(|| Error::new(Kind::Server, "the server ended recovery without a new timeline"))?;
    let (timeline, switched) = history.branches.last().copied().unwrap_or((0, Lsn(0)));
    if timeline != target || fed.normal(switched) != fed.normal(fed.end) {
        let what = format!("the server stopped at {timeline}:{switched} and not at {target}:{}", fed.end);
        return Err(
            Error::new(Kind::Server, what).hint("its log says why; the snapshot or the log may be damaged")
        );
    }
    Ok(())
}

fn newest_history(folder: &Path) -> Option<History> {
    let names =
        std::fs::read_dir(folder).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let newest = names.filter(|name| name.ends_with(".history") && name.len() == 16).max()?;
    History::parse(&std::fs::read_to_string(folder.join(newest)).ok()?).ok()
}

/// Lets the users in, in the way of a cluster of ours, and says what they should know.
async fn open(
    job: &RestoreJob<'_>,
    node: &NodeLayout,
    meta: &Meta,
    sql: tokio_postgres::Client,
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let what = "open the restored cluster";
    let batch = |text: String| {
        let sql = &sql;
        async move { sql.batch_execute(&text).await.map_err(|error| fault::sql(what, error)) }
    };
    // The administrator of this layout, whatever roles the source had. The server is sent the verifier, never the password.
    let verifier = postgres_protocol::password::scram_sha_256(job.layout.password.expose().as_bytes());
    let (user, literal) = (connect::quote_name(&job.layout.user), connect::quote_text(&job.layout.user));
    batch("SET log_statement = 'none'; SET log_min_error_statement = 'panic'; SET log_min_duration_statement = -1".into()).await?;
    let known = !connect::rows(&sql, what, &format!("SELECT 1 FROM pg_roles WHERE rolname = {literal}"))
        .await?
        .is_empty();
    let verb = if known { "ALTER" } else { "CREATE" };
    batch(format!(
        "{verb} ROLE {user} LOGIN SUPERUSER REPLICATION PASSWORD {} VALID UNTIL 'infinity'",
        connect::quote_text(&verifier)
    ))
    .await?;
    if !known {
        notes.push(format!("role {} was made: the snapshot had none of that name", job.layout.user));
    }
    let prepared =
        connect::rows(&sql, what, "SELECT gid, database FROM pg_prepared_xacts ORDER BY prepared").await?;
    for row in &prepared {
        let (gid, database) = (row.get(0).unwrap_or(""), row.get(1).unwrap_or(""));
        notes.push(format!(
            "prepared transaction {gid:?} in {database} waits: COMMIT PREPARED or ROLLBACK PREPARED it"
        ));
    }
    if !job.layout.sandbox {
        for (_, name) in connect::left_out(&sql, &[]).await? {
            notes.push(format!(
                "tablespace {name} lies inside the data directory now: copies by other tools over the replication protocol \
                 (pg_basebackup of PostgreSQL 15) leave it out without a word"
            ));
        }
    }
    let mut settings = needed(job.layout, meta);
    if !prepared.is_empty() {
        settings.push(("max_prepared_transactions".into(), PREPARED_LEAST.to_string()));
    }
    if job.layout.sandbox {
        settings.extend(quiet(meta));
        settings.push(("max_wal_senders".into(), "4".into()));
    }
    launch::keep(job.layout, node, &settings)?;
    launch::write_files(job.layout, node, &Role::Primary, &settings, config::HBA)?;
    batch("SELECT pg_reload_conf()".into()).await?;
    drop(sql);
    launch::ready(job.layout, node, job.host).await?;
    if config::socket_folder(node).is_none() {
        disk::remove_all(&socket(node))?;
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_elsewhere_than_at_the_cut_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeLayout { name: "orders-1".into(), dir: folder.path().to_owned(), ports: Vec::new() };
        let wal = node.data().join("pg_wal");
        std::fs::create_dir_all(&wal).unwrap();
        let ended = |target, end| check_end(&node, target, &Fed { end, segment_size: 16 << 20 });
        assert_eq!(ended(1, Lsn(0x300_0148)).unwrap_err().kind, Kind::Server, "without a history");
        let write = |name: &str, text: &str| std::fs::write(wal.join(name), text).unwrap();
        write("00000002.history", "1\t0/3000148\tno recovery target specified\n");
        ended(1, Lsn(0x300_0148)).unwrap();
        for (target, end) in [(1, Lsn(0x300_0140)), (1, Lsn(0x300_0150)), (2, Lsn(0x300_0148))] {
            assert_eq!(ended(target, end).unwrap_err().kind, Kind::Server, "{target}:{end}");
        }
        // The newest one counts; and the end of a page is the same place before and behind the next one's header.
        write("00000003.history", "1\t0/3000148\tx\n\n2\t0/4002018\tx\n");
        ended(2, Lsn(0x400_2000)).unwrap();
        assert_eq!(ended(1, Lsn(0x300_0148)).unwrap_err().kind, Kind::Server);
    }
}
