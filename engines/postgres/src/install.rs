//! Which servers are installed here.
//!
//! Looked for in `$MAINSTAY_ENGINES`, the folders that `scripts/engines` fills, Debian's folder, and on PATH. Only the majors whose
//! log and backup protocol are known here are taken.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use mainstay_engine::{Error, Installation, Kind, Result};
use mainstay_model::Version;

/// The majors that are known here.
pub const MAJORS: std::ops::RangeInclusive<u32> = 15..=18;

/// The newest installed server that `version` covers.
///
/// # Errors
/// `NotInstalled`, with what is there.
pub fn find(version: Option<&str>) -> Result<Installation> {
    let wanted = match version {
        None => None,
        Some(text) => {
            let wanted: Version = text.parse().map_err(|error| {
                Error::new(Kind::Invalid, format!("`{text}` is not a version of PostgreSQL")).source(error)
            })?;
            Some(wanted)
        }
    };
    let mut all = installed();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let fitting =
        all.iter().rev().find(|(found, _)| wanted.as_ref().is_none_or(|wanted| wanted.covers(found)));
    if let Some((version, bin)) = fitting {
        return Ok(Installation { version: version.to_string(), bin: bin.clone() });
    }
    let list: Vec<_> = all.iter().map(|(version, _)| version.to_string()).collect();
    let what = match (&wanted, list.is_empty()) {
        (Some(wanted), true) => format!("PostgreSQL {wanted} is not installed here, nor is any other"),
        (Some(wanted), false) => {
            format!("PostgreSQL {wanted} is not installed here, only {}", list.join(", "))
        }
        (None, _) => "PostgreSQL is not installed here".to_owned(),
    };
    let major = wanted.map_or(15, |wanted| wanted.major());
    Err(Error::new(Kind::NotInstalled, what)
        .hint(format!("run `scripts/engines`, or `apt-get install postgresql-{major}`")))
}

fn installed() -> Vec<(Version, PathBuf)> {
    let mut seen = BTreeMap::new();
    for bin in folders() {
        if let Some(version) = version_of(&bin)
            && MAJORS.contains(&version.major())
        {
            seen.entry(version).or_insert(bin);
        }
    }
    seen.into_iter().collect()
}

/// Every folder that may hold the programs, the first found of a version wins.
fn folders() -> Vec<PathBuf> {
    let mut roots = Vec::new();
    roots.extend(std::env::var_os("MAINSTAY_ENGINES").map(PathBuf::from));
    roots.push(PathBuf::from("/var/cache/mainstay/engines"));
    roots.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/mainstay/engines")));
    let mut folders = Vec::new();
    for root in roots {
        let named = children(&root).into_iter().filter(|path| name_of(path).starts_with("postgres"));
        folders.extend(named.map(|path| path.join("bin")));
    }
    folders.extend(children(Path::new("/usr/lib/postgresql")).into_iter().map(|path| path.join("bin")));
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders.retain(|bin| bin.join("postgres").is_file() && bin.join("initdb").is_file());
    folders
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or("")
}

/// What `postgres --version` says, asked once for each folder.
fn version_of(bin: &Path) -> Option<Version> {
    static KNOWN: OnceLock<Mutex<BTreeMap<PathBuf, Option<Version>>>> = OnceLock::new();
    let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(bin.to_owned()).or_insert_with(|| ask_version(bin)).clone()
}

fn ask_version(bin: &Path) -> Option<Version> {
    let output = program(bin, "postgres").arg("--version").output().ok()?;
    // postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(") ").nth(1)?.split_whitespace().next()?.parse().ok()
}

/// A program that is only asked something. In a process group of its own: the Ctrl-C of a terminal is for us alone.
pub fn program(bin: &Path, name: &str) -> Command {
    let mut command = Command::new(bin.join(name));
    command.stdin(Stdio::null()).process_group(0);
    command
}

/// The folder that holds the server's loadable libraries, as far as it can be told from where its programs lie.
pub fn library_folder(bin: &Path) -> Option<PathBuf> {
    let root = bin.parent()?;
    [root.join("lib/postgresql"), root.join("lib")]
        .into_iter()
        .find(|folder| folder.join("plpgsql.so").is_file())
}

/// The major of an installation.
///
/// # Errors
/// `Invalid` when its version is none.
pub fn major(installation: &Installation) -> Result<u32> {
    let version: Version = installation.version.parse().map_err(|error| {
        Error::new(Kind::Invalid, format!("`{}` is not a version", installation.version)).source(error)
    })?;
    Ok(version.major())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_fits_is_found() {
        let fifteen = find(Some("15")).unwrap();
        assert!(fifteen.version.starts_with("15."), "{fifteen:?}");
        assert!(library_folder(&fifteen.bin).is_some());
        assert!(find(Some("17")).unwrap().version.starts_with("17."));
        assert!(find(None).unwrap().version >= fifteen.version);
        let error = find(Some("9.6")).unwrap_err();
        assert_eq!(error.kind, Kind::NotInstalled);
        assert!(error.what.contains(&fifteen.version) && error.hint.is_some());
        assert_eq!(find(Some("fifteen")).unwrap_err().kind, Kind::Invalid);
    }
}
