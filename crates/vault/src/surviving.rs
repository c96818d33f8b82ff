//! Which of a lane's objects count, when several generations wrote it.

use std::collections::{HashMap, HashSet};

use mainstay_model::{Epoch, Offset};

use crate::log::superseded;
use crate::{LogKind, LogObject};

/// The objects of one lane that count, in order of (generation, sequence): without what a generation wrote past a later one's first
/// place (an object that reaches past it gets `cut_at`), and without what others stand for (tails in a sealed object, beats that were
/// followed). Says nothing of epochs: which of them survived is for whoever reads the branches.
///
/// A writer that was taken for dead and lives may have written on, also through a branch: what it wrote in an epoch that it found past its
/// successor's first place goes as well.
pub fn surviving(objects: &[LogObject]) -> Vec<LogObject> {
    let mut sorted = objects.to_vec();
    sorted.sort_by_key(|object| (object.generation, object.sequence));
    let generations: Vec<&[LogObject]> = sorted.chunk_by(|a, b| a.generation == b.generation).collect();
    // The first place in each epoch at which any later generation took over, from the last to the first.
    let mut limits: HashMap<Epoch, Offset> = HashMap::new();
    let mut kept: Vec<Vec<LogObject>> = Vec::new();
    for generation in generations.iter().rev() {
        kept.push(within(generation, &limits));
        if let Some(first) = generation.iter().find(|object| object.kind != LogKind::Beat) {
            let (epoch, offset) = match (&first.kind, &first.parent) {
                // It took over where the parent ends.
                (LogKind::Branch, Some(parent)) => (parent.epoch.clone(), parent.offset),
                _ => (first.segment.first.epoch.clone(), first.segment.first.offset),
            };
            limits.entry(epoch).and_modify(|limit| *limit = offset.min(*limit)).or_insert(offset);
        }
    }
    kept.into_iter().rev().flatten().collect()
}

