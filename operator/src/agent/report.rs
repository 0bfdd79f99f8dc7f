//! What the agent writes into its node's `NodeUpdate`.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use updates::api::{HISTORY, Listing, NodeUpdate, NodeUpdateStatus, Outcome, Part, Phase, Progress, RebootNeed, Run, Transaction};
use updates::{BootId, PackageName, PatchName, ServiceName};

use super::decide::Say;
use super::order::{Yield, short};
use crate::VERSION;

/// An agent that has nothing new to say says so this often: seldom enough for thousands of nodes, and several times in the day
/// after which it counts as silent.
const REPORT: SignedDuration = SignedDuration::from_hours(4);
/// Progress that says nothing else is told this often.
const PROGRESS: SignedDuration = SignedDuration::from_mins(1);

/// What the host is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub kernel: String,
    pub storage_services: Vec<String>,
    pub boot: BootId,
    pub has_vip: bool,
    pub failed_services: Vec<ServiceName>,
    /// None: it was not looked for in this boot.
    pub reboot: Option<RebootNeed>,
}

/// What the looks have found since the agent started.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Listings {
    /// The spec's `check` that is answered.
    pub check: String,
    pub packages: Option<Listing<PackageName>>,
    pub patches: Option<Listing<PatchName>>,
}

/// All that is new.
#[derive(Debug, Clone, Copy)]
pub(super) struct News<'a> {
    pub seen: &'a Seen,
    /// None: nothing was looked for yet.
    pub listings: Option<&'a Listings>,
    pub say: Option<&'a Say>,
    /// What the transaction's download found.
    pub downloaded: Option<&'a Yield>,
    /// What of it was not installed, since it was refused.
    pub refused: Option<Part>,
}

/// How often the agent of this node says so: up to an hour more often than others, so that those that reported at once, as all do
/// after a change that concerns all, do not do so for ever.
fn own_pace(node: &str) -> SignedDuration {
    let minutes = node.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 60;
    REPORT - SignedDuration::from_mins(minutes.into())
}

/// The status that is to be written over what there is; None when that says it already, and lately.
pub(super) fn due(object: &NodeUpdate, news: News<'_>, now: Timestamp) -> Option<NodeUpdateStatus> {
    let pace = own_pace(&object.name_any());
    let fresh = |status: &NodeUpdateStatus| {
        let age = now.duration_since(status.reported_at.0);
        // a time in the future comes from a clock that was set back
        age < pace && age > -pace
    };
    let before = object.status.as_ref();
    let mut status = before.cloned().unwrap_or_else(|| NodeUpdateStatus::new(Time(now)));
    status.agent_version = VERSION.into();
    status.reported_at = Time(now);
    if let Some(found) = news.listings {
        status.check.clone_from(&found.check);
        status.packages.clone_from(&found.packages);
        status.patches.clone_from(&found.patches);
    }
    let same_boot = status.boot_id.as_ref() == Some(&news.seen.boot);
    status.reboot = match &news.seen.reboot {
        Some(need) => need.clone(),
        None if same_boot => status.reboot,
        None => RebootNeed::default(),
    };
    status.kernel.clone_from(&news.seen.kernel);
    status.storage_services.clone_from(&news.seen.storage_services);
    status.boot_id = Some(news.seen.boot.clone());
    status.has_vip = news.seen.has_vip;
    status.failed_services.clone_from(&news.seen.failed_services);
    let transaction = object.spec.transaction.as_ref();
    status.progress = transaction.and_then(|t| progress(t, status.progress.as_ref(), news.say, news.downloaded, news.refused));
    if let Some(transaction) = transaction.filter(|t| t.phase == Phase::Releasing) {
        note(transaction, &mut status, now);
    }
    let same = before.is_some_and(|b| NodeUpdateStatus { reported_at: b.reported_at.clone(), ..status.clone() } == *b && fresh(b));
    (!same).then_some(status)
}

/// The status where nothing else is known: only what is said about the transaction is new. None when it says that already.
pub(super) fn said(object: &NodeUpdate, say: &Say, now: Timestamp) -> Option<NodeUpdateStatus> {
    let (before, transaction) = (object.status.as_ref()?, object.spec.transaction.as_ref()?);
    let progress = progress(transaction, before.progress.as_ref(), Some(say), None, None);
    (progress != before.progress).then(|| NodeUpdateStatus { progress, reported_at: Time(now), ..before.clone() })
}

