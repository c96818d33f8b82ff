//! Whether what a fleet file says holds together: names that exist, promises that can be kept, settings the engine takes.
//!
//! Looks at the fleet of one environment. Each rule is a function that notes what is wrong at the place where it is best mended.

use std::time::Duration;

use mainstay_engine::Engine;
use mainstay_model::{Backup, Cluster, Hosts, Nodes, Objective, VaultUrl, format_duration};

use crate::build::{self, Draft};
use crate::codes;
use crate::mistake::{Report, nearest};
use crate::shape::{list, short};
use crate::tree::{Node, Value};

/// How soon what is committed is in the vault, where the log is followed.
pub const FOLLOWED_RPO: Duration = Duration::from_secs(5);

/// Shortest and longest time that writes may be held.
const STALL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

/// Notes engines that do not exist and overrides of clusters that do not, in all environments.
pub fn names(root: &Node, engines: &[&dyn Engine], report: &mut Report) {
    let clusters: Vec<&str> = root.get("clusters").map(|all| all.keys().collect()).unwrap_or_default();
    let mut sections: Vec<&Node> = root.get("clusters").into_iter().collect();
    for environment in root.get("environments").map(Node::entries).unwrap_or_default() {
        let Some(overrides) = environment.value.get("clusters") else { continue };
        sections.push(overrides);
        for entry in overrides.entries().iter().filter(|entry| !clusters.contains(&entry.key.as_str())) {
            let message = format!("there is no cluster `{}` to override", short(&entry.key));
            report.add(
                codes::UNKNOWN_CLUSTER,
                entry.key_at,
                message,
                suggest(&entry.key, &clusters, "clusters"),
            );
        }
    }
    for entry in sections.iter().flat_map(|section| section.entries()) {
        let Some(node) = entry.value.get("engine") else { continue };
        let Some(name) = node.text().filter(|name| engines.iter().all(|engine| engine.name() != *name))
        else {
            continue;
        };
        let alias = engines
            .iter()
            .find(|engine| engine.aliases().iter().any(|alias| alias.eq_ignore_ascii_case(name)));
        let hint = match alias {
            Some(engine) => format!("write `{}`", engine.name()),
            None => suggest(name, &engines.iter().map(|engine| engine.name()).collect::<Vec<_>>(), "engines"),
        };
        report.add(codes::UNKNOWN_ENGINE, node.at, format!("there is no engine `{}`", short(name)), hint);
    }
}

/// Notes all that does not hold together for the draft's environment.
pub fn environment(draft: &Draft, engines: &[&dyn Engine], report: &mut Report) {
    for cluster in draft.fleet.clusters.values() {
        places(draft, cluster, report);
        shape(draft, cluster, report);
        tier(draft, cluster, report);
        if let Some(backup) = &cluster.backup {
            vault(draft, cluster, backup, report);
            keep(draft, cluster, backup, report);
        }
        settings(draft, cluster, engines, report);
    }
    groups(draft, report);
    vaults(draft, report);
}

/// Where an environment's servers are, and what it needs to be told.
fn places(draft: &Draft, cluster: &Cluster, report: &mut Report) {
    let name = cluster.name.as_str();
    let node = |key: &str| draft.tree.find(&["clusters", name, key]);
    let environment = &draft.fleet.environment;
    match environment.hosts {
        Hosts::External => {
            let at = draft.tree.locate(&["clusters", name, "nodes"]);
            if matches!(cluster.nodes, Nodes::Count(_))
                && node("nodes").is_none_or(|nodes| nodes.items().is_empty())
                && !misspelt(draft, &["clusters", name], "nodes", report)
            {
                let message = format!(
                    "`{}` has servers that run already, and `{name}` does not say where",
                    environment.name
                );
                let hint = "write `nodes: [\"host:port\", …]`, here or in the environment's `clusters`";
                report.add_judged(codes::EXTERNAL_NEEDS_NODES, at, message, hint);
            }
            if cluster.access.is_none()
                && node("access").is_none()
                && !misspelt(draft, &["clusters", name], "access", report)
            {
                let message = format!(
                    "`{}` has servers that run already, and `{name}` does not say how to get in",
                    environment.name
                );
                let hint =
                    "add `access: { user: …, password: \"env:…\" }`, here or in the environment's `clusters`";
                report.add_judged(
                    codes::EXTERNAL_NEEDS_ACCESS,
                    draft.tree.locate(&["clusters", name]),
                    message,
                    hint,
                );
            }
        }
        Hosts::Local if !has_other_hosts(&draft.tree) => {
            if let Some(list) = node("nodes").filter(|nodes| !nodes.items().is_empty()) {
                let message = format!(
                    "`{name}` names hosts, but `{}` starts its servers on this machine",
                    environment.name
                );
                let hint = "write `hosts: external` for servers that run already, or a number of nodes";
                report.add_judged(codes::LOCAL_NAMES_HOSTS, list.at, message, hint);
            }
        }
        Hosts::Local | Hosts::Kubernetes { .. } => {}
    }
}

