//! Every kind of mistake, in one table: the codes that scripts rely on, and what docs/errors/ says of each.
//!
//! A code is never renamed or given another meaning; new ones may come.

/// One kind of mistake.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// Its stable name.
    pub code: &'static str,
    /// What is wrong, in one sentence.
    pub what: &'static str,
    /// What to do.
    pub fix: &'static str,
}

macro_rules! codes {
    ($($name:ident = $code:literal: $what:literal, $fix:literal;)*) => {
        $(#[doc = $what] pub const $name: &str = $code;)*

        /// All of them, by name.
        pub const CODES: &[Code] = &[$(Code { code: $code, what: $what, fix: $fix }),*];
    };
}

codes! {
    BAD_COUNT = "bad-count": "A number is not whole, or outside what makes sense there.",
        "Write a whole number within the limits that the message names.";
    BAD_DURATION = "bad-duration": "A duration cannot be read.",
        "Write whole numbers with a unit each: `20ms`, `15m`, `1h30m`, `30d`. The units are ms, s, m, h, d, w and y.";
    BAD_NAME = "bad-name": "A name has characters that names do not have.",
        "Names begin with a letter and have small letters, digits and dashes, at most 41: `orders-2`. They become parts of paths and \
         of keys in the vault.";
    BAD_NODE = "bad-node": "A node is not a host and a port, or is named twice.",
        "Write `host:port`, as `db1:5432` or `[::1]:6379`, each once.";
    BAD_PATH = "bad-path": "A path is empty or has characters that paths do not have.",
        "Write a path, relative to the fleet file or absolute, with or without `file:` before it.";
    BAD_RECIPIENT = "bad-recipient": "A recipient is not an age public key, or has a typing error.",
        "Copy the line that begins with `age1` and that `age-keygen` printed as the public key.";
    BAD_SCHEDULE = "bad-schedule": "A schedule cannot be read, or never comes.",
        "Write cron's five fields (`0 2 * * *`) or words: `hourly :15`, `daily 02:00`, `weekly sunday 02:00`, `monthly 1 02:00`, \
         `every 6h`, `never`. Schedules are in UTC.";
    BAD_SETTING = "bad-setting": "The engine does not take this setting.",
        "Settings under `config:` are the engine's own, checked against what that version knows.";
    BAD_SHAPE = "bad-shape": "The engine cannot be laid out so.",
        "Change the number of nodes, or what else the message names.";
    BAD_SIZE = "bad-size": "A size cannot be read.",
        "Write a number with a unit: `500GiB`, `24GB`. The units are B, kB, MB, GB, TB, KiB, MiB, GiB and TiB.";
    BAD_URL = "bad-url": "A URL cannot be read, or holds a password.",
        "Write `file:FOLDER` or `s3://BUCKET/PREFIX`. Keys and passwords have keys of their own and are references.";
    BAD_VERSION = "bad-version": "A version cannot be read.",
        "Write numbers with dots: `15`, `7.0`.";
    BAD_YAML = "bad-yaml": "The file is not YAML, or uses of YAML what a fleet file has no use for (tags, several documents).",
        "Look at the place and just before it: indentation, a missing quote or bracket.";
    DUPLICATE_KEY = "duplicate-key": "A key stands twice in one mapping.",
        "Remove or rename one of the two.";
    DUPLICATE_NAME = "duplicate-name": "Two things that must be told apart have one name.",
        "Rename one of them. A cluster and a recovery group cannot share a name either, since commands take both.";
    EXACT_TOO_OFTEN = "exact-more-often-than-points": "Exact points are wanted more often than points.",
        "Make `exact.every` at least as long as the group's `every`: exact points are some of the points.";
    EXTERNAL_NEEDS_ACCESS = "external-needs-access": "An environment's servers run already, and a cluster does not say how to get in.",
        "Give it `access: { user: …, password: \"env:…\" }`.";
    EXTERNAL_NEEDS_NODES = "external-needs-nodes": "An environment's servers run already, and a cluster does not say where.",
        "Give it `nodes: [\"host:port\", …]`, in the cluster or in the environment's overrides.";
    GROUP_NAMES_NOBODY = "group-names-nobody": "A recovery group has no members.",
        "List the clusters that must be brought back to one instant, or remove the group.";
    KEEP_TOO_SHORT = "keep-shorter-than-interval": "Snapshots expire before the next one is due.",
        "Keep them for longer than the time between two snapshots, or take them more often.";
    KEY_DOES_NOT_APPLY = "key-does-not-apply": "A key has no meaning beside the others.",
        "Remove it, or change what the message names.";
    LOCAL_NAMES_HOSTS = "local-names-hosts": "A cluster names hosts, and the environment starts its servers on this machine.",
        "Write `hosts: external` for servers that run already, or a number of nodes for servers that Mainstay starts.";
    MEMBER_NOT_FOLLOWED = "member-not-followed": "A member of a recovery group has no log in the vault, so it cannot be brought to the group's instant.",
        "Give the cluster `backup: { follow: true }`, or take it out of the group.";
    MISSING_KEY = "missing-key": "A key that must be there is not.",
        "Add it.";
    NODES_DO_NOT_DIVIDE = "nodes-do-not-divide": "The nodes cannot be divided into primaries with so many replicas each.",
        "Make `nodes` a multiple of 1 + `cluster.replicas`.";
    RPO_TOO_TIGHT = "rpo-tighter-than-backup": "A tier promises to lose less than the cluster's backup policy can keep.",
        "Follow the log, take snapshots more often, choose another tier, or loosen the tier's `rpo`. What is judged is what is durable \
         in the vault: a followed log gets there within five seconds.";
    SECRET_IN_CLEAR = "secret-in-clear": "A password or key stands in the file itself.",
        "Put it elsewhere and refer to it: `env:NAME`, `file:PATH` or `exec:COMMAND`. Change the secret if the file was shared.";
    STALL_OUT_OF_RANGE = "stall-out-of-range": "Writes would be held for no time at all, or for too long.",
        "Write between 1ms and 1s; 20ms is enough for most.";
    TOO_LARGE = "too-large": "The file is larger, deeper or has more values than any fleet needs.",
        "Is it the right file? At most 1 MiB, 32 levels and 50000 values, aliases written out.";
    UNKNOWN_CLUSTER = "unknown-cluster": "A cluster is named that is not in the file.",
        "Correct the name, or add the cluster.";
    UNKNOWN_ENGINE = "unknown-engine": "There is no such engine.",
        "Use one of those that the hint names.";
    UNKNOWN_ENVIRONMENT = "unknown-environment": "The environment that was asked for is not in the file.",
        "Choose one with `--env`, or add it under `environments`.";
    UNKNOWN_KEY = "unknown-key": "There is no such key here.",
        "Correct or remove it. Keys of your own, for anchors, may stand at the top of the file and begin with `x-`.";
    UNKNOWN_TIER = "unknown-tier": "A tier is named that is not in the file.",
        "Correct the name, or add the tier under `tiers`.";
    UNKNOWN_VALUE = "unknown-value": "A value is none of those that can stand here.",
        "Use one of those that the hint names.";
    UNKNOWN_VAULT = "unknown-vault": "A vault is named that is not in the file, or several are there and none is named.",
        "Correct the name, add the vault under `vaults`, or name one of them `main`, which is the default.";
    UNREADABLE_FILE = "unreadable-file": "The fleet file cannot be read.",
        "Name another with `--fleet FILE`, or write one with `mainstay init`.";
    WRONG_TYPE = "wrong-type": "A value is of another kind than it must be: a list for a text, nothing for something.",
        "Write it as the hint shows.";
}

/// The page docs/errors/CODE.md.
pub fn page(code: &Code) -> String {
    format!("# {}\n\n{}\n\n{}\n", code.code, code.what, code.fix)
}
