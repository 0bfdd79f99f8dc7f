use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::Invalid;

/// How long to wait for something: `90s`, `10m`, `1h30m`; never nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout(Duration);

impl Timeout {
    /// 10 minutes: how long a host may take to be ready, its downloads and images included.
    pub const READY: Self = Self(Duration::from_secs(600));

    /// As a duration.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Timeout {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Invalid::new("time", s, why);
        let parsed: jiff::SignedDuration = s.parse().map_err(|_| bad("is not a duration; write for example 90s, 10m or 1h30m"))?;
        match Duration::try_from(parsed) {
            Ok(d) if !d.is_zero() => Ok(Self(d)),
            _ => Err(bad("must be more than nothing")),
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!("1h30m".parse::<Timeout>().unwrap().get(), Duration::from_secs(5400));
        assert_eq!("10m".parse::<Timeout>().unwrap(), Timeout::READY);
        for bad in ["", "0s", "-5m", "10", "soon"] {
            assert!(bad.parse::<Timeout>().is_err(), "{bad}");
        }
    }
}
