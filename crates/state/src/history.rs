//! What was done, when, and how it went: runs and proofs.
//!
//! For people and for schedules. How old a snapshot is, or how far a log reaches, is never read from here: that is computed from the
//! vault.

use mainstay_model::Instant;
use rusqlite::{OptionalExtension, Row, named_params, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::journal::{json, now};
use crate::schema::seen;
use crate::{Result, State};

/// How many runs of each kind and object are kept.
const RUNS_KEPT: u32 = 1000;

/// A run that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a run that is never ended looks as if it had been cut off"]
pub struct RunId(i64);

/// One run of something that is done again and again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `snapshot`, `proof`, `prune`, `point`.
    pub kind: String,
    /// The cluster or group.
    pub what: String,
    /// When it began.
    pub started: Instant,
    /// When it ended; `None`: it goes on, or was cut off.
    pub ended: Option<Instant>,
    /// Why it failed; `None` for one that ended: it did not.
    pub error: Option<String>,
    /// Bytes that it moved.
    pub bytes: u64,
    /// What else is worth knowing.
    pub detail: Value,
}

impl Run {
    /// Whether it came to a good end.
    pub fn succeeded(&self) -> bool {
        self.ended.is_some() && self.error.is_none()
    }
}

/// A proof, before it is on record.
#[derive(Clone, Debug, PartialEq)]
pub struct NewProof<'a> {
    /// The proof's own name.
    pub id: &'a str,
    /// The cluster or group.
    pub what: &'a str,
    /// Whether all was as it must be.
    pub proven: bool,
    /// How long the restore took, in milliseconds.
    pub rto_ms: u64,
    /// What was compared, and what was found.
    pub record: &'a Value,
}

/// A proof on record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProofRow {
    /// Its name.
    pub id: String,
    /// The cluster or group.
    pub what: String,
    /// When it was made.
    pub at: Instant,
    /// Whether all was as it must be.
    pub proven: bool,
    /// How long the restore took, in milliseconds.
    pub rto_ms: u64,
    /// What was compared, and what was found.
    pub record: Value,
}

impl State {
    /// Says that a run begins.
    ///
    /// # Errors
    /// The state's.
    pub fn run_began(&self, kind: &str, what: &str) -> Result<RunId> {
        self.write(|db| {
            db.execute(
                "INSERT INTO run (kind, what, started, scope) VALUES (?, ?, ?, ?)",
                params![kind, what, now(), &*self.scope],
            )?;
            let id = db.last_insert_rowid();
            db.execute(
                "DELETE FROM run WHERE kind = ?1 AND what = ?2 AND scope = ?4 AND id <= (
                     SELECT id FROM run WHERE kind = ?1 AND what = ?2 AND scope = ?4 ORDER BY id DESC LIMIT 1 OFFSET ?3)",
                params![kind, what, RUNS_KEPT, &*self.scope],
            )?;
            Ok(RunId(id))
        })
    }

    /// Says how it ended.
    ///
    /// # Errors
    /// The state's.
    pub fn run_ended(&self, run: RunId, error: Option<&str>, bytes: u64, detail: &Value) -> Result<()> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.write(|db| {
            db.execute(
                "UPDATE run SET ended = ?, error = ?, bytes = ?, detail = ? WHERE id = ?",
                params![now(), error, bytes, detail.to_string(), run.0],
            )
        })?;
        Ok(())
    }

    /// The runs of one kind about one thing, the newest first.
    ///
    /// # Errors
    /// The state's.
    pub fn runs(&self, kind: &str, what: &str, limit: u32) -> Result<Vec<Run>> {
        self.read(|db| {
            let text = concat!(
                "SELECT * FROM run WHERE kind = :kind AND what = :what AND ",
                seen!(),
                " ORDER BY id DESC LIMIT :limit"
            );
            let mut query = db.prepare_cached(text)?;
            let asked = named_params! {":kind": kind, ":what": what, ":scope": &*self.scope, ":limit": limit};
            query.query_map(asked, run_row)?.collect()
        })
    }

    /// The newest run that came to a good end.
    ///
    /// # Errors
    /// The state's.
    pub fn last_good_run(&self, kind: &str, what: &str) -> Result<Option<Run>> {
        self.read(|db| {
            let text = concat!(
                "SELECT * FROM run WHERE kind = :kind AND what = :what AND ended IS NOT NULL AND error IS NULL AND ",
                seen!(),
                " ORDER BY id DESC LIMIT 1"
            );
            let mut query = db.prepare_cached(text)?;
            let asked = named_params! {":kind": kind, ":what": what, ":scope": &*self.scope};
            query.query_row(asked, run_row).optional()
        })
    }

    /// How many runs of that kind failed since `since`, by what they were about.
    ///
    /// # Errors
    /// The state's.
    pub fn failures(&self, kind: &str, since: Instant) -> Result<Vec<(String, u64)>> {
        self.read(|db| {
            let text = concat!(
                "SELECT what, count(*) FROM run WHERE kind = :kind AND started >= :since AND error IS NOT NULL AND ",
                seen!(),
                " GROUP BY what"
            );
            let mut query = db.prepare_cached(text)?;
            let row = |row: &Row<'_>| Ok((row.get(0)?, unsigned(row.get(1)?)));
            let asked = named_params! {":kind": kind, ":since": since.micros(), ":scope": &*self.scope};
            query.query_map(asked, row)?.collect()
        })
    }

    /// Puts a proof on record; one of the same name is replaced.
    ///
    /// # Errors
    /// The state's.
    pub fn add_proof(&self, proof: &NewProof<'_>) -> Result<()> {
        let rto_ms = i64::try_from(proof.rto_ms).unwrap_or(i64::MAX);
        self.write(|db| {
            db.execute(
                "INSERT OR REPLACE INTO proof (id, what, at, proven, rto_ms, record, scope) VALUES (?, ?, ?, ?, ?, ?, ?)",
                params![
                    proof.id,
                    proof.what,
                    now(),
                    proof.proven,
                    rto_ms,
                    proof.record.to_string(),
                    &*self.scope
                ],
            )
        })?;
        Ok(())
    }

    /// The proofs of a cluster or group, the newest first.
    ///
    /// # Errors
    /// The state's.
    pub fn proofs(&self, what: &str, limit: u32) -> Result<Vec<ProofRow>> {
        self.read(|db| {
            let text = concat!(
                "SELECT * FROM proof WHERE what = :what AND ",
                seen!(),
                " ORDER BY at DESC, id LIMIT :limit"
            );
            let mut query = db.prepare_cached(text)?;
            let asked = named_params! {":what": what, ":scope": &*self.scope, ":limit": limit};
            query.query_map(asked, proof_row)?.collect()
        })
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn run_row(row: &Row<'_>) -> rusqlite::Result<Run> {
    Ok(Run {
        kind: row.get("kind")?,
        what: row.get("what")?,
        started: Instant(row.get("started")?),
        ended: row.get::<_, Option<i64>>("ended")?.map(Instant),
        error: row.get("error")?,
        bytes: unsigned(row.get("bytes")?),
        detail: json(row, "detail")?,
    })
}

fn proof_row(row: &Row<'_>) -> rusqlite::Result<ProofRow> {
    Ok(ProofRow {
        id: row.get("id")?,
        what: row.get("what")?,
        at: Instant(row.get("at")?),
        proven: row.get("proven")?,
        rto_ms: unsigned(row.get("rto_ms")?),
        record: json(row, "record")?,
    })
}
