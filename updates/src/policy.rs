use std::fmt;
use std::str::FromStr;

use cluster::Invalid;

use crate::text::text_type;

/// How soon after its publication an update is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// At once.
    Fast,
    /// After two weeks.
    Slow,
    /// After six weeks.
    Stable,
}

impl Stage {
    /// All of them, the fastest first.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Slow, Self::Stable];

    /// `fast`, `slow` or `stable`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Slow => "slow",
            Self::Stable => "stable",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Stage {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let found = Self::ALL.into_iter().find(|stage| stage.as_str() == s);
        found.ok_or_else(|| Invalid::new("stage", s, "is none of fast, slow and stable"))
    }
}

text_type!(Stage, { "type": "string", "enum": ["fast", "slow", "stable"], "description": "fast: at once, slow: 14 days, stable: 42 days after an update's publication." });

/// What a node's label asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// This stage.
    Stage(Stage),
    /// The operator chooses a stage, once.
    #[default]
    Auto,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => stage.fmt(f),
            Self::Auto => f.pad("auto"),
        }
    }
}

impl FromStr for Policy {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        match (s, s.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(stage)) => Ok(Self::Stage(stage)),
            _ => Err(Invalid::new("policy", s, "is none of fast, slow, stable and auto")),
        }
    }
}

text_type!(Policy, { "type": "string", "enum": ["fast", "slow", "stable", "auto"], "description": "What the node's label maintenance.virtuozzo.io/auto-updates-policy asks for." });
