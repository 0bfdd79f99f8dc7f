//! etcd's members and their databases.

use k3s::{Flags, Health, MemberState, Quorum};

use super::finding::Finding;

const MEMBERS: &str = "etcd-members";
const SPACE: &str = "etcd-space";
const DEFRAG: &str = "etcd-defrag";

/// etcd's default for `--quota-backend-bytes` (etcd, "System limits": 2 GB, which its source has as 2 GiB). At the quota it
/// takes no more writes.
const QUOTA: u64 = 2 * 1024 * MIB;
/// From here on there is little time left, in percent of the quota.
const FULL: u64 = 80;
/// A database below this is not worth a defragmentation, which stops the member for a moment.
const SMALL: u64 = 100 * MIB;
const MIB: u64 = 1024 * 1024;

/// The quota that these flags of k3s's give etcd, in bytes.
pub fn quota(flags: &Flags) -> u64 {
    let given = flags.iter().filter_map(|f| f.strip_prefix("--etcd-arg=quota-backend-bytes=")).filter_map(|n| n.parse().ok());
    // 0 is etcd's word for the default
    given.last().filter(|n| *n > 0).unwrap_or(QUOTA)
}

/// The checks `etcd-members`, `etcd-space` and `etcd-defrag`. `quota` in bytes.
pub fn judge(members: &[MemberState], quota: u64) -> Vec<Finding> {
    let mut found = vec![whole(members)];
    found.extend(space(members, quota));
    found.extend(defrag(members));
    found
}

/// Every member is a healthy voter.
fn whole(members: &[MemberState]) -> Finding {
    let quorum = Quorum::of(members);
    let sum = format!("{} members, {} healthy, {} needed", quorum.voters, quorum.healthy, quorum.needed());
    let ill: Vec<String> = members.iter().filter(|m| !m.is_healthy()).map(|m| format!("{} is {}", name(m), m.health())).collect();
    let learners: Vec<&str> = members.iter().filter(|m| m.learner && m.is_healthy()).map(name).collect();
    if !quorum.is_there() {
        let what = format!("{sum}: there is no quorum, and nothing can be written; {}", ill.join("; "));
        return Finding::fail(
            MEMBERS,
            what,
            "start k3s-server on the servers that are down; if they are gone for ever, start anew from one server's data",
        );
    }
    if !ill.is_empty() {
        let what = format!("{sum}; {}", ill.join("; "));
        return Finding::fail(MEMBERS, what, "bring that server back, or remove it for good, so that another loss can be borne");
    }
    if !learners.is_empty() {
        let what = format!("{} has no vote yet", learners.join(", "));
        return Finding::warn(MEMBERS, what, "it is still catching up; if that does not end, see journalctl -u k3s-server there");
    }
    Finding::ok(MEMBERS, sum)
}

fn name(member: &MemberState) -> &str {
    if member.name.is_empty() { &member.address } else { &member.name }
}

fn answered(members: &[MemberState]) -> impl Iterator<Item = (&str, &Health)> {
    members.iter().filter_map(|m| Some((name(m), m.answer.as_ref()?)))
}

/// No database comes near the quota.
fn space(members: &[MemberState], quota: u64) -> Vec<Finding> {
    // in 128 bits nothing is too large to be multiplied
    let percent = |h: &Health| u128::from(h.db_size) * 100 / u128::from(quota.max(1));
    let full = answered(members).filter(|(_, h)| percent(h) >= u128::from(FULL));
    let found: Vec<Finding> = full
        .map(|(name, h)| {
            let what = format!("{name}: {} MiB of {} MiB are used ({} %)", h.db_size / MIB, quota / MIB, percent(h));
            let hint = "at the quota the cluster takes no more writes: find who writes so much, defragment (etcd-defrag), or raise it with \
                        --k3s-arg=--etcd-arg=quota-backend-bytes=N";
            Finding::warn(SPACE, what, hint)
        })
        .collect();
    or_ok(found, members, SPACE, |h| format!("the largest database has {} MiB of {} MiB", h.db_size / MIB, quota / MIB))
}

