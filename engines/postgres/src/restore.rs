//! Restoring: a snapshot's files into an empty data directory, made harmless.
//!
//! The log of the snapshot is not placed: [`crate::replay`] feeds it, up to the cut. Settings that came with the data
//! (`postgresql.auto.conf`) may hold targets, an archive or a primary to follow: emptied. `postgresql.conf` lies in the
//! data directory and is never read. Tablespaces lie inside the data directory.

use async_trait::async_trait;
use mainstay_engine::{Error, FileKind, Kind, Restore, RestoreJob, Result};

use crate::snapshot::Meta;
use crate::{Postgres, disk, install, launch};

#[async_trait]
impl Restore for Postgres {
    async fn restore(&self, job: &RestoreJob<'_>) -> Result<()> {
        let meta = meta(job)?;
        let major = install::major(&job.layout.installation)?;
        if meta.version_num / 10_000 != major {
            let what = format!(
                "restore data of PostgreSQL {} into a server of version {}",
                meta.version_num / 10_000,
                job.layout.installation.version
            );
            return Err(Error::new(Kind::Unsupported, what)
                .hint("a data directory is read by its own major version alone"));
        }
        let Some(node) = job.layout.nodes.first() else {
            return Err(Error::new(Kind::Invalid, "restore into a cluster without nodes"));
        };
        missing_libraries(job, &meta)?;
        let data = node.data();
        if std::fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::new(
                Kind::Invalid,
                format!("restore into {}: it is not empty", data.display()),
            ));
        }
        job.progress.stage("place files");
        let files = job.snapshot.files()?;
        let (mut list, mut total) = (Vec::new(), 0);
        for (file, bytes) in files {
            let path = crate::tar::relative(&file.path)
                .map_err(|error| Error::new(Kind::Damaged, "restore a file").source(error))?;
            if let FileKind::Symlink { .. } = file.kind {
                return Err(Error::new(
                    Kind::Damaged,
                    format!("restore {path}: a snapshot of PostgreSQL has no links"),
                ));
            }
            if !is_placed(&path, &file.kind) {
                continue;
            }
            list.push((file.path, data.join(path)));
            total += bytes;
        }
        job.progress.expect(total);
        // The server demands 0700.
        disk::folder(&data, job.layout.owner)?;
        place(job, list)?;
        for name in [
            "pg_wal",
            "pg_replslot",
            "pg_stat_tmp",
            "pg_dynshmem",
            "pg_notify",
            "pg_serial",
            "pg_snapshots",
            "pg_subtrans",
        ] {
            disk::folder(&data.join(name), job.layout.owner)?;
        }
        disk::folder(&data.join("pg_wal/archive_status"), job.layout.owner)?;
        disk::write(
            &data.join("postgresql.auto.conf"),
            b"# Emptied by a restore.\n",
            0o600,
            job.layout.owner,
        )?;
        disk::remove(&data.join("standby.signal"))
    }
}

fn place(job: &RestoreJob<'_>, list: Vec<(String, std::path::PathBuf)>) -> Result<()> {
    let outcome = crate::blocking(|| job.snapshot.place(&list, job.layout.owner, job.jobs, &*job.progress));
    outcome.map(drop)
}

/// What the snapshot said of itself.
pub(crate) fn meta(job: &RestoreJob<'_>) -> Result<Meta> {
    let value = job.snapshot.taken().meta.clone();
    serde_json::from_value(value)
        .map_err(|error| Error::new(Kind::Damaged, "read what the snapshot says of itself").source(error))
}

fn is_placed(path: &str, kind: &FileKind) -> bool {
    let beside = path.starts_with("mainstay/") || path == "mainstay" || path == "tablespace_map";
    let log = path.starts_with("pg_wal/") && *kind == FileKind::Regular;
    let left = matches!(
        path,
        "standby.signal" | "recovery.signal" | "postmaster.pid" | "postgresql.auto.conf" | launch::KEPT
    );
    !(beside || log || left)
}

/// Libraries that the source loads at start and that this machine does not have. Without them some extensions' tables read
/// right and take writes that are lost, so that is refused, not worked around.
fn missing_libraries(job: &RestoreJob<'_>, meta: &Meta) -> Result<()> {
    let Some(folder) = install::library_folder(&job.layout.installation.bin) else { return Ok(()) };
    let missing: Vec<_> = libraries(meta).into_iter().filter(|name| !is_there(name, &folder)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what =
        format!("the data needs libraries that are not in {}: {}", folder.display(), missing.join(", "));
    Err(Error::new(Kind::NotInstalled, what)
        .hint("install the extensions' packages for this version of PostgreSQL"))
}

/// Whether the server would find this library: as it is named, or with the usual ending.
fn is_there(name: &str, folder: &std::path::Path) -> bool {
    let path = match name.strip_prefix("$libdir/") {
        Some(below) => folder.join(below),
        // An absolute one stays what it is.
        None => folder.join(name),
    };
    let mut ended = path.clone().into_os_string();
    ended.push(".so");
    path.is_file() || std::path::Path::new(&ended).is_file()
}

/// The names in the source's `shared_preload_libraries`.
pub(crate) fn libraries(meta: &Meta) -> Vec<String> {
    let list = meta.settings.get("shared_preload_libraries").map_or("", String::as_str);
    list.split(',')
        .map(|name| name.trim().trim_matches('"').to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_looked_for_as_the_server_does() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pg_cron.so"), "").unwrap();
        let absolute = folder.path().join("pg_cron").to_string_lossy().into_owned();
        for name in ["pg_cron", "pg_cron.so", "$libdir/pg_cron", "$libdir/pg_cron.so", &absolute] {
            assert!(is_there(name, folder.path()), "{name}");
        }
        for name in ["pg_cro", "$libdir/plugins/pg_cron", "/nowhere/pg_cron"] {
            assert!(!is_there(name, folder.path()), "{name}");
        }
    }

    #[test]
    fn the_log_and_what_reaches_out_are_not_placed() {
        let placed = |path: &str| is_placed(path, &FileKind::Regular);
        assert!(
            placed("base/5/1259")
                && placed("backup_label")
                && placed("pg_tblspc/16400/PG_15_202209061/5/16401")
        );
        for path in [
            "pg_wal/000000010000000000000001",
            "postgresql.auto.conf",
            "standby.signal",
            "tablespace_map",
            "mainstay/tablespace_map",
            "mainstay/pg_hba.conf",
            launch::KEPT,
        ] {
            assert!(!placed(path), "{path}");
        }
        assert!(is_placed("pg_wal", &FileKind::Directory));
    }
}
