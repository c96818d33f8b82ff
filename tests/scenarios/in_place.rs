//! Restoring into the environment itself: the old data is kept, and can be brought back.

use crate::support::{Fleet, SMALL, eventually, now};

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
    assert_eq!(crate::support::ask(&uri[0], "SELECT count(*) FROM t;"), ["101"]);
}
