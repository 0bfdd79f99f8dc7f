use std::fmt;
use std::str::FromStr;

use cluster::Invalid;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::text::text_type;

/// A time zone of the IANA database, as in Europe/Berlin. UTC unless given.
///
/// The database is the one in this program: the operator's image has no other, and it must agree with the commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// For calculations.
    pub fn get(&self) -> &TimeZone {
        &self.0
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl FromStr for Zone {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let database = TimeZoneDatabase::bundled();
        match database.get(s) {
            Ok(zone) if zone.iana_name().is_some() => Ok(Self(zone)),
            _ => {
                let names: Vec<_> = database.available().map(|n| n.to_string()).collect();
                let near = cluster::nearest(s, names.iter().map(String::as_str));
                let hint = near.map_or_else(|| "write for example Europe/Berlin or UTC".into(), |near| format!("did you mean {near}?"));
                Err(Invalid::new("time zone", s, format!("is not in the time zone database; {hint}")))
            }
        }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.iana_name().unwrap_or("UTC"))
    }
}

text_type!(
    Zone,
    pattern: "^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$",
    max: 64,
    "A time zone of the IANA database, as in Europe/Berlin. Default: UTC."
);
