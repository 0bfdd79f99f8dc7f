use std::collections::BTreeMap;

use crate::{Policy, Stage};

/// What decides a node's stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// What its label asks for.
    pub policy: Policy,
    /// The stage that auto gave it before.
    pub kept: Option<Stage>,
}

/// The stage of each node, by name.
///
/// Of the nodes with policy auto, 10 % get fast, 40 % slow and 50 % stable (7.4). A node keeps the stage that it was given;
/// the others get one in the order of their names, each the stage that lacks most, the faster one of two. So as long as
/// nodes only come, every share is right within one node, and neighbours by name are spread over the stages; where nodes go,
/// those that come take their places.
pub fn assign<'a>(nodes: &BTreeMap<&'a str, Asked>) -> BTreeMap<&'a str, Stage> {
    let known = |asked: &Asked| match asked.policy {
        Policy::Stage(stage) => Some(stage),
        Policy::Auto => asked.kept,
    };
    let auto = || nodes.iter().filter(|(_, asked)| asked.policy == Policy::Auto);
    let mut shares = Shares::default();
    auto().filter_map(|(_, asked)| asked.kept).for_each(|stage| shares.add(stage));
    let mut stages: BTreeMap<_, _> = nodes.iter().filter_map(|(name, asked)| Some((*name, known(asked)?))).collect();
    for (name, _) in auto().filter(|(_, asked)| asked.kept.is_none()) {
        let stage = shares.lacking();
        shares.add(stage);
        stages.insert(*name, stage);
    }
    stages
}

/// How many nodes have each stage.
#[derive(Default)]
struct Shares([i64; 3]);

impl Shares {
    fn add(&mut self, stage: Stage) {
        let [fast, slow, stable] = &mut self.0;
        *match stage {
            Stage::Fast => fast,
            Stage::Slow => slow,
            Stage::Stable => stable,
        } += 1;
    }

    /// The stage that is farthest below its share once there is one node more.
    fn lacking(&self) -> Stage {
        let nodes = self.0.iter().sum::<i64>() + 1;
        let lack = |(stage, has): &(Stage, i64)| percent(*stage) * nodes - 100 * has;
        let behind = Stage::ALL.into_iter().zip(self.0).rev().max_by_key(lack);
        behind.map_or(Stage::Stable, |(stage, _)| stage)
    }
}

/// Its share of the nodes.
const fn percent(stage: Stage) -> i64 {
    match stage {
        Stage::Fast => 10,
        Stage::Slow => 40,
        Stage::Stable => 50,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: usize) -> String {
        format!("node{n}.example.local")
    }

    /// One round: all of `names` are there, with the stages that they were given before.
    fn round(names: &[String], before: &BTreeMap<String, Stage>) -> BTreeMap<String, Stage> {
        let ask = |name: &String| Asked { policy: Policy::Auto, kept: before.get(name).copied() };
        let asked = names.iter().map(|n| (n.as_str(), ask(n))).collect();
        assign(&asked).into_iter().map(|(n, s)| (n.to_owned(), s)).collect()
    }

    fn count(stages: &BTreeMap<String, Stage>) -> [usize; 3] {
        Stage::ALL.map(|stage| stages.values().filter(|s| **s == stage).count())
    }

    fn right_within_one(counts: [usize; 3]) -> bool {
        let nodes = i64::try_from(counts.iter().sum::<usize>()).unwrap();
        counts.iter().zip([10, 40, 50]).all(|(has, share)| (i64::try_from(*has).unwrap() * 100 - share * nodes).abs() < 100)
    }

    #[test]
    fn shares_of_every_size() {
        for n in 0..=1000 {
            let counts = count(&round(&(0..n).map(name).collect::<Vec<_>>(), &BTreeMap::new()));
            assert!(right_within_one(counts), "{n}: {counts:?}");
        }
        let counts = |n| count(&round(&(0..n).map(name).collect::<Vec<_>>(), &BTreeMap::new()));
        assert_eq!(counts(3), [0, 1, 2]);
        assert_eq!(counts(5), [1, 2, 2]);
        assert_eq!(counts(10), [1, 4, 5]);
        assert_eq!(counts(5000), [500, 2000, 2500]);
    }

    proptest! {
        #[test]
        fn shares_stay_right_as_nodes_join(joins in prop::collection::btree_set(0usize..10_000, 1..200), first in 0usize..200) {
            let names: Vec<_> = joins.iter().map(|n| name(*n)).collect();
            let (old, _) = names.split_at(first.min(names.len()));
            let before = round(old, &BTreeMap::new());
            let after = round(&names, &before);
            prop_assert!(right_within_one(count(&before)) && right_within_one(count(&after)), "{:?}", count(&after));
            prop_assert!(before.iter().all(|(name, stage)| after.get(name) == Some(stage)));
        }

        #[test]
        fn nobody_moves_whoever_comes_and_goes(rounds in prop::collection::vec(prop::collection::btree_set(0usize..60, 0..60), 1..12)) {
            let mut before = BTreeMap::new();
            for there in rounds {
                let names: Vec<_> = there.into_iter().map(name).collect();
                let after = round(&names, &before);
                prop_assert_eq!(after.len(), names.len());
                prop_assert!(after.iter().all(|(name, stage)| before.get(name).is_none_or(|b| b == stage)));
                prop_assert_eq!(&round(&names, &after), &after, "asked again, the same answer");
                before = after;
            }
        }

        #[test]
        fn whoever_asks_for_a_stage_has_it(asked in prop::collection::btree_map("[a-z]{1,8}", (0usize..4, 0usize..4), 0..60)) {
            let stage = |n: usize| Stage::ALL.get(n).copied();
            let ask = |(policy, kept): &(usize, usize)| Asked { policy: stage(*policy).map_or(Policy::Auto, Policy::Stage), kept: stage(*kept) };
            let nodes: BTreeMap<_, _> = asked.iter().map(|(name, numbers)| (name.as_str(), ask(numbers))).collect();
            let stages = assign(&nodes);
            for (name, asked) in &nodes {
                let expected = match asked.policy { Policy::Stage(stage) => Some(stage), Policy::Auto => asked.kept };
                prop_assert!(expected.is_none_or(|e| stages[name] == e));
            }
            prop_assert_eq!(stages.len(), nodes.len());
        }
    }
}
