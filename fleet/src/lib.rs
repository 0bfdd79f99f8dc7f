//! The engine on other hosts: SSH, upload, the protocol, and whose turn it is.

pub mod apply;
pub mod drill;
pub mod order;
pub mod protocol;
pub mod session;
pub mod snapshot;
pub mod ssh;
pub mod upload;
