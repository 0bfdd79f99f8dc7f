use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// What a host does in the cluster, in k3s's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the control plane and etcd, and may hold the VIP.
    Server,
    /// Runs pods only.
    Agent,
}

impl Role {
    /// `server` or `agent`.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Agent => "agent",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        match s {
            "server" => Ok(Self::Server),
            "agent" => Ok(Self::Agent),
            _ => Err(Invalid::new("role", s, "is neither server nor agent")),
        }
    }
}

/// What runs the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// k3s's own.
    #[default]
    Containerd,
    /// The host's docker, as in the reference.
    Docker,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Containerd { "containerd" } else { "docker" })
    }
}

impl std::str::FromStr for Runtime {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "containerd" => Ok(Self::Containerd),
            "docker" => Ok(Self::Docker),
            _ => Err(Invalid::new("runtime", text, "is neither containerd nor docker")),
        }
    }
}
