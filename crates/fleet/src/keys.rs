//! Every key of a fleet file, in one table.
//!
//! The table drives the check of shapes, the suggestions for misspelt keys, the JSON Schema and the reference in
//! docs/fleet-file.md, so that none of them can say something else than the others.

/// A mapping with fixed keys.
#[derive(Debug)]
pub struct Section {
    /// What it is called in messages and in the reference: "a cluster", "`backup`".
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// Its keys, in the order of the reference.
    pub keys: &'static [Key],
}

/// One key of a section.
#[derive(Debug)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// What its value is.
    pub shape: Shape,
    /// Whether it must be there.
    pub required: bool,
    /// What stands for it when it is not there; empty when nothing does.
    pub default: &'static str,
    /// What it says.
    pub about: &'static str,
    /// A value, for hints and for the reference.
    pub example: &'static str,
}

/// What a value can be.
#[derive(Debug)]
pub enum Shape {
    /// `[a-z][a-z0-9-]{0,40}`
    Name,
    /// Any text, not empty.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number within limits.
    Count(u32, u32),
    /// `15m`
    Duration,
    /// `15m` or `never`.
    DurationOrNever,
    /// `500GiB`
    Size,
    /// `daily 02:00` or `never`.
    Schedule,
    /// `15`
    Version,
    /// `s3://bucket`
    VaultUrl,
    /// `https://host:port`
    Endpoint,
    /// `env:NAME`
    Secret,
    /// `age1…`
    Recipient,
    /// `host:port`
    HostPort,
    /// A path, with or without `file:`.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list, and what its items are.
    List(&'static Shape),
    /// A mapping with fixed keys.
    Section(&'static Section),
    /// One of these words for short, or the section.
    ChoiceOrSection(&'static [&'static str], &'static Section),
    /// A number of nodes or a list of them.
    Nodes,
    /// A mapping from names that the user chooses to a section.
    Named(&'static Section),
    /// As `Named`, but what the sections require may be missing and `null` takes a value away.
    Overrides(&'static Section),
    /// The engine's own settings: any keys, with scalar values.
    Settings,
    /// Read by a later release; any list or mapping.
    Later,
}

const fn key(
    name: &'static str,
    shape: Shape,
    default: &'static str,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key { name, shape, required: false, default, about, example }
}

const fn required(name: &'static str, shape: Shape, example: &'static str, about: &'static str) -> Key {
    Key { name, shape, required: true, default: "", about, example }
}

/// The whole file.
pub static FILE: Section = Section {
    name: "the fleet file",
    about: "One fleet. Paths are relative to the file. Keys that begin with `x-` are the user's own.",
    keys: &[
        required(
            "fleet",
            Shape::Name,
            "shop",
            "The fleet's name. Its backups are filed under it: renaming a fleet begins anew.",
        ),
        key(
            "environments",
            Shape::Named(&ENVIRONMENT),
            "{ local: { hosts: local } }",
            "{ local: { hosts: local } }",
            "Where the fleet runs. `local`, this machine, is always there.",
        ),
        key(
            "vaults",
            Shape::Named(&VAULT),
            "{ main: { url: \"file:vault\" } }",
            "{ main: { url: \"file:vault\" } }",
            "Where backups are kept.",
        ),
        key(
            "tiers",
            Shape::Named(&TIER),
            "",
            "{ t1: { total: { rto: 1h, rpo: 1m } } }",
            "What may be lost and how long it may take, for clusters to choose from.",
        ),
        required("clusters", Shape::Named(&CLUSTER), "{ orders: { engine: postgres } }", "The databases."),
        key(
            "recovery_groups",
            Shape::Named(&GROUP),
            "",
            "{ shop: { members: [orders, stock] } }",
            "Clusters that must be brought back to the same instant.",
        ),
        key("slos", Shape::Later, "", "{}", "Read by a later release."),
        key("budget", Shape::Later, "", "{}", "Read by a later release."),
        key("drills", Shape::Later, "", "{}", "Read by a later release."),
    ],
};

static ENVIRONMENT: Section = Section {
    name: "an environment",
    about: "One place where the fleet runs, chosen with `--env`.",
    keys: &[
        required(
            "hosts",
            Shape::ChoiceOrSection(&["local", "external", "kubernetes"], &HOSTS),
            "local",
            "`local`: Mainstay starts the servers on this machine. `external`: they run already; every cluster names its `nodes` and its `access`.",
        ),
        key("region", Shape::Text, "", "us-east-1", "Where it is."),
        key("failover_to", Shape::Text, "", "eu-west-1", "Where it goes when that is lost."),
        key(
            "clusters",
            Shape::Overrides(&CLUSTER),
            "",
            "{ orders: { nodes: 1 } }",
            "What is different here: any key of any cluster. Mappings are merged key by key, all else is replaced, `null` takes away.",
        ),
    ],
};

static HOSTS: Section = Section {
    name: "`hosts`",
    about: "The long form of `hosts`.",
    keys: &[
        required(
            "kind",
            Shape::Choice(&["local", "external", "kubernetes"]),
            "kubernetes",
            "Who runs the servers.",
        ),
        key("namespace", Shape::Name, "", "chat", "The Kubernetes namespace."),
    ],
};

static VAULT: Section = Section {
    name: "a vault",
    about: "A place in object storage that holds backups. A cluster uses the one that its `backup.vault` names, else the only one, else `main`.",
    keys: &[
        required("url", Shape::VaultUrl, "s3://chat-backups/prod", "`file:FOLDER` or `s3://BUCKET/PREFIX`."),
        key(
            "recipients",
            Shape::List(&Shape::Recipient),
            "a key made at first use, in the home",
            "[\"age1…\"]",
            "Public keys of `age` that backups are encrypted to. Who holds a matching identity can restore.",
        ),
        key(
            "copies",
            Shape::List(&Shape::VaultUrl),
            "",
            "[\"s3://chat-backups-eu\"]",
            "Further places for the same objects. Checked, but not copied to before a later release.",
        ),
        key(
            "endpoint",
            Shape::Endpoint,
            "Amazon's",
            "https://s3.example.org:9000",
            "An S3 server other than Amazon's.",
        ),
        key("region", Shape::Text, "`AWS_REGION`, else us-east-1", "us-east-1", "The bucket's region."),
        key(
            "access_key",
            Shape::Secret,
            "`AWS_ACCESS_KEY_ID`",
            "env:VAULT_KEY_ID",
            "The id of the key to S3.",
        ),
        key("secret_key", Shape::Secret, "`AWS_SECRET_ACCESS_KEY`", "env:VAULT_SECRET", "Its secret."),
    ],
};

static TIER: Section = Section {
    name: "a tier",
    about: "Objectives by scenario. Node and zone are met by replicas, the others by what is durable in the vault.",
    keys: &[
        key("node", Shape::Section(&OBJECTIVE), "", "{ rto: 1m, rpo: 0s }", "A node is lost."),
        key("zone", Shape::Section(&OBJECTIVE), "", "{ rto: 5m, rpo: 0s }", "A zone is lost."),
        key("region", Shape::Section(&OBJECTIVE), "", "{ rto: 15m, rpo: 5m }", "A region is lost."),
        key(
            "corruption",
            Shape::Section(&OBJECTIVE),
            "",
            "{ rto: 2h, rpo: 1h }",
            "Data was changed or deleted that should not have been.",
        ),
        key("total", Shape::Section(&OBJECTIVE), "", "{ rto: 4h, rpo: 24h }", "All is lost but the vault."),
    ],
};

static OBJECTIVE: Section = Section {
    name: "an objective",
    about: "What one scenario may cost.",
    keys: &[
        key("rto", Shape::Duration, "", "15m", "The longest time until it works again."),
        key("rpo", Shape::Duration, "", "5m", "The longest time whose changes may be lost."),
    ],
};

static CLUSTER: Section = Section {
    name: "a cluster",
    about: "One deployment of one engine.",
    keys: &[
        required("engine", Shape::Name, "postgres", "The kind of database."),
        key(
            "version",
            Shape::Version,
            "the newest installed, pinned at the first start",
            "\"15\"",
            "`15` stands for every 15.x.",
        ),
        key(
            "nodes",
            Shape::Nodes,
            "1",
            "3",
            "How many, for Mainstay to start; or, where they run already, `[\"host:port\", …]`.",
        ),
        key(
            "cluster",
            Shape::Section(&SHAPE),
            "",
            "{ replicas: 1 }",
            "The engine's own clustering (Redis Cluster).",
        ),
        key("tier", Shape::Name, "", "t1", "One of `tiers`."),
        key("memory", Shape::Size, "the engine's own", "24GiB", "Memory of one node."),
        key(
            "config",
            Shape::Settings,
            "",
            "{ track_commit_timestamp: \"on\" }",
            "The engine's own settings.",
        ),
        key(
            "backup",
            Shape::Section(&BACKUP),
            "",
            "{ follow: true }",
            "How it is backed up. Without it, it is not; `{}` takes every default.",
        ),
        key(
            "access",
            Shape::Section(&ACCESS),
            "",
            "{ user: mainstay, password: \"env:PGPASSWORD\" }",
            "How to get into servers that run already.",
        ),
        key(
            "control",
            Shape::Section(&CONTROL),
            "",
            "{ data: /var/lib/postgresql/15/main }",
            "How to stop and start servers that run already, to restore into them.",
        ),
        key("maintain", Shape::Later, "", "{}", "Read by a later release."),
    ],
};

static SHAPE: Section = Section {
    name: "`cluster`",
    about: "How the engine's own clustering divides the nodes.",
    keys: &[key(
        "replicas",
        Shape::Count(0, 16),
        "0",
        "1",
        "Replicas of each primary: `nodes` is a multiple of 1 + this.",
    )],
};

static BACKUP: Section = Section {
    name: "`backup`",
    about: "What the vault gets of a cluster, when, and how long it is kept.",
    keys: &[
        key(
            "snapshot",
            Shape::Schedule,
            "daily 02:00",
            "daily 02:00 UTC",
            "When a snapshot is taken: words, cron's five fields, or `never`.",
        ),
        key(
            "follow",
            Shape::Bool,
            "true",
            "true",
            "Whether the log is followed, so that every instant can be restored.",
        ),
        key(
            "prove",
            Shape::Schedule,
            "never",
            "daily 06:00",
            "When the newest snapshot is restored, started and compared.",
        ),
        key(
            "keep",
            Shape::Section(&KEEP),
            "{ within: 30d }",
            "{ within: 30d, monthly: 12 }",
            "How long it is kept.",
        ),
        key("vault", Shape::Name, "the only one, else `main`", "main", "One of `vaults`."),
    ],
};

static KEEP: Section = Section {
    name: "`keep`",
    about: "A snapshot is kept if any rule keeps it.",
    keys: &[
        key(
            "within",
            Shape::Duration,
            "30d; 0 beside other rules",
            "30d",
            "Every snapshot younger than this.",
        ),
        key("daily", Shape::Count(0, 10_000), "0", "30", "The newest of each of the last so many days."),
        key("weekly", Shape::Count(0, 10_000), "0", "8", "The newest of each of the last so many weeks."),
        key("monthly", Shape::Count(0, 10_000), "0", "12", "The newest of each of the last so many months."),
        key("yearly", Shape::Count(0, 10_000), "0", "7", "The newest of each of the last so many years."),
        key("least", Shape::Count(1, 10_000), "2", "2", "Never fewer than this, however old they are."),
        key(
            "log",
            Shape::Duration,
            "`within`, else 7d",
            "24h",
            "The log of so long a time back from now, with what is needed to use it.",
        ),
    ],
};

static ACCESS: Section = Section {
    name: "`access`",
    about: "How to get into servers that Mainstay did not start.",
    keys: &[
        key("user", Shape::Text, "the engine's default", "mainstay", "The user."),
        key(
            "password",
            Shape::Secret,
            "",
            "env:PGPASSWORD",
            "Where the password is: `env:NAME`, `file:PATH`, `exec:COMMAND`.",
        ),
        key(
            "tls",
            Shape::Section(&TLS),
            "",
            "{ ca: \"file:ca.pem\", mode: verify-full }",
            "TLS. Without it, there is none.",
        ),
    ],
};

static TLS: Section = Section {
    name: "`tls`",
    about: "TLS towards the servers.",
    keys: &[
        key(
            "mode",
            Shape::Choice(&["require", "verify-ca", "verify-full"]),
            "verify-full",
            "verify-full",
            "What is demanded of the server.",
        ),
        key("ca", Shape::Path, "the system's", "file:ca.pem", "The authorities that are trusted."),
        key("cert", Shape::Path, "", "file:client.pem", "Our own certificate."),
        key("key", Shape::Path, "", "file:client.key", "Its key."),
    ],
};

static CONTROL: Section = Section {
    name: "`control`",
    about: "How to stop and start servers that Mainstay did not start.",
    keys: &[
        key("stop", Shape::Text, "", "systemctl stop postgresql", "Stops a node, run on its host."),
        key("start", Shape::Text, "", "systemctl start postgresql", "Starts it."),
        key("data", Shape::Path, "", "/var/lib/postgresql/15/main", "Its data directory."),
    ],
};

static GROUP: Section = Section {
    name: "a recovery group",
    about: "Clusters that must be brought back to the same instant.",
    keys: &[
        required(
            "members",
            Shape::List(&Shape::Name),
            "[orders, stock]",
            "The clusters, each of them followed.",
        ),
        key("every", Shape::DurationOrNever, "1m", "1m", "How often a fleet point is set."),
        key(
            "exact",
            Shape::Section(&EXACT),
            "",
            "{ every: 15m, stall: 20ms }",
            "Exact points: writes are held for a moment, so that no write can fall on the wrong side.",
        ),
    ],
};

static EXACT: Section = Section {
    name: "`exact`",
    about: "Which of a group's points are exact.",
    keys: &[
        key("every", Shape::Duration, "15m", "15m", "How often."),
        key("stall", Shape::Duration, "20ms", "20ms", "The longest that a write may be held, 1ms to 1s."),
    ],
};