fn within(generation: &[LogObject], limits: &HashMap<Epoch, Offset>) -> Vec<LogObject> {
    let gone: HashSet<_> = superseded(generation).into_iter().collect();
    let mut lost_epochs: HashSet<&Epoch> = HashSet::new();
    let mut kept = Vec::new();
    for object in generation {
        let first = &object.segment.first;
        if object.kind == LogKind::Branch {
            let beyond = object.parent.as_ref().is_some_and(|parent| {
                lost_epochs.contains(&parent.epoch)
                    || limits.get(&parent.epoch).is_some_and(|limit| parent.offset > *limit)
            });
            if beyond {
                lost_epochs.insert(&first.epoch);
                continue;
            }
            kept.push(object.clone());
            continue;
        }
        if lost_epochs.contains(&first.epoch) || gone.contains(&object.key) {
            continue;
        }
        let mut object = object.clone();
        if let Some(limit) = limits.get(&first.epoch) {
            let beyond = match object.kind {
                // A beat at the very place says that nothing was behind it then, which is true.
                LogKind::Beat => first.offset > *limit,
                LogKind::Hole => first.offset >= *limit,
                _ => first.offset >= *limit && object.segment.last.offset > *limit,
            };
            if beyond {
                continue;
            }
            if object.segment.last.offset > *limit {
                object.cut_at = Some(*limit);
            }
        }
        kept.push(object);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine::Segment;
    use mainstay_model::{Bracket, Instant, Lane, Place};
    use proptest::prelude::*;

    /// `t1a10-20`: a tail of generation 1 in epoch `a`; `b…` a beat, `s…` sealed, `e1b20<a20` a branch to `b` from `a`.
    fn object(sequence: usize, text: &str) -> LogObject {
        let kind = match &text[..1] {
            "t" => LogKind::Tail,
            "s" => LogKind::Sealed,
            "b" => LogKind::Beat,
            _ => LogKind::Branch,
        };
        let place = |text: &str| Place::new(&text[..1], text[1..].parse().unwrap());
        let (first, parent, last) = match text.split_once('<') {
            Some((first, parent)) => (place(&first[2..]), Some(place(parent)), place(&first[2..])),
            None => {
                let (first, last) = text[2..].split_once('-').unwrap();
                (place(first), None, Place::new(&first[..1], last.parse().unwrap()))
            }
        };
        LogObject {
            key: format!("{sequence}"),
            incarnation: "i".into(),
            lane: Lane::new("l"),
            generation: text[1..2].parse().unwrap(),
            sequence: sequence as u64,
            kind,
            segment: Segment { first, last, bracket: Bracket::exactly(Instant(0)) },
            parent,
            reason: None,
            tag: String::new(),
            previous: String::new(),
            bytes: 1,
            cut_at: None,
        }
    }

    fn check(objects: &[&str], expect: &[&str]) {
        let all: Vec<_> = objects.iter().enumerate().map(|(n, text)| object(n, text)).collect();
        let shown: Vec<_> = surviving(&all)
            .iter()
            .map(|o| {
                let text = objects[o.sequence as usize];
                o.cut_at.map_or(text.to_owned(), |cut| format!("{text}|{}", cut.0))
            })
            .collect();
        assert_eq!(shown, expect);
    }

    #[test]
    fn tails_go_when_a_sealed_object_covers_them() {
        check(&["t1a0-5", "t1a5-9", "s1a0-8", "b1a9-9", "t1a9-12"], &["t1a5-9", "s1a0-8", "t1a9-12"]);
    }

    #[test]
    fn what_a_dead_writer_wrote_past_its_successor_goes() {
        check(&["t1a0-5", "t1a5-9", "t1a9-20", "b1a20-20", "t2a9-15"], &["t1a0-5", "t1a5-9", "t2a9-15"]);
        // A sealed object may reach over the place, and has taken the tails below it along.
        check(&["s1a0-20", "t2a9-15"], &["s1a0-20|9", "t2a9-15"]);
        // A third that begins before the second does.
        check(&["s1a0-20", "t2a9-15", "t3a7-30"], &["s1a0-20|7", "t3a7-30"]);
    }

    #[test]
    fn a_branch_found_past_the_successor_goes_with_its_log() {
        check(
            &["t1a0-9", "e1b9<a9", "t1b9-30", "t2a5-9", "e2b9<a9", "t2b9-20"],
            &["t1a0-9|5", "t2a5-9", "e2b9<a9", "t2b9-20"],
        );
        // The successor went on from the branch: all of it stays.
        check(&["t1a0-9", "e1b9<a9", "t1b9-12", "t2b12-20"], &["t1a0-9", "e1b9<a9", "t1b9-12", "t2b12-20"]);
    }

    proptest! {
        /// However long a zombie writes, readers see every byte exactly once.
        #[test]
        fn one_epoch_is_covered_once(
            generations in proptest::collection::vec((1_u64..40, 0_u64..40, proptest::collection::vec(1_u64..9, 1..8)), 1..5)
        ) {
            // Each generation begins at most where the one before had got to when it was taken over, and may have gone on.
            let (mut objects, mut begin, mut sequence) = (Vec::new(), 0, 0);
            let mut end = 0;
            for (n, (seen, _, lengths)) in generations.iter().enumerate() {
                let mut at = begin;
                for length in lengths {
                    let text = format!("t{}a{at}-{}", n + 1, at + length);
                    objects.push(object(sequence, &text));
                    sequence += 1;
                    at += length;
                }
                end = at;
                begin = (begin + seen).min(at);
            }
            let mut at = 0;
            for object in surviving(&objects) {
                prop_assert_eq!(object.segment.first.offset.0, u128::from(at));
                let last = object.cut_at.unwrap_or(object.segment.last.offset);
                at = u64::try_from(last.0).unwrap();
            }
            prop_assert_eq!(at, end);
        }
    }
}
