//! Sandboxes: throw-away clusters on this machine, for restores that touch nothing.
//!
//! A sandbox is on record before anything of it is made, and its record goes last: what was begun can always be listed and
//! dropped. Nothing outside its own folders belongs to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_engine::{Host, Layout};
use mainstay_model::{Cluster, ClusterName, Instant, Version};
use serde::{Deserialize, Serialize};

use crate::cluster::{Record, Rooms, choose};
use crate::environment::{Engines, launcher};
use crate::process::Identity;
use crate::{Error, Home, Local, Result, files};

/// How long a server may take to stop; its data are thrown away, so it need not save anything.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// A cluster to make a sandbox of.
#[derive(Clone, Copy, Debug)]
pub struct SandboxCluster<'a> {
    /// As the fleet file has it.
    pub cluster: &'a Cluster,
    /// The version of the server that made the data to restore: a server of the same major version is used. `None`: what the fleet
    /// file says.
    pub version: Option<&'a str>,
}

/// What is remembered of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its name: `sb-1a2b3c`.
    pub id: String,
    /// The fleet whose clusters it holds.
    pub fleet: String,
    /// The environment that they came from.
    pub environment: String,
    /// What it is for: `recover`, `prove`.
    pub purpose: String,
    /// When it was made.
    pub created: Instant,
    /// Its clusters.
    pub clusters: Vec<ClusterName>,
    /// What was restored into it; written by whoever did. Never a secret.
    #[serde(default)]
    pub restored: serde_json::Value,
    maker: Identity,
}

/// A throw-away set of clusters.
#[derive(Clone, Debug)]
pub struct Sandbox {
    home: Home,
    record: SandboxRecord,
}

impl Sandbox {
    /// Makes one: folders, ports, secrets. Starts nothing.
    ///
    /// # Errors
    /// `Engine` (a server that is not installed), `Io`. What was made until then is removed again.
    pub async fn create(
        home: &Home,
        fleet: &str,
        environment: &str,
        purpose: &str,
        clusters: &[SandboxCluster<'_>],
        engines: Engines<'_>,
    ) -> Result<Self> {
        let record = SandboxRecord {
            id: format!("sb-{}", files::random_hex(3)?),
            fleet: fleet.to_owned(),
            environment: environment.to_owned(),
            purpose: purpose.to_owned(),
            created: Instant::now(),
            clusters: clusters.iter().map(|c| c.cluster.name.clone()).collect(),
            restored: serde_json::Value::Null,
            maker: Identity::own(),
        };
        let this = Self { home: home.clone(), record };
        this.save()?;
        match this.fill(clusters, engines) {
            Ok(()) => Ok(this),
            Err(error) => {
                this.drop_all().await?;
                Err(error)
            }
        }
    }

    fn fill(&self, clusters: &[SandboxCluster<'_>], engines: Engines<'_>) -> Result<()> {
        for SandboxCluster { cluster, version } in clusters {
            let launch = launcher(engines, &cluster.engine)?;
            let wanted = cluster.version.as_ref().filter(|wanted| fits(wanted, *version));
            let installation = choose(launch, cluster.name.as_str(), wanted, *version)?;
            let rooms = self.rooms(&cluster.name);
            let nodes = launch.sandbox_nodes(cluster).max(1);
            let record = Record::create(&self.home, &rooms, cluster, launch, installation, nodes)?;
            record.make_folders(&self.home, &rooms)?;
        }
        Ok(())
    }

    /// All sandboxes of the home, half-made ones too.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn list(home: &Home) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for name in files::names(&home.sandboxes())? {
            if let Some(id) = name.strip_suffix(".json") {
                all.extend(Self::read(home, id)?);
            }
        }
        Ok(all)
    }

    /// The sandbox of that name.
    ///
    /// # Errors
    /// `Refused` when there is none; `Io`, `Damaged`.
    pub fn find(home: &Home, id: &str) -> Result<Self> {
        let named = id.starts_with("sb-") && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let found = if named { Self::read(home, id)? } else { None };
        found.ok_or_else(|| {
            Error::refused(format!("there is no sandbox {id}"), "see which there are: mainstay recover list")
        })
    }

    fn read(home: &Home, id: &str) -> Result<Option<Self>> {
        let record: Option<SandboxRecord> = files::read_json(&record_file(home, id))?;
        Ok(record.map(|record| Self { home: home.clone(), record }))
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// What is remembered of it.
    pub fn record(&self) -> &SandboxRecord {
        &self.record
    }

    /// Whether the Mainstay that made it still runs. A sandbox made to prove something is of no use without it.
    pub fn maker_alive(&self) -> bool {
        self.record.maker.alive()
    }

    /// Remembers what was restored into it.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_restored(&mut self, restored: serde_json::Value) -> Result<()> {
        self.record.restored = restored;
        self.save()
    }

    /// Its clusters, as far as they were made.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn layouts(&self) -> Result<Vec<Layout>> {
        let mut layouts = Vec::new();
        for name in &self.record.clusters {
            let rooms = self.rooms(name);
            if let Some(record) = Record::load(&rooms)? {
                let (fleet, environment) = (&self.record.fleet, &self.record.environment);
                let scope = self.home.scope(fleet, &format!("{environment}/{}", self.id()), name.as_str());
                layouts.push(record.layout(&self.home, &rooms, None, scope, true)?);
            }
        }
        Ok(layouts)
    }

    /// The processes of one of its clusters.
    pub fn host(&self, cluster: &ClusterName) -> Local {
        self.rooms(cluster).host()
    }

    /// Whether any of its servers runs.
    ///
    /// # Errors
    /// `Io`.
    pub fn running(&self) -> Result<bool> {
        for name in &self.record.clusters {
            let host = self.host(name);
            if host.nodes()?.iter().any(|node| host.running(node).is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Stops its servers and removes all that there is of it.
    ///
    /// # Errors
    /// `Engine` when a server would not stop; `Io`. May be done again.
    pub async fn drop_all(self) -> Result<()> {
        for name in &self.record.clusters {
            let rooms = self.rooms(name);
            rooms.host().stop_all(STOP_GRACE).await?;
            if let Some(record) = Record::load(&rooms)? {
                record.erase(&self.home, &rooms).await?;
            }
        }
        files::remove(&self.folder())?;
        files::remove(&record_file(&self.home, self.id()))
    }

    fn save(&self) -> Result<()> {
        files::write_json(&record_file(&self.home, self.id()), &self.record)
    }

    fn folder(&self) -> PathBuf {
        self.home.sandboxes().join(&self.record.id)
    }

    fn rooms(&self, name: &ClusterName) -> Rooms {
        let folder = self.folder();
        Rooms {
            folder: folder.join("clusters").join(name.as_str()),
            run: folder.join("run").join(name.as_str()),
            nodes: Path::new("sandboxes").join(&self.record.id).join(name.as_str()),
        }
    }
}

/// Beside the sandbox's folder, so that there is never one without the other's being known.
fn record_file(home: &Home, id: &str) -> PathBuf {
    home.sandboxes().join(format!("{id}.json"))
}

/// Whether the fleet file's version is of the same major version as the data: if not, the data decide.
fn fits(wanted: &Version, made_by: Option<&str>) -> bool {
    made_by.is_none_or(|made_by| made_by.split('.').next() == Some(wanted.major().to_string().as_str()))
}
