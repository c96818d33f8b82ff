//! How the log gets to the server: as files in a folder, a few ahead of what it has asked for, and a script that hands them over.
//!
//! The script is the server's `restore_command`; it runs as the server's user and needs nothing of ours. It says that a file is
//! absent (exit 1) only where that is certain, because the server then takes the log for ended: a history that was not given
//! beforehand, or any file once the `end` marker is there. Everything else that goes wrong is 255, on which the server gives up.
//! When we are gone it waits for ten minutes and then gives up too.
//!
//! Every segment is read by [`Rewriter`] on its way: records are checked, and no path outside the data directory is left in them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use mainstay_engine::{Error, Kind, NodeLayout, Progress, RestoreJob, Result, RunAs};

use super::supply::Supply;
use crate::disk;
use crate::lsn::{self, Lsn, Timeline, parse_segment_name, segment_name};
use crate::snapshot::Meta;
use crate::wal::{Rewriter, Scanner, magic_of};

/// How many segments lie ready beyond the one that was asked for last.
const AHEAD: u64 = 8;
/// How many are kept behind it: the server reads the last record's again when it ends recovery.
const BEHIND: u64 = 3;

/// The folder of the files.
pub(super) fn folder(node: &NodeLayout) -> PathBuf {
    node.dir.join("wal")
}

/// Where the script notes what the server asks for.
pub(super) fn asked(node: &NodeLayout) -> PathBuf {
    folder(node).join("asked")
}

