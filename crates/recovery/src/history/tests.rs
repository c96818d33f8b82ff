//! Histories: examples, and properties against a plain model.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn at(epoch: &str, offset: u64) -> Place {
    Place::new(epoch, offset)
}

fn piece(generation: u64, seq: u64, epoch: &str, first: u64, last: u64) -> Piece {
    let bracket = Bracket::exactly(Instant(i64::try_from(last).unwrap()));
    Piece { generation, seq, is_sealed: false, first: at(epoch, first), last: at(epoch, last), bracket }
}

fn sealed(generation: u64, seq: u64, epoch: &str, first: u64, last: u64) -> Piece {
    Piece { is_sealed: true, ..piece(generation, seq, epoch, first, last) }
}

fn branch(generation: u64, seq: u64, epoch: &str, parent: Option<(&str, u64)>, first: u64) -> Branched {
    let parent = parent.map(|(epoch, offset)| at(epoch, offset));
    Branched { generation, seq, branch: Branch { epoch: Epoch(epoch.into()), parent, first: first.into() } }
}

fn beat(generation: u64, epoch: &str, offset: u64, time: i64) -> Beat {
    Beat { generation, at: at(epoch, offset), time: Bracket::exactly(Instant(time)) }
}

/// `e1:0-20+20-35 to 35 | …`: the lines, their runs, their parts.
fn check(pieces: Vec<Piece>, branches: Vec<Branched>, beats: Vec<Beat>, expect: &str) {
    let history = History::new(pieces, branches, beats, vec![]);
    let lines: Vec<String> = history.lines().iter().map(|line| write(&history, line)).collect();
    assert_eq!(lines.join(" | "), expect);
}

fn write(history: &History, line: &Line) -> String {
    let run = |run: &Run| {
        let part = |p: &Part| {
            let first = &history.pieces()[p.piece].first;
            format!("{}:{}-{}", first.epoch, first.offset.low(), p.to.low())
        };
        let parts: Vec<String> = run.parts.iter().map(part).collect();
        format!("{} to {}", parts.join("+"), run.complete_to.map_or(-1, |t| t.0))
    };
    line.runs.iter().map(run).collect::<Vec<_>>().join(" / ")
}

#[test]
fn tails_give_way_to_the_sealed_segment() {
    let pieces = vec![
        piece(1, 1, "a", 0, 10),
        piece(1, 2, "a", 10, 20),
        piece(1, 3, "a", 0, 20),
        piece(1, 4, "a", 20, 25),
    ];
    check(pieces, vec![], vec![], "a:0-20+a:20-25 to 25");
}

#[test]
fn sealed_segments_are_chosen_wherever_they_reach() {
    // One tail is all that the sealed one is.
    let check = |pieces: Vec<Piece>, expect: &str| {
        let history = History::new(pieces, vec![], vec![], vec![]);
        let line = history.lines().remove(0);
        let is_sealed = |p: &Part| if history.pieces()[p.piece].is_sealed { "s" } else { "t" };
        let kinds: String = line.runs.iter().flat_map(|run| &run.parts).map(is_sealed).collect();
        assert_eq!(format!("{kinds} {}", write(&history, &line)), expect);
    };
    check(vec![piece(1, 1, "a", 0, 20), sealed(1, 2, "a", 0, 20)], "s a:0-20 to 20");
    check(vec![sealed(1, 1, "a", 0, 20), piece(1, 2, "a", 0, 20)], "s a:0-20 to 20");
    // A tail that straddles two of them is not wanted.
    let straddled = vec![
        piece(1, 1, "a", 0, 5),
        piece(1, 2, "a", 5, 12),
        sealed(1, 3, "a", 0, 8),
        sealed(1, 4, "a", 8, 20),
        piece(1, 5, "a", 20, 25),
    ];
    check(straddled, "sst a:0-8+a:8-20+a:20-25 to 25");
    // One that reaches beyond all of them is, from its own beginning on.
    let beyond = vec![sealed(1, 1, "a", 0, 5), piece(1, 2, "a", 3, 9), sealed(1, 3, "a", 5, 8)];
    check(beyond, "st a:0-3+a:3-9 to 9");
}

