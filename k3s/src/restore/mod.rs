//! The steps of a restore from a snapshot of etcd: one server becomes a cluster of one with the snapshot's data; the others lose
//! theirs, which is set aside, and join it. The [`Mark`] tells how far a host has come, so that a run that was cut off is continued.

mod aside;
mod halt;
mod mark;
mod place;
mod reset;

pub use aside::AsideStep;
pub use halt::HaltStep;
pub use mark::{Mark, MarkStep, Stage};
pub use place::place;
pub use reset::{ResetStep, old_data};