/// The server's `restore_command`.
pub(super) fn command(node: &NodeLayout) -> String {
    let script = folder(node).join("restore.sh");
    // A percent sign means something to the server.
    format!("/bin/sh {} '%f' '%p'", quote(&script.to_string_lossy()).replace('%', "%%"))
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn script(folder: &Path) -> String {
    format!(
        r#"#!/bin/sh
# Hands log to PostgreSQL: $1 is the file's name, $2 where it is to be put.
# Written by Mainstay; gone when recovery has ended.
d={}
case $1 in
*.history) [ -f "$d/$1" ] || exit 1 ;;
esac
printf '%s\n' "$1" >>"$d/asked" || exit 255
number=${{1#????????}}
n=0
until [ -f "$d/$1" ]; do
  # On another timeline: the server asks for that one next.
  for other in "$d"/????????"$number"; do
    [ ! -f "$other" ] || [ -f "$d/$1" ] || exit 1
  done
  if [ -f "$d/end" ]; then
    [ -f "$d/$1" ] && break
    exit 1
  fi
  n=$((n + 1))
  [ "$n" -lt 30000 ] || exit 255
  sleep 0.02 || exit 255
done
ln "$d/$1" "$2" 2>/dev/null || cp "$d/$1" "$2" || exit 255
"#,
        quote(&folder.to_string_lossy())
    )
}

/// What a step did.
pub(super) enum Step {
    /// Some log was read.
    Fed,
    /// The server has enough for now.
    Full,
    /// All was given.
    Done(Fed),
}

/// What was given in all.
#[derive(Clone, Debug)]
pub(super) struct Fed {
    /// Where the log was cut.
    pub end: Lsn,
    /// Bytes of a segment.
    pub segment_size: u64,
}

impl Fed {
    /// A place as it can be compared with another.
    pub fn normal(&self, at: Lsn) -> Lsn {
        lsn::before_header(at, self.segment_size)
    }
}

/// A segment that waits until nothing in it can change any more.
struct Waiting {
    start: Lsn,
    timeline: Timeline,
    bytes: Vec<u8>,
}

pub(super) struct Feed<'a> {
    supply: Supply<'a>,
    folder: PathBuf,
    owner: Option<RunAs>,
    progress: Arc<dyn Progress>,
    segment_size: u64,
    first: u64,
    rewriter: Rewriter,
    /// Bytes read and not yet in a segment.
    rest: (Lsn, Timeline, Bytes),
    current: Waiting,
    waiting: VecDeque<Waiting>,
    written: VecDeque<(u64, PathBuf)>,
    prepared_room: i32,
}

impl<'a> Feed<'a> {
    /// Makes the folder, the script and the histories.
    pub fn new(job: &RestoreJob<'_>, node: &NodeLayout, meta: &Meta, supply: Supply<'a>) -> Result<Self> {
        let folder = folder(node);
        let owner = job.layout.owner;
        disk::remove_all(&folder)?;
        disk::folder(&folder, owner)?;
        disk::write(&folder.join("restore.sh"), script(&folder).as_bytes(), 0o600, owner)?;
        disk::write(&folder.join("asked"), b"", 0o600, owner)?;
        for (name, bytes) in supply.histories()? {
            disk::write(&folder.join(name), &bytes, 0o600, owner)?;
        }
        let begin = supply.begin();
        let timeline = supply.timeline();
        let scanner = Scanner::new(begin, meta.segment_size, None);
        let scanner = match magic_of(meta.version_num / 10_000) {
            Some(magic) => scanner.expecting(magic),
            None => scanner,
        };
        let prepared_room =
            meta.settings.get("max_prepared_transactions").and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Self {
            folder,
            owner,
            progress: Arc::clone(&job.progress),
            segment_size: meta.segment_size,
            first: begin.segment(meta.segment_size),
            rewriter: Rewriter::new(scanner, meta.segment_size),
            rest: (begin, timeline, Bytes::new()),
            current: Waiting { start: begin, timeline, bytes: Vec::new() },
            waiting: VecDeque::new(),
            written: VecDeque::new(),
            prepared_room: super::PREPARED_LEAST.max(prepared_room),
            supply,
        })
    }

    /// Gives the server a segment more, if it wants one.
    pub fn step(&mut self) -> Result<Step> {
        if self.is_full()? {
            return Ok(Step::Full);
        }
        loop {
            if self.rest.2.is_empty() {
                match self.supply.read()? {
                    Some(stretch) => self.rest = (stretch.at, stretch.timeline, stretch.bytes),
                    None => return self.finish().map(Step::Done),
                }
            }
            if self.take()? {
                self.write_settled(false)?;
                return Ok(Step::Fed);
            }
        }
    }

    /// Moves bytes into the current segment; whether that is full now.
    fn take(&mut self) -> Result<bool> {
        let (at, timeline, bytes) = &mut self.rest;
        let room = self.segment_size as usize - self.current.bytes.len();
        let now = bytes.split_to(room.min(bytes.len()));
        let start = *at;
        *at = at.plus(now.len() as u64);
        self.current.timeline = *timeline;
        self.rewriter.push(&now, |_, _| {}).map_err(|error| {
            Error::new(Kind::Damaged, format!("read the log from {start} on")).source(error)
        })?;
        self.current.bytes.extend_from_slice(now.chunk());
        self.progress.advance(now.len() as u64);
        if (self.current.bytes.len() as u64) < self.segment_size {
            return Ok(false);
        }
        let next = Waiting { start: *at, timeline: *timeline, bytes: Vec::new() };
        let full = std::mem::replace(&mut self.current, next);
        self.waiting.push_back(full);
        Ok(true)
    }

    fn write_settled(&mut self, all: bool) -> Result<()> {
        let settled = self.rewriter.settled();
        while let Some(waiting) = self.waiting.front() {
            if !all && waiting.start.plus(self.segment_size) > settled {
                break;
            }
            let Some(mut waiting) = self.waiting.pop_front() else { break };
            self.rewriter.apply(waiting.start, &mut waiting.bytes);
            let number = waiting.start.segment(self.segment_size);
            let path = self.folder.join(segment_name(waiting.timeline, number, self.segment_size));
            disk::write_passing(&path, &waiting.bytes, self.owner)?;
            self.written.push_back((number, path));
        }
        Ok(())
    }

    /// The log is at its end: the last segment is filled up with zeros, and the marker says that nothing follows.
    fn finish(&mut self) -> Result<Fed> {
        let end = self.supply.end();
        let fed = Fed { end, segment_size: self.segment_size };
        if self.rewriter.clean().map(|clean| fed.normal(clean)) != Some(fed.normal(end)) {
            let what = format!("stop at {end}: the place lies within a record");
            return Err(Error::new(Kind::Invalid, what));
        }
        let prepared = self.rewriter.settings()[3];
        if prepared > self.prepared_room {
            let what = format!("the log needs max_prepared_transactions = {prepared}");
            return Err(Error::new(Kind::Unsupported, what).hint("set it under `config:` of the cluster"));
        }
        for (oid, path) in self.rewriter.tablespaces() {
            tracing::info!(oid, path, "tablespace made in the log: kept inside the data directory");
        }
        if !self.current.bytes.is_empty() {
            let next = Waiting { start: end, timeline: self.current.timeline, bytes: Vec::new() };
            let mut last = std::mem::replace(&mut self.current, next);
            last.bytes.resize(self.segment_size as usize, 0);
            self.waiting.push_back(last);
        }
        self.write_settled(true)?;
        disk::write(&self.folder.join("end"), b"", 0o600, self.owner)?;
        Ok(fed)
    }

    /// Whether enough lies ready; takes away what the server is past.
    fn is_full(&mut self) -> Result<bool> {
        let path = self.folder.join("asked");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Error::io(format!("read {}", path.display()), error))?;
        let mut asked = text.lines().filter_map(|name| Some(parse_segment_name(name, self.segment_size)?.1));
        // First the segment of the checkpoint is asked for, then the one where redo begins: only from then on in order.
        let in_order = asked.clone().any(|number| number == self.first);
        let furthest = asked.clone().max().unwrap_or(self.first);
        if in_order && let Some(last) = asked.next_back() {
            while self.written.front().is_some_and(|(number, _)| number + BEHIND < last) {
                if let Some((_, path)) = self.written.pop_front() {
                    disk::remove(&path)?;
                }
            }
        }
        Ok(self.written.back().is_some_and(|(number, _)| *number >= furthest + AHEAD))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_says_absent_only_when_that_is_certain() {
        let folder = tempfile::tempdir().unwrap();
        let d = folder.path().join("it's 100% here");
        std::fs::create_dir(&d).unwrap();
        std::fs::write(d.join("restore.sh"), script(&d)).unwrap();
        let run = |name: &str| {
            let to = folder.path().join("RECOVERYXLOG");
            let _ = std::fs::remove_file(&to);
            let status = std::process::Command::new("/bin/sh")
                .arg(d.join("restore.sh"))
                .arg(name)
                .arg(&to)
                .status()
                .unwrap();
            (status.code(), std::fs::read(&to).ok())
        };
        std::fs::write(d.join("00000001000000000000000A"), "log").unwrap();
        assert_eq!(run("00000001000000000000000A"), (Some(0), Some(b"log".to_vec())));
        assert_eq!(run("00000002.history"), (Some(1), None));
        // The same segment is there on another timeline.
        assert_eq!(run("00000002000000000000000A"), (Some(1), None));
        std::fs::write(d.join("end"), "").unwrap();
        assert_eq!(run("00000001000000000000000B"), (Some(1), None));
        std::fs::remove_dir_all(&d).unwrap();
        let gone = std::process::Command::new("/bin/sh")
            .args(["-c", &script(&d), "x", "00000001000000000000000A", "y"])
            .status();
        assert_eq!(gone.unwrap().code(), Some(255));
    }
}