#[test]
fn what_is_lost_ends_a_run_and_brings_no_zombie_back() {
    let pieces = vec![
        piece(1, 1, "a", 0, 10),
        piece(1, 2, "a", 10, 30),
        piece(2, 1, "a", 15, 20),
        piece(2, 2, "a", 20, 25),
        sealed(2, 3, "a", 20, 25),
    ];
    let lines = |lost: &[usize]| {
        let history = History::new(pieces.clone(), vec![], vec![], vec![]);
        let history = lost.iter().fold(history, |history, piece| history.without(*piece));
        write(&history, &history.lines()[0])
    };
    assert_eq!(lines(&[]), "a:0-10+a:10-15+a:15-20+a:20-25 to 25");
    assert_eq!(lines(&[2]), "a:0-10+a:10-15 to 30 / a:20-25 to 25");
    assert_eq!(lines(&[4]), "a:0-10+a:10-15+a:15-20+a:20-25 to 25");
}

#[test]
fn what_the_new_primary_never_had_is_on_an_ended_branch() {
    let pieces = vec![piece(1, 1, "a", 0, 150), piece(1, 3, "b", 120, 180)];
    let branches = vec![branch(1, 2, "b", Some(("a", 120)), 120)];
    check(pieces.clone(), branches.clone(), vec![], "a:0-120+b:120-180 to 180");
    let history = History::new(pieces, branches, vec![], vec![]);
    assert_eq!(write(&history, &history.line_to(&at("a", 140))), "a:0-140 to 150");
}

#[test]
fn a_second_failover_from_the_same_epoch_takes_over_the_first() {
    let pieces = vec![piece(1, 1, "a", 0, 150), piece(1, 3, "b", 120, 180), piece(1, 5, "c", 100, 130)];
    let branches = vec![branch(1, 2, "b", Some(("a", 120)), 120), branch(1, 4, "c", Some(("a", 100)), 100)];
    check(pieces, branches, vec![], "a:0-100+c:100-130 to 130");
}

#[test]
fn a_predecessor_is_dropped_past_its_successors_first_place() {
    let pieces = vec![piece(1, 1, "a", 0, 100), piece(1, 2, "a", 100, 200), piece(2, 1, "a", 150, 160)];
    check(pieces, vec![], vec![], "a:0-100+a:100-150+a:150-160 to 160");
}

#[test]
fn a_gap_ends_a_run() {
    check(
        vec![piece(1, 1, "a", 0, 10), piece(1, 2, "a", 12, 20)],
        vec![],
        vec![],
        "a:0-10 to 10 / a:12-20 to 20",
    );
}

#[test]
fn an_epoch_of_unknown_origin_begins_another_line() {
    let pieces = vec![piece(1, 1, "a", 0, 10), piece(2, 2, "b", 0, 20)];
    check(pieces, vec![branch(2, 1, "b", None, 0)], vec![], "a:0-10 to 10 | b:0-20 to 20");
}

#[test]
fn beats_move_the_end_on_only_where_it_is() {
    let pieces = vec![piece(2, 1, "a", 0, 10)];
    check(pieces.clone(), vec![], vec![beat(2, "a", 10, 99)], "a:0-10 to 99");
    check(pieces.clone(), vec![], vec![beat(2, "a", 9, 99)], "a:0-10 to 10");
    check(pieces.clone(), vec![], vec![beat(1, "a", 10, 99)], "a:0-10 to 10");
    // Somebody who stayed with the old primary hears beats that say nothing of the new one.
    let branches = vec![branch(2, 2, "b", Some(("a", 10)), 10)];
    check(pieces, branches, vec![beat(2, "a", 10, 99)], "a:0-10 to 10");
    check(vec![], vec![], vec![beat(1, "a", 7, 99)], " to 99");
}

