//! `/metrics` and `/healthz`, where the daemon is told to listen.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::{Daemon, Error, lock, metrics};

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "metrics are served");
    Ok(listener)
}

/// Serves until `stop` says so.
pub(crate) async fn serve(daemon: Arc<Daemon>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let routes = Router::new().route("/metrics", get(page)).route("/healthz", get(health)).with_state(daemon);
    let server = axum::serve(listener, routes);
    tokio::select! {
        result = server => if let Err(e) = result {
            tracing::error!(error = %e, "metrics are no longer served");
        },
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn page(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render(&daemon))
}

/// Whether the daemon itself is well; how the backups are is for the metrics to say.
async fn health(State(daemon): State<Arc<Daemon>>) -> impl IntoResponse {
    let errors: Vec<String> = {
        let clusters = lock(&daemon.clusters);
        let of =
            |(name, view): (_, &crate::view::ClusterView)| Some(format!("{name}: {}", view.error.as_ref()?));
        clusters.iter().filter_map(of).collect()
    };
    let followers: Vec<_> =
        lock(&daemon.followers).iter().map(|(name, f)| (name.to_string(), f.clone())).collect();
    let alone = followers.into_iter().filter_map(|(name, follower)| {
        let status = follower.status();
        let is_alone = status.lanes.values().any(|lane| lane.is_alone);
        is_alone.then(|| format!("{name}: {}", status.error().unwrap_or_default()))
    });
    let errors: Vec<String> = errors.into_iter().chain(alone).collect();
    match errors.is_empty() {
        true => (StatusCode::OK, "ok\n".to_owned()),
        // Still alive: a supervisor must not restart it because a database is down.
        false => (StatusCode::OK, format!("ok, but\n{}\n", errors.join("\n"))),
    }
}
