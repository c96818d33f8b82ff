//! Whether every key of a file is known and every value has the form that its key asks for.
//!
//! Goes over the whole tree by the table in [`crate::keys`] and notes all that is wrong. What values mean together is for
//! [`crate::judge`].

use mainstay_model::{
    BadDuration, BadSchedule, BadVaultUrl, Bytes, ClusterName, HostPort, Schedule, SecretRef, VaultUrl,
    Version, parse_duration,
};

use crate::codes;
use crate::keys::{FILE, Key, Section, Shape};
use crate::mistake::{At, Report, nearest};
use crate::recipient;
use crate::tree::{Node, Value};

/// Most nodes of a cluster.
const NODES_MAX: u32 = 10_000;

/// Checks a whole file.
pub fn check(root: &Node, report: &mut Report) {
    match root.value {
        Value::Null => {
            let hint = "`mainstay init` writes one to begin with";
            report.add(codes::MISSING_KEY, At::START, "the file is empty", hint);
        }
        Value::Map(_) => section(root, &FILE, At::START, false, report),
        _ => report.add(codes::WRONG_TYPE, root.at, "a fleet file is a mapping", "begin with `fleet: NAME`"),
    }
}

/// A mapping with fixed keys. `partial`: an override, in which nothing is required and null takes away.
fn section(node: &Node, section: &Section, at: At, partial: bool, report: &mut Report) {
    for entry in node.entries() {
        if let Some(first) = entry.again {
            let message = format!("`{}` stands in {} for the second time", entry.key, section.name);
            report.add(
                codes::DUPLICATE_KEY,
                entry.key_at,
                message,
                format!("the first is on line {first}; remove one of them"),
            );
        }
        match section.keys.iter().find(|key| key.name == entry.key) {
            Some(key) => value(&entry.value, key, &key.shape, partial, report),
            None if std::ptr::eq(section, &FILE) && entry.key.starts_with("x-") => {}
            None => unknown_key(&entry.key, entry.key_at, &entry.value, section, report),
        }
    }
    if partial {
        return;
    }
    for key in section.keys.iter().filter(|key| key.required && node.entry(key.name).is_none()) {
        let message = format!("{} needs `{}`", section.name, key.name);
        report.add(codes::MISSING_KEY, at, message, format!("add `{}: {}`", key.name, key.example));
    }
}

fn unknown_key(name: &str, at: At, value: &Node, section: &Section, report: &mut Report) {
    let meant = nearest(name, section.keys.iter().map(|key| key.name));
    let meant_key = section.keys.iter().find(|key| Some(key.name) == meant);
    if meant_key.is_some_and(|key| matches!(key.shape, Shape::Secret)) {
        report.cover(value.at);
    }
    let below = section.keys.iter().find(|key| match &key.shape {
        Shape::Section(inner) | Shape::ChoiceOrSection(_, inner) => {
            inner.keys.iter().any(|key| key.name == name)
        }
        _ => false,
    });
    let hint = match (meant, below) {
        (_, Some(below)) => format!("it belongs under `{}`", below.name),
        (Some(meant), None) => format!("did you mean `{meant}`?"),
        (None, None) => format!("its keys are {}", list(section.keys.iter().map(|key| key.name))),
    };
    report.add(codes::UNKNOWN_KEY, at, format!("`{name}` is not a key of {}", section.name), hint);
}

/// The value of `key`, which has to have `shape`.
fn value(node: &Node, key: &Key, shape: &Shape, partial: bool, report: &mut Report) {
    let name = key.name;
    let example = || format!("write, for example, `{name}: {}`", key.example);
    if matches!(node.value, Value::Null) {
        if !partial {
            report.add(codes::WRONG_TYPE, node.at, format!("`{name}` has no value"), example());
        }
        return;
    }
    match (shape, &node.value) {
        (Shape::Section(inner), Value::Map(_)) | (Shape::ChoiceOrSection(_, inner), Value::Map(_)) => {
            section(node, inner, node.at, partial, report);
        }
        (Shape::Named(inner), Value::Map(_)) => named(node, key, inner, false, report),
        (Shape::Overrides(inner), Value::Map(_)) => named(node, key, inner, true, report),
        (Shape::Settings, Value::Map(_)) => settings(node, partial, report),
        (Shape::Later, Value::Map(_) | Value::List(_)) => {}
        (Shape::List(item), Value::List(items)) => {
            for node in items {
                value(node, key, item, false, report);
            }
        }
        (Shape::Nodes, Value::List(items)) => nodes(items, key, node.at, report),
        (Shape::Nodes, Value::Scalar { text, .. }) => {
            scalar(text, node.at, key, &Shape::Count(1, NODES_MAX), report)
        }
        (Shape::ChoiceOrSection(words, _), Value::Scalar { text, .. }) => {
            scalar(text, node.at, key, &Shape::Choice(words), report);
        }
        (shape, Value::Scalar { text, quoted }) if is_scalar(shape) => {
            if matches!(shape, Shape::Bool) && *quoted {
                let hint = format!("write it without quotes: `{name}: {}`", key.example);
                report.add(
                    codes::WRONG_TYPE,
                    node.at,
                    format!("`{name}` must be true or false, not text"),
                    hint,
                );
            } else {
                scalar(text, node.at, key, shape, report);
            }
        }
        (shape, found) => {
            if matches!(shape, Shape::Secret) {
                report.cover(node.at);
            }
            let message = format!("`{name}` must be {}, not {}", describe(shape), kind(found));
            report.add(codes::WRONG_TYPE, node.at, message, example());
        }
    }
}

