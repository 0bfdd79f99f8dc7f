//! What the agent does next. Pure: it is decided anew each time from what is on the disk, so that nothing depends on who was
//! killed when.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use updates::api::{HostRules, Outcome, Part, Phase, Transaction};
use updates::{BootId, TransactionId};

use super::order::{End, Items, Journal, Order, Seat, Work, Yield};

/// A reboot that did not come is asked for again after this time; systemd gives services 90 s to stop.
const REBOOT_AGAIN: SignedDuration = SignedDuration::from_secs(150);
/// After this time, a reboot that was asked for does not come any more. A user's command may have put it off, as `shutdown -r +30`
/// does.
const REBOOT_COMES: SignedDuration = SignedDuration::from_hours(1);
/// Where the host cannot be asked, or told, anything for so long in a phase, the phase has failed. Its bus may be away while it is
/// updated, or while the host goes down.
const STUCK: Duration = Duration::from_secs(180);
/// A gate that is closed is tried again after this time.
const GATE_AGAIN: SignedDuration = SignedDuration::from_secs(15);

/// What systemd says of a seat's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// It runs, or is about to, or ends just now.
    Runs,
    /// It ended badly, and no other order was given since.
    Failed,
    /// There is none.
    Gone,
}

/// A seat, and its last order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    pub order: Option<&'a Order>,
    pub journal: Option<&'a Journal>,
    pub unit: Unit,
    /// How long the host had been up at the last sign of progress.
    pub sign: Option<SignedDuration>,
    /// There was an order, but what is written down about it cannot be understood: of another version, or of a bad disk.
    pub damaged: bool,
}

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stand<'a> {
    /// Nothing was changed.
    NotBegun,
    /// It is being carried out.
    Runs,
    /// It ended.
    Ended(&'a End),
    /// It ended in the middle.
    Died,
}

impl<'a> Held<'a> {
    /// The order, and where it stands.
    pub(super) fn stand(&self) -> Option<(&'a Order, Stand<'a>)> {
        let order = self.order?;
        let stand = match self.journal.filter(|j| j.order == order.at) {
            _ if self.unit == Unit::Runs => Stand::Runs,
            None => Stand::NotBegun,
            Some(Journal { end: Some(end), .. }) => Stand::Ended(end),
            Some(Journal { end: None, .. }) => Stand::Died,
        };
        Some((order, stand))
    }

    fn runs(&self) -> bool {
        self.unit == Unit::Runs
    }

    /// For how long an order that runs has given no sign of progress.
    fn silence(&self, order: &Order, up: SignedDuration) -> SignedDuration {
        up.saturating_sub(self.sign.map_or(order.up, |sign| sign.max(order.up)))
    }

    fn hangs(&self, order: &Order, up: SignedDuration) -> bool {
        order.patience.is_some_and(|patience| self.silence(order, up) > patience)
    }
}

/// The floating address, as this host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Floating {
    /// The cluster has none, or this host cannot have it.
    None,
    /// This host has it.
    Here,
    /// Another one has it, and the API answers there.
    Elsewhere,
    /// Nobody answers there.
    Lost,
}

/// All that counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case<'a> {
    pub now: Timestamp,
    /// How long the host has been up.
    pub up: SignedDuration,
    pub boot: &'a BootId,
    pub transaction: Option<&'a Transaction>,
    pub rules: &'a HostRules,
    pub update: Held<'a>,
    pub look: Held<'a>,
    /// The transaction at whose beginning the services that ran were written down.
    pub noted: Option<&'a TransactionId>,
    pub floating: Floating,
    /// Whether the agent made the host give the floating address away.
    pub away: bool,
    /// Services that ran before, and do not now.
    pub amiss: &'a [String],
    /// Whether what is said to be available may be from before the last installation.
    pub lags: bool,
}

/// What to do to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Write down which services run.
    NoteServices,
    /// Write an order down, then start it.
    Give { seat: Seat, work: Work, patience: Option<SignedDuration> },
    /// End what runs.
    Stop(Seat),
    /// Let another server have the floating address.
    LetGo,
    /// Be one of those that may have it again.
    TakeBack,
}

