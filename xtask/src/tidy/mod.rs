//! `cargo xtask tidy`: the house rules that no compiler checks.
//!
//! Each rule is a pure function from what it looks at to a list of findings, and has a test with an example that breaks
//! it. A finding says where, what, and what to do. A rule never fixes anything.

mod graph;
mod links;
mod rules;
mod sources;
mod unused;

use anyhow::{Result, bail};

use crate::tool;
use graph::Graph;
use sources::Source;

/// Runs every rule over the repository, prints the findings and fails if there are any.
pub fn run() -> Result<()> {
    let graph = Graph::from_metadata(&tool::metadata(true)?)?;
    let sources = Source::read_all()?;
    let mut findings = rules::check(&graph);
    findings.extend(sources::check(&sources));
    findings.extend(unused::check(&graph, &sources, &unused::workspace_dependencies()?));
    let files = tool::files()?.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    findings.extend(links::check(&sources, &files));
    for finding in &findings {
        println!("tidy: {finding}");
    }
    if !findings.is_empty() {
        bail!("tidy found {} things to put right", findings.len());
    }
    Ok(())
}

/// Whether `word` occurs in `text` as a whole identifier.
fn mentions(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(part)
            && !text[at + word.len()..].chars().next().is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::mentions;

    #[test]
    fn words_are_whole() {
        assert!(mentions("use hex::encode;", "hex"));
        assert!(!mentions("let hexagon = my_hex;", "hex"));
    }
}
