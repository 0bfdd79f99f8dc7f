//! What both sides of a failover drill say to each other, carried by the lines of [`crate::protocol`].
//!
//! All hosts take part at the same time, each in a conversation of its own that lasts as long as the drill. Times are those of
//! the host's monotonic clock, in microseconds; the control side asks for it ([`Order::Time`]) and converts.
//!
//! ```text
//!   control                         node
//!   Job              →
//!                    ←              Here        what the host is; from now on Held whenever the VIP comes or goes
//!   any Order        →
//!                    ←              its answer, and Asked for each question while it asks
//!   (the end)        →              what was done to the host is undone, what it holds is given back
//!                    ←              Done
//! ```

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use cluster::{Role, Vip};
use serde::{Deserialize, Serialize};

/// What is done to the holder of the VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// keepalived is stopped.
    Keepalived,
    /// k3s's main process is killed.
    Kill,
    /// k3s's main process is stopped (SIGSTOP), as if it hung.
    Freeze,
    /// The VIP's interface is taken down.
    Link,
    /// The host reboots.
    Reboot,
}

impl Fault {
    /// All, the least first.
    pub const ALL: [Self; 5] = [Self::Keepalived, Self::Kill, Self::Freeze, Self::Link, Self::Reboot];

    /// Its name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keepalived => "keepalived",
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Link => "link",
            Self::Reboot => "reboot",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| format!("there is no fault {text:?}"))
    }
}

/// To take part.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Job {
    /// The floating address of the cluster's file.
    pub vip: Vip,
}

/// What a host is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// What does its clock say?
    Time,
    /// How is it itself?
    Look,
    /// How is the cluster, as seen from this server?
    Survey,
    /// Take the cluster's lease, for a fault of this kind.
    Take {
        /// Which.
        fault: Fault,
    },
    /// Make sure that the lease is still ours.
    Keep,
    /// Give the lease back.
    Give,
    /// Ask the API through the VIP, again and again, or stop asking.
    Ask {
        /// Which of both.
        on: bool,
    },
    /// Arm what undoes the fault, and let it happen.
    Disturb {
        /// Which.
        fault: Fault,
    },
    /// Undo the fault.
    Restore,
}

/// What a host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "drill", rename_all = "snake_case")]
pub enum Said {
    /// What it is.
    Here(Here),
    /// To [`Order::Time`].
    Time {
        /// What its clock says.
        us: i64,
    },
    /// The VIP came, or went.
    Held {
        /// When that was seen.
        us: i64,
        /// Whether it has it from then on.
        holds: bool,
    },
    /// A question to the API has come to its end.
    Asked {
        /// Which.
        question: Question,
        /// When it was asked.
        asked: i64,
        /// When the answer came; None = it was no good one, or none in time.
        answered: Option<i64>,
    },
    /// To [`Order::Look`].
    Looked(Looked),
    /// To [`Order::Survey`].
    Surveyed(Survey),
    /// To [`Order::Take`] and [`Order::Keep`].
    Taken,
    /// To [`Order::Give`].
    Given,
    /// To [`Order::Disturb`].
    Disturbed {
        /// When it began.
        us: i64,
    },
    /// To [`Order::Restore`].
    Restored,
}

/// A question to the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// `/version`: answered by an API server alone.
    Version,
    /// `/readyz`: needs etcd.
    Readyz,
}

/// What a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Here {
    /// Its node's name.
    pub name: String,
    /// Server or agent.
    pub role: Role,
    /// Its node's own address.
    pub address: IpAddr,
    /// Differs with each boot.
    pub boot: String,
    /// What its clock says.
    pub us: i64,
}

/// How a host is, by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    /// Whether it has the VIP.
    pub holds: bool,
    /// What is not as it must be.
    pub troubles: Vec<String>,
}

/// How the cluster is, as a server sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// What is not as it must be.
    pub troubles: Vec<String>,
    /// etcd's members with a vote.
    pub voters: usize,
    /// Those of them that are healthy.
    pub healthy: usize,
    /// The addresses of the members.
    pub servers: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FromNode, ToNode};

    #[test]
    fn lines_come_back_as_they_went() {
        for line in [
            r#"{"say":"drill","order":"time"}"#,
            r#"{"say":"drill","order":"disturb","fault":"freeze"}"#,
            r#"{"say":"job","job":"drill","vip":"10.0.0.10"}"#,
        ] {
            let back: ToNode = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&back).unwrap(), line);
        }
        let said = FromNode::Drill(Said::Asked { question: Question::Readyz, asked: 5, answered: None });
        let line = serde_json::to_string(&said).unwrap();
        assert_eq!(line, r#"{"say":"drill","drill":"asked","question":"readyz","asked":5,"answered":null}"#);
    }

    #[test]
    fn every_fault_is_known_by_its_name() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
        }
        assert!("quake".parse::<Fault>().is_err());
    }
}
