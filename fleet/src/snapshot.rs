//! Snapshots and restores: what a host is asked. It answers in the job's own form.

use serde::{Deserialize, Serialize};

use crate::protocol::Secret;

/// What a host is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum SnapshotJob {
    /// Take a snapshot, and keep the token with it.
    Save {
        /// What its name begins with.
        name: String,
        /// Whom the token is encrypted for (`age1…`); nobody = it is not.
        recipients: Vec<String>,
    },
    /// Say which there are.
    List,
    /// Say what a restore would find.
    Look {
        /// The snapshot's name or path.
        snapshot: String,
        /// The token that it was taken with; None = the one beside it, or this host's.
        token: Option<Secret>,
    },
    /// Stop k3s until another server has been restored.
    Stop,
    /// Restore this server.
    Restore {
        /// As in [`SnapshotJob::Look`].
        snapshot: String,
        /// As in [`SnapshotJob::Look`].
        token: Option<Secret>,
    },
    /// Join the restored cluster; an agent only starts anew.
    Rejoin {
        /// What it joins with.
        ticket: Secret,
    },
    /// The restore is through.
    Finish {
        /// Nodes that are not what they were: new hosts that have their names.
        forget: Vec<String>,
    },
}
