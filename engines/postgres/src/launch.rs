//! Starting and stopping nodes here: one primary, and standbys that stream from it.
//!
//! Which node is the primary is never remembered: it is read from the data directories (a standby has `standby.signal`), so a
//! promotion survives `down` and `up`. A former primary that was overtaken by a promotion is not started as a second primary: its
//! data is set aside, never deleted, and it is made a standby anew.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use mainstay_engine::{
    Access, Error, Host, Installation, Kind, Launch, Layout, NodeAccess, NodeCommand, NodeLayout, Result,
};
use mainstay_model::Cluster;

use crate::config::{self, Role};
use crate::replication::BackupOptions;
use crate::tar::{EntryKind, Piece};
use crate::unpack::{Files, is_left_out};
use crate::{Postgres, connect, disk, fault, install};

const START_DEADLINE: Duration = Duration::from_secs(120);
/// How long a parent may take to take note of a server's end; it need not be one that ever does.
const BURIAL_DEADLINE: Duration = Duration::from_secs(20);
const STOP_GRACE: Duration = Duration::from_secs(60);
const CLONE_DEADLINE: Duration = Duration::from_secs(3600);
const RELOAD_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

#[async_trait]
impl Launch for Postgres {
    fn find(&self, version: Option<&str>) -> Result<Installation> {
        install::find(version)
    }

    fn ports_per_node(&self, _: &Cluster) -> usize {
        1
    }

    fn sandbox_nodes(&self, _: &Cluster) -> usize {
        1
    }

    fn run_as(&self) -> Option<&'static str> {
        Some("postgres")
    }

    async fn start(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        let primary = which_primary(layout)?;
        let first = &layout.nodes[primary];
        if state(first) == State::Absent {
            initialize(layout, first, host).await?;
        }
        start_node(layout, first, &Role::Primary, &[], host).await?;
        ready(layout, first, host).await?;
        for (index, node) in layout.nodes.iter().enumerate() {
            if index != primary {
                start_standby(layout, primary, node, host).await?;
            }
        }
        Ok(())
    }

    async fn stop(&self, layout: &Layout, host: &dyn Host) -> Result<()> {
        // The primary first: it ends by sending its last record to the standbys, which then need nothing when they start again.
        let mut nodes: Vec<_> = layout.nodes.iter().collect();
        nodes.sort_by_key(|node| state(node) == State::Standby);
        for node in nodes {
            if host.running(&node.name).is_some() {
                host.stop(&node.name, "INT", STOP_GRACE).await?;
            }
        }
        Ok(())
    }
}

/// What a node's data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not there.
    Absent,
    /// A primary's.
    Primary,
    /// A standby's.
    Standby,
}

pub(crate) fn state(node: &NodeLayout) -> State {
    let data = node.data();
    if !data.join("PG_VERSION").exists() {
        State::Absent
    } else if data.join("standby.signal").exists() {
        State::Standby
    } else {
        State::Primary
    }
}

/// The node that is the primary: of several that were one, the one that was promoted last.
fn which_primary(layout: &Layout) -> Result<usize> {
    let states: Vec<_> = layout.nodes.iter().map(state).collect();
    let primaries = states.iter().enumerate().filter(|(_, state)| **state == State::Primary);
    if let Some((index, _)) =
        primaries.max_by_key(|(index, _)| (newest_timeline(&layout.nodes[*index]), std::cmp::Reverse(*index)))
    {
        return Ok(index);
    }
    if states.contains(&State::Standby) {
        let what = format!("start {}: no node's data is a primary's", layout.cluster.name);
        return Err(Error::new(Kind::Invalid, what)
            .hint("restore the cluster from its backup, or remove standby.signal from the node that is to be the primary"));
    }
    Ok(0)
}

/// The newest timeline that a data directory knows: from the names in `pg_wal`, which are there at once after a promotion
/// (`pg_control` follows with the next checkpoint).
fn newest_timeline(node: &NodeLayout) -> u32 {
    let entries = std::fs::read_dir(node.data().join("pg_wal")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| u32::from_str_radix(name.get(..8)?, 16).ok()).max().unwrap_or(0)
}

