//! What the demo tells, in order.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::Client;
use super::traffic::{Holdings, SCHEMA, Traffic};
use super::{Shop, strings};
use crate::failure::{Failure, Result};
use crate::printer::Printer;

/// How long any one thing is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo in `dir`, which is its own; erases it afterwards unless `keep`.
///
/// # Errors
/// When a step failed, or when what came back is not what was there.
pub fn run(dir: &Path, keep: bool, stop: &Arc<AtomicBool>, printer: Printer) -> Result {
    let mut shop = Shop::open(dir, printer)?;
    let told = tell(&mut shop, stop);
    if keep {
        shop.stop_serving();
        printer.say(format!(
            "\nAll of it was kept: cd {} && MAINSTAY_HOME=$PWD/home mainstay status (and `down --erase` at the end)",
            dir.display()
        ));
    } else {
        shop.clear();
    }
    told
}

fn tell(shop: &mut Shop, stop: &Arc<AtomicBool>) -> Result {
    let began = Instant::now();
    let say = shop.printer;
    say.say("A small shop: orders in PostgreSQL (a primary and a standby), sessions and stock in Redis (three shards, each with a replica).");
    shop.step(&["up"])?;
    let (orders, stock) = (shop.uris("orders")?, shop.uris("stock")?);
    client(&orders[0])?.ask(SCHEMA).map_err(lost)?;
    shop.serve()?;

    say.say("\nThe shop opens: each order is a row in PostgreSQL and then a key in Redis that refers to it.");
    let traffic = Traffic::start(&orders[0], &stock[0], 2, Duration::from_millis(1));
    wait(shop, stop, "first snapshots, and an exact fleet point", |shop| {
        let listed = shop.quietly(&["backup", "list"])?;
        let covered = |c: &str| listed.as_array().is_some_and(|rows| rows.iter().any(|r| r["cluster"] == c));
        Ok(covered("orders") && covered("stock") && traffic.counts().withdrawn.load(Ordering::Relaxed) > 100)
    })?;
    let point = shop.step(&["point", "shop", "--exact"])?;
    say.say(format!(
        "fleet point {}: exact {}, writes were held for {} ms",
        text(&point["point"]),
        point["exact"],
        point["stall_ms"]
    ));

    let counts = traffic.counts();
    say.say(format!(
        "so far: {} orders placed, {} withdrawn, {} statements failed",
        counts.placed.load(Ordering::Relaxed),
        counts.withdrawn.load(Ordering::Relaxed),
        counts.failed.load(Ordering::Relaxed)
    ));
    let before = accident(shop, &orders[0], &stock, traffic)?;
    shop.stop_serving();

    let windows = shop.step(&["recover", "window"])?;
    for window in windows.as_array().into_iter().flatten() {
        say.say(format!(
            "{}: any instant from {} to {}",
            text(&window["cluster"]),
            text(&window["from"]),
            text(&window["to"])
        ));
    }

    let restored = shop.step(&["recover", "run", "shop", "--at", &before, "--into", "sandbox"])?;
    compare(shop, &restored)?;
    let sandbox = text(&restored["sandbox"]);
    shop.step(&["recover", "drop", &sandbox])?;

    let proof = shop.step(&["prove", "shop", "--at", &before])?;
    let checks = proof["checks"].as_array().map_or(0, Vec::len);
    for check in proof["checks"].as_array().into_iter().flatten() {
        say.say(format!(
            "  {:8} {:12} {}: {}",
            text(&check["cluster"]),
            text(&check["kind"]),
            text(&check["what"]),
            text(&check["found"])
        ));
    }
    say.line(&format!(
        "\nLost at {before}, back in {} s (RTO). Proven: {checks} checks, {} differences. What was asked for lies {} s before the end of what \
         could be had (RPO). Clusters' cuts are at most {} ms apart. The whole demo took {} s.",
        restored["rto_seconds"],
        proof["differences"].as_array().map_or(0, Vec::len),
        restored["rpo_seconds"],
        restored["skew_ms"],
        began.elapsed().as_secs()
    ))
}

