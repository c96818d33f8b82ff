//! One lane, followed: its lease, its spool, its uploader, and one link to the source after another.
//!
//! Whoever holds the lane's lease follows it; others stand by. The link begins where the surviving log ends, in the spool or in the vault;
//! where there is none, at the newest snapshot that the log does not yet lead from, or at the source's own end. What is lost is declared
//! as a hole, and a snapshot is asked for.
//!
//! While the vault cannot be asked, who wrote the lane last goes on into the spool alone, without a lease: nothing of it is acknowledged to the
//! source, which may have another follower by now, and nothing is given up. When the vault can be asked again, it decides: who gets the
//! lease brings spool and vault in line as after any start.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Monotonic};

use mainstay_engine::{Follow, Kind, Result};
use mainstay_model::{Instant, Lane, Place};
use mainstay_vault::{self as vault, Lease, SnapshotRecord};
use tokio::sync::{Notify, Semaphore, oneshot, watch};

use super::follower::{FollowOptions, LaneStatus, Phase, Wanted};
use super::resume::{InVault, open_spool, spool_dir};
use super::sink::{Sink, blocking};
use super::spool::{Spool, read_holder, show, write_holder};
use super::upload::{Parts, Uploader, Vaulted};
use super::why;
use crate::Protected;

/// The shortest and the longest pause before the next link.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// How often a link that brings nothing but errors that no repetition mends is tried before its log is given up.
const HOPELESS_MAX: u32 = 5;
/// What a lane says of itself while the vault cannot be asked.
const ALONE: &str = "the vault cannot be asked: log is kept in the spool of this machine alone";
/// How often is looked for a snapshot that is waited for.
const SNAPSHOT_POLL: Duration = Duration::from_secs(1);
/// Why any snapshot is wanted where none is known.
const NONE_YET: &str = "no-snapshot-yet";

/// A lane that is followed, or would be.
pub(super) struct LaneFollower {
    pub of: Protected,
    pub incarnation: String,
    pub lane: Lane,
    pub options: FollowOptions,
    pub long_reads: Arc<Semaphore>,
    /// Rung to upload at once.
    pub urgent: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    error: Option<String>,
    failures: u64,
    generation: Option<u64>,
    wanted: Option<Wanted>,
    /// Where the log begins that the wanted snapshot is to lead into: one that was begun before it will do, if it was consistent behind it.
    wanted_for: Option<Place>,
    spool: Option<Arc<Spool>>,
    vaulted: Option<watch::Receiver<Vaulted>>,
    vault_complete_to: Option<Instant>,
    /// Why the vault cannot be asked, while the log goes to the spool alone.
    alone: Option<String>,
    /// Whether the present link has brought a word.
    linked: Arc<AtomicBool>,
}

/// Why a turn at following ended.
enum Ended {
    Stopped,
    /// Somebody else follows, or did meanwhile: what we hold must be looked at anew.
    Overtaken,
}

/// What the links and the uploads of one turn share.
struct Turn {
    spool: Arc<Spool>,
    vaulted: Arc<watch::Sender<Vaulted>>,
}

impl LaneFollower {
    pub fn new(
        of: Protected,
        incarnation: String,
        lane: Lane,
        options: FollowOptions,
        long_reads: Arc<Semaphore>,
    ) -> Self {
        let (urgent, state) = (Arc::new(Notify::new()), Mutex::default());
        Self { of, incarnation, lane, options, long_reads, urgent, state }
    }

    /// How it stands.
    pub fn status(&self) -> LaneStatus {
        let state = self.state();
        let vaulted = state.vaulted.as_ref().map(|vaulted| vaulted.borrow().clone()).unwrap_or_default();
        let is_linked = state.linked.load(Ordering::Relaxed);
        let alone = state.alone.as_ref().map(|why| format!("{ALONE}: {why}"));
        let (phase, error) = match &state.phase {
            Phase::Following if is_linked => (Phase::Following, None),
            Phase::Following => (Phase::Starting, state.error.clone()),
            other => (other.clone(), state.error.clone()),
        };
        LaneStatus {
            phase,
            generation: state.generation,
            spool_end: state.spool.as_ref().and_then(|spool| spool.last_place()),
            spool_complete_to: state.spool.as_ref().and_then(|spool| spool.complete_to()),
            spool_bytes: state.spool.as_ref().map_or(0, |spool| spool.bytes()),
            vault_end: vaulted.end,
            vault_complete_to: vaulted.complete_to.max(state.vault_complete_to),
            vaulted_bytes: vaulted.bytes,
            holes: vaulted.holes,
            failures: state.failures + vaulted.failures,
            is_alone: state.alone.is_some(),
            error: alone.or(error).or(vaulted.error),
            wants_snapshot: state.wanted.clone(),
        }
    }

