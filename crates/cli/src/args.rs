//! The command line's grammar. Each command's help ends with an example that works.

use std::path::PathBuf;

use clap::{Args, FromArgMatches, Parser, Subcommand, ValueEnum};

/// Operates every database a platform stands on, and brings the whole fleet back to one instant.
#[derive(Debug, Parser)]
#[command(
    name = "mainstay",
    version,
    max_term_width = 110,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The fleet file
    #[arg(long, global = true, value_name = "FILE", default_value = "fleet.yaml")]
    pub fleet: PathBuf,
    /// The environment of the fleet file
    #[arg(long, global = true, value_name = "NAME", default_value = "local")]
    pub env: String,
    /// All that Mainstay keeps on this machine [default: ~/.mainstay]
    #[arg(long, global = true, value_name = "DIR", env = "MAINSTAY_HOME", hide_env_values = true)]
    pub home: Option<PathBuf>,
    /// What stdout is: text for people, or one JSON value and nothing else
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t = Output::Text)]
    pub output: Output,
    /// Say more on stderr (-vv: much more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a commented fleet file to start from
    #[command(after_help = "Example: mainstay init && mainstay check")]
    Init(InitArgs),
    /// Read the fleet file and report every mistake in it
    #[command(after_help = "Example: mainstay check --fleet fleet.yaml --output json")]
    Check,
    /// Start an environment's clusters on this machine
    #[command(after_help = "Example: mainstay up && mainstay status")]
    Up(ClustersArgs),
    /// Stop an environment's clusters; their data stays
    #[command(after_help = "Example: mainstay down --erase --yes")]
    Down(DownArgs),
    /// Show clusters, roles and protection; exit 3 if something is not well
    #[command(after_help = "Example: mainstay status")]
    Status(ClustersArgs),
    /// Judge every cluster; exit 3 if something is not well
    #[command(after_help = "Example: mainstay health orders")]
    Health(ClustersArgs),
    /// Open the engine's own client, or print connection URIs
    #[command(after_help = "Example: psql \"$(mainstay connect orders --uri | head -1)\"")]
    Connect(ConnectArgs),
    /// The guided first run: a small shop is started, destroyed, and brought back
    #[command(after_help = "Example: mainstay demo")]
    Demo(DemoArgs),
    /// Snapshots: take, list, pin, verify, prune
    #[command(subcommand)]
    Backup(Backup),
    /// Follow clusters' logs in the foreground, until stopped
    #[command(after_help = "Example: mainstay follow orders stock")]
    Follow(ClustersArgs),
    /// Mark one instant in every log of a recovery group
    #[command(after_help = "Example: mainstay point shop --exact")]
    Point(PointArgs),
    /// The vault itself: make, look, probe, keys
    #[command(subcommand)]
    Vault(VaultCommand),
    /// Get back: windows, plans, restores, sandboxes
    #[command(subcommand)]
    Recover(Recover),
    /// Restore into a sandbox, start, check, cross, record; exit 3 when anything differs
    #[command(after_help = "Example: mainstay prove shop --latest")]
    Prove(ProveArgs),
    /// The daemon: followers, schedules, fleet points, retention, proofs, metrics
    #[command(after_help = "Example: mainstay serve --listen 127.0.0.1:9469")]
    Serve(ServeArgs),
    /// Print what docs/generated is made of
    #[command(hide = true)]
    Generate(GenerateArgs),
}

#[derive(Args, Debug)]
pub struct InitArgs {
    /// Overwrite a file that is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct ClustersArgs {
    /// The clusters; all of the fleet file if none is named
    #[arg(value_name = "CLUSTER")]
    pub clusters: Vec<String>,
}

#[derive(Args, Debug)]
pub struct DownArgs {
    /// Erase the clusters' data as well (backups in the vault stay)
    #[arg(long)]
    pub erase: bool,
    #[command(flatten)]
    pub consent: Consent,
}

/// For what destroys.
#[derive(Args, Clone, Copy, Debug)]
pub struct Consent {
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
}

