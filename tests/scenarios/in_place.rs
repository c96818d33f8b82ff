//! Restoring into the environment itself: the old data is kept, and can be brought back.

use crate::support::{Fleet, SMALL, ask, eventually, now};

#[test]
fn an_environment_is_replaced_undone_and_finished() {
    let mut fleet = Fleet::new(SMALL);
    fleet.ok(&["up"]);
    fleet.ask("orders", "CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 100);");
    fleet.ask("stock", "SET k before");
    fleet.serve(&["serve"]);
    eventually("both clusters have a snapshot", || {
        let rows = fleet.ok(&["backup", "list"]);
        let rows = rows.as_array().unwrap();
        ["orders", "stock"].iter().all(|c| rows.iter().any(|r| r["cluster"] == *c))
    });
    let before = now();
    fleet.wait_window(&["orders", "stock"], &before);
    fleet.ask("orders", "DELETE FROM t WHERE id > 10;");
    fleet.ask("stock", "SET k after");
    let given_up = now();

    // Without consent nothing happens.
    let refused =
        fleet.run(&["recover", "run", "shop", "--at", &before, "--into", "local", "--ttl", "absolute"]);
    assert_ne!(refused.code, 0);
    assert_eq!(fleet.ask("stock", "GET k"), ["after"]);

    let run = ["recover", "run", "shop", "--at", &before, "--into", "local", "--ttl", "absolute", "--yes"];
    let done = fleet.ok(&run);
    assert_eq!(fleet.ask("orders", "SELECT count(*) FROM t;"), ["100"]);
    assert_eq!(fleet.ask("stock", "GET k"), ["before"]);

    let operation = done["sandbox"].as_str().unwrap();
    fleet.ok(&["recover", "undo", operation, "--yes"]);
    assert_eq!(fleet.ask("orders", "SELECT count(*) FROM t;"), ["10"]);
    assert_eq!(fleet.ask("stock", "GET k"), ["after"]);

    let done = fleet.ok(&run);
    fleet.ok(&["recover", "finish", done["sandbox"].as_str().unwrap(), "--yes"]);
    assert_eq!(fleet.ask("orders", "SELECT count(*) FROM t;"), ["100"]);

    // The new life is protected as the old one was, and the old one can still be reached.
    fleet.ask("orders", "INSERT INTO t VALUES (1000);");
    let later = now();
    fleet.wait_window(&["orders", "stock"], &later);
    let restored = fleet.ok(&["recover", "run", "orders", "--latest"]);
    let uri = crate::support::sandbox_uris(&restored, "orders");
    assert_eq!(ask(&uri[0], "SELECT count(*) FROM t;"), ["101"]);
    // What was given up is no instant of the group any more: one of its clusters would answer from what survived, the other from what did not.
    let refused = fleet.exits(1, &["recover", "run", "shop", "--at", &given_up]);
    assert_eq!(refused.json["error"]["code"], "given-up", "{}", refused.stdout);
}

#[test]
fn undoing_brings_back_who_was_the_master() {
    let mut fleet = Fleet::new(
        r#"fleet: pair
environments: { local: { hosts: local } }
vaults: { main: { url: "file:vault" } }
clusters:
  stock: { engine: redis, nodes: 2, backup: { follow: true } }
"#,
    );
    fleet.ok(&["up"]);
    let stock = fleet.uris("stock");
    ask(&stock[0], "SET k before");
    fleet.serve(&["serve"]);
    let began = now();
    fleet.wait_window(&["stock"], &began);
    let first = now();
    fleet.wait_window(&["stock"], &first);

    // The master dies, and what the promoted replica has from then on, the dead one lacks.
    let info = ask(&stock[0], "INFO server");
    let pid = info.iter().find_map(|l| l.strip_prefix("process_id:")).expect("process_id").to_owned();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    ask(&stock[1], "REPLICAOF NO ONE");
    ask(&stock[1], "SET k after");
    let run = ["recover", "run", "stock", "--at", &first, "--into", "local", "--ttl", "absolute", "--yes"];
    let done = fleet.ok(&run);
    assert_eq!(fleet.ask("stock", "GET k"), ["before"]);
    fleet.ok(&["recover", "undo", done["sandbox"].as_str().unwrap(), "--yes"]);
    assert_eq!(fleet.ask("stock", "GET k"), ["after"]);
    eventually("both nodes have it", || fleet.uris("stock").iter().all(|uri| ask(uri, "GET k") == ["after"]));
}