impl Act {
    /// In words. A user's commands may have secrets in them.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::NoteServices => "note services",
            Self::Give { work, .. } => work.word(),
            Self::Stop(_) => "stop",
            Self::LetGo => "let go of the floating address",
            Self::TakeBack => "take part in the floating address",
        }
    }

    /// Whether it may only be done after the API was asked whether it is still wanted.
    pub(super) fn disturbs(&self) -> bool {
        matches!(self, Self::Give { work: Work::Install { .. } | Work::Reboot { .. }, .. } | Self::LetGo)
    }
}

/// What to tell the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Say {
    pub outcome: Outcome,
    pub message: Option<String>,
    pub part: Option<Part>,
    /// The last sign of progress.
    pub at: Timestamp,
}

impl Say {
    /// The same where what comes next could not be done yet: it has not begun.
    pub(super) fn put_off(self) -> Self {
        Self { part: None, ..self }
    }
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Next {
    pub act: Option<Act>,
    pub say: Option<Say>,
}

/// What comes next.
pub(super) fn next(case: &Case<'_>) -> Next {
    let phase = case.transaction.map(|t| t.phase);
    let disturbed = matches!(phase, Some(Phase::HandingOver | Phase::Draining | Phase::Installing | Phase::Rebooting));
    if case.away && !disturbed {
        return Next { act: Some(Act::TakeBack), say: None };
    }
    let Some(transaction) = case.transaction else { return act(ended(case)) };
    let begins = !matches!(transaction.phase, Phase::Verifying | Phase::Broken | Phase::Releasing);
    let with = With { case, transaction };
    if begins && case.noted != Some(&transaction.id) && with.ours().is_none() {
        return act(Some(Act::NoteServices));
    }
    match transaction.phase {
        Phase::Checking | Phase::Draining => Next::default(),
        Phase::Downloading => with.downloading(),
        Phase::HandingOver => with.handing_over(),
        Phase::Installing => with.installing(),
        Phase::Rebooting => with.rebooting(),
        Phase::Verifying | Phase::Broken => with.verifying(),
        // or the node would be asked at once for what it has
        Phase::Releasing if transaction.touched && case.lags => with.runs("looks for updates"),
        Phase::Releasing => with.say(Outcome::Done, None),
    }
}

/// What to say where something cannot be found out or done, for so long by now.
pub(super) fn stuck(why: &str, elapsed: Duration, now: Timestamp) -> Say {
    let outcome = if elapsed < STUCK { Outcome::Running } else { Outcome::Failed };
    Say { outcome, message: Some(why.to_owned()), part: None, at: now }
}

fn act(act: Option<Act>) -> Next {
    Next { act, say: None }
}

/// What goes on though nobody asks for it any more: an installation is never broken off, unless it hangs.
fn ended(case: &Case<'_>) -> Option<Act> {
    let (order, stand) = case.update.stand()?;
    let over = matches!(order.work, Work::Download { .. }) || case.update.hangs(order, case.up);
    (stand == Stand::Runs && over).then_some(Act::Stop(Seat::Update))
}

fn told(outcome: Outcome, message: Option<String>, part: Option<Part>, at: Timestamp) -> Next {
    Next { act: None, say: Some(Say { outcome, message, part, at }) }
}

struct With<'a> {
    case: &'a Case<'a>,
    transaction: &'a Transaction,
}

impl<'a> With<'a> {
    /// The order of this transaction that changes the host.
    fn ours(&self) -> Option<(&'a Order, Stand<'a>)> {
        self.case.update.stand().filter(|(order, _)| order.transaction.as_ref() == Some(&self.transaction.id))
    }

    fn say(&self, outcome: Outcome, message: Option<String>) -> Next {
        told(outcome, message, None, self.case.now)
    }

    fn ago(&self, time: SignedDuration) -> Timestamp {
        self.case.now.checked_sub(time).unwrap_or(self.case.now)
    }

    fn runs(&self, message: impl Into<String>) -> Next {
        self.say(Outcome::Running, Some(message.into()))
    }