#[derive(Args, Debug)]
pub struct ConnectArgs {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// Print one connection URI a line, primaries first, instead (they hold the password)
    #[arg(long)]
    pub uri: bool,
    /// Arguments for the client
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<String>,
}

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Keep the servers, the vault and the sandbox afterwards
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Subcommand)]
pub enum Backup {
    /// Take a snapshot of a cluster into its vault
    #[command(after_help = "Example: mainstay backup run orders")]
    Run(BackupRunArgs),
    /// List the snapshots in the vaults
    #[command(after_help = "Example: mainstay backup list orders --output json")]
    List(ClustersArgs),
    /// Keep a snapshot whatever retention says, or let it go again
    #[command(after_help = "Example: mainstay backup pin 20260131t030405z-5f3a --unpin")]
    Pin(PinArgs),
    /// Read stored objects again and check every hash; exit 3 if any is damaged
    #[command(after_help = "Example: mainstay backup verify --sample 10")]
    Verify(VerifyArgs),
    /// Delete what retention lets go, in two phases
    #[command(after_help = "Example: mainstay backup prune --dry-run")]
    Prune(PruneArgs),
}

#[derive(Args, Debug)]
pub struct BackupRunArgs {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: String,
    /// How to get at the data
    #[arg(long, value_enum, default_value_t = WayArg::Auto)]
    pub way: WayArg,
    /// Files read at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WayArg {
    /// Files where they can be read, the protocol elsewhere
    Auto,
    /// The engine's replication protocol
    Protocol,
    /// The files beside the server
    Files,
}

#[derive(Args, Debug)]
pub struct PinArgs {
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: String,
    /// Let retention have it again
    #[arg(long)]
    pub unpin: bool,
}

#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// One snapshot; everything in the fleet's vaults if none is named
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,
    /// Read only that share of the objects, in percent, another one each time
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub sample: Option<u8>,
}

#[derive(Args, Debug)]
pub struct PruneArgs {
    /// The clusters; all of the fleet file if none is named. A cluster that is no longer in the file is pruned by name: all of it goes but what is pinned
    #[arg(value_name = "CLUSTER")]
    pub clusters: Vec<String>,
    /// Say what would go, and touch nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Delete what was marked at least this long ago (90s, 1h, …)
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub grace: String,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Args, Debug)]
pub struct PointArgs {
    /// The recovery group; may be left out where there is one
    #[arg(value_name = "GROUP")]
    pub group: Option<String>,
    /// Hold writes for a few milliseconds, so that the cut is exact
    #[arg(long)]
    pub exact: bool,
}

#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Make the fleet's vaults, where they are not there
    #[command(after_help = "Example: mainstay vault init")]
    Init,
    /// What the vaults hold
    #[command(after_help = "Example: mainstay vault status")]
    Status,
    /// Try whether the stores keep the promises that a vault needs
    #[command(after_help = "Example: mainstay vault probe")]
    Probe,
    /// Which keys this home holds
    #[command(after_help = "Example: mainstay vault keys")]
    Keys,
}

#[derive(Debug, Subcommand)]
pub enum Recover {
    /// To which instants each cluster can be restored
    #[command(after_help = "Example: mainstay recover window shop")]
    Window(ClustersArgs),
    /// Show what a restore would do, touching nothing
    #[command(after_help = "Example: mainstay recover plan shop --at 2026-01-31T03:04:05Z")]
    Plan(RecoverPlanArgs),
    /// Restore a cluster or a recovery group
    #[command(after_help = "Example: mainstay recover run shop --latest --into sandbox")]
    Run(RecoverRunArgs),
    /// List sandboxes and unfinished restores
    #[command(after_help = "Example: mainstay recover list")]
    List,
    /// Go on with an interrupted restore into an environment
    #[command(after_help = "Example: mainstay recover resume op-20260131t030405z")]
    Resume(OperationArgs),
    /// Put an environment's old data back
    #[command(after_help = "Example: mainstay recover undo op-20260131t030405z")]
    Undo(OperationArgs),
    /// Accept a restore into an environment, and delete the old data
    #[command(after_help = "Example: mainstay recover finish op-20260131t030405z")]
    Finish(OperationArgs),
    /// Stop and erase a sandbox
    #[command(after_help = "Example: mainstay recover drop sandbox-3f2a")]
    Drop(DropArgs),
}

/// What to restore to: exactly one.
#[derive(Args, Clone, Debug, Default)]
#[group(required = true, multiple = false)]
pub struct TargetArgs {
    /// All that was committed at or before this instant (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// A fleet point
    #[arg(long, value_name = "POINT")]
    pub point: Option<String>,
    /// A place (LANE=PLACE[,LANE=PLACE…]; the lane may be left out where there is one)
    #[arg(long, value_name = "PLACES")]
    pub position: Option<String>,
    /// A name written into the log (PostgreSQL's restore points)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The latest instant that every log reaches
    #[arg(long)]
    pub latest: bool,
}

