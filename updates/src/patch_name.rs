use std::fmt;
use std::str::FromStr;

use cluster::Invalid;

use crate::text::text_type;

/// A live patch of the kernel as `ReadyKernel` names it: `X-Y-rZ`, as in 123-4-r5 (7.4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchName([u32; 3]);

impl FromStr for PatchName {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let number = |part: &str| part.parse().ok().filter(|n| *n < 1_000_000_000);
        let parse = || {
            let (x, rest) = s.split_once('-')?;
            let (y, z) = rest.split_once("-r")?;
            Some(Self([number(x)?, number(y)?, number(z)?]))
        };
        let found = parse().filter(|p| p.to_string() == s);
        found.ok_or_else(|| Invalid::new("patch", s, "is not of the form X-Y-rZ, as in 123-4-r5"))
    }
}

impl fmt::Display for PatchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([x, y, z]) = self;
        write!(f, "{x}-{y}-r{z}")
    }
}

text_type!(
    PatchName,
    pattern: "^(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8})-r(0|[1-9][0-9]{0,8})$",
    max: 32,
    "A ReadyKernel patch, X-Y-rZ, as in 123-4-r5."
);
