//! Marks: a restore point in the log.
//!
//! The place of a mark is the end of the restore point's record: whatever was committed before it is below. The record is not
//! flushed when the server answers, so a transactional message is written right behind it, on the same session and not waited
//! for: it makes the server flush, and a mark made under another engine's hold costs that hold no fsync.
//!
//! The session is kept for the next mark, since logging in takes longer than a hold may last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use mainstay_engine::{Access, Error, Kind, Mark, Marked, Result};
use mainstay_model::{Bracket, Epoch, Instant, Position};
use tokio_postgres::Client as Sql;

use crate::connect;
use crate::lsn::{self, Lsn, Timeline};
use crate::snapshot::lane;
use crate::{Postgres, fault};

/// Sessions with primaries, kept between marks.
#[derive(Default)]
pub struct Sessions {
    kept: Mutex<HashMap<String, Arc<Kept>>>,
}

struct Kept {
    sql: Sql,
    node: usize,
    /// The timeline and its epoch, as last asked.
    epoch: Mutex<(Timeline, Epoch)>,
}

#[async_trait]
impl Mark for Postgres {
    async fn mark(&self, access: &Access, id: &str) -> Result<Marked> {
        let known = self.sessions.get(access);
        if let Some(kept) = known {
            match mark(access, &kept, id).await {
                // The session was from before a restart or a failover: the next one is new.
                Err(_) => self.sessions.forget(access),
                marked => return marked,
            }
        }
        let kept = self.sessions.open(access).await?;
        mark(access, &kept, id).await
    }
}

async fn mark(access: &Access, kept: &Arc<Kept>, id: &str) -> Result<Marked> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if id.is_empty() || id.len() > 60 || !id.chars().all(plain) {
        return Err(Error::new(Kind::Invalid, format!("`{id}` is not a mark's name")));
    }
    let what = "write the mark";
    // The place and the timeline in one answer: the timeline cannot change under a running primary.
    let query = format!(
        "WITH before AS MATERIALIZED (SELECT clock_timestamp() AS at), \
              mark AS MATERIALIZED (SELECT at, pg_create_restore_point('{id}') AS lsn FROM before) \
         SELECT lsn, (extract(epoch FROM at) * 1000000)::bigint, \
                (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, substr(pg_walfile_name(lsn), 1, 8) FROM mark"
    );
    let row = connect::row(&kept.sql, what, &query).await?;
    let flushing = Arc::clone(kept);
    let message = format!("SELECT pg_logical_emit_message(true, 'mainstay', '{id}')");
    tokio::spawn(async move {
        if let Err(error) = flushing.sql.simple_query(&message).await {
            tracing::debug!(%error, "mark not flushed by us");
        }
    });
    let place: Lsn = connect::column(&row, 0, what)?;
    let before: i64 = connect::column(&row, 1, what)?;
    let after: i64 = connect::column(&row, 2, what)?;
    let timeline = row.get(3).and_then(|hex| Timeline::from_str_radix(hex, 16).ok());
    let timeline = timeline.ok_or_else(|| Error::new(Kind::Server, "the mark's timeline is not known"))?;
    let epoch = kept.epoch(access, timeline).await?;
    Ok(Marked {
        position: Position::single(lane(), lsn::place(&epoch, place)),
        at: Bracket::between(Instant(before), Instant(after)),
    })
}

impl Kept {
    async fn epoch(&self, access: &Access, timeline: Timeline) -> Result<Epoch> {
        let (known, epoch) = self.epoch.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known == timeline {
            return Ok(epoch);
        }
        let epoch = epoch_of(access, self.node, timeline).await?;
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = (timeline, epoch.clone());
        Ok(epoch)
    }
}

async fn epoch_of(access: &Access, node: usize, timeline: Timeline) -> Result<Epoch> {
    let mut client = connect::replicate(access, &access.nodes[node]).await?;
    let (history, _) = connect::history(&mut client, timeline).await?;
    Ok(lsn::epoch(timeline, &history))
}

impl Sessions {
    fn key(access: &Access) -> String {
        let nodes: Vec<_> = access.nodes.iter().map(|node| format!("{}:{}", node.host, node.port)).collect();
        format!("{}@{}", access.user, nodes.join(","))
    }

    fn get(&self, access: &Access) -> Option<Arc<Kept>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&Self::key(access)).cloned();
        kept.filter(|kept| !kept.sql.is_closed())
    }

    fn forget(&self, access: &Access) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&Self::key(access));
    }

    /// Opens a session with the primary and keeps it, so that the next mark is quick.
    async fn open(&self, access: &Access) -> Result<Arc<Kept>> {
        let primary = connect::primary(access).await?;
        let epoch = epoch_of(access, primary.index, primary.timeline).await?;
        let quiet = primary.sql.batch_execute("SET synchronous_commit = local").await;
        quiet.map_err(|error| fault::sql("prepare the session for marks", error))?;
        let kept = Arc::new(Kept {
            sql: primary.sql,
            node: primary.index,
            epoch: Mutex::new((primary.timeline, epoch)),
        });
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(Self::key(access), Arc::clone(&kept));
        Ok(kept)
    }

    /// Makes sure that a session is open: what a mark under a hold needs beforehand.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`.
    pub async fn warm(&self, access: &Access) -> Result<()> {
        match self.get(access) {
            Some(_) => Ok(()),
            None => self.open(access).await.map(drop),
        }
    }
}
