//! Data exchanged in place: a node's data set aside, and later brought back or discarded.
//!
//! Each step is a rename within the node's folder, made durable; what is there says how far it came, so that each function can be
//! run again after a crash at any moment, and does nothing more when it is done. `data.before-ID` is what was there before operation
//! ID; an empty one means that there was nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mainstay_engine::{Host, Layout, NodeLayout};

use crate::{Error, Result, files};

/// Moves each node's data out of the way of operation `id`; afterwards no node has data. Once operation `id` has put new data there, this
/// does nothing.
///
/// # Errors
/// `Refused` while a node runs; `Io`.
pub fn set_aside(layout: &Layout, host: &dyn Host, id: &str) -> Result<()> {
    refuse_running(layout, host, id)?;
    for node in &layout.nodes {
        let (data, before) = (node.data(), aside(&node.dir, "before", id));
        if exists(&before) {
            continue;
        }
        match exists(&data) {
            true => rename(&data, &before)?,
            false => make_empty(&before)?,
        }
    }
    Ok(())
}

/// Puts back what [`set_aside`] moved, in place of whatever operation `id` has put there, which is removed.
///
/// # Errors
/// `Refused` while a node runs; `Io`.
pub fn bring_back(layout: &Layout, host: &dyn Host, id: &str) -> Result<()> {
    refuse_running(layout, host, id)?;
    for node in &layout.nodes {
        let (data, before) = (node.data(), aside(&node.dir, "before", id));
        let failed = aside(&node.dir, "failed", id);
        if exists(&before) {
            if exists(&data) {
                files::remove(&failed)?;
                rename(&data, &failed)?;
            }
            match files::names(&before)?.is_empty() {
                true => files::remove(&before)?,
                false => rename(&before, &data)?,
            }
        }
        files::remove(&failed)?;
    }
    Ok(())
}

/// Removes what [`set_aside`] moved, for good.
///
/// # Errors
/// `Io`.
pub fn discard(layout: &Layout, id: &str) -> Result<()> {
    check(id)?;
    for node in &layout.nodes {
        let (before, gone) = (aside(&node.dir, "before", id), aside(&node.dir, "gone", id));
        if exists(&before) {
            // First the name: half of it under its old one could be brought back.
            files::remove(&gone)?;
            rename(&before, &gone)?;
        }
        files::remove(&gone)?;
        files::remove(&aside(&node.dir, "failed", id))?;
    }
    Ok(())
}

/// The operations whose data are set aside in this cluster.
///
/// # Errors
/// `Io`.
pub fn set_asides(layout: &Layout) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for node in &layout.nodes {
        let names = files::names(&node.dir)?;
        ids.extend(names.iter().filter_map(|name| name.strip_prefix("data.before-")).map(str::to_owned));
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// Whether the node has no data, since one of `operations` has set them aside.
pub(crate) fn missing(node: &NodeLayout, operations: &[String]) -> bool {
    let had_data =
        |id: &String| files::names(&aside(&node.dir, "before", id)).is_ok_and(|names| !names.is_empty());
    !exists(&node.data()) && operations.iter().any(had_data)
}

fn aside(dir: &Path, what: &str, id: &str) -> PathBuf {
    dir.join(format!("data.{what}-{id}"))
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).and_then(|()| files::sync_parent(to)).map_err(Error::io(format!(
        "rename {} to {}",
        from.display(),
        to.display()
    )))
}

fn make_empty(path: &Path) -> Result<()> {
    files::private_dir(path)?;
    files::sync_parent(path).map_err(Error::at("make", path))
}

fn refuse_running(layout: &Layout, host: &dyn Host, id: &str) -> Result<()> {
    check(id)?;
    match layout.nodes.iter().find_map(|node| host.running(&node.name).map(|pid| (node, pid))) {
        Some((node, pid)) => Err(Error::refused(
            format!("node {} runs (pid {pid}): its data cannot be exchanged", node.name),
            "stop the cluster first",
        )),
        None => Ok(()),
    }
}

fn check(id: &str) -> Result<()> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match !id.is_empty() && id.chars().all(fine) {
        true => Ok(()),
        false => {
            Err(Error::io("name an operation")(io::Error::new(io::ErrorKind::InvalidInput, id.to_owned())))
        }
    }
}
