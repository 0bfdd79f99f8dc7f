//! From phase to phase: what comes next for a node that is being updated.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Action, Attribution, Blocker, Cordon, Look, Next, Node, Slots, Surroundings, Wait, due, retry, trials};
use crate::api::{Answer, Failure, NodeUpdateStatus, Outcome, Part, Phase, Progress, Reason, Reboots, Transaction};
use crate::suspects::{self, Verdict};
use crate::{Item, PackageName, Span, Stage, Suspects};

/// How long the agent has to note a run in its history.
const NOTE: SignedDuration = SignedDuration::from_mins(5);
/// In the look at a node, as many blockers are named.
const NAMED: usize = 3;
const LEFT_OUT: &str = "all of the packages need others, which are not due";
/// The API's limit of a message, in characters.
const LONGEST: usize = 1024;

/// What comes next for one node, and what its crash has taught.
pub(super) fn next<'i>(
    node: &Node<'i>,
    transaction: &'i Transaction,
    around: &Surroundings<'i, '_>,
    slots: &mut Slots,
) -> (Next, Option<Attribution>) {
    let under_way = UnderWay::new(node, transaction, around);
    // whatever disturbs the node is done under its lock only
    if transaction.phase != Phase::Releasing && !under_way.is_locked() {
        if let Some(slot) = slots.take_again(node) {
            return (Next::Act(Action::Lock { slot }), None);
        }
        if under_way.is_untouched() {
            return (under_way.give_back(Reason::TooManyUnavailable, "its lease is gone, and others hold as many as may be"), None);
        }
    }
    match under_way.lesson() {
        // what is banned already is not known without a spec
        Some(lesson) => (under_way.wait(), Some(lesson).filter(|_| around.input.spec.is_some())),
        None => (under_way.next(), None),
    }
}

/// Slots that nobody has: their node is gone, or has no transaction.
pub(super) fn nobodys(around: &Surroundings<'_, '_>) -> Vec<u32> {
    // of two leases of one node, one is enough
    let held = |lock: &super::Lock<'_>| around.slots.get(lock.node) == Some(&lock.slot);
    let busy = |lock: &super::Lock<'_>| held(lock) && around.nodes.get(lock.node).is_some_and(|n| n.transaction().is_some());
    around.input.locks.iter().filter(|lock| !busy(lock)).map(|lock| lock.slot).collect()
}

/// What is left over of suspects: those that were banned, or are not to be had any more, or all, when nothing is to be tried any more.
pub(super) fn tidy(around: &Surroundings<'_, '_>) -> Option<Attribution> {
    let suspects = around.input.suspects;
    let first = suspects.first().filter(|_| around.input.spec.is_some())?;
    let (verdict, because) = if around.spec.crash_bisect {
        let suspects = suspects::cleared(suspects, |p| is_gone(around, p));
        (Verdict { bans: Vec::new(), suspects }, "banned, or nowhere to be had any more")
    } else {
        let all = suspects.iter().flat_map(|s| &s.packages).filter(|p| !around.rules.bans(p)).cloned().collect();
        (Verdict { bans: all, suspects: Vec::new() }, "crashBisect was switched off")
    };
    let changed = verdict.suspects != suspects;
    changed.then(|| attribution(verdict, Vec::new(), &first.node, because.into()))
}

/// Whether a package is banned, or not to be had any more.
fn is_gone(around: &Surroundings<'_, '_>, package: &PackageName) -> bool {
    around.rules.bans(package) || around.input.nodes.iter().all(|node| is_without(node, package))
}

/// Whether a node surely does not list a package.
fn is_without(node: &Node<'_>, package: &PackageName) -> bool {
    let listing = node.status().and_then(|s| s.packages.as_ref()).filter(|l| l.error.is_none());
    listing.is_some_and(|l| l.available.iter().all(|item| item.name != *package))
}

fn attribution(verdict: Verdict, patches: Vec<Item>, node: &str, because: String) -> Attribution {
    let bans = patches.into_iter().chain(verdict.bans.into_iter().map(Item::Package)).collect();
    Attribution { bans, suspects: verdict.suspects, node: node.to_owned(), because }
}

