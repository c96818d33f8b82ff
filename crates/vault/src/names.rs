//! The names of a log's objects, which tell the window without any key.
//!
//! `SEQUENCE_KIND_EPOCH_FIRST_LAST_EARLIEST_LATEST_PREVIOUS_TAG`, numbers in hexadecimal. Of a branch, `LAST` is
//! `PARENTEPOCH.PARENTOFFSET`, or `none`; of a hole, why. Times are microseconds since the epoch, shifted so that they sort as text. `TAG` authenticates the
//! name and the object's bytes; `PREVIOUS` is the tag of the object before.

use mainstay_engine::Segment;
use mainstay_model::{Bracket, Epoch, Instant, Offset, Place};

use crate::LogKind;
use crate::keys::TAG_DIGITS;

/// What a name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub sequence: u64,
    pub kind: LogKind,
    pub segment: Segment,
    pub parent: Option<Place>,
    pub reason: Option<String>,
    pub previous: String,
    pub tag: String,
}

/// Epochs are part of names, and names have a limit: the longest in use are Redis's replication ids, of 40.
const EPOCH_BYTES_MAX: usize = 48;

impl Name {
    /// The name without its tag, which is computed over it.
    pub fn untagged(&self) -> String {
        let kind = match self.kind {
            LogKind::Tail => 't',
            LogKind::Sealed => 's',
            LogKind::Beat => 'b',
            LogKind::Branch => 'e',
            LogKind::Hole => 'h',
        };
        let Segment { first, last, bracket } = &self.segment;
        let last = match (self.kind, &self.parent) {
            (LogKind::Branch, None) => "none".to_owned(),
            (LogKind::Branch, Some(parent)) => format!("{}.{:x}", parent.epoch, parent.offset.0),
            (LogKind::Hole, _) => self.reason.clone().unwrap_or_default(),
            _ => format!("{:x}", last.offset.0),
        };
        format!(
            "{:010x}_{kind}_{}_{:x}_{last}_{:016x}_{:016x}_{}",
            self.sequence,
            first.epoch,
            first.offset.0,
            shift(bracket.earliest),
            shift(bracket.latest),
            self.previous,
        )
    }

    /// The whole name.
    pub fn render(&self) -> String {
        format!("{}_{}", self.untagged(), self.tag)
    }

    /// Reads a name; only what [`Self::render`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split('_').collect();
        let [sequence, kind, epoch, first, last, earliest, latest, previous, tag] = parts[..] else {
            return None;
        };
        let kind = match kind {
            "t" => LogKind::Tail,
            "s" => LogKind::Sealed,
            "b" => LogKind::Beat,
            "e" => LogKind::Branch,
            "h" => LogKind::Hole,
            _ => return None,
        };
        let place = |epoch: &str, offset: &str| {
            let offset = Offset(u128::from_str_radix(offset, 16).ok()?);
            epoch_is_ok(epoch).then(|| Place { epoch: Epoch(epoch.to_owned()), offset })
        };
        let first = place(epoch, first)?;
        let mut reason = None;
        let (last, parent) = match (kind, last) {
            (LogKind::Hole, why) => {
                reason = Some(reason_is_ok(why).then(|| why.to_owned())?);
                (first.clone(), None)
            }
            (LogKind::Branch, "none") => (first.clone(), None),
            (LogKind::Branch, parent) => {
                let (epoch, offset) = parent.split_once('.')?;
                (first.clone(), Some(place(epoch, offset)?))
            }
            (_, last) => (place(epoch, last)?, None),
        };
        let bracket = Bracket { earliest: unshift(earliest)?, latest: unshift(latest)? };
        let name = Self {
            sequence: u64::from_str_radix(sequence, 16).ok()?,
            kind,
            segment: Segment { first, last, bracket },
            parent,
            reason,
            previous: previous.to_owned(),
            tag: tag.to_owned(),
        };
        let tags_ok = [previous, tag].iter().all(|t| t.len() == TAG_DIGITS);
        (tags_ok && name.segment.first.offset <= name.segment.last.offset && name.render() == text)
            .then_some(name)
    }
}

/// Whether an epoch can be part of a name.
pub(crate) fn epoch_is_ok(epoch: &str) -> bool {
    (1..=EPOCH_BYTES_MAX).contains(&epoch.len()) && epoch.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Whether the reason of a hole can be part of a name.
pub(crate) fn reason_is_ok(reason: &str) -> bool {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=60).contains(&reason.len()) && reason.bytes().all(fine)
}

fn shift(at: Instant) -> u64 {
    at.0.cast_unsigned() ^ (1 << 63)
}

fn unshift(text: &str) -> Option<Instant> {
    let shifted = u64::from_str_radix(text, 16).ok()?;
    Some(Instant((shifted ^ (1 << 63)).cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> impl Strategy<Value = Name> {
        let place = ("[A-Za-z0-9]{1,48}", any::<u128>())
            .prop_map(|(epoch, offset)| Place { epoch: Epoch(epoch), offset: Offset(offset) });
        let kinds = prop_oneof![
            Just(LogKind::Tail),
            Just(LogKind::Sealed),
            Just(LogKind::Beat),
            Just(LogKind::Branch),
            Just(LogKind::Hole)
        ];
        let times = (any::<i64>(), any::<i64>());
        let tags = ("[0-9a-f]{24}", "[0-9a-f]{24}");
        (any::<u64>(), kinds, place.clone(), any::<u128>(), proptest::option::of(place), times, tags)
            .prop_map(|(sequence, kind, a, b, parent, (earliest, latest), (previous, tag))| {
                let (low, high) = (a.offset.0.min(b), a.offset.0.max(b));
                let at = |offset| Place { epoch: a.epoch.clone(), offset: Offset(offset) };
                let single = matches!(kind, LogKind::Branch | LogKind::Hole);
                Name {
                    sequence: sequence >> 24,
                    kind,
                    segment: Segment {
                        first: at(low),
                        last: at(if single { low } else { high }),
                        bracket: Bracket { earliest: Instant(earliest), latest: Instant(latest) },
                    },
                    parent: parent.filter(|_| kind == LogKind::Branch),
                    reason: (kind == LogKind::Hole).then(|| "the-slot-was-lost".to_owned()),
                    previous,
                    tag,
                }
            })
    }

    proptest! {
        #[test]
        fn names_are_read_as_they_are_written(name in names()) {
            let text = name.render();
            prop_assert_eq!(Name::parse(&text), Some(name));
        }

        #[test]
        fn foreign_names_are_refused_or_read_whole(text in "[0-9a-fts_.ez]{0,200}") {
            if let Some(name) = Name::parse(&text) {
                prop_assert_eq!(name.render(), text);
            }
        }
    }

    #[test]
    fn real_names_fit_a_filesystem() {
        let id = "f".repeat(40);
        let at = Place { epoch: Epoch(id.clone()), offset: Offset(u64::MAX.into()) };
        let name = Name {
            sequence: 1 << 39,
            kind: LogKind::Branch,
            segment: Segment { first: at.clone(), last: at.clone(), bracket: Bracket::exactly(Instant::MAX) },
            parent: Some(at),
            reason: None,
            previous: "0".repeat(TAG_DIGITS),
            tag: "0".repeat(TAG_DIGITS),
        };
        assert!(name.render().len() <= 255, "{}", name.render().len());
    }
}
