//! Who servers run as, and whether they get to their files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mainstay_engine::{Kind, Launch, RunAs};

use crate::{Error, Result};

/// Whether we are root, who may run servers as others.
pub(crate) fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The name of the user that this engine's servers run as here; `None`: our own.
pub(crate) fn user_of(launch: &dyn Launch) -> Option<&'static str> {
    launch.run_as().filter(|_| root())
}

/// A user's numbers.
pub(crate) fn look_up(name: &str) -> Result<RunAs> {
    let found = nix::unistd::User::from_name(name)
        .map_err(|e| Error::io(format!("look up the user {name}"))(e.into()))?;
    match found {
        Some(user) => Ok(RunAs { uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
        None => Err(mainstay_engine::Error::new(
            Kind::NotInstalled,
            format!("there is no user `{name}` to run servers as"),
        )
        .hint(format!("install the engine's package, or: useradd --system {name}"))
        .into()),
    }
}

/// Whether the user, without any further groups, may go through each folder from the root down to `path`, itself included.
pub(crate) fn may_enter(user: RunAs, path: &Path) -> bool {
    user.uid == 0 || path.ancestors().all(|folder| may_pass(user, folder))
}

fn may_pass(user: RunAs, folder: &Path) -> bool {
    let Ok(meta) = fs::metadata(folder) else { return false };
    let bit = match () {
        () if meta.uid() == user.uid => 0o100,
        () if meta.gid() == user.gid => 0o010,
        () => 0o001,
    };
    meta.mode() & bit != 0
}
