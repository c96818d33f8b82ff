//! `follow`: the log of one lane, read from the file of the node that takes writes.
//!
//! Bytes travel in pieces that know nothing of records, as they do from a real server; a piece that begins with a record says so by
//! its carry. Where records are counted, pieces are whole records.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_engine::{Access, Chunk, Error, Follow, Kind, LogSink, Never, Result, TimeMark};
use mainstay_model::{Bracket, Branch, Lane, Offset, Place};

use crate::fake::node::{Count, LaneFile, Node, NodeFile};
use crate::fake::record::Record;
use crate::fake::{Fake, connect, lane, lane_number, to_usize};

/// How long we wait before we look again.
const PAUSE: Duration = Duration::from_millis(5);
/// The longest piece.
const PIECE_BYTES: usize = 1000;

#[async_trait]
impl Follow for Fake {
    async fn lanes(&self, access: &Access) -> Result<Vec<Lane>> {
        Ok((0..connect::primary(access)?.file()?.lanes.len()).map(lane).collect())
    }

    async fn tip(&self, access: &Access, lane: &Lane) -> Result<Place> {
        let node = connect::primary(access)?;
        keep(&node, access)?;
        let number = lane_number(lane)?;
        let _lock = node.lock()?;
        let file = node.file()?;
        let end = Node::end(&file, number, &node.log(number)?)?;
        Ok(lane_file(&file, number)?.place(end))
    }

    async fn follow(&self, access: &Access, lane: &Lane, from: &Place, sink: &dyn LogSink) -> Result<Never> {
        let node = connect::primary(access)?;
        keep(&node, access)?;
        let number = lane_number(lane)?;
        let mut at = from.clone();
        loop {
            if !node.up() {
                return Err(Error::new(Kind::Unreachable, format!("follow {lane}: the server went away")));
            }
            let file = node.file()?;
            if !file.primary {
                return Err(Error::new(
                    Kind::Unreachable,
                    format!("follow {lane}: the server takes no writes any more"),
                ));
            }
            let history = lane_file(&file, number)?;
            let now = node.now();
            let log = node.log(number)?;
            let end_of_epoch = match next_epoch(history, &at)? {
                Some(next) => {
                    if next.first == at.offset {
                        sink.branch(next.clone(), None).await?;
                        at = Place { epoch: next.epoch.clone(), offset: next.first };
                        continue;
                    }
                    next.first
                }
                None => Offset(u128::MAX),
            };
            if at.offset < history.start {
                return Err(Error::new(
                    Kind::LogGone,
                    format!("follow {lane}: the log before {} is gone", history.start),
                ));
            }
            let before = at.clone();
            at = send(&file, history, &log, at, end_of_epoch, sink).await?;
            if at == before {
                // Nothing came. Nothing more comes in an ended epoch; in the present one, there was nothing up to now.
                if end_of_epoch == Offset(u128::MAX) {
                    sink.beat(&at, Bracket::exactly(now)).await?;
                }
                tokio::time::sleep(PAUSE).await;
            } else {
                sink.sync().await?;
            }
        }
    }

    async fn release(&self, access: &Access) -> Result<()> {
        for node in access.nodes.iter().filter_map(|node| connect::connect(node).ok()) {
            node.remove(&slot(access))?;
        }
        Ok(())
    }
}

/// Where the epoch of `at` ends and which comes then; `None` in the present one.
fn next_epoch<'a>(history: &'a LaneFile, at: &Place) -> Result<Option<&'a Branch>> {
    let diverged = |branched: Option<Place>| {
        Error::new(Kind::Diverged { branched }, format!("{at:?} is not on this history"))
    };
    let Some(index) = history.branches.iter().position(|branch| branch.epoch == at.epoch) else {
        return Err(diverged(None));
    };
    match history.branches.get(index + 1) {
        Some(next) if next.first < at.offset => Err(diverged(next.parent.clone())),
        next => Ok(next),
    }
}

/// Sends what there is from `at` on, at most up to `limit`, and gives where that ended.
async fn send(
    file: &NodeFile,
    history: &LaneFile,
    log: &[u8],
    mut at: Place,
    limit: Offset,
    sink: &dyn LogSink,
) -> Result<Place> {
    let records = Record::decode_all(log)?;
    let ends = |count: Count| -> Vec<u128> {
        let counted = |(index, (_, end)): (usize, &(Record, usize))| match count {
            Count::Bytes => *end as u128,
            Count::Records => index as u128 + 1,
        };
        records.iter().enumerate().map(counted).map(|end| end + history.start.0).collect()
    };
    let ends = ends(file.count);
    let marks = |from: u128, to: u128| -> Vec<TimeMark> {
        let within = ends.iter().zip(&records).filter(|(end, _)| from < **end && **end <= to);
        within
            .map(|(end, (record, _))| TimeMark { offset: Offset(*end), at: Bracket::exactly(record.time) })
            .collect()
    };
    let whole = records.last().map_or(0, |(_, end)| *end);
    if file.count == Count::Records {
        let done = to_usize(Offset(at.offset.0.saturating_sub(history.start.0)))?;
        for (index, (_, end)) in records.iter().enumerate().skip(done) {
            let to = Offset(history.start.0 + index as u128 + 1);
            if to > limit {
                break;
            }
            let begin = if index == 0 { 0 } else { records[index - 1].1 };
            let bytes = Bytes::copy_from_slice(&log[begin..*end]);
            let carry = Some("record".to_owned());
            let chunk = Chunk { at: at.clone(), bytes, times: marks(at.offset.0, to.0), carry };
            sink.append_counted(chunk, to).await?;
            at.offset = to;
        }
        return Ok(at);
    }
    let end = whole.min(to_usize(Offset(limit.0.saturating_sub(history.start.0).min(whole as u128)))?);
    let mut done = to_usize(Offset(at.offset.0 - history.start.0))?;
    while done < end {
        let to = end.min(done + PIECE_BYTES);
        let from = history.start.0 + done as u128;
        let times = marks(from, history.start.0 + to as u128);
        let begins = done == 0 || records.iter().any(|(_, end)| *end == done);
        let carry = begins.then(|| "record".to_owned());
        sink.append(Chunk { at: at.clone(), bytes: Bytes::copy_from_slice(&log[done..to]), times, carry })
            .await?;
        done = to;
        at.offset = Offset(history.start.0 + done as u128);
    }
    Ok(at)
}

fn lane_file(file: &NodeFile, number: usize) -> Result<&LaneFile> {
    file.lanes.get(number).ok_or_else(|| Error::new(Kind::Invalid, format!("there is no lane {number}")))
}

/// Makes the source keep what comes: no node trims its log while a slot is there.
fn keep(node: &Node, access: &Access) -> Result<()> {
    node.write(&slot(access), b"")
}

fn slot(access: &Access) -> String {
    format!("slot-{}", access.scope)
}
