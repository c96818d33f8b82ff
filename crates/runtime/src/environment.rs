//! One environment of a fleet on this machine: its clusters brought up, down, and erased.
//!
//! All that changes anything is done under the environment's lock, and survives being cut off at any moment: done again, it goes
//! on where it was. Refuses: another fleet of the same name, a server of another major version on existing data, fewer nodes than
//! there are, another shape of a sharded cluster.

use std::path::PathBuf;
use std::time::Duration;

use mainstay_engine::{Engine, Host, Kind, Launch, Layout, Progress};
use mainstay_model::{Cluster, ClusterName, Fleet, Hosts};
use serde::{Deserialize, Serialize};

use crate::cluster::{Record, Rooms, Spec, choose};
use crate::{Error, Home, Local, Lock, Result, files, swap};

/// How long we wait for another Mainstay that is at the same environment.
const LOCK_WAIT: Duration = Duration::from_secs(120);
/// How long a server whose engine we do not know may take to stop.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// The engines that there are.
pub type Engines<'a> = &'a [&'a dyn Engine];

/// The adapter of that name that can start servers.
pub(crate) fn launcher<'a>(engines: Engines<'a>, name: &str) -> Result<&'a dyn Launch> {
    let engine = engines.iter().find(|engine| engine.name() == name);
    engine.and_then(|engine| engine.launch()).ok_or_else(|| {
        let what = format!("servers of engine `{name}` cannot be started here");
        mainstay_engine::Error::new(Kind::Unsupported, what).into()
    })
}

/// A node whose data were set aside and not replaced would be made anew, empty.
fn refuse_half_restored(layout: &Layout) -> Result<()> {
    let operations = swap::set_asides(layout)?;
    let missing = layout.nodes.iter().any(|node| swap::missing(node, &operations));
    match operations.last() {
        Some(operation) if missing => Err(Error::refused(
            format!("a restore into {} was broken off ({operation})", layout.cluster.name),
            "mainstay recover resume, or mainstay recover undo",
        )),
        _ => Ok(()),
    }
}

/// One environment of one fleet on this machine.
#[derive(Clone, Debug)]
pub struct Environment {
    home: Home,
    fleet: Fleet,
}

/// A cluster that was brought up.
#[derive(Clone, Debug)]
pub struct Up {
    /// As it runs.
    pub layout: Layout,
    /// Its data did not exist before.
    pub created: bool,
    /// It ran, and was stopped and started because its settings had changed.
    pub restarted: bool,
}

/// The fleet that an environment's folder belongs to.
#[derive(Serialize, Deserialize)]
struct Claim {
    base_dir: PathBuf,
}

impl Environment {
    /// The fleet's environment in this home. Touches nothing.
    ///
    /// # Errors
    /// `Refused` when the home has clusters of another fleet of that name.
    pub fn open(home: &Home, fleet: &Fleet) -> Result<Self> {
        let this = Self { home: home.clone(), fleet: fleet.clone() };
        if let Some(claim) = files::read_json::<Claim>(&this.claim_file())?
            && claim.base_dir != fleet.base_dir
            && claim.base_dir.exists()
        {
            return Err(Error::refused(
                format!(
                    "this home has clusters of another fleet named {}, of {}",
                    fleet.name,
                    claim.base_dir.display()
                ),
                "name this fleet otherwise, use another MAINSTAY_HOME, or erase the other: mainstay down --erase",
            ));
        }
        Ok(this)
    }

