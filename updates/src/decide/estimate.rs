//! How long an update takes, by what updates took so far.

use jiff::SignedDuration;

use super::Node;
use crate::api::Run;

/// As long as nobody has been updated.
const AT_FIRST: SignedDuration = SignedDuration::from_hours(1);

/// The longest of a node's updates that came to a good end; None before the first.
pub fn estimate(history: &[Run]) -> Option<SignedDuration> {
    let good = history.iter().filter(|run| run.failure.is_none());
    good.map(|run| run.finished_at.0.duration_since(run.started_at.0)).filter(|took| !took.is_negative()).max()
}

fn own(node: &Node<'_>) -> Option<SignedDuration> {
    estimate(&node.status()?.history)
}

/// What nine of ten nodes need at most: for those that have no history of their own.
pub(super) fn of_fleet(nodes: &[Node<'_>]) -> SignedDuration {
    let mut all: Vec<_> = nodes.iter().filter_map(own).collect();
    all.sort_unstable();
    all.get((all.len() * 9).div_ceil(10).saturating_sub(1)).copied().unwrap_or(AT_FIRST)
}

/// How long the node's next update probably takes.
pub(super) fn of_node(node: &Node<'_>, fleet: SignedDuration) -> SignedDuration {
    own(node).unwrap_or(fleet)
}
