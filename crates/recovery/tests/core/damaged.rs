//! Damage that is met while planning or while restoring: named, with what can be had instead, and gone round where another way leads to the
//! same target.

use mainstay_model::Instant;
use mainstay_recovery::plan::{Command, PlanOptions, Planned, Target, plan, say_instead};
use mainstay_recovery::prove::prove;
use mainstay_recovery::verify::verify;
use mainstay_recovery::{Error, Refusal};
use mainstay_store::{Limits, Memory, Store};
use mainstay_vault::VerifyOptions;

use crate::fake::lane;
use crate::lab::*;

struct Scene {
    lab: Lab,
    memory: Memory,
    first: String,
    second: String,
    /// Behind the first snapshot, and behind the second.
    between: Instant,
    at: Instant,
}

impl Scene {
    async fn new() -> Self {
        let memory = Memory::default();
        let lab = Lab::on(Store::with(memory.clone(), Limits::hasty())).await;
        lab.write(0, 10);
        let first = lab.snapshot().await;
        let between = lab.write(100, 10);
        lab.follow().await;
        let second = lab.snapshot().await;
        let at = lab.write(200, 10);
        lab.follow().await;
        Self { lab, memory, first, second, between, at }
    }

    /// The packs that the second snapshot alone needs.
    async fn own_pack(&self) -> String {
        let needed = |id: String| {
            let vault = self.lab.of.vault.clone();
            async move { vault.packs_needed(&id).await.unwrap() }
        };
        let (old, new) = (needed(self.first.clone()).await, needed(self.second.clone()).await);
        new.into_keys().find(|key| !old.contains_key(key)).unwrap()
    }

    fn log_object(&self, kind: &str, at_least: usize) -> String {
        let keys = self.memory.keys().into_iter();
        let mut log = keys.filter(|key| key.contains("/log/") && key.contains(kind));
        log.nth(at_least).unwrap()
    }

