use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PackageName;

/// Packages of which one made a host crash. They are tried by halves: a half that crashes has the culprit, one that is installed
/// has not. Only what crashed alone is banned, so a host that lost its power by chance bans nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Suspects {
    /// They are tried on this node; on others as long as it cannot.
    pub node: String,
    /// One of them, or none.
    pub packages: Vec<PackageName>,
    /// So many of the last of them were tried without the others in vain: they need others, or fail. One more than there are: so
    /// were all of them together.
    #[serde(default)]
    pub stuck: u32,
}

/// What is known after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// These crashed.
    pub bans: Vec<PackageName>,
    /// Who is suspected from now on.
    pub suspects: Vec<Suspects>,
}

impl Suspects {
    /// What is tried next on a node, of those that `can` be tried there: the first half of them. All of them, once each was tried
    /// without the others in vain.
    pub(crate) fn trial(&self, can: impl Fn(&PackageName) -> bool) -> Vec<PackageName> {
        let (fresh, stuck) = self.packages.split_at(self.fresh());
        let mut trial: Vec<_> = fresh.iter().filter(|p| can(p)).cloned().collect();
        let apart = !trial.is_empty();
        trial.extend(stuck.iter().filter(|p| can(p)).cloned());
        if apart {
            trial.truncate(trial.len().div_ceil(2));
        }
        trial
    }

    /// Whether all of these were tried without the others in vain.
    pub(crate) fn has_stuck(&self, trial: &[PackageName]) -> bool {
        let (_, stuck) = self.packages.split_at(self.fresh());
        trial.iter().all(|p| stuck.contains(p))
    }

    /// Those that were tried without the others in vain.
    pub(crate) fn in_vain(&self) -> &[PackageName] {
        self.packages.get(self.fresh()..).unwrap_or_default()
    }

    /// Whether this would be the first time that all of them are tried together, after each was without the others.
    pub(crate) fn is_first_together(&self, trial: &[PackageName]) -> bool {
        trial.len() > 1 && trial.len() == self.packages.len() && self.stuck == self.count()
    }

    fn count(&self) -> u32 {
        u32::try_from(self.packages.len()).unwrap_or(u32::MAX)
    }

    /// So many of the first of them may be told apart yet.
    fn fresh(&self) -> usize {
        self.packages.len().saturating_sub(usize::try_from(self.stuck).unwrap_or(usize::MAX))
    }

    /// Those of them that are among these.
    fn among(&self, packages: &[PackageName]) -> Vec<PackageName> {
        self.packages.iter().filter(|p| packages.contains(p)).cloned().collect()
    }

    /// Whether any of these is one of them.
    pub(crate) fn share_any(&self, packages: &[PackageName]) -> bool {
        self.packages.iter().any(|p| packages.contains(p))
    }

    /// Answers whether that changes anything. Those that are left may be told apart after all.
    fn keep(&mut self, keep: impl Fn(&PackageName) -> bool) -> bool {
        let before = self.packages.len();
        self.packages.retain(keep);
        let fewer = self.packages.len() < before;
        if fewer {
            self.stuck = 0;
        }
        fewer
    }
}

/// `packages` were being installed on `node` together when it crashed; `banned` says what is banned already. Asked again with
/// its own answer, it answers the same.
pub fn crashed(suspects: &[Suspects], node: &str, packages: &[PackageName], banned: impl Fn(&PackageName) -> bool) -> Verdict {
    let mut verdict = Verdict { bans: Vec::new(), suspects: suspects.to_vec() };
    let all = |group: &Suspects| group.packages.len() == packages.len() && group.packages.iter().all(|p| packages.contains(p));
    if packages.len() == 1 || verdict.suspects.iter().any(|group| all(group) && group.has_stuck(packages)) {
        verdict.bans.extend(packages.iter().filter(|p| !banned(p)).cloned());
        verdict.suspects = cleared(suspects, |p| packages.contains(p));
        return verdict;
    }
    let suspected = |p: &PackageName| suspects.iter().any(|group| group.packages.contains(p));
    let fresh = |group: &Suspects| !group.has_stuck(&group.among(packages));
    let within = |group: &Suspects| packages.iter().all(|p| group.packages.contains(p));
    let mixed = packages.iter().any(suspected) && !suspects.iter().any(within);
    if mixed && !suspects.iter().any(fresh) && !packages.iter().any(&banned) {
        // they were tried with others, since they could not be without: from now on all of these are suspected together
        verdict.suspects = cleared(suspects, |p| packages.contains(p));
    }
    let mut known = false;
    for group in verdict.suspects.iter_mut().filter(|group| group.share_any(packages)) {
        known = true;
        if group.keep(|p| packages.contains(p)) {
            node.clone_into(&mut group.node);
        }
    }
    // where one of them is banned, the crash was accounted for
    if !known && !packages.is_empty() && !packages.iter().any(banned) {
        verdict.suspects.push(Suspects { node: node.to_owned(), packages: packages.to_vec(), stuck: 0 });
    }
    verdict
}