/// A mapping from names to sections.
fn named(node: &Node, key: &Key, inner: &Section, partial: bool, report: &mut Report) {
    for entry in node.entries() {
        if let Some(first) = entry.again {
            let message = format!("a second `{}` stands in `{}`", entry.key, key.name);
            let hint = format!("the first is on line {first}; rename or remove one of them");
            report.add(codes::DUPLICATE_NAME, entry.key_at, message, hint);
        }
        if !partial {
            check_name(&entry.key, entry.key_at, report);
        }
        match &entry.value.value {
            Value::Map(_) => section(&entry.value, inner, entry.key_at, partial, report),
            Value::Null if partial => {}
            found => {
                let message = format!("`{}` must be a mapping, not {}", entry.key, kind(found));
                let needed = inner.keys.iter().find(|key| key.required).or(inner.keys.first());
                let example =
                    needed.map(|key| format!(" {}: {} ", key.name, key.example)).unwrap_or_default();
                report.add(
                    codes::WRONG_TYPE,
                    entry.value.at,
                    message,
                    format!("write, for example, `{}: {{{example}}}`", entry.key),
                );
            }
        }
    }
}

/// The engine's own settings: any names, scalar values, no passwords.
fn settings(node: &Node, partial: bool, report: &mut Report) {
    for entry in node.entries() {
        let name = &entry.key;
        if let Some(first) = entry.again {
            let message = format!("the setting `{name}` stands here for the second time");
            report.add(
                codes::DUPLICATE_KEY,
                entry.key_at,
                message,
                format!("the first is on line {first}; remove one of them"),
            );
        }
        let secret = matches!(
            name.as_str(),
            "requirepass" | "masterauth" | "password" | "tls-key-file-pass" | "tls-client-key-file-pass"
        ) || name.ends_with("_password")
            || name.ends_with("-password");
        if secret {
            report.cover(entry.value.at);
            let message = format!("the setting `{name}` is a password in clear");
            let hint = "leave it out: Mainstay sets passwords itself, and those of servers that run already go to `access.password`";
            report.add(codes::SECRET_IN_CLEAR, entry.value.at, message, hint);
            continue;
        }
        match &entry.value.value {
            Value::Scalar { .. } => {}
            Value::Null if partial => {}
            found => {
                let message = format!("the setting `{name}` must be text or a number, not {}", kind(found));
                report.add(
                    codes::WRONG_TYPE,
                    entry.value.at,
                    message,
                    format!("write `{name}: \"…\"`, quotes for an empty one"),
                );
            }
        }
    }
}

fn nodes(items: &[Node], key: &Key, at: At, report: &mut Report) {
    if items.is_empty() {
        report.add(codes::BAD_NODE, at, "`nodes` lists nobody", "write at least one `host:port`");
    }
    let mut seen: Vec<HostPort> = Vec::new();
    for item in items {
        value(item, key, &Shape::HostPort, false, report);
        let Some(node) = item.text().and_then(|text| text.parse::<HostPort>().ok()) else { continue };
        if seen.contains(&node) {
            report.add(
                codes::BAD_NODE,
                item.at,
                format!("the node {node} is listed twice"),
                "list each once",
            );
        }
        seen.push(node);
    }
}

fn is_scalar(shape: &Shape) -> bool {
    !matches!(
        shape,
        Shape::List(_)
            | Shape::Section(_)
            | Shape::ChoiceOrSection(..)
            | Shape::Nodes
            | Shape::Named(_)
            | Shape::Overrides(_)
            | Shape::Settings
            | Shape::Later
    )
}

