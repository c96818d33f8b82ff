//! `prove`: every record's checksum, and a digest of all content.

use async_trait::async_trait;
use mainstay_engine::{Access, Check, Content, Error, Host, Kind, Layout, Prove, Result, SnapshotSource};

use crate::fake::node::{Node, lane_of};
use crate::fake::record::Record;
use crate::fake::{Fake, connect};

#[async_trait]
impl Prove for Fake {
    async fn integrity(&self, layout: &Layout, _: &dyn Host, _: &dyn SnapshotSource) -> Result<Vec<Check>> {
        let mut checks = Vec::new();
        for layout in &layout.nodes {
            let node = Node::at(layout.data());
            for number in 0..node.file()?.lanes.len() {
                let found = match node.log(number).and_then(|log| Record::decode_all(&log)) {
                    Ok(_) => "sound".to_owned(),
                    Err(error) => error.to_string(),
                };
                checks.push(Check {
                    kind: "checksums".to_owned(),
                    what: format!("{} lane {number}", layout.name),
                    expected: "sound".to_owned(),
                    found,
                });
            }
        }
        Ok(checks)
    }

    async fn content(&self, access: &Access) -> Result<Vec<Content>> {
        let node = connect::primary(access)?;
        let _lock = node.lock()?;
        let (content, places) = node.content()?;
        let mut contents = Vec::new();
        for number in 0..places.len() {
            let keys = content.iter().filter(|(key, _)| lane_of(key, places.len()) == number);
            let keys: Vec<_> = keys.collect();
            let json = serde_json::to_vec(&keys).map_err(|e| Error::new(Kind::Io, "write JSON").source(e))?;
            contents.push(Content {
                what: format!("lane {number}"),
                count: i64::try_from(keys.len()).unwrap_or(i64::MAX),
                digest: format!("{:08x}", crc32c::crc32c(&json)),
                tolerance: 0,
            });
        }
        Ok(contents)
    }
}
