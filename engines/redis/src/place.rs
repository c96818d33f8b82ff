//! Places as Redis's people write them: `replid:offset`, as `INFO replication` gives them.

use mainstay_engine::{Error, Kind, Result};
use mainstay_model::{Branch, Epoch, Place};

use crate::topology::State;

/// Writes a place.
pub fn write(place: &Place) -> String {
    format!("{}:{}", place.epoch, place.offset.low())
}

/// Reads one.
///
/// # Errors
/// `Invalid`, with the form that is expected.
pub fn read(text: &str) -> Result<Place> {
    let parsed = text.trim().split_once(':').and_then(|(replid, offset)| {
        let is_id = replid.len() == 40 && replid.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let offset = offset.parse().ok()?;
        is_id.then(|| Place::new(replid, offset))
    });
    parsed.ok_or_else(|| {
        Error::new(Kind::Invalid, format!("read place `{text}`: it is not a replication id and an offset"))
            .hint("write 40 letters and digits, a colon and a number, as master_replid and master_repl_offset in INFO")
    })
}

/// How the id that a server has now came to be, if it says so: it was promoted, or restarted from its file.
pub fn branch_of(state: &State) -> Option<Branch> {
    let shared = u64::try_from(state.second_offset).ok()?.checked_sub(1)?;
    let known = state.replid2.bytes().any(|byte| byte != b'0');
    known.then(|| Branch {
        epoch: Epoch(state.replid.clone()),
        parent: Some(Place::new(state.replid2.clone(), shared)),
        first: shared.into(),
    })
}

/// How what we have of a log relates to the history of the server that takes the writes now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relation {
    /// It is the beginning of it, under the same id.
    Same,
    /// It is the beginning of it; after `shared` bytes the history goes on under another id.
    Renamed {
        /// Where.
        shared: u64,
    },
    /// It has bytes past `shared` that the server never had.
    Diverged {
        /// Up to where both are the same.
        shared: u64,
    },
    /// The server knows nothing of our id.
    Unknown,
}

/// Compares a place with what a server says of its history.
pub fn relate(place: &Place, state: &State) -> Relation {
    let offset = place.offset.low();
    if place.epoch.0 == state.replid {
        // The same id with fewer bytes is not the same history: such a server has lost something.
        return if offset <= state.offset { Relation::Same } else { Relation::Unknown };
    }
    match branch_of(state) {
        Some(Branch { parent: Some(parent), .. }) if parent.epoch == place.epoch => {
            let shared = parent.offset.low();
            if offset <= shared { Relation::Renamed { shared } } else { Relation::Diverged { shared } }
        }
        _ => Relation::Unknown,
    }
}

/// Whether a server can still send its stream from that place on.
pub fn serves(place: &Place, state: &State) -> bool {
    let next = place.offset.low() + 1;
    let known = match relate(place, state) {
        Relation::Same | Relation::Renamed { .. } => true,
        Relation::Diverged { .. } | Relation::Unknown => false,
    };
    known && state.backlog_first.is_some_and(|first| first <= next && next <= state.offset + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_and_read() {
        let place = Place::new("0123456789abcdef0123456789abcdef01234567", 42);
        assert_eq!(read(&write(&place)).unwrap(), place);
        for bad in [
            "",
            "42",
            "abc:42",
            "0123456789abcdef0123456789abcdef01234567:",
            "0123456789abcdef0123456789abcdef01234567:-1",
        ] {
            assert_eq!(read(bad).unwrap_err().kind, Kind::Invalid);
        }
    }

    #[test]
    fn histories_are_related() {
        let old = "a".repeat(40);
        let state = State {
            replid: "b".repeat(40),
            replid2: old.clone(),
            second_offset: 101,
            offset: 500,
            backlog_first: Some(51),
            ..State::default()
        };
        let check = |place: &Place, relation: Relation, served: bool| {
            assert_eq!(relate(place, &state), relation, "{place:?}");
            assert_eq!(serves(place, &state), served, "{place:?}");
        };
        check(&Place::new("b".repeat(40), 500), Relation::Same, true);
        check(&Place::new("b".repeat(40), 501), Relation::Unknown, false);
        check(&Place::new(old.clone(), 100), Relation::Renamed { shared: 100 }, true);
        check(&Place::new(old.clone(), 50), Relation::Renamed { shared: 100 }, true);
        check(&Place::new(old.clone(), 49), Relation::Renamed { shared: 100 }, false);
        check(&Place::new(old, 101), Relation::Diverged { shared: 100 }, false);
        check(&Place::new("c".repeat(40), 1), Relation::Unknown, false);
        let never = State { replid2: "0".repeat(40), second_offset: -1, ..state };
        assert_eq!(branch_of(&never), None);
    }
}
