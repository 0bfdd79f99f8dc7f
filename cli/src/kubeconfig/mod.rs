//! Kubeconfigs: the one that points at the VIP, and how it gets into a file that holds others.

mod admin;
mod edit;
mod merge;
mod store;
mod yaml;

pub use admin::{Admin, Name};
pub use merge::Change;
pub use store::{Stored, store};
