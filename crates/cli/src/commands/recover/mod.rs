//! `mainstay recover …`: getting back.

mod drop;
mod list;
mod operation;
mod plan;
mod run;
pub mod target;
pub mod window;

use super::Cx;
use crate::args::Recover;
use crate::failure::Result;
pub use operation::broken_off;

pub async fn run(cx: &Cx, verb: Recover) -> Result {
    match verb {
        Recover::Window(args) => window::run(cx, &args).await,
        Recover::Plan(args) => plan::run(cx, &args).await,
        Recover::Run(args) => run::run(cx, &args).await,
        Recover::List => list::run(cx).await,
        Recover::Resume(args) => operation::resume(cx, &args).await,
        Recover::Undo(args) => operation::undo(cx, &args).await,
        Recover::Finish(args) => operation::finish(cx, &args).await,
        Recover::Drop(args) => drop::run(cx, &args).await,
    }
}
