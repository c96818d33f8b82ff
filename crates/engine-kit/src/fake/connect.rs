//! Finding the node that takes writes.

use mainstay_engine::{Access, Error, Kind, NodeAccess, Result};

use crate::fake::node::Node;

/// A node that answers.
pub(crate) fn connect(node: &NodeAccess) -> Result<Node> {
    let unreachable = |why: &str| Error::new(Kind::Unreachable, format!("reach {}: {why}", node.name));
    let Some(dir) = &node.data_dir else { return Err(unreachable("its folder is elsewhere")) };
    let found = Node::at(dir);
    match found.exists() && found.up() {
        true => Ok(found),
        false => Err(unreachable("it does not run")),
    }
}

/// The node that takes writes: of several that think so, the one of the newest epoch.
pub(crate) fn primary(access: &Access) -> Result<Node> {
    let mut best: Option<(usize, Node)> = None;
    for node in access.nodes.iter().filter_map(|node| connect(node).ok()) {
        let file = node.file()?;
        let epochs = file.lanes.first().map_or(0, |lane| lane.branches.len());
        if file.primary && best.as_ref().is_none_or(|(most, _)| epochs > *most) {
            best = Some((epochs, node));
        }
    }
    best.map(|(_, node)| node).ok_or_else(|| {
        Error::new(Kind::Unreachable, format!("reach {}: no node takes writes", access.cluster))
            .hint("start one: mainstay up")
    })
}
