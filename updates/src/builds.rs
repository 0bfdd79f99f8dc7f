use std::collections::HashMap;
use std::collections::hash_map::Entry;

use jiff::Timestamp;

use crate::api::{Available, NodeUpdateStatus};
use crate::{PackageName, PatchName};

/// What nodes lack, all together: a build is as old as the oldest report of it says, so that a node that is new does not wait weeks
/// for what the others have known of for as long. Equal names are one in memory: thousands of nodes lack the same packages.
#[derive(Debug, Default)]
pub struct Builds {
    /// Since when they are known; None where only its own node can say so.
    packages: HashMap<PackageName, Option<Timestamp>>,
    patches: HashMap<PatchName, Timestamp>,
    /// How many names were in use when it was last looked.
    used: usize,
}

impl Builds {
    /// So many are kept before it is looked for those that nobody else has any more.
    const FEW: usize = 1024;

    /// Takes in what a node reports, and makes it say what is known by now. `since`: when the node's `NodeUpdate` was made, by the
    /// API server's clock. What a node says of the time before concerns only itself: where it is the time of publication, the others
    /// have it too, and otherwise the host's clock was wrong.
    pub fn settle(&mut self, status: &mut NodeUpdateStatus, since: Option<Timestamp>) {
        let counts = |at: Timestamp| since.is_none_or(|since| at >= since);
        for item in status.packages.iter_mut().flat_map(|listing| &mut listing.available) {
            let seen = counts(item.since.0).then_some(item.since.0);
            self.forget();
            match self.packages.entry(item.name.clone()) {
                Entry::Occupied(mut known) => {
                    item.name = known.key().clone();
                    let oldest = known.get().iter().chain(&seen).min().copied();
                    known.insert(oldest);
                    age(item, oldest);
                }
                Entry::Vacant(new) => drop(new.insert(seen)),
            }
        }
        for item in status.patches.iter_mut().flat_map(|listing| &mut listing.available) {
            let seen = item.since.0;
            if counts(seen) {
                self.patches.entry(item.name).and_modify(|oldest| *oldest = seen.min(*oldest)).or_insert(seen);
            }
            age(item, self.patches.get(&item.name).copied());
        }
    }

    fn forget(&mut self) {
        if self.packages.len() > 2 * self.used + Self::FEW {
            self.packages.retain(|known, _| !known.alone());
            self.used = self.packages.len();
        }
    }
}

fn age<T>(item: &mut Available<T>, oldest: Option<Timestamp>) {
    item.since.0 = oldest.map_or(item.since.0, |oldest| oldest.min(item.since.0));
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::Listing;

    fn at(days: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * (20_000 + days))
    }

    fn bash(version: usize) -> PackageName {
        format!("bash={version}").parse().unwrap()
    }

    /// What a node reports of a package and a live patch that it has known for so long.
    fn reports(since: i64) -> NodeUpdateStatus {
        let mut status = NodeUpdateStatus::new(Time(at(0)));
        let checked_at = Some(Time(at(0)));
        let packages = vec![Available { name: bash(1), since: Time(at(since)) }];
        let patches = vec![Available { name: "1-2-r3".parse().unwrap(), since: Time(at(since)) }];
        status.packages = Some(Listing { checked_at: checked_at.clone(), error: None, available: packages });
        status.patches = Some(Listing { checked_at, error: None, available: patches });
        status
    }

    fn ages(status: &NodeUpdateStatus) -> [Timestamp; 2] {
        [status.packages.as_ref().unwrap().available[0].since.0, status.patches.as_ref().unwrap().available[0].since.0]
    }

    #[test]
    fn a_build_is_as_old_as_the_oldest_report_says() {
        let mut builds = Builds::default();
        let mut said = |since, joined| {
            let mut status = reports(since);
            builds.settle(&mut status, Some(at(joined)));
            ages(&status)
        };
        assert_eq!(said(-3, -4), [at(-3); 2]);
        assert_eq!(said(-60, -300), [at(-60); 2]);
        assert_eq!(said(-3, -4), [at(-60); 2], "a node that is new");
        assert_eq!(said(-9000, -1), [at(-9000); 2], "what was published long ago, or a clock that is wrong");
        assert_eq!(said(-3, -4), [at(-60); 2], "is no word for the others");
    }

    #[test]
    fn equal_names_are_one_and_those_of_nobody_are_forgotten() {
        let mut builds = Builds::default();
        let mut one = |version| {
            let mut status = reports(0);
            status.packages.as_mut().unwrap().available[0].name = bash(version);
            builds.settle(&mut status, None);
            (status.packages.unwrap().available.remove(0).name, builds.packages.len())
        };
        let (first, _) = one(1);
        assert!(first.is_same(&one(1).0));
        for version in 2..10_000 {
            assert!(one(version).1 <= 2 * Builds::FEW);
        }
        assert!(first.is_same(&one(1).0), "one that is in use is kept");
    }
}