/// Whether `key` is not there and something that is no key stands beside it, which may have been meant for it: what then follows from the
/// default of `key` is no mistake of its own.
fn misspelt(draft: &Draft, section: &[&str], key: &str, report: &Report) -> bool {
    draft.tree.find(section).is_some_and(|section| {
        section.entry(key).is_none()
            && section.entries().iter().any(|entry| report.has_kind(codes::UNKNOWN_KEY, entry.key_at))
    })
}

/// Whether any environment's servers are elsewhere: then the hosts that clusters name are meant for it.
fn has_other_hosts(tree: &Node) -> bool {
    let environments = tree.get("environments").map(|all| all.keys().collect::<Vec<_>>()).unwrap_or_default();
    environments.iter().any(|name| build::hosts(tree, name).is_some_and(|hosts| hosts != Hosts::Local))
}

fn shape(draft: &Draft, cluster: &Cluster, report: &mut Report) {
    let Some(shape) = cluster.cluster else { return };
    let (count, each) = (cluster.nodes.count(), shape.replicas.saturating_add(1));
    let name = cluster.name.as_str();
    if !count.is_multiple_of(each) && !misspelt(draft, &["clusters", name], "nodes", report) {
        let at = draft.tree.locate(&["clusters", cluster.name.as_str(), "nodes"]);
        let message = format!(
            "{} cannot be divided into primaries with {} each",
            plural(count, "node"),
            plural(shape.replicas, "replica")
        );
        let hint = format!("write {} or {}", count / each * each, (count / each + 1) * each)
            .replace("write 0 or ", "write ");
        report.add_judged(codes::NODES_DO_NOT_DIVIDE, at, message, hint);
    }
}

/// The tier exists, and the backup policy can keep what it promises.
fn tier(draft: &Draft, cluster: &Cluster, report: &mut Report) {
    let Some(name) = &cluster.tier else { return };
    let tree = &draft.tree;
    let Some(tier) = draft.fleet.tiers.get(name) else {
        let tiers: Vec<&str> = tree.get("tiers").map(|all| all.keys().collect()).unwrap_or_default();
        let at = tree.locate(&["clusters", cluster.name.as_str(), "tier"]);
        // A tier whose section is broken was noted as such.
        if !tiers.contains(&name.as_str()) {
            report.add_judged(
                codes::UNKNOWN_TIER,
                at,
                format!("there is no tier `{name}`"),
                suggest(name.as_str(), &tiers, "tiers"),
            );
        }
        return;
    };
    let scenarios: [(&str, &str, Option<Objective>); 3] = [
        ("region", "the loss of a region", tier.region),
        ("corruption", "corruption", tier.corruption),
        ("total", "total loss", tier.total),
    ];
    for (key, scenario, objective) in scenarios {
        let Some(rpo) = objective.and_then(|objective| objective.rpo) else { continue };
        let Some((best, hint)) = shortfall(cluster.backup.as_ref(), rpo) else { continue };
        if misspelt_backup(draft, cluster.name.as_str(), report) {
            continue;
        }
        let at = tree.locate(&["tiers", name.as_str(), key, "rpo"]);
        let message = format!(
            "an RPO of {} for {scenario} is tighter than the backups of `{}` can give: {best}",
            format_duration(rpo),
            cluster.name
        );
        report.add_judged(codes::RPO_TOO_TIGHT, at, message, hint);
    }
}

/// Whether a cluster's `backup`, or the `follow` in it, may be there under a misspelt name.
fn misspelt_backup(draft: &Draft, cluster: &str, report: &Report) -> bool {
    misspelt(draft, &["clusters", cluster], "backup", report)
        || misspelt(draft, &["clusters", cluster, "backup"], "follow", report)
}

/// What a backup policy gives, and how to mend it, where that is more than `rpo`.
fn shortfall(backup: Option<&Backup>, rpo: Duration) -> Option<(String, String)> {
    let follow = "add `follow: true` to its `backup`, or take another tier".to_owned();
    let Some(backup) = backup else {
        return Some((
            "it has none".to_owned(),
            "add `backup: { follow: true }` to the cluster, or take another tier".to_owned(),
        ));
    };
    if backup.follow {
        let best = format!("a followed log is in the vault within {}", format_duration(FOLLOWED_RPO));
        return (rpo < FOLLOWED_RPO)
            .then(|| (best, format!("write {} or more", format_duration(FOLLOWED_RPO))));
    }
    let Some(schedule) = &backup.snapshot else {
        return Some(("its log is not followed and no snapshots are scheduled".to_owned(), follow));
    };
    let gap = schedule.longest_gap();
    (rpo < gap).then(|| {
        (
            format!(
                "its snapshots (`{schedule}`) are up to {} apart, and its log is not followed",
                format_duration(gap)
            ),
            follow,
        )
    })
}

