//! What etcd bears. Pure arithmetic over live state.

use std::fmt;

use node::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::etcd::MemberState;

/// etcd's voters, and how many of them are healthy. Learners have no vote and do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// Members with a vote.
    pub voters: usize,
    /// Those of them that answer, see a leader and report no error.
    pub healthy: usize,
}

impl Quorum {
    /// Counts.
    pub fn of(members: &[MemberState]) -> Self {
        let voters = || members.iter().filter(|m| !m.learner);
        Self { voters: voters().count(), healthy: voters().filter(|m| m.is_healthy()).count() }
    }

    /// How many must be healthy: a majority of the voters (etcd FAQ, "What is failure tolerance").
    pub fn needed(self) -> usize {
        self.voters / 2 + 1
    }

    /// Whether there is a quorum now.
    pub fn is_there(self) -> bool {
        self.healthy >= self.needed()
    }

    /// Whether one voter may stop for a while and come back. `healthy`: whether that one is.
    ///
    /// A member that is down already, or a quorum that is lost already, is never a reason to refuse: stopping it takes
    /// nothing, and may be the repair. One or two voters bear no stop at all, so whoever has no more has agreed to it.
    ///
    /// # Errors
    /// Refused, with the sum.
    pub fn may_stop(self, name: &str, healthy: bool) -> Result<()> {
        if !healthy || !self.is_there() || self.voters < 3 || self.healthy > self.needed() {
            return Ok(());
        }
        Err(Error::refused(format!("{self}: stopping {name} would lose quorum")).hint(
            "bring the server back that is not healthy (smartup status names it), or take it out of the cluster if it is gone for ever",
        ))
    }

    /// Whether the rest would go on if a healthy voter were lost: asked before one is disturbed with no need.
    ///
    /// # Errors
    /// Refused, with the sum.
    pub fn survives(self, without: &str) -> Result<()> {
        if self.healthy > self.needed() {
            return Ok(());
        }
        Err(Error::refused(format!("{self}: without {without} there would be no quorum"))
            .hint("three servers bear the loss of one, if all are healthy (smartup status names those that are not)"))
    }

    /// Whether one voter may be taken out for ever. `healthy`: whether that one is.
    ///
    /// One that is dead already never does harm; a healthy one may go if the rest keeps a quorum, which is etcd's own rule
    /// (`mayRemoveMember` in its server/etcdserver/server.go). Learners need not be asked for: they have no vote.
    ///
    /// # Errors
    /// Refused, with the sum, when the rest would have no quorum; failed when there is none now: then etcd takes no change.
    pub fn may_remove(self, name: &str, healthy: bool) -> Result<()> {
        if !self.is_there() {
            return Err(Error::failed(format!("{self}: without a quorum etcd cannot take {name} out"))
                .hint("bring other servers back first; if they are gone for ever, one server starts anew from its data or a snapshot"));
        }
        let rest = Self { voters: self.voters.saturating_sub(1), healthy: self.healthy.saturating_sub(usize::from(healthy)) };
        if rest.voters == 0 {
            return Err(Error::refused(format!("{name} is the only member: without it there is no cluster"))
                .hint("smartup reset on it ends the cluster"));
        }
        if rest.is_there() {
            return Ok(());
        }
        Err(Error::refused(format!("{self}: removing {name} would leave {rest}"))
            .hint("bring the server back that is not healthy (smartup status names it), or remove that one first if it is gone for ever"))
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} members, {} healthy, {} needed", self.voters, self.healthy, self.needed())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_sum_is_shown() {
        let e = Quorum { voters: 3, healthy: 2 }.may_stop("node2", true).unwrap_err();
        assert_eq!(e.what, "3 members, 2 healthy, 2 needed: stopping node2 would lose quorum");
        assert_eq!(e.kind, node::Kind::Refused);
    }

    #[test]
    fn the_repair_is_never_refused() {
        assert!(Quorum { voters: 3, healthy: 2 }.may_stop("the dead one", false).is_ok());
        assert!(Quorum { voters: 3, healthy: 1 }.may_stop("the last one", true).is_ok());
        assert!(Quorum { voters: 1, healthy: 1 }.may_stop("the only one", true).is_ok());
    }

    #[test]
    fn a_dead_one_may_go_and_a_healthy_one_only_if_the_rest_can_do_without() {
        let q = Quorum { voters: 3, healthy: 2 };
        q.may_remove("the dead one", false).unwrap();
        let e = q.may_remove("node2", true).unwrap_err();
        assert_eq!(e.what, "3 members, 2 healthy, 2 needed: removing node2 would leave 2 members, 1 healthy, 2 needed");
        assert_eq!(e.kind, node::Kind::Refused);
        Quorum { voters: 2, healthy: 2 }.may_remove("the second", true).unwrap();
        let e = Quorum { voters: 2, healthy: 1 }.may_remove("the dead one", false).unwrap_err();
        assert_eq!(e.what, "2 members, 1 healthy, 2 needed: without a quorum etcd cannot take the dead one out");
        assert_eq!(e.kind, node::Kind::Failed, "it is not ours to refuse");
        let e = Quorum { voters: 1, healthy: 1 }.may_remove("node1", true).unwrap_err();
        assert_eq!(e.what, "node1 is the only member: without it there is no cluster");
    }

    #[test]
    fn nothing_is_disturbed_that_is_needed() {
        Quorum { voters: 3, healthy: 3 }.survives("h1").unwrap();
        let e = Quorum { voters: 2, healthy: 2 }.survives("h1").unwrap_err();
        assert_eq!(e.what, "2 members, 2 healthy, 2 needed: without h1 there would be no quorum");
        assert_eq!(e.kind, node::Kind::Refused);
    }

    proptest! {
        /// What survives has a quorum without the one that is lost, and the other way round.
        #[test]
        fn the_rest_goes_on(voters in 1_usize..10, down in 0_usize..10) {
            let q = Quorum { voters, healthy: voters.saturating_sub(down) };
            let without = Quorum { healthy: q.healthy.saturating_sub(1), ..q };
            prop_assert_eq!(q.survives("x").is_ok(), without.is_there());
        }

        /// Wherever there is a quorum, a dead voter may go, and a healthy one exactly if the rest has a quorum.
        #[test]
        fn a_removal_keeps_the_quorum(voters in 1_usize..10, down in 0_usize..10) {
            let q = Quorum { voters, healthy: voters.saturating_sub(down) };
            let after = |healthy| Quorum { voters: voters - 1, healthy };
            if q.healthy < voters {
                prop_assert_eq!(q.may_remove("x", false).is_ok(), q.is_there());
                prop_assert!(!q.is_there() || after(q.healthy).is_there());
            }
            if q.healthy > 0 {
                let kept = q.is_there() && voters > 1 && after(q.healthy - 1).is_there();
                prop_assert_eq!(q.may_remove("x", true).is_ok(), kept);
            }
        }

        /// With three voters or more, what may stop leaves a quorum, if there was one.
        #[test]
        fn a_quorum_is_kept(voters in 3_usize..10, down in 0_usize..10) {
            let q = Quorum { voters, healthy: voters.saturating_sub(down) };
            let after = Quorum { healthy: q.healthy.saturating_sub(1), ..q };
            if q.healthy > 0 && q.is_there() {
                prop_assert_eq!(q.may_stop("x", true).is_ok(), after.is_there());
            }
        }
    }
}
