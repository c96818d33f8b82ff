//! A home: all that Mainstay keeps on this machine, in one folder. Several lie side by side without touching.
//!
//! Everything in it is ours alone (0700, 0600). The one exception: where we are root and an engine's servers run as another user,
//! that user must be able to enter its nodes' folders. If all folders above the home let it pass, and the home was made by us (or
//! was empty when we first saw it), the home and `nodes/` are opened for passing through (0711), and nothing else is. Otherwise the
//! nodes lie under `/var/lib/mainstay/<home id>/`, which goes away with the last of them. Rights of folders that are not ours are never
//! changed.
//!
//! ```text
//! home.json               who we are                  keys/         keys of vaults
//! state.db                journal and history         locks/        who works on what
//! fleets/FLEET/ENV/CLUSTER/  what a cluster is        spool/FLEET/ENV/CLUSTER/   log on its way to the vault
//! run/FLEET/ENV/CLUSTER/  its processes               sandboxes/ID/ a sandbox's record
//! nodes/…                 data of nodes (or outside, see above)
//! ```

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::RunAs;
use serde::{Deserialize, Serialize};

use crate::lock::{self, Lock};
use crate::{Error, Result, files, users};

/// Where nodes lie that cannot lie in the home.
const OUTSIDE: &str = "/var/lib/mainstay";
const FORMAT: u32 = 1;

/// All that Mainstay keeps on this machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Home(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    record: HomeRecord,
}

#[derive(Debug, Serialize, Deserialize)]
struct HomeRecord {
    format: u32,
    id: String,
    /// We made the folder, or found it empty: its rights are ours to set.
    ours: bool,
}

impl Home {
    /// Opens the home at `path`; makes it if there is none.
    ///
    /// # Errors
    /// `Io`; `Damaged`; `Refused` when a newer Mainstay made it.
    pub fn open(path: &Path) -> Result<Self> {
        let existed = path.exists();
        files::private_dir(path)?;
        let root = fs::canonicalize(path).map_err(Error::at("find", path))?;
        let file = root.join("home.json");
        let record: HomeRecord = match files::read_json(&file)? {
            Some(record) => record,
            None => {
                let ours = !existed || files::names(&root)?.is_empty();
                let _lock = lock::brief_in(&root.join("locks"), "home")?;
                match files::read_json(&file)? {
                    Some(record) => record,
                    None => {
                        let record = HomeRecord { format: FORMAT, id: files::random_hex(6)?, ours };
                        files::write_json(&file, &record)?;
                        record
                    }
                }
            }
        };
        if record.format > FORMAT {
            return Err(Error::refused(
                format!("the home {} was made by a newer mainstay", root.display()),
                "use that one, or another MAINSTAY_HOME",
            ));
        }
        for folder in ["keys", "locks", "spool", "run", "sandboxes", "fleets"] {
            files::private_dir(&root.join(folder))?;
        }
        files::sweep(&root)?;
        files::sweep(&root.join("sandboxes"))?;
        Ok(Self(Arc::new(Inner { root, record })))
    }