    fn does(&self, message: impl Into<String>, act: Act) -> Next {
        Next { act: Some(act), ..self.runs(message) }
    }

    /// As long as the phase may be silent.
    fn patience(&self) -> Option<SignedDuration> {
        let deadline = self.transaction.deadline.as_ref()?;
        Some(deadline.0.duration_since(self.transaction.since.0)).filter(SignedDuration::is_positive)
    }

    /// What must end before the host is changed.
    fn busy(&self) -> Option<Next> {
        if self.case.look.runs() {
            return Some(self.runs("waits until it has looked for updates"));
        }
        if self.case.update.damaged && self.case.update.runs() {
            return Some(self.runs("waits until an update before this one has ended"));
        }
        let (order, _) = self.case.update.stand().filter(|(_, stand)| *stand == Stand::Runs)?;
        Some(match order.work {
            Work::Download { .. } => self.does("ends a download", Act::Stop(Seat::Update)),
            _ if self.case.update.hangs(order, self.case.up) => self.does("ends what hangs", Act::Stop(Seat::Update)),
            _ => self.runs("waits until an update before this one has ended"),
        })
    }

    fn give(&self, message: &str, work: Work) -> Next {
        let patience = match work {
            Work::Install { .. } => self.patience(),
            _ => None,
        };
        self.busy().unwrap_or_else(|| self.does(message, Act::Give { seat: Seat::Update, work, patience }))
    }

    fn downloading(&self) -> Next {
        let message = "downloads packages";
        match self.ours() {
            Some((Order { work: Work::Download { .. }, .. }, stand)) => match stand {
                Stand::Runs => self.runs(message),
                Stand::Ended(End::Done(_)) => self.say(Outcome::Done, None),
                Stand::Ended(End::Failed(why) | End::Refused(why)) => self.say(Outcome::Failed, Some(why.clone())),
                Stand::NotBegun if self.case.update.unit == Unit::Failed => self.not_started(),
                // as often as it takes, until the phase's deadline
                Stand::NotBegun | Stand::Died => self.download(message),
            },
            _ => self.download(message),
        }
    }

    fn download(&self, message: &str) -> Next {
        self.give(message, Work::Download { packages: self.transaction.packages.iter().cloned().collect() })
    }

    fn not_started(&self) -> Next {
        let why = format!("what was to be done could not be started on the host: journalctl -u {}", Seat::Update.unit());
        self.say(Outcome::Failed, Some(why))
    }

    fn handing_over(&self) -> Next {
        match self.case.floating {
            Floating::None | Floating::Elsewhere => self.say(Outcome::Done, None),
            Floating::Here => self.does("gives the floating address away", Act::LetGo),
            Floating::Lost => self.runs("no other server answers at the floating address yet"),
        }
    }

    fn parts(&self) -> impl Iterator<Item = Items> {
        let packages: BTreeSet<_> = self.transaction.packages.iter().cloned().collect();
        let patches: BTreeSet<_> = self.transaction.patches.iter().copied().collect();
        let patches = (!patches.is_empty()).then_some(Items::Patches(patches));
        patches.into_iter().chain((!packages.is_empty()).then_some(Items::Packages(packages)))
    }

    /// The first part that is not of those up to `done`, or the end.
    fn install_after(&self, done: Option<Part>) -> Next {
        match self.parts().find(|items| done.is_none_or(|done| items.part() > done)) {
            None => told(Outcome::Done, None, done, self.case.now),
            Some(items) => {
                let part = items.part();
                let next = self.give("installs", Work::Install { items, rules: self.case.rules.clone() });
                // what still waits has not begun, and cannot hang
                let part = matches!(next.act, Some(Act::Give { .. })).then_some(part);
                Next { say: next.say.map(|say| Say { part, ..say }), ..next }
            }
        }
    }

