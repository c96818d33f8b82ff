//! The fleet file: YAML to the model, checked.
//!
//! [`load`] reads a file for one environment and gives a [`Fleet`] that holds together, or every mistake in it at once, each with
//! its code, place, line and a hint. One table of keys ([`mod@keys`]) drives the reader, the suggestions, [`schema`] and the reference
//! page; one table of codes ([`mod@codes`]) the pages in docs/errors/.
//!
//! Refused: unknown keys, keys that come twice, secrets in clear, promises that the backup policy cannot keep, files that no person
//! wrote (too large, too deep, grown by aliases). Never printed: whatever may be a secret.

pub mod codes;
pub mod keys;

mod build;
mod judge;
mod mistake;
mod recipient;
mod reference;
mod schema;
mod secret;
mod shape;
mod template;
mod tree;

use std::path::Path;

use mainstay_engine::Engine;
use mainstay_model::{EnvironmentName, Fleet};

pub use judge::FOLLOWED_RPO;
pub use mistake::{Mistake, Mistakes};
pub use reference::{generated, reference};
pub use schema::{schema, schema_text};
pub use secret::{Reason, SecretError, resolve};
pub use template::template;

use mistake::{At, Report};

/// Reads the file at `path` for `environment`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path, environment: &str, engines: &[&dyn Engine]) -> Result<Fleet, Mistakes> {
    let file = path.display().to_string();
    let (text, base_dir) = read(path).map_err(|error| {
        let mut report = Report::default();
        let hint = "name another with `--fleet FILE`, or write one with `mainstay init`";
        report.add(codes::UNREADABLE_FILE, At::START, format!("read the fleet file: {error}"), hint);
        report.finish("", &file).unwrap_or(Mistakes(Vec::new()))
    })?;
    if text.len() > tree::BYTES_MAX {
        return check(&String::from_utf8_lossy(&text), &file, &base_dir, environment, engines);
    }
    let text = String::from_utf8(text).map_err(|error| {
        let right =
            String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
        let mut report = Report::default();
        let line = u32::try_from(right.split('\n').count()).unwrap_or(u32::MAX);
        let column = u32::try_from(right.rsplit('\n').next().unwrap_or("").chars().count())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let hint = "save the file as UTF-8";
        report.add(codes::BAD_YAML, At { line, column, width: 1 }, "this is not UTF-8 text", hint);
        report.finish(&(right + "\u{fffd}"), &file).unwrap_or(Mistakes(Vec::new()))
    })?;
    check(&text, &file, &base_dir, environment, engines)
}

/// As [`load`], of a text. `file`: what the file is called in mistakes; relative paths in it begin in its folder.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check_text(
    text: &str,
    file: &str,
    environment: &str,
    engines: &[&dyn Engine],
) -> Result<Fleet, Mistakes> {
    let base_dir =
        std::path::absolute(file).ok().and_then(|path| path.parent().map(Path::to_owned)).unwrap_or_default();
    check(text, file, &base_dir, environment, engines)
}

fn check(
    text: &str,
    file: &str,
    base_dir: &Path,
    environment: &str,
    engines: &[&dyn Engine],
) -> Result<Fleet, Mistakes> {
    // Editors on some systems begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut report = Report::default();
    let fleet = tree::parse(text, &mut report).and_then(|root| {
        shape::check(&root, &mut report);
        report.forms_are_checked();
        judge::names(&root, engines, &mut report);
        let (name, hosts) = choose(&root, environment, &mut report)?;
        let draft = build::draft(&root, name, hosts, base_dir);
        judge::environment(&draft, engines, &mut report);
        Some(draft.fleet)
    });
    match (report.finish(text, file), fleet) {
        (None, Some(fleet)) => Ok(fleet),
        (Some(mistakes), _) => Err(mistakes),
        // Nothing is left out without a mistake being noted; if it ever were, it must not pass.
        (None, None) => {
            let mut report = Report::default();
            report.add(codes::BAD_YAML, At::START, "this file cannot be understood", "please report it");
            Err(report.finish(text, file).unwrap_or(Mistakes(Vec::new())))
        }
    }
}

/// The environment that was asked for, and who runs its servers.
fn choose(
    root: &tree::Node,
    environment: &str,
    report: &mut Report,
) -> Option<(EnvironmentName, mainstay_model::Hosts)> {
    if let (Ok(name), Some(hosts)) = (EnvironmentName::new(environment), build::hosts(root, environment)) {
        return Some((name, hosts));
    }
    let known: Vec<&str> = root.get("environments").map(|all| all.keys().collect()).unwrap_or_default();
    if !known.contains(&environment) {
        let hint = match mistake::nearest(environment, known.iter().copied()) {
            Some(meant) => format!("did you mean `--env {meant}`?"),
            None if known.is_empty() => "the file has no environments, so only `local` is there".to_owned(),
            None => format!("there are {}; choose one with `--env`", shape::list(known.iter().copied())),
        };
        let message = format!("there is no environment `{}`", shape::short(environment));
        report.add(codes::UNKNOWN_ENVIRONMENT, root.locate(&["environments"]), message, hint);
    }
    // The rest is looked at as if it ran here, so that all mistakes are found in one run.
    Some((EnvironmentName::new("local").ok()?, mainstay_model::Hosts::Kubernetes { namespace: None }))
}

/// The file's bytes, at most one more than is allowed, and its folder.
fn read(path: &Path) -> std::io::Result<(Vec<u8>, std::path::PathBuf)> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(tree::BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    let path = std::path::absolute(path)?;
    Ok((bytes, path.parent().unwrap_or(Path::new("/")).to_owned()))
}
