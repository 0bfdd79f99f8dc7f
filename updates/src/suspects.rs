use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PackageName;

/// Packages of which one made a host crash. They are tried by halves: a half that crashes has the culprit, one that does not
/// has not. Only what crashed alone is banned, so a host that lost its power by chance bans nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Suspects {
    /// They are tried on this node; on others when it is gone, or held by somebody.
    pub node: String,
    /// One of them, or none.
    pub packages: Vec<PackageName>,
    /// How many of the last of them could not be installed without the others.
    #[serde(default)]
    pub stuck: u32,
}

/// What is known after an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// These crashed.
    pub bans: Vec<PackageName>,
    /// Who is suspected from now on.
    pub suspects: Vec<Suspects>,
}

impl Suspects {
    /// What is tried next: the first half of them.
    pub fn trial(&self) -> &[PackageName] {
        self.packages.get(..self.packages.len().div_ceil(2)).unwrap_or_default()
    }

    fn share_any(&self, packages: &[PackageName]) -> bool {
        self.packages.iter().any(|p| packages.contains(p))
    }

    fn keep(&mut self, keep: impl Fn(&PackageName) -> bool) {
        let before = self.packages.len();
        self.packages.retain(keep);
        if self.packages.len() < before {
            self.stuck = 0;
        }
    }
}

/// `packages` were being installed on `node` together when it crashed; `banned` says what is banned already. Asked again with
/// its own answer, it answers the same.
pub fn crashed(suspects: &[Suspects], node: &str, packages: &[PackageName], banned: impl Fn(&PackageName) -> bool) -> Verdict {
    let mut verdict = Verdict { bans: Vec::new(), suspects: suspects.to_vec() };
    if let [culprit] = packages {
        verdict.bans.extend((!banned(culprit)).then(|| culprit.clone()));
        return cleared(verdict, |p| p == culprit);
    }
    let mut known = false;
    for group in verdict.suspects.iter_mut().filter(|group| group.share_any(packages)) {
        known = true;
        group.keep(|p| packages.contains(p));
    }
    // where one of them is banned, the crash was accounted for
    if !known && !packages.is_empty() && !packages.iter().any(banned) {
        verdict.suspects.push(Suspects { node: node.to_owned(), packages: packages.to_vec(), stuck: 0 });
    }
    verdict
}

/// `packages` were installed, and nothing crashed.
pub fn installed(suspects: &[Suspects], packages: &[PackageName]) -> Verdict {
    cleared(Verdict { bans: Vec::new(), suspects: suspects.to_vec() }, |p| packages.contains(p))
}

/// `trial` cannot be installed without the others: they are tried first. When none of them can be installed without the rest, all
/// are banned.
pub fn impossible(suspects: &[Suspects], trial: &[PackageName]) -> Verdict {
    let mut verdict = Verdict::default();
    for group in suspects {
        let mut group = group.clone();
        if !trial.is_empty() && group.trial() == trial {
            group.packages.rotate_left(trial.len());
            group.stuck = group.stuck.saturating_add(u32::try_from(trial.len()).unwrap_or(u32::MAX));
        }
        if group.packages.len() > 1 && usize::try_from(group.stuck).is_ok_and(|stuck| stuck >= group.packages.len()) {
            verdict.bans.append(&mut group.packages);
        } else {
            verdict.suspects.push(group);
        }
    }
    verdict
}

/// Those that `gone` names are no suspects any more.
pub fn cleared(mut verdict: Verdict, gone: impl Fn(&PackageName) -> bool) -> Verdict {
    verdict.suspects.iter_mut().for_each(|group| group.keep(|p| !gone(p)));
    verdict.suspects.retain(|group| !group.packages.is_empty());
    verdict
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn package(n: usize) -> PackageName {
        format!("p{n}-1-1.noarch").parse().unwrap()
    }

    /// Tries halves until nobody is suspected; the packages that are banned in the end, and how many crashes that took. `together`:
    /// only all of such a group can be installed at once.
    fn tried(count: usize, culprit: Option<usize>, together: &[usize]) -> (BTreeSet<PackageName>, usize) {
        let all: Vec<_> = (0..count).map(package).collect();
        let culprit = culprit.map(package);
        let together: Vec<_> = together.iter().map(|n| package(*n)).collect();
        let mut banned = BTreeSet::new();
        let mut crashes = 1;
        let mut suspects = crashed(&[], "n", &all, |_| false).suspects;
        for _ in 0..4 * count {
            let Some(group) = suspects.first() else { return (banned, crashes) };
            let trial = group.trial().to_vec();
            let whole = together.iter().all(|p| trial.contains(p));
            let (can, cannot): (Vec<_>, Vec<_>) = trial.iter().cloned().partition(|p| whole || !together.contains(p));
            let verdict = if culprit.as_ref().is_some_and(|c| can.contains(c)) {
                crashes += 1;
                crashed(&suspects, "n", &can, |p| banned.contains(p))
            } else if can.is_empty() {
                impossible(&suspects, &cannot)
            } else {
                installed(&suspects, &can)
            };
            banned.extend(verdict.bans);
            suspects = verdict.suspects;
        }
        panic!("{suspects:?} is never told apart");
    }

    proptest! {
        #[test]
        fn the_culprit_alone_is_banned(count in 2usize..200, at in 0usize..200) {
            let culprit = at % count;
            let (banned, crashes) = tried(count, Some(culprit), &[]);
            prop_assert_eq!(banned, BTreeSet::from([package(culprit)]));
            prop_assert!(crashes <= 2 + count.ilog2() as usize + 1, "{} crashes for {}", crashes, count);
        }

        #[test]
        fn a_crash_by_chance_bans_nothing(count in 2usize..200) {
            prop_assert_eq!(tried(count, None, &[]), (BTreeSet::new(), 1));
        }

        #[test]
        fn what_cannot_be_told_apart_is_banned_together(count in 2usize..40, at in 0usize..40, with in prop::collection::btree_set(0usize..40, 2..6)) {
            let culprit = at % count;
            let with: Vec<_> = with.into_iter().filter(|n| *n < count).collect();
            let (banned, _) = tried(count, Some(culprit), &with);
            prop_assert!(banned.contains(&package(culprit)));
            let could_be: BTreeSet<_> = with.iter().copied().chain([culprit]).map(package).collect();
            prop_assert!(banned.is_subset(&could_be), "{:?}", banned);
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
