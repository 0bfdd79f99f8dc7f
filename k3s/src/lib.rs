//! k3s on a host: its binary, unit and environment, how it is started and when it is ready, and how all of it is undone.

mod api;
mod binary;
mod diagnose;
mod drain;
mod env_file;
mod etcd;
#[cfg(test)]
mod fake_api;
mod flags;
mod forget;
mod joined;
mod lease;
mod preflight;
mod probe;
mod quorum;
mod ready;
mod remove;
pub mod restore;
mod settings;
mod skew;
mod snapshot;
mod snapshot_file;
mod steps;
mod unit;
mod upgrade;
mod volumes;
mod watch;

pub use api::{JoinTarget, Joined};
pub use binary::{Source, version_of};
pub use diagnose::{Cause, diagnose};
pub use drain::{
    CORDON, Cordon, Drained, Emptying, Obstacles, Options as DrainOptions, PodName, Rules as DrainRules, Standing, Stays, cordon, drain,
    obstacles, uncordon, uncordon_for,
};
pub use env_file::EnvFile;
pub use etcd::{Etcd, EtcdError, Health, Member, MemberId, MemberState, Removal, Vote, members, promote_here};
pub use flags::Flags;
pub use forget::forget;
pub use joined::settled;
pub use lease::{Holder, Lease};
pub use preflight::{cluster_preflight, fsync, preflight};
pub use probe::Probe;
pub use quorum::Quorum;
pub use ready::{NodeInfo, answers, client, in_words, nodes, transient};
pub use remove::undo;
pub use settings::{Settings, paths};
pub use skew::Version;
pub use snapshot::{Snapshot, SnapshotName, save, snapshots};
pub use snapshot_file::SnapshotFile;
pub use steps::{Steps, may_stop_here, plan};
pub use upgrade::{Upgrade, another_version};
pub use volumes::volumes_on;
