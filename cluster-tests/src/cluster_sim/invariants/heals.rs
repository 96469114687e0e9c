//! When the faults are over, somebody serves, everybody who should be in sync is, by the disk that
//! it has, everything is committed, and all copies are the same (I11).

use super::{Invariant, Node, View};

#[derive(Debug, Default)]
pub(super) struct Heals;

impl Invariant for Heals {
    fn name(&self) -> &'static str {
        "heals"
    }

    fn at_end(&mut self, view: &View<'_>) -> Result<(), String> {
        let config = view.plane.shard();
        let serving: Vec<_> = view.nodes.iter().filter(|node| node.leading().is_some()).collect();
        let [primary] = serving[..] else {
            let names: Vec<_> = serving.iter().map(|node| node.name.as_str()).collect();
            return Err(format!("primaries: {names:?}, agreed on: {config:?}"));
        };
        if !primary.leading().is_some_and(|leading| leading.primary.is_active()) {
            let nodes: Vec<_> = view.nodes.iter().map(Node::describe).collect();
            return Err(format!("{} is not active\n{}", primary.name, nodes.join("\n")));
        }
        let wanted = config.targets.len();
        if config.in_sync.len() != wanted {
            return Err(format!("{wanted} copies are wanted, agreed on: {config:?}"));
        }
        for node in view.nodes {
            if config.in_sync.get(&node.name).is_some_and(|disk| *disk != node.disk.id) {
                return Err(format!("{} is in sync by a disk that is lost", node.name));
            }
        }
        let leading = primary.leading().map(|leading| &leading.primary);
        if leading.is_some_and(|leading| leading.watermark() < leading.last()) {
            return Err(format!("not everything is committed\n{}", primary.describe()));
        }
        for node in view.nodes.iter().filter(|node| config.in_sync.contains_key(&node.name)) {
            if node.disk.synced.log != primary.disk.synced.log {
                return Err(format!("{} and {} differ", node.name, primary.name));
            }
        }
        Ok(())
    }
}
