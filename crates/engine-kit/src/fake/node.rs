//! A node's folder: what it holds, read and written.
//!
//! ```text
//! node.json    who it is, its role, each lane's epochs and where its log begins
//! base.json    the content where the logs begin
//! lane-N.log   records since
//! write.lock   held by whoever writes a record       hold.json  until when writes wait
//! up           the server's process                  slot-*     who keeps the log from being trimmed
//! clock        the server's clock, if it is not the real one
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mainstay_engine::{Error, Kind, Result};
use mainstay_model::{Branch, Epoch, Instant, Offset, Place};
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fake::record::{Op, Record};

/// Keys and values.
pub(crate) type Content = BTreeMap<String, String>;

/// What offsets count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Count {
    /// Bytes of the log, as in PostgreSQL and Redis.
    #[default]
    Bytes,
    /// Records, as in most others.
    Records,
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeFile {
    pub(crate) incarnation: String,
    pub(crate) count: Count,
    /// Whether it takes writes.
    pub(crate) primary: bool,
    pub(crate) lanes: Vec<LaneFile>,
}

/// A lane's history on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LaneFile {
    /// Where its file begins. Offsets go on from epoch to epoch.
    pub(crate) start: Offset,
    /// The epochs, in order; the last is the present one.
    pub(crate) branches: Vec<Branch>,
}

impl LaneFile {
    pub(crate) fn new() -> Self {
        let first = Branch { epoch: Epoch("1".to_owned()), parent: None, first: Offset(0) };
        Self { start: Offset(0), branches: vec![first] }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.branches.last().map_or_else(|| Epoch("1".to_owned()), |branch| branch.epoch.clone())
    }

    /// The place of an offset: in the epoch that it was written in. Where one ends and the next begins, the next.
    pub(crate) fn place(&self, offset: Offset) -> Place {
        let branch = self.branches.iter().rfind(|branch| branch.first <= offset);
        let epoch =
            branch.or(self.branches.first()).map_or_else(|| self.epoch(), |branch| branch.epoch.clone());
        Place { epoch, offset }
    }

    /// Begins another epoch at `at`.
    pub(crate) fn branch(&mut self, at: Offset) {
        let newest = self.branches.iter().filter_map(|branch| branch.epoch.0.parse::<u32>().ok()).max();
        let parent = Place { epoch: self.epoch(), offset: at };
        let epoch = Epoch((newest.unwrap_or(0) + 1).to_string());
        self.branches.push(Branch { epoch, parent: Some(parent), first: at });
    }
}

/// One node's folder.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) dir: PathBuf,
}

impl Node {
    pub(crate) fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Makes an empty node that takes writes.
    pub(crate) fn create(dir: &Path, incarnation: &str, lanes: usize, count: Count) -> Result<Self> {
        let node = Self::at(dir);
        let lanes: Vec<LaneFile> = (0..lanes.max(1)).map(|_| LaneFile::new()).collect();
        let file = NodeFile { incarnation: incarnation.to_owned(), count, primary: true, lanes };
        node.fill(&file, &Content::new())?;
        Ok(node)
    }

