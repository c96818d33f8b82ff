//! A base backup as one stream of files, whatever archives it came in.
//!
//! Tablespaces become folders inside the data directory (`pg_tblspc/OID/`): PostgreSQL 15 and later take a folder there as well as a
//! link, and then nothing that is restored can reach a path outside of it.

use std::collections::VecDeque;

use mainstay_engine::{Error, Kind, Result};

use crate::fault;
use crate::lsn::{Lsn, Timeline};
use crate::replication::{Archive, BaseBackup};
use crate::tar::{Piece, Splitter};

/// The files of a base backup, in the order in which the server sends them.
pub struct Files {
    backup: BaseBackup,
    splitter: Splitter,
    prefix: String,
    pieces: VecDeque<Piece>,
    end: Option<(Lsn, Timeline)>,
}

impl Files {
    /// The files of `backup`.
    pub fn new(backup: BaseBackup) -> Self {
        Self {
            backup,
            splitter: Splitter::default(),
            prefix: String::new(),
            pieces: VecDeque::new(),
            end: None,
        }
    }

    /// The next piece, with its path relative to the data directory; `None` at the end.
    ///
    /// # Errors
    /// `Unreachable`, `Server`, `Damaged`.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(match piece {
                    Piece::Begin(mut entry) => {
                        entry.path = join(&self.prefix, &entry.path);
                        Piece::Begin(entry)
                    }
                    other => other,
                }));
            }
            let next = self
                .backup
                .next()
                .await
                .map_err(|error| fault::replication("copy the data directory", error))?;
            match next {
                None => return Ok(None),
                Some(Archive::New { name, location }) => {
                    self.whole()?;
                    self.prefix = prefix(&name, &location)?;
                }
                Some(Archive::Data(bytes)) => {
                    let pieces = self.splitter.push(bytes);
                    self.pieces = pieces
                        .map_err(|error| {
                            Error::new(Kind::Damaged, "read the server's archive").source(error)
                        })?
                        .into();
                }
                Some(Archive::End { lsn, timeline }) => {
                    self.whole()?;
                    self.end = Some((lsn, timeline));
                }
                Some(Archive::Progress(_)) => {}
                Some(Archive::Manifest) => {
                    return Err(Error::new(Kind::Damaged, "a manifest that was not asked for"));
                }
            }
        }
    }

    /// Where the backup ends; known once [`Files::next`] gave `None`.
    pub fn end(&self) -> Option<(Lsn, Timeline)> {
        self.end
    }

    fn whole(&mut self) -> Result<()> {
        let whole = self.splitter.is_between();
        self.splitter = Splitter::default();
        if whole {
            Ok(())
        } else {
            Err(Error::new(Kind::Damaged, "an archive of the server ends in the midst of a file"))
        }
    }
}

fn prefix(name: &str, location: &str) -> Result<String> {
    let stem = name.strip_suffix(".tar").unwrap_or(name);
    match stem {
        "base" if location.is_empty() => Ok(String::new()),
        oid if !oid.is_empty() && oid.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(format!("pg_tblspc/{oid}"))
        }
        other => Err(Error::new(Kind::Damaged, format!("an archive named {other:?}"))),
    }
}

fn join(prefix: &str, path: &str) -> String {
    match (prefix, path) {
        ("", path) => path.to_owned(),
        (prefix, "") => prefix.to_owned(),
        (prefix, path) => format!("{prefix}/{path}"),
    }
}

/// Whether a copy of the data directory leaves this path out: what belongs to the running server, what the log brings back,
/// what would make the copy a standby. Folders among them are kept, empty.
pub fn is_left_out(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    // What a snapshot keeps beside the data, where one was restored without us.
    if path == "mainstay" || path.starts_with("mainstay/") {
        return true;
    }
    let emptied = [
        "pg_wal",
        "pg_replslot",
        "pg_stat_tmp",
        "pg_dynshmem",
        "pg_notify",
        "pg_serial",
        "pg_snapshots",
        "pg_subtrans",
    ];
    if let Some((folder, rest)) = path.split_once('/')
        && emptied.contains(&folder)
        && !(folder == "pg_wal" && rest == "archive_status")
    {
        return true;
    }
    matches!(
        path,
        "postmaster.pid"
            | "postmaster.opts"
            | "standby.signal"
            | "recovery.signal"
            | "backup_manifest"
            | "current_logfiles"
            | "postgresql.auto.conf.tmp"
            | "backup_label.old"
            | "tablespace_map.old"
    ) || name.starts_with("pgsql_tmp")
        || name.starts_with("pg_internal.init")
        || is_temporary_relation(name)
}

/// `t3_16400`, `t12_16400_fsm.1`: relations of sessions.
fn is_temporary_relation(name: &str) -> bool {
    let Some((backend, relation)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) else {
        return false;
    };
    !backend.is_empty()
        && backend.bytes().all(|byte| byte.is_ascii_digit())
        && relation.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_the_running_server_is_left_out() {
        let out = [
            "pg_wal/000000010000000000000001",
            "pg_replslot/x/state",
            "postmaster.pid",
            "standby.signal",
            "recovery.signal",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "base/5/pg_internal.init",
            "base/5/t3_16400",
            "pg_stat_tmp/global.stat",
            "base/5/t3_16400_fsm",
            "pg_subtrans/0000",
            "pg_wal/archive_status/x.done",
            "mainstay",
            "mainstay/pg_hba.conf",
        ];
        for path in out {
            assert!(is_left_out(path), "{path}");
        }
        for path in [
            "base/5/1259",
            "pg_wal",
            "pg_wal/archive_status",
            "pg_replslot",
            "postgresql.auto.conf",
            "pg_xact/0000",
            "backup_label",
            "global/pg_control",
            "pg_twophase/0000",
            "mainstay.restored.json",
        ] {
            assert!(!is_left_out(path), "{path}");
        }
        assert_eq!(prefix("16400.tar", "/srv/x").unwrap(), "pg_tblspc/16400");
        assert!(prefix("../x.tar", "").is_err());
    }
}