#[test]
fn log_without_times_takes_nothing_away_from_the_beat_before_it() {
    let timeless = |seq, first, last| {
        let bracket = Bracket { earliest: Instant::MIN, latest: Instant::MAX };
        Piece { bracket, ..piece(2, seq, "a", first, last) }
    };
    let pieces = vec![piece(2, 1, "a", 0, 10), timeless(2, 10, 20), timeless(3, 20, 30)];
    let check_beat = |beat: Option<Beat>, to: i64| {
        let expect = format!("a:0-10+a:10-20+a:20-30 to {to}");
        check(pieces.clone(), vec![], beat.into_iter().collect(), &expect);
    };
    check_beat(None, 10);
    check_beat(Some(beat(2, "a", 10, 99)), 99);
    check_beat(Some(beat(2, "a", 20, 99)), 99);
    // What has times says itself how far it goes.
    check_beat(Some(beat(2, "a", 9, 99)), 10);
    check_beat(Some(beat(1, "a", 20, 99)), 10);
    // A sealed piece that stands for them and for what came before.
    let mut whole = vec![sealed(2, 4, "a", 0, 30)];
    whole[0].bracket = Bracket::exactly(Instant(10));
    check(whole, vec![], vec![beat(2, "a", 20, 99)], "a:0-30 to 99");
}

#[test]
fn a_circle_of_epochs_ends() {
    let branches = vec![branch(1, 1, "a", Some(("b", 5)), 5), branch(1, 2, "b", Some(("a", 5)), 5)];
    let history = History::new(vec![piece(1, 3, "a", 5, 9)], branches, vec![], vec![]);
    assert!(history.lines().len() <= 2);
}

/// What can happen to a cluster and its followers.
#[derive(Clone, Debug)]
enum Event {
    /// The primary writes so many bytes.
    Write(u64),
    /// The follower fetches so many and uploads a tail.
    Fetch(u64),
    /// The follower seals what it uploaded since the last seal; the tails may stay for a while.
    Seal { tails_stay: bool },
    /// A standby that lacks the last so many bytes is promoted.
    Failover(u64),
    /// Another writer takes over from what is durable; the old one may go on for a while, unaware.
    Takeover { zombie: u64 },
    /// The source throws away log that was not yet fetched.
    Lose,
    /// A full resynchronisation: the new epoch's origin is not known.
    Reborn,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1_u64..40).prop_map(Event::Write),
        6 => (1_u64..40).prop_map(Event::Fetch),
        2 => any::<bool>().prop_map(|tails_stay| Event::Seal { tails_stay }),
        1 => (0_u64..30).prop_map(Event::Failover),
        1 => (0_u64..20).prop_map(|zombie| Event::Takeover { zombie }),
        1 => Just(Event::Lose),
        1 => Just(Event::Reborn),
    ]
}

