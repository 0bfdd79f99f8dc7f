//! What happens to the holder of the VIP, and how it ends.

use std::time::Duration;

use anyhow::Result;
use integration::Host;

/// A fault of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `systemctl stop keepalived`
    Stopped,
    /// The power is cut.
    Power,
    /// No process of the host runs on.
    Frozen,
    /// Nothing reaches the host or leaves it, and it does not notice.
    Partition,
    /// The interface loses its carrier.
    Cable,
    /// k3s's main process is killed; systemd starts it again.
    Killed,
    /// k3s's main process is stopped, as if it hung.
    Hung,
    /// The API server alone is stopped. (The lab's own k3s runs it as a process of its own.)
    ServerHung,
}

impl Fault {
    /// All, in the order of the table.
    pub const ALL: [Self; 8] =
        [Self::Stopped, Self::Power, Self::Frozen, Self::Partition, Self::Cable, Self::Killed, Self::Hung, Self::ServerHung];

    /// What happens.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "`systemctl stop keepalived`",
            Self::Power => "power cut",
            Self::Frozen => "freeze of all processes",
            Self::Partition => "silent partition",
            Self::Cable => "cable pulled",
            Self::Killed => "k3s killed (-9)",
            Self::Hung => "k3s hung (SIGSTOP)",
            Self::ServerHung => "API server alone hung (SIGSTOP)",
        }
    }

    /// How it ends.
    pub fn end(self) -> &'static str {
        match self {
            Self::Stopped => "keepalived started again",
            Self::Power => "the holder boots again",
            Self::Frozen => "thawed",
            Self::Partition => "partition healed",
            Self::Cable => "cable plugged in",
            Self::Killed => "k3s is back",
            Self::Hung => "k3s goes on",
            Self::ServerHung => "API server goes on",
        }
    }

    /// The aim for the outage.
    pub fn aim(self) -> Option<Duration> {
        match self {
            Self::Stopped => Some(Duration::from_millis(200)),
            Self::Power => Some(Duration::from_millis(500)),
            Self::Killed => Some(Duration::from_millis(300)),
            Self::Hung | Self::ServerHung => Some(Duration::from_secs(3)),
            Self::Frozen | Self::Partition | Self::Cable => None,
        }
    }

    /// Whether somebody must end it.
    pub fn stays(self) -> bool {
        self != Self::Killed
    }

    /// Makes it happen.
    pub fn begin(self, host: &Host) -> Result<()> {
        match self {
            Self::Stopped => host.run(["systemctl", "stop", "keepalived"]).map(drop),
            Self::Power => host.power_cut(),
            Self::Frozen => host.freeze(),
            Self::Partition => host.partition(),
            Self::Cable => host.cable_pull(),
            Self::Killed => signal(host, "KILL"),
            Self::Hung => signal(host, "STOP"),
            Self::ServerHung => signal_server(host, "STOP"),
        }
    }

    /// Ends it.
    pub fn finish(self, host: &Host) -> Result<()> {
        match self {
            Self::Stopped => host.run(["systemctl", "start", "keepalived"]).map(drop),
            Self::Power => host.power_on(),
            Self::Frozen => host.thaw(),
            Self::Partition => host.heal(),
            Self::Cable => host.cable_plug(),
            Self::Killed => Ok(()),
            Self::Hung => signal(host, "CONT"),
            Self::ServerHung => signal_server(host, "CONT"),
        }
    }
}

fn signal(host: &Host, signal: &str) -> Result<()> {
    host.run(["systemctl", "kill", "--kill-whom=main", "--signal", signal, "k3s-server"]).map(drop)
}

/// k3s may have ended meanwhile, and the API server with it: then there is nothing to continue.
fn signal_server(host: &Host, signal: &str) -> Result<()> {
    let line = "for p in /proc/[0-9]*; do
        [ \"$(cat $p/comm 2>/dev/null)\" != kube-apiserver ] || kill -$0 ${p#/proc/}
    done";
    host.run(["sh", "-c", line, signal]).map(drop)
}