async fn initialize(layout: &Layout, node: &NodeLayout, host: &dyn Host) -> Result<()> {
    // Made beside its place and renamed: an initdb that was killed leaves nothing that looks like data.
    let partial = node.dir.join("data.partial");
    disk::remove_all(&partial)?;
    let password = node.dir.join("initdb.password");
    disk::write(&password, layout.password.expose().as_bytes(), 0o600, layout.owner)?;
    let args = [
        "-D",
        &partial.to_string_lossy(),
        "-U",
        &layout.user,
        "--pwfile",
        &password.to_string_lossy(),
        "--auth=scram-sha-256",
        "--data-checksums",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--no-instructions",
    ]
    .map(str::to_owned);
    let mut args = args.to_vec();
    if layout.cluster.config.get("fsync").is_some_and(|value| value == "off") {
        args.push("--no-sync".into());
    }
    let outcome = host.run(&command(layout, node, "initdb", args), START_DEADLINE).await;
    let removed = disk::remove(&password);
    outcome?;
    removed?;
    let data = node.data();
    std::fs::rename(&partial, &data)
        .map_err(|error| Error::io(format!("put {} in its place", data.display()), error))
}

pub(crate) fn command(layout: &Layout, node: &NodeLayout, program: &str, args: Vec<String>) -> NodeCommand {
    NodeCommand {
        node: node.name.clone(),
        program: layout.installation.bin.join(program),
        args,
        env: vec![("LC_ALL".into(), "C.UTF-8".into()), ("TZ".into(), "UTC".into())],
        cwd: node.dir.clone(),
        log: node.log(),
        owner: layout.owner,
    }
}

/// Writes a node's files and starts its server, unless it runs.
pub(crate) async fn start_node(
    layout: &Layout,
    node: &NodeLayout,
    role: &Role,
    last: &[(String, String)],
    host: &dyn Host,
) -> Result<()> {
    if host.running(&node.name).is_some() {
        return Ok(());
    }
    let mut settings = kept(node)?;
    // What the fleet file says now goes before what a restore once found; in a sandbox nothing goes before being quiet.
    settings.retain(|(name, _)| layout.sandbox || !layout.cluster.config.contains_key(name));
    settings.extend(last.iter().cloned());
    write_files(layout, node, role, &settings, config::HBA)?;
    start_server(layout, node, host).await
}

/// Settings that a restored data directory needs for as long as it lives: within it, so that they go and come with it, and with its copies.
pub(crate) const KEPT: &str = "mainstay.restored.json";

fn kept_file(node: &NodeLayout) -> PathBuf {
    node.data().join(KEPT)
}

pub(crate) fn keep(layout: &Layout, node: &NodeLayout, settings: &[(String, String)]) -> Result<()> {
    let text = serde_json::to_vec(settings)
        .map_err(|error| Error::new(Kind::Invalid, "write down a restored node's settings").source(error))?;
    disk::write(&kept_file(node), &text, 0o600, layout.owner)
}

fn kept(node: &NodeLayout) -> Result<Vec<(String, String)>> {
    let path = kept_file(node);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Error::io(format!("read {}", path.display()), error))?,
    };
    serde_json::from_slice(&text)
        .map_err(|error| Error::new(Kind::Damaged, format!("read {}", path.display())).source(error))
}

pub(crate) fn write_files(
    layout: &Layout,
    node: &NodeLayout,
    role: &Role,
    last: &[(String, String)],
    hba: &str,
) -> Result<()> {
    let files = config::files(node);
    disk::write(&files.config, config::render(layout, node, role, last).as_bytes(), 0o600, layout.owner)?;
    disk::write(&files.hba, hba.as_bytes(), 0o600, layout.owner)?;
    disk::write(&node.dir.join("pg_ident.conf"), b"", 0o600, layout.owner)?;
    let password = layout.password.expose().replace('\\', "\\\\").replace(':', "\\:");
    disk::write(&files.passfile, format!("*:*:*:*:{password}\n").as_bytes(), 0o600, layout.owner)
}

