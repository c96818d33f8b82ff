//! The fleet as its file says it, after checking: names that exist, defaults filled in, one environment's overrides applied.
//!
//! Values of these types are made by `mainstay-fleet` alone, and what it makes holds together: a member of a recovery group is a
//! cluster that is followed, a vault that is named is there, an external cluster names its nodes and how to get in. Code behind it
//! need not check again.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Bytes, Schedule, Version};

/// One fleet file, read for one environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Its name; with the environment's, what its backups are filed under.
    pub name: FleetName,
    /// The chosen environment, whose overrides are already applied below.
    pub environment: Environment,
    /// Where backups are kept. At least one if any cluster is backed up.
    pub vaults: BTreeMap<VaultName, VaultSpec>,
    /// What may be lost, and how long it may take, by name.
    pub tiers: BTreeMap<TierName, Tier>,
    /// The clusters.
    pub clusters: BTreeMap<ClusterName, Cluster>,
    /// Which clusters must be brought back to the same instant.
    pub recovery_groups: BTreeMap<GroupName, RecoveryGroup>,
    /// The folder of the fleet file: relative paths in it begin here. Absolute.
    pub base_dir: PathBuf,
}

impl Fleet {
    /// The cluster of that name.
    pub fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.get(name)
    }

    /// The recovery group of that name.
    pub fn group(&self, name: &str) -> Option<&RecoveryGroup> {
        self.recovery_groups.get(name)
    }

    /// The vault that a cluster is backed up to; `None` if it is not backed up.
    pub fn vault_of(&self, cluster: &Cluster) -> Option<(&VaultName, &VaultSpec)> {
        self.vaults.get_key_value(&cluster.backup.as_ref()?.vault)
    }

    /// The objectives of a cluster's tier; `None` if it has no tier.
    pub fn tier_of(&self, cluster: &Cluster) -> Option<&Tier> {
        self.tiers.get(cluster.tier.as_ref()?)
    }
}

/// One place where a fleet runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `local`, `staging`, `production`, …
    pub name: EnvironmentName,
    /// Who runs the servers, and where.
    pub hosts: Hosts,
}

/// Who runs an environment's servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Mainstay, as processes on this machine. Every cluster then has [`Nodes::Count`] and no access or control.
    Local,
    /// Somebody else; they run already. Every cluster then has [`Nodes::Named`] and an [`Access`].
    External,
    /// Kubernetes.
    Kubernetes {
        /// The namespace.
        namespace: Option<String>,
    },
}

/// One deployment of one engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// The engine's own name, never an alias: `postgres`, `redis`.
    pub engine: String,
    /// The version that is wanted; `15` stands for every `15.x`. `None`: the newest installed, pinned at the first start.
    pub version: Option<Version>,
    /// Its nodes.
    pub nodes: Nodes,
    /// Set if the engine's own clustering is wanted (Redis Cluster).
    pub cluster: Option<ClusterShape>,
    /// Its tier, a key of [`Fleet::tiers`].
    pub tier: Option<TierName>,
    /// Memory of one node.
    pub memory: Option<Bytes>,
    /// The engine's own settings, checked against what the engine knows.
    pub config: BTreeMap<String, String>,
    /// How it is backed up. `None`: it is not.
    pub backup: Option<Backup>,
    /// How to get in, where Mainstay did not start the servers.
    pub access: Option<Access>,
    /// How to stop and start the servers and where their data lies, where Mainstay did not start them.
    pub control: Option<Control>,
}

/// The nodes of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// So many, for Mainstay to start. At least 1.
    Count(u32),
    /// These. At least one, none twice.
    Named(Vec<HostPort>),
}

impl Nodes {
    /// How many nodes there are.
    pub fn count(&self) -> u32 {
        match self {
            Self::Count(count) => *count,
            Self::Named(nodes) => u32::try_from(nodes.len()).unwrap_or(u32::MAX),
        }
    }
}

/// How the engine's own clustering divides the nodes: `nodes / (1 + replicas)` primaries, each with as many replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterShape {
    /// Replicas of each primary.
    pub replicas: u32,
}

/// How a cluster is backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// When snapshots are taken; `None`: only when asked for, and when a log needs one.
    pub snapshot: Option<Schedule>,
    /// Whether its log is followed, without which it can be restored to snapshots alone.
    pub follow: bool,
    /// When its newest snapshot is proven; `None`: only when asked for.
    pub prove: Option<Schedule>,
    /// How long snapshots and log are kept.
    pub keep: Keep,
    /// The vault, a key of [`Fleet::vaults`].
    pub vault: VaultName,
}

/// How long snapshots and log are kept. A snapshot is kept if any rule keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Every snapshot younger than this.
    pub within: Duration,
    /// The newest snapshot of each of the last so many days that have one.
    pub daily: u32,
    /// The newest snapshot of each of the last so many weeks that have one.
    pub weekly: u32,
    /// The newest snapshot of each of the last so many months that have one.
    pub monthly: u32,
    /// The newest snapshot of each of the last so many years that have one.
    pub yearly: u32,
    /// Never fewer than this many snapshots, however old. At least 1 of any cluster of the file; 0 lets go of all, and of the log.
    pub least: u32,
    /// The log of this last stretch of time, and what a snapshot at its beginning needs.
    pub log: Duration,
}

