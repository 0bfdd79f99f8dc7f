//! What etcd bears. Pure arithmetic over live state.

use node::{Error, Result};

use crate::etcd::MemberState;

/// etcd's voters, and how many of them are healthy. Learners have no vote and do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        Err(Error::refused(format!(
            "{} members, {} healthy, {} needed: stopping {name} would lose quorum",
            self.voters,
            self.healthy,
            self.needed()
        ))
        .hint("bring the server back that is not healthy (smartup status names it), or take it out of the cluster if it is gone for ever"))
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

    proptest! {
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
