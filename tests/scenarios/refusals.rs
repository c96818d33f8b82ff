//! What cannot be had is refused before anything is touched, and says what can be had instead.

use crate::support::{Fleet, SMALL, eventually};

#[test]
fn damage_and_impossible_targets_are_refused() {
    let fleet = Fleet::new(SMALL);
    let missing = fleet.exits(1, &["recover", "run", "orders", "--latest"]);
    assert!(missing.json["error"]["hint"].as_str().is_some_and(|h| !h.is_empty()), "{}", missing.stdout);
    fleet.ok(&["up"]);
    fleet.ask("orders", "CREATE TABLE t AS SELECT generate_series(1, 10000) AS id;");
    eventually("serve --once does what is due", || fleet.run(&["serve", "--once"]).code == 0);

    for target in ["1999-01-01T00:00:00Z", "2199-01-01T00:00:00Z"] {
        let refused = fleet.exits(1, &["recover", "run", "orders", "--at", target]);
        assert!(
            refused.stderr.trim_end().lines().last().unwrap().starts_with("next: "),
            "{}",
            refused.stderr
        );
    }
    let none = fleet.ok(&["recover", "list"]);
    assert_eq!(none.as_array().map(Vec::len), Some(0), "a refused restore left something: {none}");
    fleet.exits(2, &["recover", "run", "orders", "--at", "yesterday"]);
    fleet.exits(2, &["recover", "run", "nobody", "--latest"]);

    // A home without the identity lists, but does not restore.
    let other = fleet
        .command_in("other", &["--output", "json", "recover", "plan", "orders", "--latest"])
        .output()
        .unwrap();
    assert!(!other.status.success());

    // A flipped bit anywhere in the snapshot's packs is found by verify and by restore, and named.
    assert_eq!(fleet.ok(&["backup", "verify"])["damaged"].as_array().map(Vec::len), Some(0));
    let pack = biggest(&fleet.vault());
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&pack, bytes).unwrap();
    let found = fleet.exits(3, &["backup", "verify"]);
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert!(found.json["damaged"][0]["object"].as_str().unwrap().contains(name), "{}", found.stdout);
    let refused = fleet.exits(1, &["recover", "run", "orders", "--latest"]);
    assert!(refused.json["error"]["message"].as_str().unwrap().contains(name), "{}", refused.stdout);
    let next = refused.stderr.trim_end().lines().last().unwrap();
    assert!(next.starts_with("next: ") && next.contains("mainstay backup run orders"), "{}", refused.stderr);
    // A snapshot since then takes nothing over from what is damaged, and is begun with; the damaged one only if it is named.
    let taken = fleet.ok(&["backup", "run", "orders"]);
    let id = taken["snapshot"].as_str().unwrap();
    let unknown = fleet.exits(1, &["recover", "plan", "orders", "--latest", "--snapshot", "nothing"]);
    assert!(unknown.json["error"]["message"].as_str().unwrap().contains("nothing"), "{}", unknown.stdout);
    let planned = fleet.ok(&["recover", "plan", "orders", "--latest"]);
    assert_eq!(planned["clusters"][0]["snapshot"].as_str(), Some(id));
    fleet.ok(&["recover", "run", "orders", "--latest"]);
    fleet.ok(&["recover", "drop", "--all"]);
    let rows = fleet.ok(&["backup", "list", "orders"]);
    let damaged =
        rows.as_array().unwrap().iter().find(|row| row["state"] == "damaged").expect("a damaged one");
    let its_time = damaged["taken_at"].as_str().unwrap();
    // Cut short, it is refused before anything is made.
    let length = std::fs::metadata(&pack).unwrap().len();
    std::fs::File::options().write(true).open(&pack).unwrap().set_len(length - 1).unwrap();
    let refused = fleet.exits(1, &["recover", "plan", "orders", "--at", its_time]);
    let message = refused.json["error"]["message"].as_str().unwrap();
    assert!(message.contains(name) && message.contains("bytes"), "{}", refused.stdout);

    // Without its format a vault is damaged, and no other is made over it.
    std::fs::remove_file(fleet.vault().join("format.json")).unwrap();
    let found = fleet.exits(3, &["backup", "verify"]);
    assert_eq!(found.json["damaged"][0]["object"].as_str(), Some("format.json"), "{}", found.stdout);
    fleet.exits(1, &["backup", "run", "orders"]);
    fleet.ok(&["vault", "init"]);
    let found = fleet.exits(3, &["backup", "verify"]);
    let objects: Vec<_> =
        found.json["damaged"].as_array().unwrap().iter().map(|d| d["object"].as_str().unwrap()).collect();
    assert!(objects.iter().all(|object| object.contains(name)), "{objects:?}");
}

/// The largest object below `dir`: a pack of the table's snapshot.
fn biggest(dir: &std::path::Path) -> std::path::PathBuf {
    let mut best = (0, std::path::PathBuf::new());
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.len() > best.0 && entry.path().components().any(|c| c.as_os_str() == "packs") {
                best = (meta.len(), entry.path());
            }
        }
    }
    best.1
}
