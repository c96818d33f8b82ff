//! `mainstay recover drop`: a sandbox, stopped and erased.

use mainstay_api::Dropped;
use mainstay_runtime::Sandbox;

use super::Cx;
use crate::args::DropArgs;
use crate::failure::Result;
use crate::session;

pub async fn run(cx: &Cx, args: &DropArgs) -> Result {
    let home = session::home(cx)?;
    let sandboxes = match &args.sandbox {
        Some(id) => vec![Sandbox::find(&home, id)?],
        None => Sandbox::list(&home)?,
    };
    let mut dropped = Vec::new();
    for sandbox in sandboxes {
        let id = sandbox.id().to_owned();
        sandbox.drop_all().await?;
        dropped.push(id);
    }
    cx.printer.result(&Dropped { dropped }, |d| {
        if d.dropped.is_empty() {
            "there were none".to_owned()
        } else {
            format!("dropped: {}", d.dropped.join(", "))
        }
    })
}
