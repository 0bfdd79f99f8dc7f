//! What a check found, and the checks' names in their order.

use serde::{Deserialize, Serialize};

/// All checks, in the order in which they are shown: the host, its part in the cluster, the cluster, what lies between hosts.
pub const CHECKS: &[&str] = &[
    "ssh",
    "root",
    "systemd",
    "hostname",
    "default-route",
    "memory",
    "disk",
    "fsync",
    "clock",
    "selinux",
    "foreign-k3s",
    "role",
    "vendor-unit",
    "docker",
    "ports",
    "data-folder",
    "leftovers",
    "units",
    "files",
    "firewall",
    "firewall-rules",
    "keepalived",
    "keepalived-config",
    "vip",
    "vip-duplicate",
    "router-id",
    "vrrp-match",
    "certificates",
    "api-certificate",
    "api",
    "clock-offset",
    "nodes",
    "vip-not-a-node",
    "etcd-members",
    "etcd-space",
    "etcd-defrag",
    "same-cluster",
    "clocks",
    "reach",
];

/// How a check came out. What could not be found out is not a no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Fine.
    Ok,
    /// Worth knowing, or soon a failure.
    Warn,
    /// Not as it must be.
    Fail,
    /// It took too long, or could not be asked.
    Unknown,
}

impl Verdict {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
            Self::Unknown => "unknown",
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// One of [`CHECKS`].
    pub check: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found, or why nothing was.
    pub what: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    fn new(check: &str, verdict: Verdict, what: impl Into<String>, hint: Option<String>) -> Self {
        Self { check: check.to_owned(), verdict, what: what.into(), hint }
    }

    /// Fine.
    pub fn ok(check: &str, what: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, what, None)
    }

    /// Worth knowing.
    pub fn warn(check: &str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(check, Verdict::Warn, what, Some(hint.into()))
    }

    /// Not as it must be.
    pub fn fail(check: &str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(check, Verdict::Fail, what, Some(hint.into()))
    }

    /// It could not be found out.
    pub fn unknown(check: &str, why: impl Into<String>, hint: Option<String>) -> Self {
        Self::new(check, Verdict::Unknown, why, hint)
    }

    /// Its place among [`CHECKS`].
    pub fn rank(&self) -> usize {
        CHECKS.iter().position(|c| *c == self.check).unwrap_or(CHECKS.len())
    }
}

impl From<node::Finding> for Finding {
    fn from(f: node::Finding) -> Self {
        let verdict = match f.verdict {
            node::Verdict::Ok => Verdict::Ok,
            node::Verdict::Warn => Verdict::Warn,
            node::Verdict::Fail => Verdict::Fail,
        };
        Self::new(f.name, verdict, f.what, f.hint)
    }
}

/// A finding on one host of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OnHost {
    /// The host, as the file names it.
    pub host: String,
    /// What was found there.
    #[serde(flatten)]
    pub finding: Finding,
}
