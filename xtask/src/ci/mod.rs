//! `cargo xtask ci`: every check that a change must pass, cheapest first.
//!
//! All steps run, whatever failed before, so that one run shows all there is to put right; only what cannot mean anything
//! without the build is left out when the build failed. It ends with a line a step and what each took, and fails naming
//! the steps that failed.

mod leftovers;
mod tests_step;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{codegen, tidy, tool};

struct Step {
    name: &'static str,
    /// Whether it is pointless when `build` failed.
    on_build: bool,
    run: fn() -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { name: "engines", on_build: false, run: || tool::show(&mut tool::command("scripts/engines")) },
    Step {
        name: "fmt",
        on_build: false,
        run: || tool::show(tool::cargo().args(["fmt", "--all", "--check"])),
    },
    Step { name: "typos", on_build: false, run: typos },
    Step { name: "shellcheck", on_build: false, run: shellcheck },
    Step { name: "tidy", on_build: false, run: tidy::run },
    Step { name: "deny", on_build: false, run: deny },
    Step { name: "clippy", on_build: false, run: clippy },
    Step { name: "doc", on_build: false, run: doc },
    Step { name: "build", on_build: false, run: build },
    Step {
        name: "codegen",
        on_build: true,
        run: || codegen::run(codegen::Mode::Check, Some(&codegen::program()?)),
    },
    Step { name: "test", on_build: true, run: tests_step::run },
];

enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Runs every step, or those named.
pub fn run(named: &[&str]) -> Result<()> {
    if let Some(unknown) = named.iter().find(|name| !STEPS.iter().any(|step| step.name == **name)) {
        let all: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!("there is no step {unknown}; the steps are {}", all.join(" "));
    }
    let mut done: Vec<(&str, Outcome, Duration)> = Vec::new();
    for step in STEPS.iter().filter(|step| named.is_empty() || named.contains(&step.name)) {
        let started = Instant::now();
        let built =
            !done.iter().any(|(name, outcome, _)| *name == "build" && matches!(outcome, Outcome::Failed));
        let outcome = if step.on_build && !built {
            Outcome::Skipped
        } else {
            println!("== {}", step.name);
            match (step.run)() {
                Ok(()) => Outcome::Passed,
                Err(error) => {
                    println!("{}: {error:#}", step.name);
                    Outcome::Failed
                }
            }
        };
        done.push((step.name, outcome, started.elapsed()));
    }
    conclude(&done)
}

fn conclude(done: &[(&str, Outcome, Duration)]) -> Result<()> {
    println!("==");
    for (name, outcome, took) in done {
        let word = match outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "left out",
        };
        println!("{name:<12} {word:<9} {:>7.1} s", took.as_secs_f64());
    }
    let total: Duration = done.iter().map(|(_, _, took)| *took).sum();
    println!("{:<12} {:<9} {:>7.1} s", "total", "", total.as_secs_f64());
    let failed = done.iter().filter(|(_, outcome, _)| !matches!(outcome, Outcome::Passed));
    let failed: Vec<&str> = failed.map(|(name, _, _)| *name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn typos() -> Result<()> {
    tool::show(&mut tool::command(tool::pinned_tool("typos")?))
}

fn shellcheck() -> Result<()> {
    let is_script = |path: &std::path::PathBuf| {
        let named = path.extension().is_some_and(|extension| extension == "sh");
        let first = std::fs::read(tool::root().join(path)).unwrap_or_default();
        let line = first.split(|byte| *byte == b'\n').next().unwrap_or_default();
        named || (line.starts_with(b"#!") && line.ends_with(b"sh"))
    };
    let scripts: Vec<_> = tool::files()?.into_iter().filter(is_script).collect();
    tool::show(tool::command("shellcheck").arg("--external-sources").args(scripts))
}

fn deny() -> Result<()> {
    let mut deny = tool::command(tool::pinned_tool("cargo-deny")?);
    tool::show(deny.args([
        "--log-level",
        "warn",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}

fn clippy() -> Result<()> {
    tool::show(tool::cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn doc() -> Result<()> {
    let mut cargo = tool::cargo();
    cargo.env("RUSTDOCFLAGS", "-D warnings");
    tool::show(cargo.args(["doc", "--quiet", "--workspace", "--no-deps"]))
}

/// Builds the program and all tests with the features that `cargo test --workspace` gives them, so that nothing is built
/// twice.
fn build() -> Result<()> {
    tool::show(tool::cargo().args(["build", "--quiet", "--workspace", "--bins", "--tests"]))
}
