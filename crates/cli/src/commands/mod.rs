//! One file a command; nouns are folders.

mod backup;
pub mod check;
mod connect;
mod demo;
mod down;
mod follow;
mod generate;
mod health;
mod init;
mod point;
mod prove;
mod recover;
mod serve;
mod status;
mod up;
mod vault;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::Engines;
use crate::args::{Cli, Command, Global};
use crate::failure::{Failure, Result};
use crate::printer::Printer;
use crate::progress::Bar;

/// How long work may take to end when somebody pressed Ctrl-C.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// What every command is given.
#[derive(Clone)]
pub struct Cx {
    pub engines: Engines,
    pub global: Global,
    pub printer: Printer,
    /// Set when somebody pressed Ctrl-C.
    pub stop: Arc<AtomicBool>,
    /// The command's result is the list of the fleet file's mistakes.
    pub is_check: bool,
}

impl Cx {
    /// Progress of a piece of work.
    pub fn bar(&self, title: impl Into<String>) -> Arc<Bar> {
        Bar::new(title, Arc::clone(&self.stop))
    }

    /// Does work until it is done or somebody pressed Ctrl-C. It hears of that by its progress, and has a while to end and put away what it began.
    pub async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        let done = tokio::select! {
            done = &mut work => return done,
            () = self.stopped() => tokio::time::timeout(STOP_GRACE, work).await,
        };
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(failure)) if failure.code != "cancelled" => Err(failure),
            Ok(Err(_)) | Err(_) => Err(Failure::stopped()),
        }
    }

    /// Returns once somebody pressed Ctrl-C.
    pub async fn stopped(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Runs one command.
pub async fn run(cli: Cli, engines: Engines, printer: Printer, stop: Arc<AtomicBool>) -> Result {
    let is_check = matches!(cli.command, Command::Check);
    let cx = Cx { engines, global: cli.global, printer, stop, is_check };
    match cli.command {
        Command::Init(args) => init::run(&cx, &args),
        Command::Check => check::run(&cx),
        Command::Up(args) => up::run(&cx, &args).await,
        Command::Down(args) => down::run(&cx, &args).await,
        Command::Status(args) => status::run(&cx, &args).await,
        Command::Health(args) => health::run(&cx, &args).await,
        Command::Connect(args) => connect::run(&cx, &args).await,
        Command::Demo(args) => demo::run(&cx, &args).await,
        Command::Backup(verb) => backup::run(&cx, verb).await,
        Command::Follow(args) => follow::run(&cx, &args).await,
        Command::Point(args) => point::run(&cx, &args).await,
        Command::Vault(verb) => vault::run(&cx, &verb).await,
        Command::Recover(verb) => recover::run(&cx, verb).await,
        Command::Prove(args) => prove::run(&cx, args).await,
        Command::Serve(args) => serve::run(&cx, &args).await,
        Command::Generate(args) => generate::run(&cx, args.what),
    }
}
