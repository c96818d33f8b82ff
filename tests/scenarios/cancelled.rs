//! Ctrl-C ends a restore wherever it is, and what it began is gone when the command has ended.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Fleet, SMALL};

#[test]
fn a_restore_that_is_stopped_leaves_nothing() {
    let fleet = Fleet::new(SMALL);
    fleet.ok(&["up"]);
    fleet.ask("orders", "CREATE TABLE t AS SELECT generate_series(1, 100000) AS id;");
    fleet.ok(&["serve", "--once"]);
    let mut stopped = 0;
    for after_ms in [200, 500, 800, 1100, 1400, 1700, 2000] {
        let mut prove = fleet.command(&["prove", "shop"]);
        let mut prove = prove.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The moment, not something waited for.
        std::thread::sleep(Duration::from_millis(after_ms));
        let told = Command::new("kill").args(["-INT", &prove.id().to_string()]).status().unwrap();
        let ended = prove.wait().unwrap();
        stopped += usize::from(told.success() && !ended.success());
        let left: Vec<_> = match std::fs::read_dir(fleet.path().join("home/sandboxes")) {
            Ok(entries) => entries.flatten().map(|entry| entry.file_name()).collect(),
            Err(_) => vec![],
        };
        assert!(left.is_empty(), "after {after_ms} ms: {left:?}");
    }
    assert!(stopped > 0, "none was stopped in time");
    // Nothing of them stands in the way of the next.
    assert_eq!(fleet.ok(&["prove", "shop"])["differences"], serde_json::json!([]));
}
