//! `snapshot`: a consistent copy of a cluster, streamed into the vault.

use std::io::Read;
use std::sync::Arc;

use async_trait::async_trait;
use mainstay_model::{Bracket, Branch, Lane, Position};
use serde::{Deserialize, Serialize};

use crate::{Access, Progress, Result};

/// Engines that can copy a whole cluster consistently.
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// Copies the cluster into `sink` and says at which position the copy is consistent.
    ///
    /// The snapshot stands alone: log that it needs to become consistent is stored in it as files (PostgreSQL's WAL from start to
    /// stop). Dropping the future ends the copy and leaves nothing held at the source.
    ///
    /// # Errors
    /// `Unreachable`, `Refused`, `Server`; `Damaged` when the source's own pages fail their checksums and stay so.
    async fn snapshot(
        &self,
        access: &Access,
        options: &SnapshotOptions,
        sink: Arc<dyn SnapshotSink>,
        progress: Arc<dyn Progress>,
    ) -> Result<Taken>;
}

/// How to take a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotOptions {
    /// Over the network protocol, by reading files, or the better of the two.
    pub way: Way,
    /// How many files are read at once.
    pub jobs: usize,
    /// A name for the source's own lists (`mainstay 20260131T…`).
    pub label: String,
}

/// How a snapshot gets at the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Files where they can be read, the protocol elsewhere.
    Auto,
    /// The engine's own protocol only.
    Protocol,
    /// The files beside the server only.
    Files,
}

/// Where a snapshot's files go: the vault.
pub trait SnapshotSink: Send + Sync {
    /// Stores one file, directory or link. Blocks; reads `content` to its end; may be called from several threads at once, each for
    /// another path. `content` is read in whole pages where the cut is [`Cut::Pages`] and the file's length allows.
    ///
    /// # Errors
    /// What reading `content` gave, or what the vault's store gave. A path given twice is `Invalid`.
    fn put(&self, file: &FileSpec, content: &mut dyn Read) -> Result<Stored>;
}

/// What is stored with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Relative, `/` between parts, no `.` or `..` parts; unique within the snapshot.
    pub path: String,
    /// File, directory or link.
    pub kind: FileKind,
    /// Unix permission bits.
    pub mode: u32,
    /// How the vault cuts its content.
    pub cut: Cut,
}

/// What a [`FileSpec`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// A file with content.
    Regular,
    /// A directory; its content is not read.
    Directory,
    /// A symbolic link; its content is not read.
    Symlink {
        /// Where it points.
        target: String,
    },
}

/// How a file is cut into the pieces that are told apart by hash, chosen by whoever knows the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// Pages of that many bytes, rewritten in place: compared with the same page of the snapshot before.
    Pages(u32),
    /// Bytes that shift (dumps, RDB): cut by content.
    Content,
    /// Written once and never again: same path, size and hash means the same file.
    Whole,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes read.
    pub bytes_read: u64,
    /// Of these, bytes that the vault did not have.
    pub bytes_new: u64,
}

/// What a finished snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Where the copy is consistent: what is below these places is in it, what is behind them is not.
    pub position: Position,
    /// Where the copy began; replaying log from here is harmless.
    pub started: Position,
    /// When the copy was consistent, by the source's clock.
    pub at: Bracket,
    /// The engine's own name for this life of the data (PostgreSQL's system identifier); `None` where Mainstay mints one.
    pub incarnation: Option<String>,
    /// The server's version, as it says it.
    pub version: String,
    /// How the epochs of each lane came to be, as far as the source knows.
    pub branches: Vec<(Lane, Branch)>,
    /// What the adapter wants to find again at restore (tablespaces, slot owners, settings). Never a secret.
    pub meta: serde_json::Value,
}

/// A snapshot in the vault, opened for reading. Blocking; from any thread. All that is read has been checked.
pub trait SnapshotSource: Send + Sync {
    /// What the snapshot is.
    fn taken(&self) -> &Taken;
    /// Its files, with their sizes in bytes.
    ///
    /// # Errors
    /// `Damaged` when the vault's objects are.
    fn files(&self) -> Result<Vec<(FileSpec, u64)>>;
    /// The content of one file, in order.
    ///
    /// # Errors
    /// `Invalid` when there is no such file, `Damaged`, `Io`.
    fn open(&self, path: &str) -> Result<Box<dyn Read + Send>>;
    /// Writes files to disk, several at once, holes as holes, with their modes (directories made as needed, owned by `owner`).
    /// `files` are (path in the snapshot, path on disk); nothing that exists is overwritten. fsyncs what it wrote.
    ///
    /// # Errors
    /// As [`Self::open`], and `Io` for the disk.
    fn place(
        &self,
        files: &[(String, std::path::PathBuf)],
        owner: Option<crate::RunAs>,
        jobs: usize,
        progress: &dyn Progress,
    ) -> Result<u64>;
}
