//! `mark`: reads the place of every shard, each with the master's clock in the same transaction.
//!
//! The mark is observed, not written: an offset read between two commands is a clean place, exact to the command, and nothing need be
//! left in the user's data. The shards are asked at once; how far apart they answered is in the bracket.

use async_trait::async_trait;
use futures::future::try_join_all;
use mainstay_engine::{Access, Error, Kind, Mark, Marked, Result};
use mainstay_model::{Bracket, Lane, Place, Position};

use crate::Redis;
use crate::clock::{self, Sample};
use crate::connect::{Answer, Client};
use crate::topology::{State, Topology};

#[async_trait]
impl Mark for Redis {
    async fn mark(&self, access: &Access, _id: &str) -> Result<Marked> {
        let topology = Topology::look(access).await?;
        topology.complete(&access.cluster)?;
        let reads = topology.shards.iter().map(|shard| async {
            let (_, state, client) = topology.up(shard.master)?;
            let seen = Seen::read(client).await?;
            seen.must_be(client, state)?;
            Ok((shard.lane.clone(), seen))
        });
        Ok(marked(try_join_all(reads).await?))
    }
}

/// The position and the bracket that these reads make.
pub(crate) fn marked(seen: Vec<(Lane, Seen)>) -> Marked {
    let times = seen.iter().map(|(_, seen)| Bracket::exactly(seen.sample.at));
    let at = times.reduce(Bracket::union).unwrap_or(Bracket::exactly(mainstay_model::Instant::now()));
    let place = |(lane, seen): (Lane, Seen)| (lane, Place::new(seen.replid, seen.sample.offset));
    let position: Position = seen.into_iter().map(place).collect();
    Marked { position, at }
}

/// What a master is and where it stands, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub sample: Sample,
    pub replid: String,
    pub run_id: String,
    /// Of a Redis Cluster: its slots, as it lists them.
    pub slots: Option<Vec<(u16, u16)>>,
}

/// The commands that are read in one transaction.
pub(crate) const LOOK: [&[&str]; 6] =
    [&["MULTI"], &["TIME"], &["ROLE"], &["INFO", "replication"], &["INFO", "server"], &["EXEC"]];

impl Seen {
    pub async fn read(client: &Client) -> Result<Seen> {
        let answers = client.calls(&LOOK.map(<[&str]>::to_vec)).await?;
        Seen::parse(client, answers.last())
    }

    /// From what `EXEC` answered to [`LOOK`].
    pub fn parse(client: &Client, exec: Option<&Answer>) -> Result<Seen> {
        let sample = clock::parse(client, exec)?;
        let infos = exec.map(Answer::list).unwrap_or_default();
        let text = |index: usize, key: &str| -> Result<String> {
            let found = infos.get(index).and_then(|info| info.info().get(key).cloned());
            found.ok_or_else(|| {
                Error::new(Kind::Server, format!("look at {}: no {key} in INFO", client.node()))
            })
        };
        Ok(Seen { sample, replid: text(2, "master_replid")?, run_id: text(3, "run_id")?, slots: None })
    }

    /// That it is the same process with the same history as when the cluster was looked at.
    pub fn must_be(&self, client: &Client, state: &State) -> Result<()> {
        if self.replid == state.replid && self.run_id == state.run_id {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unreachable,
            format!("mark {}: it has changed its role meanwhile", client.node()),
        ))
    }
}