/// How to get into servers that Mainstay did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The user; `None`: the engine's default user.
    pub user: Option<String>,
    /// Where the password is.
    pub password: Option<SecretRef>,
    /// TLS; `None`: none.
    pub tls: Option<Tls>,
}

/// TLS towards the servers. Paths are relative to [`Fleet::base_dir`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// What is demanded of the server.
    pub mode: TlsMode,
    /// The authorities that are trusted, PEM; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate, PEM.
    pub cert: Option<PathBuf>,
    /// Our certificate's key, PEM.
    pub key: Option<PathBuf>,
}

/// What is demanded of a server's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Encryption, with whoever answers.
    Require,
    /// A certificate that a trusted authority signed.
    VerifyCa,
    /// And one made out to the host that was asked for.
    VerifyFull,
}

/// How to stop and start servers that Mainstay did not start, needed only to restore into them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// A shell command that stops the server of a node, run on its host.
    pub stop: Option<String>,
    /// A shell command that starts it.
    pub start: Option<String>,
    /// Its data directory.
    pub data: Option<PathBuf>,
}

/// Where backups are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultSpec {
    /// The folder or bucket.
    pub url: VaultUrl,
    /// Public keys (`age1…`) that backups are encrypted to. Empty: a key is made at first use.
    pub recipients: Vec<String>,
    /// Further stores that everything is copied to.
    pub copies: Vec<VaultUrl>,
    /// An S3 server other than Amazon's, as `https://host:port`.
    pub endpoint: Option<String>,
    /// The region of a bucket.
    pub region: Option<String>,
    /// The access key's id; `None`: `AWS_ACCESS_KEY_ID`.
    pub access_key: Option<SecretRef>,
    /// The access key's secret; `None`: `AWS_SECRET_ACCESS_KEY`.
    pub secret_key: Option<SecretRef>,
}

/// A place for objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VaultUrl {
    /// `file:PATH`: a folder, relative to [`Fleet::base_dir`] unless absolute.
    File(PathBuf),
    /// `s3://BUCKET[/PREFIX]`.
    S3 {
        /// The bucket.
        bucket: String,
        /// What all keys begin with, without slashes at its ends; empty for none.
        prefix: String,
    },
}

/// The text is not a vault's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a vault's URL")]
pub struct BadVaultUrl(pub String);

impl FromStr for VaultUrl {
    type Err = BadVaultUrl;
    fn from_str(text: &str) -> Result<Self, BadVaultUrl> {
        let bad = || BadVaultUrl(text.to_owned());
        if text.chars().any(char::is_control) {
            return Err(bad());
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            let bucket_ok = (3..=63).contains(&bucket.len())
                && bucket
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b));
            let prefix_ok = prefix.is_empty()
                || prefix.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
            return match bucket_ok && prefix_ok && !rest.contains(['?', '#', '@']) {
                true => Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() }),
                false => Err(bad()),
            };
        }
        let path = text.strip_prefix("file:").ok_or_else(bad)?;
        // `file:///srv/vault` is the same as `file:/srv/vault`; `file://host/path` names another machine.
        let path = match path.strip_prefix("//") {
            Some(rest) if rest.starts_with('/') => rest,
            Some(_) => return Err(bad()),
            None => path,
        };
        if path.is_empty() { Err(bad()) } else { Ok(Self::File(PathBuf::from(path))) }
    }
}

impl fmt::Display for VaultUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// What may be lost and how long it may take, by scenario. Node and zone are met by replicas, the others by the vault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tier {
    /// A node is lost.
    pub node: Option<Objective>,
    /// A zone is lost.
    pub zone: Option<Objective>,
    /// A region is lost.
    pub region: Option<Objective>,
    /// Data was changed or deleted that should not have been.
    pub corruption: Option<Objective>,
    /// All is lost but the vault.
    pub total: Option<Objective>,
}

/// What may be lost, and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objective {
    /// The longest time until it works again.
    pub rto: Option<Duration>,
    /// The longest time whose changes may be lost.
    pub rpo: Option<Duration>,
}

/// Clusters that must be brought back to the same instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryGroup {
    /// Its name.
    pub name: GroupName,
    /// Its members: keys of [`Fleet::clusters`], each followed. In the file's order, at least one, none twice.
    pub members: Vec<ClusterName>,
    /// How often a fleet point is set; `None`: only when asked for.
    pub every: Option<Duration>,
    /// Which of them are exact; `None`: only those asked for.
    pub exact: Option<Exact>,
}

/// Exact fleet points: writes are held for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exact {
    /// How often. Never shorter than the group's own interval.
    pub every: Duration,
    /// The longest that a write may be held.
    pub stall: Duration,
}

/// A host and a port, `db1:5432` or `[::1]:6379`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port, not 0.
    pub port: u16,
}

