//! When a node is tried again.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{Failure, Reason, Retry, Timeouts};

/// A failed update is tried again after at least 4 hours (7.4).
const AT_LEAST: SignedDuration = SignedDuration::from_hours(4);
/// A node that was given back, with nothing done to it, is looked at again after so long.
const GIVEN_BACK: SignedDuration = SignedDuration::from_mins(15);
/// However often it failed.
const AT_MOST: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Whether it says something about the update, and not only that this was not the time for it.
pub(super) fn is_failure(reason: &Reason) -> bool {
    matches!(reason, Reason::DownloadFailed | Reason::LeftOut) || is_harm(reason)
}

/// Whether it says that the update does harm: nodes of the stages that come later had better wait.
pub(super) fn is_harm(reason: &Reason) -> bool {
    matches!(reason, Reason::InstallFailed | Reason::Crashed | Reason::Hung | Reason::RebootFailed | Reason::NotVerified)
}

/// Why and until when a node is left alone after `failure`; `before` is what was said the last time.
pub(super) fn after(failure: &Failure, before: Option<&Retry>, timeouts: &Timeouts, now: Timestamp) -> Option<Retry> {
    // it was taken back because somebody changed the spec: that is no reason to wait
    if matches!(failure.reason, Reason::SpecChanged | Reason::InvalidSpec | Reason::Halted) {
        return before.cloned();
    }
    let failed = is_failure(&failure.reason);
    let times = before.filter(|b| is_failure(&b.failure.reason) == failed).map_or(0, |b| b.times).saturating_add(1);
    let first = if failed { timeouts.retry.get().max(AT_LEAST) } else { GIVEN_BACK };
    // 2^10 quarters of an hour are more than a week
    let pause = first.checked_mul(1 << (times - 1).min(10)).unwrap_or(AT_MOST).min(AT_MOST);
    let not_before = now.saturating_add(pause).unwrap_or(Timestamp::MAX);
    Some(Retry { failure: failure.clone(), not_before: Time(not_before), times })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_hours_doubled_up_to_a_week() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let failure = |reason| Failure { reason, message: "it did".into(), at: Time(now) };
        let pauses = |reason: Reason| {
            let mut retry = None;
            let mut pause = || {
                retry = after(&failure(reason.clone()), retry.as_ref(), &Timeouts::default(), now);
                let retry = retry.as_ref().unwrap();
                format!("{}: {:#}", retry.times, retry.not_before.0.duration_since(now))
            };
            [(); 8].map(|()| pause()).join(", ")
        };
        insta::assert_snapshot!(pauses(Reason::InstallFailed), @"1: 4h, 2: 8h, 3: 16h, 4: 32h, 5: 64h, 6: 128h, 7: 168h, 8: 168h");
        insta::assert_snapshot!(pauses(Reason::PodDisruptionBudget), @"1: 15m, 2: 30m, 3: 1h, 4: 2h, 5: 4h, 6: 8h, 7: 16h, 8: 32h");
    }

    #[test]
    fn being_given_back_is_no_failure_and_the_other_way_round() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let of = |reason, before: Option<&Retry>| {
            after(&Failure { reason, message: String::new(), at: Time(now) }, before, &Timeouts::default(), now)
        };
        let failed = of(Reason::Crashed, None).unwrap();
        assert_eq!(of(Reason::DrainFailed, Some(&failed)).unwrap().times, 1);
        assert_eq!(of(Reason::SpecChanged, Some(&failed)), Some(failed.clone()), "it still has to wait");
        assert_eq!(of(Reason::SpecChanged, None), None);
        let short = Timeouts { retry: "1h".parse().unwrap(), ..Timeouts::default() };
        let retry = after(&failed.failure, None, &short, now).unwrap();
        assert_eq!(retry.not_before.0.duration_since(now), AT_LEAST, "7.4");
    }
}
