//! The daemon killed again and again under traffic: what it called durable is restored, and nothing is left behind.

use std::time::Duration;

use mainstay_cli::demo::traffic::{Holdings, SCHEMA, Traffic};

use crate::support::{Fleet, SMALL, ask, eventually, now, sandbox_uris};

#[test]
fn a_killed_daemon_loses_nothing() {
    let mut fleet = Fleet::new(SMALL);
    fleet.ok(&["up"]);
    let (orders, stock) = (fleet.uris("orders"), fleet.uris("stock"));
    ask(&orders[0], SCHEMA);
    let traffic = Traffic::start(&orders[0], &stock[0], 2, Duration::from_millis(2));
    for round in 0..8_u64 {
        fleet.serve(&["serve"]);
        // Not synchronisation: the moments at which it is killed are to be many different ones.
        std::thread::sleep(Duration::from_millis(300 + 370 * round));
        fleet.kill_servers();
    }
    fleet.serve(&["serve"]);
    let during = now();
    fleet.wait_window(&["orders", "stock"], &during);
    let point = fleet.ok(&["point", "shop"]);
    traffic.stop();
    let restored = fleet.ok(&["recover", "run", "shop", "--point", point["point"].as_str().unwrap()]);
    let held =
        Holdings::read(&sandbox_uris(&restored, "orders")[0], &sandbox_uris(&restored, "stock")).unwrap();
    assert!(held.rows.len() > 100, "{} rows", held.rows.len());
    fleet.ok(&["recover", "drop", "--all"]);
    assert_eq!(fleet.stop_servers(), [0]);

    // Quiet now: the latest instant is the source itself.
    eventually("the logs are caught up", || fleet.run(&["serve", "--once"]).code == 0);
    let restored = fleet.ok(&["recover", "run", "shop", "--latest"]);
    let back =
        Holdings::read(&sandbox_uris(&restored, "orders")[0], &sandbox_uris(&restored, "stock")).unwrap();
    let source = Holdings::read(&orders[0], &stock).unwrap();
    assert_eq!((back.rows, back.keys), (source.rows, source.keys));
    assert_eq!(fleet.ok(&["backup", "verify"])["damaged"].as_array().map(Vec::len), Some(0));
}
