//! Free ports on loopback, chosen so that homes that start at the same moment do not choose the same.
//!
//! A port is taken when something is bound to it, or when another cluster has put it down: in a folder of this user's, shared by
//! all homes, under a lock, with the path of the cluster's record. What is put down counts while that record names the port, or
//! while its maker has not had time to write the record. Ports lie below those that the system hands out by itself.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

use crate::cluster::Record;
use crate::lock::{self, Lock};
use crate::process::Identity;
use crate::{Error, Result, files};

const RANGE: RangeInclusive<u16> = 20000..=29999;
/// How long a maker has to write its record.
const MAKING: Duration = Duration::from_secs(600);

#[derive(Serialize, Deserialize)]
struct Reservation {
    record: PathBuf,
    maker: Identity,
}

/// Chooses `count` free ports for the cluster whose record is `record`, which is to be saved with them at once.
pub(crate) fn reserve(record: &Path, count: usize) -> Result<Vec<u16>> {
    let (folder, _lock) = open()?;
    sweep(&folder)?;
    let ephemeral = ephemeral();
    let span = u64::from(RANGE.end() - RANGE.start()) + 1;
    let begin = files::fingerprint(&record.to_string_lossy()) % span;
    let mut chosen = Vec::with_capacity(count);
    for step in 0..span {
        if chosen.len() == count {
            break;
        }
        // Below 10,000 by the modulo.
        let port = RANGE.start() + u16::try_from((begin + step) % span).unwrap_or(0);
        if ephemeral.contains(&port) || !bindable(port) || put_down(&folder, port) {
            continue;
        }
        let reservation = Reservation { record: record.to_owned(), maker: Identity::own() };
        files::write_json(&folder.join(port.to_string()), &reservation)?;
        chosen.push(port);
    }
    if chosen.len() < count {
        return Err(Error::refused(
            format!("no {count} free ports between {} and {} on 127.0.0.1", RANGE.start(), RANGE.end()),
            "stop servers that are no longer needed: mainstay down, mainstay recover drop",
        ));
    }
    Ok(chosen)
}

/// Gives ports back.
pub(crate) fn release(record: &Path, ports: impl Iterator<Item = u16>) -> Result<()> {
    let (folder, _lock) = open()?;
    for port in ports {
        let file = folder.join(port.to_string());
        if files::read_json::<Reservation>(&file).ok().flatten().is_some_and(|r| r.record == record) {
            files::remove(&file)?;
        }
    }
    Ok(())
}

/// Removes what nobody stands for any more: of clusters that were killed in the making, of homes that were deleted.
fn sweep(folder: &Path) -> Result<()> {
    for name in files::names(folder)? {
        match name.parse() {
            Ok(port) if put_down(folder, port) => {}
            Err(_) if name == "lock" => {}
            // Another file is half of one that was to be written: under the lock, nobody is at it.
            _ => files::remove(&folder.join(name))?,
        }
    }
    Ok(())
}

/// Whether nothing listens there.
pub(crate) fn bindable(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn put_down(folder: &Path, port: u16) -> bool {
    let file = folder.join(port.to_string());
    let Ok(Some(reservation)) = files::read_json::<Reservation>(&file) else { return false };
    let named = Record::read(&reservation.record)
        .ok()
        .flatten()
        .is_some_and(|r| r.nodes.iter().any(|node| node.ports.contains(&port)));
    let age = fs::metadata(&file).and_then(|meta| meta.modified()).ok();
    let young = age.and_then(|at| SystemTime::now().duration_since(at).ok()).is_none_or(|age| age < MAKING);
    named || (young && reservation.maker.alive())
}

/// The ports that the system gives to whoever asks for any.
fn ephemeral() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let numbers: Vec<u16> = text.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    match numbers[..] {
        // One that swallows our range leaves no choice.
        [low, high] if low > *RANGE.start() || high < *RANGE.end() => low..=high,
        _ => 0..=0,
    }
}

fn open() -> Result<(PathBuf, Lock)> {
    let uid = nix::unistd::geteuid();
    let run = Path::new("/run");
    let folder = match uid.is_root() && run.is_dir() {
        true => run.join("mainstay-ports"),
        false => Path::new("/tmp").join(format!("mainstay-ports-{uid}")),
    };
    files::private_dir(&folder)?;
    let meta = fs::symlink_metadata(&folder).map_err(Error::at("look at", &folder))?;
    if !meta.is_dir() || meta.uid() != uid.as_raw() || meta.mode() & 0o022 != 0 {
        return Err(Error::refused(
            format!("{} is not this user's own folder", folder.display()),
            "find out who made it, and remove it",
        ));
    }
    let lock = lock::brief_in(&folder, "lock")?;
    Ok((folder, lock))
}