/// A scalar of `key`, which has to have `shape`.
fn scalar(text: &str, at: At, key: &Key, shape: &Shape, report: &mut Report) {
    let name = key.name;
    let example = || format!("write, for example, `{}`", key.example);
    let mut refuse = |code, message: String, hint: String| report.add(code, at, message, hint);
    match shape {
        Shape::Name => check_name(text, at, report),
        Shape::Text if text.trim().is_empty() => {
            refuse(codes::WRONG_TYPE, format!("`{name}` is empty"), example());
        }
        Shape::Bool if !matches!(text, "true" | "false") => {
            let hint = match text.to_lowercase().as_str() {
                "yes" | "on" | "y" | "true" | "1" => "write `true`",
                "no" | "off" | "n" | "false" | "0" => "write `false`",
                _ => "write `true` or `false`",
            };
            refuse(
                codes::WRONG_TYPE,
                format!("`{name}` must be true or false, not `{}`", short(text)),
                hint.to_owned(),
            );
        }
        Shape::Count(min, max) if !text.parse::<u32>().is_ok_and(|count| (*min..=*max).contains(&count)) => {
            let message =
                format!("`{name}` must be a whole number from {min} to {max}, not `{}`", short(text));
            refuse(codes::BAD_COUNT, message, example());
        }
        Shape::Duration => duration(text, at, name, report),
        Shape::DurationOrNever if text != "never" => duration(text, at, name, report),
        Shape::Size if text.parse::<Bytes>().is_err() => {
            let hint = "write a number and one of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB: `500GiB`";
            refuse(codes::BAD_SIZE, format!("`{}` is not a size", short(text)), hint.to_owned());
        }
        Shape::Schedule if text != "never" => schedule(text, at, report),
        Shape::Version if text.parse::<Version>().is_err() => {
            refuse(
                codes::BAD_VERSION,
                format!("`{}` is not a version", short(text)),
                "write numbers with dots: `\"15\"`, `\"7.0\"`".to_owned(),
            );
        }
        Shape::VaultUrl => vault_url(text, at, report),
        Shape::Endpoint if !is_endpoint(text) => {
            refuse(codes::BAD_URL, "this is not the URL of an S3 server".to_owned(), example());
        }
        Shape::Secret if text.parse::<SecretRef>().is_err() => {
            report.cover(at);
            let message = format!("`{name}` must say where the secret is, and never be the secret");
            let hint =
                "write `env:NAME`, `file:PATH` or `exec:COMMAND`; if it was one, change it where it is used";
            report.add(codes::SECRET_IN_CLEAR, at, message, hint);
        }
        Shape::Recipient => {
            if let Err(reason) = recipient::check(text) {
                // An identity (a private key) put here by mistake must not be shown.
                if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY") {
                    report.cover(at);
                    let hint = "write the public key, which begins with `age1`, and make a new pair: this one is no secret any more";
                    report.add(
                        codes::SECRET_IN_CLEAR,
                        at,
                        "this is a private key, and recipients are public keys",
                        hint,
                    );
                } else {
                    refuse(
                        codes::BAD_RECIPIENT,
                        format!("this is not an age public key: {reason}"),
                        "copy it again: it begins with `age1` and has 62 characters".to_owned(),
                    );
                }
            }
        }
        Shape::HostPort if text.parse::<HostPort>().is_err() => {
            refuse(
                codes::BAD_NODE,
                format!("`{}` is not a host and a port", short(text)),
                "write `db1:5432` or `[::1]:5432`".to_owned(),
            );
        }
        Shape::Path if text.trim_start_matches("file:").is_empty() || text.contains('\0') => {
            refuse(codes::BAD_PATH, format!("`{name}` is not a path"), example());
        }
        Shape::Choice(words) if !words.contains(&text) => {
            let hint = match nearest(text, words.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("it is one of {}", list(words.iter().copied())),
            };
            refuse(codes::UNKNOWN_VALUE, format!("`{}` is nothing that `{name}` can be", short(text)), hint);
        }
        _ => {}
    }
}

fn check_name(text: &str, at: At, report: &mut Report) {
    if ClusterName::new(text).is_ok() {
        return;
    }
    let tidy: String =
        text.to_lowercase().chars().map(|c| if c == '_' || c == ' ' || c == '.' { '-' } else { c }).collect();
    let hint = match ClusterName::new(&tidy) {
        Ok(tidy) => format!("write `{tidy}`"),
        Err(_) => {
            "a name begins with a letter and has small letters, digits and dashes, at most 41".to_owned()
        }
    };
    report.add(codes::BAD_NAME, at, format!("`{}` is not a name", short(text)), hint);
}

fn duration(text: &str, at: At, name: &str, report: &mut Report) {
    let Err(error) = parse_duration(text) else { return };
    let hint = match &error {
        BadDuration::NoUnit(number) => format!("write `{number}s` for seconds, `{number}m` for minutes"),
        _ => match meant_duration(text) {
            Some(meant) => format!("write `{meant}`"),
            None => "write whole numbers with units (ms, s, m, h, d, w, y): `20ms`, `15m`, `1h30m`, `30d`"
                .to_owned(),
        },
    };
    let message = match error {
        BadDuration::NoUnit(_) => format!("`{name}` needs a unit"),
        BadDuration::Unit { unit } => format!("`{}` is not a unit of time", short(&unit)),
        BadDuration::TooLong(_) => format!("`{}` is longer than a hundred years", short(text)),
        BadDuration::Malformed(_) => format!("`{}` is not a duration", short(text)),
    };
    report.add(codes::BAD_DURATION, at, message, hint);
}