/// A transaction that enters a phase now.
pub(super) fn entered(transaction: Transaction, phase: Phase, around: &Surroundings<'_, '_>) -> Transaction {
    let deadline = time_limit(&transaction, phase, around).and_then(|limit| around.now.checked_add(limit).ok());
    Transaction { phase, since: Time(around.now), deadline: deadline.map(Time), ..transaction }
}

fn time_limit(transaction: &Transaction, phase: Phase, around: &Surroundings<'_, '_>) -> Option<SignedDuration> {
    let limits = &around.spec.timeouts;
    let span = match phase {
        Phase::Checking => limits.check,
        Phase::Downloading => limits.download,
        Phase::HandingOver => limits.hand_over,
        Phase::Draining => limits.drain,
        Phase::Installing => limits.install,
        Phase::Rebooting => limits.reboot,
        Phase::Verifying => limits.verify,
        Phase::Broken => return None,
        Phase::Releasing => return Some(settling(transaction, around).saturating_add(NOTE)),
    };
    Some(span.get())
}

/// How long a node is watched after its update.
fn settling(transaction: &Transaction, around: &Surroundings<'_, '_>) -> SignedDuration {
    let settles = transaction.failure.is_none() && (transaction.touched || transaction.rebooted);
    around.spec.settle_time.filter(|_| settles).map_or(SignedDuration::ZERO, Span::get)
}

/// A node that is being updated.
struct UnderWay<'i, 'w> {
    node: &'w Node<'i>,
    transaction: &'i Transaction,
    status: Option<&'i NodeUpdateStatus>,
    /// What the agent says about this very phase.
    progress: Option<&'i Progress>,
    around: &'w Surroundings<'i, 'w>,
}

impl<'i, 'w> UnderWay<'i, 'w> {
    fn new(node: &'w Node<'i>, transaction: &'i Transaction, around: &'w Surroundings<'i, 'w>) -> Self {
        let status = node.status();
        let progress = status.and_then(|s| s.progress.as_ref());
        let progress = progress.filter(|p| p.transaction == transaction.id && p.phase == transaction.phase);
        Self { node, transaction, status, progress, around }
    }

    fn next(&self) -> Next {
        if let Some((reason, message)) = self.objection() {
            return self.give_back(reason, &message);
        }
        match self.transaction.phase {
            Phase::Checking => self.checking(),
            Phase::Downloading => self.downloading(),
            Phase::HandingOver => self.handing_over(),
            Phase::Draining => self.draining(),
            Phase::Installing => self.installing(),
            Phase::Rebooting => self.rebooting(),
            Phase::Verifying | Phase::Broken => self.verifying(),
            Phase::Releasing => self.releasing(),
        }
    }

    fn checking(&self) -> Next {
        let Some(look) = self.look() else {
            return if self.is_late() {
                self.give_back(Reason::NotChecked, "it could not be found out in time whether the update may start")
            } else {
                Next::Act(Action::Look)
            };
        };
        let t = self.transaction;
        // a budget matters only where pods have to go
        let pods_go = t.drain_first || t.packages.is_empty() && t.patches.is_empty() || t.reboot == Reboots::Always;
        let blocks = |b: &&Blocker| pods_go || matches!(b, Blocker::Pod(_));
        if let Some((reason, message)) = blocked(look.blockers.iter().filter(blocks)) {
            return self.give_back(reason, &message);
        }
        if !self.node.ready {
            return self.give_back(Reason::NodeNotReady, "the node is not ready");
        }
        if let Some((reason, message)) = self.around.alarmed() {
            return self.give_back(reason, &message);
        }
        if let Some((reason, message)) = self.around.quorum(self.node) {
            return self.give_back(reason, &message);
        }
        if t.packages.is_empty() && t.patches.is_empty() { self.clear_the_node(t.clone()) } else { self.to(t.clone(), Phase::Downloading) }
    }

