//! What a command works with: the fleet, this machine's home, vaults and clusters, each opened when it is first needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_engine::{Access, Engine, Layout, NodeAccess};
use mainstay_fleet::resolve;
use mainstay_model::{Cluster, Fleet, Hosts, Nodes, SecretRef, VaultSpec};
use mainstay_recovery::Protected;
use mainstay_runtime::{Environment, Home};
use mainstay_state::State;
use mainstay_store::{Store, StoreSpec};
use mainstay_vault::Vault;
use tokio::sync::Mutex;

use crate::commands::{Cx, check};
use crate::failure::{Failure, Result};

/// A fleet file that was read, and the home that goes with it.
pub struct Session<'a> {
    pub cx: &'a Cx,
    pub fleet: Fleet,
    pub home: Home,
    pub environment: Environment,
    vaults: Vaults,
}

/// Vaults that were opened, by name.
pub type Vaults = Arc<Mutex<BTreeMap<String, Vault>>>;

/// Whether a vault that is not there is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The command writes backups: make it, loudly if that mints a key; unless this home knows of one there, which is gone then.
    Make,
    /// The command is there to make it, also where one is gone.
    Init,
    /// The command only looks: say that there is none.
    Fail,
    /// The command keeps log on this machine until the vault is there: go on with the one that this home knows, loudly.
    Spool,
}

impl<'a> Session<'a> {
    pub fn open(cx: &'a Cx) -> Result<Self> {
        Self::with(cx, check::load(cx)?, home(cx)?, Vaults::default())
    }

    /// Of what was read and opened before.
    pub fn with(cx: &'a Cx, fleet: Fleet, home: Home, vaults: Vaults) -> Result<Self> {
        let environment = Environment::open(&home, &fleet)?;
        Ok(Self { cx, fleet, home, environment, vaults })
    }

    /// The vaults that were opened, to be kept open for longer than this session.
    pub fn vaults(&self) -> Vaults {
        Arc::clone(&self.vaults)
    }

    /// The home's database, as this fleet's environment sees it.
    pub fn state(&self) -> Result<State> {
        let (fleet, environment) = (self.fleet.name.as_str(), self.fleet.environment.name.as_str());
        Ok(State::open(&self.home.state_db())?.of(fleet, environment))
    }

