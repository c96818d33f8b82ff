//! `hold`: keeps writes waiting with `CLIENT PAUSE … WRITE` on every master, for a limited time.
//!
//! While it lasts, writers wait and none fails; reads go on; expiry and eviction stand still (Redis's own rule). Pings still move the
//! offsets, so whether the log stood still is for the log to prove: [`is_quiet`]. A pause ends by the server's own clock at the latest,
//! also when we are gone.
//!
//! There is one pause for all clients of a server: our end would end somebody else's, a manual failover's among them. So a server that
//! already makes writers wait is refused: before the hold each master is sent a message to a channel that nobody reads, which a
//! pause holds back as it does writes.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::future::{join_all, try_join_all};
use mainstay_engine::{Access, Error, Held, Hold, Kind, Marked, Released, Result};
use mainstay_model::Lane;

use crate::Redis;
use crate::carry;
use crate::connect::Client;
use crate::mark::{LOOK, Seen, marked};
use crate::stream::{Boundary, Splitter};
use crate::topology::{Shard, State, Topology, ask_again};

/// The channel of the message that tells whether writers wait.
const CHANNEL: &str = "mainstay:hold";
/// How many answers to reads prove that a message sent before them has been seen and is being held back.
const READS: usize = 3;
/// How long to wait for the message's answer behind those reads, on a network that delays packets.
const PROBE_SLACK: Duration = Duration::from_millis(20);
/// How long letting go may take.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

#[async_trait]
impl Hold for Redis {
    async fn hold(&self, access: &Access, limit: Duration) -> Result<Box<dyn Held>> {
        let topology = Topology::look(access).await?;
        topology.complete(&access.cluster)?;
        let mut masters = Vec::new();
        for shard in &topology.shards {
            let (node, state, client) = topology.up(shard.master)?;
            masters.push(Master {
                shard: shard.clone(),
                state: state.clone(),
                client: client.clone(),
                door: node.door.clone(),
            });
        }
        let probes = masters.iter().map(refuse_if_paused);
        try_join_all(probes).await?;
        let mut holding = Holding { masters, begun: Instant::now(), limit, marked: None, let_go: false };
        let milliseconds = limit.as_millis().max(1).to_string();
        let pauses = holding.masters.iter().map(|master| pause(master, &milliseconds));
        // All are waited for, also when one fails: what is held must be let go.
        let seen: Result<Vec<(Lane, Seen)>> = join_all(pauses).await.into_iter().collect();
        match seen {
            Ok(seen) if holding.begun.elapsed() < limit => {
                holding.marked = Some((marked(seen.clone()), seen));
                Ok(Box::new(holding))
            }
            Ok(_) => {
                holding.let_go().await;
                Err(Error::new(
                    Kind::Deadline,
                    format!("hold {}: not every master stood still within {limit:?}", access.cluster),
                ))
            }
            Err(error) => {
                holding.let_go().await;
                Err(error)
            }
        }
    }

    fn is_quiet(&self, _lane: &Lane, carry: &str, log: &[u8]) -> bool {
        is_quiet(carry, log)
    }
}

/// Whether a stretch of stream holds nothing but what a server writes by itself. It must begin and end between two commands, outside a
/// transaction.
pub fn is_quiet(carry: &str, log: &[u8]) -> bool {
    // A state that is not known is assumed to be a clean one; a stretch that begins elsewhere does not read as commands.
    let start = carry::read(0, carry).unwrap_or(Boundary { offset: 0, db: None, in_multi: false });
    let mut quiet = !start.in_multi;
    let mut splitter = Splitter::new(start);
    let read = splitter.feed(log, |command| quiet &= command.is_heartbeat());
    read.is_ok() && quiet && splitter.at_boundary()
}

struct Master {
    shard: Shard,
    state: State,
    client: Client,
    door: crate::link::Door,
}

/// Sends a message on a connection of its own and sees whether it is held back.
async fn refuse_if_paused(master: &Master) -> Result<()> {
    let probe = Client::open(master.client.node(), &master.door).await?;
    let message = tokio::spawn(async move { probe.call(&["PUBLISH", CHANNEL, "probe"]).await.map(|_| ()) });
    // A server takes up its connections in turn: after a few answers to the one, it has seen what the other sent.
    for _ in 0..READS {
        master.client.call(&["PING"]).await?;
        if message.is_finished() {
            break;
        }
    }
    match tokio::time::timeout(PROBE_SLACK, message).await {
        Ok(Ok(Ok(()))) => Ok(()),
        // Without the right to publish there is no telling, and without a cluster's channels neither.
        Ok(Ok(Err(error))) => Err(error),
        Ok(Err(error)) => {
            Err(Error::new(Kind::Io, format!("look whether {} is held", master.client.node())).source(error))
        }
        Err(_) => Err(Error::new(
            Kind::Refused,
            format!("hold {}: somebody else keeps its writes waiting now", master.client.node()),
        )),
    }
}

