//! Beside the stream: the source's clock, our slots, and whether somebody else was promoted.

use std::collections::HashMap;
use std::time::{Duration, Instant as Clock};

use mainstay_engine::{Error, Kind, Never, Result};
use mainstay_model::{Bracket, Instant};
use tokio_postgres::Client as Sql;

use super::{Link, get, patiently};
use crate::connect::{self, Standing};
use crate::lsn::{self, Lsn};

const BEAT_INTERVAL: Duration = Duration::from_millis(500);
const SLOTS_INTERVAL: Duration = Duration::from_secs(3);
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// A commit takes its time before its record is in the log; this much is allowed for in between.
const COMMIT_SLACK: Duration = Duration::from_millis(250);

impl Link<'_> {
    /// Moves slots on, tells the time, and watches for a promotion, until the link's end.
    pub(super) async fn mind(&self, primary: &Standing) -> Error {
        match self.try_mind(primary).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_mind(&self, primary: &Standing) -> Result<Never> {
        let mut beat = tokio::time::interval(BEAT_INTERVAL);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut slots_moved: Option<Clock> = None;
        let mut moved = Lsn(0);
        // Logging in costs a server more than all that is asked here.
        let mut standbys = HashMap::new();
        loop {
            beat.tick().await;
            self.beat(&primary.sql).await?;
            if slots_moved.is_none_or(|since| since.elapsed() >= SLOTS_INTERVAL) {
                slots_moved = Some(Clock::now());
                let durable = Lsn(get(&self.durable).offset.low());
                if self.keep_slot(&primary.sql).await? {
                    tracing::warn!(cluster = self.access.cluster, "our slot was gone: made anew");
                }
                if durable > moved {
                    self.advance(&primary.sql, durable).await?;
                    moved = durable;
                }
                self.visit_standbys(primary, durable, &mut standbys).await?;
            }
        }
    }

    /// With nothing in the server's log that we do not have, its clock moves the window's end on.
    async fn beat(&self, sql: &Sql) -> Result<()> {
        let what = "ask how far the log is";
        // The clock is read before the place: what was committed by then is below it.
        let query =
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, pg_current_wal_insert_lsn()";
        let asked = tokio::time::timeout(ASK_DEADLINE, connect::row(sql, what, query)).await;
        let row = asked
            .map_err(|_| Error::new(Kind::Unreachable, format!("{what}: no answer in {ASK_DEADLINE:?}")))??;
        let clock = Instant(connect::column(&row, 0, what)?);
        let end: Lsn = connect::column(&row, 1, what)?;
        let durable = get(&self.durable);
        if lsn::before_header(end, self.segment_size) <= Lsn(durable.offset.low()) {
            let time = Bracket { earliest: clock - COMMIT_SLACK, latest: clock };
            patiently(self.sink.beat(&durable, time)).await?;
        }
        Ok(())
    }

    /// Somebody may have dropped our slot, or the server given it up. While the link stands nothing is lost by that; without a slot the
    /// next interruption would lose log. Whether it had to be made.
    async fn keep_slot(&self, sql: &Sql) -> Result<bool> {
        let what = "look at our slot";
        let slot = connect::quote_text(&connect::slot(self.access));
        let query =
            format!("SELECT coalesce(wal_status, '') FROM pg_replication_slots WHERE slot_name = {slot}");
        let status = connect::rows(sql, what, &query).await?;
        match status.first().map(|row| row.get(0)) {
            Some(Some("lost")) => {
                connect::rows(sql, what, &format!("SELECT pg_drop_replication_slot({slot})")).await?;
            }
            Some(_) => return Ok(false),
            None => {}
        }
        let make = format!("SELECT pg_create_physical_replication_slot({slot}, true)");
        connect::rows(sql, "make our slot", &make).await?;
        Ok(true)
    }

    async fn advance(&self, sql: &Sql, to: Lsn) -> Result<()> {
        let slot = connect::quote_text(&connect::slot(self.access));
        let query = format!(
            "SELECT pg_replication_slot_advance(slot_name, '{to}') FROM pg_replication_slots \
             WHERE slot_name = {slot} AND restart_lsn < '{to}' AND NOT active"
        );
        connect::rows(sql, "move our slot on", &query).await.map(drop)
    }

    /// Makes and moves our slot on the standbys, so that whichever is promoted still has the log behind us. A standby that does not
    /// answer is none of the link's business; one that was promoted ends it.
    async fn visit_standbys(
        &self,
        primary: &Standing,
        durable: Lsn,
        open: &mut HashMap<usize, Sql>,
    ) -> Result<()> {
        for index in (0..self.access.nodes.len()).filter(|index| *index != primary.index) {
            let name = &self.access.nodes[index].name;
            match tokio::time::timeout(ASK_DEADLINE, self.visit(primary, index, durable, open)).await {
                Ok(Ok(true)) => {
                    return Err(Error::new(
                        Kind::Unreachable,
                        format!("{name} was promoted: the log goes on there"),
                    ));
                }
                Ok(Ok(false)) => continue,
                Ok(Err(error)) => tracing::debug!(node = name, %error, "standby not visited"),
                Err(_) => tracing::debug!(node = name, "standby did not answer"),
            }
            open.remove(&index);
        }
        Ok(())
    }

    /// Whether that node was promoted past the primary that we follow.
    async fn visit(
        &self,
        primary: &Standing,
        index: usize,
        durable: Lsn,
        open: &mut HashMap<usize, Sql>,
    ) -> Result<bool> {
        let sql = match open.get(&index) {
            Some(sql) if !sql.is_closed() => sql,
            _ => {
                let standing = connect::standing(self.access, index).await?;
                open.entry(index).insert_entry(standing.sql).into_mut()
            }
        };
        let what = "look at a standby";
        if connect::row(sql, what, "SELECT pg_is_in_recovery()").await?.get(0) != Some("t") {
            let standing = connect::standing(self.access, index).await?;
            return Ok(standing.timeline > primary.timeline && standing.system_id == primary.system_id);
        }
        // A standby has none yet when it is new, or was rewound.
        if self.keep_slot(sql).await? {
            tracing::info!(node = self.access.nodes[index].name, "made our slot on a standby");
        }
        self.advance(sql, durable).await?;
        Ok(false)
    }
}