    pub fn engine(&self, cluster: &Cluster) -> Result<&'static dyn Engine> {
        let found = self.cx.engines.iter().find(|e| e.name() == cluster.engine);
        found.copied().ok_or_else(|| {
            Failure::usage(
                "unknown-engine",
                format!("engine `{}` of {} is not known", cluster.engine, cluster.name),
                "run `mainstay check`",
            )
        })
    }

    pub fn cluster(&self, name: &str) -> Result<&Cluster> {
        self.fleet.cluster(name).ok_or_else(|| self.unknown("cluster", name))
    }

    fn unknown(&self, what: &str, name: &str) -> Failure {
        let clusters = self.fleet.clusters.keys().map(ToString::to_string);
        let groups = self.fleet.recovery_groups.keys().map(|g| format!("{g} (a group)"));
        let groups = groups.filter(|_| what.contains("group"));
        let known = clusters.chain(groups).collect::<Vec<_>>().join(", ");
        let file = self.cx.global.fleet.display();
        Failure::usage(
            "unknown-name",
            format!("there is no {what} `{name}` in {file}"),
            format!("name one of: {known}"),
        )
    }

    /// The clusters that names stand for: groups stand for their members, no name for all.
    pub fn select(&self, names: &[String]) -> Result<Vec<&Cluster>> {
        if names.is_empty() {
            return Ok(self.fleet.clusters.values().collect());
        }
        let mut selected: Vec<&Cluster> = Vec::new();
        for name in names {
            let members = match self.fleet.group(name) {
                Some(group) => {
                    group.members.iter().map(|m| self.cluster(m.as_str())).collect::<Result<Vec<_>>>()?
                }
                None => vec![self.fleet.cluster(name).ok_or_else(|| self.unknown("cluster or group", name))?],
            };
            for member in members {
                if !selected.iter().any(|c| c.name == member.name) {
                    selected.push(member);
                }
            }
        }
        Ok(selected)
    }

    /// The layout of a local cluster that is here.
    pub fn layout(&self, cluster: &Cluster) -> Result<Option<Layout>> {
        Ok(self.environment.layout(&cluster.name)?)
    }

    /// How a cluster is reached. One that was never brought up has no nodes.
    pub fn access(&self, cluster: &Cluster) -> Result<Access> {
        let scope = self.environment.scope(&cluster.name);
        if self.fleet.environment.hosts == Hosts::Local {
            let nothing = || Access {
                cluster: cluster.name.to_string(),
                scope,
                nodes: Vec::new(),
                user: String::new(),
                password: None,
            };
            return Ok(self.layout(cluster)?.map_or_else(nothing, |layout| layout.access()));
        }
        let Nodes::Named(hosts) = &cluster.nodes else {
            return Err(Failure::usage(
                "no-nodes",
                format!("{} names no nodes", cluster.name),
                "write `nodes: [\"host:port\"]`",
            ));
        };
        let access = cluster.access.as_ref();
        let node = |(n, at): (usize, &mainstay_model::HostPort)| NodeAccess {
            name: format!("{}-{}", cluster.name, n + 1),
            host: at.host.clone(),
            port: at.port,
            data_dir: cluster.control.as_ref().and_then(|c| c.data.clone()).filter(|d| d.is_dir()),
        };
        Ok(Access {
            cluster: cluster.name.to_string(),
            scope,
            nodes: hosts.iter().enumerate().map(node).collect(),
            user: access.and_then(|a| a.user.clone()).unwrap_or_default(),
            password: access.and_then(|a| a.password.as_ref()).map(|s| self.secret(s)).transpose()?,
        })
    }

    fn secret(&self, reference: &SecretRef) -> Result<mainstay_engine::Secret> {
        resolve(reference, &self.fleet.base_dir)
            .map_err(|e| Failure::of("secret", &e, Some("make the secret readable for this user".to_owned())))
    }

    /// A cluster that is up, or what to do about it.
    pub fn running(&self, cluster: &Cluster) -> Result<Access> {
        let access = self.access(cluster)?;
        if access.nodes.is_empty() {
            let message = format!("{} was never brought up here", cluster.name);
            return Err(Failure::failed("not-up", message, "start it: mainstay up"));
        }
        Ok(access)
    }

    /// One of the fleet's vaults; opened once.
    pub async fn vault(&self, name: &str, spec: &VaultSpec, missing: Missing) -> Result<Vault> {
        let mut vaults = self.vaults.lock().await;
        if let Some(vault) = vaults.get(name) {
            return Ok(vault.clone());
        }
        let vault = self.open_vault(name, spec, missing).await?;
        vaults.insert(name.to_owned(), vault.clone());
        Ok(vault)
    }

    /// Writes the format of a vault anew that has lost it, if this home holds its keys; gives whether that was needed.
    pub async fn put_format_back(&self, spec: &VaultSpec) -> Result<bool> {
        Ok(Vault::put_format_back(&self.store(spec)?, &self.home.keys()).await?)
    }

    fn store(&self, spec: &VaultSpec) -> Result<Store> {
        let key = |r: &Option<SecretRef>| r.as_ref().map(|r| self.secret(r)).transpose();
        let hidden = |s: mainstay_engine::Secret| mainstay_store::Secret(s.expose().to_owned());
        Ok(Store::open(&StoreSpec {
            url: spec.url.clone(),
            base_dir: self.fleet.base_dir.clone(),
            endpoint: spec.endpoint.clone(),
            region: spec.region.clone(),
            access_key: key(&spec.access_key)?.map(hidden),
            secret_key: key(&spec.secret_key)?.map(hidden),
        })?)
    }

    async fn open_vault(&self, name: &str, spec: &VaultSpec, missing: Missing) -> Result<Vault> {
        let store = self.store(spec)?;
        let keys = self.home.keys();
        let recipients = &spec.recipients;
        let opened = match missing {
            Missing::Fail => {
                return Vault::open(store.clone(), &keys).await.map_err(|e| no_vault(e, &store, &keys));
            }
            Missing::Spool => Vault::open_or_known(store, recipients, &keys).await?,
            Missing::Init => Vault::open_or_init(store, recipients, &keys).await?,
            Missing::Make => {
                let opened = Vault::open_or_create(store.clone(), recipients, &keys).await;
                opened.map_err(|e| no_vault(e, &store, &keys))?
            }
        };
        if let Some(away) = &opened.away {
            let why = Failure::of("vault-away", away, None);
            self.cx.printer.say(format!(
                "\n*** VAULT {name} CANNOT BE USED: {why}\n*** Logs that were followed here before go to the spool of this machine alone until it can. \
                 No snapshot is taken, and nothing is proven. If it is gone for good, `mainstay vault init` makes another.\n"
            ));
        }
        if let Some(identity) = &opened.made_identity {
            self.cx.printer.say(format!(
                "\n*** VAULT {name} IS ENCRYPTED TO A KEY THAT WAS MADE JUST NOW: {}\n*** Keep a copy of that file somewhere else. Without it \
                 no backup in this vault can ever be restored.\n",
                identity.display()
            ));
        }
        Ok(opened.vault)
    }

    /// All that recovery needs to know of a cluster.
    pub async fn protected(&self, cluster: &Cluster, missing: Missing) -> Result<Protected> {
        let Some((name, spec)) = self.fleet.vault_of(cluster) else {
            let message = format!("{} has no backup policy", cluster.name);
            return Err(Failure::failed(
                "no-backup",
                message,
                format!("give {} a `backup:` in the fleet file", cluster.name),
            ));
        };
        let vault = self.vault(name.as_str(), spec, missing).await?;
        let (fleet, environment) = (self.fleet.name.as_str(), self.fleet.environment.name.as_str());
        Ok(Protected {
            cluster: cluster.clone(),
            engine: self.engine(cluster)?,
            vault: vault.cluster(fleet, environment, cluster.name.as_str()),
            access: self.access(cluster)?,
            spool: self.spool(cluster),
            incarnation: self.environment.incarnation(&cluster.name)?,
        })
    }

    /// As [`Self::protected`], for several.
    pub async fn all_protected(&self, clusters: &[&Cluster], missing: Missing) -> Result<Vec<Protected>> {
        let mut all = Vec::new();
        for cluster in clusters {
            all.push(self.protected(cluster, missing).await?);
        }
        Ok(all)
    }

    /// The clusters among `clusters` that are backed up at all.
    pub fn backed_up<'c>(&self, clusters: Vec<&'c Cluster>) -> Vec<&'c Cluster> {
        clusters.into_iter().filter(|c| self.fleet.vault_of(c).is_some()).collect()
    }

    fn spool(&self, cluster: &Cluster) -> PathBuf {
        self.home.spool(self.fleet.name.as_str(), self.fleet.environment.name.as_str(), cluster.name.as_str())
    }
}

