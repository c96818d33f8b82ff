//! `snapshot`: the content under the lock, as four files.

use std::sync::Arc;

use async_trait::async_trait;
use mainstay_engine::{
    Access, Cut, Error, FileKind, FileSpec, Kind, Progress, Result, Snapshot, SnapshotOptions, SnapshotSink,
    Taken,
};
use mainstay_model::{Bracket, Position};

use crate::fake::node::{Content, Node, lane_of};
use crate::fake::{Fake, connect, lane};

/// How many files the content is spread over.
pub(crate) const PARTS: usize = 4;

#[async_trait]
impl Snapshot for Fake {
    async fn snapshot(
        &self,
        access: &Access,
        _options: &SnapshotOptions,
        sink: Arc<dyn SnapshotSink>,
        progress: Arc<dyn Progress>,
    ) -> Result<Taken> {
        let node = connect::primary(access)?;
        let copied = tokio::task::spawn_blocking(move || copy(&node, &*sink, &*progress)).await;
        copied.map_err(|e| Error::new(Kind::Io, "copy the content").source(e))?
    }
}

/// On a thread of its own: the sink blocks. The source is locked for no longer than reading takes.
fn copy(node: &Node, sink: &dyn SnapshotSink, progress: &dyn Progress) -> Result<Taken> {
    let lock = node.lock()?;
    let (content, places) = node.content()?;
    let file = node.file()?;
    let at = Bracket::exactly(node.now());
    drop(lock);
    progress.stage("copy the content");
    let folder = FileSpec { path: "base".into(), kind: FileKind::Directory, mode: 0o700, cut: Cut::Whole };
    sink.put(&folder, &mut std::io::empty())?;
    for number in 0..PARTS {
        progress.check()?;
        let part: Content = content
            .iter()
            .filter(|(key, _)| lane_of(key, PARTS) == number)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let json = serde_json::to_vec(&part).map_err(|e| Error::new(Kind::Io, "write JSON").source(e))?;
        let spec =
            FileSpec { path: part_name(number), kind: FileKind::Regular, mode: 0o600, cut: Cut::Content };
        sink.put(&spec, &mut json.as_slice())?;
        progress.advance(json.len() as u64);
    }
    let position: Position =
        places.into_iter().enumerate().map(|(number, place)| (lane(number), place)).collect();
    let history = |(number, lane_file): (usize, &crate::fake::node::LaneFile)| {
        lane_file.branches.iter().map(move |branch| (lane(number), branch.clone())).collect::<Vec<_>>()
    };
    Ok(Taken {
        started: position.clone(),
        position,
        at,
        incarnation: Some(file.incarnation),
        version: "1.0".to_owned(),
        branches: file.lanes.iter().enumerate().flat_map(history).collect(),
        meta: serde_json::json!({ "lanes": file.lanes.len(), "count": file.count }),
    })
}

pub(crate) fn part_name(number: usize) -> String {
    format!("base/{number:02}.json")
}
