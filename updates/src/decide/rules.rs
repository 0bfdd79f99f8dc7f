//! The spec, made ready to be asked about thousands of nodes.

use std::collections::HashSet;

use jiff::Timestamp;

use crate::api::{Approval, Available, UpdateManagerSpec};
use crate::{Bans, BootId, Gate, PackageName, PatchName, Stage, Suspects, gate};

/// What may be installed, and when.
pub(super) struct Rules<'a> {
    pub(super) spec: &'a UpdateManagerSpec,
    pub(super) gate: Gate,
    bans: Bans<'a>,
    patch_bans: HashSet<PatchName>,
    suspects: HashSet<&'a PackageName>,
    approved: Option<Approved<'a>>,
    /// What was published after this is too young, by stage: fast, slow, stable.
    newest: [Timestamp; 3],
    pub(super) now: Timestamp,
}

struct Approved<'a> {
    packages: HashSet<&'a PackageName>,
    patches: HashSet<PatchName>,
    boots: HashSet<&'a BootId>,
}

/// Whether an item is installed. What is worth knowing most comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum May {
    Yes,
    NotApproved,
    Suspected,
    /// It was published too lately, which was then.
    Young(Timestamp),
    Banned,
}

impl<'a> Rules<'a> {
    pub(super) fn new(spec: &'a UpdateManagerSpec, suspects: &'a [Suspects], now: Timestamp) -> Self {
        let approved = (spec.approval == Approval::Manual).then(|| Approved {
            packages: spec.approved_packages.iter().collect(),
            patches: spec.approved_patches.iter().copied().collect(),
            boots: spec.approved_reboots.iter().collect(),
        });
        Self {
            spec,
            gate: gate(&spec.maintenance_windows, now),
            bans: spec.banned_packages.iter().collect(),
            patch_bans: spec.banned_patches.iter().copied().collect(),
            suspects: suspects.iter().flat_map(|s| &s.packages).collect(),
            approved,
            newest: [Stage::Fast, Stage::Slow, Stage::Stable]
                .map(|stage| now.saturating_sub(spec.stage_delays.of(stage)).unwrap_or(Timestamp::MIN)),
            now,
        }
    }

    fn young(&self, stage: Stage, since: Timestamp) -> Option<May> {
        let [fast, slow, stable] = self.newest;
        let newest = match stage {
            Stage::Fast => fast,
            Stage::Slow => slow,
            Stage::Stable => stable,
        };
        (since > newest).then_some(May::Young(since))
    }

    /// When what was published then is due on nodes of this stage. Of thousands of items only those that are shown are asked for it.
    pub(super) fn due(&self, stage: Stage, since: Timestamp) -> Timestamp {
        since.saturating_add(self.spec.stage_delays.of(stage)).unwrap_or(Timestamp::MAX)
    }

    /// Whatever its age, and whether or not it is a suspect.
    pub(super) fn refuses(&self, package: &PackageName) -> Option<May> {
        if self.bans.include(package) {
            return Some(May::Banned);
        }
        self.approved.as_ref().is_some_and(|a| !a.packages.contains(package)).then_some(May::NotApproved)
    }

    pub(super) fn suspects(&self, package: &PackageName) -> bool {
        !self.suspects.is_empty() && self.suspects.contains(package)
    }

    pub(super) fn bans(&self, package: &PackageName) -> bool {
        self.bans.include(package)
    }

    pub(super) fn refuses_patch(&self, patch: PatchName) -> Option<May> {
        if self.patch_bans.contains(&patch) {
            return Some(May::Banned);
        }
        self.approved.as_ref().is_some_and(|a| !a.patches.contains(&patch)).then_some(May::NotApproved)
    }

    /// On a node of this stage.
    pub(super) fn package(&self, item: &Available<PackageName>, stage: Stage) -> May {
        let suspected = || self.suspects(&item.name).then_some(May::Suspected);
        // the age first: it is a comparison, and most of what a slow stage lacks is young
        self.young(stage, item.since.0).or_else(|| self.refuses(&item.name)).or_else(suspected).unwrap_or(May::Yes)
    }

    /// The same for a live patch.
    pub(super) fn patch(&self, item: &Available<PatchName>, stage: Stage) -> May {
        self.young(stage, item.since.0).or_else(|| self.refuses_patch(item.name)).unwrap_or(May::Yes)
    }

    /// Whether this boot may be ended where nothing is installed.
    pub(super) fn lets_reboot(&self, boot: &BootId) -> bool {
        self.approved.as_ref().is_none_or(|a| a.boots.contains(boot))
    }
}
