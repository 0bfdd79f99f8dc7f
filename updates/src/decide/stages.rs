//! A stage that failed keeps those after it from starting.

use super::{Surroundings, retry};
use crate::Stage;
use crate::api::{NodeUpdateSpec, Phase};

/// A stage whose updates failed on too many nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedStage {
    /// Which.
    pub stage: Stage,
    /// Nodes whose last update failed, and that still need it.
    pub failed: usize,
    /// The stage's nodes.
    pub nodes: usize,
    /// So many failures are enough.
    pub limit: usize,
}

/// Whether a node's last update did harm, and that is not mended. `due`: whether it still needs one; a node whose harmful
/// packages are banned by now, or can be tried no further, does not count any more.
pub(super) fn is_harmed(spec: &NodeUpdateSpec, due: impl FnOnce() -> bool) -> bool {
    let now = spec.transaction.as_ref();
    now.is_some_and(|t| t.phase == Phase::Broken || t.failure.as_ref().is_some_and(|f| retry::is_harm(&f.reason)))
        || (spec.retry.as_ref().is_some_and(|r| retry::is_harm(&r.failure.reason)) && due())
}

/// `harmed`: of each node, its stage and whether it was harmed.
pub(super) fn failed(around: &Surroundings<'_, '_>, harmed: impl Iterator<Item = (Stage, bool)>) -> Vec<FailedStage> {
    let mut counts = Stage::ALL.map(|stage| FailedStage { stage, failed: 0, nodes: 0, limit: 0 });
    for (stage, harmed) in harmed {
        for count in counts.iter_mut().filter(|c| c.stage == stage) {
            count.nodes += 1;
            count.failed += usize::from(harmed);
        }
    }
    let limit = |nodes: usize| around.spec.halt_when_failed.of(nodes).min(nodes).max(1);
    counts.map(|c| FailedStage { limit: limit(c.nodes), ..c }).into_iter().filter(|c| c.failed >= c.limit).collect()
}

/// Whether `stage` comes after one that failed.
pub(super) fn is_halted(failed: &[FailedStage], stage: Stage) -> bool {
    failed.iter().any(|f| f.stage < stage)
}
