//! The database: opened by many, killed at every entry, damaged, newer.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use mainstay_model::Instant;
use mainstay_state::{Error, NewProof, Operation, Progress, State, StepError, StepState};
use serde_json::json;
use tempfile::TempDir;

fn state(dir: &TempDir) -> State {
    State::open(&dir.path().join("state.db")).unwrap()
}

#[tokio::test]
async fn a_step_is_done_once_and_gives_the_same_again() {
    let dir = TempDir::new().unwrap();
    let state = state(&dir);
    let operation = state.begin("recover", "shop into local", &json!({"at": "now"})).unwrap();
    let first: u32 = operation.step("stop", async || Ok::<_, Error>(7)).await.unwrap();
    let failed = operation.step("swap", async || Err::<(), _>("no room")).await.unwrap_err();
    assert!(matches!(failed, StepError::Step("no room")));
    assert_eq!(operation.row().unwrap().progress, Progress::Failed);
    assert_eq!(operation.steps().unwrap()[1].error.as_deref(), Some("no room"));

    let again = state.resume(operation.id()).unwrap();
    let same: u32 = again.step("stop", async || Err::<u32, _>("must not run again")).await.unwrap();
    assert_eq!(first, same);
    again.step("swap", async || Ok::<_, Error>(())).await.unwrap();
    assert_eq!(again.row().unwrap().progress, Progress::Running);
    assert_eq!(again.given::<u32>("stop").unwrap(), Some(7));
    assert_eq!(again.given::<u32>("never").unwrap(), None);
    again.set_progress(Progress::Done).unwrap();

    let mut undone = Vec::new();
    for step in again.steps().unwrap().iter().rev() {
        let act = async || {
            undone.push(step.name.clone());
            Ok::<_, Error>(())
        };
        again.undo(&step.name, act).await.unwrap();
        again.undo(&step.name, async || Err("must not run again")).await.unwrap();
    }
    assert_eq!(undone, ["swap", "stop"]);
    again.undo("never", async || Err("must not run")).await.unwrap();
    assert!(again.steps().unwrap().iter().all(|step| step.state == StepState::Undone));
    again.set_progress(Progress::Undone).unwrap();

    let row = state.operation(operation.id()).unwrap();
    assert_eq!((row.progress, row.detail), (Progress::Undone, json!({"at": "now"})));
    assert!(row.ended.unwrap() >= row.created);
    assert_eq!(state.operations("recover", 10).unwrap().len(), 1);
    assert!(matches!(state.resume("op-none"), Err(Error::NoOperation(_))));
}

#[test]
fn runs_and_proofs_are_remembered() {
    let dir = TempDir::new().unwrap();
    let state = state(&dir);
    let began = Instant::now();
    let good = state.run_began("snapshot", "orders").unwrap();
    state.run_ended(good, None, 4711, &json!({"snapshot": "s1"})).unwrap();
    let bad = state.run_began("snapshot", "orders").unwrap();
    state.run_ended(bad, Some("no such host"), 0, &json!(null)).unwrap();
    let _cut_off = state.run_began("snapshot", "orders").unwrap();
    let runs = state.runs("snapshot", "orders", 10).unwrap();
    assert_eq!(runs.iter().map(|run| run.succeeded()).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(state.last_good_run("snapshot", "orders").unwrap().unwrap().bytes, 4711);
    assert_eq!(state.last_good_run("prune", "orders").unwrap(), None);
    assert_eq!(state.failures("snapshot", began).unwrap(), [("orders".to_owned(), 1)]);

    let record = json!({"checks": []});
    let proof = NewProof { id: "p1", what: "shop", proven: true, rto_ms: 1500, record: &record };
    state.add_proof(&proof).unwrap();
    state.add_proof(&proof).unwrap();
    let proofs = state.proofs("shop", 10).unwrap();
    assert_eq!(proofs.len(), 1);
    assert!(proofs[0].proven && proofs[0].rto_ms == 1500 && proofs[0].record == record);
}

#[test]
fn fleets_that_share_a_home_do_not_see_each_other() {
    let dir = TempDir::new().unwrap();
    let all = state(&dir);
    let (shop, chat) = (all.of("shop", "local"), all.of("chat", "local"));
    let staging = all.of("shop", "staging");
    let before = all.begin("in-place", "from before", &()).unwrap();
    let ours = shop.begin("in-place", "shop into local", &()).unwrap();
    let theirs = chat.begin("in-place", "chat into local", &()).unwrap();
    let ids = |state: &State| {
        let rows = state.operations("in-place", 10).unwrap().into_iter();
        rows.map(|row| row.id).collect::<BTreeSet<_>>()
    };
    let set = |ids: &[&Operation]| ids.iter().map(|o| o.id().to_owned()).collect::<BTreeSet<_>>();
    // What has no owner is of a time when nobody wrote one.
    assert_eq!(ids(&shop), set(&[&before, &ours]));
    assert_eq!(ids(&chat), set(&[&before, &theirs]));
    assert_eq!(ids(&staging), set(&[&before]));
    assert_eq!(ids(&all).len(), 3);
    assert!(matches!(chat.resume(ours.id()), Err(Error::NoOperation(_))));
    shop.resume(ours.id()).unwrap().set_progress(Progress::Done).unwrap();
    // Clusters of one name are not one.
    let run = shop.run_began("prune", "orders").unwrap();
    shop.run_ended(run, None, 0, &json!(null)).unwrap();
    assert!(shop.last_good_run("prune", "orders").unwrap().is_some());
    assert!(chat.last_good_run("prune", "orders").unwrap().is_none());
    assert_eq!(
        (shop.runs("prune", "orders", 9).unwrap().len(), chat.runs("prune", "orders", 9).unwrap().len()),
        (1, 0)
    );
    let record = json!(null);
    let proof = NewProof { id: "p1", what: "orders", proven: true, rto_ms: 1, record: &record };
    shop.add_proof(&proof).unwrap();
    assert_eq!((shop.proofs("orders", 9).unwrap().len(), chat.proofs("orders", 9).unwrap().len()), (1, 0));
}

#[test]
fn an_older_file_is_brought_up_to_date() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state.db");
    let id = state(&dir).begin("in-place", "shop into local", &()).unwrap().id().to_owned();
    let raw = rusqlite::Connection::open(&path).unwrap();
    for table in ["operation", "run", "proof"] {
        raw.execute_batch(&format!("ALTER TABLE {table} DROP COLUMN scope")).unwrap();
    }
    raw.pragma_update(None, "user_version", 1).unwrap();
    drop(raw);
    assert_eq!(state(&dir).of("shop", "local").operation(&id).unwrap().what, "shop into local");
}

