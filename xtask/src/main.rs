//! The house's own chores, run as `cargo xtask COMMAND`.
//!
//! Everything here must work in a fresh clone with nothing but Rust's toolchain and what `scripts/engines` installs.
//! It depends on next to nothing, so that the chores themselves cost no build time. stdout carries the chores' results,
//! stderr the talk; exit 1 means that something was found, 2 that the command was wrong.

#![expect(clippy::print_stdout, reason = "a command-line tool: what it prints is its product")]

mod ci;
mod codegen;
mod new_engine;
mod tidy;
mod tool;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND
  ci [STEP..]        every check that a change must pass, or only the steps named
  tidy               the house rules: who may depend on whom, how files are kept
  codegen [--check]  regenerate docs/generated, or fail where it is out of date
  new-engine NAME    start an adapter from the Fake engine";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["ci", steps @ ..] => ci::run(steps),
        ["tidy"] => tidy::run(),
        ["codegen"] => codegen::run(codegen::Mode::Write, None),
        ["codegen", "--check"] => codegen::run(codegen::Mode::Check, None),
        ["new-engine", name] => new_engine::run(name),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
