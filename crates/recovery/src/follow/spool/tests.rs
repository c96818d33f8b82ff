//! A spool that is killed at any byte, filled, and gone on with.

use std::fs::OpenOptions;

use mainstay_engine::TimeMark;
use proptest::prelude::*;

use super::read::range;
use super::*;

fn limits() -> Limits {
    Limits { disk_bytes_free_min: 0, file_bytes: 4096, ..Limits::default() }
}

fn open(dir: &Path) -> Spool {
    let (spool, damage) = Spool::open(dir, limits()).unwrap();
    assert!(damage.is_empty(), "{damage:?}");
    spool
}

/// Bytes that say where they are: the byte at offset n is a function of n.
fn log(from: u64, len: usize) -> Bytes {
    (from..from + len as u64).map(|n| (n * 31 + n / 251) as u8).collect::<Vec<_>>().into()
}

fn chunk(epoch: &str, from: u64, len: usize, carry: Option<&str>) -> Chunk {
    let at = Bracket::exactly(Instant(from as i64));
    Chunk {
        at: Place::new(epoch, from),
        bytes: log(from, len),
        times: vec![TimeMark { offset: (from + len as u64).into(), at }],
        carry: carry.map(str::to_owned),
    }
}

fn put(spool: &Spool, chunk: &Chunk) -> Result<bool> {
    spool.append(chunk, Offset(chunk.at.offset.0 + chunk.bytes.len() as u128))
}

/// All log in the files of `epoch`, and whether it is without gap and as it was sent.
fn content(spool: &Spool, epoch: &str) -> Option<(u64, u64)> {
    let mut all: Option<(u64, u64)> = None;
    for file in spool.files().into_iter().filter(|file| file.end.epoch.0 == epoch) {
        let mut pos = 0;
        while let Some(stretch) = spool.read(&file, pos, 1000).unwrap() {
            let (first, last) = (stretch.first.offset.low(), stretch.last.offset.low());
            assert_eq!(stretch.bytes, log(first, (last - first) as usize));
            assert!(stretch.carry.is_some());
            match &mut all {
                None => all = Some((first, last)),
                Some((_, end)) => {
                    assert_eq!(*end, first);
                    *end = last;
                }
            }
            pos = stretch.next_pos;
        }
    }
    all
}

#[test]
fn what_was_flushed_is_there_again_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    assert!(put(&spool, &chunk("1", 100, 10, Some(""))).is_err(), "not begun");
    spool.begin(Place::new("1", 100)).unwrap();
    for n in 0..50 {
        put(&spool, &chunk("1", 100 + n * 200, 200, Some("c"))).unwrap();
    }
    assert_eq!(spool.flush().unwrap(), Some(Place::new("1", 10_100)));
    assert!(spool.files().len() > 1, "files end at their limit");
    assert!(Spool::open(dir.path(), limits()).is_err(), "one process at a time");
    put(&spool, &chunk("1", 10_100, 5, Some(""))).unwrap();
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(spool.end(), Some(Place::new("1", 10_100)), "what was not flushed is gone");
    assert_eq!(content(&spool, "1"), Some((100, 10_100)));
    assert_eq!(spool.complete_to(), Some(Instant(9900)));
    put(&spool, &chunk("1", 10_100, 5, None)).unwrap();
    spool.flush().unwrap();
    assert_eq!(content(&spool, "1"), Some((100, 10_105)));
}

#[test]
fn gaps_overlaps_and_beginnings_without_state_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.begin(Place::new("1", 0)).unwrap();
    let refused = |chunk: &Chunk| assert_eq!(put(&spool, chunk).unwrap_err().kind, Kind::Invalid);
    refused(&chunk("1", 0, 10, None));
    put(&spool, &chunk("1", 0, 10, Some(""))).unwrap();
    refused(&chunk("1", 9, 10, Some("")));
    refused(&chunk("1", 11, 10, Some("")));
    refused(&chunk("2", 10, 10, Some("")));
    put(&spool, &chunk("1", 10, 10, None)).unwrap();
}

