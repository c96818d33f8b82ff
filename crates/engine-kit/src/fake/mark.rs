//! `mark`: a record of that name in every lane, all under one lock.

use async_trait::async_trait;
use mainstay_engine::{Access, Mark, Marked, Result};
use mainstay_model::Bracket;

use crate::fake::node::Node;
use crate::fake::record::{Op, Record};
use crate::fake::{Fake, connect, lane};

#[async_trait]
impl Mark for Fake {
    async fn mark(&self, access: &Access, id: &str) -> Result<Marked> {
        let node = connect::primary(access)?;
        let _lock = node.lock()?;
        let time = node.now();
        for number in 0..node.file()?.lanes.len() {
            node.append(number, &Record { time, op: Op::Mark(id.to_owned()) })?;
        }
        marked(&node)
    }
}

/// Where every lane is now. The caller holds the lock.
pub(crate) fn marked(node: &Node) -> Result<Marked> {
    let file = node.file()?;
    let mut position = mainstay_model::Position::default();
    for (number, lane_file) in file.lanes.iter().enumerate() {
        let end = Node::end(&file, number, &node.log(number)?)?;
        position.0.insert(lane(number), lane_file.place(end));
    }
    Ok(Marked { position, at: Bracket::exactly(node.now()) })
}
