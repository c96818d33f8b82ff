//! `mainstay up`: an environment's clusters, started on this machine.

use std::time::Instant;

use mainstay_api::{Brought, Taken, Up};

use super::Cx;
use crate::args::ClustersArgs;
use crate::failure::{Failure, Result};
use crate::printer::table;
use crate::session::Session;

pub async fn run(cx: &Cx, args: &ClustersArgs) -> Result {
    let began = Instant::now();
    let session = Session::open(cx)?;
    if let Some(id) = super::recover::broken_off(&session)? {
        let message =
            format!("restore {id} into this environment was broken off: its data may be half restored");
        let hint = format!("mainstay recover resume {id}, or mainstay recover undo {id}");
        return Err(Failure::failed("operation-open", message, hint));
    }
    let names: Vec<_> = session.select(&args.clusters)?.iter().map(|c| c.name.clone()).collect();
    let bar = cx.bar("up");
    let ups = session.environment.up(cx.engines, Some(&names), bar.as_ref()).await;
    bar.finish();
    let brought = |up: mainstay_runtime::Up| Brought {
        cluster: up.layout.cluster.name.to_string(),
        engine: up.layout.cluster.engine.clone(),
        version: up.layout.installation.version.clone(),
        nodes: up.layout.nodes.iter().map(|n| Taken { node: n.name.clone(), port: n.ports[0] }).collect(),
    };
    let up = Up {
        environment: cx.global.env.clone(),
        clusters: ups?.into_iter().map(brought).collect(),
        seconds: began.elapsed().as_secs_f64(),
    };
    cx.printer.result(&up, |up| {
        let rows = up.clusters.iter().flat_map(|c| {
            let row = |n: &Taken| {
                vec![
                    c.cluster.clone(),
                    n.node.clone(),
                    format!("127.0.0.1:{}", n.port),
                    format!("{} {}", c.engine, c.version),
                ]
            };
            c.nodes.iter().map(row).collect::<Vec<_>>()
        });
        format!(
            "{}\nall ready after {:.1} s",
            table(&["cluster", "node", "address", "server"], rows),
            up.seconds
        )
    })
}
