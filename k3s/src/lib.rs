//! k3s on a host: its binary, unit and environment, how it is started and when it is ready, and how all of it is undone.

mod api;
mod binary;
mod diagnose;
mod env_file;
mod etcd;
mod flags;
mod joined;
mod preflight;
mod quorum;
mod ready;
mod remove;
mod settings;
mod steps;
mod unit;
mod watch;

pub use api::{JoinTarget, Joined};
pub use binary::{Source, version_of};
pub use diagnose::{Cause, diagnose};
pub use env_file::EnvFile;
pub use etcd::{Etcd, EtcdError, Health, Member, MemberId, MemberState, Removal, Vote, members, promote_here};
pub use flags::Flags;
pub use joined::settled;
pub use preflight::{cluster_preflight, preflight};
pub use quorum::Quorum;
pub use ready::{NodeInfo, answers, client, nodes};
pub use remove::undo;
pub use settings::{Settings, paths};
pub use steps::{Steps, plan};
