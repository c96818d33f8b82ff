//! How the database is laid out, and how an older one becomes the present one.
//!
//! Each migration is one transaction, and its number is the file's `user_version` afterwards. None is ever changed once released; what
//! is to be different is another one at the end.

use rusqlite::{Connection, TransactionBehavior};

pub(crate) const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE operation (
        id       TEXT PRIMARY KEY,
        kind     TEXT NOT NULL,
        what     TEXT NOT NULL,
        detail   TEXT NOT NULL,
        created  INTEGER NOT NULL,
        ended    INTEGER,
        progress TEXT NOT NULL
    ) STRICT;
    CREATE INDEX operation_created ON operation (created);
    CREATE TABLE step (
        operation TEXT NOT NULL REFERENCES operation (id) ON DELETE CASCADE,
        seq       INTEGER NOT NULL,
        name      TEXT NOT NULL,
        state     TEXT NOT NULL,
        detail    TEXT NOT NULL,
        error     TEXT,
        started   INTEGER NOT NULL,
        ended     INTEGER,
        PRIMARY KEY (operation, seq),
        UNIQUE (operation, name)
    ) STRICT;
    CREATE TABLE run (
        id      INTEGER PRIMARY KEY,
        kind    TEXT NOT NULL,
        what    TEXT NOT NULL,
        started INTEGER NOT NULL,
        ended   INTEGER,
        error   TEXT,
        bytes   INTEGER NOT NULL DEFAULT 0,
        detail  TEXT NOT NULL DEFAULT 'null'
    ) STRICT;
    CREATE INDEX run_kind ON run (kind, what, started);
    CREATE TABLE proof (
        id      TEXT PRIMARY KEY,
        what    TEXT NOT NULL,
        at      INTEGER NOT NULL,
        proven  INTEGER NOT NULL,
        rto_ms  INTEGER NOT NULL,
        record  TEXT NOT NULL
    ) STRICT;
    CREATE INDEX proof_what ON proof (what, at);
",
    "
    ALTER TABLE operation ADD COLUMN scope TEXT NOT NULL DEFAULT '';
    ALTER TABLE run ADD COLUMN scope TEXT NOT NULL DEFAULT '';
    ALTER TABLE proof ADD COLUMN scope TEXT NOT NULL DEFAULT '';
",
];

/// The rows that a scope sees; it is to be the statement's parameter `:scope`.
macro_rules! seen {
    () => {
        "(:scope = '' OR scope IN (:scope, ''))"
    };
}
pub(crate) use seen;

/// The newest format that we know.
pub(crate) const NEWEST: i64 = MIGRATIONS.len() as i64;

/// Brings the file up to date; gives its format, which is newer than [`NEWEST`] where we may not touch it.
pub(crate) fn migrate(db: &mut Connection) -> rusqlite::Result<i64> {
    // Two processes may open a new file at once: the second finds the work done.
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
    }
    transaction.commit()?;
    Ok(found.max(NEWEST))
}