#[derive(Args, Debug)]
pub struct RecoverPlanArgs {
    /// The recovery group or the cluster
    #[arg(value_name = "GROUP|CLUSTER")]
    pub what: String,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub begin: BeginArgs,
}

/// Which snapshots a restore begins with.
#[derive(Args, Clone, Debug, Default)]
pub struct BeginArgs {
    /// Begin with this snapshot instead of the newest that reaches the target; of a group, one for each cluster that it matters for
    #[arg(long = "snapshot", value_name = "ID")]
    pub snapshots: Vec<String>,
}

#[derive(Args, Debug)]
pub struct RecoverRunArgs {
    /// The recovery group or the cluster
    #[arg(value_name = "GROUP|CLUSTER")]
    pub what: String,
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub begin: BeginArgs,
    /// `sandbox`, or the environment's name to replace its data
    #[arg(long, value_name = "sandbox|ENV", default_value = "sandbox")]
    pub into: String,
    /// What becomes of times to live [default: shift]
    #[arg(long, value_enum)]
    pub ttl: Option<TtlArg>,
    /// Files restored at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TtlArg {
    /// Every key has the life left that it had then
    Shift,
    /// Ends stay where they were
    Absolute,
}

#[derive(Args, Debug)]
pub struct OperationArgs {
    /// The operation; may be left out where there is one
    #[arg(value_name = "OPERATION")]
    pub operation: Option<String>,
    #[command(flatten)]
    pub consent: Consent,
}

#[derive(Args, Debug)]
pub struct DropArgs {
    /// The sandbox
    #[arg(value_name = "SANDBOX", required_unless_present = "all")]
    pub sandbox: Option<String>,
    /// Every sandbox of this home
    #[arg(long, conflicts_with = "sandbox")]
    pub all: bool,
}

#[derive(Args, Debug)]
pub struct ProveArgs {
    /// The recovery group or the cluster
    #[arg(value_name = "GROUP|CLUSTER")]
    pub what: String,
    #[command(flatten)]
    pub target: OrLatest,
    #[command(flatten)]
    pub begin: BeginArgs,
}

/// As [`TargetArgs`], with the latest instant as the default.
#[derive(Clone, Debug)]
pub struct OrLatest(pub TargetArgs);

impl Args for OrLatest {
    fn augment_args(command: clap::Command) -> clap::Command {
        TargetArgs::augment_args(command)
            .mut_group("TargetArgs", |group| group.required(false))
            .mut_arg("latest", |latest| {
                latest.help("The latest instant that every log reaches (the default)")
            })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OrLatest {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut target = TargetArgs::from_arg_matches(matches)?;
        let given = [&target.at, &target.point, &target.position, &target.name];
        target.latest = given.iter().all(|one| one.is_none());
        Ok(Self(target))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl TargetArgs {
    /// As it was written.
    pub fn written(&self) -> String {
        let all = [
            ("--at", &self.at),
            ("--point", &self.point),
            ("--position", &self.position),
            ("--name", &self.name),
        ];
        let given = all.into_iter().find_map(|(flag, value)| Some(format!("{flag} {}", value.as_ref()?)));
        given.unwrap_or_else(|| "--latest".to_owned())
    }
}

#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Do what is due, catch the logs up to now, and return
    #[arg(long)]
    pub once: bool,
    /// Serve /metrics and /healthz here
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<std::net::SocketAddr>,
}

#[derive(Args, Debug)]
pub struct GenerateArgs {
    #[arg(value_enum)]
    pub what: Generated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Generated {
    Schema,
    Commands,
    Capabilities,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_restore_needs_exactly_one_target() {
        assert!(Cli::try_parse_from(["mainstay", "recover", "run", "shop"]).is_err());
        assert!(
            Cli::try_parse_from(["mainstay", "recover", "run", "shop", "--latest", "--name", "x"]).is_err()
        );
        assert!(Cli::try_parse_from(["mainstay", "recover", "run", "shop", "--latest"]).is_ok());
        assert!(Cli::try_parse_from(["mainstay", "prove", "shop"]).is_ok());
    }
}
