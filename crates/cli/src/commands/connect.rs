//! `mainstay connect`: the engine's own client, or URIs for it.

use std::os::unix::process::CommandExt;

use mainstay_api::ClusterUris;
use mainstay_engine::{Access, Engine, Role};

use super::Cx;
use crate::args::{ConnectArgs, Output};
use crate::demo::client;
use crate::failure::{Failure, Result};
use crate::session::Session;

pub async fn run(cx: &Cx, args: &ConnectArgs) -> Result {
    let session = Session::open(cx)?;
    let cluster = session.cluster(&args.cluster)?;
    let access = session.running(cluster)?;
    let uris =
        ClusterUris { cluster: args.cluster.clone(), uris: uris(session.engine(cluster)?, &access).await? };
    if args.uri || cx.global.output == Output::Json {
        return cx.printer.result(&uris, |u| u.uris.join("\n"));
    }
    let first = uris
        .uris
        .first()
        .ok_or_else(|| Failure::failed("not-up", "the cluster has no nodes", "start it: mainstay up"))?;
    let (mut command, _) = client::command(first)
        .map_err(|e| Failure::of("client", &e, Some("print the URI instead: --uri".to_owned())))?;
    let error = command.args(&args.args).exec();
    let hint =
        format!("install {}, or print the URI instead: --uri", command.get_program().to_string_lossy());
    Err(Failure::of("client", &error, Some(hint)))
}

/// The URIs of a cluster's nodes, primaries first, those that do not answer last.
pub async fn uris(engine: &dyn Engine, access: &Access) -> Result<Vec<String>> {
    let Some(observe) = engine.observe() else {
        return Err(Failure::failed(
            "unsupported",
            format!("{} cannot be connected to yet", engine.name()),
            "use its own client",
        ));
    };
    let view = observe.observe(access).await?;
    let order = |role: Role| match role {
        Role::Primary => 0,
        Role::Replica => 1,
        Role::Unknown => 2,
        Role::Down => 3,
    };
    let mut nodes: Vec<_> = access.nodes.iter().zip(&view.nodes).collect();
    nodes.sort_by_key(|(_, seen)| order(seen.role));
    if nodes.iter().all(|(_, seen)| seen.role == Role::Down) {
        let message = format!("no node of {} answers", access.cluster);
        return Err(Failure::failed(
            "engine-unreachable",
            message,
            "start it: mainstay up; or see `mainstay status`",
        ));
    }
    Ok(nodes.into_iter().map(|(node, _)| observe.uri(access, node)).collect())
}
