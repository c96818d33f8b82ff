//! `follow`: each shard's stream, from a replica where there is one, with the times of the master's clock.
//!
//! One call is one link. Before it asks for the stream, the master is asked for its history, so that no server is made to copy all its
//! data because we are ahead of it: past a promotion we end our branch where the histories part and take up the new one there.
//! Every byte is kept, pings too, because offsets count them.
//!
//! A stream has no times, so each chunk is followed by one look at the master's clock and offset: what has arrived by then was written by
//! then. Chunks end where no command and no transaction is cut, unless one is larger than a megabyte. Only what the sink has made
//! durable is acknowledged; a master with other replicas is told one byte less, so that it never takes us for the best of them.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use mainstay_engine::{Access, Chunk, Error, Follow, Kind, LogSink, Never, Result, TimeMark};
use mainstay_model::{Bracket, Branch, Epoch, Instant, Lane, Place};
use tokio::time::{Instant as Tick, timeout};

use crate::Redis;
use crate::carry::{self, Known, States};
use crate::clock::{Sample, sample};
use crate::connect::{Client, link_error};
use crate::link::Link;
use crate::place::{Relation, relate, serves};
use crate::stream::{Boundary, Splitter};
use crate::topology::{Shard, Topology, ask_again};

/// How often the clock is looked at while nothing comes.
const BEAT_PERIOD: Duration = Duration::from_millis(100);
/// How long bytes are gathered before they are stored.
const GATHER: Duration = Duration::from_millis(4);
/// How much is gathered at most; a command or transaction larger than this is cut over several chunks.
const GATHER_BYTES: usize = 1024 * 1024;
/// How long a look at the clock may take before we do without.
const SAMPLE_DEADLINE: Duration = Duration::from_secs(2);
/// How often roles and owners are looked at.
const WATCH_PERIOD: Duration = Duration::from_secs(1);
/// How often a master that has other replicas is left for one of them, if one can serve us.
const LEAVE_PERIOD: Duration = Duration::from_secs(10);
/// What a late ping may be late by on a busy machine.
const PING_SLACK: Duration = Duration::from_secs(3);
/// How far a clock that could not be looked at is trusted to have gone on as ours did.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

#[async_trait]
impl Follow for Redis {
    async fn lanes(&self, access: &Access) -> Result<Vec<Lane>> {
        let topology = Topology::look(access).await?;
        topology.complete(&access.cluster)?;
        Ok(topology.shards.into_iter().map(|shard| shard.lane).collect())
    }

    async fn tip(&self, access: &Access, lane: &Lane) -> Result<Place> {
        let topology = Topology::look(access).await?;
        let (node, state, _) = topology.up(topology.shard(lane)?.master)?;
        match state.backlog_first {
            Some(_) => Ok(Place::new(state.replid.clone(), state.offset)),
            None => Err(Error::new(
                Kind::LogGone,
                format!("find the end of the stream of {}: it keeps none", node.name),
            )
            .hint("take a snapshot first: a Redis server keeps its stream from the first replica on")),
        }
    }

    async fn follow(&self, access: &Access, lane: &Lane, from: &Place, sink: &dyn LogSink) -> Result<Never> {
        let topology = Topology::look(access).await?;
        // Not the whole cluster need be well: what can be followed is.
        let shard = topology.shard(lane)?;
        let (master_node, master_state, master) = topology.up(shard.master)?;
        if master_state.clustered.as_ref().is_some_and(|clustered| clustered.moving) {
            return Err(gone(&master_node.name, "its slots are moving"));
        }
        let shared = match relate(from, master_state) {
            Relation::Same => None,
            Relation::Renamed { shared } => Some(shared),
            Relation::Diverged { shared } => {
                let branched = Some(Place::new(from.epoch.0.clone(), shared));
                return Err(Error::new(
                    Kind::Diverged { branched },
                    format!(
                        "follow {}: it was promoted before our place and never had what came after",
                        master_node.name
                    ),
                ));
            }
            Relation::Unknown => return Err(gone(&master_node.name, "its history is another")),
        };
        let source = choose(&topology, shard, from)
            .ok_or_else(|| gone(&master_node.name, "no node still has the stream from there on"))?;
        let (node, _, _) = topology.up(source)?;
        let patience = patience(master).await;
        let (link, opening) = Link::open(&node.door, &from.epoch.0, from.offset.low(), patience)
            .await
            .map_err(|error| link_error(&node.name, error))?;
        if opening.replid != master_state.replid {
            return Err(Error::new(
                Kind::Unreachable,
                format!("follow {}: it has not joined its new master yet", node.name),
            ));
        }
        tracing::info!(node = %node.name, %lane, offset = opening.offset, "following");
        link.acks().withhold(source == shard.master && master_state.replicas > 0);
        let known = self.states.recall(access, lane, from);
        let start = match &known {
            Some(known) => Some(Splitter::new(known.state)),
            None => state_at(from, sink).await?,
        };
        let mut follower = Follower {
            access,
            lane,
            sink,
            states: &self.states,
            node: &node.name,
            master,
            from_master: source == shard.master,
            slots: &shard.slots,
            link,
            epoch: from.epoch.clone(),
            renamed: shared.map(|shared| (shared, Epoch(opening.replid.clone()))),
            parsed: start.is_some(),
            splitter: start.unwrap_or_else(|| Splitter::new(clean_state(from))),
            carry: None,
            end: opening.offset,
            waiting: BytesMut::new(),
            samples: VecDeque::new(),
            floor: known
                .and_then(|known| known.seen)
                .or_else(|| sink.not_before(from))
                .unwrap_or(Instant::MIN),
            set_back: false,
            last: None,
            getack: false,
            leaving: Tick::now(),
        };
        // In the midst of a command there is none to be given, but a segment begins here all the same.
        follower.carry = follower.state_here().or_else(|| Some(carry::UNKNOWN.to_owned()));
        follower.branch_if_due().await?;
        follower.run().await
    }

