//! The database file, opened.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::schema::{self, NEWEST};
use crate::{Error, Result};

/// How long we wait for another process that writes.
const BUSY_LIMIT: Duration = Duration::from_secs(30);

/// The control plane's database. Cheap to clone; from any thread.
#[derive(Clone, Debug)]
pub struct State {
    path: PathBuf,
    db: Arc<Mutex<Connection>>,
    /// Whose rows are seen, and written: `FLEET/ENVIRONMENT`; of an empty one, all are seen.
    pub(crate) scope: Arc<str>,
}

impl State {
    /// Opens the database at `path`; makes it if there is none.
    ///
    /// # Errors
    /// `Damaged`, `Newer`, `Locked`, `Io`.
    pub fn open(path: &Path) -> Result<Self> {
        // Before SQLite makes it, which would let others read it; its other files take their rights from this one.
        let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
        made.map_err(|e| Error::Io { path: path.to_owned(), reason: e.to_string() })?;
        let failed = |e: rusqlite::Error| Error::of(path, &e);
        let mut db = Connection::open(path).map_err(failed)?;
        db.busy_timeout(BUSY_LIMIT).map_err(failed)?;
        db.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        // A journal entry counts once it is on the disk.
        db.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        db.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        let found = schema::migrate(&mut db).map_err(failed)?;
        if found > NEWEST {
            return Err(Error::Newer { path: path.to_owned(), found, known: NEWEST });
        }
        let sound: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
        if sound != "ok" {
            return Err(Error::Damaged { path: path.to_owned(), reason: sound });
        }
        Ok(Self { path: path.to_owned(), db: Arc::new(Mutex::new(db)), scope: Arc::from("") })
    }

    /// The same database as one environment of one fleet sees it: several fleets may share a home, and clusters their names. What was written
    /// without an owner is seen by all.
    #[must_use]
    pub fn of(&self, fleet: &str, environment: &str) -> Self {
        Self { scope: format!("{fleet}/{environment}").into(), ..self.clone() }
    }

    /// One transaction that writes.
    pub(crate) fn write<T>(&self, act: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let run = || {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = act(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|e: rusqlite::Error| Error::of(&self.path, &e))
    }

    /// Something that only reads.
    pub(crate) fn read<T>(&self, act: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        act(&db).map_err(|e| Error::of(&self.path, &e))
    }

    pub(crate) fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::Damaged { path: self.path.clone(), reason: reason.into() }
    }
}
