//! A failover rehearsal on a live cluster: one fault after the other on the present holder of the VIP, with what that does to the
//! API measured from elsewhere.
//!
//! [`control`] conducts, on the side where the user is; [`host`] is what takes part on each host, and [`fault`] what is done to the
//! holder and undone there, whatever becomes of the others. [`judge`] says whether a cluster bears it, and [`measure`] makes
//! figures of what was seen; both are pure.

pub mod control;
mod fault;
pub mod host;
mod judge;
mod measure;
pub mod report;