fn progress(
    transaction: &Transaction,
    before: Option<&Progress>,
    say: Option<&Say>,
    downloaded: Option<&Yield>,
    refused: Option<Part>,
) -> Option<Progress> {
    let before = before.filter(|b| b.transaction == transaction.id);
    let Some(say) = say else { return before.cloned() };
    let (left_out, drain_first) = match downloaded {
        Some(Yield::Downloaded { left_out, drain_first }) => (left_out.clone(), *drain_first),
        _ if refused == Some(Part::Packages) => (transaction.packages.clone(), transaction.drain_first),
        _ => before.map(|b| (b.left_out.clone(), b.drain_first)).unwrap_or_default(),
    };
    let now = Progress {
        transaction: transaction.id.clone(),
        phase: transaction.phase,
        outcome: say.outcome,
        at: Time(say.at),
        message: say.message.as_deref().map(short),
        part: say.part,
        left_out,
        // the packages come after them
        patches_refused: refused == Some(Part::Patches) || before.is_some_and(|b| b.patches_refused),
        drain_first,
    };
    let said = before.filter(|b| {
        let alike = Progress { at: b.at.clone(), ..now.clone() } == **b;
        let moves = transaction.phase == Phase::Installing && say.outcome == Outcome::Running;
        alike && (!moves || say.at.duration_since(b.at.0) < PROGRESS)
    });
    Some(said.cloned().unwrap_or(now))
}

