//! The reference page of the fleet file, from the table of keys, and the list of all files that are generated here.

use std::fmt::Write;

use crate::codes::{self, CODES};
use crate::keys::{FILE, Key, Section, Shape};

/// All files that this crate generates, with their paths in the repository.
pub fn generated() -> Vec<(String, String)> {
    let mut files = vec![
        ("docs/fleet-file.md".to_owned(), reference()),
        ("docs/generated/fleet.schema.json".to_owned(), crate::schema_text()),
    ];
    files.extend(CODES.iter().map(|code| (format!("docs/errors/{}.md", code.code), codes::page(code))));
    files
}

/// docs/fleet-file.md
pub fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    let mut sections = vec![&FILE];
    collect(&FILE, &mut sections);
    for section in sections {
        let _ = write!(
            page,
            "\n## {}\n\n{}\n\n| key | value | default | |\n|--|--|--|--|\n",
            title(section),
            section.about
        );
        for key in section.keys {
            let _ = writeln!(page, "| `{}` | {} | {} | {} |", key.name, kind(key), default(key), key.about);
        }
    }
    page.push_str(REST);
    page.push_str("\n## What can be wrong\n\nEach mistake has a stable code, a line, a column and a hint; all are told in one run.\n\n");
    for code in CODES {
        let _ = writeln!(page, "- [`{}`](errors/{}.md): {}", code.code, code.code, code.what);
    }
    page
}

/// The sections below one, each once, in the order of the keys that lead to them.
fn collect(section: &'static Section, all: &mut Vec<&'static Section>) {
    for key in section.keys {
        let inner: &'static Section = match &key.shape {
            Shape::Section(inner)
            | Shape::ChoiceOrSection(_, inner)
            | Shape::Named(inner)
            | Shape::Overrides(inner) => inner,
            _ => continue,
        };
        // Overrides lead to clusters as well; those have their place where clusters are defined.
        if matches!(key.shape, Shape::Overrides(_)) || all.iter().any(|known| std::ptr::eq(*known, inner)) {
            continue;
        }
        all.push(inner);
        collect(inner, all);
    }
}

/// `the fleet file` -> `The fleet file`
fn title(section: &Section) -> String {
    let mut chars = section.name.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn kind(key: &Key) -> String {
    let kind = match &key.shape {
        Shape::Name => "name".to_owned(),
        Shape::Text => "text".to_owned(),
        Shape::Bool => "true or false".to_owned(),
        Shape::Count(min, max) => format!("{min} to {max}"),
        Shape::Duration => "duration".to_owned(),
        Shape::DurationOrNever => "duration or `never`".to_owned(),
        Shape::Size => "size".to_owned(),
        Shape::Schedule => "schedule".to_owned(),
        Shape::Version => "version".to_owned(),
        Shape::VaultUrl | Shape::Endpoint => "URL".to_owned(),
        Shape::Secret => "reference".to_owned(),
        Shape::Recipient => "public key".to_owned(),
        Shape::HostPort => "`host:port`".to_owned(),
        Shape::Path => "path".to_owned(),
        Shape::Choice(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Shape::ChoiceOrSection(words, _) => {
            words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ") + " or a mapping"
        }
        Shape::List(item) => match item {
            Shape::Name => "names".to_owned(),
            Shape::Recipient => "public keys".to_owned(),
            _ => "URLs".to_owned(),
        },
        Shape::Nodes => "number or list".to_owned(),
        Shape::Section(_) => "mapping".to_owned(),
        Shape::Named(_) | Shape::Overrides(_) => "by name".to_owned(),
        Shape::Settings => "settings".to_owned(),
        Shape::Later => "anything".to_owned(),
    };
    // Long enough to say something by itself: an example helps everywhere else.
    let plain =
        matches!(key.shape, Shape::Bool | Shape::Later | Shape::Choice(_) | Shape::ChoiceOrSection(..));
    if plain { kind } else { format!("{kind}: `{}`", key.example) }
}

fn default(key: &Key) -> String {
    match (key.required, key.default) {
        (true, _) => "**required**".to_owned(),
        (false, default) if default.starts_with('{') => format!("`{default}`"),
        (false, default) => default.to_owned(),
    }
}

const INTRODUCTION: &str = "\
# The fleet file

<!-- Generated from crates/fleet/src/keys.rs: change it there. -->

One YAML file says what there is and what is promised. It begins small, since everything has a default:

```yaml
fleet: shop
environments: { local: { hosts: local } }
vaults: { main: { url: \"file:vault\" } }
clusters:
  orders: { engine: postgres, nodes: 2, backup: { follow: true } }
  stock: { engine: redis, nodes: 6, cluster: { replicas: 1 }, backup: { follow: true } }
recovery_groups:
  shop: { members: [orders, stock], every: 1m, exact: { every: 5m, stall: 20ms } }
```

`mainstay init` writes one with comments, `mainstay check` says what is wrong with one, and editors that know JSON Schema complete
and check it as it is written:

```yaml
# yaml-language-server: $schema=docs/generated/fleet.schema.json
```

How values are written:

- **Names** are `[a-z][a-z0-9-]{0,40}`. Clusters and recovery groups share one space, since commands take either by name.
- **Durations** are whole numbers with units: `20ms`, `15m`, `1h30m`, `30d`. Units: `ms s m h d w y` (a year has 365 days).
- **Sizes** are numbers with a unit: `500GiB`, `24GB`; without one, bytes. Units: `B kB MB GB TB KiB MiB GiB TiB`.
- **Schedules** are cron's five fields (`0 2 * * *`) or words: `hourly :15`, `daily 02:00`, `weekly sunday 02:00`, `monthly 1 02:00`,
  `every 6h`. They are in UTC, so that no hour comes twice or not at all; a time of day that is left out is 02:00.
- **Secrets** are references, never values: `env:NAME`, `file:PATH` (without the newline at its end), `exec:COMMAND` (what it prints).
- **Paths** are relative to the fleet file.
- Unknown keys are mistakes. Keys at the top that begin with `x-` are yours, for anchors; anchors, aliases and merge keys (`<<`) work.
";

const REST: &str = "
## Environments

`local`, this machine, is there even when the file does not name it. An environment's `clusters` override any key of any cluster:
mappings are merged key by key, all else is replaced, and `null` takes away.

```yaml
environments:
  local: { hosts: local, clusters: { orders: { nodes: 1, config: { fsync: \"off\" } } } }
  colo: { hosts: external }
clusters:
  orders:
    engine: postgres
    nodes: [\"db1:5432\", \"db2:5432\"]
    access: { user: mainstay, password: \"env:PGPASSWORD\", tls: { ca: \"file:ca.pem\", mode: verify-full } }
    control: { stop: \"systemctl stop postgresql\", start: \"systemctl start postgresql\", data: /var/lib/postgresql/15/main }
    backup: { follow: true }
```

With `hosts: external` every cluster names its nodes and how to get in. With `hosts: local` such a cluster is rehearsed with as many
servers on this machine, which its `access` and `control` do not concern; a file in which hosts are named and no environment has them
is refused, so that nobody backs up an empty server and thinks that it was theirs.
";
