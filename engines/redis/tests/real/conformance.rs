//! The suite that every adapter passes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use mainstay_engine::{Engine, Host, Layout};
use mainstay_engine_kit::conformance::{self, Content};

use crate::kit::{Client, Fixture, Reply, Sandbox, Shape, Shared, TestHost, VERSIONS, at_once, until};

struct Suite {
    fixture: Fixture,
    /// The sandboxes' servers, by the folder of their first node.
    hosts: Mutex<BTreeMap<std::path::PathBuf, Arc<TestHost>>>,
}

impl Suite {
    fn new(version: &str) -> Suite {
        let fixture = Fixture::prepare(version, Shape::Replicated(1), &[]);
        Suite { fixture, hosts: Mutex::default() }
    }

    /// A client of the master.
    fn master(&self, layout: &Layout) -> Client {
        let clients = layout
            .nodes
            .iter()
            .filter(|node| conformance::Fixture::host(self, layout).running(&node.name).is_some());
        let mut clients = clients.map(|node| Client::connect(node.ports[0]));
        clients.find_map(|mut client| (client.info("role") == "master").then_some(client)).expect("a master")
    }
}

fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
    let task = tokio::task::spawn_blocking(work);
    async { task.await.unwrap() }
}

#[async_trait]
impl conformance::Fixture for Suite {
    fn engine(&self) -> &dyn Engine {
        &self.fixture.redis
    }

    async fn start(&self) -> Layout {
        let launch = self.engine().launch().unwrap();
        launch.start(&self.fixture.layout, &*self.fixture.host).await.unwrap();
        self.fixture.layout.clone()
    }

    async fn sandbox(&self, _of: &Layout) -> Layout {
        let Sandbox { host, layout } = self.fixture.sandbox();
        self.hosts.lock().unwrap().insert(layout.nodes[0].dir.clone(), host);
        layout
    }

    fn host(&self, layout: &Layout) -> Box<dyn Host> {
        let hosts = self.hosts.lock().unwrap();
        let host = hosts.get(&layout.nodes[0].dir).unwrap_or(&self.fixture.host);
        Box::new(Shared(Arc::clone(host)))
    }

    async fn set(&self, layout: &Layout, key: &str, value: &str) {
        let mut client = self.master(layout);
        let (key, value) = (key.to_owned(), value.to_owned());
        // A write may be held.
        on_thread(move || client.run(&["SET", &key, &value])).await;
    }

    async fn delete(&self, layout: &Layout, key: &str) {
        self.master(layout).run(&["DEL", key]);
    }

    async fn content(&self, layout: &Layout) -> Content {
        let mut client = self.master(layout);
        let keys = client.run(&["KEYS", "*"]).texts();
        keys.into_iter().map(|key| (key.clone(), client.run(&["GET", &key]).text())).collect()
    }

    async fn fail_over(&self, layout: &Layout) -> bool {
        let mut replica = Client::connect(layout.nodes[1].ports[0]);
        let mut master = Client::connect(layout.nodes[0].ports[0]);
        assert_eq!(master.run(&["WAIT", "1", "0"]), Reply::Int(1));
        self.fixture.host.crash(&layout.nodes[0].name);
        replica.run(&["REPLICAOF", "NO", "ONE"]);
        until("a promotion", || replica.info("role") == "master").await;
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_adapter_keeps_the_contract() {
    at_once(VERSIONS, |version| async move { conformance::run(&Suite::new(version)).await }).await;
}
