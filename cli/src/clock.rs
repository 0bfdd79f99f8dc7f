//! Another host's clock, read over a connection. Pure.

/// By how much a host's clock differs from ours, in whatever unit the readings had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// By how much it is ahead of ours.
    pub ahead: i64,
    /// By how much that may be wrong: half of the round trip.
    pub error: i64,
}

impl Clock {
    /// Asked and answered in our time, `read` in the host's, somewhere between the two (as in NTP, RFC 5905, 8).
    pub fn measured(asked: i64, read: i64, answered: i64) -> Self {
        Self { ahead: read - i64::midpoint(asked, answered), error: (answered - asked + 1) / 2 }
    }

    /// A time of the host's in ours.
    pub fn ours(self, theirs: i64) -> i64 {
        theirs - self.ahead
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However long the way there and back is, the true time lies within the error.
        #[test]
        fn a_clock_is_right_within_its_error(ahead in -1_000_000_i64..1_000_000, there in 0_i64..50_000, back in 0_i64..50_000) {
            let clock = Clock::measured(7_000_000, 7_000_000 + there + ahead, 7_000_000 + there + back);
            prop_assert!((clock.ours(9_000_000 + ahead) - 9_000_000).abs() <= clock.error);
        }
    }
}
