//! Dependencies that nothing uses: each costs build time on two cores, for ever.
//!
//! A dependency counts as used when its identifier stands anywhere in the package's sources outside a comment; one from
//! `[dependencies]` must stand outside `tests/`, where a dev-dependency would do. What is needed without being named (a
//! feature switched on for another crate, say) is declared, with the reason:
//!
//! ```toml
//! [package.metadata.tidy.unnamed]
//! rustls = "switches on the one TLS provider"
//! ```

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::graph::{Dependency, Graph, Kind, Package};
use super::mentions;
use super::sources::Source;
use crate::tool;

/// Every dependency that is named in a Cargo.toml and nowhere else.
pub fn check(graph: &Graph, sources: &[Source], workspace: &BTreeSet<String>) -> Vec<String> {
    let mut findings = Vec::new();
    let mut claimed = BTreeSet::new();
    for package in &graph.packages {
        let code = code_of(package, sources);
        for dependency in &package.direct {
            claimed.insert(dependency.name.as_str());
            findings.extend(unused(package, dependency, &code));
        }
    }
    let idle = workspace.iter().filter(|name| !claimed.contains(name.as_str()));
    findings.extend(
        idle.map(|name| format!("Cargo.toml: no package uses workspace.dependencies.{name}: take it out")),
    );
    findings
}

/// The packages that the root Cargo.toml offers to the members.
pub fn workspace_dependencies() -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(tool::root().join("Cargo.toml")).context("read Cargo.toml")?;
    let manifest: toml::Table = toml::from_str(&text).context("parse Cargo.toml")?;
    let offered = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("dependencies"))
        .and_then(|table| table.as_table());
    let name = |(key, value): (&String, &toml::Value)| {
        value.get("package").and_then(|name| name.as_str()).unwrap_or(key).to_owned()
    };
    Ok(offered.into_iter().flatten().map(name).collect())
}

/// The package that runs the whole-fleet tests at the root: it builds the binary that they drive.
const DRIVER: &str = "crates/app";

/// A package's sources without comments, as (is a file of tests/, text).
fn code_of(package: &Package, sources: &[Source]) -> Vec<(bool, String)> {
    let folder = format!("{}/", package.room);
    let is_scenario = |source: &Source| package.room == DRIVER && source.path.starts_with("tests/");
    let is_own = |source: &Source| source.path.starts_with(&folder) || is_scenario(source);
    let files = sources.iter().filter(|source| is_own(source) && source.path.ends_with(".rs"));
    files
        .map(|source| {
            let apart = ["tests", "benches", "examples"]
                .iter()
                .any(|room| source.path.starts_with(&format!("{folder}{room}/")))
                || is_scenario(source);
            let lines = source.text.lines().filter(|line| !line.trim_start().starts_with("//"));
            (apart, lines.collect::<Vec<_>>().join("\n"))
        })
        .collect()
}

fn unused(package: &Package, dependency: &Dependency, code: &[(bool, String)]) -> Option<String> {
    let used = |apart: bool| {
        code.iter().any(|(is_apart, text)| *is_apart == apart && mentions(text, &dependency.ident))
    };
    let declared = package.unnamed.get(&dependency.name).is_some_and(|reason| !reason.is_empty());
    let (name, room) = (&dependency.name, &package.room);
    match (declared, used(false), used(true), dependency.kind) {
        (true, false, false, _) | (false, true, _, _) => None,
        (true, _, _, _) => Some(format!("{room}: {name} is declared unnamed, but its sources name it")),
        (false, false, true, Kind::Dev) => None,
        (false, false, true, _) => {
            Some(format!("{room}: only tests use {name}: move it to dev-dependencies"))
        }
        (false, false, false, _) => Some(format!("{room}: nothing uses {name}: take it out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(kind: Kind, path: &str, text: &str, reason: &str) -> Vec<String> {
        let dependency = Dependency { name: "some-crate".to_owned(), ident: "some_crate".to_owned(), kind };
        let mut package =
            Package { room: "crates/a".to_owned(), direct: vec![dependency], ..Package::default() };
        if !reason.is_empty() {
            package.unnamed.insert("some-crate".to_owned(), reason.to_owned());
        }
        let sources = [Source { path: path.to_owned(), text: text.to_owned() }];
        check(&Graph { packages: vec![package] }, &sources, &BTreeSet::from(["some-crate".to_owned()]))
    }

    #[test]
    fn unused_dependencies_are_found() {
        let lib = "crates/a/src/lib.rs";
        assert!(findings(Kind::Normal, lib, "use some_crate::x;", "").is_empty());
        assert!(findings(Kind::Normal, lib, "// use some_crate::x;", "")[0].contains("nothing uses"));
        assert!(
            findings(Kind::Normal, "crates/b/src/lib.rs", "some_crate::x()", "")[0].contains("nothing uses")
        );
    }

    #[test]
    fn what_only_tests_use_is_found() {
        let test = "crates/a/tests/it/main.rs";
        assert!(findings(Kind::Dev, test, "use some_crate::x;", "").is_empty());
        assert!(findings(Kind::Normal, test, "use some_crate::x;", "")[0].contains("only tests use"));
    }

    #[test]
    fn unnamed_dependencies_give_a_reason() {
        let lib = "crates/a/src/lib.rs";
        assert!(findings(Kind::Normal, lib, "", "switches on a feature").is_empty());
        assert!(
            findings(Kind::Normal, lib, "some_crate::x()", "switches on a feature")[0]
                .contains("declared unnamed")
        );
    }

    #[test]
    fn idle_offers_of_the_workspace_are_found() {
        let found = check(&Graph::default(), &[], &BTreeSet::from(["idle".to_owned()]));
        assert!(found[0].contains("workspace.dependencies.idle"));
    }
}