async fn pause(master: &Master, milliseconds: &str) -> Result<(Lane, Seen)> {
    let mut commands = vec![vec!["CLIENT", "PAUSE", milliseconds, "WRITE"]];
    commands.extend(LOOK.map(<[&str]>::to_vec));
    let answers = master.client.calls(&commands).await?;
    if let Some(answer @ crate::connect::Answer::Error(_)) = answers.first() {
        let kind = if answer.text().starts_with("NOPERM") { Kind::Refused } else { Kind::Server };
        return Err(Error::new(kind, format!("hold {}: {}", master.client.node(), answer.text())));
    }
    let seen = Seen::parse(&master.client, answers.last())?;
    seen.must_be(&master.client, &master.state)?;
    Ok((master.shard.lane.clone(), seen))
}

struct Holding {
    masters: Vec<Master>,
    begun: Instant,
    limit: Duration,
    marked: Option<(Marked, Vec<(Lane, Seen)>)>,
    let_go: bool,
}

#[async_trait]
impl Held for Holding {
    fn marked(&self) -> &Marked {
        static NOTHING: std::sync::LazyLock<Marked> = std::sync::LazyLock::new(|| marked(Vec::new()));
        self.marked.as_ref().map_or(&NOTHING, |(marked, _)| marked)
    }

    async fn release(mut self: Box<Self>) -> Result<Released> {
        let looks = self.masters.iter().map(|master| async {
            let mut commands = LOOK.map(<[&str]>::to_vec).to_vec();
            commands.push(vec!["CLIENT", "UNPAUSE"]);
            let answers = master.client.calls(&commands).await?;
            let exec = answers.len().checked_sub(2).and_then(|index| answers.get(index));
            Ok((master.shard.lane.clone(), Seen::parse(&master.client, exec)?))
        });
        let seen: Result<Vec<(Lane, Seen)>> = join_all(looks).await.into_iter().collect();
        let stall = self.begun.elapsed();
        let seen = match seen {
            Ok(seen) => {
                self.let_go = true;
                seen
            }
            Err(error) => {
                self.let_go().await;
                return Err(error);
            }
        };
        let broken = self.broken(&seen, stall).await;
        Ok(Released { position: marked(seen).position, stall, broken })
    }
}

impl Holding {
    /// Why the cluster may not have stood still, if it may not have.
    async fn broken(&self, seen: &[(Lane, Seen)], stall: Duration) -> Option<String> {
        if stall >= self.limit {
            return Some(format!(
                "the hold lasted {stall:?} and may have ended by itself after {:?}",
                self.limit
            ));
        }
        let before = self.marked.as_ref().map(|(_, seen)| seen.as_slice()).unwrap_or_default();
        for ((lane, before), (_, after)) in before.iter().zip(seen) {
            if before.run_id != after.run_id || before.replid != after.replid {
                return Some(format!("the master of {lane} restarted or changed its history"));
            }
        }
        for master in self.masters.iter().filter(|master| master.state.clustered.is_some()) {
            let now = ask_again(&master.client).await.ok().and_then(|state| state.clustered);
            let same = |now: &crate::topology::Clustered| now.slots == master.shard.slots && !now.moving;
            if !now.as_ref().is_some_and(same) {
                return Some(format!("slots of {} moved", master.shard.lane));
            }
        }
        None
    }

    async fn let_go(&mut self) {
        self.let_go = true;
        let ends = self.masters.iter().map(|master| master.client.call(&["CLIENT", "UNPAUSE"]));
        let ends = tokio::time::timeout(RELEASE_DEADLINE, join_all(ends)).await.unwrap_or_default();
        for error in ends.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, limit = ?self.limit, "writes wait until the hold ends by itself");
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if self.let_go {
            return;
        }
        let clients: Vec<Client> = self.masters.iter().map(|master| master.client.clone()).collect();
        // Outside a runtime the servers end the pause by themselves.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                join_all(clients.iter().map(|client| client.call(&["CLIENT", "UNPAUSE"]))).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::encode;

    #[test]
    fn only_heartbeats_are_quiet() {
        let ping = encode(&[b"PING"]);
        let getack = encode(&[b"REPLCONF", b"GETACK", b"*"]);
        let write = encode(&[b"SET", b"a", b"PING"]);
        let check = |log: &[u8], quiet: bool| {
            assert_eq!(is_quiet("db=0 multi=0", log), quiet);
            assert_eq!(is_quiet(carry::UNKNOWN, log), quiet);
            assert!(!is_quiet("db=0 multi=1", log));
        };
        check(b"", true);
        check(&[ping.clone(), getack, ping.clone()].concat(), true);
        check(&[ping.clone(), write].concat(), false);
        check(&encode(&[b"SELECT", b"1"]), false);
        check(&ping[..ping.len() - 1], false);
        check(&ping[1..], false);
    }
}
