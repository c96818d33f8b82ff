//! Restoring into the environment itself, killed at every step.

use std::sync::Arc;
use std::time::Instant as Monotonic;

use mainstay_engine::{Quiet, Ttl};
use mainstay_recovery::inplace::{self, InPlaceOptions, begin, finish, resume, undo};
use mainstay_recovery::plan::{PlanOptions, Target, plan};
use mainstay_state::{Operation, Progress, State};

use crate::fake::{Values, is_running, read_node};
use crate::lab::*;

fn options() -> InPlaceOptions {
    InPlaceOptions {
        ttl: Ttl::Absolute,
        jobs: 2,
        began: Monotonic::now(),
        objectives: vec![],
        progress: Arc::new(Quiet),
    }
}

struct Scene {
    lab: Lab,
    local: Local,
    state: State,
    wanted: Values,
    target: Target,
}

const OLD: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 2];

impl Scene {
    async fn new() -> Self {
        let lab = Lab::new().await;
        lab.write(0, 10);
        lab.snapshot().await;
        let at = lab.write(100, 10);
        lab.write(200, 3);
        lab.follow().await;
        let wanted = lab.fake.world().values_at(at);
        let local = Local { dir: lab.dir.path().join("env"), clusters: vec![lab.of.cluster.clone()] };
        let state = State::open(&lab.dir.path().join("state.db")).unwrap();
        let scene = Self { lab, local, state, wanted, target: Target::At(at) };
        scene.reset();
        scene
    }

    /// The environment as it was before: running, with data of its own.
    fn reset(&self) {
        let _ = std::fs::remove_dir_all(&self.local.dir);
        let node = self.local.layout("orders").nodes[0].clone();
        std::fs::create_dir_all(node.data()).unwrap();
        std::fs::write(node.data().join("values"), OLD).unwrap();
        std::fs::write(node.dir.join("running"), b"").unwrap();
    }

    fn now(&self) -> (bool, Option<Values>) {
        let layout = self.local.layout("orders");
        (is_running(&layout), read_node(&layout))
    }

    async fn begin(&self) -> (Operation, mainstay_recovery::plan::Planned) {
        let members = std::slice::from_ref(&self.lab.of);
        let check = PlanOptions { check: true, ..PlanOptions::default() };
        let planned = plan(members, &self.target, &check).await.unwrap().accepted().unwrap();
        let operation = begin(&self.state, "orders into local", &planned, Ttl::Absolute).unwrap();
        (operation, planned)
    }

    fn old(&self) -> (bool, Option<Values>) {
        (true, Some(crate::fake::decode(OLD)))
    }

    fn new_one(&self) -> (bool, Option<Values>) {
        (true, Some(self.wanted.clone()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_done_and_then_finished_or_undone() {
    let scene = Scene::new().await;
    let members = [scene.lab.of.clone()];
    for finishes in [false, true] {
        scene.reset();
        let (operation, planned) = scene.begin().await;
        assert!(finish(&operation, &scene.local).await.is_err());
        inplace::run(&operation, &planned, &scene.local, &options()).await.unwrap();
        assert_eq!(scene.now(), scene.new_one());
        assert_eq!(operation.row().unwrap().progress, Progress::Done);
        match finishes {
            true => {
                finish(&operation, &scene.local).await.unwrap();
                finish(&operation, &scene.local).await.unwrap();
                assert!(undo(&operation, &members, &scene.local).await.is_err());
                assert!(resume(&operation, &members, &scene.local, &options()).await.is_err());
                assert_eq!(scene.now(), scene.new_one());
            }
            false => {
                undo(&operation, &members, &scene.local).await.unwrap();
                undo(&operation, &members, &scene.local).await.unwrap();
                assert!(finish(&operation, &scene.local).await.is_err());
                assert_eq!(scene.now(), scene.old());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_survives_a_kill_at_every_await() {
    let scene = Scene::new().await;
    let members = [scene.lab.of.clone()];
    let mut polls = 0;
    loop {
        polls += 1;
        scene.reset();
        let (operation, planned) = scene.begin().await;
        let first = killed_after(polls, inplace::run(&operation, &planned, &scene.local, &options())).await;
        let ended = match first {
            Some(done) => done.map(|_| ()).map(|()| true).unwrap(),
            None => false,
        };
        // In turn: gone on with, undone, killed again while it is undone.
        let again =
            State::open(&scene.lab.dir.path().join("state.db")).unwrap().resume(operation.id()).unwrap();
        match polls % 3 {
            0 => {
                resume(&again, &members, &scene.local, &options()).await.unwrap();
                assert_eq!(scene.now(), scene.new_one(), "resumed after {polls}");
            }
            1 => {
                undo(&again, &members, &scene.local).await.unwrap();
                assert_eq!(scene.now(), scene.old(), "undone after {polls}");
            }
            _ => {
                for _ in 0..3 {
                    killed_after(polls % 7, undo(&again, &members, &scene.local)).await;
                }
                undo(&again, &members, &scene.local).await.unwrap();
                assert_eq!(scene.now(), scene.old(), "undone again after {polls}");
            }
        }
        if ended {
            break;
        }
    }
    assert!(polls > 10, "{polls} is too few to have tried anything");
}

/// Futures of this crate are run on several threads.
#[expect(dead_code, reason = "compiling it is the test")]
fn futures_are_send(operation: &Operation, scene: &Scene, planned: &mainstay_recovery::plan::Planned) {
    fn check(_: impl Send) {}
    let members = std::slice::from_ref(&scene.lab.of);
    check(inplace::run(operation, planned, &scene.local, &options()));
    check(undo(operation, members, &scene.local));
    check(finish(operation, &scene.local));
    check(resume(operation, members, &scene.local, &options()));
    check(plan(members, &scene.target, &PlanOptions::default()));
    check(backup(&scene.lab.of));
    check(run(planned, &scene.local.dir));
    check(mainstay_recovery::prove::prove(members, &scene.target, &Folders::new(), &prove_options("p")));
    check(mainstay_recovery::prune::prune(&scene.lab.of, mainstay_recovery::prune::GRACE, "test"));
    check(mainstay_recovery::window::window(&scene.lab.of));
}
