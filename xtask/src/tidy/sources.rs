//! How files are kept: length, an opening comment, nothing unfinished, one list of engines.
//!
//! Text is all that is looked at; nothing is parsed. What a rule would find in its own source is written in two parts.

use anyhow::{Context, Result};

use super::mentions;
use crate::tool;

/// A file of the repository, as text.
#[derive(Debug)]
pub struct Source {
    /// Relative to the repository's root, with slashes.
    pub path: String,
    pub text: String,
}

/// A file longer than this is looked at hard: it gets a line in `LONG_FILES`, with the reason, or it is cut.
const LINES_MAX: usize = 700;

/// Files that may be longer, and why.
const LONG_FILES: &[(&str, &str)] = &[];

/// A test file shorter than this speaks for itself.
const UNTITLED_LINES_MAX: usize = 50;

/// What an unfinished or hidden piece of work looks like.
const UNFINISHED: &[(&str, &str)] = &[
    (concat!("todo", "!("), "finish it, or leave it out"),
    (concat!("unimplemented", "!("), "finish it, or leave it out"),
    (concat!("#[", "ignore"), "a test runs or is not there"),
    (concat!("clippy::al", "l)]"), "expect one lint, with its reason"),
];

impl Source {
    /// Reads what the rules look at: Rust sources, manifests, Markdown.
    pub fn read_all() -> Result<Vec<Self>> {
        let mut sources = Vec::new();
        for path in tool::files()? {
            let name = path.to_string_lossy().into_owned();
            let wanted = name.ends_with(".rs") || name.ends_with("Cargo.toml") || name.ends_with(".md");
            if wanted {
                let text = std::fs::read_to_string(tool::root().join(&path))
                    .with_context(|| format!("read {name}"))?;
                sources.push(Self { path: name, text });
            }
        }
        Ok(sources)
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_test(&self) -> bool {
        self.path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "benches")
    }
}

/// Every breach of the rules in these files.
pub fn check(sources: &[Source]) -> Vec<String> {
    let rules = [too_long, untitled, unfinished];
    let rust = sources.iter().filter(|source| source.is_rust());
    let mut findings: Vec<String> =
        rust.flat_map(|source| rules.iter().flat_map(|rule| rule(source))).collect();
    findings.extend(second_registry(sources));
    findings.extend(engine_without_readme(sources));
    findings
}

fn too_long(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    let excused = LONG_FILES.iter().any(|(path, reason)| *path == source.path && !reason.is_empty());
    if lines <= LINES_MAX || excused {
        return Vec::new();
    }
    vec![format!(
        "{}: {lines} lines, of {LINES_MAX} at most: cut it, or give a reason in LONG_FILES",
        source.path
    )]
}

fn untitled(source: &Source) -> Vec<String> {
    let exempt = source.is_test() && source.text.lines().count() < UNTITLED_LINES_MAX;
    if exempt || source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![format!("{}:1: does not open with //!: what it does, what it refuses, its invariants", source.path)]
}

fn unfinished(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        for (mark, advice) in UNFINISHED {
            if line.contains(mark) {
                findings.push(format!("{}:{}: {mark}: {advice}", source.path, number + 1));
            }
        }
    }
    findings
}

/// The list of engines is `app`'s: a file elsewhere that names two adapters' crates has begun a second one.
fn second_registry(sources: &[Source]) -> Vec<String> {
    let engines: Vec<String> = sources
        .iter()
        .filter_map(|source| source.path.strip_prefix("engines/")?.strip_suffix("/Cargo.toml"))
        .map(|name| format!("mainstay_{}", name.replace('-', "_")))
        .collect();
    let of_the_whole =
        |path: &str| ["crates/app/", "tests/", "bench/", "xtask/"].iter().any(|room| path.starts_with(room));
    let elsewhere = sources.iter().filter(|source| source.is_rust() && !of_the_whole(&source.path));
    elsewhere
        .filter(|source| engines.iter().filter(|engine| mentions(&source.text, engine)).count() > 1)
        .map(|source| {
            format!("{}: names more than one adapter: the list of engines is app's alone", source.path)
        })
        .collect()
}

fn engine_without_readme(sources: &[Source]) -> Vec<String> {
    let folders = sources.iter().filter(|source| source.path.starts_with("engines/"));
    folders
        .filter_map(|source| source.path.strip_suffix("/Cargo.toml"))
        .filter(|folder| folder.matches('/').count() == 1)
        .filter(|folder| !sources.iter().any(|source| source.path == format!("{folder}/README.md")))
        .map(|folder| format!("{folder}: has no README.md: versions supported, what is refused, and why"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        check(&sources)
    }

    #[track_caller]
    fn refuses(files: &[(&str, &str)], finding: &str) {
        let found = findings(files);
        assert!(found.len() == 1 && found[0].contains(finding), "{found:?}");
    }

    #[test]
    fn long_files_are_found() {
        refuses(&[("crates/a/src/lib.rs", &format!("//! A.\n{}", "\n".repeat(LINES_MAX)))], "lines, of 700");
        assert!(findings(&[("crates/a/src/lib.rs", &format!("//! A.\n{}", "\n".repeat(600)))]).is_empty());
    }

    #[test]
    fn untitled_files_are_found() {
        refuses(&[("crates/a/src/lib.rs", "fn main() {}\n")], "does not open with");
        assert!(findings(&[("crates/a/tests/it/small.rs", "fn main() {}\n")]).is_empty());
        refuses(&[("crates/a/tests/it/large.rs", &"\n".repeat(UNTITLED_LINES_MAX))], "does not open with");
    }

    #[test]
    fn unfinished_work_is_found() {
        for (mark, _) in UNFINISHED {
            refuses(&[("crates/a/src/lib.rs", &format!("//! A.\n\n    {mark})\n"))], ":3:");
        }
    }

    #[test]
    fn a_second_list_of_engines_is_found() {
        let both = "//! A.\nuse {mainstay_nats as a, mainstay_redis as b};\n";
        let of = |path| [("engines/nats/Cargo.toml", ""), ("engines/redis/Cargo.toml", ""), (path, both)];
        let readmes = [("engines/nats/README.md", ""), ("engines/redis/README.md", "")];
        refuses(&[&of("crates/cli/src/lib.rs")[..], &readmes].concat(), "more than one adapter");
        assert!(findings(&[&of("crates/app/src/main.rs")[..], &readmes].concat()).is_empty());
    }

    #[test]
    fn an_engine_without_readme_is_found() {
        refuses(&[("engines/nats/Cargo.toml", "")], "has no README.md");
    }
}
