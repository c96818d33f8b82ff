//! A primary killed and a replica promoted while we follow: the window goes on.

use crate::support::{Fleet, SHOP, ask, eventually, now, sandbox_uris};

#[test]
fn a_promoted_standby_carries_the_window_on() {
    let mut fleet = Fleet::new(SHOP);
    fleet.ok(&["up"]);
    let orders = fleet.uris("orders");
    ask(&orders[0], "CREATE TABLE t (id int);");
    fleet.serve(&["serve"]);
    let first = now();
    fleet.wait_window(&["orders", "stock"], &first);
    ask(&orders[0], "INSERT INTO t SELECT generate_series(1, 50);");
    eventually("the standby has it", || ask(&orders[1], "SELECT count(*) FROM t;") == ["50"]);
    let before = now();
    fleet.wait_window(&["orders"], &before);

    // The primary dies, the standby is promoted.
    let pid = ask(&orders[0], "SELECT pg_read_file('postmaster.pid');")[0].clone();
    kill(&pid);
    ask(&orders[1], "SELECT pg_promote(true, 60);");
    eventually("the standby takes writes", || {
        ask(&orders[1], "INSERT INTO t SELECT generate_series(51, 80) RETURNING 1;").len() == 30
    });
    let after = now();
    fleet.wait_window(&["orders"], &after);

    for (target, rows) in [(&before, "50"), (&after, "80")] {
        let restored = fleet.ok(&["recover", "run", "orders", "--at", target]);
        let found = ask(&sandbox_uris(&restored, "orders")[0], "SELECT count(*) FROM t;");
        assert_eq!(found, [rows], "at {target}");
        fleet.ok(&["recover", "drop", restored["sandbox"].as_str().unwrap()]);
    }
    let window = fleet.ok(&["recover", "window", "orders"]);
    assert!(window[0]["from"].as_str().unwrap() < before.as_str(), "the window began anew: {window}");
}

#[test]
fn a_promoted_redis_replica_carries_the_window_on() {
    let mut fleet = Fleet::new(SHOP);
    fleet.ok(&["up", "stock"]);
    let stock = fleet.uris("stock");
    let set = |from: u32, to: u32| {
        let mut client = mainstay_cli::demo::client::Client::open(&stock[1]).unwrap();
        for n in from..to {
            client.must(&format!("SET key:{n} {n}")).unwrap();
        }
    };
    set(0, 300);
    fleet.serve(&["serve"]);
    let first = now();
    fleet.wait_window(&["stock"], &first);
    set(300, 600);
    let before = settled(&fleet);

    let info = ask(&stock[0], "INFO server");
    let pid = info.iter().find_map(|l| l.strip_prefix("process_id:")).expect("process_id").to_owned();
    kill(&pid);
    eventually("a replica was promoted", || {
        let mut client = mainstay_cli::demo::client::Client::open(&stock[1]).unwrap();
        client.must("CLUSTER INFO").is_ok_and(|l| l.iter().any(|l| l == "cluster_state:ok"))
            && (0..20).all(|n| client.must(&format!("SET probe:{n} 1")).is_ok())
    });
    set(600, 900);
    let after = settled(&fleet);
    for (target, keys) in [(&before, 600), (&after, 900)] {
        let restored = fleet.ok(&["recover", "run", "stock", "--at", target]);
        let uris = sandbox_uris(&restored, "stock");
        let found: usize =
            uris.iter().map(|uri| ask(uri, "KEYS key:*").iter().filter(|l| l.contains("key:")).count()).sum();
        assert_eq!(found, keys, "at {target}");
        fleet.ok(&["recover", "drop", restored["sandbox"].as_str().unwrap()]);
    }
}

/// An instant that surely lies behind all that was written: Redis's log has no times but those that are read from it ten times a second.
fn settled(fleet: &Fleet) -> String {
    let written = now();
    fleet.wait_window(&["stock"], &written);
    let instant = now();
    fleet.wait_window(&["stock"], &instant);
    instant
}

fn kill(pid: &str) {
    let status = std::process::Command::new("kill").args(["-KILL", pid]).status().unwrap();
    assert!(status.success());
}
