//! `hold`: writers wait while `hold.json` says so and its time is not over.

use std::time::{Duration, Instant as Clock};

use async_trait::async_trait;
use mainstay_engine::{Access, Error, Held, Hold, Kind, Marked, Released, Result};
use mainstay_model::{Instant, Lane};
use serde::{Deserialize, Serialize};

use crate::fake::mark::marked;
use crate::fake::node::{Node, NodeFile};
use crate::fake::record::{Op, Record};
use crate::fake::{Fake, connect};

const FILE: &str = "hold.json";

/// Until when writes wait, by the real clock.
#[derive(Serialize, Deserialize)]
struct HoldFile {
    until: Instant,
}

#[async_trait]
impl Hold for Fake {
    async fn hold(&self, access: &Access, limit: Duration) -> Result<Box<dyn Held>> {
        let node = connect::primary(access)?;
        let _lock = node.lock()?;
        if held(&node) {
            return Err(Error::new(
                Kind::Refused,
                format!("hold {}: somebody else holds it", access.cluster),
            ));
        }
        let since = Clock::now();
        node.write_json(FILE, &HoldFile { until: Instant::now() + limit })?;
        let (marked, file) = (marked(&node)?, node.file()?);
        Ok(Box::new(FakeHeld { node: node.clone(), file, marked, since, limit, released: false }))
    }

    fn is_quiet(&self, _lane: &Lane, _carry: &str, log: &[u8]) -> bool {
        match Record::decode_all(log) {
            Ok(records) => {
                let whole = records.last().map_or(0, |(_, end)| *end);
                whole == log.len() && records.iter().all(|(record, _)| record.op == Op::Ping)
            }
            Err(_) => false,
        }
    }
}

struct FakeHeld {
    node: Node,
    file: NodeFile,
    marked: Marked,
    since: Clock,
    limit: Duration,
    released: bool,
}

#[async_trait]
impl Held for FakeHeld {
    fn marked(&self) -> &Marked {
        &self.marked
    }

    async fn release(mut self: Box<Self>) -> Result<Released> {
        let _lock = self.node.lock()?;
        if !self.node.up() {
            return Err(Error::new(Kind::Unreachable, "release: the server went away"));
        }
        let still = held(&self.node);
        let position = marked(&self.node)?.position;
        let broken = match () {
            () if !still => Some(format!("the hold ended by itself after {:?}", self.limit)),
            () if self.node.file()? != self.file => Some("roles or epochs changed".to_owned()),
            () => None,
        };
        self.released = true;
        if still {
            self.node.remove(FILE)?;
        }
        Ok(Released { position, stall: self.since.elapsed().min(self.limit), broken })
    }
}

impl Drop for FakeHeld {
    fn drop(&mut self) {
        if !self.released {
            // It would end by itself soon; this is only sooner.
            let _ = self.node.remove(FILE);
        }
    }
}

/// Whether writes wait now.
pub(crate) fn held(node: &Node) -> bool {
    node.read_json::<HoldFile>(FILE).is_ok_and(|hold| hold.until > Instant::now())
}
