//! What a link of ours costs the source, and how soon it has what was written.

use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use async_trait::async_trait;
use bytes::Bytes;
use mainstay_engine::*;
use mainstay_engine_kit::memory::{MemoryLog, MemoryLogSink};
use mainstay_model::{Bracket, Branch, Place};
use tokio::sync::Notify;

use crate::world::*;

/// A spool that hangs in one of its calls.
struct Stuck {
    sink: MemoryLogSink,
    hangs_in: &'static str,
    began: Arc<Notify>,
}

impl Stuck {
    async fn pass(&self, call: &str) {
        if call == self.hangs_in {
            self.began.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl LogSink for Stuck {
    async fn append(&self, chunk: Chunk) -> Result<()> {
        self.pass("append").await;
        self.sink.append(chunk).await
    }
    async fn sync(&self) -> Result<Place> {
        self.pass("sync").await;
        self.sink.sync().await
    }
    async fn branch(&self, branch: Branch, history: Option<Bytes>) -> Result<()> {
        self.sink.branch(branch, history).await
    }
    async fn beat(&self, at: &Place, time: Bracket) -> Result<()> {
        self.pass("beat").await;
        self.sink.beat(at, time).await
    }
    fn vaulted(&self) -> Option<Place> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_hangs_ends_the_link_and_holds_up_no_shutdown() {
    let world = World::new("15");
    tokio::join!(hang(&world, "append"), hang(&world, "sync"), hang(&world, "beat"));
}

async fn hang(world: &World, call: &'static str) {
    // The server itself would wait for us for ever.
    let layout = world.up(call, 1, &[("fsync", "off"), ("wal_sender_timeout", "0")]).await;
    let from = world.engine.tip(&layout.access(), &lane()).await.unwrap();
    let begin = || {
        let began = Arc::new(Notify::new());
        let sink = MemoryLog::new().sink(&lane(), &from);
        let sink = Stuck { sink, hangs_in: call, began: Arc::clone(&began) };
        let (engine, access, from) = (Arc::clone(&world.engine), layout.access(), from.clone());
        let link = tokio::spawn(async move {
            let Err(error) = Follow::follow(&*engine, &access, &lane(), &from, &sink).await;
            error
        });
        (link, began)
    };
    let (link, _) = begin();
    let error = tokio::time::timeout(PATIENCE, link).await.expect(call).unwrap();
    assert_eq!(error.kind, Kind::SpoolFull, "{call}: {error}");

    let (link, began) = begin();
    tokio::time::timeout(PATIENCE, began.notified()).await.expect(call);
    let stopping = Clock::now();
    world.engine.stop(&layout, &world.host).await.unwrap();
    // A stop by force comes after 60 s.
    assert!(stopping.elapsed() < Duration::from_secs(40), "{call}: {:?}", stopping.elapsed());
    tokio::time::timeout(PATIENCE, link).await.expect(call).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_on_an_idle_source_is_followed_at_once() {
    let world = World::new("15");
    let layout = world.up("orders", 1, &[("wal_writer_delay", "10s"), ("autovacuum", "off")]).await;
    let access = layout.access();
    let tip = world.engine.tip(&access, &lane()).await.unwrap();
    let follower = Follower::begin(&world, access.clone(), tip);
    // The server's own next flush may be near by chance, once.
    for mark in ["one", "two", "three"] {
        let marked = Mark::mark(&*world.engine, &access, mark).await.unwrap();
        let place = position(&marked.position);
        follower.log.wait_for(&lane(), &place, Duration::from_secs(4)).await.unwrap();
    }
    world.host.kill("orders-1");
}