fn vault(draft: &Draft, cluster: &Cluster, backup: &Backup, report: &mut Report) {
    // Vaults that are no mapping were noted as such.
    if draft.tree.get("vaults").is_some_and(|all| !matches!(all.value, Value::Map(_))) {
        return;
    }
    let vaults: Vec<&str> =
        draft.tree.get("vaults").map(|all| all.keys().collect()).unwrap_or_else(|| vec!["main"]);
    if vaults.contains(&backup.vault.as_str()) {
        return;
    }
    let path = ["clusters", cluster.name.as_str(), "backup", "vault"];
    let at = draft.tree.locate(&path);
    let (message, hint) = match draft.tree.find(&path) {
        Some(_) => (
            format!("there is no vault `{}`", backup.vault),
            suggest(backup.vault.as_str(), &vaults, "vaults"),
        ),
        None if vaults.is_empty() => (
            format!("`{}` is backed up, and there is no vault", cluster.name),
            "add `vaults: { main: { url: \"file:vault\" } }`".to_owned(),
        ),
        None => (
            format!("`{}` is backed up, and there are several vaults", cluster.name),
            format!("name one with `vault:`, or call one `main`; there are {}", list(vaults.iter().copied())),
        ),
    };
    report.add_judged(codes::UNKNOWN_VAULT, at, message, hint);
}

/// Snapshots outlive the interval between them.
fn keep(draft: &Draft, cluster: &Cluster, backup: &Backup, report: &mut Report) {
    let Some(schedule) = &backup.snapshot else { return };
    let keep = &backup.keep;
    let gap = schedule.longest_gap();
    if keep.within >= gap || keep.daily + keep.weekly + keep.monthly + keep.yearly > 0 {
        return;
    }
    let at = draft.tree.locate(&["clusters", cluster.name.as_str(), "backup", "keep", "within"]);
    let message = format!(
        "snapshots of `{}` are kept for {} and taken up to {} apart (`{schedule}`)",
        cluster.name,
        format_duration(keep.within),
        format_duration(gap)
    );
    let hint = format!("keep them for {} or longer, or take them more often", format_duration(gap));
    report.add_judged(codes::KEEP_TOO_SHORT, at, message, hint);
}

/// What only the engine can judge. What it says of a value that was already found wrong is left out.
fn settings(draft: &Draft, cluster: &Cluster, engines: &[&dyn Engine], report: &mut Report) {
    let Some(engine) = engines.iter().find(|engine| engine.name() == cluster.engine) else { return };
    let name = cluster.name.as_str();
    let mut found = Vec::new();
    for mistake in engine.check(cluster) {
        let (code, at) = match mistake.key.split_once('.') {
            // What is behind `config.` is one key, dots and all: `auto_explain.log_min_duration`. It is shown by its name, since
            // that may be what the engine does not know.
            Some(("config", setting)) => {
                let settings = draft.tree.find(&["clusters", name, "config"]);
                let entry = settings.and_then(|all| all.entry(setting));
                (codes::BAD_SETTING, entry.map(|entry| entry.key_at))
            }
            _ if mistake.key == "version" => (codes::BAD_VERSION, None),
            _ => (codes::BAD_SHAPE, None),
        };
        let path = ["clusters", name].into_iter().chain(mistake.key.split('.')).collect::<Vec<_>>();
        let at = at.unwrap_or_else(|| draft.tree.locate(&path));
        let of_default = ["nodes", "cluster"].contains(&mistake.key.as_str())
            && misspelt(draft, &["clusters", name], &mistake.key, report);
        if !report.has(at) && !of_default {
            let hint = mistake.hint.unwrap_or_else(|| format!("change or remove `{}`", mistake.key));
            found.push((code, at, mistake.message, hint));
        }
    }
    for (code, at, message, hint) in found {
        report.add(code, at, message, hint);
    }
}