/// Notes a run, once.
fn note(transaction: &Transaction, status: &mut NodeUpdateStatus, now: Timestamp) {
    if status.history.iter().any(|run| run.transaction == transaction.id) {
        return;
    }
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let run = Run {
        transaction: transaction.id.clone(),
        started_at: transaction.started_at.clone(),
        finished_at: Time(now),
        packages: count(transaction.packages.len()),
        patches: count(transaction.patches.len()),
        rebooted: transaction.rebooted,
        failure: transaction.failure.clone(),
    };
    if run.failure.is_none() {
        status.last_update = Some(Time(now));
    }
    status.history.insert(0, run);
    status.history.truncate(HISTORY);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use updates::api::{Answer, NodeUpdateSpec, Reboots};
    use updates::{Policy, Stage};

    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(1_000_000 + minutes)
    }

    fn seen(kernel: &str, boot: u8) -> Seen {
        Seen {
            kernel: kernel.into(),
            storage_services: vec![],
            boot: format!("00000000-0000-0000-0000-0000000000{boot:02}").parse().unwrap(),
            has_vip: false,
            failed_services: vec![],
            reboot: None,
        }
    }

    fn quiet(seen: &Seen) -> News<'_> {
        News { seen, listings: None, say: None, downloaded: None, refused: None }
    }

    fn transaction(phase: Phase) -> Transaction {
        Transaction {
            id: "0123456789abcdef".parse().unwrap(),
            packages: vec!["bash=5".parse().unwrap()],
            patches: vec![],
            reboot: Reboots::Never,
            drain_first: false,
            started_at: Time(at(0)),
            boot_id: None,
            phase,
            since: Time(at(0)),
            deadline: None,
            trial: false,
            touched: true,
            rebooted: false,
            failure: None,
        }
    }

    fn object(phase: Option<Phase>) -> NodeUpdate {
        let mut object = NodeUpdate::new("n", NodeUpdateSpec::new(Stage::Fast, Policy::Auto, "a"));
        object.spec.transaction = phase.map(transaction);
        object
    }

    #[test]
    fn reports_what_is_new_at_once_and_otherwise_seldom() {
        let mut object = object(None);
        let host = seen("6.1", 1);
        object.status = due(&object, quiet(&host), at(0));
        let status = object.status.clone().unwrap();
        assert_eq!((status.kernel.as_str(), status.check.as_str(), status.agent_version.as_str()), ("6.1", "", VERSION));
        assert_eq!(due(&object, quiet(&host), at(180)), None);
        assert!(due(&object, quiet(&host), at(240)).is_some());
        assert!(due(&object, quiet(&host), at(-240)).is_some(), "also when the clock was set back");
        assert!(due(&object, quiet(&seen("6.2", 1)), at(0)).is_some());
        assert!(due(&object, quiet(&Seen { storage_services: vec!["vstorage-mdsd.service".into()], ..host.clone() }), at(0)).is_some());
        let found = Listings { check: "a".into(), ..Listings::default() };
        assert_eq!(due(&object, News { listings: Some(&found), ..quiet(&host) }, at(0)).unwrap().check, "a");
    }

    #[test]
    fn agents_that_report_at_once_do_not_always() {
        let paces: BTreeSet<_> = (0..5000).map(|n| own_pace(&format!("node{n}.example.local"))).collect();
        assert_eq!((paces.len(), paces.first(), paces.last()), (60, Some(&SignedDuration::from_mins(181)), Some(&REPORT)));
    }

    #[test]
    fn what_was_known_of_another_boot_is_not_known_any_more() {
        let mut object = object(None);
        let yes = RebootNeed { needed: Answer::Yes, because: Some("a kernel".into()) };
        object.status = due(&object, quiet(&Seen { reboot: Some(yes.clone()), ..seen("6.1", 1) }), at(0));
        assert_eq!(object.status.as_ref().unwrap().reboot, yes);
        assert_eq!(due(&object, quiet(&seen("6.1", 1)), at(1)), None, "an agent that was restarted has not looked yet");
        assert_eq!(due(&object, quiet(&seen("6.1", 2)), at(1)).unwrap().reboot, RebootNeed::default());
    }

    #[test]
    fn progress_is_told_each_minute_and_keeps_what_the_download_found() {
        let mut object = object(Some(Phase::Downloading));
        let host = seen("6.1", 1);
        let said = |outcome, minutes| Say { outcome, message: None, part: None, at: at(minutes) };
        let left_out: Vec<PackageName> = vec!["vim=9".parse().unwrap()];
        let found = Yield::Downloaded { left_out: left_out.clone(), drain_first: true };
        let done = said(Outcome::Done, 0);
        object.status = due(&object, News { say: Some(&done), downloaded: Some(&found), ..quiet(&host) }, at(0));
        object.spec.transaction = Some(transaction(Phase::Installing));
        let running = said(Outcome::Running, 1);
        object.status = due(&object, News { say: Some(&running), ..quiet(&host) }, at(1));
        let progress = object.status.clone().unwrap().progress.unwrap();
        assert_eq!((progress.phase, progress.left_out, progress.drain_first), (Phase::Installing, left_out.clone(), true));
        let soon = Say { at: at(1) + SignedDuration::from_secs(59), ..running };
        assert_eq!(due(&object, News { say: Some(&soon), ..quiet(&host) }, at(2)), None);
        let refused = said(Outcome::Done, 1);
        let all = due(&object, News { say: Some(&refused), refused: Some(Part::Packages), ..quiet(&host) }, at(2)).unwrap();
        assert_eq!(all.progress.unwrap().left_out, object.spec.transaction.as_ref().unwrap().packages);
        object.status = due(&object, News { say: Some(&refused), refused: Some(Part::Patches), ..quiet(&host) }, at(2));
        object.spec.transaction = Some(transaction(Phase::Verifying));
        let after = due(&object, News { say: Some(&refused), ..quiet(&host) }, at(2)).unwrap().progress.unwrap();
        assert!(after.patches_refused && after.left_out == left_out, "{after:?}");
        object.spec.transaction = Some(transaction(Phase::Installing));
        let later = said(Outcome::Running, 2);
        assert_eq!(due(&object, News { say: Some(&later), ..quiet(&host) }, at(2)).unwrap().progress.unwrap().at.0, at(2));
        object.spec.transaction = None;
        assert_eq!(due(&object, quiet(&host), at(3)).unwrap().progress, None);
    }

    #[test]
    fn a_host_that_cannot_be_asked_is_told_of_once() {
        let mut object = object(Some(Phase::Downloading));
        let no = Say { outcome: Outcome::Failed, message: Some("no bus".into()), part: None, at: at(1) };
        assert_eq!(said(&object, &no, at(1)), None, "there is nothing to keep yet");
        object.status = due(&object, quiet(&seen("6.1", 1)), at(0));
        object.status = said(&object, &no, at(1));
        let status = object.status.as_ref().unwrap();
        assert_eq!((status.kernel.as_str(), status.progress.as_ref().map(|p| p.outcome)), ("6.1", Some(Outcome::Failed)));
        assert_eq!(said(&object, &Say { at: at(2), ..no }, at(2)), None);
    }

    #[test]
    fn a_run_is_noted_once_and_the_oldest_are_forgotten() {
        let mut object = object(Some(Phase::Releasing));
        let host = seen("6.1", 1);
        object.status = due(&object, quiet(&host), at(5));
        let status = object.status.clone().unwrap();
        assert_eq!((status.history.len(), status.last_update), (1, Some(Time(at(5)))));
        assert_eq!(due(&object, quiet(&host), at(6)), None);
        for number in 0..20_u8 {
            let mut next = transaction(Phase::Releasing);
            next.id = format!("{number:016x}").parse().unwrap();
            let failure = updates::api::Failure { reason: updates::api::Reason::CheckFailed, message: "no".into(), at: Time(at(6)) };
            next.failure = Some(failure);
            object.spec.transaction = Some(next);
            object.status = due(&object, quiet(&host), at(7));
        }
        let status = object.status.unwrap();
        assert_eq!(status.history.len(), HISTORY);
        assert_eq!(status.history[0].transaction.as_str(), "0000000000000013");
        assert_eq!(status.last_update, Some(Time(at(5))), "the others have failed");
    }
}
