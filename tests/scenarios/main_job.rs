//! The main job: a fleet of PostgreSQL and Redis, brought back to one instant and proven.

use std::time::Duration;

use mainstay_cli::demo::traffic::{Holdings, SCHEMA, Traffic};

use crate::support::{Fleet, SHOP, ask, eventually, now, sandbox_uris};

#[test]
fn a_group_comes_back_to_one_instant() {
    let mut fleet = Fleet::new(SHOP);
    fleet.ok(&["up"]);
    let (orders, stock) = (fleet.uris("orders"), fleet.uris("stock"));
    assert_eq!((orders.len(), stock.len()), (2, 6));
    ask(&orders[0], SCHEMA);
    for cluster in ["orders", "stock"] {
        let run = fleet.ok(&["backup", "run", cluster]);
        assert!(run["bytes_read"].as_u64().unwrap() > 0, "{run}");
        assert!(
            run["position"].as_object().unwrap().values().all(|p| p.as_str().unwrap().contains(':')),
            "{run}"
        );
    }
    fleet.serve(&["serve"]);
    let traffic = Traffic::start(&orders[0], &stock[0], 3, Duration::ZERO);
    eventually("the shop takes orders", || {
        traffic.counts().withdrawn.load(std::sync::atomic::Ordering::Relaxed) > 500
    });

    let points: Vec<_> = (0..4).map(|_| fleet.ok(&["point", "shop", "--exact"])).collect();
    let before = now();
    fleet.wait_window(&["orders", "stock"], &before);
    traffic.stop();
    let exact: Vec<_> = points.iter().filter(|p| p["exact"] == true).collect();
    assert!(!exact.is_empty(), "no exact point among {points:?}");
    for point in &exact {
        assert!(point["stall_ms"].as_f64().unwrap() >= 0.0 && point["skew_ms"].as_f64().is_some(), "{point}");
    }

    // Somebody drops the table and flushes Redis.
    ask(&orders[0], "DROP TABLE orders;");
    for uri in &stock[..3] {
        ask(uri, "FLUSHALL");
    }

    let point = exact[0]["point"].as_str().unwrap();
    let restored = fleet.ok(&["recover", "run", "shop", "--point", point, "--into", "sandbox"]);
    let held =
        Holdings::read(&sandbox_uris(&restored, "orders")[0], &sandbox_uris(&restored, "stock")).unwrap();
    assert!(!held.rows.is_empty() && !held.keys.is_empty());
    assert_eq!(held.dangling(), 0, "an exact point left keys without rows");
    assert!(restored["rto_seconds"].as_f64().unwrap() > 0.0);
    let sandbox = restored["sandbox"].as_str().unwrap();
    assert!(fleet.ok(&["recover", "list"]).as_array().unwrap().iter().any(|row| row["id"] == sandbox));
    fleet.ok(&["recover", "drop", sandbox]);

    // Any second in between: none beyond the skew, which on one machine is the sampling of Redis's clock.
    let at = exact.last().unwrap()["at"].as_str().unwrap();
    let restored = fleet.ok(&["recover", "run", "shop", "--at", at]);
    let held =
        Holdings::read(&sandbox_uris(&restored, "orders")[0], &sandbox_uris(&restored, "stock")).unwrap();
    assert!(!held.rows.is_empty());
    fleet.ok(&["recover", "drop", restored["sandbox"].as_str().unwrap()]);

    let proof = fleet.ok(&["prove", "shop", "--point", point]);
    assert_eq!(proof["differences"].as_array().map(Vec::len), Some(0), "{proof}");
    assert!(proof["checks"].as_array().unwrap().len() > 2, "{proof}");
    assert_eq!(fleet.stop_servers(), [0]);
    assert_eq!(fleet.ok(&["backup", "verify"])["damaged"].as_array().map(Vec::len), Some(0));
    let listed = fleet.ok(&["backup", "list"]);
    assert!(listed.as_array().unwrap().iter().any(|s| s["state"] == "proven"), "{listed}");
}