    /// The spool, while this process follows.
    pub fn spool(&self) -> Option<Arc<Spool>> {
        self.state().spool.clone()
    }

    /// Follows until `stop` says so.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut pause = PAUSE_MIN;
        while !*stop.borrow() {
            let ended = self.turn(&mut stop).await;
            {
                let mut state = self.state();
                (state.spool, state.vaulted, state.generation, state.wanted) = (None, None, None, None);
            }
            let wait = match ended {
                Ok(Ended::Stopped) => break,
                Ok(Ended::Overtaken) => {
                    write_holder(&self.spool_dir(), None);
                    PAUSE_MIN
                }
                Err(vault::Error::Held { holder, .. }) => {
                    write_holder(&self.spool_dir(), None);
                    self.set(Phase::Standby { holder }, None);
                    self.options.lease_ttl / 4
                }
                Err(e) => {
                    self.fail(why(&e));
                    if is_away(&e) && matches!(self.alone(&e, &mut stop).await, Some(Ended::Stopped)) {
                        break;
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                    pause
                }
            };
            sleep_or(wait, &mut stop).await;
        }
        self.set(Phase::Stopped, None);
    }

    /// From the first lease to the end, or until somebody else has it.
    async fn turn(&self, stop: &mut watch::Receiver<bool>) -> vault::Result<Ended> {
        let Some(lease) = self.lease(stop).await? else { return Ok(Ended::Stopped) };
        let objects = self.of.vault.log_objects(&self.incarnation, &self.lane).await?;
        let in_vault = InVault::of(&objects);
        let has_snapshot = in_vault.has_snapshot(&self.lane, &self.snapshots().await?);
        let (end, complete_to) = (in_vault.end.clone(), in_vault.complete_to);
        let in_vault_none = in_vault.line.is_none();
        let (dir, limits) = (self.spool_dir(), self.options.limits.clone());
        let (spool, damage) = blocking(move || open_spool(&dir, limits, &in_vault))
            .await
            .map_err(|e| vault::Error::io("open the spool", std::io::Error::other(why(&e))))?;
        for damage in &damage {
            tracing::error!(cluster = %self.of.cluster.name, lane = %self.lane, "{damage}");
        }
        let vaulted = Vaulted { end: end.clone(), complete_to, ..Vaulted::default() };
        let (vaulted, vaulted_rx) = watch::channel(vaulted);
        write_holder(&self.spool_dir(), Some(lease.generation()));
        let turn = Turn { spool: Arc::new(spool), vaulted: Arc::new(vaulted) };
        // Whether a snapshot is wanted for log that is yet to begin is told by where it begins.
        let is_new = in_vault_none && turn.spool.end().is_none();
        {
            let mut state = self.state();
            state.spool = Some(turn.spool.clone());
            state.vaulted = Some(vaulted_rx.clone());
            state.vault_complete_to = complete_to;
            state.phase = Phase::Starting;
        }
        if !damage.is_empty() {
            self.want_snapshot("spool-damaged");
        } else if !has_snapshot && !is_new {
            self.want_snapshot("no-snapshot-leads-into-the-log");
        }
        tokio::select! {
            never = self.links(&turn.spool, &vaulted_rx, None) => match never {},
            never = self.watch_snapshot(&vaulted_rx) => match never {},
            ended = self.terms(&turn, lease, end, stop) => ended,
        }
    }

