//! Whether a server may be taken down.

use crate::api::Reason;

/// What is known of etcd's members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Etcd {
    /// Nobody could be asked.
    Unknown,
    /// The cluster keeps its data elsewhere.
    Elsewhere,
    /// Those with a vote; learners have none.
    Voters(Vec<Voter>),
}

/// A member of etcd with a vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voter {
    /// Its node.
    pub node: String,
    /// It answers, sees a leader and reports no error.
    pub healthy: bool,
}

impl Etcd {
    /// Why `node` may not be taken down for a while.
    ///
    /// The others must be a majority of all voters (etcd FAQ, "What is failure tolerance"). One or two voters bear no loss at all:
    /// whoever has no more has agreed to it, but both must be healthy, so that the one that goes comes back to the other.
    pub(super) fn keeps(&self, node: &str) -> Option<(Reason, String)> {
        let unknown = || Some((Reason::QuorumUnknown, Reason::QuorumUnknown.meaning().to_owned()));
        let voters = match self {
            Self::Elsewhere => return None,
            Self::Voters(voters) if !voters.is_empty() => voters,
            Self::Unknown | Self::Voters(_) => return unknown(),
        };
        let needed = if voters.len() < 3 { voters.len().saturating_sub(1) } else { voters.len() / 2 + 1 };
        let others = voters.iter().filter(|v| v.healthy && v.node != node).count();
        let message = || format!("of {} members of etcd {others} would be left that are well, and it needs {needed}", voters.len());
        (others < needed).then(|| (Reason::QuorumAtRisk, message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(healthy: &[bool]) -> Etcd {
        Etcd::Voters(healthy.iter().enumerate().map(|(n, healthy)| Voter { node: format!("h{n}"), healthy: *healthy }).collect())
    }

    #[test]
    fn the_others_must_be_a_majority() {
        let (ok, down) = (true, false);
        for (voters, h0) in [
            (vec![ok], None),
            (vec![ok, ok], None),
            (vec![ok, down], Some(Reason::QuorumAtRisk)),
            (vec![ok, ok, ok], None),
            (vec![ok, ok, down], Some(Reason::QuorumAtRisk)),
            (vec![down, ok, ok], None),
            (vec![ok, ok, ok, ok], None),
            (vec![ok, ok, ok, down], Some(Reason::QuorumAtRisk)),
            (vec![ok, ok, ok, ok, down], None),
            (vec![ok, ok, ok, down, down], Some(Reason::QuorumAtRisk)),
            (vec![], Some(Reason::QuorumUnknown)),
        ] {
            assert_eq!(etcd(&voters).keeps("h0").map(|(reason, _)| reason), h0, "{voters:?}");
        }
        assert_eq!(etcd(&[ok, ok, down]).keeps("h0").unwrap().1, "of 3 members of etcd 1 would be left that are well, and it needs 2");
        assert_eq!(Etcd::Unknown.keeps("h0").unwrap().0, Reason::QuorumUnknown);
        assert_eq!(Etcd::Elsewhere.keeps("h0"), None);
    }
}
