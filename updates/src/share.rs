use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use cluster::Invalid;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How many of some nodes: a number, as in `3`, or a share of them, as in `10%`; never none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Share {
    /// So many.
    Nodes(u32),
    /// So many of a hundred, 1 to 100.
    Percent(u8),
}

/// More nodes than Kubernetes bears.
const MOST: u32 = 99_999;

impl Share {
    /// One node at a time (7.4).
    pub const ONE: Self = Self::Nodes(1);
    /// A tenth.
    pub const TENTH: Self = Self::Percent(10);

    /// So many of `nodes`. A share is rounded down, but at least one.
    pub fn of(self, nodes: usize) -> usize {
        match self {
            Self::Nodes(n) => usize::try_from(n).unwrap_or(usize::MAX),
            Self::Percent(share) => (nodes.saturating_mul(share.into()) / 100).max(1),
        }
    }
}

impl FromStr for Share {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let whole = |digits: &str, most: u32| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
            digits.parse().ok().filter(|n| plain && (1..=most).contains(n))
        };
        let found = match s.strip_suffix('%') {
            Some(share) => whole(share, 100).and_then(|n| u8::try_from(n).ok()).map(Self::Percent),
            None => whole(s, MOST).map(Self::Nodes),
        };
        found.ok_or_else(|| Invalid::new("share", s, "is neither a number of nodes, as in 3, nor a share of them, as in 10%"))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes(n) => n.fmt(f),
            Self::Percent(share) => write!(f, "{share}%"),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nodes(n) => n.serialize(serializer),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of nodes, as in 3, or a share of them, as in 10%")]
        enum Written {
            Number(u64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(n) => n.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Share {
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 1,
            "maximum": MOST,
            "pattern": "^([1-9][0-9]{0,4}|([1-9][0-9]?|100)%)$",
            "description": "A number of nodes, as in 3, or a share of them, as in 10%: rounded down, but at least one.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_down_but_is_never_none() {
        for (text, of_4, of_250) in [("1", 1, 1), ("3", 3, 3), ("10%", 1, 25), ("33%", 1, 82), ("1%", 1, 2), ("100%", 4, 250)] {
            let share: Share = text.parse().unwrap();
            assert_eq!((share.of(4), share.of(250), share.to_string()), (of_4, of_250, text.to_owned()));
            assert_eq!(serde_json::from_value::<Share>(serde_json::to_value(share).unwrap()).unwrap(), share);
        }
        assert_eq!(serde_json::from_str::<Share>("7").unwrap(), Share::Nodes(7));
        assert_eq!(serde_json::from_str::<Share>("\"7\"").unwrap(), Share::Nodes(7));
    }

    #[test]
    fn says_what_is_taken() {
        for bad in ["", "0", "0%", "101%", "-1", "+1", "01", "1.5", "%", "ten", "100000"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
            let Schema { .. } = Share::json_schema(&mut SchemaGenerator::default());
        }
        for bad in ["0", "-1", "1.5", "true", "\"all\""] {
            let why = serde_json::from_str::<Share>(bad).unwrap_err().to_string();
            assert!(why.contains("as in 3") && why.contains("as in 10%"), "{why}");
        }
    }
}
