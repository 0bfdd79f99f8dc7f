//! What a host says of its snapshots, and of what a restore would find.

use std::path::PathBuf;

use cluster::Role;
use fleet::protocol::Tickets;
use k3s::restore::Mark;
use k3s::{Quorum, Snapshot};
use serde::{Deserialize, Serialize};

/// A snapshot, and how its token is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// How its token is kept.
    pub token: Keeping,
}

/// How the token is kept that belongs to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeping {
    /// In a file that only root can read.
    Plain,
    /// Encrypted with age.
    Encrypted,
    /// Not at all.
    None,
}

/// What a restore would find on a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// Its node's name.
    pub node: String,
    /// Its part in the cluster; None = smartup has not set it up.
    pub role: Option<Role>,
    /// Whether its k3s runs.
    pub runs: bool,
    /// How many members its etcd counts; None = it does not answer.
    pub quorum: Option<Quorum>,
    /// Other members of its etcd that are healthy, by name.
    pub healthy: Vec<String>,
    /// How far a restore has come here.
    pub mark: Option<Mark>,
    /// The snapshot, if this host has it.
    pub found: Option<Found>,
}

/// A snapshot that could be restored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// It.
    pub snapshot: Snapshot,
    /// Why it cannot be restored; None = it can.
    pub trouble: Option<String>,
    /// Which token goes with it.
    pub token: Fitting,
    /// The encrypted token that is kept with it, in base64.
    pub sealed: Option<String>,
}

/// Which token goes with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fitting {
    /// The one that was given.
    Given,
    /// The one beside it.
    Kept,
    /// This host's own.
    Own,
    /// None of them: it was taken with another one.
    None,
}

/// A server that has been restored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restored {
    /// What was done.
    pub done: Vec<String>,
    /// Where k3s moved the old data.
    pub old: Vec<PathBuf>,
    /// What the others join with.
    pub tickets: Tickets,
}
