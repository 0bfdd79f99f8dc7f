//! The floating address: the wire, VRRP settings, health check, and their steps.
//!
//! Every server runs keepalived with the same settings. One of them holds the VIP; it keeps it as long as it is healthy
//! (`nopreempt`): a server that comes back does not take it from a healthy holder, so that connections through the VIP are
//! not cut a second time. A server is healthy when
//! - k3s's unit says that it runs, which keepalived learns at once through a file that it watches;
//! - its API answers, asked each second: an API that hangs is left within three;
//! - all of the API is ready, or was within the last 16 seconds: while etcd elects a leader (up to ten seconds with k3s's
//!   election timeout of five) it is ready nowhere, and an address that every server gives up helps nobody.
//!
//! [`preflight`] looks at the wire before anything is changed, [`plan`] makes the steps, [`holder`] says who has the VIP.

mod existing;
mod holder;
mod judge;
mod preflight;
mod settings;
mod steps;
mod version;
pub mod wire;

pub use holder::{Holders, holder, holders};
pub use judge::{Seen, judge};
pub use preflight::{by_hand, preflight, wire_preflight};
pub use settings::{Settings, paths};
pub use steps::plan;
