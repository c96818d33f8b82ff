//! What must be known of a stream to read it from its middle: the selected database and whether a transaction is open.
//!
//! It goes into the head of each segment as text: `db=3 multi=0`, `db=? multi=0` where the stream has not selected a database yet, and
//! `?` where the stream was taken up by a process that did not see what came before. An unknown state is found again by reading the
//! log from the last known one on; it is never guessed. In the midst of a large value it is `db=3 multi=0 bulk=5000 args=2`: so many of
//! the value's bytes, and so many arguments, are still to come. Without that a value of 100 MB would be one segment.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use mainstay_engine::Access;
use mainstay_model::{Instant, Lane, Place};

use crate::stream::{Boundary, Inside, Splitter};

/// The state of a stream that nobody here has seen.
pub const UNKNOWN: &str = "?";

/// Writes the state at a boundary.
pub fn write(at: &Boundary) -> String {
    let db = at.db.map_or_else(|| "?".to_owned(), |db| db.to_string());
    format!("db={db} multi={}", u8::from(at.in_multi))
}

/// Writes the state in the midst of a command.
pub fn write_inside(inside: &Inside) -> String {
    format!("{} bulk={} args={}", write(&inside.at), inside.bulk_left, inside.arguments_left)
}

/// Reads it at a boundary; none where it is unknown, or where there is no boundary.
pub fn read(offset: u64, text: &str) -> Option<Boundary> {
    let (at, rest) = parse(offset, text)?;
    rest.is_empty().then_some(at)
}

/// Where reading can begin; none where the state is unknown.
pub fn enter(offset: u64, text: &str) -> Option<Splitter> {
    let (at, rest) = parse(offset, text)?;
    let [bulk, args] = rest[..] else { return rest.is_empty().then(|| Splitter::new(at)) };
    let bulk_left = bulk.strip_prefix("bulk=")?.parse().ok().filter(|left| *left > 0)?;
    let arguments_left = args.strip_prefix("args=")?.parse().ok().filter(|left| *left > 0)?;
    Some(Splitter::within(Inside { at, bulk_left, arguments_left }))
}

fn parse(offset: u64, text: &str) -> Option<(Boundary, Vec<&str>)> {
    let mut words = text.split(' ');
    let db = words.next()?.strip_prefix("db=")?;
    let db = if db == "?" { None } else { Some(db.parse().ok()?) };
    let in_multi = match words.next()?.strip_prefix("multi=")? {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    Some((Boundary { offset, db, in_multi }, words.collect()))
}

/// States at the places where this process stopped reading, so that it can go on knowing them.
#[derive(Debug, Default)]
pub struct States {
    known: Mutex<BTreeMap<String, (Place, Known)>>,
}

/// What is known at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The stream's state.
    pub state: Boundary,
    /// The last time, by the source's clock, at which the stream was seen to end there.
    pub seen: Option<Instant>,
}

impl States {
    /// None known.
    pub const fn new() -> States {
        States { known: Mutex::new(BTreeMap::new()) }
    }

    /// Keeps what is known at a place; one for each lane.
    pub fn remember(&self, access: &Access, lane: &Lane, place: &Place, known_here: Known) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(key(access, lane), (place.clone(), known_here));
    }

    /// What is known at exactly this place.
    pub fn recall(&self, access: &Access, lane: &Lane, place: &Place) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key(access, lane)).filter(|(at, _)| at == place).map(|(_, known)| *known)
    }
}

fn key(access: &Access, lane: &Lane) -> String {
    format!("{}/{}/{lane}", access.scope, access.cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_written_and_read() {
        for (db, in_multi) in [(None, false), (Some(0), true), (Some(15), false)] {
            let at = Boundary { offset: 7, db, in_multi };
            assert_eq!(read(7, &write(&at)), Some(at));
        }
        for bad in [
            "",
            UNKNOWN,
            "db=1",
            "db=x multi=0",
            "db=1 multi=2",
            "db=1 multi=0 bulk=0 args=1",
            "db=1 multi=0 x",
        ] {
            assert_eq!(read(0, bad), None);
            assert!(enter(0, bad).is_none(), "{bad}");
        }
        let at = Boundary { offset: 7, db: Some(3), in_multi: true };
        let inside = Inside { at, bulk_left: 5000, arguments_left: 2 };
        let text = write_inside(&inside);
        assert_eq!(text, "db=3 multi=1 bulk=5000 args=2");
        assert_eq!(enter(7, &text).unwrap().inside(), Some(inside));
        assert_eq!(read(7, &text), None);
        assert_eq!(enter(7, &write(&at)).unwrap().boundary(), at);
    }
}
