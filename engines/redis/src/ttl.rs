//! Times to live of a server that is being fed: read, and moved, before it may expire anything.
//!
//! A key that had ten seconds left yesterday must have ten seconds left in a sandbox made today. Keys whose time has passed by now
//! cannot be seen by a client of a replica, but a script that comes down the replication link runs as the master's and sees
//! them all. So scripts are sent down the link, in batches, and tell what they found through a channel (a script's answer to a master
//! goes nowhere). `SCAN` may show a key twice; a shifted time is therefore marked by lifting it out of the range of real times
//! in a first pass, and lowered in a second, so that neither pass does anything twice.
//!
//! Needs Redis 7.0 (`PEXPIRETIME`). Fields of hashes with a life of their own (7.4 and later) are hidden from scripts too once their time has
//! passed; they are read from what `DUMP` gives (see [`crate::fields`]).

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use mainstay_engine::{Error, Kind, Result};

use crate::connect::Subscription;
use crate::fields;
use crate::link::Door;
use crate::master::{Feed, FeedError};
use crate::noted::Noted;

/// Where the scripts tell what they found.
pub const CHANNEL: &str = "mainstay:restore";
/// How many keys a script looks at in one go.
const BATCH: &str = "2000";
/// The same, where whole hashes are told.
const BATCH_HASHES: &str = "100";
/// How many named keys, and bytes of them, a script looks at, and how many such scripts are on their way at once.
const NAMED_KEYS: usize = 1000;
const NAMED_BYTES: usize = 256 * 1024;
const NAMED_AHEAD: usize = 4;
/// How often ends of life are read until every one was seen once.
const READS_MAX: u32 = 100;
const READ_AGAIN: Duration = Duration::from_millis(100);
/// How long one batch may take.
const BATCH_DEADLINE: Duration = Duration::from_secs(120);

/// Looks at a batch of keys: those that `SCAN` finds behind a cursor, or those that are named. `lift` moves their ends of life by the shift and into
/// the range of marked times, `lower` out of it; `read` moves nothing. Tells the next cursor, how many keys it was done to, and two
/// 32-bit halves of an order-independent digest of (key, end of life) as they were before.
const LIVES: &str = "
local channel, phase, shift, cursor = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local mark = 2251799813685248
local count, high, low = 0, 0, 0
local function look(key)
  local ends = redis.call('PEXPIRETIME', key)
  if phase == 'lower' then
    if ends >= mark and ends < mark + mark / 2 then
      redis.call('PEXPIREAT', key, string.format('%.0f', ends - mark))
      count = count + 1
    end
  elseif ends >= 0 and (phase == 'read' or ends < mark / 2) then
    local hash = redis.sha1hex(key .. '\\0' .. string.format('%.0f', ends))
    high = bit.bxor(high, tonumber(string.sub(hash, 1, 8), 16))
    low = bit.bxor(low, tonumber(string.sub(hash, 9, 16), 16))
    count = count + 1
    if phase == 'lift' then
      redis.call('PEXPIREAT', key, string.format('%.0f', ends + shift + mark))
    end
  end
end
if cursor == 'named' then
  cursor = '0'
  for index = 5, #ARGV do look(ARGV[index]) end
else
  local found = redis.call('SCAN', cursor, 'COUNT', ARGV[5])
  cursor = found[1]
  for _, key in ipairs(found[2]) do look(key) end
end
local text = string.format('%s %.0f %.0f %.0f', cursor, count, high % 4294967296, low % 4294967296)
redis.call('PUBLISH', channel, text)
";

/// Tells all of a batch of hashes whose fields may have an end of life: a message `=key-length key dump` for each, then the cursor.
const DUMP_HASHES: &str = "
local channel, cursor, batch = ARGV[1], ARGV[2], ARGV[3]
local found = redis.call('SCAN', cursor, 'COUNT', batch, 'TYPE', 'hash')
for _, key in ipairs(found[2]) do
  local encoding = redis.call('OBJECT', 'ENCODING', key)
  if encoding == 'listpackex' or encoding == 'hashtable' then
    local dump = redis.call('DUMP', key)
    local kind = dump and string.byte(dump, 1)
    if kind == 24 or kind == 25 then
      redis.call('PUBLISH', channel, '=' .. string.len(key) .. ' ' .. key .. dump)
    end
  end
end
redis.call('PUBLISH', channel, string.format('%s 0 0 0', found[1]))
";

