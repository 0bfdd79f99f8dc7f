//! The clock that the machine, its hosts and their systemd share.

use std::time::Duration;

/// `CLOCK_MONOTONIC`, from which systemd takes the timestamps of its units.
pub fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}