/// `trial` needs others on `node`: those that were not tried yet come first. `keeps`: whether the node of a group tries some of it,
/// too; or else two would take it from each other again and again. Asked again with its own answer, it answers the same, as does
/// [`failed`].
pub fn left_out(suspects: &[Suspects], node: &str, trial: &[PackageName], keeps: impl Fn(&Suspects) -> bool) -> Vec<Suspects> {
    let mut suspects = suspects.to_vec();
    for group in &mut suspects {
        let keeps = keeps(group);
        let stuck = group.packages.split_off(group.fresh());
        let (more, mut packages): (Vec<_>, Vec<_>) = group.packages.drain(..).partition(|p| trial.contains(p));
        if !more.is_empty() || (!keeps && stuck.iter().any(|p| trial.contains(p))) {
            node.clone_into(&mut group.node);
        }
        group.stuck = group.stuck.saturating_add(u32::try_from(more.len()).unwrap_or(u32::MAX));
        packages.extend(stuck.into_iter().chain(more));
        group.packages = packages;
        if group.packages.len() > 1 && group.packages.iter().all(|p| trial.contains(p)) {
            group.stuck = group.count().saturating_add(1);
        }
    }
    suspects
}

/// `trial` failed on `node`, and nothing crashed; nobody knows how much of it was installed. From now on it is told apart by itself,
/// lest what fails keeps the others suspected; what fails alone is tried again after all else.
pub fn failed(suspects: &[Suspects], node: &str, trial: &[PackageName]) -> Vec<Suspects> {
    let mut all = Vec::new();
    for group in suspects {
        let (failed, others): (Vec<_>, Vec<_>) = group.packages.iter().cloned().partition(|p| trial.contains(p));
        let alone = u32::from(trial.len() == 1);
        if failed.is_empty() {
            all.push(group.clone());
        } else if others.is_empty() {
            all.push(Suspects { node: node.to_owned(), stuck: group.stuck.max(alone), packages: failed });
        } else {
            all.push(Suspects { packages: others, stuck: 0, ..group.clone() });
            all.push(Suspects { node: node.to_owned(), packages: failed, stuck: alone });
        }
    }
    all
}