pub(crate) async fn start_server(layout: &Layout, node: &NodeLayout, host: &dyn Host) -> Result<()> {
    wait_until_buried(node).await;
    let config = config::files(node).config;
    let args = vec![
        "-D".to_owned(),
        node.data().to_string_lossy().into_owned(),
        "-c".to_owned(),
        format!("config_file={}", config.display()),
    ];
    host.start(&command(layout, node, "postgres", args)).await.map(drop)
}

/// A server that was killed has its number until its parent has taken note; a new one would take it for alive and refuse to start.
async fn wait_until_buried(node: &NodeLayout) {
    let begun = Instant::now();
    let text = std::fs::read_to_string(node.data().join("postmaster.pid")).unwrap_or_default();
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) else { return };
    while is_unburied(pid) && begun.elapsed() < BURIAL_DEADLINE {
        tokio::time::sleep(POLL).await;
    }
}

/// Whether a process has ended and nobody has taken note: state `Z` behind its name in parentheses.
fn is_unburied(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Waits until the node answers a query.
pub(crate) async fn ready(layout: &Layout, node: &NodeLayout, host: &dyn Host) -> Result<()> {
    let from = disk::length(&node.log()).saturating_sub(4096);
    let begun = Instant::now();
    let access = layout.access();
    let place =
        NodeAccess { name: node.name.clone(), host: "127.0.0.1".into(), port: port(node), data_dir: None };
    loop {
        if says_ready(node) {
            match ask(&access, &place).await {
                // A server that was just told to read its files again may still refuse.
                Err(error) if error.kind != Kind::Unreachable && begun.elapsed() > RELOAD_PATIENCE => {
                    return Err(error);
                }
                Err(error) => tracing::debug!(%error, "not ready yet"),
                Ok(()) => return Ok(()),
            }
        }
        let what = format!("start node {}", node.name);
        let whole = format!("the whole log is {}", node.log().display());
        if host.running(&node.name).is_none() {
            let what = format!("{what}: the server ended\n{}", disk::log_tail(&node.log(), from));
            return Err(Error::new(Kind::Server, what).hint(whole));
        }
        if begun.elapsed() > START_DEADLINE {
            let what =
                format!("{what}: not ready after {START_DEADLINE:?}\n{}", disk::log_tail(&node.log(), from));
            return Err(Error::new(Kind::Deadline, what).hint(whole));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ask(access: &Access, place: &NodeAccess) -> Result<()> {
    let sql = connect::session(access, place, "postgres").await?;
    sql.simple_query("SELECT 1").await.map(drop).map_err(|error| fault::sql("ask whether it is ready", error))
}

/// Whether the server itself says that it takes connections: the status in `postmaster.pid`. Asking by connecting would cost it a
/// process each time.
pub(crate) fn says_ready(node: &NodeLayout) -> bool {
    let text = std::fs::read_to_string(node.data().join("postmaster.pid")).unwrap_or_default();
    text.lines().nth(7).is_some_and(|status| status.trim() == "ready")
}

pub(crate) fn port(node: &NodeLayout) -> u16 {
    node.ports.first().copied().unwrap_or(5432)
}

async fn start_standby(layout: &Layout, primary: usize, node: &NodeLayout, host: &dyn Host) -> Result<()> {
    let source = &layout.nodes[primary];
    if host.running(&node.name).is_some() {
        return ready(layout, node, host).await;
    }
    let role = Role::Standby { port: port(source) };
    if state(node) == State::Primary {
        set_aside(node)?;
    }
    if state(node) == State::Standby {
        make_slot(layout, primary, node).await?;
        let from = disk::length(&node.log());
        start_node(layout, node, &role, &[], host).await?;
        ready(layout, node, host).await?;
        if follows(layout, primary, node, from).await? {
            return Ok(());
        }
        // It can never catch up: its timeline was left before its end, or the log that it needs is gone.
        host.stop(&node.name, "INT", STOP_GRACE).await?;
        set_aside(node)?;
    }
    clone(layout, primary, node).await?;
    start_node(layout, node, &role, &[], host).await?;
    ready(layout, node, host).await
}

/// Moves a data directory out of the way; it may hold what no other node has.
fn set_aside(node: &NodeLayout) -> Result<()> {
    for number in 1..10_000 {
        let aside = node.dir.join(format!("data.aside-{number}"));
        if !aside.exists() {
            tracing::warn!(node = node.name, to = %aside.display(), "data set aside: it left the primary's history");
            let data = node.data();
            return std::fs::rename(&data, &aside)
                .map_err(|error| Error::io(format!("set {} aside", data.display()), error));
        }
    }
    Err(Error::new(
        Kind::Invalid,
        format!("too many data directories were set aside in {}", node.dir.display()),
    ))
}

async fn make_slot(layout: &Layout, primary: usize, node: &NodeLayout) -> Result<()> {
    let access = layout.access();
    let mut client = connect::replicate(&access, &access.nodes[primary]).await?;
    let name = config::standby_slot(&node.name);
    let slot = client
        .read_slot(&name)
        .await
        .map_err(|error| fault::replication("look at a standby's slot", error))?;
    if let Some(slot) = slot {
        if slot.restart.is_some() {
            return Ok(());
        }
        // One that the server gave up keeps nothing.
        client
            .drop_slot(&name)
            .await
            .map_err(|error| fault::replication("drop a slot that was given up", error))?;
    }
    client.create_slot(&name).await.map_err(|error| fault::replication("make a standby's slot", error))
}

/// Waits until the standby streams, or says in its log that it never will.
async fn follows(layout: &Layout, primary: usize, node: &NodeLayout, from: u64) -> Result<bool> {
    let access = layout.access();
    let begun = Instant::now();
    loop {
        let sql = connect::session(&access, &access.nodes[primary], "postgres").await?;
        let query = format!(
            "SELECT 1 FROM pg_stat_replication WHERE application_name = {} AND state = 'streaming'",
            connect::quote_text(&node.name)
        );
        if !connect::rows(&sql, "look for the standby", &query).await?.is_empty() {
            return Ok(true);
        }
        let log = disk::log_tail(&node.log(), from);
        if log.contains("forked off")
            || log.contains("has already been removed")
            || log.contains("is not in this server's history")
            || log.contains("ahead of the WAL flush position")
            || log.contains("system identifier differs")
        {
            return Ok(false);
        }
        if begun.elapsed() > START_DEADLINE {
            let what = format!("node {} does not follow the primary\n{log}", node.name);
            return Err(Error::new(Kind::Deadline, what));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Makes a standby's data directory from the running primary.
async fn clone(layout: &Layout, primary: usize, node: &NodeLayout) -> Result<()> {
    make_slot(layout, primary, node).await?;
    let access = layout.access();
    let client = connect::replicate(&access, &access.nodes[primary]).await?;
    let options = BackupOptions {
        label: format!("mainstay {}", node.name),
        kib_per_second_max: None,
        fast_checkpoint: true,
    };
    let partial = node.dir.join("data.partial");
    disk::remove_all(&partial)?;
    disk::folder(&partial, layout.owner)?;
    let copying = async {
        let begun =
            client.base_backup(&options).await.map_err(|error| fault::replication("copy the primary", error));
        let (start, backup) = begun?;
        let sql = connect::session(&access, &access.nodes[primary], "postgres").await?;
        // Between the backup's start, which is behind us, and its end, which waits for us to read it all.
        for (oid, _) in connect::left_out(&sql, &start.tablespaces).await? {
            let inside = Path::new("pg_tblspc").join(oid.to_string());
            let (from, to) = (layout.nodes[primary].data().join(&inside), partial.join(&inside));
            copy_folder(&from, &to, layout)?;
        }
        let mut files = Files::new(backup);
        let mut writer = Writer { root: partial.clone(), layout, open: None };
        while let Some(piece) = files.next().await? {
            writer.take(piece)?;
        }
        Ok(())
    };
    tokio::time::timeout(CLONE_DEADLINE, copying).await.map_err(|_| {
        Error::new(
            Kind::Deadline,
            format!("make node {}: the copy took longer than {CLONE_DEADLINE:?}", node.name),
        )
    })??;
    disk::write(&partial.join("postgresql.auto.conf"), b"", 0o600, layout.owner)?;
    disk::write(&partial.join("standby.signal"), b"", 0o600, layout.owner)?;
    let data = node.data();
    std::fs::rename(&partial, &data)
        .map_err(|error| Error::io(format!("put {} in its place", data.display()), error))
}

/// Copies a folder of a running server; what is written meanwhile is in the log.
fn copy_folder(from: &Path, to: &Path, layout: &Layout) -> Result<()> {
    let failed = |error| Error::io(format!("copy {}", from.display()), error);
    if let Some(parent) = to.parent() {
        disk::folder(parent, layout.owner)?;
    }
    disk::folder(to, layout.owner)?;
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(failed)?.is_dir() {
            copy_folder(&source, &target, layout)?;
            continue;
        }
        match std::fs::copy(&source, &target) {
            // Dropped meanwhile; the log says so.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            copied => copied
                .map(drop)
                .map_err(|error| Error::io(format!("copy {}", source.display()), error))
                .and_then(|()| disk::give(&target, layout.owner))?,
        }
    }
    Ok(())
}

/// Writes the pieces of a base backup to disk.
struct Writer<'a> {
    root: PathBuf,
    layout: &'a Layout,
    open: Option<(PathBuf, std::fs::File)>,
}

impl Writer<'_> {
    fn take(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Begin(entry) => {
                let path = self.root.join(&entry.path);
                if entry.path.is_empty() {
                    return Ok(());
                }
                match entry.kind {
                    EntryKind::Directory => self.folders(&path)?,
                    // Tablespaces lie inside; the server's map would make links out of them again.
                    EntryKind::File if is_left_out(&entry.path) || entry.path == "tablespace_map" => {}
                    EntryKind::File => {
                        if let Some(parent) = path.parent() {
                            self.folders(parent)?;
                        }
                        let file = std::fs::File::create(&path)
                            .map_err(|error| Error::io(format!("make {}", path.display()), error))?;
                        self.open = Some((path, file));
                    }
                    EntryKind::Link(_) => {
                        return Err(Error::new(
                            Kind::Unsupported,
                            format!("a link in the data directory: {}", entry.path),
                        ));
                    }
                }
            }
            Piece::Data(bytes) => {
                use std::io::Write;
                if let Some((path, file)) = &mut self.open {
                    file.write_all(&bytes)
                        .map_err(|error| Error::io(format!("write {}", path.display()), error))?;
                }
            }
            Piece::End => {
                if let Some((path, _)) = self.open.take() {
                    self.private(&path, 0o600)?;
                }
            }
        }
        Ok(())
    }

    fn folders(&self, path: &Path) -> Result<()> {
        let Ok(inside) = path.strip_prefix(&self.root) else { return Ok(()) };
        let mut folder = self.root.clone();
        for part in inside.components() {
            folder.push(part);
            disk::folder(&folder, self.layout.owner)?;
        }
        Ok(())
    }

    fn private(&self, path: &Path, mode: u32) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let set = std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        set.map_err(|error| Error::io(format!("make {} private", path.display()), error))?;
        disk::give(path, self.layout.owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_process_is_told_from_one_that_lives_or_is_gone() {
        assert!(!is_unburied(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let begun = Instant::now();
        while !is_unburied(child.id()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it never ended");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_unburied(child.id()));
    }
}