    fn installing(&self) -> Next {
        if self.case.update.damaged {
            let alive = self.ago(self.case.update.sign.map_or(SignedDuration::ZERO, |sign| self.case.up.saturating_sub(sign)));
            let why = "what the host was told to do cannot be understood any more, and so it is not known how it ended";
            let outcome = if self.case.update.runs() { Outcome::Running } else { Outcome::Failed };
            return told(outcome, Some(why.into()), None, alive);
        }
        let Some((order, stand)) = self.ours() else {
            // what was downloaded for it would have left its order: this host is another one, of the same name
            let ours = self.transaction.boot_id.as_ref().is_none_or(|boot| boot == self.case.boot);
            let why = "the host has been rebooted, and knows nothing of this update";
            return if ours { self.install_after(None) } else { self.say(Outcome::Failed, Some(why.into())) };
        };
        match &order.work {
            Work::Install { items, .. } => {
                let part = Some(items.part());
                match stand {
                    Stand::Runs => {
                        let hangs = self.case.update.hangs(order, self.case.up);
                        let alive = self.ago(self.case.update.silence(order, self.case.up));
                        let next = told(Outcome::Running, Some(format!("installs {}", items.part())), part, alive);
                        Next { act: hangs.then_some(Act::Stop(Seat::Update)), ..next }
                    }
                    Stand::Ended(End::Done(_)) => self.install_after(part),
                    // as if it had been left out from the beginning
                    Stand::Ended(End::Refused(why)) => {
                        let next = self.install_after(part);
                        Next { say: next.say.map(|say| Say { message: say.message.or_else(|| Some(why.clone())), ..say }), ..next }
                    }
                    Stand::Ended(End::Failed(why)) => told(Outcome::Failed, Some(why.clone()), part, self.case.now),
                    Stand::Died => told(Outcome::Crashed, Some(self.death(order)), part, self.case.now),
                    Stand::NotBegun if self.case.update.unit == Unit::Failed => self.not_started(),
                    // nothing was installed: from this part on
                    Stand::NotBegun => self.install_after(if items.part() == Part::Packages { Some(Part::Patches) } else { None }),
                }
            }
            Work::Recover { .. } => told(Outcome::Crashed, Some(self.death(order)), Some(Part::Packages), self.case.now),
            Work::Reboot { .. } => self.say(Outcome::Failed, Some("nothing is installed after the reboot".into())),
            _ => self.install_after(None),
        }
    }

    fn death(&self, order: &Order) -> String {
        if order.boot == *self.case.boot {
            "the program that installs ended in the middle, or hung".into()
        } else {
            "the host rebooted in the middle of the installation".into()
        }
    }

    fn rebooting(&self) -> Next {
        let asks = "asks for a reboot";
        let reboot = || self.give(asks, Work::Reboot { command: self.case.rules.reboot_command.clone() });
        let ours = self.ours();
        // the controller goes by the boot in which it asked for another one
        let before = self.transaction.boot_id.as_ref().or(ours.map(|(order, _)| &order.boot));
        if before.is_some_and(|before| before != self.case.boot) {
            return self.say(Outcome::Done, None);
        }
        let Some((Order { work: Work::Reboot { command }, up, .. }, stand)) = ours.filter(|(order, _)| order.boot == *self.case.boot)
        else {
            return reboot();
        };
        let (again, message) = match stand {
            Stand::Runs => (false, asks.to_owned()),
            // it may have put the reboot off: once more would put it off again
            Stand::Ended(End::Done(_)) if command.is_some() => (false, "waits for the reboot that was asked for".to_owned()),
            Stand::Ended(End::Failed(why)) => (true, format!("{asks}: {why}")),
            _ => (true, asks.to_owned()),
        };
        if again && self.case.up.saturating_sub(*up) >= REBOOT_AGAIN { reboot() } else { self.runs(message) }
    }

    /// Whether a reboot may still come, and why not where the host could not be asked for one.
    fn reboot_comes(&self, order: &Order, stand: Stand<'_>) -> Result<bool, String> {
        if !matches!(order.work, Work::Reboot { .. }) || order.boot != *self.case.boot {
            return Ok(false);
        }
        match stand {
            Stand::Runs => Ok(true),
            Stand::NotBegun => Ok(false),
            Stand::Ended(End::Failed(why)) => Err(format!("the host did not reboot: {why}")),
            Stand::Ended(_) | Stand::Died => Ok(self.case.up.saturating_sub(order.up) < REBOOT_COMES),
        }
    }