/// `5 minutes` -> `5m`
fn meant_duration(text: &str) -> Option<String> {
    let text = text.to_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().trim_end_matches('s') {
        "" | "sec" | "second" => "s",
        "m" | "min" | "minute" => "m",
        "h" | "hr" | "hour" => "h",
        "d" | "day" => "d",
        "w" | "wk" | "week" => "w",
        "y" | "yr" | "year" => "y",
        "milli" | "millisecond" | "msec" => "ms",
        _ => return None,
    };
    let meant = format!("{number}{unit}");
    parse_duration(&meant).is_ok().then_some(meant)
}

fn schedule(text: &str, at: At, report: &mut Report) {
    let Err(error) = text.parse::<Schedule>() else { return };
    let words = ["daily", "hourly", "weekly", "monthly", "every", "never"];
    let first = text.split_whitespace().next().unwrap_or("");
    let hint = match (&error, nearest(first, words)) {
        (BadSchedule::Zone(_), _) => "write the time in UTC: `daily 02:00 UTC`".to_owned(),
        (_, Some(meant)) if meant != first => format!("did you mean `{meant}`?"),
        (_, Some("every")) => "what divides an hour or a day: `every 15m`, `every 6h`".to_owned(),
        _ => "write `hourly :15`, `daily 02:00`, `weekly sunday 02:00`, `monthly 1 02:00`, `every 6h`, or cron's five fields".to_owned(),
    };
    let message = match error {
        BadSchedule::Zone(zone) => {
            format!("schedules are in UTC, and `{}` is another time zone", short(&zone))
        }
        BadSchedule::Field { field, text } => format!("`{}` is not {field}", short(&text)),
        BadSchedule::Never(text) => format!("`{}` never comes", short(&text)),
        BadSchedule::Malformed(_) => format!("`{}` is not a schedule", short(text)),
    };
    report.add(codes::BAD_SCHEDULE, at, message, hint);
}

fn vault_url(text: &str, at: At, report: &mut Report) {
    let Err(BadVaultUrl(_)) = text.parse::<VaultUrl>() else { return };
    if text.contains('@') {
        report.cover(at);
        let hint = "write `s3://BUCKET` and put the key into `access_key` and `secret_key`";
        report.add(codes::BAD_URL, at, "a vault's URL has no user and password", hint);
        return;
    }
    let hint = match text.split_once(':') {
        None => format!("for a folder, write `file:{}`", if text.is_empty() { "vault" } else { text }),
        Some(("gs" | "az" | "abfs" | "azure", _)) => {
            "Google and Azure come with a later release; `file:` and `s3://` are here".to_owned()
        }
        Some(_) => "write `file:FOLDER` or `s3://BUCKET/PREFIX`".to_owned(),
    };
    report.add(codes::BAD_URL, at, format!("`{}` is not a vault's URL", short(text)), hint);
}

/// `http://` or `https://`, a host, perhaps a port; no user, no path.
fn is_endpoint(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return false;
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    format!("{rest}:443").parse::<HostPort>().is_ok() || rest.parse::<HostPort>().is_ok()
}

fn describe(shape: &Shape) -> &'static str {
    match shape {
        Shape::Name => "a name",
        Shape::Bool => "true or false",
        Shape::Count(..) => "a number",
        Shape::Duration | Shape::DurationOrNever => "a duration",
        Shape::Size => "a size",
        Shape::Schedule => "a schedule",
        Shape::Version => "a version",
        Shape::VaultUrl | Shape::Endpoint => "a URL",
        Shape::Secret => "a reference to a secret",
        Shape::Recipient => "a public key",
        Shape::HostPort => "a host and a port",
        Shape::Path => "a path",
        Shape::Text | Shape::Choice(_) => "text",
        Shape::List(_) => "a list",
        Shape::Nodes => "a number or a list",
        Shape::ChoiceOrSection(..) => "a word or a mapping",
        Shape::Section(_) | Shape::Named(_) | Shape::Overrides(_) | Shape::Settings => "a mapping",
        Shape::Later => "a list or a mapping",
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Scalar { .. } => "a single value",
        Value::List(_) => "a list",
        Value::Map(_) => "a mapping",
    }
}

/// `a`, `b`, `c`
pub fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Foreign text for a message: at most 40 characters, no control characters.
pub fn short(text: &str) -> String {
    let mut shown: String = text.chars().take(40).map(|c| if c.is_control() { '·' } else { c }).collect();
    if text.chars().nth(40).is_some() {
        shown.push('…');
    }
    shown
}