    fn downloading(&self) -> Next {
        match self.outcome() {
            Outcome::Done if self.is_left_out() => self.give_back(Reason::LeftOut, &self.said(LEFT_OUT)),
            Outcome::Done => {
                // the download may have taken an hour
                if let Some((reason, message)) = self.around.alarmed() {
                    return self.give_back(reason, &message);
                }
                let drain_first = self.transaction.drain_first || self.progress.is_some_and(|p| p.drain_first);
                let transaction = Transaction { drain_first, ..self.transaction.clone() };
                if drain_first { self.clear_the_node(transaction) } else { self.disturb(transaction, Phase::Installing) }
            }
            Outcome::Failed | Outcome::Crashed => self.give_back(Reason::DownloadFailed, &self.said("the download failed")),
            Outcome::Running if self.is_late() => self.give_back(Reason::DownloadFailed, "the download was not done in time"),
            Outcome::Running => self.wait(),
        }
    }

    fn handing_over(&self) -> Next {
        let gone = self.status.is_some_and(|s| !s.has_vip);
        match self.outcome() {
            _ if gone => self.disturb(self.transaction.clone(), Phase::Draining),
            Outcome::Failed | Outcome::Crashed => self.give_back(Reason::HandOverFailed, &self.said("the floating address did not move")),
            _ if self.is_late() => self.give_back(Reason::HandOverFailed, "the floating address did not move in time"),
            _ => self.wait(),
        }
    }

    fn draining(&self) -> Next {
        if !self.is_locked() {
            return if self.is_late() { self.undrained() } else { self.wait() };
        }
        if self.node.cordon == Cordon::No {
            return if self.is_late() { self.undrained() } else { Next::Act(Action::Cordon) };
        }
        let t = self.transaction;
        let something = !t.packages.is_empty() || !t.patches.is_empty();
        match self.look() {
            Some(look) if look.left == 0 => {
                self.disturb(t.clone(), if something && !t.touched { Phase::Installing } else { Phase::Rebooting })
            }
            _ if self.is_late() => self.undrained(),
            _ => Next::Act(Action::Evict),
        }
    }

    fn undrained(&self) -> Next {
        let blockers = self.look().map(|look| look.blockers.as_slice()).unwrap_or_default();
        let (reason, message) = blocked(blockers.iter()).unwrap_or((Reason::DrainFailed, "the pods were not gone in time".into()));
        self.give_back(reason, &message)
    }

    fn installing(&self) -> Next {
        match self.outcome() {
            Outcome::Done if self.is_left_out() => self.fail(Reason::LeftOut, &self.said(LEFT_OUT), Phase::Verifying),
            Outcome::Done if self.wants_reboot() && self.is_clear() => self.disturb(self.transaction.clone(), Phase::Rebooting),
            Outcome::Done if self.wants_reboot() => self.clear_the_node(self.transaction.clone()),
            Outcome::Done => self.to(self.transaction.clone(), Phase::Verifying),
            Outcome::Failed => self.fail(Reason::InstallFailed, &self.said("the installation failed"), Phase::Verifying),
            Outcome::Crashed => self.fail(Reason::Crashed, &self.said("the host crashed during the installation"), Phase::Verifying),
            Outcome::Running if !self.is_silent() => self.wait(),
            // only the host can say what came of it
            Outcome::Running if !self.node.ready => {
                self.fail(Reason::NodeNotReady, "the node was lost during the installation", Phase::Broken)
            }
            Outcome::Running if self.has_begun() => self.fail(Reason::Hung, "no sign of progress during the installation", Phase::Broken),
            Outcome::Running => self.fail(Reason::Hung, "the agent did not begin to install", Phase::Broken),
        }
    }

    fn rebooting(&self) -> Next {
        match self.outcome() {
            _ if self.is_another_boot() => self.to(self.transaction.clone(), Phase::Verifying),
            Outcome::Failed | Outcome::Crashed => self.fail(Reason::RebootFailed, &self.said("the host did not reboot"), Phase::Verifying),
            _ if self.is_late() => self.fail(Reason::RebootFailed, "the host did not come back in time", Phase::Broken),
            _ => self.wait(),
        }
    }