/// Those that `gone` names are no suspects any more: they were installed, and nothing crashed; or they are banned.
pub fn cleared(suspects: &[Suspects], gone: impl Fn(&PackageName) -> bool) -> Vec<Suspects> {
    let mut suspects = suspects.to_vec();
    suspects.retain_mut(|group| {
        group.keep(|p| !gone(p));
        !group.packages.is_empty()
    });
    suspects
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn package(n: usize) -> PackageName {
        format!("p{n}-1-1.noarch").parse().unwrap()
    }

    /// What is the matter with packages.
    #[derive(Debug, Default)]
    struct Matter {
        culprit: Option<usize>,
        /// Only all of these can be installed at once.
        together: Vec<usize>,
        /// These fail, each time.
        fail: Vec<usize>,
    }

    /// Tries halves until nobody is suspected, or only what fails is; the packages that are banned in the end, how many crashes that
    /// took, and those that are suspected yet.
    fn tried(count: usize, matter: &Matter) -> (BTreeSet<PackageName>, usize, BTreeSet<PackageName>) {
        let all: Vec<_> = (0..count).map(package).collect();
        let culprit = matter.culprit.map(package);
        let [together, fail] = [&matter.together, &matter.fail].map(|of| of.iter().map(|n| package(*n)).collect::<Vec<_>>());
        let mut banned = BTreeSet::new();
        let mut crashes = 1;
        let mut suspects = crashed(&[], "n", &all, |_| false).suspects;
        for _ in 0..8 * count {
            let next = suspects.iter().find(|group| !group.packages.iter().all(|p| fail.contains(p)));
            let Some(group) = next else {
                return (banned, crashes, suspects.into_iter().flat_map(|group| group.packages).collect());
            };
            let trial = group.trial(|_| true);
            let whole = together.iter().all(|p| trial.contains(p));
            let (can, cannot): (Vec<_>, Vec<_>) = trial.iter().cloned().partition(|p| whole || !together.contains(p));
            let before = suspects.clone();
            let learn = |suspects: &[Suspects], banned: &BTreeSet<PackageName>| {
                if culprit.as_ref().is_some_and(|c| can.contains(c)) {
                    crashed(suspects, "n", &can, |p| banned.contains(p))
                } else {
                    let suspects = match () {
                        () if can.is_empty() => left_out(suspects, "n", &cannot, |_| false),
                        () if can.iter().any(|p| fail.contains(p)) => failed(suspects, "n", &can),
                        () => cleared(suspects, |p| can.contains(p)),
                    };
                    Verdict { bans: vec![], suspects }
                }
            };
            let verdict = learn(&before, &banned);
            crashes += usize::from(culprit.as_ref().is_some_and(|c| can.contains(c)));
            banned.extend(verdict.bans);
            suspects = verdict.suspects;
            let again = learn(&suspects, &banned);
            assert_eq!((again.bans, &again.suspects), (vec![], &suspects), "asked again the same");
        }
        panic!("{suspects:?} is never told apart");
    }

    proptest! {
        #[test]
        fn the_culprit_alone_is_banned(count in 2usize..200, at in 0usize..200) {
            let culprit = at % count;
            let (banned, crashes, left) = tried(count, &Matter { culprit: Some(culprit), ..Matter::default() });
            prop_assert_eq!((banned, left), (BTreeSet::from([package(culprit)]), BTreeSet::new()));
            prop_assert!(crashes <= 2 + count.ilog2() as usize + 1, "{} crashes for {}", crashes, count);
        }

        #[test]
        fn a_crash_by_chance_bans_nothing(count in 2usize..40, together in prop::collection::btree_set(0usize..40, 2..6)) {
            let together = together.into_iter().filter(|n| *n < count).collect();
            prop_assert_eq!(tried(count, &Matter { together, ..Matter::default() }), (BTreeSet::new(), 1, BTreeSet::new()));
        }

        #[test]
        fn what_cannot_be_told_apart_is_banned_together(count in 2usize..40, at in 0usize..40, with in prop::collection::btree_set(0usize..40, 2..6)) {
            let culprit = at % count;
            let together: Vec<_> = with.into_iter().filter(|n| *n < count).collect();
            let could_be: BTreeSet<_> = together.iter().copied().chain([culprit]).map(package).collect();
            let (banned, _, left) = tried(count, &Matter { culprit: Some(culprit), together, ..Matter::default() });
            prop_assert!(banned.contains(&package(culprit)) && left.is_empty());
            prop_assert!(banned.is_subset(&could_be), "{:?}", banned);
        }

        /// A script that fails is no crash: the others are told apart all the same.
        #[test]
        fn what_fails_is_not_banned_and_keeps_nobody_suspected(count in 2usize..40, at in 0usize..40, fail in prop::collection::btree_set(0usize..40, 1..6)) {
            let culprit = at % count;
            let fail: Vec<_> = fail.into_iter().filter(|n| *n < count && *n != culprit).collect();
            let fails: BTreeSet<_> = fail.iter().copied().map(package).collect();
            let (banned, _, left) = tried(count, &Matter { culprit: Some(culprit), fail, ..Matter::default() });
            prop_assert_eq!(banned, BTreeSet::from([package(culprit)]));
            prop_assert!(left.is_subset(&fails), "{:?}", left);
        }

        /// One that needs another that is suspected: only with that it can be tried, and each of both may be it.
        #[test]
        fn what_is_tried_with_others_is_suspected_with_them(others in 1usize..8) {
            let stuck = left_out(&crashed(&[], "n", &[package(0), package(9)], |_| false).suspects, "n", &[package(9)], |_| false);
            let stuck = left_out(&stuck, "n", &[package(0)], |_| false);
            let mixed: Vec<_> = (0..=others).map(package).collect();
            let once = crashed(&stuck, "m", &mixed, |_| false);
            let all: Vec<_> = once.suspects.iter().map(|s| (s.packages.clone(), s.stuck)).collect();
            prop_assert_eq!(all, vec![(vec![package(9)], 0), (mixed.clone(), 0)]);
            prop_assert_eq!(crashed(&once.suspects, "m", &mixed, |_| false), once);
        }

        #[test]
        fn asked_again_the_same(count in 1usize..9, first in prop::collection::btree_set(0usize..9, 1..9), second in prop::collection::btree_set(0usize..9, 1..9)) {
            let set = |of: &BTreeSet<usize>| of.iter().map(|n| package(*n)).collect::<Vec<_>>();
            let before = crashed(&[], "n", &set(&first), |_| false);
            let mut banned: BTreeSet<_> = before.bans.iter().cloned().collect();
            let packages: Vec<_> = set(&second).into_iter().take(count).collect();
            let once = crashed(&before.suspects, "m", &packages, |p| banned.contains(p));
            banned.extend(once.bans.iter().cloned());
            let twice = crashed(&once.suspects, "m", &packages, |p| banned.contains(p));
            prop_assert_eq!((twice.bans, twice.suspects), (vec![], once.suspects));
        }
    }
}