/// The truth, and what the followers stored of it.
#[derive(Default)]
struct World {
    /// The surviving path: (epoch, first, end), the last one being written.
    path: Vec<(String, u64, u64)>,
    /// Older paths that a rebirth ended.
    epochs: u64,
    generation: u64,
    seq: u64,
    /// Where the follower is: epoch, next offset; where its open segment began.
    follower: (String, u64),
    open: u64,
    pieces: Vec<Piece>,
    branches: Vec<Branched>,
    /// Every byte of the surviving path that is durable.
    durable: BTreeSet<(String, u64)>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { generation: 1, ..Self::default() };
        world.reborn();
        world
    }

    fn next_epoch(&mut self) -> String {
        self.epochs += 1;
        format!("e{}", self.epochs)
    }

    fn reborn(&mut self) {
        let epoch = self.next_epoch();
        self.path = vec![(epoch.clone(), 0, 0)];
        self.durable.clear();
        self.seq += 1;
        self.branches.push(branch(self.generation, self.seq, &epoch, None, 0));
        self.follower = (epoch, 0);
        self.open = 0;
    }

    fn store(&mut self, generation: u64, epoch: &str, first: u64, last: u64) {
        if first < last {
            self.seq += 1;
            self.pieces.push(piece(generation, self.seq, epoch, first, last));
        }
    }

    /// Brings the follower to the primary's epoch, as an adapter does after `Diverged`, and says how much there is to fetch.
    fn catch_branch(&mut self) -> u64 {
        while self.follower.0 != self.path.last().unwrap().0 {
            let leg = self.path.iter().position(|leg| leg.0 == self.follower.0).unwrap();
            let (epoch, end) = (self.path[leg].0.clone(), self.path[leg].2);
            if self.follower.1 < end {
                return end - self.follower.1;
            }
            let (next, first, _) = self.path[leg + 1].clone();
            self.seq += 1;
            self.branches.push(branch(self.generation, self.seq, &next, Some((&epoch, end)), first));
            self.follower = (next, first);
            self.open = first;
        }
        self.path.last().unwrap().2 - self.follower.1
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Write(n) => self.path.last_mut().unwrap().2 += n,
            Event::Fetch(n) => {
                let n = n.min(self.catch_branch());
                let (epoch, from) = self.follower.clone();
                self.store(self.generation, &epoch, from, from + n);
                self.durable.extend((from..from + n).map(|o| (epoch.clone(), o)));
                self.follower.1 += n;
            }
            Event::Seal { tails_stay } => {
                let (epoch, to) = self.follower.clone();
                let (generation, open) = (self.generation, self.open);
                if open == to {
                    return;
                }
                self.store(generation, &epoch, open, to);
                if !tails_stay {
                    let sealed = self.pieces.len() - 1;
                    let mut index = 0;
                    self.pieces.retain(|p| {
                        index += 1;
                        let inside = p.first.epoch.0 == epoch
                            && p.first.offset.low() >= open
                            && p.last.offset.low() <= to
                            && p.generation == generation;
                        index > sealed || !inside
                    });
                }
                self.open = to;
            }
            Event::Failover(lost) => {
                let (parent, from, end) = self.path.last().unwrap().clone();
                let fork = end.saturating_sub(lost).max(from);
                self.path.last_mut().unwrap().2 = fork;
                self.durable.retain(|(epoch, offset)| *epoch != parent || *offset < fork);
                let epoch = self.next_epoch();
                self.path.push((epoch, fork, fork));
            }
            Event::Takeover { zombie } => {
                let old = (self.generation, self.follower.clone());
                self.generation += 1;
                self.open = self.follower.1;
                self.catch_branch();
                // The new writer's first record, and then what the old one still uploads of the same epoch, in vain.
                self.path.last_mut().unwrap().2 += 1;
                let (epoch, from) = self.follower.clone();
                let end = self.path.iter().find(|leg| leg.0 == epoch).unwrap().2;
                let n = 5.min(end.saturating_sub(from));
                self.store(self.generation, &epoch, from, from + n);
                self.durable.extend((from..from + n).map(|o| (epoch.clone(), o)));
                self.follower.1 += n;
                let (generation, (epoch, from)) = old;
                self.store(generation, &epoch, from, from + zombie);
            }
            Event::Lose => {
                self.catch_branch();
                self.follower.1 = self.path.iter().find(|leg| leg.0 == self.follower.0).unwrap().2;
                self.open = self.follower.1;
            }
            Event::Reborn => self.reborn(),
        }
    }
}

