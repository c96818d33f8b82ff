//! Whatever the bytes, reading ends with a fleet or with mistakes that have their places in the file. `PROPTEST_CASES` runs more.

use proptest::prelude::*;

use crate::mistakes::check;

const SHOP: &str = include_str!("../../../../fleets/shop.yaml");
const EXTERNAL: &str = include_str!("../../../../fleets/external.yaml");

/// Pieces that parsers stumble over.
const PIECES: [&str; 32] = [
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: ",
    "\n",
    "\n  ",
    "\t",
    "\"",
    "'",
    "|\n",
    ">-\n",
    "#",
    "?",
    "!!str ",
    "!x ",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "~",
    "\u{feff}",
    "é",
    "😀",
    "\0",
    "\r",
    "\u{2028}",
    "99999999999999999999",
    "never",
];

#[derive(Clone, Debug)]
enum Change {
    Insert(usize, usize),
    Remove(usize, usize),
    Repeat(usize, usize),
    Swap(usize, usize),
}

fn changed(text: &str, changes: &[Change]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for change in changes {
        let length = chars.len().max(1);
        match *change {
            Change::Insert(at, piece) => {
                let at = at % length;
                chars.splice(at.min(chars.len())..at.min(chars.len()), PIECES[piece % PIECES.len()].chars());
            }
            Change::Remove(at, count) => {
                let at = (at % length).min(chars.len());
                chars.drain(at..(at + count % 40).min(chars.len()));
            }
            Change::Repeat(at, count) => {
                let at = (at % length).min(chars.len());
                let again: Vec<char> = chars[at..(at + count % 80).min(chars.len())].to_vec();
                chars.splice(at..at, again);
            }
            Change::Swap(a, b) if !chars.is_empty() => chars.swap(a % length, b % length),
            Change::Swap(..) => {}
        }
    }
    chars.into_iter().collect()
}

fn change() -> impl Strategy<Value = Change> {
    let n = || any::<u16>().prop_map(usize::from);
    prop_oneof![
        (n(), n()).prop_map(|(a, b)| Change::Insert(a, b)),
        (n(), n()).prop_map(|(a, b)| Change::Remove(a, b)),
        (n(), n()).prop_map(|(a, b)| Change::Repeat(a, b)),
        (n(), n()).prop_map(|(a, b)| Change::Swap(a, b)),
    ]
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(2000), failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn changed_files_never_break_the_reader(shop: bool, changes in prop::collection::vec(change(), 1..8)) {
        let text = changed(if shop { SHOP } else { EXTERNAL }, &changes);
        check(&text, if shop { "local" } else { "colo" });
    }

    #[test]
    fn pieces_of_yaml_never_break_the_reader(pieces in prop::collection::vec(0..PIECES.len() + 8, 0..60)) {
        let words = ["fleet", "clusters", "a", "engine", "backup", "local", "hosts", "1m"];
        let text: String = pieces.iter().map(|i| PIECES.get(*i).copied().unwrap_or_else(|| words[i - PIECES.len()])).collect();
        check(&text, "local");
    }

    #[test]
    fn any_text_never_breaks_the_reader(text in any::<String>(), environment in any::<String>()) {
        check(&text, &environment);
    }
}