/// What is said where there is no vault: that it is gone, where this home knows of one, and else that nothing was backed up yet.
fn no_vault(error: mainstay_vault::Error, store: &Store, keys: &Path) -> Failure {
    if !matches!(error, mainstay_vault::Error::NoVault { .. }) {
        return error.into();
    }
    match Vault::known_in(store, keys) {
        Ok(Some(_)) => {
            let hint =
                "see that its disk is mounted; if it is gone for good, `mainstay vault init` makes another";
            let failure = Failure::of("vault-gone", &error, Some(hint.to_owned()));
            let message = format!("{}, where this home backed up to one", failure.message);
            Failure { message, ..failure }
        }
        Ok(None) => {
            let hint = "nothing was backed up yet: mainstay backup run CLUSTER, or mainstay serve";
            Failure::of(error.code(), &error, Some(hint.to_owned()))
        }
        Err(error) => error.into(),
    }
}

/// Opens the home, without a fleet file.
pub fn home(cx: &Cx) -> Result<Home> {
    let path = cx.global.home.clone().or_else(Home::default_path).ok_or_else(|| {
        Failure::usage(
            "no-home",
            "neither MAINSTAY_HOME nor HOME is set",
            "set MAINSTAY_HOME to a folder of your own",
        )
    })?;
    let path = std::path::absolute(&path).map_err(|e| Failure::of("io", &e, None))?;
    Ok(Home::open(&path)?)
}
