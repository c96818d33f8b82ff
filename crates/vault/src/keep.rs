//! Which snapshots the keep rules keep, and why: a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_model::{Instant, Keep, format_duration};

use crate::SnapshotRecord;

/// The rules that keep nothing but what is pinned, and no log: of a cluster that is gone.
pub const KEEP_NOTHING: Keep = Keep {
    within: Duration::ZERO,
    daily: 0,
    weekly: 0,
    monthly: 0,
    yearly: 0,
    least: 0,
    log: Duration::ZERO,
};

/// Why each snapshot that stays does, by id. Those that are not in it may go.
///
/// Days, weeks, months and years are those of UTC, by the time at which a snapshot is consistent. Where two incarnations have snapshots in one day, the
/// newest of each stays. `least` and `log` count in the incarnation that is alive: the one with the snapshot that was finished
/// last. Where `least` is 0 (of a cluster that is gone) neither counts.
pub(crate) fn kept(records: &[SnapshotRecord], keep: &Keep, now: Instant) -> BTreeMap<String, Vec<String>> {
    let mut why: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut say =
        |record: &SnapshotRecord, reason: String| why.entry(record.id.clone()).or_default().push(reason);
    let at = |record: &SnapshotRecord| record.taken.at.latest;

    let mut newest_first: Vec<_> = records.iter().collect();
    newest_first.sort_by_key(|record| std::cmp::Reverse((at(record), record.committed_at)));

    for record in &newest_first {
        if record.pinned {
            say(record, "pinned".into());
        }
        if at(record) >= now - keep.within {
            say(record, format!("within {}", format_duration(keep.within)));
        }
    }

    type Period = fn(Instant) -> String;
    let periods: [(&str, u32, Period); 4] = [
        ("daily", keep.daily, |at| at.to_string().chars().take(10).collect()),
        // The first day of 1970 was a Thursday; weeks begin on Mondays.
        ("weekly", keep.weekly, |at| (at.micros().div_euclid(86_400_000_000) + 3).div_euclid(7).to_string()),
        ("monthly", keep.monthly, |at| at.to_string().chars().take(7).collect()),
        ("yearly", keep.yearly, |at| at.to_string().chars().take(4).collect()),
    ];
    for (rule, count, period) in periods {
        let (mut seen, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for record in &newest_first {
            let period = period(at(record));
            if seen.contains(&period) || seen.len() < count as usize {
                seen.insert(period.clone());
                if taken.insert((period, &record.incarnation)) {
                    say(record, rule.into());
                }
            }
        }
    }

    if keep.least == 0 {
        return why;
    }
    let alive = records.iter().max_by_key(|record| record.committed_at).map(|record| &record.incarnation);
    let mut of_alive = newest_first.iter().filter(|record| Some(&record.incarnation) == alive);
    for record in of_alive.clone().take(keep.least as usize) {
        say(record, format!("least {}", keep.least));
    }
    if let Some(record) = of_alive.find(|record| at(record) <= now - keep.log) {
        say(record, format!("log {}", format_duration(keep.log)));
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SnapshotState;
    use mainstay_engine::Taken;
    use mainstay_model::{Bracket, Position};

    fn record(id: &str, incarnation: &str, at: &str, order: i64) -> SnapshotRecord {
        let at: Instant = at.parse().unwrap();
        SnapshotRecord {
            id: id.into(),
            incarnation: incarnation.into(),
            taken: Taken {
                position: Position::default(),
                started: Position::default(),
                at: Bracket::exactly(at),
                incarnation: None,
                version: String::new(),
                branches: Vec::new(),
                meta: serde_json::Value::Null,
            },
            begun_at: at,
            committed_at: Instant(order),
            files: 0,
            bytes_total: 0,
            bytes_read: 0,
            bytes_new: 0,
            bytes_stored: 0,
            seconds: 0.0,
            pinned: id.starts_with('p'),
            state: SnapshotState::Stored,
            intact_at: None,
            proven_at: None,
            leaving: false,
        }
    }

    const NOTHING: Keep = Keep { least: 1, ..KEEP_NOTHING };

    fn check(keep: &Keep, records: &[SnapshotRecord], expect: &[&str]) {
        let now = "2026-03-31T12:00:00Z".parse().unwrap();
        let mut found: Vec<_> = kept(records, keep, now).into_keys().collect();
        found.sort();
        assert_eq!(found, expect);
    }

    #[test]
    fn each_rule_keeps_what_it_says() {
        let all = [
            record("a", "1", "2024-05-01T00:00:00Z", 1),
            record("b", "1", "2025-12-31T23:59:59Z", 2),
            record("c", "1", "2026-03-01T01:00:00Z", 3),
            record("d", "1", "2026-03-29T01:00:00Z", 4),
            record("e", "1", "2026-03-30T01:00:00Z", 5),
            record("f", "1", "2026-03-30T23:00:00Z", 6),
            record("g", "1", "2026-03-31T01:00:00Z", 7),
        ];
        check(&NOTHING, &all, &["g"]);
        check(&KEEP_NOTHING, &all, &[]);
        check(&Keep { least: 3, ..NOTHING }, &all, &["e", "f", "g"]);
        check(&Keep { daily: 2, ..NOTHING }, &all, &["f", "g"]);
        // 30 and 31 March are in one week, which began on Monday the 30th.
        check(&Keep { weekly: 2, ..NOTHING }, &all, &["d", "g"]);
        check(&Keep { monthly: 2, ..NOTHING }, &all, &["b", "g"]);
        check(&Keep { yearly: 3, ..NOTHING }, &all, &["a", "b", "g"]);
        check(&Keep { within: Duration::from_secs(86_400 * 2), ..NOTHING }, &all, &["e", "f", "g"]);
        check(&Keep { log: Duration::from_secs(86_400 * 2), ..NOTHING }, &all, &["d", "g"]);
    }

    #[test]
    fn names_say_nothing_and_pins_stay() {
        let all = [
            record("z", "1", "2026-03-01T00:00:00Z", 1),
            record("pinned", "1", "2020-01-01T00:00:00Z", 2),
            record("a", "1", "2026-03-02T00:00:00Z", 3),
        ];
        check(&NOTHING, &all, &["a", "pinned"]);
    }

    #[test]
    fn a_new_incarnation_does_not_take_the_places_of_the_old() {
        // The new one's clock is behind; it is alive all the same.
        let all =
            [record("old", "1", "2026-03-30T00:00:00Z", 1), record("new", "2", "2026-03-29T00:00:00Z", 2)];
        check(&NOTHING, &all, &["new"]);
        let both =
            [record("old", "1", "2026-03-30T00:00:00Z", 1), record("new", "2", "2026-03-30T01:00:00Z", 2)];
        check(&Keep { daily: 1, ..NOTHING }, &both, &["new", "old"]);
    }
}