#[test]
fn the_file_is_ours_alone_and_many_may_open_it_at_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state.db");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let state = State::open(&path).unwrap();
                for _ in 0..10 {
                    let run = state.run_began("point", "shop").unwrap();
                    state.run_ended(run, None, 1, &json!(null)).unwrap();
                }
            });
        }
    });
    assert_eq!(state(&dir).runs("point", "shop", 1000).unwrap().len(), 80);
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
}

#[test]
fn what_is_newer_or_damaged_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state.db");
    drop(state(&dir));
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    drop(raw);
    let newer = State::open(&path).unwrap_err();
    assert!(matches!(newer, Error::Newer { found: 99, .. }), "{newer}");
    assert!(newer.hint().is_some());

    fs::remove_file(&path).unwrap();
    fs::write(&path, "these are not the bytes of a database, whatever their number".repeat(100)).unwrap();
    assert!(matches!(State::open(&path), Err(Error::Damaged { .. })));

    fs::remove_file(&path).unwrap();
    let state = state(&dir);
    for _ in 0..500 {
        let run = state.run_began("point", "shop").unwrap();
        state.run_ended(run, None, 1, &json!("x".repeat(100))).unwrap();
    }
    drop(state);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let size = file.metadata().unwrap().len();
    for at in (4096..size).step_by(4096) {
        file.write_all_at(&[0xff; 64], at).unwrap();
    }
    drop(file);
    assert!(matches!(State::open(&path), Err(Error::Damaged { .. })));
    assert!(matches!(State::open(Path::new("/no/such/folder/state.db")), Err(Error::Io { .. })));
}

/// Three steps that each make a file, and make it again without harm.
async fn three_steps(operation: &Operation, dir: &Path) {
    for name in ["a", "b", "c"] {
        let make = async || fs::write(dir.join(name), operation.id()).map(|()| name.to_owned());
        assert_eq!(operation.step::<String, _, _>(name, make).await.unwrap(), name);
    }
    operation.set_progress(Progress::Done).unwrap();
}

/// Not a test by itself: what the next one kills, at every entry in turn.
#[tokio::test]
async fn helper_that_goes_on() {
    let Some(dir) = std::env::var_os("MAINSTAY_TEST_OPERATION") else { return };
    let dir = Path::new(&dir);
    let state = State::open(&dir.join("state.db")).unwrap();
    let operation = match state.operations("test", 1).unwrap().pop() {
        Some(row) => state.resume(&row.id).unwrap(),
        None => state.begin("test", "three steps", &()).unwrap(),
    };
    three_steps(&operation, dir).await;
}

#[test]
fn killed_at_every_entry_it_goes_on() {
    // It begins, three steps begin and end, it is done.
    for die_at in 1..=8 {
        let dir = TempDir::new().unwrap();
        let helper = |die_at: u32| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "helper_that_goes_on"])
                .env("MAINSTAY_TEST_OPERATION", dir.path())
                .env("MAINSTAY_DIE_AT_ENTRY", die_at.to_string())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap()
        };
        assert!(!helper(die_at).success(), "it was to die at entry {die_at}");
        assert!(helper(0).success());
        let state = state(&dir);
        let row = state.operations("test", 10).unwrap().remove(0);
        assert_eq!(row.progress, Progress::Done);
        let steps = state.resume(&row.id).unwrap().steps().unwrap();
        let done: BTreeSet<_> = steps.iter().map(|step| (step.seq, step.name.as_str(), step.state)).collect();
        let expected = [(1, "a", StepState::Done), (2, "b", StepState::Done), (3, "c", StepState::Done)];
        assert_eq!(done, expected.into());
        assert!(["a", "b", "c"].iter().all(|name| dir.path().join(name).exists()));
    }
}
