//! Second snapshots of pages that changed without a word: no new LSN, no checksum, old bytes under an old name.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Fleet, ask, sandbox_uris};

const FLEET: &str = r#"fleet: small
environments: { local: { hosts: local } }
vaults: { main: { url: "file:vault" } }
clusters:
  orders:
    engine: postgres
    version: "15"
    config: { autovacuum: "off", wal_log_hints: "off" }
    backup: { snapshot: never }
"#;

const COMMENTED: &str = "SELECT count(*) FROM pg_description WHERE description = 'of the first copy';";
/// Visible from the index alone, which trusts the visibility map.
const IN_SEEN: &str = "SET enable_seqscan = off; SELECT count(*) FROM seen WHERE id > 0;";
const IN_CLEARED: &str = "SET enable_seqscan = off; SELECT count(*) FROM cleared WHERE id > 0;";
const IN_PLACES: &str =
    "SET enable_seqscan = off; SELECT count(*) FROM places WHERE at <@ box '((0,0),(9999,9999))';";

#[test]
fn pages_that_changed_without_an_lsn_are_in_the_second_snapshot() {
    let fleet = Fleet::new(FLEET);
    fleet.ok(&["up"]);
    let server = Server::of(&fleet);
    while_down(&fleet, || server.checksums("--disable"));
    for statement in [
        "CREATE EXTENSION pageinspect;",
        "CREATE TABLE seen AS SELECT generate_series(1, 20000) id; CREATE INDEX ON seen (id);",
        "CREATE TABLE cleared AS SELECT generate_series(1, 20000) id; CREATE INDEX ON cleared (id);",
        "VACUUM cleared;",
        "CREATE TABLE emptied AS SELECT generate_series(1, 8) id;",
        "CREATE TABLE places AS SELECT point(n, n) at FROM generate_series(1, 2000) n;",
        "CREATE TABLE idle AS SELECT n id, repeat(md5(n::text), 20) text FROM generate_series(1, 20000) n;",
        "CREATE DATABASE template OID 90000 STRATEGY file_copy;",
        "CREATE DATABASE copy OID 90001 STRATEGY file_copy TEMPLATE template;",
    ] {
        fleet.ask("orders", statement);
    }
    // The copy goes its own way, and its pages get LSNs above those of what it was copied from.
    let copy = |fleet: &Fleet| fleet.uris("orders")[0].replace("/postgres", "/copy");
    ask(&copy(&fleet), "COMMENT ON TYPE int4 IS 'of the first copy'; VACUUM FULL pg_description;");
    ask(&copy(&fleet), "UPDATE pg_proc SET procost = procost; CHECKPOINT;");
    assert_eq!(ask(&copy(&fleet), COMMENTED), ["1"]);
    let first = fleet.ok(&["backup", "run", "orders"]);

    // Sets bits in pages and in the visibility map; without checksums and hints no page gets a new LSN by that.
    let page = || {
        let page = "SELECT lsn, md5(page) FROM get_raw_page('seen', 5) page, page_header(page);";
        fleet.ask("orders", page)[0]
            .split_once('|')
            .map(|(lsn, sum)| (lsn.to_owned(), sum.to_owned()))
            .unwrap()
    };
    let (lsn, sum) = page();
    fleet.ask("orders", "VACUUM seen;");
    assert!(page().0 == lsn && page().1 != sum, "it got an LSN, and so would be no trap");
    fleet.ask("orders", "DELETE FROM cleared WHERE id % 2 = 0;");
    fleet.ask("orders", "DELETE FROM emptied; VACUUM emptied;");
    fleet.ask("orders", "CREATE INDEX ON places USING gist (at);");
    fleet.ask("orders", "DROP DATABASE copy;");
    fleet.ask("orders", "CREATE DATABASE copy OID 90001 STRATEGY file_copy TEMPLATE template;");
    let emptied = fleet.ask("orders", "SELECT pg_relation_filepath('emptied');")[0].clone();
    // As after a crash: the file is as long as it was, its page is zeros.
    while_down(&fleet, || {
        let file = std::fs::File::options().write(true).open(server.data.join(&emptied)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        file.set_len(8192).unwrap();
    });
    let second = fleet.ok(&["backup", "run", "orders"]);
    let size = |of: &Value, field: &str| of[field].as_u64().unwrap();
    assert!(size(&second, "bytes_new") < size(&first, "bytes_new") / 2, "no increment: {first} {second}");

    restored(&fleet, &second, |uri| {
        assert_eq!(ask(&uri.replace("/postgres", "/copy"), COMMENTED), ["0"]);
        assert_eq!(ask(uri, "SELECT count(*) FROM emptied;"), ["0"]);
        assert_eq!(ask(uri, IN_CLEARED), ["10000"]);
        assert_eq!(ask(uri, IN_PLACES), ["2000"]);
        // An index that trusts a map which its pages do not bear out counts what is gone.
        ask(uri, "DELETE FROM seen WHERE id % 2 = 0;");
        assert_eq!(ask(uri, IN_SEEN), ["10000"]);
    });
    fleet.ok(&["prove", "orders", "--snapshot", second["snapshot"].as_str().unwrap()]);

    // Every page is written again, and none gets a new LSN.
    while_down(&fleet, || server.checksums("--enable"));
    let third = fleet.ok(&["backup", "run", "orders"]);
    restored(&fleet, &third, |uri| {
        assert_eq!(ask(uri, "SHOW data_checksums;"), ["on"]);
        assert_eq!(ask(uri, "SELECT count(*), sum(length(text)) FROM idle;"), ["20000|12800000"]);
        let failed = "SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database;";
        assert_eq!(ask(uri, failed), ["0"]);
    });
    fleet.ok(&["prove", "orders", "--snapshot", third["snapshot"].as_str().unwrap()]);
}

fn restored(fleet: &Fleet, snapshot: &Value, look: impl Fn(&str)) {
    let id = snapshot["snapshot"].as_str().unwrap();
    let restored = fleet.ok(&["recover", "run", "orders", "--latest", "--snapshot", id]);
    look(&sandbox_uris(&restored, "orders")[0]);
    fleet.ok(&["recover", "drop", "--all"]);
}

fn while_down(fleet: &Fleet, work: impl FnOnce()) {
    fleet.ok(&["down"]);
    work();
    fleet.ok(&["up"]);
}

/// Where the server's data and programs are.
struct Server {
    data: PathBuf,
    programs: PathBuf,
}

impl Server {
    fn of(fleet: &Fleet) -> Server {
        let pid = fleet.ask("orders", "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1);");
        let program = std::fs::read_link(format!("/proc/{}/exe", pid[0])).unwrap();
        let data = fleet.ask("orders", "SHOW data_directory;")[0].clone();
        Server { data: data.into(), programs: program.parent().map(Path::to_owned).unwrap() }
    }

    fn checksums(&self, what: &str) {
        let owner = std::fs::metadata(&self.data).unwrap();
        let mut command = Command::new(self.programs.join("pg_checksums"));
        // It wants to be the owner, who may read nothing around the data.
        command.args([what, "-D"]).arg(&self.data).uid(owner.uid()).gid(owner.gid()).current_dir("/");
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}
