//! `serve --once`, as from cron: each run makes all that was written before it restorable.

use crate::support::{Fleet, SMALL, ask, sandbox_uris};

#[test]
fn each_run_makes_all_before_it_restorable() {
    let fleet = Fleet::new(SMALL);
    fleet.ok(&["up"]);
    fleet.ask("orders", "CREATE TABLE t (id int);");
    for run in 1..=3 {
        fleet.ask("orders", &format!("INSERT INTO t VALUES ({run});"));
        fleet.ask("stock", &format!("SET k:{run} {run}"));
        if run == 2 {
            // A life that was left and came back has lost the places to follow on from.
            let done = fleet.ok(&["recover", "run", "stock", "--latest", "--into", "local", "--yes"]);
            fleet.ok(&["recover", "undo", done["sandbox"].as_str().unwrap(), "--yes"]);
        }
        fleet.ok(&["serve", "--once"]);
        let restored = fleet.ok(&["recover", "run", "shop", "--latest"]);
        let rows = ask(&sandbox_uris(&restored, "orders")[0], "SELECT count(*) FROM t;");
        let keys = ask(&sandbox_uris(&restored, "stock")[0], "DBSIZE");
        assert_eq!((rows, keys), (vec![run.to_string()], vec![run.to_string()]), "{restored}");
        assert!(restored["skew_ms"].as_f64().unwrap() < 60_000.0, "{restored}");
        fleet.ok(&["recover", "drop", "--all"]);
    }
}
