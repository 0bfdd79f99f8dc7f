//! When a node is tried again.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{Failure, Reason, Retry, Run, Timeouts};

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
    let pause = pause(if failed { after_failure(timeouts) } else { GIVEN_BACK }, times);
    let not_before = Time(now.saturating_add(pause).unwrap_or(Timestamp::MAX));
    // where nothing can be installed, nothing harmful can; but that it was not the time for it mends nothing
    let mends = is_harm(&failure.reason) || failure.reason == Reason::LeftOut;
    Some(match before.filter(|b| is_harm(&b.failure.reason) && !mends) {
        Some(harm) => Retry { failure: harm.failure.clone(), not_before, times: times.max(harm.times) },
        None => Retry { failure: failure.clone(), not_before, times },
    })
}

fn after_failure(timeouts: &Timeouts) -> SignedDuration {
    timeouts.retry.get().max(AT_LEAST)
}

/// `first`, doubled with each time after the first.
fn pause(first: SignedDuration, times: u32) -> SignedDuration {
    // 2^10 quarters of an hour are more than a week
    first.checked_mul(1 << times.saturating_sub(1).min(10)).unwrap_or(AT_MOST).min(AT_MOST)
}

/// Until when a host is not rebooted that needs nothing else: reboots may not end the need, where the boot loader is told to keep an
/// old kernel, say. None: it was not rebooted since something was last installed without one.
pub(super) fn reboot_again(history: &[Run], timeouts: &Timeouts) -> Option<Timestamp> {
    // what was given back, or failed before, changed nothing
    let mut runs = history.iter().filter(|run| run.rebooted || run.failure.is_none()).peekable();
    let last = runs.peek().filter(|run| run.rebooted)?.started_at.0;
    let alone = runs.take_while(|run| run.rebooted && run.packages == 0 && run.patches == 0).count();
    let times = u32::try_from(alone).unwrap_or(u32::MAX).max(1);
    last.checked_add(pause(after_failure(timeouts), times)).ok()
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
        let given_back = of(Reason::DrainFailed, None).unwrap();
        assert_eq!(of(Reason::DownloadFailed, Some(&given_back)).unwrap().times, 1);
        assert_eq!(of(Reason::SpecChanged, Some(&failed)), Some(failed.clone()), "it still has to wait");
        assert_eq!(of(Reason::SpecChanged, None), None);
        let short = Timeouts { retry: "1h".parse().unwrap(), ..Timeouts::default() };
        let retry = after(&failed.failure, None, &short, now).unwrap();
        assert_eq!(retry.not_before.0.duration_since(now), AT_LEAST, "7.4");
    }
    #[test]
    fn harm_stays_until_a_good_end() {
        use Reason::{AlertsFiring, Crashed, DownloadFailed, InstallFailed, LeftOut, PodDisruptionBudget};
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let mut retry = None;
        let mut then = |reason: Reason| {
            let failure = Failure { reason, message: String::new(), at: Time(now) };
            retry = after(&failure, retry.as_ref(), &Timeouts::default(), now);
            let retry = retry.as_ref().unwrap();
            format!("{} {} {:#}", retry.failure.reason, retry.times, retry.not_before.0.duration_since(now))
        };
        let all = [AlertsFiring, InstallFailed, Crashed, PodDisruptionBudget, AlertsFiring, DownloadFailed, InstallFailed, LeftOut];
        insta::assert_snapshot!(all.map(&mut then).join("\n"), @r"
        AlertsFiring 1 15m
        InstallFailed 1 4h
        Crashed 2 8h
        Crashed 2 15m
        Crashed 2 15m
        Crashed 3 16h
        InstallFailed 4 32h
        LeftOut 5 64h
        ");
    }

    #[test]
    fn a_reboot_that_is_no_cure_is_tried_ever_later() {
        let at = |hours: i64| "2026-11-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours);
        // the newest first; so many packages, whether there was a reboot, and whether it failed
        let again = |runs: &[(u32, bool, bool)]| {
            let run = |(age, (packages, rebooted, failed)): (usize, &(u32, bool, bool))| Run {
                transaction: "0123456789abcdef".parse().unwrap(),
                started_at: Time(at(100 - i64::try_from(age).unwrap())),
                finished_at: Time(at(0)),
                packages: *packages,
                patches: 0,
                rebooted: *rebooted,
                failure: failed.then(|| Failure { reason: Reason::DrainFailed, message: String::new(), at: Time(at(0)) }),
            };
            let history: Vec<_> = runs.iter().enumerate().map(run).collect();
            reboot_again(&history, &Timeouts::default()).map(|until| until.duration_since(at(100)).as_hours())
        };
        let (installed, updated, rebooted, given_back) = ((3, false, false), (3, true, false), (0, true, false), (0, false, true));
        assert_eq!([again(&[]), again(&[installed, rebooted])], [None, None]);
        assert_eq!(again(&[updated]), Some(4));
        assert_eq!(again(&[rebooted, installed]), Some(4));
        assert_eq!(again(&[rebooted, rebooted, updated]), Some(8));
        assert_eq!(again(&[given_back, rebooted, given_back, rebooted, rebooted]), Some(15), "after the last reboot");
        assert_eq!(again(&[rebooted; 10]), Some(7 * 24));
    }
}
