//! What can be had when an object is damaged: before a restore, and after one that failed on it.

use mainstay_engine::{self as engine, Kind};
use mainstay_model::Instant;
use mainstay_vault::{Damage, SnapshotRecord, missing_pack};

use super::{Planned, Refusal};
use crate::Protected;
use crate::catalogue::Catalogue;
use crate::error::{Doing, Error, Result};
use crate::follow::why;

/// How a restore was asked for, to say how another one is.
#[derive(Clone, Debug)]
pub struct Command {
    /// What it does to what: `mainstay recover run shop`.
    pub verb: String,
    /// To which target: `--latest`.
    pub target: String,
    /// The rest, without the snapshots: `--into local`.
    pub rest: String,
    /// The snapshots that it named.
    pub snapshots: Vec<String>,
}

impl Command {
    fn with(&self, target: &str, snapshots: &[String]) -> String {
        let mut text = format!("{} {target}", self.verb);
        for snapshot in snapshots {
            text.push_str(&format!(" --snapshot {snapshot}"));
        }
        if !self.rest.is_empty() {
            text.push_str(&format!(" {}", self.rest));
        }
        text
    }
}

/// The object that an adapter's error says is damaged. Its words are the vault's: `` `KEY` is damaged: … ``.
pub(super) fn object_in(error: &engine::Error) -> Option<String> {
    let text = why(error);
    let (before, _) = text.split_once("` is damaged: ")?;
    let (_, object) = before.rsplit_once('`')?;
    Some(object.to_owned())
}

/// Refused when a pack that the snapshot needs is not there, or not whole. Told by listing.
pub(super) async fn missing(of: &Protected, record: &SnapshotRecord) -> Result<Option<Refusal>> {
    let cluster = of.cluster.name.as_str();
    let look = async {
        let needed = of.vault.packs_needed(&record.id).await?;
        Ok(missing_pack(&needed, &of.vault.packs_stored(&record.incarnation).await?))
    };
    match look.await {
        Ok(found) => Ok(found.map(|error| Refusal::of_vault(cluster, &error))),
        Err(error @ mainstay_vault::Error::Damaged { .. }) => Ok(Some(Refusal::of_vault(cluster, &error))),
        Err(error) => Err(error).doing(|| format!("look for what snapshot {} of {cluster} needs", record.id)),
    }
}

/// What is refused since something is damaged, with what is left to be had.
pub(super) fn left(mut refusal: Refusal, others: Vec<String>, left: &Catalogue) -> Refusal {
    refusal.what.push_str(match others.is_empty() {
        true => "; nothing reaches the target without it",
        false => "; the snapshot that was asked for needs it",
    });
    let subject = refusal.subject.clone();
    refusal
        .instead_each(others)
        .instead_each(super::refusal::windows(left))
        .instead(format!("and take a new snapshot now: `mainstay backup run {subject}`"))
}

/// Says, of a restore that failed on a damaged object, what can be had instead: another snapshot for the same target, or other instants.
/// Everything is told from names and lists, without reading content. The vault is told which snapshots need that object. Other errors are given back as they are.
pub async fn say_instead(error: Error, planned: &Planned, command: &Command) -> Error {
    let Error::Engine { what, mut source } = error else { return error };
    if source.kind == Kind::Damaged
        && let Some(object) = object_in(&source)
    {
        // A vault that cannot be asked now does not make the failure another one.
        match instead(&object, planned, command).await {
            Ok(Some(hint)) => source.hint = Some(hint),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = %why(&error), "find out what can be had instead"),
        }
    }
    Error::Engine { what, source }
}

/// So that the next snapshot takes nothing over from it, and the next restore begins with another one. A vault that cannot be written does without.
async fn leave_word(of: &Protected, object: &str) {
    let damage = Damage { object: object.to_owned(), reason: String::new(), snapshots: vec![] };
    if let Err(error) = of.vault.record_damaged(&[damage]).await {
        tracing::warn!(cluster = %of.cluster.name, object, %error, "could not record that an object is damaged");
    }
}

async fn instead(object: &str, planned: &Planned, command: &Command) -> Result<Option<String>> {
    let is_of = |of: &Protected| object.strip_prefix(of.vault.prefix()).is_some_and(|r| r.starts_with('/'));
    let Some(ready) = planned.ready.iter().find(|ready| is_of(&ready.of)) else { return Ok(None) };
    let (of, cluster) = (&ready.of, &ready.plan.cluster);
    leave_word(of, object).await;
    let catalogue = Catalogue::load(&of.vault).await?;
    let Some(left) = catalogue.without(of, Some(object)).await? else { return Ok(None) };
    let elsewhere = command.snapshots.iter().filter(|id| !catalogue.records.contains_key(*id));
    let elsewhere: Vec<String> = elsewhere.cloned().collect();
    for (life, copy) in left.whole_first(left.past.for_position(&ready.plan.position)) {
        let id = &left.past.lives[life].snapshots[copy].id;
        let record = &left.records[id];
        if *id == ready.plan.snapshot || missing(of, record).await?.is_some() {
            continue;
        }
        let snapshots: Vec<String> = elsewhere.iter().chain([id]).cloned().collect();
        return Ok(Some(format!(
            "begin with snapshot {id} of {cluster}, which reaches the same target and does not need that object: {}",
            command.with(&command.target, &snapshots)
        )));
    }
    let windows = left.past.windows();
    let before = windows.iter().filter(|w| w.from <= ready.plan.restored_to).map(|w| w.to).max();
    let mut hint = format!("no other snapshot of {cluster} reaches the target without that object");
    if let Some(at) = before.map(|to: Instant| to.min(ready.plan.restored_to)) {
        let again = command.with(&format!("--at {at}"), &elsewhere);
        hint.push_str(&format!("; the last instant before it that can be had: {again}"));
    }
    for window in super::refusal::windows(&left) {
        hint.push_str(&format!("; {window}"));
    }
    hint.push_str(&format!("; and take a new snapshot now: mainstay backup run {cluster}"));
    Ok(Some(hint))
}
