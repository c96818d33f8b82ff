//! Settings: what a user may set, and the files that a node is started with.
//!
//! A user's settings are checked by the server itself (`postgres -C name -c name=value`), so what that version knows is
//! what counts. Settings that Mainstay answers for are refused with the reason. A node reads one file of ours, outside its data
//! directory: whatever `postgresql.conf` a restored data directory holds is never looked at.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use mainstay_engine::{Installation, Layout, Mistake, NodeLayout};
use mainstay_model::Cluster;

use crate::install;

/// Settings that are ours, with the reason.
const OURS: &[(&str, &str)] = &[
    ("port", "Mainstay chooses free ports"),
    ("listen_addresses", "local clusters listen on loopback only"),
    ("data_directory", "Mainstay keeps each node's data in its own folder"),
    ("config_file", "Mainstay writes it"),
    ("hba_file", "Mainstay writes it"),
    ("ident_file", "Mainstay writes it"),
    ("external_pid_file", "Mainstay keeps track of its servers itself"),
    ("unix_socket_directories", "Mainstay keeps the socket in the node's folder"),
    ("primary_conninfo", "Mainstay knows which node is the primary"),
    ("primary_slot_name", "Mainstay makes the standbys' slots"),
    ("cluster_name", "it is the node's name"),
    ("hot_standby", "standbys must answer"),
    ("restore_command", "it belongs to restores, which Mainstay runs"),
    ("archive_cleanup_command", "it belongs to restores, which Mainstay runs"),
    ("recovery_end_command", "it belongs to restores, which Mainstay runs"),
    ("full_page_writes", "without it a snapshot of a running server is not restorable"),
    ("logging_collector", "Mainstay keeps each node's log"),
    ("log_destination", "Mainstay keeps each node's log"),
];

/// Links and slots that we use at the same time: a follower, and a snapshot's copy, log and history.
const LINKS_LEAST: u32 = 4;

/// What is wrong with what the fleet file says of a PostgreSQL cluster.
pub fn check(cluster: &Cluster) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    if cluster.cluster.is_some() {
        mistakes.push(Mistake {
            key: "cluster".into(),
            message: "PostgreSQL has no clustering of its own: `nodes: N` makes one primary and N-1 standbys"
                .into(),
            hint: Some("remove `cluster:`".into()),
        });
    }
    if cluster.nodes.count() > 16 {
        mistakes.push(Mistake {
            key: "nodes".into(),
            message: "more than 16 nodes: one primary cannot feed so many standbys well".into(),
            hint: None,
        });
    }
    let version = cluster.version.as_ref().map(ToString::to_string);
    if let Some(version) = &cluster.version
        && !install::MAJORS.contains(&version.major())
    {
        mistakes.push(Mistake {
            key: "version".into(),
            message: format!("PostgreSQL {version} is not supported: 15 to 18 are"),
            hint: None,
        });
        return mistakes;
    }
    // Without an installed server nothing can be said of settings; starting says what is missing.
    let Ok(installation) = install::find(version.as_deref()) else { return mistakes };
    let mut servers = Vec::new();
    for (name, value) in &cluster.config {
        if owned(name, &mut mistakes) {
            continue;
        }
        match judge(name, value) {
            Some(mistake) => mistakes.push(mistake),
            // Settings of extensions are known only once their library is loaded.
            None if name.contains('.') => {}
            None => servers.push((name.as_str(), value.as_str())),
        }
    }
    // One process says that all is well; only where it does not, each setting is asked for by itself.
    if servers.len() > 1 && matches!(ask(&installation.bin, &servers), Ok(None)) {
        return mistakes;
    }
    for setting in servers {
        // What could not be asked is no mistake: starting says what is wrong.
        if let Ok(Some(said)) = ask(&installation.bin, &[setting]) {
            mistakes.push(refused(&installation, setting.0, &said));
        }
    }
    mistakes
}

fn owned(name: &str, mistakes: &mut Vec<Mistake>) -> bool {
    let lower = name.to_ascii_lowercase();
    let reason = if lower.starts_with("recovery_target") {
        Some("it belongs to restores, which Mainstay runs")
    } else {
        OURS.iter().find(|(ours, _)| *ours == lower).map(|(_, reason)| *reason)
    };
    if let Some(reason) = reason {
        mistakes.push(Mistake {
            key: format!("config.{name}"),
            message: format!("`{name}` cannot be set: {reason}"),
            hint: Some("remove it".into()),
        });
    }
    reason.is_some()
}