    fn verifying(&self) -> Next {
        let t = self.transaction;
        let reason = t.failure.as_ref().map(|f| &f.reason);
        if t.phase == Phase::Broken && reason == Some(&Reason::NodeNotReady) && self.node.ready {
            // it is back, and says itself whether what it had begun crashed
            return self.disturb(Transaction { failure: None, ..t.clone() }, Phase::Installing);
        }
        // a host that did not reboot, but is well, is the one that it was: it is tried again later
        let boot = !t.rebooted || self.is_another_boot() || reason == Some(&Reason::RebootFailed);
        if self.outcome() == Outcome::Done && self.node.ready && boot && self.around.alarmed().is_none() {
            // it took its time, and that is all
            let mended = match reason {
                Some(Reason::NotVerified) => true,
                Some(Reason::RebootFailed) => self.is_another_boot(),
                _ => false,
            };
            let failure = t.failure.clone().filter(|_| !mended);
            return self.to(Transaction { failure, ..t.clone() }, Phase::Releasing);
        }
        if t.phase == Phase::Verifying && self.is_late() {
            let unwell = || self.said("the node was not as well as before in time");
            let message = self.around.alarmed().map_or_else(unwell, |(_, message)| message);
            return self.fail(Reason::NotVerified, &message, Phase::Broken);
        }
        self.wait()
    }

    fn releasing(&self) -> Next {
        let t = self.transaction;
        if self.node.cordon == Cordon::Ours {
            return Next::Act(Action::Uncordon);
        }
        let settled = t.since.0.saturating_add(settling(t, self.around)).is_ok_and(|until| self.around.now >= until);
        if !settled || !(self.outcome() == Outcome::Done || self.is_late()) {
            return self.wait();
        }
        let before = self.node.spec().and_then(|s| s.retry.as_ref());
        let failure = t.failure.as_ref();
        Next::Act(Action::Finish { retry: failure.and_then(|f| retry::after(f, before, &self.around.spec.timeouts, self.around.now)) })
    }

    /// Pods, and the floating address, leave the node.
    fn clear_the_node(&self, transaction: Transaction) -> Next {
        let has_vip = self.node.server && self.status.is_some_and(|s| s.has_vip);
        // a server that is alone has nobody who could take it
        let others = || self.around.input.nodes.iter().any(|n| n.server && n.ready && n.name() != self.node.name());
        self.disturb(transaction, if has_vip && others() { Phase::HandingOver } else { Phase::Draining })
    }

    /// Into a phase that takes something from the cluster. What keeps it from that may pass until the deadline.
    fn disturb(&self, transaction: Transaction, phase: Phase) -> Next {
        let unlocked = || (!self.is_locked()).then(|| (Reason::TooManyUnavailable, "its lease is gone".into()));
        if let Some((reason, message)) = unlocked().or_else(|| self.around.quorum(self.node)) {
            return if self.is_late() {
                self.give_back(reason, &message)
            } else {
                Next::Wait(Wait { until: self.deadline(), ..Wait::on(reason) })
            };
        }
        let boot_id = self.status.and_then(|s| s.boot_id.clone()).or(transaction.boot_id);
        let touched = transaction.touched || phase == Phase::Installing;
        let rebooted = transaction.rebooted || phase == Phase::Rebooting;
        self.to(Transaction { boot_id, touched, rebooted, ..transaction }, phase)
    }

    fn to(&self, transaction: Transaction, phase: Phase) -> Next {
        Next::Act(Action::Move(Box::new(entered(transaction, phase, self.around))))
    }

    fn fail(&self, reason: Reason, message: &str, phase: Phase) -> Next {
        let message = message.chars().take(LONGEST).collect();
        // what came first is why
        let failure = self.transaction.failure.clone().unwrap_or(Failure { reason, message, at: Time(self.around.now) });
        self.to(Transaction { failure: Some(failure), ..self.transaction.clone() }, phase)
    }