#[test]
fn branches_leave_where_there_is_log_and_keep_the_ended_one() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.begin(Place::new("1", 0)).unwrap();
    put(&spool, &chunk("1", 0, 100, Some(""))).unwrap();
    let to = |epoch: &str, parent: Option<Place>, first: u64| Branch {
        epoch: Epoch(epoch.to_owned()),
        parent,
        first: first.into(),
    };
    for wrong in
        [to("2", None, 50), to("2", Some(Place::new("1", 101)), 101), to("2", Some(Place::new("7", 50)), 50)]
    {
        assert_eq!(spool.branch(wrong, None).unwrap_err().kind, Kind::Invalid);
    }
    // Told of the epoch that we are in: kept as knowledge, nothing is cut.
    let own = to("1", None, 0);
    spool.branch(own.clone(), Some(Bytes::from_static(b"history"))).unwrap();
    spool.branch(to("2", Some(Place::new("1", 60)), 60), None).unwrap();
    put(&spool, &chunk("2", 60, 10, Some(""))).unwrap();
    spool.flush().unwrap();
    let files = spool.files();
    assert_eq!(files[0].end, Place::new("1", 100));
    assert!(matches!(&files[0].notes[0], Note::Branch(note) if note.branch == own));
    assert_eq!(files[1].start.branch.as_ref().unwrap().branch.parent, Some(Place::new("1", 60)));
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(spool.end(), Some(Place::new("2", 70)));
    // That branch died too, and another left the first epoch elsewhere.
    spool.branch(to("3", Some(Place::new("1", 90)), 90), None).unwrap();
    put(&spool, &chunk("3", 90, 10, Some(""))).unwrap();
    spool.flush().unwrap();
    assert_eq!(content(&spool, "1"), Some((0, 100)));
    assert_eq!(content(&spool, "3"), Some((90, 100)));
}

#[test]
fn behind_a_hole_it_must_be_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.begin(Place::new("1", 0)).unwrap();
    put(&spool, &chunk("1", 0, 10, Some(""))).unwrap();
    spool.break_off("the-log-was-gone").unwrap();
    assert!(put(&spool, &chunk("1", 10, 10, Some(""))).is_err());
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(spool.end(), None);
    assert!(spool.files()[0].is_broken_off());
    spool.begin(Place::new("1", 50)).unwrap();
    put(&spool, &chunk("1", 50, 10, Some(""))).unwrap();
    spool.flush().unwrap();
    drop(spool);
    let spool = open(dir.path());
    assert_eq!(spool.end(), Some(Place::new("1", 60)));
    assert!(!spool.files()[1].start.continues);
}

#[test]
fn an_adapter_reads_its_state_back() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.begin(Place::new("1", 0)).unwrap();
    assert!(spool.before(&Place::new("1", 0)).unwrap().is_none());
    for (from, carry) in [(0, Some("a")), (10, Some("b")), (20, None), (30, Some("c"))] {
        put(&spool, &chunk("1", from, 10, carry)).unwrap();
    }
    for (from, first, carry) in [(40, 30, "c"), (30, 10, "b"), (25, 10, "b"), (7, 0, "a")] {
        let before = spool.before(&Place::new("1", from)).unwrap().unwrap();
        assert_eq!((before.at, before.carry.as_deref()), (Place::new("1", first), Some(carry)));
        assert_eq!(before.bytes, log(first, (from - first) as usize));
    }
    let branch = Branch { epoch: Epoch("2".to_owned()), parent: Some(Place::new("1", 35)), first: 35.into() };
    spool.branch(branch, None).unwrap();
    let before = spool.before(&Place::new("2", 35)).unwrap().unwrap();
    assert_eq!((before.at, before.bytes.len()), (Place::new("1", 30), 5));
}

