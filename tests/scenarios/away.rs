//! A daemon that is started while its vault is away keeps the logs on this machine, says so, and brings them to the vault when it is back.

use crate::support::{Fleet, SMALL, ask, eventually, now, sandbox_uris};

#[test]
fn a_daemon_started_without_its_vault_keeps_the_logs() {
    let mut fleet = Fleet::new(SMALL);
    fleet.ok(&["up"]);
    fleet.ask("orders", "CREATE TABLE t (id int);");
    fleet.serve(&["serve"]);
    // The first may be reached by a snapshot alone; the second has log behind it.
    fleet.wait_window(&["orders", "stock"], &now());
    fleet.wait_window(&["orders", "stock"], &now());
    assert_eq!(fleet.stop_servers(), [0]);

    let elsewhere = fleet.path().join("elsewhere");
    std::fs::rename(fleet.vault(), &elsewhere).unwrap();
    // Of this nothing is in the vault, and Redis keeps little for whoever comes later.
    fleet.ask("stock", "CONFIG SET repl-backlog-size 16384");
    fleet.serve(&["serve"]);
    eventually("it says so", || {
        let log = fleet.serve_log();
        log.contains("CANNOT BE USED") && log.matches("in the spool of this machine alone").count() >= 2
    });
    let (orders, stock) = (&fleet.uris("orders")[0], &fleet.uris("stock")[0]);
    for n in 0..100 {
        ask(orders, &format!("INSERT INTO t VALUES ({n});"));
        ask(stock, &format!("SET key-{n} {}", "x".repeat(500)));
    }
    assert!(!fleet.vault().join("format.json").exists(), "another vault was made");
    let health = fleet.exits(3, &["health"]);
    assert!(health.stdout.contains("its vault cannot be opened"), "{}", health.stdout);
    for writes in [&["backup", "run", "stock"][..], &["serve", "--once"]] {
        let refused = fleet.exits(1, writes);
        assert_eq!(refused.json["error"]["code"].as_str(), Some("vault-gone"), "{}", refused.stdout);
    }
    assert!(!fleet.vault().join("format.json").exists(), "another vault was made");

    // The daemon is killed, and the next one goes on from the spool.
    fleet.kill_servers();
    fleet.serve(&["serve"]);
    // As though a disk were mounted over what was there meanwhile.
    let _ = std::fs::remove_dir_all(fleet.vault());
    std::fs::rename(&elsewhere, fleet.vault()).unwrap();
    let after = now();
    fleet.wait_window(&["orders", "stock"], &after);
    assert_eq!(fleet.stop_servers(), [0]);
    let windows = fleet.ok(&["recover", "window"]);
    for window in windows.as_array().unwrap() {
        assert_eq!(window["holes"].as_array().map(Vec::len), Some(0), "{windows}");
    }
    let restored = fleet.ok(&["recover", "run", "shop", "--latest"]);
    let rows = ask(&sandbox_uris(&restored, "orders")[0], "SELECT count(*) FROM t;");
    assert_eq!(rows, ["100"]);
    let keys = ask(&sandbox_uris(&restored, "stock")[0], "DBSIZE");
    assert_eq!(keys, ["100"]);
}
