//! What is to be done to a node.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sha2::{Digest as _, Sha256};

use super::rules::{May, Rules};
use super::{Node, Wait, retry};
use crate::api::{Answer, Available, Listing, NodeUpdateStatus, Phase, Reason, Reboots, Transaction};
use crate::{Impact, PackageName, PatchName, Stage, TransactionId};

/// What a listing has, if the last look that made it succeeded.
pub(super) fn found<T>(listing: Option<&Listing<T>>) -> &[Available<T>] {
    listing.filter(|l| l.error.is_none() && l.checked_at.is_some()).map(|l| l.available.as_slice()).unwrap_or_default()
}

/// How a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Something is due.
    Due,
    /// Nothing but a reboot is.
    Reboot,
    /// Nothing is, though something is available.
    NotYet(Wait),
    /// Nothing is available.
    Current,
}

fn needs_reboot(status: &NodeUpdateStatus, rules: &Rules<'_>) -> bool {
    rules.spec.reboot != Reboots::Never && status.reboot.needed == Answer::Yes
}

/// Whether a node may be rebooted now, and nothing else.
pub(super) fn may_reboot(status: &NodeUpdateStatus, rules: &Rules<'_>) -> bool {
    let lets = needs_reboot(status, rules) && status.boot_id.as_ref().is_some_and(|boot| rules.lets_reboot(boot));
    lets && retry::reboot_again(&status.history, &rules.spec.timeouts).is_none_or(|at| at <= rules.now)
}

/// Whether all that was due on a node was left out the last time.
pub(super) fn was_left_out(node: &Node<'_>) -> bool {
    node.spec().and_then(|spec| spec.retry.as_ref()).is_some_and(|retry| retry.failure.reason == Reason::LeftOut)
}

/// Whether anything is due on a node, on which `trial` is tried. It stops at the first thing that is: thousands of nodes are asked.
pub(super) fn standing(status: &NodeUpdateStatus, stage: Stage, trial: Option<&[PackageName]>, rules: &Rules<'_>) -> Standing {
    if trial.is_some() {
        return Standing::Due;
    }
    // the reason that is worth most to know; of those that are young, the first that will be due
    let mut why: Option<May> = None;
    let mut due = |may: May| {
        if may == May::Yes {
            return true;
        }
        why = Some(why.map_or(may, |before| before.min(may)));
        false
    };
    if found(status.packages.as_ref()).iter().any(|item| due(rules.package(item, stage)))
        || found(status.patches.as_ref()).iter().any(|item| due(rules.patch(item, stage)))
    {
        return Standing::Due;
    }
    if needs_reboot(status, rules) {
        if status.boot_id.as_ref().is_some_and(|boot| rules.lets_reboot(boot)) {
            return Standing::Reboot;
        }
        return Standing::NotYet(Wait::on(Reason::NotApproved));
    }
    let failed = |error: Option<&String>| error.is_some();
    let reason = match why {
        Some(May::Young(since)) => {
            return Standing::NotYet(Wait { until: Some(rules.due(stage, since)), ..Wait::on(Reason::TooYoung) });
        }
        Some(May::NotApproved) => Reason::NotApproved,
        Some(May::Suspected) => Reason::Suspected,
        Some(May::Banned) => Reason::Banned,
        Some(May::Yes) | None => match (&status.packages, &status.patches) {
            (Some(l), _) if failed(l.error.as_ref()) => Reason::CheckFailed,
            (_, Some(l)) if failed(l.error.as_ref()) => Reason::CheckFailed,
            (Some(l), _) if l.checked_at.is_none() => Reason::NotReported,
            (None, None) => Reason::NotSupported,
            _ => return Standing::Current,
        },
    };
    Standing::NotYet(Wait::on(reason))
}

/// The packages that are due on a node.
pub(super) fn packages(status: &NodeUpdateStatus, stage: Stage, rules: &Rules<'_>) -> impl Iterator<Item = PackageName> {
    let due = found(status.packages.as_ref()).iter().filter(move |item| rules.package(item, stage) == May::Yes);
    due.map(|item| item.name.clone())
}

/// All that is due on a node, as one transaction; it waits in `Checking`.
pub(super) fn transaction(
    node: &Node<'_>,
    status: &NodeUpdateStatus,
    stage: Stage,
    trial: Option<&[PackageName]>,
    rules: &Rules<'_>,
    now: Timestamp,
) -> Transaction {
    let (mut packages, mut patches) = (trial.unwrap_or_default().to_vec(), Vec::new());
    // a reboot does not wait for what may be left out for ever
    let only_reboot = was_left_out(node) && may_reboot(status, rules);
    if trial.is_none() && !only_reboot {
        packages = self::packages(status, stage, rules).collect();
        let due = found(status.patches.as_ref()).iter().filter(|item| rules.patch(item, stage) == May::Yes);
        // each has all of those before it
        patches = due.map(|item| item.name).max().into_iter().collect();
    }
    Transaction {
        id: id(node, &packages, &patches, now),
        drain_first: packages.iter().any(|p| Impact::of(p.name()).is_some()),
        packages,
        patches,
        reboot: rules.spec.reboot,
        started_at: Time(now),
        boot_id: status.boot_id.clone(),
        phase: Phase::Checking,
        since: Time(now),
        deadline: None,
        trial: trial.is_some(),
        touched: false,
        rebooted: false,
        failure: None,
    }
}

/// Another one for each attempt; the same one for the same decision.
fn id(node: &Node<'_>, packages: &[PackageName], patches: &[PatchName], now: Timestamp) -> TransactionId {
    let mut digest = Sha256::new();
    let texts = packages.iter().map(ToString::to_string).chain(patches.iter().map(ToString::to_string));
    for text in [node.uid.to_owned(), now.to_string()].into_iter().chain(texts) {
        digest.update(text);
        digest.update([0]);
    }
    TransactionId::of_digest(&digest.finalize())
}

/// Why a transaction that has touched nothing yet must not go on; by what the spec says now.
pub(super) fn objection(
    transaction: &Transaction,
    status: Option<&NodeUpdateStatus>,
    stage: Stage,
    rules: &Rules<'_>,
) -> Option<(Reason, String)> {
    if rules.spec.halted {
        return Some((Reason::Halted, "updates were halted before anything was touched".into()));
    }
    let changed = |item: &dyn std::fmt::Display, may: May| {
        let is = match may {
            May::Yes => return None,
            May::Young(since) => format!("is due only at {}", rules.due(stage, since)),
            May::NotApproved => "is not approved any more".into(),
            May::Suspected => "is suspected of a crash".into(),
            May::Banned => "is banned".into(),
        };
        Some((Reason::SpecChanged, format!("{item} {is} now")))
    };
    let packages = status.map(|s| found(s.packages.as_ref())).unwrap_or_default();
    let patches = status.map(|s| found(s.patches.as_ref())).unwrap_or_default();
    let package = |name: &PackageName| {
        let refused = rules.refuses(name).or((!transaction.trial && rules.suspects(name)).then_some(May::Suspected));
        let listed =
            || packages.iter().find(|item| item.name == *name).filter(|_| !transaction.trial).map(|item| rules.package(item, stage));
        changed(name, refused.or_else(listed)?)
    };
    let patch = |name: &PatchName| {
        let listed = || patches.iter().find(|item| item.name == *name).map(|item| rules.patch(item, stage));
        changed(name, rules.refuses_patch(*name).or_else(listed)?)
    };
    transaction.packages.iter().find_map(package).or_else(|| transaction.patches.iter().find_map(patch))
}