    /// Follows into the spool without a lease, from where that ends, until the vault can be asked again. `None` where that is not to be done here:
    /// there is no log to go on from, or the lane was another's when the vault was last asked.
    async fn alone(&self, away: &vault::Error, stop: &mut watch::Receiver<bool>) -> Option<Ended> {
        let dir = self.spool_dir();
        read_holder(&dir)?;
        let limits = self.options.limits.clone();
        let (spool, damage) = blocking(move || Spool::open(&dir, limits)).await.ok()?;
        for damage in &damage {
            tracing::error!(cluster = %self.of.cluster.name, lane = %self.lane, "{damage}");
        }
        let from = spool.end()?;
        let spool = Arc::new(spool);
        let (_vaulted, vaulted_rx) = watch::channel(Vaulted::default());
        let reason = why(away);
        tracing::error!(cluster = %self.of.cluster.name, lane = %self.lane, error = reason, "{ALONE}");
        {
            let mut state = self.state();
            (state.spool, state.alone) = (Some(spool.clone()), Some(reason));
        }
        let ended = tokio::select! {
            never = self.links(&spool, &vaulted_rx, Some(&from)) => match never {},
            () = self.vault_is_back() => Ended::Overtaken,
            _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
        };
        self.settle(&spool).await;
        {
            let mut state = self.state();
            (state.spool, state.alone) = (None, None);
        }
        // What a thread still does with it ends soon; the next turn opens it anew.
        for _ in 0..100 {
            if Arc::strong_count(&spool) == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some(ended)
    }

    /// Returns when the vault answers, and is the one that it must be.
    async fn vault_is_back(&self) {
        let mut pause = PAUSE_MIN;
        loop {
            pause = (pause * 2).min(self.options.pace.retry_max);
            tokio::time::sleep(pause).await;
            let answer = async {
                self.of.vault.vault().confirm().await?;
                self.of.vault.log_objects(&self.incarnation, &self.lane).await
            };
            if answer.await.is_ok() {
                return;
            }
        }
    }

    fn spool_dir(&self) -> PathBuf {
        spool_dir(&self.of, &self.incarnation, &self.lane)
    }

    /// Takes the lane's lease; `None` when it is to stop.
    async fn lease(&self, stop: &mut watch::Receiver<bool>) -> vault::Result<Option<Lease>> {
        let (holder, ttl) = (&self.options.holder, self.options.lease_ttl);
        tokio::select! {
            lease = self.of.vault.lane_lease(&self.incarnation, &self.lane, holder, ttl) => lease.map(Some),
            _ = stop.wait_for(|stop| *stop) => Ok(None),
        }
    }

    /// One lease after another. While the vault is away the lease runs out, and the links go on into the spool all the same: it is
    /// taken again when the vault is back, unless somebody else has it by then.
    async fn terms(
        &self,
        turn: &Turn,
        mut lease: Lease,
        mut end: Option<Place>,
        stop: &mut watch::Receiver<bool>,
    ) -> vault::Result<Ended> {
        loop {
            let ours = lease.generation();
            self.state().generation = Some(ours);
            let ended = self.term(turn, &lease, end, stop).await;
            if let Err(e) = lease.release().await {
                tracing::debug!(lane = %self.lane, error = %e, "release lease");
            }
            match ended {
                Ok(true) => return Ok(Ended::Stopped),
                Ok(false) => {}
                Err(e) => self.upload_failed(turn, &e),
            }
            let mut pause = PAUSE_MIN;
            (lease, end) = loop {
                match self.lease_again(ours, stop).await {
                    Ok(Some(Some(next))) => break next,
                    Ok(Some(None)) => return Ok(Ended::Overtaken),
                    Ok(None) => return Ok(Ended::Stopped),
                    Err(e @ vault::Error::Held { .. }) => return Err(e),
                    Err(e) => self.upload_failed(turn, &e),
                }
                pause = (pause * 2).min(self.options.pace.retry_max);
                sleep_or(pause, stop).await;
            };
        }
    }

    /// `Some(None)` when somebody else wrote after generation `ours`; `None` when it is to stop.
    async fn lease_again(
        &self,
        ours: u64,
        stop: &mut watch::Receiver<bool>,
    ) -> vault::Result<Option<Option<(Lease, Option<Place>)>>> {
        let Some(lease) = self.lease(stop).await? else { return Ok(None) };
        let objects = self.of.vault.log_objects(&self.incarnation, &self.lane).await?;
        let is_overtaken = objects.iter().any(|object| object.generation > ours);
        if !is_overtaken {
            write_holder(&self.spool_dir(), Some(lease.generation()));
        }
        Ok(Some((!is_overtaken).then(|| (lease, InVault::of(&objects).end))))
    }

    /// Uploads under one lease; `true` if it ended because it is to stop.
    async fn term(
        &self,
        turn: &Turn,
        lease: &Lease,
        end: Option<Place>,
        stop: &mut watch::Receiver<bool>,
    ) -> vault::Result<bool> {
        let writer = self.of.vault.log_writer(&self.incarnation, &self.lane, lease.generation()).await?;
        let uploader = Uploader::new(Parts {
            spool: turn.spool.clone(),
            target: Box::new(writer),
            pace: self.options.pace.clone(),
            end,
            vaulted: turn.vaulted.clone(),
            urgent: self.urgent.clone(),
            long_reads: self.long_reads.clone(),
        });
        let (end_upload, upload_stop) = watch::channel(false);
        let mut uploads = on_its_own_thread(move || uploader.run(upload_stop))?;
        tokio::select! {
            () = lease_lost(lease) => return Ok(false),
            _ = &mut uploads => return Ok(false),
            _ = stop.wait_for(|stop| *stop) => {}
        }
        let last = turn.spool.clone();
        if let Err(e) = blocking(move || last.flush()).await {
            tracing::warn!(lane = %self.lane, error = %why(&e), "sync spool at the end");
        }
        end_upload.send_replace(true);
        if tokio::time::timeout(self.options.pace.stop_within, &mut uploads).await.is_err() {
            tracing::warn!(lane = %self.lane, "the last of the log stays in the spool: the vault did not take it");
        }
        Ok(true)
    }

    fn upload_failed(&self, turn: &Turn, error: &vault::Error) {
        let error = why(error);
        tracing::warn!(cluster = %self.of.cluster.name, lane = %self.lane, error, "keep the right to write the log");
        turn.vaulted.send_modify(|vaulted| {
            vaulted.error = Some(error);
            vaulted.failures += 1;
        });
    }

    /// One link after another, for ever.
    async fn links(
        &self,
        spool: &Arc<Spool>,
        vaulted: &watch::Receiver<Vaulted>,
        unleased_from: Option<&Place>,
    ) -> std::convert::Infallible {
        let mut pause = PAUSE_MIN;
        let mut hopeless = 0;
        let mut full_since: Option<Monotonic> = None;
        let mut tried: Vec<String> = Vec::new();
        let mut rewound: Option<Place> = None;
        // Begun at a snapshot or at the source's end, and nothing came yet.
        let mut is_fresh = false;
        loop {
            let Some(follow) = self.of.engine.follow() else {
                self.fail("this engine cannot be followed".to_owned());
                return std::future::pending().await;
            };
            if spool.end().is_none() {
                if let Err(e) = self.begin(follow, spool, &mut tried).await {
                    self.fail(why(&e));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                (rewound, is_fresh) = (None, true);
                continue;
            }
            let Some(end) = spool.end() else { continue };
            let from = rewound.clone().unwrap_or_else(|| end.clone());
            let linked = self.link();
            let sink = Sink {
                vault: self.of.vault.clone(),
                incarnation: self.incarnation.clone(),
                lane: self.lane.clone(),
                spool: spool.clone(),
                vaulted: vaulted.clone(),
                rewound: Mutex::new(rewound.clone()),
                unleased_from: unleased_from.cloned(),
                linked,
            };
            let error = match follow.follow(&self.of.access, &self.lane, &from, &sink).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            self.settle(spool).await;
            let moved = spool.end().as_ref() != Some(&end);
            if moved {
                (pause, hopeless, full_since, is_fresh) = (PAUSE_MIN, 0, None, false);
                tried.clear();
            }
            if spool.end().is_some_and(|end| rewound.as_ref().is_some_and(|r| r.epoch != end.epoch)) {
                rewound = None;
            }
            self.fail(why(&error));
            match &error.kind {
                // No log was there to be lost: another place is tried.
                Kind::LogGone if is_fresh => spool.unbegin(),
                Kind::LogGone => self.lose(spool, "log-gone", unleased_from).await,
                Kind::Diverged { branched } => match self.rewind(spool, branched.as_ref()).await {
                    Some(place) if rewound.as_ref() != Some(&place) => rewound = Some(place),
                    // Told twice of the same branch without coming into it, or of one that we do not know: nothing to go on from.
                    _ => {
                        rewound = None;
                        self.lose(spool, "history-diverged", unleased_from).await;
                    }
                },
                Kind::SpoolFull => {
                    let since = *full_since.get_or_insert_with(Monotonic::now);
                    // What the source keeps is given up by whoever has the lease.
                    let gives_up = unleased_from.is_none();
                    self.wait_for_room(follow, spool, since, gives_up).await;
                }
                // Where nothing came yet there is nothing to give up, and another snapshot would help no more than the last.
                Kind::Invalid | Kind::Damaged | Kind::OutOfLog | Kind::Unsupported if !moved && !is_fresh => {
                    hopeless += 1;
                    if hopeless >= HOPELESS_MAX {
                        hopeless = 0;
                        self.lose(spool, "log-unusable", unleased_from).await;
                    }
                }
                _ => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Makes durable what a link brought, or forgets it: then the source still has it.
    async fn settle(&self, spool: &Arc<Spool>) {
        let settled = spool.clone();
        let result = blocking(move || {
            settled.flush().inspect_err(|_| {
                settled.roll_back();
            })
        });
        if let Err(e) = result.await {
            self.fail(why(&e));
        }
    }

    /// Where the surviving history branched off, if we have the log up to there.
    async fn rewind(&self, spool: &Arc<Spool>, branched: Option<&Place>) -> Option<Place> {
        let branched = branched?;
        let known = spool.known(&branched.epoch)?;
        if known >= branched.offset {
            return Some(branched.clone());
        }
        // Ours left that epoch earlier than the survivors did: their log goes on from where ours has it.
        let place = Place { epoch: branched.epoch.clone(), offset: known };
        let (begun, at) = (spool.clone(), place.clone());
        blocking(move || begun.begin(at)).await.ok()?;
        Some(place)
    }

    /// Declares a hole where the log ends, and asks for a snapshot.
    ///
    /// Without a lease nothing is declared: another may have what we lack, and the vault will tell. Then this ends with the link.
    async fn lose(&self, spool: &Arc<Spool>, reason: &'static str, unleased_from: Option<&Place>) {
        if unleased_from.is_some() {
            return std::future::pending().await;
        }
        tracing::warn!(cluster = %self.of.cluster.name, lane = %self.lane, reason, "log was lost: a new snapshot is needed");
        let broken = spool.clone();
        if let Err(e) = blocking(move || broken.break_off(reason)).await {
            self.fail(why(&e));
        }
        self.want_snapshot(reason);
        self.urgent.notify_one();
    }

    /// Waits for room; after too long gives the source's log up, before that fills a disk.
    async fn wait_for_room(&self, follow: &dyn Follow, spool: &Arc<Spool>, since: Monotonic, gives_up: bool) {
        self.set(Phase::Full, Some("the spool is full".to_owned()));
        while !spool.has_room() {
            if gives_up && since.elapsed() >= self.options.give_up_full && spool.end().is_some() {
                self.lose(spool, "spool-full", None).await;
                if let Err(e) = follow.release(&self.of.access).await {
                    self.fail(why(&e));
                }
            }
            self.urgent.notify_one();
            let _ = tokio::time::timeout(Duration::from_millis(500), spool.room().notified()).await;
        }
    }

    /// Begins where there is no log to go on from.
    async fn begin(&self, follow: &dyn Follow, spool: &Arc<Spool>, tried: &mut Vec<String>) -> Result<()> {
        let snapshots = self.snapshots().await?;
        let newest = snapshots.iter().max_by_key(|snapshot| snapshot.taken.at.latest);
        let place_of = |snapshot: &SnapshotRecord| snapshot.taken.position.get(&self.lane).cloned();
        let untried = newest.filter(|snapshot| !tried.contains(&snapshot.id)).and_then(|snapshot| {
            let place = place_of(snapshot)?;
            // One that lies within what we have is from before the hole.
            let is_old = spool.known(&place.epoch).is_some_and(|known| place.offset < known);
            (!is_old).then_some((snapshot.id.clone(), place))
        });
        let place = match untried {
            Some((id, place)) => {
                tried.push(id);
                self.snapshot_came();
                place
            }
            None => match follow.tip(&self.of.access, &self.lane).await {
                Ok(place) => {
                    self.want_later_snapshot("followed-from-the-end", &place);
                    place
                }
                Err(e) if e.kind == Kind::LogGone => {
                    if self.state().wanted.is_none() {
                        self.want_snapshot(NONE_YET);
                    }
                    self.set(Phase::Waiting, Some(why(&e)));
                    tokio::time::sleep(SNAPSHOT_POLL).await;
                    return Ok(());
                }
                Err(e) => return Err(e),
            },
        };
        tracing::info!(cluster = %self.of.cluster.name, lane = %self.lane, at = show(&place), "follow log");
        let begun = spool.clone();
        blocking(move || begun.begin(place)).await
    }

    async fn snapshots(&self) -> vault::Result<Vec<SnapshotRecord>> {
        let (snapshots, _) = self.of.vault.snapshots_and_damaged().await?;
        Ok(snapshots.into_iter().filter(|s| s.incarnation == self.incarnation && !s.leaving).collect())
    }

    fn want_snapshot(&self, reason: &str) {
        let mut state = self.state();
        state.wanted = Some(Wanted { reason: reason.to_owned(), since: Instant::now() });
        state.wanted_for = None;
    }

    /// The log begins at `place`: a snapshot from before it is not enough, for whatever reason one was wanted.
    fn want_later_snapshot(&self, reason: &str, place: &Place) {
        let before = self.state().wanted.take();
        self.want_snapshot(before.as_ref().map_or(reason, |wanted| &wanted.reason));
        self.state().wanted_for = Some(place.clone());
    }

    /// The log begins at a snapshot. Where one was wanted because there was none, that was begun before we asked, perhaps.
    fn snapshot_came(&self) {
        let mut state = self.state();
        if state.wanted.as_ref().is_some_and(|wanted| wanted.reason == NONE_YET) {
            state.wanted = None;
        }
    }

    /// Takes the wish for a snapshot back when there is one, and has it when the uploader lost log. Never returns.
    async fn watch_snapshot(&self, vaulted: &watch::Receiver<Vaulted>) -> std::convert::Infallible {
        let mut unreadable = 0;
        loop {
            tokio::time::sleep(SNAPSHOT_POLL).await;
            let lost = vaulted.borrow().unreadable;
            if lost > std::mem::replace(&mut unreadable, lost) {
                self.want_snapshot("spool-unreadable");
            }
            let Some(wanted) = self.state().wanted.clone() else { continue };
            let Ok(snapshots) = self.snapshots().await else { continue };
            let wanted_for = self.state().wanted_for.clone();
            let leads = |snapshot: &SnapshotRecord| {
                let place = snapshot.taken.position.get(&self.lane);
                place
                    .zip(wanted_for.as_ref())
                    .is_some_and(|(place, from)| place.epoch == from.epoch && place.offset >= from.offset)
            };
            if snapshots.iter().any(|snapshot| snapshot.begun_at >= wanted.since || leads(snapshot)) {
                let mut state = self.state();
                if state.wanted.as_ref() == Some(&wanted) {
                    state.wanted = None;
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A link is tried. What was wrong with the one before stays to be seen until it brings a word.
    fn link(&self) -> Arc<AtomicBool> {
        let mut state = self.state();
        state.phase = Phase::Following;
        state.linked = Arc::default();
        state.linked.clone()
    }

    fn set(&self, phase: Phase, error: Option<String>) {
        let mut state = self.state();
        state.phase = phase;
        state.error = error;
    }

    fn fail(&self, error: String) {
        tracing::warn!(cluster = %self.of.cluster.name, lane = %self.lane, error, "follow log");
        let mut state = self.state();
        state.phase = Phase::Retrying;
        state.error = Some(error);
        state.failures += 1;
    }
}

/// Runs it on a thread with a runtime of its own: it compresses and encrypts, and no point's hold must wait for that.
fn on_its_own_thread<F: Future<Output = vault::Result<()>>>(
    work: impl FnOnce() -> F + Send + 'static,
) -> vault::Result<oneshot::Receiver<vault::Result<()>>> {
    let failed = |e| vault::Error::io("start a thread that uploads log", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let (done, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("upload log".to_owned());
    // Nobody listens any more when following was broken off.
    let run = move || drop(done.send(runtime.block_on(work())));
    thread.spawn(run).map_err(failed)?;
    Ok(ended)
}

/// Whether the vault could not be asked, or is not there: nothing that another follower of the lane did.
fn is_away(error: &vault::Error) -> bool {
    use vault::Error as E;
    matches!(error, E::Store(_) | E::NoVault { .. } | E::Damaged { .. } | E::WrongKey { .. })
}

async fn lease_lost(lease: &Lease) {
    while !lease.lost() {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

pub(super) async fn sleep_or(wait: Duration, stop: &mut watch::Receiver<bool>) {
    let _ = tokio::time::timeout(wait, stop.wait_for(|stop| *stop)).await;
}