fn units(history: &History, line: &Line) -> BTreeSet<(String, u64)> {
    let mut all = BTreeSet::new();
    for run in &line.runs {
        let mut before: Option<(&Epoch, u64)> = None;
        for part in &run.parts {
            let piece = &history.pieces()[part.piece];
            let (first, to) = (piece.first.offset.low(), part.to.low());
            assert!(first < to && to <= piece.last.offset.low());
            if let Some((epoch, end)) = before {
                let joined = match *epoch == piece.first.epoch {
                    true => end == first,
                    false => {
                        line.is_at_or_below(&at(&epoch.0, end), &piece.first) == Some(true)
                            && line.is_at_or_below(&piece.first, &at(&epoch.0, end)) == Some(true)
                    }
                };
                assert!(joined, "{run:?}");
            }
            before = Some((&piece.first.epoch, to));
            for offset in first..to {
                assert!(all.insert((piece.first.epoch.0.clone(), offset)), "twice: {run:?}");
            }
        }
    }
    all
}

/// What is on a line, byte by byte: some piece has it, and no later generation had begun at or below it.
fn naive(history: &History, line: &Line) -> BTreeSet<(String, u64)> {
    let rank = |place: &Place| line.rank(place);
    let mut all = BTreeSet::new();
    for piece in history.pieces() {
        for offset in piece.first.offset.low()..piece.last.offset.low() {
            let leg = line.legs.iter().find(|leg| leg.epoch == piece.first.epoch);
            let Some(leg) = leg else { continue };
            let inside = |o: u64| o >= leg.from.low() && leg.to.is_none_or(|to| o < to.low());
            if !inside(offset) || !inside(piece.first.offset.low()) {
                continue;
            }
            let mark = rank(&at(&piece.first.epoch.0, offset));
            let later = history
                .pieces()
                .iter()
                .filter(|p| p.generation > piece.generation)
                .filter_map(|p| rank(&p.first));
            let begun = history
                .branches
                .iter()
                .filter(|b| b.generation > piece.generation)
                .filter_map(|b| rank(&Place { epoch: b.branch.epoch.clone(), offset: b.branch.first }));
            if later.chain(begun).all(|first| mark < Some(first)) {
                all.insert((piece.first.epoch.0.clone(), offset));
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lines_hold_what_survived_and_nothing_else(events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::new();
        for event in &events {
            world.step(event);
        }
        world.catch_branch();
        let history = History::new(world.pieces.clone(), world.branches.clone(), vec![], vec![]);
        let lines = history.lines();
        for line in &lines {
            prop_assert_eq!(units(&history, line), naive(&history, line));
        }
        let newest = lines.last().unwrap();
        let on_path = |(epoch, offset): &(String, u64)| {
            world.path.iter().any(|(e, from, end)| e == epoch && offset >= from && offset < end)
        };
        let found = units(&history, newest);
        // Whatever was durable and survived is there; whatever is there survived.
        prop_assert!(world.durable.is_subset(&found), "lost {:?}", world.durable.difference(&found).next());
        let caught_up = newest.legs.last().unwrap().epoch.0 == world.path.last().unwrap().0;
        if caught_up {
            prop_assert!(found.iter().all(on_path), "stray {:?}", found.iter().find(|u| !on_path(u)));
        }
    }

    #[test]
    fn any_records_at_all_give_lines_without_a_panic(
        pieces in prop::collection::vec((0_u64..4, 0_u64..9, 0_u8..4, 0_u64..30, 1_u64..10), 0..12),
        branches in prop::collection::vec((0_u64..4, 0_u64..9, 0_u8..4, prop::option::of((0_u8..4, 0_u64..30)), 0_u64..30), 0..6),
    ) {
        let name = |n: u8| format!("e{n}");
        let pieces = pieces.into_iter().map(|(g, s, e, first, n)| piece(g, s, &name(e), first, first + n)).collect();
        let branches = branches
            .into_iter()
            .map(|(g, s, e, parent, first)| branch(g, s, &name(e), parent.map(|(p, o)| (name(p), o)).as_ref().map(|(p, o)| (p.as_str(), *o)), first))
            .collect();
        let history = History::new(pieces, branches, vec![], vec![]);
        for line in history.lines() {
            prop_assert_eq!(units(&history, &line), naive(&history, &line));
        }
    }
}
