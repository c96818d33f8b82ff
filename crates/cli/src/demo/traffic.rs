//! A small shop's live traffic: orders in PostgreSQL, sessions and stock in Redis.
//!
//! Each writer inserts an order and then the Redis key that refers to it, and deletes in the other order: key, then row. So at every instant
//! each key has its row; a restore that breaks this is a restore to no instant at all.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::Client;

/// Orders that one writer leaves alive before it begins to delete its oldest.
const ALIVE: usize = 400;

/// The shop's schema.
pub const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS orders (id bigint PRIMARY KEY, customer text NOT NULL, \
     amount_cents int NOT NULL, placed_at timestamptz NOT NULL DEFAULT clock_timestamp());";

/// Writers at work.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    writers: Vec<JoinHandle<()>>,
}

/// What was done so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Orders placed, with their keys.
    pub placed: AtomicU64,
    /// Orders withdrawn, with their keys.
    pub withdrawn: AtomicU64,
    /// Statements that failed; each writer then reconnects.
    pub failed: AtomicU64,
}

impl Traffic {
    /// Starts `writers` writers, each at full speed but for `pause` after every order.
    pub fn start(orders: &str, stock: &str, writers: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let spawn = |number| {
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            let (orders, stock) = (orders.to_owned(), stock.to_owned());
            std::thread::spawn(move || {
                let mut writer = Writer { number, next: 0, alive: VecDeque::new() };
                while !stop.load(Ordering::Relaxed) {
                    if writer.work(&orders, &stock, pause, &stop, &counts).is_err() {
                        counts.failed.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(200));
                    }
                }
            })
        };
        let writers = (0..writers).map(spawn).collect();
        Self { stop, counts, writers }
    }

    /// What was done so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Stops the writers and waits for them.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            // A writer that panicked has nothing more to say.
            let _ = writer.join();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

struct Writer {
    number: u64,
    next: u64,
    alive: VecDeque<u64>,
}

impl Writer {
    fn work(
        &mut self,
        orders: &str,
        stock: &str,
        pause: Duration,
        stop: &AtomicBool,
        counts: &Counts,
    ) -> io::Result<()> {
        let mut sql = Client::open(orders)?;
        let mut redis = Client::open(stock)?;
        while !stop.load(Ordering::Relaxed) {
            self.next += 1;
            let id = self.number * 1_000_000_000 + self.next;
            let placed = sql.ask(&format!(
                "INSERT INTO orders VALUES ({id}, 'customer {}', {}) ON CONFLICT DO NOTHING RETURNING id;",
                id % 977,
                100 + id % 9900
            ))?;
            if placed.first().is_none_or(|line| *line != id.to_string()) {
                return Err(io::Error::other("the order was not placed"));
            }
            redis.must(&format!("SET order:{id} {}", id % 977))?;
            redis.must(&format!("SET session:{}:{} {id} EX 3600", self.number, id % 200))?;
            counts.placed.fetch_add(1, Ordering::Relaxed);
            self.alive.push_back(id);
            if self.alive.len() > ALIVE
                && let Some(old) = self.alive.pop_front()
            {
                redis.must(&format!("DEL order:{old}"))?;
                sql.ask(&format!("DELETE FROM orders WHERE id = {old};"))?;
                counts.withdrawn.fetch_add(1, Ordering::Relaxed);
            }
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }
}

/// What a shop holds, read from servers that nobody writes to.
#[derive(Debug)]
pub struct Holdings {
    /// Order numbers in PostgreSQL.
    pub rows: BTreeSet<u64>,
    /// Order numbers that Redis has a key for.
    pub keys: BTreeSet<u64>,
}

impl Holdings {
    /// Reads both sides; `stock` are the masters' URIs.
    ///
    /// # Errors
    /// When a server cannot be read, or the table is not there.
    pub fn read(orders: &str, stock: &[String]) -> io::Result<Self> {
        let mut sql = Client::open(orders)?;
        let found = sql.ask("SELECT count(*) FROM orders;")?;
        let count: usize = found
            .first()
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| io::Error::other("there is no table orders"))?;
        let rows: BTreeSet<u64> =
            sql.ask("SELECT id FROM orders;")?.iter().filter_map(|l| l.parse().ok()).collect();
        if rows.len() != count {
            return Err(io::Error::other(format!("{count} orders were counted, {} were read", rows.len())));
        }
        let mut keys = BTreeSet::new();
        for uri in stock {
            let mut redis = Client::open(uri)?;
            for key in redis.must("KEYS order:*")? {
                keys.extend(
                    key.trim_matches('"').strip_prefix("order:").and_then(|id| id.parse::<u64>().ok()),
                );
            }
        }
        Ok(Self { rows, keys })
    }

    /// Keys whose order is not there: what an exact point never has.
    pub fn dangling(&self) -> usize {
        self.keys.difference(&self.rows).count()
    }
}
