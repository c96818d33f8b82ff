//! `cargo xtask codegen`: what the program can say about itself, written down in docs/generated.
//!
//! The program is asked, never its sources, so that what is written is what it does. Nothing in docs/generated is edited
//! by hand; `--check` fails where a file there is not what the program says today.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::tool;

/// What is generated: the word for `mainstay generate WORD`, and the file that it is kept in.
const DOCUMENTS: &[(&str, &str)] =
    &[("schema", "fleet.schema.json"), ("commands", "commands.md"), ("capabilities", "capabilities.md")];

/// Whether to write what is out of date, or to fail on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Write,
    Check,
}

/// Asks `program`, or builds it first, and compares or writes every document.
pub fn run(mode: Mode, program: Option<&Path>) -> Result<()> {
    let program = match program {
        Some(program) => program.to_owned(),
        None => build()?,
    };
    let folder = tool::root().join("docs/generated");
    let mut stale = Vec::new();
    for (word, file) in DOCUMENTS {
        let text = tool::read(tool::command(&program).args(["generate", word]))
            .with_context(|| format!("ask {} for its {word}", program.display()))?;
        if text.trim().is_empty() {
            bail!("`mainstay generate {word}` printed nothing");
        }
        let path = folder.join(file);
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        if old == text {
            continue;
        }
        match mode {
            Mode::Write => {
                std::fs::create_dir_all(&folder).context("make docs/generated")?;
                std::fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
                println!("codegen: wrote docs/generated/{file}");
            }
            Mode::Check => stale.push(format!("docs/generated/{file}:{}", first_difference(&old, &text))),
        }
    }
    if !stale.is_empty() {
        bail!("out of date: {}: run cargo xtask codegen and commit", stale.join(", "));
    }
    Ok(())
}

/// Where the built program lies.
pub fn program() -> Result<PathBuf> {
    let metadata = tool::metadata(false)?;
    let target = metadata["target_directory"].as_str().context("cargo names no target directory")?;
    Ok(Path::new(target).join("debug/mainstay"))
}

fn build() -> Result<PathBuf> {
    tool::show(tool::cargo().args(["build", "--quiet", "-p", "mainstay-app"]))?;
    program()
}

/// The number of the first line in which two texts differ.
fn first_difference(old: &str, new: &str) -> usize {
    let same = old.lines().zip(new.lines()).take_while(|(a, b)| a == b).count();
    same + 1
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn the_first_different_line_is_named() {
        assert_eq!(first_difference("", "a\n"), 1);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), 2);
        assert_eq!(first_difference("a\n", "a\nb\n"), 2);
    }
}