fn groups(draft: &Draft, report: &mut Report) {
    let tree = &draft.tree;
    let clusters: Vec<&str> = tree.get("clusters").map(|all| all.keys().collect()).unwrap_or_default();
    for group in draft.fleet.recovery_groups.values() {
        let name = group.name.as_str();
        if clusters.contains(&name) {
            let at = tree.locate(&["recovery_groups", name]);
            let message = format!("`{name}` is a cluster and a recovery group");
            let hint = "commands take either by name, so rename one of them";
            report.add_judged(codes::DUPLICATE_NAME, at, message, hint);
        }
        members(draft, name, &clusters, report);
        let Some(exact) = &group.exact else { continue };
        if let Some(every) = group.every.filter(|every| exact.every < *every) {
            let at = tree.locate(&["recovery_groups", name, "exact", "every"]);
            let message = format!(
                "exact points every {} are more than points every {}",
                format_duration(exact.every),
                format_duration(every)
            );
            let hint = format!("write {} or longer, or shorten the group's `every`", format_duration(every));
            report.add_judged(codes::EXACT_TOO_OFTEN, at, message, hint);
        }
        if exact.stall < STALL.0 || exact.stall > STALL.1 {
            let at = tree.locate(&["recovery_groups", name, "exact", "stall"]);
            let message = format!("writes cannot be held for {}", format_duration(exact.stall));
            let hint = "write between 1ms and 1s; 20ms is enough for most";
            report.add_judged(codes::STALL_OUT_OF_RANGE, at, message, hint);
        }
    }
    let intervals = tree.get("recovery_groups").map(Node::entries).unwrap_or_default();
    for entry in intervals {
        let paths: [&[&str]; 2] = [&["every"], &["exact", "every"]];
        for node in paths.iter().filter_map(|path| entry.value.find(path)) {
            let every = node.text().and_then(|text| mainstay_model::parse_duration(text).ok());
            if every.is_some_and(|every| every < Duration::from_secs(1)) {
                report.add_judged(
                    codes::BAD_DURATION,
                    node.at,
                    "points cannot be set more often than every second",
                    "write `1s` or longer",
                );
            }
        }
    }
}

/// A group's members are clusters, each once, and followed. Looks at the tree, so that members of no valid name are seen too.
fn members(draft: &Draft, group: &str, clusters: &[&str], report: &mut Report) {
    let Some(list) = draft.tree.find(&["recovery_groups", group, "members"]) else { return };
    if matches!(&list.value, Value::List(items) if items.is_empty()) {
        let hint = format!("there are {}", self::list(clusters.iter().copied()));
        report.add_judged(
            codes::GROUP_NAMES_NOBODY,
            list.at,
            format!("the recovery group `{group}` has no members"),
            hint,
        );
    }
    let mut seen: Vec<&str> = Vec::new();
    for item in list.items() {
        let Some(member) = item.text() else { continue };
        if seen.contains(&member) {
            let message = format!("`{member}` is in `{group}` twice");
            report.add_judged(codes::DUPLICATE_NAME, item.at, message, "list each member once");
            continue;
        }
        seen.push(member);
        if !clusters.contains(&member) {
            let message = format!("there is no cluster `{}`", short(member));
            report.add_judged(
                codes::UNKNOWN_CLUSTER,
                item.at,
                message,
                suggest(member, clusters, "clusters"),
            );
            continue;
        }
        let Some(cluster) = draft.fleet.clusters.get(member) else { continue };
        if !cluster.backup.as_ref().is_some_and(|backup| backup.follow)
            && !misspelt_backup(draft, member, report)
        {
            let message =
                format!("`{member}` is not followed, so it cannot be brought to the instant of `{group}`");
            let hint = format!("give `{member}` a `backup: {{ follow: true }}`, or take it out of the group");
            report.add_judged(codes::MEMBER_NOT_FOLLOWED, item.at, message, hint);
        }
    }
}

fn vaults(draft: &Draft, report: &mut Report) {
    for (name, vault) in &draft.fleet.vaults {
        let path = |key| ["vaults", name.as_str(), key];
        if matches!(vault.url, VaultUrl::File(_)) {
            for key in ["endpoint", "region", "access_key", "secret_key"] {
                if let Some(node) = draft.tree.find(&path(key)) {
                    let message = format!("the vault `{name}` is a folder and has no `{key}`");
                    report.add_judged(
                        codes::KEY_DOES_NOT_APPLY,
                        node.at,
                        message,
                        "remove it, or write an `s3://` URL",
                    );
                }
            }
        }
        let mut seen = vec![&vault.url];
        for copy in &vault.copies {
            if seen.contains(&copy) {
                let at = draft.tree.locate(&path("copies"));
                report.add_judged(
                    codes::DUPLICATE_NAME,
                    at,
                    format!("`{copy}` is named twice in the vault `{name}`"),
                    "a copy lies elsewhere",
                );
            }
            seen.push(copy);
        }
    }
}

/// What may have been meant, or what there is.
fn suggest(written: &str, known: &[&str], what: &str) -> String {
    match nearest(written, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if known.is_empty() => format!("there are no {what} in this file"),
        None => format!("there are {}", list(known.iter().copied())),
    }
}

fn plural(count: u32, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