    fn verifying(&self) -> Next {
        let mut unmended = None;
        if let Some((order, stand)) = self.ours() {
            match self.reboot_comes(order, stand) {
                Ok(true) => return self.runs("a reboot was asked for, and may still come"),
                Ok(false) => {}
                Err(why) => unmended = Some(why),
            }
            match (&order.work, stand) {
                (Work::Download { .. }, Stand::Runs) => return self.does("ends a download", Act::Stop(Seat::Update)),
                (_, Stand::Runs) if self.case.update.hangs(order, self.case.up) => {
                    return self.does("ends what hangs", Act::Stop(Seat::Update));
                }
                (Work::Install { .. }, Stand::Runs) => return self.runs("still installs"),
                (Work::Recover { .. }, Stand::Runs) => return self.runs("mends packages"),
                (Work::Install { items: Items::Packages(_), .. }, Stand::Died) => return self.recover(order.patience),
                (Work::Recover { .. }, Stand::NotBegun) if self.case.update.unit != Unit::Failed => return self.recover(order.patience),
                // once is enough: what made the host crash may do so again
                (Work::Recover { .. }, Stand::Died | Stand::NotBegun) => unmended = Some("packages could not be mended".to_owned()),
                (Work::Recover { .. }, Stand::Ended(End::Failed(why))) => unmended = Some(why.clone()),
                _ => {}
            }
        }
        if !self.case.amiss.is_empty() {
            return self.runs(format!("not running as before: {}", self.case.amiss.join(", ")));
        }
        let Some(command) = &self.case.rules.gate_command else { return self.say(Outcome::Done, unmended) };
        let closed = "the gate command has not ended well yet";
        let asked = self.case.look.stand().filter(|(order, _)| {
            matches!(order.work, Work::Gate { .. })
                && order.transaction.as_ref() == Some(&self.transaction.id)
                && order.phase == Some(self.transaction.phase)
                && order.boot == *self.case.boot
        });
        match asked {
            Some((_, Stand::Ended(End::Done(_)))) => self.say(Outcome::Done, unmended),
            Some((_, Stand::Ended(End::Failed(why)))) if !self.gate_is_old() => self.runs(format!("{closed}: {why}")),
            _ if self.case.look.runs() || (asked.is_some() && !self.gate_is_old()) => self.runs(closed),
            _ => {
                let work = Work::Gate { command: command.clone() };
                self.does(closed, Act::Give { seat: Seat::Look, work, patience: None })
            }
        }
    }

    fn gate_is_old(&self) -> bool {
        self.case.look.order.is_none_or(|order| self.case.up.saturating_sub(order.up) >= GATE_AGAIN)
    }

    fn recover(&self, patience: Option<SignedDuration>) -> Next {
        let interrupted = self.case.update.journal.and_then(|j| j.transaction.clone());
        self.does("mends packages", Act::Give { seat: Seat::Update, work: Work::Recover { interrupted }, patience })
    }
}

/// When packages or patches were last installed here, or mended, by the agent.
pub(super) fn installed_at(update: &Held<'_>) -> Option<Timestamp> {
    let (order, stand) = update.stand()?;
    (matches!(order.work, Work::Install { .. } | Work::Recover { .. }) && stand != Stand::Runs).then_some(order.at)
}

/// What of this transaction was not installed, and nothing was changed, since it was refused.
pub(super) fn refused(transaction: &Transaction, update: &Held<'_>) -> Option<Part> {
    match update.stand()? {
        (Order { work: Work::Install { items, .. }, transaction: of, .. }, Stand::Ended(End::Refused(_)))
            if of.as_ref() == Some(&transaction.id) =>
        {
            Some(items.part())
        }
        _ => None,
    }
}

/// What the last download of this transaction found.
pub(super) fn downloaded<'a>(transaction: &Transaction, update: &Held<'a>) -> Option<&'a Yield> {
    match update.stand()? {
        (order, Stand::Ended(End::Done(found @ Yield::Downloaded { .. }))) if order.transaction.as_ref() == Some(&transaction.id) => {
            Some(found)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