#[test]
fn another_process_sees_the_end_and_reads_a_range() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(peek(&dir.path().join("none")).unwrap(), None);
    let spool = open(dir.path());
    spool.begin(Place::new("1", 0)).unwrap();
    for n in 0..100 {
        put(&spool, &chunk("1", n * 100, 100, Some(&format!("at {}", n * 100)))).unwrap();
    }
    spool.flush().unwrap();
    assert!(spool.files().len() > 2);
    assert_eq!(peek(dir.path()).unwrap(), Some((Place::new("1", 10_000), Some(Instant(9900)))));
    assert!(spool.set_beat(&Place::new("1", 10_000), Bracket::exactly(Instant(77_000))));
    assert!(!spool.set_beat(&Place::new("1", 9_000), Bracket::exactly(Instant(99_000))));
    assert_eq!(peek(dir.path()).unwrap(), Some((Place::new("1", 10_000), Some(Instant(77_000)))));
    // What the source's clock shows now is told, though it was set back.
    for clock in [7_200_000_000, 88_000] {
        assert!(spool.set_beat(&Place::new("1", 10_000), Bracket::exactly(Instant(clock))));
        assert_eq!(peek(dir.path()).unwrap(), Some((Place::new("1", 10_000), Some(Instant(clock)))));
    }
    for (from, to) in [(0, 10_000), (150, 150), (150, 160), (4000, 4200), (3777, 9999), (10_000, 10_000)] {
        let range = range(dir.path(), &Place::new("1", from), &Place::new("1", to)).unwrap();
        let range = range.unwrap_or_else(|| panic!("{from} to {to}"));
        assert_eq!(range.bytes, log(from, (to - from) as usize));
        let begins = if from == 10_000 { 9_900 } else { from / 100 * 100 };
        assert_eq!(range.carry, format!("at {begins}"), "{from} to {to}");
    }
    assert!(range(dir.path(), &Place::new("1", 0), &Place::new("1", 10_001)).unwrap().is_none());
    spool.remove(0).unwrap();
    assert!(range(dir.path(), &Place::new("1", 0), &Place::new("1", 10)).unwrap().is_none());
}

#[test]
fn a_full_disk_takes_nothing_back_and_a_roll_back_does() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.begin(Place::new("1", 0)).unwrap();
    put(&spool, &chunk("1", 0, 100, Some(""))).unwrap();
    spool.flush().unwrap();
    // The next file cannot be made: a folder stands in its place.
    std::fs::create_dir(path_of(dir.path(), 1)).unwrap();
    spool.ask_rotate();
    put(&spool, &chunk("1", 100, 100, Some(""))).unwrap();
    assert_eq!(spool.flush().unwrap_err().kind, Kind::Io);
    assert_eq!(spool.end(), Some(Place::new("1", 200)));
    put(&spool, &chunk("1", 200, 100, None)).unwrap();
    assert!(spool.flush().is_err());
    std::fs::remove_dir(path_of(dir.path(), 1)).unwrap();
    assert_eq!(spool.flush().unwrap(), Some(Place::new("1", 300)));
    assert_eq!(content(&spool, "1"), Some((0, 300)));
    std::fs::create_dir(path_of(dir.path(), 2)).unwrap();
    spool.ask_rotate();
    put(&spool, &chunk("1", 300, 100, Some(""))).unwrap();
    assert!(spool.flush().is_err());
    assert_eq!(spool.roll_back(), Some(Place::new("1", 300)));
    put(&spool, &chunk("1", 300, 50, None)).unwrap();
    spool.flush().unwrap();
    assert_eq!(content(&spool, "1"), Some((0, 350)));
}

#[test]
fn a_flipped_bit_in_an_older_file_is_said_and_costs_only_what_is_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.begin(Place::new("1", 0)).unwrap();
    for n in 0..100 {
        put(&spool, &chunk("1", n * 100, 100, Some(""))).unwrap();
    }
    spool.flush().unwrap();
    let last = spool.files().last().unwrap().clone();
    drop(spool);
    let path = path_of(dir.path(), 0);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let (spool, damage) = Spool::open(dir.path(), limits()).unwrap();
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert_eq!(spool.end(), Some(Place::new("1", 10_000)));
    assert_eq!(spool.files().last().unwrap().start, last.start);
}

