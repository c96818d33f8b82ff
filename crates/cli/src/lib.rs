//! The command line: arguments, one file a command, the printer, exit codes.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong usage or wrong fleet file; 3 judged, and not well. With `--output json`, stdout is one JSON
//! value and nothing else. A failed command's stderr ends with what to do next.

pub mod demo;

mod args;
mod commands;
mod failure;
mod printer;
mod progress;
mod render;
mod sandboxes;
mod session;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use mainstay_engine::Engine;

use args::{Cli, Output};
use failure::{Failure, Result};
use printer::Printer;

/// The engines that this binary knows; the only list of them is in `app`.
pub type Engines = &'static [&'static dyn Engine];

/// Runs the command line and says how it ended.
pub fn main(engines: Engines) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let printer = Printer { output: cli.global.output };
    tracing_subscriber::fmt()
        .with_env_filter(filter(cli.global.verbose))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    match run(cli, engines, printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            printer.failure(&failure);
            ExitCode::from(failure.exit)
        }
    }
}

fn run(cli: Cli, engines: Engines, printer: Printer) -> Result {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| {
        Failure::of(
            "io",
            &e,
            Some("this machine gave no threads or files: look at its limits (ulimit -a)".to_owned()),
        )
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let ended = runtime.block_on(async {
        let watch = Arc::clone(&stop);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                watch.store(true, Ordering::Relaxed);
            }
        });
        commands::run(cli, engines, printer, stop).await
    });
    // A thread that still reads from a dead disk or peer must not keep a finished command.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    ended
}

/// Help and versions are data; everything else that clap says is a usage error, in JSON where that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let printed = error.print();
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let json =
        std::env::args_os().collect::<Vec<_>>().windows(2).any(|w| w[0] == "--output" && w[1] == "json")
            || std::env::args_os().any(|a| a == "--output=json");
    let printer = Printer { output: if json { Output::Json } else { Output::Text } };
    let text = error.to_string();
    let message = text.trim_start_matches("error: ").trim_end().to_owned();
    printer.failure(&Failure::usage("usage", message, "see `mainstay --help`, or `--help` of the command"));
    ExitCode::from(2)
}

/// What is logged: warnings, and more with -v; `RUST_LOG` overrides.
fn filter(verbose: u8) -> tracing_subscriber::EnvFilter {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "info,mainstay=debug",
        _ => "debug",
    };
    tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level))
}
