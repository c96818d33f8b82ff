//! `replay`: the log applied to the restored content, and the place that a target stands for.

use std::fs;

use async_trait::async_trait;
use mainstay_engine::{Cutting, Error, Kind, LogSource, Replay, Replayed, RestoreJob, Result, Target};
use mainstay_model::{Bracket, Branch, Instant, Lane, Offset, Place, Position};

use crate::fake::node::{Content, Count, LaneFile, Node, NodeFile, apply};
use crate::fake::record::{Op, Record};
use crate::fake::snapshot::{PARTS, part_name};
use crate::fake::{Fake, lane, launch};

/// One record of a lane's log, with the places on both sides of it.
struct Entry {
    before: Place,
    after: Place,
    record: Record,
}

#[async_trait]
impl Replay for Fake {
    fn cut(&self, lane: &Lane, from: &Place, log: &dyn LogSource, target: &Target) -> Result<Cutting> {
        let entries = entries(lane, from, log)?;
        // A cut before the first entry is at the snapshot itself.
        let places: Vec<&Place> =
            std::iter::once(from).chain(entries.iter().map(|entry| &entry.after)).collect();
        let index = match target {
            Target::End => entries.len(),
            Target::Time(at) => index_of_time(&entries, &places, *at, log.complete_to(lane))?,
            Target::Name(name) => {
                let found = entries.iter().position(|entry| entry.record.op == Op::Mark(name.clone()));
                found
                    .map(|index| index + 1)
                    .ok_or_else(|| out_of_log(format!("no mark `{name}` in {lane}")))?
            }
            Target::Place(place) => {
                places.iter().position(|have| same(have, place, lane, log)).ok_or_else(|| {
                    out_of_log(format!("{place:?} is no clean place in {lane} behind {from:?}"))
                })?
            }
        };
        let earliest = match index {
            0 => Instant::MIN,
            index => entries[index - 1].record.time,
        };
        let latest = entries.get(index).map(|entry| entry.record.time).or_else(|| log.complete_to(lane));
        let place = places[index].clone();
        Ok(Cutting { place, at: Bracket { earliest, latest: latest.unwrap_or(earliest).max(earliest) } })
    }

    async fn replay(&self, job: &RestoreJob<'_>) -> Result<Replayed> {
        let Some(layout) = job.layout.nodes.first() else {
            return Err(Error::new(Kind::Invalid, "replay: the layout has no node"));
        };
        let node = Node::at(layout.data());
        let mut content = restored(&node)?;
        let taken = job.snapshot.taken();
        let count: Count = serde_json::from_value(taken.meta["count"].clone())
            .map_err(|e| Error::new(Kind::Damaged, "the snapshot does not say what it counts").source(e))?;
        job.progress.stage("replay log");
        let mut lanes = Vec::new();
        let mut position = Position::default();
        for number in 0..taken.position.0.len() {
            let lane = lane(number);
            let (Some(from), Some(cut)) = (taken.position.get(&lane), job.cut.get(&lane)) else {
                return Err(Error::new(Kind::Invalid, format!("the cut says nothing of {lane}")));
            };
            let reached = replay_lane(&mut content, &lane, from, cut, job)?;
            lanes.push(history(&lane, &reached, job));
            position.0.insert(lane, reached);
        }
        let incarnation = taken.incarnation.clone().unwrap_or_default();
        for number in 0..PARTS {
            node.remove(&part_name(number))?;
        }
        node.fill(&NodeFile { incarnation, count, primary: true, lanes }, &content)?;
        launch::start_node(job.layout, layout, job.host).await?;
        Ok(Replayed { position, notes: Vec::new() })
    }
}

/// Applies what lies between `from` and `cut`, and says where that ended.
fn replay_lane(
    content: &mut Content,
    lane: &Lane,
    from: &Place,
    cut: &Place,
    job: &RestoreJob<'_>,
) -> Result<Place> {
    if same(from, cut, lane, job.log) {
        return Ok(from.clone());
    }
    for entry in entries(lane, from, job.log)? {
        job.progress.check()?;
        apply(content, entry.record.op);
        if same(&entry.after, cut, lane, job.log) {
            return Ok(entry.after);
        }
    }
    Err(Error::new(Kind::Damaged, format!("replay {lane}: the log ends before {cut:?}")))
}