    /// Starts all clusters, or those of the names `only`, and returns when all are ready. What runs already stays as it is, unless its
    /// settings changed.
    ///
    /// # Errors
    /// The first cluster's that failed; the others were brought up all the same.
    pub async fn up(
        &self,
        engines: Engines<'_>,
        only: Option<&[ClusterName]>,
        progress: &dyn Progress,
    ) -> Result<Vec<Up>> {
        if self.fleet.environment.hosts != Hosts::Local {
            return Err(Error::refused(
                format!("environment {} does not run on this machine", self.fleet.environment.name),
                "choose one with `hosts: local`: --env local",
            ));
        }
        let _lock = self.lock("starting its clusters").await?;
        self.claim()?;
        let wanted = |cluster: &&Cluster| only.is_none_or(|only| only.contains(&cluster.name));
        let clusters = self.fleet.clusters.values().filter(wanted);
        let started =
            futures::future::join_all(clusters.map(|cluster| self.up_one(cluster, engines, progress)));
        let mut ups = Vec::new();
        let mut failed = None;
        for up in started.await {
            match up {
                Ok(up) => ups.push(up),
                Err(error) => {
                    if let Some(earlier) = failed.replace(error) {
                        // The first is reported; what else failed can be read here.
                        tracing::error!(error = %failed.as_ref().unwrap_or(&earlier), "another cluster failed too");
                        failed = Some(earlier);
                    }
                }
            }
        }
        failed.map_or(Ok(ups), Err)
    }

    async fn up_one(&self, cluster: &Cluster, engines: Engines<'_>, progress: &dyn Progress) -> Result<Up> {
        let launch = launcher(engines, &cluster.engine)?;
        let rooms = self.rooms(&cluster.name);
        let mut existing = Record::load(&rooms)?;
        if let Some(record) = existing.take_if(|record| record.erasing) {
            record.erase(&self.home, &rooms).await?;
        }
        let created = existing.is_none();
        let mut record = match existing {
            Some(record) => self.adjust(record, cluster, launch, &rooms)?,
            None => {
                let what = cluster.name.as_str();
                let installation = choose(launch, what, cluster.version.as_ref(), None)?;
                let nodes = usize::try_from(cluster.nodes.count()).unwrap_or(usize::MAX);
                Record::create(&self.home, &rooms, cluster, launch, installation, nodes)?
            }
        };
        record.make_folders(&self.home, &rooms)?;
        let host = rooms.host();
        refuse_half_restored(&self.layout_of(&record, &rooms, Some(cluster))?)?;
        let mut restarted = false;
        let spec = Spec::of(cluster);
        if record.spec != spec && record.nodes.iter().any(|node| host.running(&node.name).is_some()) {
            progress.stage(&format!("stop {}: its settings changed", cluster.name));
            launch.stop(&self.layout_of(&record, &rooms, Some(cluster))?, &host).await?;
            restarted = true;
        }
        let before = std::mem::replace(&mut record.spec, spec);
        let nodes = record.nodes.len();
        let version = &record.version;
        progress.stage(&format!("start {} ({} {version}, {nodes} nodes)", cluster.name, cluster.engine));
        let layout = self.layout_of(&record, &rooms, Some(cluster))?;
        launch.start(&layout, &host).await?;
        if record.spec != before {
            record.save(&rooms)?;
        }
        Ok(Up { layout, created, restarted })
    }

