//! Places in PostgreSQL's write-ahead log: LSNs, timelines, segment names and timeline histories.
//!
//! An LSN alone names one byte on every timeline at once, and two of them may differ there; so a place is an epoch and an
//! LSN. The epoch's name is the timeline's number and, behind an `x`, the LSN where it left its parent: two nodes that
//! were both promoted to "timeline 2" are told apart by it (`2x3000148`). All parsing refuses rather than guesses;
//! nothing here panics on foreign text.

use std::fmt;
use std::str::FromStr;

use mainstay_model::{Epoch, Place};

use crate::wal::{LONG_HEADER_BYTES, PAGE_BYTES, PAGE_HEADER_BYTES};

/// A byte position in the write-ahead log, counted from the beginning of the cluster's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// The identifier of a timeline: one unbroken history; every promotion begins another.
pub type Timeline = u32;

/// Text that is not what it should have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {what}: {text:?}")]
pub struct ParseError {
    /// What was expected, with its article.
    pub what: &'static str,
    /// The text, cut to 80 characters.
    pub text: String,
}

impl ParseError {
    pub(crate) fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(80).collect() }
    }
}

impl Lsn {
    /// The LSN `bytes` further on, or the last one there is.
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// Where the segment that holds this byte begins.
    pub fn segment_start(self, segment_size: u64) -> Self {
        Self(self.0 - self.0 % segment_size.max(1))
    }

