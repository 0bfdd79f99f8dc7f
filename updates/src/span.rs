use std::fmt;
use std::str::FromStr;

use cluster::Invalid;
use jiff::SignedDuration;

use crate::text::text_type;

/// How long a maintenance window is, in whole minutes: `1h30m`, `0h30m`, `2h` or `45m`; more than nothing, at most a week.
///
/// A week, because a longer one is more likely a slip of the pen (`130h` for `1h30m`): a window that opens each week would
/// never close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u16);

impl Span {
    const MAX: u16 = 7 * 24 * 60;

    /// So many minutes, at least one and at most a week of them.
    pub(crate) const fn minutes<const N: u16>() -> Self {
        const { assert!(N > 0 && N <= Self::MAX) };
        Self(N)
    }

    /// As a duration.
    pub fn get(self) -> SignedDuration {
        SignedDuration::from_mins(i64::from(self.0))
    }
}

impl FromStr for Span {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |why| Invalid::new("duration", s, why);
        let form = || bad("is not of the form 1h30m, 2h or 45m (hours and minutes, whole numbers)");
        let number = |digits: &str| {
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                Err(form())
            } else {
                digits.parse().map_err(|_| bad(LONG))
            }
        };
        let (hours, rest) = match s.split_once('h') {
            Some((hours, rest)) => (Some(number(hours)?), rest),
            None => (None, s),
        };
        let minutes: u16 = match (rest.strip_suffix('m'), hours) {
            (Some(minutes), _) => number(minutes)?,
            (None, Some(_)) if rest.is_empty() => 0,
            _ => return Err(form()),
        };
        if hours.is_some() && minutes > 59 {
            return Err(bad("has more than 59 minutes beside its hours"));
        }
        let total = hours.unwrap_or(0).checked_mul(60).and_then(|m: u16| m.checked_add(minutes)).ok_or_else(|| bad(LONG))?;
        match total {
            0 => Err(bad("must be more than nothing")),
            1..=Self::MAX => Ok(Self(total)),
            _ => Err(bad(LONG)),
        }
    }
}

const LONG: &str = "is longer than a week (168h)";

impl fmt::Display for Span {
    /// As the reference has it: `1h30m`, `0h45m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}h{:02}m", self.0 / 60, self.0 % 60)
    }
}

text_type!(
    Span,
    pattern: "^(([1-9][0-9]?|1[0-5][0-9]|16[0-7])h([0-5]?[0-9]m)?|0h([1-5][0-9]|0?[1-9])m|168h(00?m)?|[1-9][0-9]{0,3}m)$",
    max: 7,
    "How long the window is: hours and minutes, as in 1h30m, 0h45m or 2h. At most a week (168h)."
);