#[derive(Clone, Debug)]
enum Act {
    Append(usize, bool),
    Flush,
    Branch(u64),
    Rotate,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1_usize..600, any::<bool>()).prop_map(|(len, carry)| Act::Append(len, carry)),
        3 => Just(Act::Flush),
        1 => (0_u64..300).prop_map(Act::Branch),
        1 => Just(Act::Rotate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Killed after any act, with the last file torn at any byte behind what a flush had returned (and rubbish behind the tear),
    /// the spool opens again, holds all that was returned, and goes on from its end.
    #[test]
    fn a_kill_at_any_byte_loses_nothing_that_was_durable(
        acts in proptest::collection::vec(act(), 1..60),
        tear in 0.0_f64..1.0,
        rubbish in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(dir.path());
        let mut epoch = 1_u64;
        spool.begin(Place::new("1", 1000)).unwrap();
        let mut parents: Vec<(u64, u64)> = Vec::new();
        for round in 0..2 {
            for act in &acts {
                let end = spool.end().unwrap();
                let from = end.offset.low();
                match act {
                    Act::Append(len, carry) => {
                        let first = !spool.shared().current.unwrap().has_log;
                        let carry = (*carry || first).then_some("state");
                        put(&spool, &chunk(&end.epoch.0, from, *len, carry)).unwrap();
                    }
                    Act::Flush => drop(spool.flush().unwrap()),
                    Act::Rotate => spool.ask_rotate(),
                    Act::Branch(back) => {
                        let begun = spool.files().iter().rev().find(|f| f.end.epoch == end.epoch)
                            .map_or(from, |f| f.start.place.offset.low());
                        let at = from.saturating_sub(*back).max(begun);
                        epoch += 1;
                        parents.push((epoch, at));
                        let parent = Some(Place { epoch: end.epoch, offset: at.into() });
                        let branch = Branch { epoch: Epoch(epoch.to_string()), parent, first: at.into() };
                        spool.branch(branch, None).unwrap();
                    }
                }
            }
            let durable: Vec<FileInfo> = spool.files();
            // What a flush would write now may have reached the disk in any part before the kill.
            let before: u64 = durable.last().unwrap().len;
            let _ = spool.flush().unwrap();
            drop(spool);
            let seqs = open::numbers(dir.path()).unwrap();
            for seq in seqs.iter().rev() {
                let keep = match durable.iter().find(|file| file.seq == *seq) {
                    Some(file) if file.seq == durable.last().unwrap().seq => before,
                    Some(_) => break,
                    None => 0,
                };
                let path = path_of(dir.path(), *seq);
                let len = std::fs::metadata(&path).unwrap().len();
                let cut = keep + ((len - keep) as f64 * tear) as u64;
                if cut < len && *seq == *seqs.last().unwrap() {
                    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
                    file.set_len(cut).unwrap();
                    io::Seek::seek(&mut file, io::SeekFrom::End(0)).unwrap();
                    file.write_all(&rubbish).unwrap();
                }
            }
            let (again, damage) = Spool::open(dir.path(), limits()).unwrap();
            prop_assert!(damage.is_empty(), "{damage:?}");
            for file in &durable {
                let now = again.files().into_iter().find(|now| now.seq == file.seq).unwrap();
                prop_assert!(now.end.offset >= file.end.offset, "{round}: {file:?} {now:?}");
            }
            let _ = content(&again, &again.end().unwrap().epoch.0);
            spool = again;
            epoch = epoch.max(spool.end().unwrap().epoch.0.parse().unwrap());
        }
    }
}

/// A file system of a few pages, where this process may mount one.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=128k", "tmpfs"]).arg(dir.path());
        let mounted = mount.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success());
        mounted.then_some(Self(dir))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_without_space_is_survived_and_what_waited_is_written_when_there_is_some() {
    // Only the superuser can make a disk that is truly full; the limit that everybody else meets is tried elsewhere.
    let Some(tiny) = Tiny::mount() else { return };
    let ballast = tiny.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 40 << 10]).unwrap();
    let dir = tiny.0.path().join("spool");
    let spool = open(&dir);
    spool.begin(Place::new("1", 0)).unwrap();
    let mut end = 0;
    let full = loop {
        put(&spool, &chunk("1", end, 1000, Some(""))).unwrap();
        end += 1000;
        match spool.flush() {
            Ok(durable) => assert_eq!(durable, Some(Place::new("1", end))),
            Err(e) => break e,
        }
        assert!(end < 1_000_000);
    };
    assert_eq!(full.kind, Kind::SpoolFull);
    assert_eq!(content(&spool, "1"), Some((0, end - 1000)));
    put(&spool, &chunk("1", end, 1000, Some(""))).unwrap();
    assert_eq!(spool.flush().unwrap_err().kind, Kind::SpoolFull);
    std::fs::remove_file(ballast).unwrap();
    assert_eq!(spool.flush().unwrap(), Some(Place::new("1", end + 1000)));
    assert_eq!(content(&spool, "1"), Some((0, end + 1000)));
    drop(spool);
    assert_eq!(open(&dir).end(), Some(Place::new("1", end + 1000)));
}