/// The text is not a host and a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host and a port")]
pub struct BadHostPort(pub String);

impl FromStr for HostPort {
    type Err = BadHostPort;
    fn from_str(text: &str) -> Result<Self, BadHostPort> {
        let bad = || BadHostPort(text.to_owned());
        let (host, port) = text.trim().rsplit_once(':').ok_or_else(bad)?;
        let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match address {
            Some(address) => address.parse::<std::net::Ipv6Addr>().map(|_| address).map_err(|_| bad())?,
            None => host,
        };
        let in_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
        let host_ok =
            address.is_some() || (!host.is_empty() && host.len() <= 253 && host.bytes().all(in_name));
        let port_ok = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port: u16 = port.parse().ok().filter(|port| *port > 0 && port_ok && host_ok).ok_or_else(bad)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Where a secret is found; never the secret itself, so that it may be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// `env:NAME`: an environment variable.
    Env(String),
    /// `file:PATH`: a file's content, without the newline at its end. Relative to [`Fleet::base_dir`].
    File(PathBuf),
    /// `exec:COMMAND`: what a shell command prints, without the newline at its end. Run in [`Fleet::base_dir`].
    Exec(String),
}

/// The text is not a reference to a secret. It is not repeated, since it may be the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a reference to a secret")]
pub struct BadSecretRef;

impl FromStr for SecretRef {
    type Err = BadSecretRef;
    fn from_str(text: &str) -> Result<Self, BadSecretRef> {
        match text.split_once(':') {
            Some((_, "")) => Err(BadSecretRef),
            Some(("env", name)) => {
                let in_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                let ok = name.bytes().all(in_name) && !name.starts_with(|c: char| c.is_ascii_digit());
                if ok { Ok(Self::Env(name.to_owned())) } else { Err(BadSecretRef) }
            }
            Some(("file", path)) => Ok(Self::File(PathBuf::from(path))),
            Some(("exec", command)) => Ok(Self::Exec(command.to_owned())),
            _ => Err(BadSecretRef),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Exec(command) => write!(f, "exec:{command}"),
        }
    }
}

/// The longest name. Names become parts of paths, of object keys, of slot and role names.
pub const NAME_LENGTH_MAX: usize = 41;

/// The text is not a name: `[a-z][a-z0-9-]{0,40}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name")]
pub struct BadName(pub String);

fn check_name(text: &str) -> Result<(), BadName> {
    let ok = text.len() <= NAME_LENGTH_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if ok { Ok(()) } else { Err(BadName(text.to_owned())) }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Takes `[a-z][a-z0-9-]{0,40}`.
            pub fn new(text: &str) -> Result<Self, BadName> {
                check_name(text)?;
                Ok(Self(text.to_owned()))
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// The name of a fleet.
    FleetName
    /// The name of an environment.
    EnvironmentName
    /// The name of a cluster.
    ClusterName
    /// The name of a vault.
    VaultName
    /// The name of a tier.
    TierName
    /// The name of a recovery group.
    GroupName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for right in ["a", "orders", "orders-2", &"a".repeat(NAME_LENGTH_MAX)] {
            assert_eq!(ClusterName::new(right).unwrap(), right);
        }
        for wrong in
            ["", "2nd", "-a", "Orders", "or_ders", "a b", "ä", "a/b", "..", &"a".repeat(NAME_LENGTH_MAX + 1)]
        {
            assert!(ClusterName::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_and_ports_are_read_and_written() {
        for right in ["db1:5432", "10.0.0.1:6379", "[::1]:6379", "db-1.example.org:1"] {
            assert_eq!(right.parse::<HostPort>().unwrap().to_string(), right);
        }
        for wrong in [
            "",
            "db1",
            "db1:",
            ":5432",
            "db1:0",
            "db1:65536",
            "::1:5432",
            "[::g]:1",
            "a b:1",
            "db1:+5",
            "u@h:1",
        ] {
            assert!(wrong.parse::<HostPort>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn vault_urls_are_read_and_written() {
        for right in ["file:vault", "file:/srv/vault", "s3://chat-backups", "s3://chat-backups/a/b"] {
            assert_eq!(right.parse::<VaultUrl>().unwrap().to_string(), right);
        }
        assert_eq!("file:///srv/v".parse::<VaultUrl>().unwrap(), VaultUrl::File("/srv/v".into()));
        for wrong in [
            "",
            "vault",
            "file:",
            "file://host/v",
            "s3://",
            "s3://B",
            "s3://bucket/../x",
            "s3://key:secret@bucket",
            "http://x",
        ] {
            assert!(wrong.parse::<VaultUrl>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_references() {
        for right in ["env:PGPASSWORD", "file:secrets/pw", "exec:pass show db"] {
            assert_eq!(right.parse::<SecretRef>().unwrap().to_string(), right);
        }
        for wrong in ["", "hunter2", "env:", "env:2X", "env:a b", "vault:x", "file:"] {
            assert!(wrong.parse::<SecretRef>().is_err(), "{wrong}");
        }
    }
}
