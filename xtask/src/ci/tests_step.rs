//! Runs all tests and says of them what a person needs: a line a binary, and all that failed.
//!
//! Every binary runs, whatever failed before. Lines of tests that passed are left out; anything else, a panic or a
//! server's last words, is shown as it comes.

use std::io::{BufRead, BufReader};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::leftovers::Playground;
use crate::tool;

/// Runs `cargo test --workspace`, and then looks at what it left behind.
pub fn run() -> Result<()> {
    let playground = Playground::make()?;
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let mut cargo = tool::cargo();
    cargo
        .args(["test", "--workspace", "--no-fail-fast"])
        .env("TMPDIR", playground.folder())
        .env("CARGO_TERM_COLOR", "never");
    cargo.stdout(writer.try_clone().context("clone a pipe")?).stderr(writer);
    let mut child = cargo.spawn().context("start cargo test")?;
    // The command holds the pipe's writing end; the reading would not end while it does.
    drop(cargo);
    let mut shown = Shown::default();
    let mut started = Instant::now();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("read what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        if shown.begins_binary(&line) {
            started = Instant::now();
        }
        if let Some(text) = shown.line(&line, started.elapsed().as_secs_f64()) {
            println!("{text}");
        }
    }
    let status = child.wait().context("wait for cargo test")?;
    let left = playground.check();
    println!("{} passed, {} failed", shown.passed, shown.failed);
    if !status.success() {
        bail!("cargo test failed ({status})");
    }
    if shown.passed == 0 {
        bail!("no test ran");
    }
    left
}

/// What has been seen of the output so far.
#[derive(Debug, Default)]
struct Shown {
    binary: String,
    passed: usize,
    failed: usize,
}

impl Shown {
    /// Takes note of cargo's line that begins a test binary.
    fn begins_binary(&mut self, line: &str) -> bool {
        let line = line.trim_start();
        let Some(name) = line.strip_prefix("Running ").or(line.strip_prefix("Doc-tests ")) else {
            return false;
        };
        // `unittests src/lib.rs (/path/deps/mainstay_vault-0123456789abcdef)`
        let file = name.rsplit_once('/').map_or(name, |(_, file)| file.trim_end_matches(')'));
        let stem = file.rsplit_once('-').map_or(file, |(stem, _)| stem);
        self.binary = stem.to_owned();
        true
    }

    /// What to print for a line, if anything.
    fn line(&mut self, line: &str, seconds: f64) -> Option<String> {
        let trimmed = line.trim();
        if let Some(result) = trimmed.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            // A crate without tests of its own needs no line.
            let empty = result.starts_with("ok. 0 passed; 0 failed; 0 ignored");
            return (!empty).then(|| format!("{trimmed} | {} {seconds:.1} s", self.binary));
        }
        let dull = ["Running ", "Doc-tests ", "Compiling ", "Finished ", "Blocking ", "running "];
        let passed = trimmed.starts_with("test ") && trimmed.ends_with(" ... ok");
        if trimmed.is_empty() || passed || dull.iter().any(|word| trimmed.starts_with(word)) {
            return None;
        }
        Some(line.to_owned())
    }
}

/// The number before a word of libtest's result line: `ok. 3 passed; 0 failed; …`.
fn count(result: &str, word: &str) -> usize {
    let parts = result.split(['.', ';']).filter_map(|part| part.trim().strip_suffix(word));
    parts.filter_map(|number| number.trim().parse::<usize>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::Shown;

    #[test]
    fn shows_a_line_a_binary_and_what_failed() {
        let output = "   Compiling a v0.1.0
     Running unittests src/lib.rs (/x/target/debug/deps/mainstay_vault-0123456789abcdef)

running 2 tests
test a ... ok
test b ... FAILED

---- b stdout ----
assertion failed

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
     Running unittests src/lib.rs (/x/target/debug/deps/mainstay_api-0123456789abcdef)
running 0 tests
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let mut shown = Shown::default();
        let mut printed = Vec::new();
        for line in output.lines() {
            shown.begins_binary(line);
            printed.extend(shown.line(line, 1.0));
        }
        let result = "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let result = format!("{result} | mainstay_vault 1.0 s");
        assert_eq!(printed, ["test b ... FAILED", "---- b stdout ----", "assertion failed", &result]);
        assert_eq!((shown.passed, shown.failed), (1, 1));
    }
}