    /// It does not go on: nothing was touched, or the host is looked at first.
    fn give_back(&self, reason: Reason, message: &str) -> Next {
        self.fail(reason, message, if self.transaction.touched { Phase::Verifying } else { Phase::Releasing })
    }

    fn wait(&self) -> Next {
        let reason = if self.transaction.phase == Phase::Broken { Reason::Broken } else { Reason::Updating };
        Next::Wait(Wait { until: self.deadline(), ..Wait::on(reason) })
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.transaction.deadline.as_ref().map(|d| d.0)
    }

    fn is_late(&self) -> bool {
        self.deadline().is_some_and(|deadline| self.around.now >= deadline)
    }

    /// Whether nothing new has been heard for longer than an installation may be silent. What counts is what the controller saw, by
    /// its own clock: hosts' clocks may be wrong, and the API may have been away.
    fn is_silent(&self) -> bool {
        let silent = |since: Timestamp| self.around.now.duration_since(since.max(self.transaction.since.0));
        self.node.quiet_since.is_some_and(|since| silent(since) >= self.around.spec.timeouts.install.get())
    }

    /// Whether the agent has said that it began to install.
    fn has_begun(&self) -> bool {
        self.progress.is_some_and(|p| p.part.is_some())
    }

    /// Whether what was begun on a node that is there hangs.
    fn hangs(&self) -> bool {
        self.is_silent() && self.node.ready && self.has_begun()
    }

    fn outcome(&self) -> Outcome {
        self.progress.map_or(Outcome::Running, |p| p.outcome)
    }

    fn is_locked(&self) -> bool {
        self.around.slots.contains_key(self.node.name())
    }

    /// Whether nothing was done to the host.
    fn is_untouched(&self) -> bool {
        let phase = self.transaction.phase;
        matches!(phase, Phase::Checking | Phase::Downloading | Phase::HandingOver | Phase::Draining) && !self.transaction.touched
    }

    /// Whether its pods were taken off before, and nobody let it take new ones since.
    fn is_clear(&self) -> bool {
        self.transaction.drain_first && self.node.cordon != Cordon::No
    }

    /// Those of the packages that can be installed without others.
    fn tried(&self) -> Vec<PackageName> {
        let left_out = self.progress.map(|p| p.left_out.as_slice()).unwrap_or_default();
        self.transaction.packages.iter().filter(|p| !left_out.contains(p)).cloned().collect()
    }

    /// What other nodes have just installed, and are about to be asked for no more.
    fn installed_elsewhere(&self) -> Vec<PackageName> {
        let others = self.around.input.nodes.iter().filter_map(|node| Some(UnderWay::new(node, node.transaction()?, self.around)));
        let done = others.filter(|other| other.transaction.phase == Phase::Installing && other.outcome() == Outcome::Done);
        done.flat_map(|other| other.tried()).collect()
    }

    fn is_left_out(&self) -> bool {
        let patches = !self.transaction.patches.is_empty() && !self.progress.is_some_and(|p| p.patches_refused);
        !patches && self.tried().is_empty()
    }

    fn said(&self, otherwise: &str) -> String {
        self.progress.and_then(|p| p.message.clone()).unwrap_or_else(|| otherwise.to_owned())
    }

    /// A look that is of this phase.
    fn look(&self) -> Option<&Look> {
        self.node.look.filter(|look| look.at >= self.transaction.since.0)
    }

    fn stage(&self) -> Stage {
        self.node.spec().map_or(Stage::Stable, |spec| spec.stage)
    }

    /// Why what has touched nothing yet does not go on.
    fn objection(&self) -> Option<(Reason, String)> {
        match self.around.input.spec {
            _ if !self.is_untouched() => None,
            None => Some((Reason::InvalidSpec, "the spec cannot be understood".into())),
            Some(_) => due::objection(self.transaction, self.status, self.stage(), self.around.rules),
        }
    }

