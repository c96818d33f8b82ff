//! `mainstay serve`: the daemon, in the foreground until SIGTERM.

use std::sync::Arc;

use async_trait::async_trait;
use mainstay_daemon::{BoxError, Config, Rhythm, World, serve, serve_once};
use mainstay_model::{Cluster, Fleet};
use mainstay_recovery::Protected;
use mainstay_recovery::follow::FollowOptions;
use mainstay_recovery::prove::Sandboxes;
use mainstay_runtime::Home;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::Cx;
use super::backup::holder;
use crate::args::ServeArgs;
use crate::failure::{Failure, Result};
use crate::sandboxes::Made;
use crate::session::{Missing, Session, Vaults};

pub async fn run(cx: &Cx, args: &ServeArgs) -> Result {
    let session = Session::open(cx)?;
    // A vault that cannot be opened is said here, to a person, and not to a log every few seconds.
    // What is to be done once cannot be done without it, and does not wait for it.
    let missing = if args.once { Missing::Make } else { Missing::Spool };
    for (name, spec) in &session.fleet.vaults {
        session.vault(name.as_str(), spec, missing).await?;
    }
    let world = Here {
        cx: cx.clone(),
        fleet: session.fleet.clone(),
        home: session.home.clone(),
        vaults: session.vaults(),
        sandboxes: Made::new(&session),
    };
    let config = Config {
        fleet: session.fleet.clone(),
        world: Arc::new(world),
        state: Some(session.state()?),
        holder: holder(),
        follow: FollowOptions::new(holder()),
        jobs: 2,
        listen: args.listen,
        rhythm: Rhythm::default(),
    };
    if args.once {
        return once(cx, config).await;
    }
    let mut term = signal(SignalKind::terminate()).map_err(|e| Failure::of("io", &e, None))?;
    cx.printer.say(format!(
        "serving fleet {} ({}); Ctrl-C or SIGTERM ends it",
        session.fleet.name, session.fleet.environment.name
    ));
    let stop = async {
        tokio::select! {
            _ = term.recv() => {}
            () = cx.stopped() => {}
        }
    };
    serve(config, stop).await.map_err(|e| {
        Failure::of("listen", &e, Some("choose another address: --listen 127.0.0.1:PORT".to_owned()))
    })
}

async fn once(cx: &Cx, config: Config) -> Result {
    #[derive(Serialize)]
    struct Did {
        done: Vec<String>,
        failed: Vec<String>,
        skipped: Vec<String>,
    }
    let once = serve_once(config).await;
    let did = Did { done: once.done, failed: once.failed, skipped: once.skipped };
    let failed = did.failed.join("; ");
    if !failed.is_empty() {
        return Err(Failure::failed("not-all-done", failed, "see `mainstay status`, then run it again"));
    }
    cx.printer.result(&did, |did| {
        let done = if did.done.is_empty() {
            "nothing was due".to_owned()
        } else {
            format!("done: {}", did.done.join(", "))
        };
        if did.skipped.is_empty() { done } else { format!("{done}\nnot up: {}", did.skipped.join(", ")) }
    })
}

/// The fleet as it is on this machine.
struct Here {
    cx: Cx,
    fleet: Fleet,
    home: Home,
    vaults: Vaults,
    sandboxes: Made,
}

#[async_trait]
impl World for Here {
    async fn protected(&self, cluster: &Cluster) -> std::result::Result<Protected, BoxError> {
        let session =
            Session::with(&self.cx, self.fleet.clone(), self.home.clone(), Arc::clone(&self.vaults))
                .map_err(boxed)?;
        session.protected(cluster, Missing::Spool).await.map_err(boxed)
    }

    fn sandboxes(&self) -> &dyn Sandboxes {
        &self.sandboxes
    }
}

fn boxed(failure: Failure) -> BoxError {
    failure.message.into()
}