    async fn planned(&self, target: &Target, options: PlanOptions) -> Result<Planned, Refusal> {
        let planned = plan(std::slice::from_ref(&self.lab.of), target, &options).await.unwrap();
        match planned.accepted() {
            Ok(planned) => Ok(planned),
            Err(Error::Refused(mut refusals)) => Err(refusals.remove(0)),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Runs a plan that fails, and says what can be had instead.
    async fn hint(&self, planned: &Planned) -> String {
        let dir = tempfile::tempdir().unwrap();
        let error = run(planned, dir.path()).await.map(|_| ()).unwrap_err();
        say_instead(error, planned, &command(&self.at)).await.hint().unwrap()
    }
}

fn command(at: &Instant) -> Command {
    Command {
        verb: "mainstay recover run orders".into(),
        target: format!("--at {at}"),
        rest: String::new(),
        snapshots: vec![],
    }
}

fn only(id: &str) -> PlanOptions {
    PlanOptions { snapshots: vec![id.to_owned()], ..PlanOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_can_be_named_and_is_refused_where_it_does_not_reach() {
    let scene = Scene::new().await;
    let at = Target::At(scene.at);
    for id in [&scene.first, &scene.second] {
        let planned = scene.planned(&at, only(id)).await.unwrap();
        assert_eq!(planned.plan.clusters[0].snapshot, *id);
        let dir = tempfile::tempdir().unwrap();
        let (_, sites) = run(&planned, dir.path()).await.unwrap();
        let values = scene.lab.fake.world().values_at(scene.at);
        assert_eq!(crate::fake::read_node(&sites["orders"].layout).unwrap(), values);
    }
    let refused = scene.planned(&Target::At(scene.between), only(&scene.second)).await.err().unwrap();
    assert_eq!(refused.code, "no-snapshot");
    assert!(
        refused.instead.iter().any(|i| i.contains(&format!("--snapshot {}", scene.first))),
        "{refused:?}"
    );
    let unknown = scene.planned(&at, only("nothing")).await.err().unwrap();
    assert!(unknown.what.contains("nothing") && !unknown.instead.is_empty(), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_is_missing_or_short_is_seen_before_anything_is_made() {
    let scene = Scene::new().await;
    let at = Target::At(scene.at);
    let pack = scene.own_pack().await;
    let body = scene.lab.vault.store().get(&pack).await.unwrap();
    for (what, cut) in [("bytes, and", Some(body.slice(..body.len() - 1))), ("is missing", None)] {
        match cut {
            Some(short) => scene.lab.vault.store().put(&pack, short).await.unwrap(),
            None => scene.lab.vault.store().delete(&pack).await.unwrap(),
        }
        // Another snapshot reaches the same target: it is had, and the damage is told.
        let planned = scene.planned(&at, PlanOptions::default()).await.unwrap();
        let one = &planned.plan.clusters[0];
        assert_eq!(one.snapshot, scene.first);
        assert!(one.warnings.iter().any(|w| w.contains(&pack) && w.contains(what)), "{:?}", one.warnings);
        // The one that was asked for is refused, and the other is named.
        let refused = scene.planned(&at, only(&scene.second)).await.err().unwrap();
        assert_eq!((refused.code, refused.object.as_ref()), ("damaged", Some(&pack)));
        assert!(refused.what.contains(&pack) && refused.what.contains(what), "{refused:?}");
        assert!(refused.instead[0].contains(&format!("--snapshot {}", scene.first)), "{refused:?}");
    }
    // What both need leaves nothing, but a new snapshot.
    let shared = scene.lab.of.vault.packs_needed(&scene.first).await.unwrap().into_keys();
    for pack in shared {
        scene.lab.vault.store().delete(&pack).await.unwrap();
    }
    let refused = scene.planned(&at, PlanOptions::default()).await.err().unwrap();
    assert_eq!(refused.code, "damaged");
    assert_eq!(refused.instead, ["and take a new snapshot now: `mainstay backup run orders`"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_restore_begins_with_a_snapshot_that_a_verification_found_damaged_while_another_one_leads_there() {
    let scene = Scene::new().await;
    let at = Target::At(scene.at);
    let pack = scene.own_pack().await;
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    scene.memory.damage(&pack, flip);
    let all = VerifyOptions::default();
    let verified = verify(&scene.lab.of, &all).await.unwrap();
    assert_eq!(verified.damaged.len(), 1);
    let planned = scene.planned(&at, PlanOptions::default()).await.unwrap();
    let one = &planned.plan.clusters[0];
    assert_eq!((&one.snapshot, &one.others), (&scene.first, &vec![scene.second.clone()]));
    run(&planned, tempfile::tempdir().unwrap().path()).await.unwrap();
    // Had when it is asked for, and said.
    let warned = |planned: Planned| {
        let one = &planned.plan.clusters[0];
        assert_eq!(one.snapshot, scene.second);
        assert!(one.warnings.iter().any(|w| w.contains("found snapshot")), "{:?}", one.warnings);
    };
    warned(scene.planned(&at, only(&scene.second)).await.unwrap());
    // And when nothing else leads there.
    let avoid = PlanOptions { avoid: vec![scene.first.clone()], ..PlanOptions::default() };
    warned(scene.planned(&at, avoid).await.unwrap());
    scene.memory.damage(&pack, flip);
    assert_eq!(verify(&scene.lab.of, &all).await.unwrap().damaged, []);
    let planned = scene.planned(&at, PlanOptions::default()).await.unwrap();
    assert_eq!(planned.plan.clusters[0].snapshot, scene.second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_meets_a_damaged_pack_says_which_snapshot_does_not_need_it() {
    let scene = Scene::new().await;
    let at = Target::At(scene.at);
    let pack = scene.own_pack().await;
    scene.memory.damage(&pack, |bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    });
    let planned = scene.planned(&at, PlanOptions::default()).await.unwrap();
    assert_eq!(planned.plan.clusters[0].snapshot, scene.second);
    let hint = scene.hint(&planned).await;
    let again = format!("mainstay recover run orders --at {} --snapshot {}", scene.at, scene.first);
    assert!(hint.ends_with(&again), "{hint}");
    let planned = scene.planned(&at, only(&scene.first)).await.unwrap();
    run(&planned, tempfile::tempdir().unwrap().path()).await.unwrap();
    // From now on it is not begun with.
    let planned = scene.planned(&at, PlanOptions::default()).await.unwrap();
    assert_eq!(planned.plan.clusters[0].snapshot, scene.first);
    // A proof says the same.
    let mut options = prove_options("proof1");
    options.command = Some(command(&scene.at));
    options.snapshots = vec![scene.second.clone()];
    let sandboxes = Folders::new();
    let members = [scene.lab.of.clone()];
    let error = prove(&members, &at, &sandboxes, &options).await.unwrap_err();
    assert!(error.hint().unwrap().ends_with(&again), "{error:?}");
    // Begun with the whole one, the damaged one is a difference: it was to be crossed, and cannot be restored.
    options.snapshots = vec![scene.first.clone()];
    let proof = prove(&members, &at, &sandboxes, &options).await.unwrap();
    assert_eq!(proof.differences.len(), 1, "{proof:?}");
    assert!(proof.differences[0].found.contains(&pack), "{proof:?}");
    assert_eq!(sandboxes.left(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_log_ends_what_can_be_had_and_the_instant_is_told() {
    let scene = Scene::new().await;
    let object =
        scene.log_object("_t_", scene.memory.keys().iter().filter(|k| k.contains("_t_")).count() - 1);
    scene.memory.damage(&object, |bytes| bytes[0] ^= 1);
    let refused = scene.planned(&Target::At(scene.at), PlanOptions::default()).await.err().unwrap();
    assert_eq!((refused.code, refused.object.as_ref()), ("damaged", Some(&object)));
    assert!(refused.what.contains("nothing reaches the target"), "{refused:?}");
    // The instants that are left can be had, to the last of them.
    let last = refused.instead.iter().find_map(|i| i.split(" to ").nth(1)).unwrap().parse().unwrap();
    assert!(last >= scene.between && last < scene.at, "{refused:?}");
    let values = scene.lab.fake.world().values_at(last);
    assert_eq!(scene.lab.restored(Target::At(last)).await.unwrap(), values);
    assert!(scene.planned(&Target::At(Instant(last.0 + 1)), PlanOptions::default()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_meets_damaged_log_says_the_last_instant_before_it() {
    let scene = Scene::new().await;
    let of = &scene.lab.of;
    let objects = of.vault.log_objects("life1", &lane()).await.unwrap();
    let last = objects.iter().rfind(|o| o.segment.last.offset > o.segment.first.offset).unwrap().clone();
    let planned = scene.planned(&Target::At(scene.at), PlanOptions::default()).await.unwrap();
    let error = Error::Engine {
        what: "replay the log of orders".into(),
        source: Box::new(mainstay_engine::Error::new(
            mainstay_engine::Kind::Damaged,
            format!("`{}` is damaged: its bytes are not those", last.key),
        )),
    };
    let hint = say_instead(error, &planned, &command(&scene.at)).await.hint().unwrap();
    let (_, again) = hint.split_once("mainstay recover run orders --at ").unwrap();
    let at: Instant = again.split(';').next().unwrap().parse().unwrap();
    assert!(at < scene.at && hint.contains("mainstay backup run orders"), "{hint}");
    // What was told can be done, though the object is damaged.
    scene.memory.damage(&last.key, |bytes| bytes[0] ^= 1);
    let values = scene.lab.fake.world().values_at(at);
    assert_eq!(scene.lab.restored(Target::At(at)).await.unwrap(), values);
}
