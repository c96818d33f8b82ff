//! Two daemons on one fleet: each thing is done once, and the one goes on where the other was killed.

use crate::support::{Fleet, SMALL, eventually, now};

#[test]
fn two_daemons_do_each_thing_once_and_stand_in_for_each_other() {
    let mut fleet = Fleet::new(&SMALL.replace("every: 1m, exact: { every: 5m, stall: 20ms }", "every: 3s"));
    fleet.ok(&["up"]);
    fleet.ask("orders", "CREATE TABLE t (id int);");
    fleet.serve(&["serve"]);
    let mut second = fleet.command(&["serve"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let began = now();
    fleet.wait_window(&["orders", "stock"], &began);
    eventually("some points are set", || points(&fleet).len() >= 3);
    // A snapshot more than a cluster needs is a full copy of it more.
    let listed = fleet.ok(&["backup", "list"]);
    for cluster in ["orders", "stock"] {
        let of = listed.as_array().unwrap().iter().filter(|row| row["cluster"] == cluster);
        assert_eq!(of.count(), 1, "{listed}");
    }
    let points = points(&fleet);
    let spaced = points.windows(2).all(|pair| pair[1] - pair[0] >= 2.9);
    assert!(spaced, "points were set twice: {points:?}");

    // Whoever had the logs and the points, both are killed in turn.
    fleet.kill_servers();
    fleet.ask("orders", "INSERT INTO t VALUES (1);");
    fleet.ask("stock", "SET k 1");
    let after = now();
    fleet.wait_window(&["orders", "stock"], &after);
    fleet.serve(&["serve"]);
    let _ = second.kill();
    let _ = second.wait();
    fleet.ask("orders", "INSERT INTO t VALUES (2);");
    let after = now();
    fleet.wait_window(&["orders", "stock"], &after);
    assert_eq!(fleet.stop_servers(), [0]);
    let windows = fleet.ok(&["recover", "window"]);
    for window in windows.as_array().unwrap() {
        assert_eq!(window["holes"].as_array().map(Vec::len), Some(0), "{windows}");
    }
    assert_eq!(fleet.ok(&["backup", "verify"])["damaged"].as_array().map(Vec::len), Some(0));

    // A damaged point keeps nobody from going to another.
    let folder = fleet.vault().join("points/small/local/shop");
    let mut ids: Vec<String> =
        folder.read_dir().unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    ids.sort();
    let first = folder.join(&ids[0]);
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    let damaged = fleet.exits(1, &["recover", "plan", "shop", "--point", &ids[0]]);
    assert!(damaged.stdout.contains(&ids[0]), "{}", damaged.stdout);
    fleet.ok(&["recover", "plan", "shop", "--point", ids.last().unwrap()]);
}

/// When the group's points were set, in seconds of the day, in order.
fn points(fleet: &Fleet) -> Vec<f64> {
    let folder = fleet.vault().join("points/small/local/shop");
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let seconds = |name: String| {
        let part = |from: usize, to: usize| name.get(from..to)?.parse::<f64>().ok();
        Some(part(9, 11)? * 3600.0 + part(11, 13)? * 60.0 + part(13, 18)? / 1000.0)
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut all: Vec<f64> = names.filter_map(seconds).collect();
    all.sort_by(f64::total_cmp);
    all
}
