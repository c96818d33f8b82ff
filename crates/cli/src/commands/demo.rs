//! `mainstay demo`: see [`crate::demo`].

use std::sync::Arc;

use super::Cx;
use crate::args::DemoArgs;
use crate::failure::{Failure, Result};
use crate::session;

pub async fn run(cx: &Cx, args: &DemoArgs) -> Result {
    let dir = session::home(cx)?.path().join("demo");
    let (keep, stop, printer) = (args.keep, Arc::clone(&cx.stop), cx.printer);
    let told = tokio::task::spawn_blocking(move || crate::demo::run(&dir, keep, &stop, printer)).await;
    told.map_err(|e| Failure::of("internal", &e, Some("report this as a bug".to_owned())))?
}