/// What is wrong with a setting whatever the server says.
fn judge(name: &str, value: &str) -> Option<Mistake> {
    let key = format!("config.{name}");
    let mistake = |message: String, hint| Some(Mistake { key: key.clone(), message, hint });
    let plain = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$')
    };
    if !name.split('.').all(plain) {
        return mistake(format!("`{name}` is not a setting's name"), None);
    }
    if name.eq_ignore_ascii_case("wal_level") && value.eq_ignore_ascii_case("minimal") {
        return mistake(
            "with `wal_level: minimal` there is no log to follow".into(),
            Some("write replica or logical".into()),
        );
    }
    let counts = ["max_wal_senders", "max_replication_slots"];
    if counts.iter().any(|counted| name.eq_ignore_ascii_case(counted))
        && value.trim().parse::<u32>().is_ok_and(|count| count < LINKS_LEAST)
    {
        return mistake(
            format!(
                "`{name}: {value}` is too few: following and a snapshot at the same time need {LINKS_LEAST}"
            ),
            Some(format!("write {LINKS_LEAST} or more, one more for each standby")),
        );
    }
    None
}

/// Lets the server itself judge settings: `None` if it takes them, else what it said.
///
/// # Errors
/// When it cannot be started, or was ended by a signal: then it judged nothing.
fn ask(bin: &Path, settings: &[(&str, &str)]) -> io::Result<Option<String>> {
    let first = settings.first().map_or("port", |(name, _)| name);
    let mut command = install::program(bin, "postgres");
    // No data directory is needed for this, only the name of a folder, and a configuration that says nothing.
    command.args(["-C", first, "-c", "config_file=/dev/null", "-D", "/"]).env("LC_ALL", "C");
    for (name, value) in settings {
        command.args(["-c", &format!("{name}={value}")]);
    }
    let output = command.output()?;
    match output.status.code() {
        Some(0) => Ok(None),
        Some(_) => Ok(Some(String::from_utf8_lossy(&output.stderr).into_owned())),
        None => Err(io::Error::new(io::ErrorKind::Interrupted, "ended by a signal")),
    }
}

/// The mistake behind what the server said of a setting that it does not take.
fn refused(installation: &Installation, name: &str, text: &str) -> Mistake {
    let said = |word: &str| text.lines().find_map(|line| Some(line.split_once(word)?.1.trim().to_owned()));
    let message = said("FATAL:").unwrap_or_else(|| "the server does not take it".into());
    let key = format!("config.{name}");
    if message.starts_with("unrecognized") {
        let hint = nearest(installation, name).map(|known| format!("did you mean `{known}`?"));
        let message = format!("PostgreSQL {} has no setting `{name}`", installation.version);
        return Mistake { key, message, hint };
    }
    Mistake { key, message, hint: said("HINT:") }
}

/// The known setting that looks most like `name`.
fn nearest(installation: &Installation, name: &str) -> Option<String> {
    let output = install::program(&installation.bin, "postgres").arg("--describe-config").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let known = text.lines().filter_map(|line| line.split('\t').next());
    let scored = known.map(|known| (distance(&name.to_ascii_lowercase(), known), known));
    scored.min().filter(|(distance, _)| *distance <= 3).map(|(_, known)| known.to_owned())
}

/// Edits from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let cost = corner + usize::from(left != *right);
            corner = row[j + 1];
            row[j + 1] = cost.min(corner + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

/// What a node is started as.
#[derive(Clone, Debug)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Follows the node that listens on this port.
    Standby {
        /// The primary's port.
        port: u16,
    },
}

/// The files of a node that are ours.
pub struct Files {
    /// The server's settings.
    pub config: PathBuf,
    /// Who may connect.
    pub hba: PathBuf,
    /// Password file of a standby's link.
    pub passfile: PathBuf,
}

/// Where a node's files are.
pub fn files(node: &NodeLayout) -> Files {
    Files {
        config: node.dir.join("mainstay.conf"),
        hba: node.dir.join("pg_hba.conf"),
        passfile: node.dir.join("pgpass"),
    }
}

/// A folder for the node's unix socket: its own, where its path is short enough for a socket's name.
pub fn socket_folder(node: &NodeLayout) -> Option<&Path> {
    (node.dir.as_os_str().len() < 85).then_some(&node.dir)
}

/// The slot that keeps log for a standby of ours.
pub fn standby_slot(node: &str) -> String {
    let safe = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    format!("standby_{}", node.chars().map(safe).take(50).collect::<String>())
}

