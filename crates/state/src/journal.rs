//! The journal: operations made of steps, each of which is done once, undone once, and may be run twice.
//!
//! A step is on record before it begins and after it ended. When a process is killed, whoever goes on runs [`Operation::step`] for
//! every step again, in the same order: those that are done give back what they gave, the one that was cut off is run again. So a
//! step must survive being run twice, and must not depend on anything but its own result and those before it.

use std::fmt;

use mainstay_model::Instant;
use rusqlite::{OptionalExtension, Row, named_params, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::schema::seen;
use crate::{Error, Result, State};

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// It goes on, or was cut off.
    Running,
    /// A step failed: it can be gone on with, or undone.
    Failed,
    /// All that it was to do is done, and can still be undone.
    Done,
    /// All is done for good.
    Finished,
    /// All is as it was before.
    Undone,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// It began, and nobody wrote that it ended.
    Running,
    /// It is done.
    Done,
    /// It gave an error.
    Failed,
    /// It is undone.
    Undone,
}

/// An operation, as it is on record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationRow {
    /// Its name: `op-1a2b3c4d`.
    pub id: String,
    /// What sort it is: `recover`.
    pub kind: String,
    /// What it is about, for people: `shop into local`.
    pub what: String,
    /// What it needs to be gone on with.
    pub detail: Value,
    /// When it began.
    pub created: Instant,
    /// When it ended, if it did.
    pub ended: Option<Instant>,
    /// How far it is.
    pub progress: Progress,
}

/// A step, as it is on record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Its number within the operation, from 1.
    pub seq: u32,
    /// Its name, unique within the operation.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// What it gave.
    pub detail: Value,
    /// Why it failed.
    pub error: Option<String>,
    /// When it last began.
    pub started: Instant,
    /// When it last ended.
    pub ended: Option<Instant>,
}

/// Why a step did not come to its end.
#[derive(Debug)]
pub enum StepError<E> {
    /// The step itself failed.
    Step(E),
    /// The journal did.
    Journal(Error),
}