/// Somebody drops the table and flushes Redis. Gives the instant of "the second before".
fn accident(shop: &mut Shop, orders: &str, stock: &[String], traffic: Traffic) -> Result<String> {
    let say = shop.printer;
    let mut sql = client(orders)?;
    let mut redis = client(&stock[0])?;
    sql.ask("INSERT INTO orders VALUES (1, 'the last before', 1);").map_err(lost)?;
    redis.must("SET order:1 1").map_err(lost)?;
    std::thread::sleep(Duration::from_secs(1));
    let before = mainstay_model::Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    sql.ask("INSERT INTO orders VALUES (2, 'the first after', 1);").map_err(lost)?;
    redis.must("SET order:2 1").map_err(lost)?;
    sql.ask("DROP TABLE orders;").map_err(lost)?;
    for uri in stock {
        // Replicas refuse; their masters' flush reaches them.
        let _ = client(uri)?.ask("FLUSHALL");
    }
    say.say("\nSomebody drops the table, and flushes Redis.");
    traffic.stop();
    let end = mainstay_model::Instant::now().to_string();
    let never = Arc::new(AtomicBool::new(false));
    wait(shop, &never, "the logs of the accident itself are in the vault", |shop| {
        let windows = shop.quietly(&["recover", "window"])?;
        let reaches = |c: &str| {
            windows.as_array().is_some_and(|w| w.iter().any(|w| w["cluster"] == c && text(&w["to"]) > end))
        };
        Ok(reaches("orders") && reaches("stock"))
    })?;
    Ok(before.to_string())
}

/// Looks at what came back: every key must have its row, the last order before must be there, the first after must not.
fn compare(shop: &Shop, restored: &Value) -> Result {
    let uris = |cluster: &str| {
        let clusters = restored["clusters"].as_array();
        clusters
            .and_then(|c| c.iter().find(|c| c["cluster"] == cluster))
            .map(|c| strings(&c["uris"]))
            .unwrap_or_default()
    };
    let (orders, stock) = (uris("orders"), uris("stock"));
    let first = orders.first().ok_or_else(|| {
        Failure::failed("demo-compare", "there is no sandbox to look at", "report this as a bug")
    })?;
    let held = Holdings::read(first, &stock).map_err(lost)?;
    shop.printer.say(format!(
        "came back: {} orders, {} keys that refer to one; keys without their order: {}",
        held.rows.len(),
        held.keys.len(),
        held.dangling()
    ));
    let right = held.rows.contains(&1)
        && held.keys.contains(&1)
        && !held.rows.contains(&2)
        && !held.keys.contains(&2);
    if !right {
        return Err(Failure::failed(
            "demo-compare",
            "the sandbox does not hold what was there at that instant",
            "report this as a bug",
        ));
    }
    shop.printer.say("the last order before the accident is there, the first one after it is not");
    Ok(())
}

fn client(uri: &str) -> Result<Client> {
    Client::open(uri).map_err(|e| {
        Failure::of("client", &e, Some("install psql and redis-cli (scripts/engines demo)".to_owned()))
    })
}

fn lost(error: std::io::Error) -> Failure {
    Failure::of("client", &error, Some("see the servers' logs below the home's run/ folder".to_owned()))
}

fn wait(
    shop: &mut Shop,
    stop: &AtomicBool,
    what: &str,
    mut holds: impl FnMut(&mut Shop) -> Result<bool>,
) -> Result {
    shop.printer.say(format!("waiting for: {what}"));
    let until = Instant::now() + PATIENCE;
    loop {
        if holds(shop)? {
            return Ok(());
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::failed("cancelled", "stopped on request", "run it again: mainstay demo"));
        }
        if Instant::now() > until {
            let log = shop.dir.join("serve.log");
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = said.lines().rev().take(12).collect();
            for line in tail.into_iter().rev() {
                shop.printer.say(format!("  serve: {line}"));
            }
            return Err(Failure::failed(
                "deadline",
                format!("waited in vain for: {what}"),
                "run `mainstay demo --keep` and look at its serve.log",
            ));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
