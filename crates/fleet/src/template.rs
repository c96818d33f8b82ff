//! What `mainstay init` writes: a fleet file to begin with, with comments, which checks clean as it is.

use mainstay_engine::Engine;

/// The file's text. Has a cluster of each engine that it knows an example for and that is among `engines`.
pub fn template(engines: &[&dyn Engine]) -> String {
    let known: Vec<&Example> = EXAMPLES
        .iter()
        .filter(|example| engines.iter().any(|engine| engine.name() == example.engine))
        .collect();
    let clusters: Vec<String> = match known.is_empty() {
        false => known.iter().map(|example| example.cluster.to_owned()).collect(),
        true => engines
            .iter()
            .take(1)
            .map(|engine| format!("  data:\n    engine: {}\n    backup: {{ follow: true }}\n", engine.name()))
            .collect(),
    };
    let members = match known.is_empty() {
        false => known.iter().map(|example| example.name).collect::<Vec<_>>().join(", "),
        true => "data".to_owned(),
    };
    let all = engines.iter().map(|engine| engine.name()).collect::<Vec<_>>().join(", ");
    TEXT.replace("@ENGINES@", &all).replace("@CLUSTERS@", &clusters.join("\n")).replace("@MEMBERS@", &members)
}

struct Example {
    engine: &'static str,
    name: &'static str,
    cluster: &'static str,
}

const EXAMPLES: [Example; 2] = [
    Example {
        engine: "postgres",
        name: "orders",
        cluster: "  orders:
    engine: postgres
    # version: \"15\"               # the newest installed, if left out
    nodes: 2                      # a primary and a standby
    # config: { track_commit_timestamp: \"on\" }   # PostgreSQL's own settings
    backup:
      snapshot: daily 02:00 UTC   # or cron: 0 2 * * *
      follow: true                # stream the log, so that every instant can be restored
      prove: daily 06:00 UTC      # restore the newest snapshot, start it, compare it
      keep: { within: 30d, monthly: 12 }
",
    },
    Example {
        engine: "redis",
        name: "stock",
        cluster: "  stock:
    engine: redis
    nodes: 6
    cluster: { replicas: 1 }      # three primaries with a replica each; leave it out for a single server
    backup: { follow: true }      # everything else has a default
",
    },
];

const TEXT: &str = "\
# The fleet: every database, where backups go, and what must come back together.
# Check it with `mainstay check`, start it with `mainstay up`. All keys: docs/fleet-file.md
fleet: shop

# Where it runs; chosen with --env. `local` starts the servers on this machine.
environments:
  local: { hosts: local }
  # colo: { hosts: external }     # servers that run already: give clusters `nodes: [\"host:port\"]` and `access`

# Where backups are kept: a folder, or s3://BUCKET/PREFIX.
vaults:
  main:
    url: \"file:vault\"
    # recipients: [\"age1...\"]     # public keys (age-keygen); a key is made at first use if there are none

# Engines: @ENGINES@
clusters:
@CLUSTERS@
# Clusters that refer to each other, restored to the same instant.
recovery_groups:
  all:
    members: [@MEMBERS@]
    every: 1m                     # a point in every log, that often
    exact: { every: 15m, stall: 20ms }   # writes held for at most 20 ms, so that nothing falls between
";