/// What a pass over all keys of a database found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Keys with an end of life (of a reading pass, counted twice where `SCAN` showed them twice).
    pub keys: u64,
    /// Over (key, end), whatever the order; meaningless where a reading pass was shown a key twice.
    pub digest: u64,
}

impl Pass {
    fn add(&mut self, other: Pass) {
        self.keys += other.keys;
        self.digest ^= other.digest;
    }
}

/// Runs scripts down a replication link and hears what they tell.
pub struct Scripts<'a> {
    /// The link.
    pub feed: &'a mut Feed,
    /// The server that is fed, for messages.
    pub node: &'a str,
    /// How clients get in.
    pub door: &'a Door,
    /// To wait for messages from a blocking thread.
    pub runtime: &'a tokio::runtime::Runtime,
}

impl Scripts<'_> {
    /// Reads the ends of life of one database, which has so many.
    ///
    /// # Errors
    /// `Server`, `Deadline`, `Unreachable`.
    pub fn read(&mut self, db: u32, keys: u64) -> Result<Pass> {
        for _ in 0..READS_MAX {
            let found = self.pass(db, "read", "0")?;
            if found.keys == keys {
                return Ok(found);
            }
            // A key was shown twice, because the server is making its table larger; it is soon done.
            std::thread::sleep(READ_AGAIN);
        }
        Err(Error::new(
            Kind::Server,
            format!("look at times to live of {}: their number is not {keys}", self.node),
        ))
    }

    /// Moves all ends of life of one database, which has `keys` of them, by `shift_ms`, and says what they were. Only the noted keys are looked
    /// at if they are all.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn shift(&mut self, db: u32, keys: u64, shift_ms: i64, noted: Option<&mut Noted>) -> Result<Pass> {
        let shift = shift_ms.to_string();
        let mut were = Pass::default();
        if let Some(noted) = noted {
            were = self.pass_named(db, noted, "lift", &shift)?;
            if were.keys == keys {
                self.pass_named(db, noted, "lower", &shift)?;
                return Ok(were);
            }
            tracing::info!(
                node = self.node,
                db,
                "not all keys with an end of life were noted; looking at each"
            );
        }
        were.add(self.pass(db, "lift", &shift)?);
        self.pass(db, "lower", &shift)?;
        Ok(were)
    }

    /// Moves all ends of life of fields of hashes of one database by `shift_ms`, and says how many there are.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn shift_fields(&mut self, db: u32, shift_ms: i64) -> Result<u64> {
        // `SCAN` may show a key twice: what was moved is remembered by its hash.
        let mut moved = HashSet::new();
        let mut count = 0;
        let mut messages = self.open(db)?;
        let mut cursor = String::from("0");
        loop {
            self.send(&[DUMP_HASHES, "0", &messages.0, &cursor, BATCH_HASHES])?;
            let mut hashes = Vec::new();
            loop {
                let told = self.runtime.block_on(messages.1.next(BATCH_DEADLINE))?;
                let Some(hash) = told.strip_prefix(b"=") else {
                    let (next, _) = parse(&told).ok_or_else(|| self.nonsense("fields"))?;
                    cursor = next;
                    break;
                };
                let space =
                    hash.iter().position(|byte| *byte == b' ').ok_or_else(|| self.nonsense("fields"))?;
                let length = std::str::from_utf8(&hash[..space]).ok().and_then(|length| length.parse().ok());
                let split = length.and_then(|length| hash[space + 1..].split_at_checked(length));
                let (key, dump) = split.ok_or_else(|| self.nonsense("fields"))?;
                let ends = fields::ends_of(dump).ok_or_else(|| self.nonsense("fields"))?;
                hashes.push((key.to_vec(), ends));
            }
            for (key, ends) in hashes {
                let mut hasher = std::hash::DefaultHasher::new();
                key.hash(&mut hasher);
                if !moved.insert(hasher.finish()) {
                    continue;
                }
                for (field, end) in ends {
                    let end =
                        i64::try_from(end).unwrap_or(i64::MAX).saturating_add(shift_ms).max(0).to_string();
                    let words: [&[u8]; 6] = [b"HPEXPIREAT", &key, end.as_bytes(), b"FIELDS", b"1", &field];
                    self.feed.send_command(&words).map_err(|error| feed_error(self.node, error))?;
                    count += 1;
                }
            }
            if cursor == "0" {
                return Ok(count);
            }
        }
    }

    /// Selects a database and listens to a channel that nobody else has: a late message of another pass is not taken for one of this.
    fn open(&mut self, db: u32) -> Result<(String, Subscription)> {
        let channel = format!("{CHANNEL}:{:016x}", rand::random::<u64>());
        let messages = self.runtime.block_on(Subscription::open(self.node, self.door, &channel))?;
        let select = self.feed.send_command(&[b"SELECT", db.to_string().as_bytes()]);
        select.map_err(|error| feed_error(self.node, error))?;
        Ok((channel, messages))
    }

    fn send(&mut self, words: &[&str]) -> Result<()> {
        let words: Vec<&[u8]> =
            std::iter::once("EVAL").chain(words.iter().copied()).map(str::as_bytes).collect();
        self.feed.send_command(&words).map_err(|error| feed_error(self.node, error))
    }

    /// One phase over named keys.
    fn pass_named(&mut self, db: u32, noted: &mut Noted, phase: &str, shift: &str) -> Result<Pass> {
        let (channel, mut messages) = self.open(db)?;
        let failed = |error| Error::io("read the keys that were noted", error);
        let mut keys = noted.keys(db).map_err(failed)?;
        let (mut sum, mut ahead) = (Pass::default(), 0);
        loop {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while batch.len() < NAMED_KEYS && bytes < NAMED_BYTES {
                let Some(key) = keys.next().transpose().map_err(failed)? else { break };
                bytes += key.len();
                batch.push(key);
            }
            if ahead == NAMED_AHEAD || batch.is_empty() {
                if ahead == 0 {
                    return Ok(sum);
                }
                let told = self.runtime.block_on(messages.next(BATCH_DEADLINE))?;
                sum.add(parse(&told).ok_or_else(|| self.nonsense("keys"))?.1);
                ahead -= 1;
            }
            if !batch.is_empty() {
                let head = ["EVAL", LIVES, "0", &channel, phase, shift, "named"].map(str::as_bytes);
                let words: Vec<&[u8]> = head.into_iter().chain(batch.iter().map(Vec::as_slice)).collect();
                self.feed.send_command(&words).map_err(|error| feed_error(self.node, error))?;
                ahead += 1;
            }
        }
    }

    fn nonsense(&self, of: &str) -> Error {
        let what = format!("look at times to live of {of} of {}: a script told nonsense", self.node);
        Error::new(Kind::Server, what)
    }

    /// One phase over all keys.
    fn pass(&mut self, db: u32, phase: &str, shift: &str) -> Result<Pass> {
        let (channel, mut messages) = self.open(db)?;
        let mut cursor = String::from("0");
        let mut sum = Pass::default();
        loop {
            self.send(&[LIVES, "0", &channel, phase, shift, &cursor, BATCH])?;
            let told = self.runtime.block_on(messages.next(BATCH_DEADLINE))?;
            let (next, found) = parse(&told).ok_or_else(|| self.nonsense("keys"))?;
            sum.add(found);
            if next == "0" {
                return Ok(sum);
            }
            cursor = next;
        }
    }
}

fn parse(told: &[u8]) -> Option<(String, Pass)> {
    let text = std::str::from_utf8(told).ok()?;
    let words: Vec<&str> = text.split(' ').collect();
    let [cursor, keys, high, low] = words[..] else { return None };
    let digest = high.parse::<u64>().ok()? << 32 | low.parse::<u64>().ok()?;
    Some((cursor.to_owned(), Pass { keys: keys.parse().ok()?, digest }))
}

/// A failed feed in the engines' terms.
pub fn feed_error(node: &str, error: FeedError) -> Error {
    let kind = match &error {
        FeedError::Broken(_) | FeedError::Unexpected(_) | FeedError::Apart { .. } => Kind::Server,
        FeedError::Source(_) => Kind::Io,
        FeedError::Stalled(_) => Kind::Deadline,
        FeedError::Cancelled => Kind::Cancelled,
    };
    let what = format!("feed {node}: {error}");
    match error {
        FeedError::Broken(source) => Error::new(kind, what).source(source),
        // A source that fails says its own kind, when it is one of ours.
        FeedError::Source(source) => match source.downcast::<Error>() {
            Ok(error) => error,
            Err(source) => Error::new(kind, what).source(source),
        },
        _ => Error::new(kind, what),
    }
}
