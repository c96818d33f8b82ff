//! Mainstay killed at any moment of bringing up, sandboxing and erasing: done again, it goes on, and nothing is left behind.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mainstay_engine::{Engine, Host, Quiet};
use mainstay_runtime::{Environment, Home, Sandbox, SandboxCluster};

use crate::sleeper::{SLEEPER, TestHome, fleet_in, name};

const NODES: u32 = 3;

/// One thing to be killed in.
async fn act(what: &str, home: &Home, base: &Path) {
    let fleet = fleet_in(base, NODES);
    let environment = Environment::open(home, &fleet).unwrap();
    let engines = [&SLEEPER as &dyn Engine];
    match what {
        "up" => drop(environment.up(&engines, None, &Quiet).await.unwrap()),
        "down" => drop(environment.down(&engines, false, &Quiet).await.unwrap()),
        "erase" => drop(environment.down(&engines, true, &Quiet).await.unwrap()),
        "sandbox" => {
            let cluster = SandboxCluster { cluster: &fleet.clusters["orders"], version: None };
            let made = Sandbox::create(home, "shop", "local", "prove", &[cluster], &engines).await.unwrap();
            let layout = made.layouts().unwrap().remove(0);
            SLEEPER.launch().unwrap().start(&layout, &made.host(&name("orders"))).await.unwrap();
            made.drop_all().await.unwrap();
        }
        other => panic!("{other}?"),
    }
}

/// Not a test by itself: what the next one kills.
#[tokio::test]
async fn helper_that_acts() {
    let Some(base) = std::env::var_os("MAINSTAY_TEST_BASE") else { return };
    let base = Path::new(&base);
    let home = Home::open(&base.join("home")).unwrap();
    writeln!(std::io::stdout(), "acting").unwrap();
    act(&std::env::var("MAINSTAY_TEST_ACT").unwrap(), &home, base).await;
}

fn kill_in(what: &str, base: &Path, after: Duration) {
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::helper_that_acts", "--nocapture"])
        .env("MAINSTAY_TEST_BASE", base)
        .env("MAINSTAY_TEST_ACT", what)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(helper.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("acting")));
    std::thread::sleep(after);
    helper.kill().unwrap();
    helper.wait().unwrap();
}

/// Processes that run in a folder of that home.
fn running_in(base: &Path) -> Vec<u32> {
    let within = |pid: &u32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(base.join("home")))
    };
    let pids = fs::read_dir("/proc").unwrap();
    pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(within).collect()
}

/// All that lies in the home, but for what is there from the first day.
fn left(home: &Home) -> Vec<String> {
    let mut left = Vec::new();
    for folder in ["nodes", "fleets", "run", "sandboxes"] {
        let entries = fs::read_dir(home.path().join(folder)).into_iter().flatten();
        left.extend(entries.map(|entry| format!("{folder}/{}", entry.unwrap().file_name().display())));
    }
    // Empty folders of a fleet are no harm, nor is half a file that was to replace another.
    left.retain(|path| path != "run/shop" && path != "fleets/shop" && !path.ends_with(".tmp"));
    left
}

#[tokio::test]
async fn killed_at_any_moment_it_goes_on_and_leaves_nothing() {
    let at = TestHome::new();
    let (home, base) = (&at.home, at.dir.path());
    let engines = [&SLEEPER as &dyn Engine];
    // About how long each takes here, whatever this machine is.
    let mut spans = Vec::new();
    for what in ["up", "down", "sandbox", "erase"] {
        let since = Instant::now();
        act(what, home, base).await;
        spans.push((what, since.elapsed()));
    }
    for round in 0..10_u32 {
        for (what, span) in &spans {
            if *what == "erase" {
                act("up", home, base).await;
            }
            kill_in(what, base, *span * round / 9);
            for sandbox in Sandbox::list(home).unwrap() {
                assert!(!sandbox.maker_alive());
                sandbox.drop_all().await.unwrap();
            }
            if round % 2 == 0 {
                // Went on with.
                act("up", home, base).await;
                let fleet = fleet_in(base, NODES);
                let environment = Environment::open(home, &fleet).unwrap();
                let host = environment.host(&name("orders"));
                let layout = environment.layout(&name("orders")).unwrap().unwrap();
                let mut pids: Vec<u32> =
                    layout.nodes.iter().filter_map(|node| host.running(&node.name)).collect();
                assert_eq!(pids.len(), 3, "{what}, round {round}");
                pids.sort_unstable();
                let mut there = running_in(base);
                there.sort_unstable();
                assert_eq!(there, pids, "{what}, round {round}: nothing runs that is not on record");
                environment.down(&engines, false, &Quiet).await.unwrap();
            }
            act("erase", home, base).await;
            assert_eq!(running_in(base), Vec::<u32>::new(), "{what}, round {round}");
            assert_eq!(left(home), Vec::<String>::new(), "{what}, round {round}");
        }
    }
}