/// The epochs up to `cut`, and another one that begins there: what is written from now on is not what the source wrote.
fn history(lane: &Lane, cut: &Place, job: &RestoreJob<'_>) -> LaneFile {
    let known =
        job.snapshot.taken().branches.iter().filter(|(of, _)| of == lane).map(|(_, branch)| branch.clone());
    let logged = job.log.branches(lane).into_iter().map(|(branch, _)| branch);
    let mut branches: Vec<Branch> = Vec::new();
    for branch in known.chain(logged) {
        if branch.first <= cut.offset && !branches.iter().any(|have| have.epoch == branch.epoch) {
            branches.push(branch);
        }
    }
    let mut lane = LaneFile { start: cut.offset, branches };
    lane.branch(cut.offset);
    lane
}

/// All whole records of a lane behind `from`, on the surviving history.
fn entries(lane: &Lane, from: &Place, log: &dyn LogSource) -> Result<Vec<Entry>> {
    let segments = log.segments(lane);
    let mut entries = Vec::new();
    let mut reached = false;
    for (index, segment) in segments.iter().enumerate() {
        if segment.first.epoch == from.epoch && segment.last.offset < from.offset {
            continue;
        }
        let data = log.read(lane, index)?;
        let records = Record::decode_all(&data.bytes)?;
        // Where offsets count bytes, the last is as far from the first as there are bytes.
        let span = segment.last.offset.0 - segment.first.offset.0;
        let bytes = span == data.bytes.len() as u128;
        let mut before = segment.first.clone();
        reached |= same(&before, from, lane, log);
        for (number, (record, end)) in records.into_iter().enumerate() {
            let counted = if bytes { end as u128 } else { number as u128 + 1 };
            let after =
                Place { epoch: before.epoch.clone(), offset: Offset(segment.first.offset.0 + counted) };
            if reached {
                entries.push(Entry { before: before.clone(), after: after.clone(), record });
            }
            reached |= same(&after, from, lane, log);
            before = after;
        }
    }
    if !reached && !segments.is_empty() {
        return Err(out_of_log(format!("the log of {lane} does not reach back to {from:?}")));
    }
    // A record that was cut off by the end of an epoch would make those behind it unreadable.
    let gap = entries.windows(2).find(|pair| !same(&pair[0].after, &pair[1].before, lane, log));
    match gap {
        Some(pair) => Err(Error::new(Kind::Damaged, format!("a gap in {lane} behind {:?}", pair[0].after))),
        None => Ok(entries),
    }
}

/// Whether two places are one: the end of an epoch is the beginning of the one that grew out of it there.
fn same(a: &Place, b: &Place, lane: &Lane, log: &dyn LogSource) -> bool {
    let begins = |child: &Place, parent: &Place| {
        log.branches(lane).iter().any(|(branch, _)| {
            branch.epoch == child.epoch
                && branch.first == child.offset
                && branch.parent.as_ref() == Some(parent)
        })
    };
    a == b || begins(a, b) || begins(b, a)
}

/// How many entries happened at or before `at`.
fn index_of_time(
    entries: &[Entry],
    places: &[&Place],
    at: Instant,
    complete: Option<Instant>,
) -> Result<usize> {
    let after = |entry: &Entry| entry.record.time > at;
    let Some(first) = entries.iter().position(after) else {
        return match complete {
            Some(complete) if complete >= at => Ok(entries.len()),
            _ => Err(out_of_log(format!("the log is complete up to {complete:?} only"))),
        };
    };
    if entries[first..].iter().all(after) {
        return Ok(first);
    }
    // The clock went back: every place where it was at most `at` before and later behind can be meant.
    let candidate = |index: &usize| {
        !entries.get(index.wrapping_sub(1)).is_some_and(after) && entries.get(*index).is_none_or(after)
    };
    let candidates = (0..=entries.len()).filter(candidate);
    let candidates =
        candidates.map(|index| format!("{}:{}", places[index].epoch, places[index].offset.low())).collect();
    Err(Error::new(
        Kind::Ambiguous { candidates },
        format!("{at} came more than once: the clock was set back"),
    )
    .hint("choose one of the places: --position"))
}

fn out_of_log(what: String) -> Error {
    Error::new(Kind::OutOfLog, what)
}

/// What [`mainstay_engine::Restore`] put there.
fn restored(node: &Node) -> Result<Content> {
    let mut content = Content::new();
    for number in 0..PARTS {
        let path = node.dir.join(part_name(number));
        let bytes = fs::read(&path).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
        let part: Content = serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(Kind::Damaged, format!("{}", path.display())).source(e))?;
        content.extend(part);
    }
    Ok(content)
}