    /// The number of the segment that holds this byte.
    pub fn segment(self, segment_size: u64) -> u64 {
        self.0 / segment_size.max(1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new("an LSN", text);
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        Ok(Self((u64::from(hex(high).ok_or_else(bad)?) << 32) | u64::from(hex(low).ok_or_else(bad)?)))
    }
}

fn hex(text: &str) -> Option<u32> {
    // from_str_radix would take a sign.
    let plain = !text.is_empty() && text.len() <= 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// The epoch of `timeline`, whose history is `history`.
pub fn epoch(timeline: Timeline, history: &History) -> Epoch {
    Epoch(match history.branches.last() {
        Some((_, left)) if timeline > 1 => format!("{timeline}x{:x}", left.0),
        _ => timeline.to_string(),
    })
}

/// The timeline of an epoch.
///
/// # Errors
/// The epoch is none of PostgreSQL's.
pub fn timeline_of(epoch: &Epoch) -> Result<Timeline, ParseError> {
    let bad = || ParseError::new("a timeline", &epoch.0);
    let (number, fork) =
        epoch.0.split_once('x').map_or((epoch.0.as_str(), None), |(number, fork)| (number, Some(fork)));
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    if fork.is_some_and(|fork| {
        fork.is_empty() || fork.len() > 16 || !fork.bytes().all(|byte| byte.is_ascii_hexdigit())
    }) {
        return Err(bad());
    }
    plain.then(|| number.parse().ok()).flatten().filter(|number| *number > 0).ok_or_else(bad)
}

/// The place of a byte in an epoch.
pub fn place(epoch: &Epoch, lsn: Lsn) -> Place {
    Place { epoch: epoch.clone(), offset: lsn.0.into() }
}

/// A place as people write it: `1:0/3000148`.
pub fn write_place(place: &Place) -> String {
    format!("{}:{}", place.epoch, Lsn(place.offset.low()))
}

/// Reads what [`write_place`] writes.
///
/// # Errors
/// It is nothing of the kind.
pub fn read_place(text: &str) -> Result<Place, ParseError> {
    let bad = || ParseError::new("a place (as 1:0/3000148)", text);
    let (name, lsn) = text.split_once(':').ok_or_else(bad)?;
    let epoch = Epoch(name.to_owned());
    timeline_of(&epoch).map_err(|_| bad())?;
    Ok(place(&epoch, lsn.parse().map_err(|_| bad())?))
}

/// A place right behind a page's header is the page's beginning: the header belongs to no record, and servers name either.
pub fn before_header(at: Lsn, segment_size: u64) -> Lsn {
    let in_page = at.0 % PAGE_BYTES;
    let page = Lsn(at.0 - in_page);
    let header =
        if page.0.is_multiple_of(segment_size.max(1)) { LONG_HEADER_BYTES } else { PAGE_HEADER_BYTES } as u64;
    if in_page == header { page } else { at }
}

/// The file name that PostgreSQL gives to a segment: timeline, and the segment's number in two halves.
pub fn segment_name(timeline: Timeline, segment: u64, segment_size: u64) -> String {
    let per_high = (0x1_0000_0000 / segment_size.max(1)).max(1);
    format!("{timeline:08X}{:08X}{:08X}", segment / per_high, segment % per_high)
}

/// The timeline and the number of the segment of that file name; `None` when it is none.
pub fn parse_segment_name(name: &str, segment_size: u64) -> Option<(Timeline, u64)> {
    if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let part = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
    let per_high = (0x1_0000_0000 / segment_size.max(1)).max(1);
    Some((part(0)?, u64::from(part(8)?) * per_high + u64::from(part(16)?)))
}

/// The file name of a timeline's history.
pub fn history_name(timeline: Timeline) -> String {
    format!("{timeline:08X}.history")
}

/// Where a timeline came from: its ancestors, eldest first, each with the LSN at which it was left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Ancestor and the place where its successor left it.
    pub branches: Vec<(Timeline, Lsn)>,
}

impl History {
    /// Reads a `.history` file. Comments and empty lines are skipped, as the server does.
    ///
    /// # Errors
    /// Refuses what the server would refuse: lines that are no branch, timelines that do not ascend.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut branches: Vec<(Timeline, Lsn)> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let bad = || ParseError::new("a line of a timeline history", line);
            let mut words = line.split_whitespace();
            let timeline: Timeline = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
            let lsn: Lsn = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
            if branches.last().is_some_and(|(last, at)| *last >= timeline || *at > lsn) {
                return Err(bad());
            }
            branches.push((timeline, lsn));
        }
        Ok(Self { branches })
    }

    /// Where `timeline` was left on the way here, if it is an ancestor.
    pub fn left_at(&self, timeline: Timeline) -> Option<Lsn> {
        self.branches.iter().find(|(ancestor, _)| *ancestor == timeline).map(|(_, lsn)| *lsn)
    }

    /// Which timeline of this history (that of `own`) holds the byte at `lsn`: the eldest not yet left there.
    pub fn timeline_of(&self, own: Timeline, lsn: Lsn) -> Timeline {
        self.branches.iter().find(|(_, left)| lsn < *left).map_or(own, |(timeline, _)| *timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_printed_and_read_back() {
        let there = Place::new("3x3000148", 0x1_01A2_B3C8);
        assert_eq!(write_place(&there), "3x3000148:1/1A2B3C8");
        assert_eq!(read_place("3x3000148:1/1A2B3C8"), Ok(there));
        let bad = [
            "",
            "3",
            "3:1",
            "0:1/2",
            "x:1/2",
            "1:+1/2",
            "1:/2",
            "1:1/123456789",
            "-1:0/0",
            "1:0/0/0",
            "2x:0/0",
            "2xz:0/0",
        ];
        for bad in bad {
            assert!(read_place(bad).is_err(), "{bad}");
        }
        let history = History { branches: vec![(1, Lsn(0x300_0148))] };
        assert_eq!(epoch(2, &history).0, "2x3000148");
        assert_eq!(timeline_of(&epoch(2, &history)), Ok(2));
        assert_eq!(epoch(1, &History::default()).0, "1");
    }

    #[test]
    fn segments_are_named_as_the_server_names_them() {
        assert_eq!(segment_name(1, 0x101, 16 << 20), "000000010000000100000001");
        assert_eq!(segment_name(1, 5, 1 << 30), "000000010000000100000001");
        assert_eq!(parse_segment_name("000000010000000100000001", 16 << 20), Some((1, 0x101)));
        assert_eq!(parse_segment_name("00000001.history", 16 << 20), None);
        assert_eq!(Lsn(0x1_0100_0000).segment(16 << 20), 0x101);
    }

    #[test]
    fn histories_name_the_timeline_of_every_byte() {
        let history =
            History::parse("1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tx\n").unwrap();
        assert_eq!(history.left_at(1), Some(Lsn(0x300_0148)));
        assert_eq!(history.timeline_of(3, Lsn(0x300_0147)), 1);
        assert_eq!(history.timeline_of(3, Lsn(0x300_0148)), 2);
        assert_eq!(history.timeline_of(3, Lsn(0x500_0000)), 3);
        assert!(History::parse("2\t0/5\n1\t0/6\n").is_err());
        assert!(History::parse("nonsense").is_err());
    }

    #[test]
    fn an_insert_position_behind_a_header_is_the_pages_beginning() {
        assert_eq!(before_header(Lsn((1 << 20) + 40), 1 << 20), Lsn(1 << 20));
        assert_eq!(before_header(Lsn((1 << 20) + 8192 + 24), 1 << 20), Lsn((1 << 20) + 8192));
        assert_eq!(before_header(Lsn((1 << 20) + 8192 + 40), 1 << 20), Lsn((1 << 20) + 8192 + 40));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_parsing_panic(text in ".{0,60}") {
            let _ = read_place(&text);
            let _ = text.parse::<Lsn>();
            let _ = History::parse(&text);
        }

        #[test]
        fn any_place_survives_printing(timeline in 1u32.., fork: u64, lsn: u64) {
            let there = place(&epoch(timeline, &History { branches: vec![(1, Lsn(fork))] }), Lsn(lsn));
            proptest::prop_assert_eq!(read_place(&write_place(&there)), Ok(there));
        }
    }
}
