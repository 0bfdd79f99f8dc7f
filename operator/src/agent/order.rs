//! What the agent lets the host do: orders, which are written down before they begin, and what came of them.
//!
//! An order is carried out by a unit of the host's own systemd, so that it outlives the agent and its pod. The program in it writes
//! to the journal that it begins before it changes anything, and how it ended. So there is always one answer to where an order
//! stands, whoever was killed at which moment.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use updates::api::{Answer, Command, HostRules, Part, Phase, RebootNeed};
use updates::{BootId, PackageName, PatchName, TransactionId};

/// Who carries orders out: one at a time each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// Changes the host.
    Update,
    /// Only asks.
    Look,
}

impl Seat {
    /// Both of them.
    pub(super) const ALL: [Self; 2] = [Self::Update, Self::Look];

    /// Its word in names of files and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Look => "look",
        }
    }

    /// Its unit on the host.
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Update => "smartup-update.service",
            Self::Look => "smartup-look.service",
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(super) enum Work {
    /// Find out what could be installed, if `listing`, and whether the host needs a reboot.
    Look { listing: bool, rules: HostRules },
    /// Ask whether the node may take pods again.
    Gate { command: Command },
    /// Fetch these packages.
    Download { packages: BTreeSet<PackageName> },
    /// Install these items and nothing else.
    Install { items: Items, rules: HostRules },
    /// Mend what an installation that ended in the middle has left behind.
    Recover { interrupted: Option<packages::Transaction> },
    /// Reboot the host, with this command or by systemd.
    Reboot { command: Option<Command> },
}

impl Work {
    /// Its kind.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Look { .. } => "look",
            Self::Gate { .. } => "ask the gate",
            Self::Download { .. } => "download",
            Self::Install { .. } => "install",
            Self::Recover { .. } => "mend",
            Self::Reboot { .. } => "reboot",
        }
    }
}

/// What is installed in one go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Items {
    Patches(BTreeSet<PatchName>),
    Packages(BTreeSet<PackageName>),
}

impl Items {
    pub(super) fn part(&self) -> Part {
        match self {
            Self::Patches(_) => Part::Patches,
            Self::Packages(_) => Part::Packages,
        }
    }
}

/// How long the host has been up, by the clock that nobody sets (`CLOCK_MONOTONIC`): within one boot, what tells how long something
/// takes. The time of day may jump, above all while what keeps it right is being updated.
pub(super) fn up() -> SignedDuration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    SignedDuration::new(now.tv_sec, i32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Something to do. For an installation, this is the intent: on the disk before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Order {
    /// When it was given; tells it from every other.
    pub at: Timestamp,
    /// The boot in which it was given.
    pub boot: BootId,
    /// How long the host had been up then.
    pub up: SignedDuration,
    /// What it is part of.
    pub transaction: Option<TransactionId>,
    /// In which phase of that.
    pub phase: Option<Phase>,
    /// After so long without a sign of progress, it hangs. None: it may be silent for ever.
    pub patience: Option<SignedDuration>,
    /// What to do.
    pub work: Work,
}

/// How far the order is that was given at `order`. Written by the program that carries it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Journal {
    /// Which.
    pub order: Timestamp,
    /// The exact transaction that was begun.
    pub transaction: Option<packages::Transaction>,
    /// How it ended; None: it has only begun.
    pub end: Option<End>,
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum End {
    /// Well.
    Done(Yield),
    /// Badly; why.
    Failed(String),
    /// It was not done, why, and nothing was changed. Of an installation only.
    Refused(String),
}

/// What an order gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(super) enum Yield {
    /// Of a look.
    Looked(Looked),
    /// Of a download.
    Downloaded {
        /// What is not installed, since it needs more than was asked for.
        left_out: Vec<PackageName>,
        /// Whether it stops what runs the pods.
        drain_first: bool,
    },
    /// Of an installation: the host may need a reboot now.
    Installed { reboot: RebootNeed },
    /// All else.
    Nothing {},
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Looked {
    /// None: not looked for, or the host has nothing that installs any; else what there is, or why that is unknown.
    pub packages: Option<Result<Vec<Found>, String>>,
    /// The same.
    pub patches: Option<Result<BTreeSet<PatchName>, String>>,
    /// Whether the host needs a reboot.
    pub reboot: RebootNeed,
}

/// A package that could be installed, and when it was published.
pub(super) type Found = (PackageName, Option<Timestamp>);

/// What the API calls it.
pub(super) fn need(reboot: packages::Reboot) -> RebootNeed {
    let (needed, because) = match reboot {
        packages::Reboot::Yes(why) => (Answer::Yes, Some(why)),
        packages::Reboot::No => (Answer::No, None),
        packages::Reboot::Unknown(why) => (Answer::Unknown, Some(why)),
    };
    RebootNeed { needed, because: because.map(|why| short(&why)) }
}

/// As much of a text as the API takes.
pub(super) fn short(text: &str) -> String {
    const LONGEST: usize = 1024;
    text.chars().take(LONGEST).collect()
}