    /// Where the home is if nobody says otherwise: `$XDG_DATA_HOME/mainstay` where that is set, `~/.mainstay` elsewhere.
    pub fn default_path() -> Option<PathBuf> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        var("XDG_DATA_HOME")
            .map(|data| data.join("mainstay"))
            .or_else(|| Some(var("HOME")?.join(".mainstay")))
    }

    /// The folder itself, without links in its path.
    pub fn path(&self) -> &Path {
        &self.0.root
    }

    /// What tells this home from all others: twelve hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.0.record.id
    }

    /// The file of the control plane's database.
    pub fn state_db(&self) -> PathBuf {
        self.path().join("state.db")
    }

    /// The folder of the vaults' keys.
    pub fn keys(&self) -> PathBuf {
        self.path().join("keys")
    }

    /// The folder of a cluster's log on its way to the vault. Not made by this call.
    pub fn spool(&self, fleet: &str, environment: &str, cluster: &str) -> PathBuf {
        self.path().join("spool").join(fleet).join(environment).join(cluster)
    }

    pub(crate) fn environment_folder(&self, fleet: &str, environment: &str) -> PathBuf {
        self.path().join("fleets").join(fleet).join(environment)
    }

    pub(crate) fn run_folder(&self, fleet: &str, environment: &str) -> PathBuf {
        self.path().join("run").join(fleet).join(environment)
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.path().join("sandboxes")
    }

    /// What tells the things of this cluster, of this home, from all others in a server: `shop_orders_1a2b3c4d`.
    pub fn scope(&self, fleet: &str, environment: &str, cluster: &str) -> String {
        let whole = format!("{}/{fleet}/{environment}/{cluster}", self.id());
        let name: String = format!("{fleet}_{cluster}").replace('-', "_").chars().take(30).collect();
        format!("{name}_{:08x}", files::fingerprint(&whole) >> 32)
    }

    /// Takes a lock of this home: `what` in messages, `doing` for those who wait for us, `wait` at most.
    ///
    /// # Errors
    /// `Busy` with who holds it.
    pub async fn lock(&self, name: &str, what: &str, doing: &str, wait: Duration) -> Result<Lock> {
        let path = self.path().join("locks").join(name);
        Lock::acquire(&path, what, doing, wait).await
    }

    /// Whether nodes of that user must lie outside the home.
    pub(crate) fn must_be_outside(&self, owner: Option<RunAs>) -> bool {
        let Some(owner) = owner else { return false };
        let above = self.path().parent().is_none_or(|parent| users::may_enter(owner, parent));
        let itself = self.0.record.ours || users::may_enter(owner, self.path());
        !(above && itself)
    }

    /// The folder that nodes lie in.
    pub(crate) fn nodes(&self, outside: bool) -> PathBuf {
        if outside { Path::new(OUTSIDE).join(self.id()) } else { self.path().join("nodes") }
    }

    /// Makes a node's folder, for its owner alone, and those above it.
    pub(crate) fn make_node_folder(
        &self,
        outside: bool,
        relative: &Path,
        owner: Option<RunAs>,
    ) -> Result<PathBuf> {
        let _lock = lock::brief_in(&self.path().join("locks"), "nodes")?;
        let base = self.nodes(outside);
        if outside {
            self.make_outside(&base)?;
        }
        let passable = owner.is_some();
        if passable && !outside && self.0.record.ours {
            let_pass(self.path())?;
        }
        let mut folder = base.clone();
        make(&folder, passable)?;
        for part in relative.parent().unwrap_or(Path::new("")).components() {
            folder.push(part);
            make(&folder, passable)?;
        }
        let node = base.join(relative);
        make(&node, false)?;
        if let Some(RunAs { uid, gid }) = owner {
            std::os::unix::fs::chown(&node, Some(uid), Some(gid)).map_err(Error::at("give away", &node))?;
            if !users::may_enter(RunAs { uid, gid }, &node) {
                return Err(Error::refused(
                    format!("user id {uid}, whom servers run as, cannot enter {}", node.display()),
                    "give the folders above it the right to pass (chmod o+x), or use another MAINSTAY_HOME",
                ));
            }
        }
        Ok(node)
    }

    fn make_outside(&self, base: &Path) -> Result<()> {
        let top = Path::new(OUTSIDE);
        if !top.exists() {
            files::dir(top, 0o755)?;
            fs::set_permissions(top, fs::Permissions::from_mode(0o755)).map_err(Error::at("open", top))?;
        }
        make(base, true)?;
        let sign = base.join("home");
        if !sign.exists() {
            files::write_atomic(&sign, self.path().as_os_str().as_encoded_bytes())?;
        }
        Ok(())
    }

    /// Removes a folder of nodes, and those above it that hold nothing more.
    pub(crate) async fn remove_node_folders(&self, outside: bool, relative: &Path) -> Result<()> {
        let base = self.nodes(outside);
        files::remove_large(&base.join(relative)).await?;
        let _lock = lock::brief_in(&self.path().join("locks"), "nodes")?;
        for above in relative.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            match fs::remove_dir(base.join(above)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Ok(()), // others live there
                _ => {}
            }
        }
        if outside && files::names(&base)?.iter().all(|name| name == "home") {
            files::remove(&base)?; // what is above it stays: another home may be about to use it
        } else if !outside {
            let _ = fs::remove_dir(&base);
        }
        Ok(())
    }
}

/// Makes one folder of our own. `passable`: others may go through, not look around.
fn make(folder: &Path, passable: bool) -> Result<()> {
    match fs::symlink_metadata(folder) {
        Err(_) => files::private_dir(folder)?,
        Ok(meta) if !meta.is_dir() => {
            return Err(Error::Damaged { path: folder.to_owned(), reason: "is not a folder".to_owned() });
        }
        Ok(_) => {}
    }
    if passable { let_pass(folder) } else { Ok(()) }
}

fn let_pass(folder: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(folder).map_err(Error::at("look at", folder))?;
    if meta.mode() & 0o111 == 0o111 {
        return Ok(());
    }
    let mode = (meta.mode() & 0o7777) | 0o111;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode)).map_err(Error::at("open", folder))
}
