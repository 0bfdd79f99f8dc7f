//! Who tries suspects.

use std::collections::{BTreeMap, HashSet};

use super::due::{self, Standing};
use super::{Node, Surroundings};
use crate::api::Phase;
use crate::judge::SILENT_AFTER;
use crate::{PackageName, Suspects};

/// What is tried on which node. Of each group one node at a time tries a part, so that a crash is one node's: the one that crashed,
/// after its usual pause, as long as it can; else one that has nothing to wait for.
pub(super) fn trials<'a>(around: &Surroundings<'a, '_>) -> BTreeMap<&'a str, Vec<PackageName>> {
    let nodes = around.input.nodes;
    let under_way = |group: &Suspects| nodes.iter().any(|node| tries(node, group));
    let mut trials = BTreeMap::new();
    for group in around.input.suspects.iter().filter(|group| !under_way(group)) {
        let own = around.nodes.get(group.node.as_str()).copied();
        let stand_ins = nodes.iter().filter(|node| {
            node.spec().is_some_and(|spec| spec.transaction.is_none() && spec.retry.as_ref().is_none_or(|r| r.not_before.0 <= around.now))
        });
        let packages: HashSet<_> = group.packages.iter().collect();
        let mut nodes = own.into_iter().chain(stand_ins).filter(|node| !trials.contains_key(node.name()));
        let able = nodes.find_map(|node| Some((node, part(group, &packages, node, around)?)));
        // where the first that can has something else to do before, no other takes its place
        trials.extend(able.and_then(|(node, part)| Some((node.name(), in_turn(group, part, node, around)?))));
    }
    trials
}

/// Whether a part of a group is being tried on a node.
pub(super) fn tries(node: &Node<'_>, group: &Suspects) -> bool {
    node.transaction().is_some_and(|t| t.trial && group.share_any(&t.packages))
}

/// What of a group can be tried on a node.
fn part(group: &Suspects, packages: &HashSet<&PackageName>, node: &Node<'_>, around: &Surroundings<'_, '_>) -> Option<Vec<PackageName>> {
    let status = node.status()?;
    let broken = node.transaction().is_some_and(|t| t.phase == Phase::Broken);
    if !node.ready || broken || !around.is_free(node) || around.now.duration_since(status.reported_at.0) > SILENT_AFTER {
        return None;
    }
    let there = due::found(status.packages.as_ref()).iter().map(|item| &item.name);
    let there: HashSet<_> = there.filter(|name| packages.contains(name) && around.rules.refuses(name).is_none()).collect();
    Some(group.trial(|p| there.contains(p))).filter(|part| !part.is_empty())
}

/// What is tried on a node now. What was tried in vain has time: something else that is due may be what it needs.
fn in_turn(group: &Suspects, part: Vec<PackageName>, node: &Node<'_>, around: &Surroundings<'_, '_>) -> Option<Vec<PackageName>> {
    let (spec, status) = (node.spec()?, node.status()?);
    let (rules, suspects) = (around.rules, around.input.suspects);
    let there = |p: &PackageName| due::found(status.packages.as_ref()).iter().any(|item| item.name == *p) && rules.refuses(p).is_none();
    if !group.has_stuck(&part) {
        return Some(part);
    }
    if due::may_reboot(status, rules) {
        return None;
    }
    let left_out = due::was_left_out(node);
    match due::standing(status, spec.stage, None, rules) {
        Standing::Due if !left_out => None,
        // first by themselves: a crash puts all that they are tried with under suspicion
        _ if !left_out || group.is_first_together(&part) => Some(part),
        // where that was left out, too, they may need each other
        Standing::Due => Some(part.into_iter().chain(due::packages(status, spec.stage, rules)).collect()),
        _ => {
            let stuck = suspects.iter().filter(|other| *other != group).flat_map(Suspects::in_vain).filter(|p| there(p));
            Some(part.into_iter().chain(stuck.cloned()).collect())
        }
    }
}
