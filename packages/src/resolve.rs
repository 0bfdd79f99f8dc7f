use std::collections::BTreeSet;

use node::Result;
use serde::{Deserialize, Serialize};
use updates::{Bans, PackageName};

use crate::Transaction;

/// What a dry run gives: the exact transaction, or why there is none.
pub(crate) type DryRun = std::result::Result<Transaction, String>;

/// A wanted package that is not part of the transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// Which.
    pub package: PackageName,
    /// Why: it is banned, or depends on something that is, or cannot be installed.
    pub why: String,
}

/// What is to be installed of what was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resolved {
    /// All of it that can be, with its dependencies.
    pub transaction: Transaction,
    /// The rest.
    pub excluded: Vec<Excluded>,
}

/// Takes as much of `wanted` as there is a transaction for that has no ban in it. The package manager is only asked; every answer
/// it gives is a whole transaction, so that none of them is ever cut into pieces.
///
/// What stands in the way is found by halving, so that n of them among m packages take about n·log₂(m) dry runs.
pub(crate) async fn resolve<F>(wanted: &BTreeSet<PackageName>, bans: &Bans<'_>, mut dry_run: F) -> Result<Resolved>
where
    F: AsyncFnMut(&BTreeSet<PackageName>) -> Result<DryRun>,
{
    let (banned, wanted): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|p| bans.include(p));
    let why = || "it is banned".to_owned();
    let mut excluded: Vec<_> = banned.into_iter().map(|package| Excluded { package, why: why() }).collect();
    let mut transaction = Transaction::default();
    // the last is tried first: what is left of a half comes before the next half
    let mut untried = vec![wanted];
    while let Some(mut some) = untried.pop() {
        if some.is_empty() {
            continue;
        }
        let asked = transaction.wanted.iter().chain(&some).cloned().collect();
        let tried = dry_run(&asked).await?;
        match tried.and_then(|t| t.objection(bans).map_or(Ok(t), Err)) {
            Ok(whole) => transaction = whole,
            Err(why) => {
                let rest = some.split_off(some.len() / 2);
                if some.is_empty() {
                    excluded.extend(rest.into_iter().map(|package| Excluded { package, why: why.clone() }));
                } else {
                    untried.extend([rest, some]);
                }
            }
        }
    }
    excluded.sort_by(|a, b| a.package.cmp(&b.package));
    Ok(Resolved { transaction, excluded })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;
    use crate::Change;

    /// Packages p0, p1, …: each has others that it cannot be without.
    type World = BTreeMap<u8, BTreeSet<u8>>;

    fn name(number: u8) -> PackageName {
        format!("p{number}-2-1.noarch").parse().unwrap()
    }

    fn closure(world: &World, of: impl IntoIterator<Item = u8>) -> BTreeSet<u8> {
        let (mut all, mut next) = (BTreeSet::new(), of.into_iter().collect::<Vec<_>>());
        while let Some(p) = next.pop() {
            if all.insert(p) {
                next.extend(world.get(&p).into_iter().flatten());
            }
        }
        all
    }

    /// Everything, how often the package manager was asked.
    fn run(world: &World, wanted: &BTreeSet<u8>, bans: &BTreeSet<u8>, missing: &BTreeSet<u8>) -> (Resolved, usize) {
        let mut asked = 0;
        let dry_run = async |some: &BTreeSet<PackageName>| {
            asked += 1;
            let numbers = (0..=u8::MAX).filter(|n| some.contains(&name(*n)));
            let all = closure(world, numbers);
            if !all.is_disjoint(missing) {
                return Ok(Err("nothing provides it".into()));
            }
            let changes = all.into_iter().map(|n| Change { from: None, to: name(n) }).collect();
            Ok(Ok(Transaction { wanted: some.clone(), changes, removed: BTreeSet::new() }))
        };
        let names = |set: &BTreeSet<u8>| set.iter().map(|n| name(*n)).collect::<BTreeSet<_>>();
        let banned = names(bans);
        let (wanted, bans) = (names(wanted), banned.iter().collect());
        let mut future = Box::pin(resolve(&wanted, &bans, dry_run));
        let Poll::Ready(resolved) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { unreachable!() };
        drop(future);
        (resolved.unwrap(), asked)
    }

    #[test]
    fn a_ban_takes_its_dependants_with_it() {
        let world = World::from([(1, [0].into()), (2, [1].into()), (3, [4].into())]);
        let (resolved, _) = run(&world, &[0, 1, 2, 3].into(), &[0].into(), &[].into());
        let excluded: Vec<_> = resolved.excluded.iter().map(|e| format!("{}: {}", e.package, e.why)).collect();
        let installed: Vec<_> = resolved.transaction.packages().map(ToString::to_string).collect();
        insta::assert_snapshot!(format!("{}\n{}", excluded.join("\n"), installed.join("\n")), @r"
        p0-2-1.noarch: it is banned
        p1-2-1.noarch: would also install p0-2-1.noarch, which is banned
        p2-2-1.noarch: would also install p0-2-1.noarch, which is banned
        p3-2-1.noarch
        p4-2-1.noarch
        ");
    }

    #[test]
    fn one_culprit_among_many_takes_few_questions() {
        let all = (0..200).collect();
        assert_eq!(run(&World::new(), &all, &[].into(), &[].into()).1, 1);
        let (resolved, asked) = run(&World::new(), &all, &[].into(), &[77].into());
        assert_eq!((resolved.excluded.len(), resolved.transaction.wanted.len()), (1, 199));
        assert!(asked <= 17, "{asked}");
    }

    proptest! {
        #[test]
        fn as_much_as_can_be_and_whole(
            needs in prop::collection::btree_map(0u8..24, prop::collection::btree_set(0u8..24, 0..3), 0..24),
            wanted in prop::collection::btree_set(0u8..24, 0..24),
            bans in prop::collection::btree_set(0u8..24, 0..4),
            missing in prop::collection::btree_set(0u8..24, 0..4),
        ) {
            let (resolved, _) = run(&needs, &wanted, &bans, &missing);
            let bad: BTreeSet<_> = bans.union(&missing).copied().collect();
            let right: BTreeSet<_> = wanted.iter().copied().filter(|n| closure(&needs, [*n]).is_disjoint(&bad)).collect();
            let names: BTreeSet<_> = right.iter().map(|n| name(*n)).collect();
            prop_assert_eq!(&resolved.transaction.wanted, &names);
            let changes: BTreeSet<_> = resolved.transaction.packages().cloned().collect();
            let whole: BTreeSet<_> = closure(&needs, right).into_iter().map(name).collect();
            prop_assert_eq!(changes, whole);
            prop_assert_eq!(resolved.excluded.len() + names.len(), wanted.len());
        }
    }
}