    async fn release(&self, _access: &Access) -> Result<()> {
        // Nothing is kept for us: a backlog is the server's own, of a fixed size.
        Ok(())
    }
}

/// The state of the stream at a place where a link begins: what the log before it says, or a clean one at a snapshot's place or a tip. None
/// where the log before it does not say.
async fn state_at(from: &Place, sink: &dyn LogSink) -> Result<Option<Splitter>> {
    let Some(before) = sink.before(from).await? else { return Ok(Some(Splitter::new(clean_state(from)))) };
    let start = before.at.offset.low();
    let Some(mut splitter) = before.carry.as_deref().and_then(|text| carry::enter(start, text)) else {
        return Ok(None);
    };
    let fed = splitter.feed(&before.bytes, |_| {});
    Ok((fed.is_ok() && splitter.offset() == from.offset.low()).then_some(splitter))
}

fn clean_state(at: &Place) -> Boundary {
    Boundary { offset: at.offset.low(), db: None, in_multi: false }
}

fn gone(node: &str, why: &str) -> Error {
    Error::new(Kind::LogGone, format!("follow {node}: {why}"))
        .hint("take a snapshot: the log goes on from there")
}

/// The node to stream from: a replica that has what we lack, otherwise the master if it has.
fn choose(topology: &Topology, shard: &Shard, from: &Place) -> Option<usize> {
    let can = |index: usize| topology.nodes[index].said().is_some_and(|state| serves(from, state));
    let master_id = topology.nodes[shard.master].said().map(|state| &state.replid);
    let replica = topology.source(shard);
    let joined = topology.nodes[replica].said().map(|state| &state.replid) == master_id;
    if can(replica) && joined {
        return Some(replica);
    }
    can(shard.master).then_some(shard.master)
}

/// Two periods of the master's pings.
async fn patience(master: &Client) -> Duration {
    let answer = master.call(&["CONFIG", "GET", "repl-ping-replica-period"]).await;
    let seconds = answer.ok().and_then(|pair| pair.list().get(1).and_then(crate::connect::Answer::int));
    // Without the right to ask: Redis's default.
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(10);
    Duration::from_secs(2 * seconds) + PING_SLACK
}

struct Follower<'a> {
    access: &'a Access,
    lane: &'a Lane,
    sink: &'a dyn LogSink,
    states: &'a States,
    node: &'a str,
    master: &'a Client,
    from_master: bool,
    slots: &'a [(u16, u16)],
    link: Link,
    /// The epoch of what is appended now.
    epoch: Epoch,
    /// After so many bytes the history goes on under another id.
    renamed: Option<(u64, Epoch)>,
    /// Whether the bytes made sense as commands so far.
    parsed: bool,
    splitter: Splitter,
    /// The state at the beginning of the next chunk, where one can be given.
    carry: Option<String>,
    /// The offset after all that was appended.
    end: u64,
    /// What has arrived behind it.
    waiting: BytesMut,
    /// Looks at the clock at offsets past `end`, in order.
    samples: VecDeque<Sample>,
    /// What the clock showed when the stream had not yet passed `end`.
    floor: Instant,
    /// The clock was set back since something was appended; the floor is the lowest that it showed.
    set_back: bool,
    /// The last look, and when it was.
    last: Option<(Sample, Tick)>,
    /// The server wants an acknowledgement.
    getack: bool,
    /// When it was last asked whether a replica can be followed instead of the master.
    leaving: Tick,
}

