//! A cluster that was taken out of the fleet file keeps its backups, and is listed and pruned by name; what a group cannot have.

use std::time::Duration;

use crate::support::{Fleet, SMALL, eventually};

#[test]
fn a_cluster_that_is_gone_is_listed_and_pruned_by_name() {
    let fleet = Fleet::new(SMALL);
    let early = fleet.command(&["follow", "stock"]);
    assert!(never_up(early).contains("mainstay up"));
    fleet.ok(&["up"]);
    eventually("serve --once does what is due", || fleet.run(&["serve", "--once"]).code == 0);

    // A group is told one instant, which all of its members can do.
    let refused = fleet.exits(1, &["recover", "plan", "shop", "--at", "2199-01-01T00:00:00Z"]);
    let hint = refused.json["error"]["hint"].as_str().unwrap();
    assert_eq!(hint.matches("--at ").count(), 1, "{hint}");
    let at = hint.split("--at ").nth(1).unwrap().split([',', ' ']).next().unwrap();
    fleet.ok(&["recover", "plan", "shop", "--at", at]);
    let refused = fleet.exits(1, &["recover", "plan", "shop", "--at", "1999-01-01T00:00:00Z"]);
    let hint = refused.json["error"]["hint"].as_str().unwrap();
    assert_eq!(hint.matches("--at ").count(), 1, "{hint}");

    // Without consent nothing is replaced; the plan says what becomes of times to live, where there are any.
    let asked = fleet.exits(2, &["recover", "run", "shop", "--latest", "--into", "local"]);
    assert!(asked.stderr.contains("(shift)"), "{}", asked.stderr);
    assert_eq!(asked.json["error"]["code"].as_str(), Some("not-confirmed"));
    let asked = fleet.exits(2, &["recover", "run", "orders", "--latest", "--into", "local"]);
    assert!(!asked.stderr.contains("(shift)"), "{}", asked.stderr);

    // The servers that were brought up are stopped by the file that names them.
    let file = fleet.path().join("fleet.yaml");
    let without: String =
        SMALL.lines().filter(|l| !l.contains("  orders:")).map(|l| format!("{l}\n")).collect();
    std::fs::write(&file, without.replace("[orders, stock]", "[stock]")).unwrap();
    let list = fleet.run(&["backup", "list", "orders"]);
    let dry = fleet.run(&["backup", "prune", "orders", "--dry-run"]);
    let unsure = fleet.run(&["backup", "prune", "orders"]);
    let first = fleet.run(&["backup", "prune", "orders", "--yes", "--grace", "1s"]);
    std::thread::sleep(Duration::from_secs(2));
    let second = fleet.run(&["backup", "prune", "orders", "--yes", "--grace", "1s"]);
    let nobody = fleet.run(&["backup", "prune", "nobody", "--dry-run"]);
    let stock = fleet.run(&["backup", "list"]);
    std::fs::write(&file, SMALL).unwrap();

    assert_eq!(list.code, 0, "{}", list.stderr);
    let rows = list.json.as_array().unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|r| r["cluster"] == "orders"), "{}", list.stdout);
    assert_eq!(dry.json["marked"].as_array().map(Vec::len), Some(rows.len()), "{}{}", dry.stdout, dry.stderr);
    assert_eq!(unsure.code, 2, "{}", unsure.stderr);
    assert_eq!((first.code, second.code), (0, 0), "{}{}", first.stderr, second.stderr);
    assert!(second.json["objects_deleted"].as_u64().unwrap() > 0, "{}", second.stdout);
    assert_eq!(nobody.json["error"]["code"].as_str(), Some("unknown-name"), "{}", nobody.stdout);
    assert!(nobody.json["error"]["hint"].as_str().unwrap().contains("stock"));
    assert!(stock.json.as_array().is_some_and(|rows| !rows.is_empty()), "{}", stock.stdout);
    assert!(fleet.ok(&["backup", "list"]).as_array().unwrap().iter().all(|r| r["cluster"] == "stock"));
}

/// What `follow` says that was stopped after a while.
fn never_up(mut follow: std::process::Command) -> String {
    let child = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let _ = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
}
