//! Whether something is due. Pure: what the vault holds, the schedule, the time.

use std::time::Duration;

use mainstay_model::{Instant, Schedule};
use mainstay_recovery::follow::Wanted;

/// So many snapshots within that time, and the next one that a log asks for waits; each further one twice as long.
const WANTED_MAX: usize = 3;
const WANTED_WITHIN: Duration = Duration::from_secs(600);
const WANTED_PAUSE: Duration = Duration::from_secs(30);

/// Why a snapshot is due now; `None` if it is not. `begun` are the times at which the finished snapshots were begun. `hurried`: nobody comes
/// back for it soon, so a log that asks for one does not wait.
pub fn snapshot(
    begun: &[Instant],
    schedule: Option<&Schedule>,
    is_followed: bool,
    wanted: Option<&Wanted>,
    hurried: bool,
    now: Instant,
) -> Option<String> {
    let Some(newest) = begun.iter().max() else {
        return (is_followed || schedule.is_some()).then(|| "there is none".to_owned());
    };
    // A log that is lost again and again must not keep the source busy with snapshots.
    let lately = begun.iter().filter(|at| now.since(**at) < WANTED_WITHIN && **at <= now).count();
    let more = lately.checked_sub(WANTED_MAX).filter(|_| !hurried);
    let wait = more.map_or(Duration::ZERO, |more| WANTED_PAUSE * (1 << more.min(4)));
    if let Some(wanted) = wanted.filter(|wanted| *newest < wanted.since && now.since(*newest) >= wait) {
        return Some(wanted.reason.replace('-', " "));
    }
    scheduled(schedule, *newest, now).then(|| "it is scheduled".to_owned())
}

/// Whether the schedule names an instant after `last` that has come. One that was missed is due once, however many were.
pub fn scheduled(schedule: Option<&Schedule>, last: Instant, now: Instant) -> bool {
    schedule.and_then(|schedule| schedule.next_after(last)).is_some_and(|next| next <= now)
}

/// Whether `every` has passed since `last`.
pub fn every(every: Duration, last: Option<Instant>, now: Instant) -> bool {
    // A clock that stepped back makes the last one lie ahead: then it is due, rather than never again.
    last.is_none_or(|last| now.since(last) >= every || last > now + every)
}

/// Which points may go: those that no log reaches any more, and of those older than `all_within` all but the first of each hour. `ids`
/// ascend and begin with their time.
pub fn points_to_delete(
    ids: &[String],
    reached_from: Option<Instant>,
    all_within: Duration,
    now: Instant,
) -> Vec<String> {
    let mut gone = Vec::new();
    let mut hour = None;
    for id in ids {
        let Some(at) = time_of_point(id) else { continue };
        let this = at.micros().div_euclid(3_600_000_000);
        let is_old = at < now - all_within;
        if reached_from.is_some_and(|from| at < from) || (is_old && hour == Some(this)) {
            gone.push(id.clone());
        } else {
            hour = Some(this);
        }
    }
    gone
}

/// The time in a point's id, `20260131t030405678-9f3c01`.
pub fn time_of_point(id: &str) -> Option<Instant> {
    let digits = id.get(..18).filter(|text| text.is_ascii() && text.as_bytes()[8] == b't')?;
    let (d, t) = (&digits[..8], &digits[9..]);
    let text =
        format!("{}-{}-{}T{}:{}:{}.{}Z", &d[..4], &d[4..6], &d[6..8], &t[..2], &t[2..4], &t[4..6], &t[6..9]);
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Instant {
        format!("2026-01-{text}Z").replace('_', "T").parse().unwrap()
    }

    #[test]
    fn snapshots_are_due_at_first_when_wanted_and_by_schedule() {
        let schedule: Schedule = "daily 02:00".parse().unwrap();
        let wanted = |since| Wanted { reason: "log-gone".to_owned(), since };
        let now = at("10_12:00:00");
        let check = |begun: &[Instant], schedule, followed, wanted: Option<&Wanted>, expect: Option<&str>| {
            assert_eq!(snapshot(begun, schedule, followed, wanted, false, now).as_deref(), expect);
        };
        check(&[], None, true, None, Some("there is none"));
        check(&[], None, false, None, None);
        check(&[at("09_02:00:00")], Some(&schedule), true, None, Some("it is scheduled"));
        check(&[at("10_02:00:05")], Some(&schedule), true, None, None);
        check(&[at("01_00:00:00")], None, true, None, None);
        check(
            &[at("10_02:00:05")],
            Some(&schedule),
            true,
            Some(&wanted(at("10_03:00:00"))),
            Some("log gone"),
        );
        check(&[at("10_03:00:01")], Some(&schedule), true, Some(&wanted(at("10_03:00:00"))), None);
        let lately = ["10_11:55:00", "10_11:57:00", "10_11:58:00"].map(at);
        // Never given up: a cluster without protection for long is worse than a snapshot more.
        check(&lately, None, true, Some(&wanted(at("10_11:59:00"))), Some("log gone"));
        let just_now = ["10_11:55:00", "10_11:57:00", "10_11:59:40"].map(at);
        let asks = wanted(at("10_11:59:50"));
        check(&just_now, None, true, Some(&asks), None);
        assert_eq!(snapshot(&just_now, None, true, Some(&asks), true, now).as_deref(), Some("log gone"));
        let often = ["10_11:54:00", "10_11:55:00", "10_11:56:00", "10_11:57:00", "10_11:58:30"].map(at);
        check(&often, None, true, Some(&wanted(at("10_11:59:50"))), None);
        check(&lately[..2], None, true, Some(&wanted(at("10_11:59:00"))), Some("log gone"));
    }

    #[test]
    fn intervals_pass_and_clocks_step_back() {
        let minute = Duration::from_secs(60);
        assert!(every(minute, None, at("10_12:00:00")));
        assert!(!every(minute, Some(at("10_12:00:00")), at("10_12:00:59")));
        assert!(every(minute, Some(at("10_12:00:00")), at("10_12:01:00")));
        assert!(every(minute, Some(at("10_15:00:00")), at("10_12:00:00")));
    }

    #[test]
    fn points_go_when_nothing_reaches_them_and_thin_out() {
        let ids: Vec<String> = [
            "20260108t010000000-a",
            "20260109t010000000-b",
            "20260109t013000000-c",
            "20260109t020000000-d",
            "20260110t113000000-e",
            "20260110t114000000-f",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(time_of_point(&ids[4]), Some(at("10_11:30:00")));
        assert_eq!(time_of_point("nonsense"), None);
        let day = Duration::from_secs(3600);
        let gone = points_to_delete(&ids, Some(at("09_00:00:00")), day, at("10_12:00:00"));
        assert_eq!(gone, [ids[0].clone(), ids[2].clone()]);
    }
}
