//! The workspace's packages and what they depend on, read from `cargo metadata`.
//!
//! Only what the rules ask for is kept: for each of our packages its room (the folder it is in), the dependencies its
//! own Cargo.toml names, and the names of everything in its tree that ends up in what is built from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::tool;

/// The packages of this workspace.
#[derive(Debug, Default)]
pub struct Graph {
    pub packages: Vec<Package>,
}

/// One package of this workspace.
#[derive(Debug, Clone, Default)]
pub struct Package {
    /// Its name in Cargo.toml.
    pub name: String,
    /// Its folder relative to the repository's root, such as `crates/vault`.
    pub room: String,
    /// What its Cargo.toml names, of all kinds.
    pub direct: Vec<Dependency>,
    /// The names of all packages that a build of it links or runs, but for tests: normal dependencies, all the way down.
    pub tree: BTreeSet<String>,
    /// Dependencies that it declares to need without naming them in its sources, from `[package.metadata.tidy.unnamed]`.
    pub unnamed: BTreeMap<String, String>,
}

/// One line of a Cargo.toml's dependency tables.
#[derive(Debug, Clone)]
pub struct Dependency {
    /// The package that is depended on.
    pub name: String,
    /// The identifier that sources use for it.
    pub ident: String,
    pub kind: Kind,
}

/// Which table a dependency stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Dev,
    Build,
}

impl Package {
    /// Whether it is an adapter.
    pub fn is_engine(&self) -> bool {
        self.room.starts_with("engines/")
    }
}

impl Graph {
    /// Reads what `cargo metadata --format-version 1` printed, with dependencies.
    pub fn from_metadata(metadata: &Value) -> Result<Self> {
        let names: BTreeMap<&str, &str> = list(metadata, "packages")?
            .iter()
            .filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?)))
            .collect();
        let edges = normal_edges(metadata)?;
        let ours: BTreeSet<&str> =
            list(metadata, "workspace_members")?.iter().filter_map(Value::as_str).collect();
        let mut packages = Vec::new();
        for package in list(metadata, "packages")? {
            let id = text(package, "id")?;
            if !ours.contains(id) {
                continue;
            }
            let tree =
                below(id, &edges).into_iter().filter_map(|id| names.get(id)).map(|name| (*name).to_owned());
            packages.push(Package { tree: tree.collect(), ..read_package(package)? });
        }
        packages.sort_by(|a, b| a.room.cmp(&b.room));
        Ok(Self { packages })
    }

    /// The package of this workspace that has this name.
    pub fn find(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name)
    }
}

fn read_package(package: &Value) -> Result<Package> {
    let manifest = PathBuf::from(text(package, "manifest_path")?);
    let folder = manifest.parent().context("a manifest has a folder")?;
    let room = folder.strip_prefix(tool::root()).unwrap_or(folder).to_string_lossy().into_owned();
    let mut direct = Vec::new();
    for dependency in list(package, "dependencies")? {
        let name = text(dependency, "name")?.to_owned();
        let ident = dependency["rename"].as_str().unwrap_or(&name).replace('-', "_");
        let kind = match dependency["kind"].as_str() {
            None => Kind::Normal,
            Some("build") => Kind::Build,
            Some(_) => Kind::Dev,
        };
        direct.push(Dependency { name, ident, kind });
    }
    let unnamed = package["metadata"]["tidy"]["unnamed"].as_object().into_iter().flatten();
    let unnamed = unnamed
        .map(|(name, reason)| (name.clone(), reason.as_str().unwrap_or_default().to_owned()))
        .collect();
    Ok(Package { name: text(package, "name")?.to_owned(), room, direct, tree: BTreeSet::new(), unnamed })
}

fn normal_edges(metadata: &Value) -> Result<BTreeMap<&str, Vec<&str>>> {
    let mut edges = BTreeMap::new();
    for node in list(&metadata["resolve"], "nodes")? {
        let to = list(node, "deps")?.iter().filter(|dep| {
            dep["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
        });
        edges.insert(text(node, "id")?, to.filter_map(|dep| dep["pkg"].as_str()).collect());
    }
    Ok(edges)
}

fn below<'a>(from: &'a str, edges: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(id) = open.pop() {
        for &next in edges.get(id).into_iter().flatten() {
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    seen
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("cargo metadata has no list {key}"))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("cargo metadata has no text {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargo_metadata() {
        let metadata = serde_json::json!({
            "workspace_members": ["a"],
            "packages": [
                {"id": "a", "name": "ours", "manifest_path": tool::root().join("crates/ours/Cargo.toml"),
                 "metadata": {"tidy": {"unnamed": {"z": "why"}}},
                 "dependencies": [{"name": "b-b", "kind": null}, {"name": "d", "rename": "other", "kind": "dev"}]},
                {"id": "b", "name": "b-b", "manifest_path": "/x/Cargo.toml", "dependencies": []},
                {"id": "c", "name": "c", "manifest_path": "/y/Cargo.toml", "dependencies": []},
                {"id": "d", "name": "d", "manifest_path": "/z/Cargo.toml", "dependencies": []},
            ],
            "resolve": {"nodes": [
                {"id": "a", "deps": [{"pkg": "b", "dep_kinds": [{"kind": null}]}, {"pkg": "d", "dep_kinds": [{"kind": "dev"}]}]},
                {"id": "b", "deps": [{"pkg": "c", "dep_kinds": [{"kind": null}]}]},
            ]},
        });
        let graph = Graph::from_metadata(&metadata).expect("reads");
        let ours = graph.find("ours").expect("is there");
        assert_eq!(ours.room, "crates/ours");
        assert_eq!(ours.direct[0].ident, "b_b");
        assert_eq!((ours.direct[1].ident.as_str(), ours.direct[1].kind), ("other", Kind::Dev));
        assert_eq!(ours.tree, BTreeSet::from(["b-b".to_owned(), "c".to_owned()]));
        assert_eq!(ours.unnamed["z"], "why");
    }
}