    /// Writes all that a node begins with; who it is comes last, so that a half-made one is none.
    pub(crate) fn fill(&self, file: &NodeFile, base: &Content) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(|e| self.failed("make", "", e))?;
        for number in 0..file.lanes.len() {
            self.write(&log_name(number), &[])?;
        }
        self.write_json("base.json", base)?;
        self.write_json("node.json", file)
    }

    pub(crate) fn exists(&self) -> bool {
        self.dir.join("node.json").exists()
    }

    pub(crate) fn file(&self) -> Result<NodeFile> {
        self.read_json("node.json")
    }

    pub(crate) fn base(&self) -> Result<Content> {
        self.read_json("base.json")
    }

    /// A lane's log since where it begins here.
    pub(crate) fn log(&self, number: usize) -> Result<Vec<u8>> {
        let name = log_name(number);
        fs::read(self.dir.join(&name)).map_err(|e| self.failed("read", &name, e))
    }

    /// How far a log of these bytes goes, by what is counted; what is not whole does not count.
    pub(crate) fn end(file: &NodeFile, number: usize, log: &[u8]) -> Result<Offset> {
        let start = file.lanes.get(number).map_or(Offset(0), |lane| lane.start);
        let records = Record::decode_all(log)?;
        let counted = match file.count {
            Count::Bytes => records.last().map_or(0, |(_, end)| *end),
            Count::Records => records.len(),
        };
        Ok(Offset(start.0 + counted as u128))
    }

    /// All keys, with the places that this is the state at. The caller holds the lock.
    pub(crate) fn content(&self) -> Result<(Content, Vec<Place>)> {
        let file = self.file()?;
        let mut content = self.base()?;
        let mut places = Vec::new();
        for (number, lane) in file.lanes.iter().enumerate() {
            let log = self.log(number)?;
            for (record, _) in Record::decode_all(&log)? {
                apply(&mut content, record.op);
            }
            places.push(lane.place(Self::end(&file, number, &log)?));
        }
        Ok((content, places))
    }

    /// Appends a record. The caller holds the lock.
    pub(crate) fn append(&self, number: usize, record: &Record) -> Result<()> {
        let name = log_name(number);
        let append = || -> io::Result<()> {
            OpenOptions::new().append(true).open(self.dir.join(&name))?.write_all(&record.encode())
        };
        append().map_err(|e| self.failed("write", &name, e))
    }

    /// Keeps everybody else from writing. Never held for long.
    pub(crate) fn lock(&self) -> Result<Flock<File>> {
        let failed = |e| self.failed("lock", "write.lock", e);
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.dir.join("write.lock"))
            .map_err(failed)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))
    }

    /// Whether its server runs.
    pub(crate) fn up(&self) -> bool {
        let pid = fs::read_to_string(self.dir.join("up")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        // One that ended and was not yet buried runs no more.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    pub(crate) fn set_up(&self, pid: u32) -> Result<()> {
        self.write("up", pid.to_string().as_bytes())
    }

    pub(crate) fn set_down(&self) -> Result<()> {
        self.remove("up")
    }

    /// The server's clock.
    pub(crate) fn now(&self) -> Instant {
        let set = fs::read_to_string(self.dir.join("clock")).ok();
        set.and_then(|text| text.trim().parse().ok()).map_or_else(Instant::now, Instant)
    }

    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let bytes = fs::read(self.dir.join(name)).map_err(|e| self.failed("read", name, e))?;
        serde_json::from_slice(&bytes).map_err(|e| self.damaged(name).source(e))
    }

    pub(crate) fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let json = serde_json::to_vec(value).map_err(|e| self.damaged(name).source(e))?;
        self.write(name, &json)
    }

    /// Replaces a file, wholly or not at all.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = self.dir.join(format!("{name}.tmp"));
        let write =
            || fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, self.dir.join(name)));
        write().map_err(|e| self.failed("write", name, e))
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", name, e)),
            _ => Ok(()),
        }
    }

    fn failed(&self, verb: &str, name: &str, error: io::Error) -> Error {
        Error::io(format!("{verb} {}", self.dir.join(name).display()), error)
    }

    fn damaged(&self, name: &str) -> Error {
        Error::new(Kind::Damaged, format!("{} is not what it must be", self.dir.join(name).display()))
    }
}

/// The lane that a key is written to.
pub(crate) fn lane_of(key: &str, lanes: usize) -> usize {
    crc32c::crc32c(key.as_bytes()) as usize % lanes.max(1)
}

pub(crate) fn apply(content: &mut Content, op: Op) {
    match op {
        Op::Set(key, value) => drop(content.insert(key, value)),
        Op::Delete(key) => drop(content.remove(&key)),
        Op::Mark(_) | Op::Ping => {}
    }
}

pub(crate) fn log_name(number: usize) -> String {
    format!("lane-{number}.log")
}
