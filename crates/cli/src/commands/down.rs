//! `mainstay down`: an environment's clusters, stopped; with `--erase`, their data gone.

use mainstay_api::Down;

use super::Cx;
use crate::args::DownArgs;
use crate::failure::Result;
use crate::session::Session;

pub async fn run(cx: &Cx, args: &DownArgs) -> Result {
    let session = Session::open(cx)?;
    if args.erase {
        let present = session.environment.layouts()?;
        let names: Vec<_> = present.iter().map(|l| l.cluster.name.as_str()).collect();
        if !names.is_empty() {
            let question = format!(
                "Erase the data of {} in environment {} on this machine? Backups in the vaults stay.",
                names.join(", "),
                cx.global.env
            );
            cx.printer.confirm(&question, args.consent.yes)?;
        }
    }
    let bar = cx.bar("down");
    let stopped = session.environment.down(cx.engines, args.erase, bar.as_ref()).await;
    bar.finish();
    let down = Down {
        environment: cx.global.env.clone(),
        clusters: stopped?.iter().map(ToString::to_string).collect(),
        erased: args.erase,
    };
    cx.printer.result(&down, |down| {
        let what = if down.erased { "stopped and erased" } else { "stopped" };
        if down.clusters.is_empty() {
            "nothing was up".to_owned()
        } else {
            format!("{what}: {}", down.clusters.join(", "))
        }
    })
}
