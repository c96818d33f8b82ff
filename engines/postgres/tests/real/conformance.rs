//! The suite that every adapter passes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use mainstay_engine::*;
use mainstay_engine_kit::conformance::{self, Content, Fixture};
use mainstay_postgres::connect;

use crate::world::*;

struct Postgres {
    world: World,
    sandboxes: AtomicU32,
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_an_engine() {
    conformance::run(&Postgres { world: World::new("15"), sandboxes: AtomicU32::new(0) }).await;
}

impl Postgres {
    async fn primary(&self, layout: &Layout) -> tokio_postgres::Client {
        connect::primary(&layout.access()).await.unwrap().sql
    }
}

#[async_trait]
impl Fixture for Postgres {
    fn engine(&self) -> &dyn Engine {
        &*self.world.engine
    }

    async fn start(&self) -> Layout {
        let layout = self.world.up("kv", 2, &[]).await;
        sql(&layout, 0)
            .await
            .batch_execute("CREATE TABLE kv (key text PRIMARY KEY, value text)")
            .await
            .unwrap();
        layout
    }

    async fn sandbox(&self, _: &Layout) -> Layout {
        let number = self.sandboxes.fetch_add(1, Ordering::Relaxed);
        self.world.layout(&format!("sandbox{number}"), 1, &[], true)
    }

    fn host(&self, _: &Layout) -> Box<dyn Host> {
        Box::new(self.world.host.clone())
    }

    async fn set(&self, layout: &Layout, key: &str, value: &str) {
        let client = self.primary(layout).await;
        let query = "INSERT INTO kv VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        client.execute(query, &[&key, &value]).await.unwrap();
    }

    async fn delete(&self, layout: &Layout, key: &str) {
        self.primary(layout).await.execute("DELETE FROM kv WHERE key = $1", &[&key]).await.unwrap();
    }

    async fn content(&self, layout: &Layout) -> Content {
        let rows = self.primary(layout).await.query("SELECT key, value FROM kv", &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect::<BTreeMap<_, _>>()
    }

    async fn fail_over(&self, layout: &Layout) -> bool {
        let (primary, standby) = (sql(layout, 0).await, sql(layout, 1).await);
        let end = one(&primary, "SELECT pg_current_wal_flush_lsn()").await;
        // The standby has all, and a slot of ours.
        let query = format!(
            "SELECT pg_last_wal_replay_lsn() >= '{end}' AND EXISTS (SELECT 1 FROM pg_replication_slots \
             WHERE slot_name LIKE 'mainstay_%' AND restart_lsn IS NOT NULL)"
        );
        until_is(&standby, &query, "t").await;
        self.world.host.kill(&layout.nodes[0].name);
        standby.batch_execute("SELECT pg_promote(true, 60)").await.unwrap();
        until_is(&standby, "SELECT pg_is_in_recovery()", "f").await;
        true
    }
}