    /// An existing cluster, made to fit what the fleet file says now. Saves what it changes, but for the settings: those are saved
    /// when the servers were started with them.
    fn adjust(
        &self,
        mut record: Record,
        cluster: &Cluster,
        launch: &dyn Launch,
        rooms: &Rooms,
    ) -> Result<Record> {
        let name = &cluster.name;
        let begin_anew = "or begin anew: mainstay down --erase";
        let spec = Spec::of(cluster);
        if record.spec.engine != spec.engine {
            return Err(Error::refused(
                format!("{name} was made as {}, the fleet file says {}", record.spec.engine, spec.engine),
                format!("give the new cluster another name, {begin_anew}"),
            ));
        }
        let wanted = usize::try_from(cluster.nodes.count()).unwrap_or(usize::MAX);
        let have = record.nodes.len();
        let sharded = record.spec.replicas.is_some() || spec.replicas.is_some();
        if wanted < have || (sharded && (wanted != have || record.spec.replicas != spec.replicas)) {
            let shape = |nodes: usize, replicas: Option<u32>| match replicas {
                Some(replicas) => format!("{nodes} nodes with {replicas} replicas each"),
                None => format!("{nodes} nodes"),
            };
            return Err(Error::refused(
                format!(
                    "{name} has {} here, the fleet file says {}: it cannot be reshaped",
                    shape(have, record.spec.replicas),
                    shape(wanted, spec.replicas)
                ),
                format!("write what it has, {begin_anew}"),
            ));
        }
        let host = rooms.host();
        let runs = record.nodes.iter().any(|node| host.running(&node.name).is_some());
        let installation = choose(launch, name.as_str(), cluster.version.as_ref(), Some(&record.version))?;
        record.refresh_ports(rooms)?;
        record.grow(rooms, launch.ports_per_node(cluster), wanted)?;
        if !runs {
            // Nodes that run are not exchanged beneath their data; the next `up` after a `down` is.
            record.version = installation.version;
            record.bin = installation.bin;
        }
        record.save(rooms)?;
        Ok(record)
    }

    /// Stops all clusters that are here, those too that the fleet file no longer has; with `erase`, removes their data. Says which.
    ///
    /// # Errors
    /// The first cluster's that failed; the others were stopped all the same.
    pub async fn down(
        &self,
        engines: Engines<'_>,
        erase: bool,
        progress: &dyn Progress,
    ) -> Result<Vec<ClusterName>> {
        let _lock = self.lock("stopping its clusters").await?;
        let clusters = self.present()?;
        let stopped = clusters.iter().map(|name| self.down_one(name, engines, erase, progress));
        for result in futures::future::join_all(stopped).await {
            result?;
        }
        if erase {
            files::remove(
                &self.home.run_folder(self.fleet.name.as_str(), self.fleet.environment.name.as_str()),
            )?;
            files::remove(&self.folder())?;
            let run = self.home.run_folder(self.fleet.name.as_str(), self.fleet.environment.name.as_str());
            for folder in [self.folder(), run] {
                // Other environments, and other fleets, may be there.
                for above in folder.ancestors().skip(1).take(2) {
                    let _ = std::fs::remove_dir(above);
                }
            }
        }
        Ok(clusters)
    }

    async fn down_one(
        &self,
        name: &ClusterName,
        engines: Engines<'_>,
        erase: bool,
        progress: &dyn Progress,
    ) -> Result<()> {
        let rooms = self.rooms(name);
        let host = rooms.host();
        let Some(record) = Record::load(&rooms)? else {
            host.stop_all(STOP_GRACE).await?;
            return files::remove(&rooms.folder); // what a crash left of an erased one
        };
        let runs = record.nodes.iter().any(|node| host.running(&node.name).is_some());
        if runs {
            progress.stage(&format!("stop {name}"));
            if let Ok(launch) = launcher(engines, &record.spec.engine) {
                let layout = self.layout_of(&record, &rooms, self.fleet.cluster(name.as_str()))?;
                launch.stop(&layout, &host).await?;
            }
        }
        host.stop_all(STOP_GRACE).await?;
        if erase {
            progress.stage(&format!("erase {name}"));
            record.erase(&self.home, &rooms).await?;
        }
        Ok(())
    }