    fn is_another_boot(&self) -> bool {
        let now = self.status.and_then(|s| s.boot_id.as_ref());
        now.is_some() && now != self.transaction.boot_id.as_ref()
    }

    fn wants_reboot(&self) -> bool {
        let needed = self.status.is_some_and(|s| s.reboot.needed == Answer::Yes);
        match self.transaction.reboot {
            Reboots::Never => false,
            Reboots::WhenNeeded => needed,
            Reboots::Always => needed || !self.transaction.packages.is_empty(),
        }
    }

    /// What the installation has taught, as long as that is not written.
    fn lesson(&self) -> Option<Attribution> {
        let t = self.transaction;
        let installing = t.phase == Phase::Installing;
        if !installing && t.phase != Phase::Downloading {
            return None;
        }
        let tried = self.tried();
        let (suspects, rules, name) = (self.around.input.suspects, self.around.rules, self.node.name());
        let only = |suspects| Verdict { bans: Vec::new(), suspects };
        let part = self.progress.and_then(|p| p.part);
        let mut patches = Vec::new();
        let (verdict, because) = match self.outcome() {
            Outcome::Crashed | Outcome::Running if installing && (self.outcome() == Outcome::Crashed || self.hangs()) => {
                if part != Some(Part::Packages) {
                    patches = t
                        .patches
                        .iter()
                        .filter(|p| rules.refuses_patch(**p) != Some(super::rules::May::Banned))
                        .copied()
                        .map(Item::Patch)
                        .collect();
                }
                let packages = if part == Some(Part::Patches) { &[][..] } else { &tried };
                let banned = |p: &PackageName| rules.bans(p);
                let verdict = if self.around.spec.crash_bisect {
                    let Verdict { bans, suspects } = suspects::crashed(suspects, name, packages, banned);
                    // or else one would suspect again and again what another clears
                    let elsewhere = self.installed_elsewhere();
                    let suspects = suspects::cleared(&suspects, |p| elsewhere.contains(p) || is_gone(self.around, p));
                    Verdict { bans, suspects }
                } else {
                    let bans = packages.iter().filter(|p| !banned(p)).cloned().collect();
                    Verdict { bans, suspects: suspects::cleared(suspects, |p| packages.contains(p)) }
                };
                (verdict, self.said("the host crashed, or hung, while these were being installed"))
            }
            Outcome::Done if installing && !tried.is_empty() => {
                (only(suspects::cleared(suspects, |p| tried.contains(p))), "they were installed, and nothing crashed".into())
            }
            Outcome::Done if t.trial && tried.is_empty() => {
                let keeps = |group: &Suspects| self.around.nodes.get(group.node.as_str()).is_some_and(|node| trials::tries(node, group));
                (only(suspects::left_out(suspects, name, &t.packages, keeps)), self.said(LEFT_OUT))
            }
            // what was not begun failed for reasons of the host's
            Outcome::Failed if installing && t.trial && self.has_begun() => {
                (only(suspects::failed(suspects, name, &tried)), self.said("they could not be installed"))
            }
            _ => return None,
        };
        let news = !verdict.bans.is_empty() || !patches.is_empty() || verdict.suspects != suspects;
        news.then(|| attribution(verdict, patches, name, because))
    }
}

/// In words, if anything blocks.
fn blocked<'b>(blockers: impl Iterator<Item = &'b Blocker>) -> Option<(Reason, String)> {
    let all: Vec<_> = blockers.collect();
    let reason = match all.first()? {
        Blocker::Budget(_) => Reason::PodDisruptionBudget,
        Blocker::Pod(_) => Reason::BlockingPod,
        Blocker::Stays(_) => Reason::DrainFailed,
    };
    let text = |b: &&Blocker| match b {
        Blocker::Budget(what) | Blocker::Pod(what) | Blocker::Stays(what) => what.clone(),
    };
    let named: Vec<_> = all.iter().take(NAMED).map(text).collect();
    let more = if all.len() > NAMED { format!(" and {} more", all.len() - NAMED) } else { String::new() };
    Some((reason, format!("{}{more}", named.join("; "))))
}