/// The settings of a node. `last` comes last and wins.
pub fn render(layout: &Layout, node: &NodeLayout, role: &Role, last: &[(String, String)]) -> String {
    let files = files(node);
    let mut text = String::from(
        "# Written by Mainstay at every start; changes here are lost. Use `config:` of the fleet file.\n",
    );
    let mut set = |name: &str, value: &str| {
        let value = value.replace('\\', "\\\\").replace('\'', "''").replace(['\n', '\r', '\0'], " ");
        let _ = writeln!(text, "{name} = '{value}'");
    };
    set("listen_addresses", "127.0.0.1");
    set("hba_file", &files.hba.to_string_lossy());
    set("ident_file", &node.dir.join("pg_ident.conf").to_string_lossy());
    set("password_encryption", "scram-sha-256");
    set("wal_level", "replica");
    set("max_wal_senders", "16");
    set("max_replication_slots", "24");
    // What nobody fetches is given up before the disk is full.
    set("max_slot_wal_keep_size", "4GB");
    set("wal_sender_timeout", "60s");
    set("lc_messages", "C");
    set("log_timezone", "UTC");
    set("timezone", "UTC");
    set("log_line_prefix", "%m [%p] ");
    set("shared_buffers", &shared_buffers(layout));
    for (name, value) in &layout.cluster.config {
        set(name, value);
    }
    set("port", &node.ports.first().copied().unwrap_or(5432).to_string());
    set(
        "unix_socket_directories",
        &socket_folder(node).map(|folder| folder.to_string_lossy()).unwrap_or_default(),
    );
    set("unix_socket_permissions", "0700");
    set("cluster_name", &node.name);
    set("hot_standby", "on");
    set("full_page_writes", "on");
    // Restored and cloned tablespaces lie inside the data directory; without this, recovery ends with a PANIC at them.
    set("allow_in_place_tablespaces", "on");
    set("logging_collector", "off");
    set("log_destination", "stderr");
    set("recovery_target_timeline", "latest");
    if let Role::Standby { port } = role {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
        let conninfo = format!(
            "host=127.0.0.1 port={port} user='{}' passfile='{}' application_name='{}' sslmode=disable",
            quoted(&layout.user),
            quoted(&files.passfile.to_string_lossy()),
            quoted(&node.name)
        );
        set("primary_conninfo", &conninfo);
        set("primary_slot_name", &standby_slot(&node.name));
    }
    for (name, value) in last {
        set(name, value);
    }
    text
}

fn shared_buffers(layout: &Layout) -> String {
    match layout.cluster.memory {
        Some(memory) => format!("{}kB", (memory.0 / 4096).clamp(16 << 10, 64 << 20)),
        None => "128MB".to_owned(),
    }
}

/// Who may connect: everybody with a password, from this machine.
pub const HBA: &str = "# Written by Mainstay at every start.\n\
    local all all scram-sha-256\n\
    host all all 127.0.0.1/32 scram-sha-256\n\
    local replication all scram-sha-256\n\
    host replication all 127.0.0.1/32 scram-sha-256\n";

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::Nodes;

    fn cluster(config: &[(&str, &str)]) -> Cluster {
        Cluster {
            name: "orders".parse().unwrap(),
            engine: "postgres".into(),
            version: Some("15".parse().unwrap()),
            nodes: Nodes::Count(2),
            cluster: None,
            tier: None,
            memory: None,
            config: config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            backup: None,
            access: None,
            control: None,
        }
    }

    #[test]
    fn a_server_that_a_signal_ended_judged_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let bin = tempfile::tempdir().unwrap();
        let program = bin.path().join("postgres");
        std::fs::write(&program, "#!/bin/sh\nkill -INT $$\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(ask(bin.path(), &[("work_mem", "8MB")]).unwrap_err().kind(), io::ErrorKind::Interrupted);
        let real = install::find(Some("15")).unwrap().bin;
        assert_eq!(ask(&real, &[("work_mem", "8MB"), ("jit", "off")]).unwrap(), None);
        assert!(ask(&real, &[("work_mem", "8MB"), ("jit", "perhaps")]).unwrap().unwrap().contains("jit"));
    }

    #[test]
    fn settings_are_judged_by_the_server() {
        assert_eq!(
            check(&cluster(&[
                ("track_commit_timestamp", "on"),
                ("work_mem", "8MB"),
                ("auto_explain.log_format", "json")
            ])),
            []
        );
        let mistakes = check(&cluster(&[
            ("work_memm", "8MB"),
            ("maintenance_work_mem", "many"),
            ("wal_sync_method", "hope"),
            ("port", "5432"),
            ("wal_level", "minimal"),
            ("max_wal_senders", "0"),
            ("bad name", "1"),
        ]));
        let about =
            |key: &str| mistakes.iter().find(|mistake| mistake.key == format!("config.{key}")).unwrap();
        assert_eq!(about("work_memm").hint.as_deref(), Some("did you mean `work_mem`?"));
        assert!(about("maintenance_work_mem").message.contains("invalid value"));
        assert!(about("wal_sync_method").hint.as_deref().unwrap().contains("fdatasync"));
        assert!(about("port").message.contains("free ports"));
        assert!(about("wal_level").message.contains("no log"));
        assert!(about("max_wal_senders").hint.as_deref().unwrap().contains("write 4"));
        assert!(about("bad name").message.contains("not a setting"));
        assert_eq!(mistakes.len(), 7);
    }
}