impl<E: fmt::Display> fmt::Display for StepError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(error) => error.fmt(f),
            Self::Journal(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for StepError<E> {}

impl<E> From<Error> for StepError<E> {
    fn from(error: Error) -> Self {
        Self::Journal(error)
    }
}

/// An operation that is being worked on.
#[derive(Clone, Debug)]
pub struct Operation {
    state: State,
    id: String,
}

impl State {
    /// Begins an operation. `detail`: what is needed to go on with it; never a secret.
    ///
    /// # Errors
    /// The state's.
    pub fn begin(&self, kind: &str, what: &str, detail: &impl Serialize) -> Result<Operation> {
        let detail = serde_json::to_value(detail).map_err(|e| self.damaged(e.to_string()))?;
        let id = self.write(|db| {
            let id: String =
                db.query_row("SELECT 'op-' || lower(hex(randomblob(4)))", [], |row| row.get(0))?;
            db.execute(
                "INSERT INTO operation (id, kind, what, detail, created, progress, scope) VALUES (?, ?, ?, ?, ?, ?, ?)",
                params![id, kind, what, detail.to_string(), now(), word(Progress::Running), &*self.scope],
            )?;
            Ok(id)
        })?;
        entered();
        Ok(Operation { state: self.clone(), id })
    }

    /// Goes on with an operation.
    ///
    /// # Errors
    /// `NoOperation`.
    pub fn resume(&self, id: &str) -> Result<Operation> {
        self.operation(id)?;
        Ok(Operation { state: self.clone(), id: id.to_owned() })
    }

    /// An operation on record.
    ///
    /// # Errors
    /// `NoOperation`.
    pub fn operation(&self, id: &str) -> Result<OperationRow> {
        let found = self.read(|db| {
            let text = concat!("SELECT * FROM operation WHERE id = :id AND ", seen!());
            let mut query = db.prepare_cached(text)?;
            query.query_row(named_params! {":id": id, ":scope": &*self.scope}, operation_row).optional()
        })?;
        found.ok_or_else(|| Error::NoOperation(id.to_owned()))
    }

    /// The operations of one kind that this environment began, the newest first.
    ///
    /// # Errors
    /// The state's.
    pub fn operations(&self, kind: &str, limit: u32) -> Result<Vec<OperationRow>> {
        self.read(|db| {
            let text = concat!(
                "SELECT * FROM operation WHERE kind = :kind AND ",
                seen!(),
                " ORDER BY created DESC, id LIMIT :limit"
            );
            let mut query = db.prepare_cached(text)?;
            let asked = named_params! {":kind": kind, ":scope": &*self.scope, ":limit": limit};
            query.query_map(asked, operation_row)?.collect()
        })
    }
}

impl Operation {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As it is on record.
    ///
    /// # Errors
    /// The state's.
    pub fn row(&self) -> Result<OperationRow> {
        self.state.operation(&self.id)
    }

    /// Its steps so far, in order.
    ///
    /// # Errors
    /// The state's.
    pub fn steps(&self) -> Result<Vec<StepRow>> {
        self.state.read(|db| {
            let mut query = db.prepare_cached("SELECT * FROM step WHERE operation = ? ORDER BY seq")?;
            query.query_map([&self.id], step_row)?.collect()
        })
    }

    /// Runs a step, unless it is done: then gives what it gave.
    ///
    /// # Errors
    /// The step's own, which is put on record; the journal's.
    pub async fn step<T, E, F>(&self, name: &str, act: F) -> Result<T, StepError<E>>
    where
        T: Serialize + DeserializeOwned,
        E: fmt::Display,
        F: AsyncFnOnce() -> Result<T, E>,
    {
        if let Some(step) = self.find(name)?
            && step.state == StepState::Done
        {
            return Ok(self.parse(name, step.detail)?);
        }
        self.enter(name, StepState::Running, &Value::Null, None)?;
        match act().await {
            Ok(given) => {
                let detail = serde_json::to_value(&given).map_err(|e| self.state.damaged(e.to_string()))?;
                self.enter(name, StepState::Done, &detail, None)?;
                Ok(given)
            }
            Err(error) => {
                self.enter(name, StepState::Failed, &Value::Null, Some(&error.to_string()))?;
                self.set_progress(Progress::Failed)?;
                Err(StepError::Step(error))
            }
        }
    }

    /// What a step gave; `None` if it is not done.
    ///
    /// # Errors
    /// The state's.
    pub fn given<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        match self.find(name)? {
            Some(step) if step.state == StepState::Done => self.parse(name, step.detail).map(Some),
            _ => Ok(None),
        }
    }

    /// Undoes a step that was begun, unless it is undone. To be called for the steps in reverse order.
    ///
    /// # Errors
    /// The undoing's own, which is put on record; the journal's.
    pub async fn undo<E, F>(&self, name: &str, act: F) -> Result<(), StepError<E>>
    where
        E: fmt::Display,
        F: AsyncFnOnce() -> Result<(), E>,
    {
        let Some(step) = self.find(name)? else { return Ok(()) };
        if step.state == StepState::Undone {
            return Ok(());
        }
        match act().await {
            Ok(()) => Ok(self.enter(name, StepState::Undone, &Value::Null, None)?),
            Err(error) => {
                self.enter(name, step.state, &step.detail, Some(&format!("undo: {error}")))?;
                Err(StepError::Step(error))
            }
        }
    }

    /// Says how far the operation is.
    ///
    /// # Errors
    /// The state's.
    pub fn set_progress(&self, progress: Progress) -> Result<()> {
        let over = !matches!(progress, Progress::Running | Progress::Failed);
        self.state.write(|db| {
            db.execute(
                "UPDATE operation SET progress = ?, ended = ? WHERE id = ?",
                params![word(progress), over.then(now), self.id],
            )
        })?;
        entered();
        Ok(())
    }

    fn find(&self, name: &str) -> Result<Option<StepRow>> {
        self.state.read(|db| {
            let mut query = db.prepare_cached("SELECT * FROM step WHERE operation = ? AND name = ?")?;
            query.query_row(params![self.id, name], step_row).optional()
        })
    }

    fn parse<T: DeserializeOwned>(&self, name: &str, detail: Value) -> Result<T> {
        let reason = |e| format!("operation {}, step {name}: {e}", self.id);
        serde_json::from_value(detail).map_err(|e| self.state.damaged(reason(e)))
    }

    fn enter(&self, name: &str, state: StepState, detail: &Value, error: Option<&str>) -> Result<()> {
        let running = state == StepState::Running;
        self.state.write(|db| {
            if running {
                db.execute(
                    "INSERT INTO step (operation, seq, name, state, detail, started)
                     SELECT ?1, coalesce(max(seq), 0) + 1, ?2, ?3, 'null', ?4 FROM step WHERE operation = ?1
                     ON CONFLICT (operation, name) DO UPDATE SET
                         state = excluded.state, error = NULL, started = excluded.started, ended = NULL",
                    params![self.id, name, word(state), now()],
                )?;
                db.execute(
                    "UPDATE operation SET progress = ?, ended = NULL WHERE id = ?",
                    params![word(Progress::Running), self.id],
                )
            } else {
                db.execute(
                    "UPDATE step SET state = ?, detail = ?, error = ?, ended = ? WHERE operation = ? AND name = ?",
                    params![word(state), detail.to_string(), error, now(), self.id, name],
                )
            }
        })?;
        entered();
        Ok(())
    }
}

/// For tests of crashes: with `MAINSTAY_DIE_AT_ENTRY=N` the process ends, as if it were killed, right after its N-th journal entry.
fn entered() {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static DIE_AT: OnceLock<Option<u64>> = OnceLock::new();
    static ENTRIES: AtomicU64 = AtomicU64::new(0);
    let die_at = DIE_AT.get_or_init(|| std::env::var("MAINSTAY_DIE_AT_ENTRY").ok()?.parse().ok());
    if *die_at == Some(ENTRIES.fetch_add(1, Ordering::SeqCst) + 1) {
        std::process::abort();
    }
}

pub(crate) fn now() -> i64 {
    Instant::now().micros()
}

/// A state as the word that stands in the database.
fn word(state: impl Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(Value::String(word)) => word,
        other => format!("{other:?}"), // our own enums are words
    }
}

pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    let parsed = serde_json::from_str(&text).or_else(|_| serde_json::from_value(Value::String(text)));
    parsed.map_err(|e| {
        let index = row.as_ref().column_index(column).unwrap_or(0);
        rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(e))
    })
}

fn operation_row(row: &Row<'_>) -> rusqlite::Result<OperationRow> {
    Ok(OperationRow {
        id: row.get("id")?,
        kind: row.get("kind")?,
        what: row.get("what")?,
        detail: json(row, "detail")?,
        created: Instant(row.get("created")?),
        ended: row.get::<_, Option<i64>>("ended")?.map(Instant),
        progress: json(row, "progress")?,
    })
}

fn step_row(row: &Row<'_>) -> rusqlite::Result<StepRow> {
    Ok(StepRow {
        seq: row.get("seq")?,
        name: row.get("name")?,
        state: json(row, "state")?,
        detail: json(row, "detail")?,
        error: row.get("error")?,
        started: Instant(row.get("started")?),
        ended: row.get::<_, Option<i64>>("ended")?.map(Instant),
    })
}