/// No database is mostly air.
fn defrag(members: &[MemberState]) -> Vec<Finding> {
    let airy = answered(members).filter(|(_, h)| h.db_size > SMALL && h.db_size_in_use < h.db_size / 2);
    let found: Vec<Finding> = airy
        .map(|(name, h)| {
            let what = format!("{name}: {} MiB of {} MiB are in use", h.db_size_in_use / MIB, h.db_size / MIB);
            Finding::warn(
                DEFRAG,
                what,
                "defragment one member after the other, the leader last: etcdctl defrag; k3s does it when it starts",
            )
        })
        .collect();
    or_ok(found, members, DEFRAG, |h| format!("no member needs it; {} MiB at most", h.db_size / MIB))
}

fn or_ok(found: Vec<Finding>, members: &[MemberState], check: &str, what: impl Fn(&Health) -> String) -> Vec<Finding> {
    if !found.is_empty() {
        return found;
    }
    match answered(members).max_by_key(|(_, h)| h.db_size) {
        Some((_, largest)) => vec![Finding::ok(check, what(largest))],
        None => vec![Finding::unknown(check, "no member answers", None)],
    }
}

#[cfg(test)]
mod tests {
    use k3s::MemberId;

    use super::super::finding::Verdict;
    use super::*;

    fn member(n: u64, size_mib: u64, in_use_mib: u64) -> MemberState {
        let health = Health {
            id: MemberId(n),
            version: "3.4.13".into(),
            db_size: size_mib * MIB,
            db_size_in_use: in_use_mib * MIB,
            leader: Some(MemberId(1)),
            raft_index: 1,
            learner: false,
            errors: Vec::new(),
        };
        MemberState {
            id: MemberId(n),
            name: format!("h{n}"),
            address: format!("10.0.0.{n}"),
            learner: false,
            leader: n == 1,
            answer: Some(health),
            trouble: None,
        }
    }

    fn dead(n: u64) -> MemberState {
        MemberState { answer: None, trouble: Some("no answer".into()), ..member(n, 0, 0) }
    }

    fn verdicts(members: &[MemberState]) -> Vec<Verdict> {
        judge(members, QUOTA).iter().map(|f| f.verdict).collect()
    }

    #[test]
    fn a_whole_etcd() {
        use Verdict::{Ok, Unknown, Warn};
        assert_eq!(verdicts(&[member(1, 20, 9), member(2, 20, 9), member(3, 20, 9)]), [Ok, Ok, Ok]);
        let learner = MemberState { learner: true, ..member(3, 20, 9) };
        assert_eq!(verdicts(&[member(1, 20, 9), learner]), [Warn, Ok, Ok]);
        assert_eq!(verdicts(&[dead(1)])[1..], [Unknown, Unknown]);
    }

    #[test]
    fn a_loss_is_a_failure_with_the_sum() {
        let found = judge(&[member(1, 1, 1), member(2, 1, 1), dead(3)], QUOTA);
        assert_eq!(found[0].verdict, Verdict::Fail);
        assert_eq!(found[0].what, "3 members, 2 healthy, 2 needed; h3 is NOT healthy: no answer");
        assert!(judge(&[member(1, 1, 1), dead(2), dead(3)], QUOTA)[0].what.contains("there is no quorum"));
    }

    #[test]
    fn a_database_that_fills_up_or_is_mostly_air() {
        let found = judge(&[member(1, 1639, 1600), member(2, 101, 50), member(3, 99, 1)], QUOTA);
        let said: Vec<&str> = found.iter().filter(|f| f.verdict == Verdict::Warn).map(|f| f.what.as_str()).collect();
        assert_eq!(said, ["h1: 1639 MiB of 2048 MiB are used (80 %)", "h2: 50 MiB of 101 MiB are in use"]);
    }

    #[test]
    fn the_quota_may_be_given() {
        assert_eq!(quota(&Flags::parse("--docker")), QUOTA);
        assert_eq!(quota(&Flags::parse("--etcd-arg=quota-backend-bytes=0")), QUOTA);
        assert_eq!(quota(&Flags::parse("--etcd-arg quota-backend-bytes=4294967296")), 4 * 1024 * MIB);
    }
}