impl Follower<'_> {
    async fn run(&mut self) -> Result<Never> {
        let mut beat = tokio::time::interval(BEAT_PERIOD);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watched = Tick::now();
        loop {
            let came = tokio::select! {
                biased;
                came = self.link.next() => Some(came.map_err(|error| link_error(self.node, error))?),
                _ = beat.tick() => None,
            };
            if let Some(bytes) = came {
                self.take(&bytes);
                self.gather().await?;
            }
            self.look_at_clock().await?;
            self.store().await?;
            self.beat().await?;
            if watched.elapsed() >= WATCH_PERIOD {
                watched = Tick::now();
                self.watch().await?;
            }
        }
    }

    fn arrived(&self) -> u64 {
        self.end + self.waiting.len() as u64
    }

    fn take(&mut self, bytes: &Bytes) {
        self.waiting.extend_from_slice(bytes);
        if !self.parsed {
            return;
        }
        let getack = &mut self.getack;
        let fed = self.splitter.feed(bytes, |command| *getack |= command.is_getack());
        if let Err(error) = fed {
            // Its bytes are kept all the same; what they mean is found out when they are read.
            tracing::warn!(%error, lane = %self.lane, "stream is not understood");
            self.parsed = false;
        }
    }

    /// Takes in what more comes within a moment.
    async fn gather(&mut self) -> Result<()> {
        let until = Tick::now() + GATHER;
        while self.waiting.len() < GATHER_BYTES {
            match tokio::time::timeout_at(until, self.link.next()).await {
                Ok(bytes) => self.take(&bytes.map_err(|error| link_error(self.node, error))?),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// What has arrived was written by the time that the master shows now.
    async fn look_at_clock(&mut self) -> Result<()> {
        let looked = match timeout(SAMPLE_DEADLINE, sample(self.master)).await {
            Ok(Ok(looked)) => looked,
            // It has become a replica, or it is gone: the link will end, or somebody else takes its writes.
            Ok(Err(error)) if !self.link_has_more() => return Err(error),
            _ => return Ok(()),
        };
        if looked.offset < self.arrived() {
            return Err(Error::new(
                Kind::Unreachable,
                format!(
                    "follow {}: its stream is ahead of {}, which is no longer its master",
                    self.node,
                    self.master.node()
                ),
            ));
        }
        self.last = Some((looked, Tick::now()));
        if looked.offset <= self.end {
            // A clock that was set back shows again what it showed before: what comes next is known no better than from there on.
            self.set_back |= looked.at < self.floor;
            self.floor = if self.set_back { self.floor.min(looked.at) } else { looked.at };
        } else {
            self.samples.push_back(looked);
        }
        // With a link that lags, one look in a while is enough.
        if self.samples.len() > 4096 {
            let mut nth = 0;
            self.samples.retain(|_| {
                nth += 1;
                nth % 2 == 0
            });
        }
        Ok(())
    }

    fn link_has_more(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Appends what can be appended, makes it durable, acknowledges it.
    async fn store(&mut self) -> Result<()> {
        let mut stored = false;
        loop {
            let mut upto = self.upto();
            if let Some((shared, _)) = self.renamed {
                upto = upto.min(shared);
            }
            if upto > self.end {
                self.append(upto).await?;
                stored = true;
            }
            if !self.branch_if_due().await? {
                break;
            }
        }
        if stored {
            let durable = self.sink.sync().await?;
            self.link.acks().durable(durable.offset.low());
            if durable.offset.low() == self.end {
                self.remember();
            }
        }
        if self.getack && self.waiting.is_empty() {
            self.getack = false;
            self.link.acks().send_now();
        }
        Ok(())
    }

    /// Up to where the next chunk goes.
    fn upto(&self) -> u64 {
        let all = self.arrived();
        if !self.parsed || self.waiting.len() >= GATHER_BYTES {
            return all;
        }
        self.splitter.clean().map_or(self.end, |clean| clean.offset.max(self.end))
    }

    async fn append(&mut self, upto: u64) -> Result<()> {
        // Within what is waiting, which fits into memory.
        let length = usize::try_from(upto - self.end).unwrap_or(usize::MAX).min(self.waiting.len());
        let bytes = self.waiting.split_to(length).freeze();
        let at = Place { epoch: self.epoch.clone(), offset: self.end.into() };
        let times = self.times(upto);
        let chunk = Chunk { at, bytes, times, carry: self.carry.take() };
        self.sink.append(chunk).await?;
        self.end = upto;
        self.carry = self.state_here();
        Ok(())
    }

    /// The state at the end of what was appended, as far as one can be given.
    fn state_here(&self) -> Option<String> {
        if !self.parsed {
            return Some(carry::UNKNOWN.to_owned());
        }
        let inside = || self.splitter.inside().filter(|inside| inside.at.offset == self.end);
        self.boundary_here().as_ref().map(carry::write).or_else(|| inside().as_ref().map(carry::write_inside))
    }

    fn boundary_here(&self) -> Option<Boundary> {
        let clean = self.splitter.clean().filter(|clean| clean.offset == self.end);
        clean.or_else(|| Some(self.splitter.boundary()).filter(|boundary| boundary.offset == self.end))
    }

    fn remember(&self) {
        if self.parsed
            && let Some(state) = self.boundary_here()
        {
            let place = Place { epoch: self.epoch.clone(), offset: self.end.into() };
            let seen = (self.floor != Instant::MIN).then_some(self.floor);
            self.states.remember(self.access, self.lane, &place, Known { state, seen });
        }
    }

    /// What is known of when the bytes from `end` to `upto` were written.
    fn times(&mut self, upto: u64) -> Vec<TimeMark> {
        let mut times = Vec::new();
        self.set_back = false;
        while let Some(next) = self.samples.front().copied() {
            let offset = next.offset.min(upto);
            times.push(TimeMark { offset: offset.into(), at: Bracket::between(self.floor, next.at) });
            if next.offset > upto {
                return times;
            }
            self.samples.pop_front();
            self.floor = next.at;
            if next.offset == upto {
                return times;
            }
        }
        // The clock could not be looked at since: it has gone on about as ours has.
        let latest = match &self.last {
            Some((looked, when)) => looked.at + when.elapsed() + CLOCK_SLACK,
            None => Instant::now() + CLOCK_SLACK,
        };
        times.push(TimeMark { offset: upto.into(), at: Bracket::between(self.floor, latest) });
        times
    }

    /// At the end of what two histories share, the new one begins.
    async fn branch_if_due(&mut self) -> Result<bool> {
        let Some((shared, _)) = &self.renamed else { return Ok(false) };
        if *shared != self.end {
            return Ok(false);
        }
        let Some((shared, epoch)) = self.renamed.take() else { return Ok(false) };
        let parent = Some(Place { epoch: self.epoch.clone(), offset: shared.into() });
        self.sink.branch(Branch { epoch: epoch.clone(), parent, first: shared.into() }, None).await?;
        self.epoch = epoch;
        self.remember();
        Ok(true)
    }

    /// All that the master had at its last look is here: the end of the window moves on.
    async fn beat(&mut self) -> Result<()> {
        if let Some((looked, _)) = &self.last
            && looked.offset == self.end
            && self.waiting.is_empty()
        {
            let at = Place { epoch: self.epoch.clone(), offset: self.end.into() };
            self.sink.beat(&at, Bracket::exactly(looked.at)).await?;
            self.remember();
        }
        Ok(())
    }

    /// Whether the master still is one, of the same slots, and who else listens to it.
    async fn watch(&mut self) -> Result<()> {
        let Ok(Ok(state)) = timeout(SAMPLE_DEADLINE, ask_again(self.master)).await else { return Ok(()) };
        if let Some(clustered) = &state.clustered
            && (clustered.slots != self.slots || clustered.moving)
            && state.master
        {
            return Err(gone(self.master.node(), "its slots are moving or have moved"));
        }
        if self.from_master {
            // We are one of them.
            self.link.acks().withhold(state.replicas > 1);
            if state.replicas > 1 && self.leaving.elapsed() >= LEAVE_PERIOD {
                self.leaving = Tick::now();
                self.leave_for_replica().await?;
            }
        }
        Ok(())
    }

    /// Ends the link if a replica can be followed by now: what a master is not told to the last byte, it waits for when it shuts down.
    async fn leave_for_replica(&self) -> Result<()> {
        let Ok(topology) = Topology::look(self.access).await else { return Ok(()) };
        let Ok(shard) = topology.shard(self.lane) else { return Ok(()) };
        let here = Place { epoch: self.epoch.clone(), offset: self.end.into() };
        match choose(&topology, shard, &here) {
            Some(index) if index != shard.master => Err(Error::new(
                Kind::Unreachable,
                format!("follow {}: {} can be followed instead", self.node, topology.nodes[index].name),
            )),
            _ => Ok(()),
        }
    }
}