    /// The layouts of all clusters that are here, whether or not they run.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn layouts(&self) -> Result<Vec<Layout>> {
        let mut layouts = Vec::new();
        for name in self.present()? {
            layouts.extend(self.layout(&name)?);
        }
        Ok(layouts)
    }

    /// The layout of one cluster; `None` if it was never brought up, or is being erased.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn layout(&self, name: &ClusterName) -> Result<Option<Layout>> {
        let rooms = self.rooms(name);
        match Record::load(&rooms)? {
            Some(record) if !record.erasing => {
                self.layout_of(&record, &rooms, self.fleet.cluster(name.as_str())).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The processes of a cluster.
    pub fn host(&self, name: &ClusterName) -> Local {
        self.rooms(name).host()
    }

    /// As [`mainstay_engine::Access::scope`].
    pub fn scope(&self, name: &ClusterName) -> String {
        self.home.scope(self.fleet.name.as_str(), self.fleet.environment.name.as_str(), name.as_str())
    }

    /// The present life of a cluster's data, for engines that have no name of their own for it; `None` if it is not here.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn incarnation(&self, name: &ClusterName) -> Result<Option<String>> {
        Ok(Record::load(&self.rooms(name))?.map(|record| record.incarnation))
    }

    /// Begins another life of a cluster's data, for `operation`; done again for the same, it changes nothing.
    ///
    /// # Errors
    /// `Refused` if it is not here; `Damaged`, `Io`.
    pub fn renew_incarnation(&self, name: &ClusterName, operation: &str) -> Result<String> {
        let (rooms, mut record) = self.record(name)?;
        if !record.left.contains_key(operation) {
            let left = std::mem::replace(&mut record.incarnation, files::random_hex(8)?);
            record.left.insert(operation.to_owned(), left);
            record.save(&rooms)?;
        }
        Ok(record.incarnation)
    }

    /// Goes back to the life that was left by `operation`, since its data were brought back.
    ///
    /// # Errors
    /// `Refused` if it is not here; `Damaged`, `Io`.
    pub fn restore_incarnation(&self, name: &ClusterName, operation: &str) -> Result<()> {
        let (rooms, mut record) = self.record(name)?;
        if let Some(left) = record.left.remove(operation) {
            record.incarnation = left;
            record.save(&rooms)?;
        }
        Ok(())
    }

    /// Takes the lock that `up` and `down` take too; for whoever changes clusters by other ways (restoring into the environment).
    ///
    /// # Errors
    /// `Busy`.
    pub async fn lock(&self, doing: &str) -> Result<Lock> {
        let (fleet, environment) = (&self.fleet.name, &self.fleet.environment.name);
        let what = format!("environment {environment} of fleet {fleet}");
        self.home.lock(&format!("{fleet}.{environment}"), &what, doing, LOCK_WAIT).await
    }

    fn record(&self, name: &ClusterName) -> Result<(Rooms, Record)> {
        let rooms = self.rooms(name);
        match Record::load(&rooms)? {
            Some(record) if !record.erasing => Ok((rooms, record)),
            _ => Err(Error::refused(format!("{name} is not on this machine"), "bring it up: mainstay up")),
        }
    }

    fn layout_of(&self, record: &Record, rooms: &Rooms, now: Option<&Cluster>) -> Result<Layout> {
        let scope = self.scope(record.spec.name());
        record.layout(&self.home, rooms, now, scope, false)
    }

    /// The clusters that have a folder here.
    fn present(&self) -> Result<Vec<ClusterName>> {
        Ok(files::names(&self.folder())?.iter().filter_map(|name| ClusterName::new(name).ok()).collect())
    }

    fn claim(&self) -> Result<()> {
        files::private_dir(&self.folder())?;
        files::write_json(&self.claim_file(), &Claim { base_dir: self.fleet.base_dir.clone() })
    }

    fn claim_file(&self) -> PathBuf {
        self.folder().join("fleet.json")
    }

    fn folder(&self) -> PathBuf {
        self.home.environment_folder(self.fleet.name.as_str(), self.fleet.environment.name.as_str())
    }

    fn rooms(&self, name: &ClusterName) -> Rooms {
        let (fleet, environment) = (self.fleet.name.as_str(), self.fleet.environment.name.as_str());
        Rooms {
            folder: self.folder().join(name.as_str()),
            run: self.home.run_folder(fleet, environment).join(name.as_str()),
            nodes: [fleet, environment, name.as_str()].iter().collect(),
        }
    }
}
