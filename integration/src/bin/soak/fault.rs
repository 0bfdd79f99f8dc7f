//! What is thrown at the cluster.

use std::fmt;

use anyhow::Result;
use clap::ValueEnum;
use integration::{Dice, Host};

use crate::site::Cluster;

/// A file that takes all the room of k3s's disk.
const FILLER: &str = "/var/lib/rancher/filler";

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// A host's power is cut
    Power,
    /// A host reboots
    Reboot,
    /// No process of a host runs on
    Freeze,
    /// A host's cable is pulled
    Cable,
    /// Nothing reaches a host or leaves it, and it does not notice
    Silence,
    /// Two hosts do not hear each other
    Cut,
    /// k3s is killed (SIGKILL)
    K3s,
    /// keepalived is killed (SIGKILL)
    Keepalived,
    /// The disk that k3s writes to is full
    Disk,
    /// The time of day jumps, for all that runs on a host then
    Clock,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", clap::builder::PossibleValue::get_name))
    }
}

impl Fault {
    /// What happens, for the report.
    pub fn title(self) -> &'static str {
        match self {
            Self::Power => "power cut",
            Self::Reboot => "reboot",
            Self::Freeze => "freeze of all processes",
            Self::Cable => "cable pulled",
            Self::Silence => "silent partition from all",
            Self::Cut => "partition between two hosts",
            Self::K3s => "k3s killed (-9)",
            Self::Keepalived => "keepalived killed (-9)",
            Self::Disk => "k3s's disk full",
            Self::Clock => "clock jump",
        }
    }

    /// Whether it lasts until somebody ends it.
    pub fn stays(self) -> bool {
        !matches!(self, Self::Reboot | Self::K3s | Self::Keepalived)
    }

    /// Whether there must be one holder while it lasts. A frozen host cannot let go, and one of two that do not hear each other
    /// has to think that the other is gone; that is what VRRP can know.
    pub fn lets_go(self) -> bool {
        !matches!(self, Self::Freeze | Self::Cut)
    }
}

/// A fault of certain hosts.
#[derive(Debug)]
pub struct Case<'a> {
    /// Its kind.
    pub fault: Fault,
    host: &'a Host,
    /// k3s's unit there.
    k3s: &'static str,
    /// The one that the host does not hear any more.
    other: Option<&'a Host>,
    /// By how much its clock jumps, seconds.
    jump: i64,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault.title(), self.host.name())?;
        self.other.map_or(Ok(()), |other| write!(f, " and {}", other.name()))?;
        if self.jump == 0 { Ok(()) } else { write!(f, " by {:+} s", self.jump) }
    }
}

impl<'a> Case<'a> {
    /// Draws the hosts of a fault.
    pub fn draw(fault: Fault, cluster: &'a Cluster, dice: &mut Dice) -> Self {
        let mut hosts: Vec<&Host> = match fault {
            // an agent has no keepalived, and nothing of k3s's that needs its disk at once
            Fault::Keepalived | Fault::Disk => cluster.servers.iter().collect(),
            _ => cluster.hosts().collect(),
        };
        let mut draw = || dice.take(&mut hosts).unwrap_or(&cluster.agent);
        let host = draw();
        let other = (fault == Fault::Cut).then(draw);
        let jump = if fault == Fault::Clock { jump(dice) } else { 0 };
        let k3s = if host.name() == cluster.agent.name() { "k3s-agent" } else { "k3s-server" };
        Self { fault, host, k3s, other, jump }
    }

    /// Makes it happen.
    pub fn begin(&self) -> Result<()> {
        let kill = |unit: &str| self.host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit]).map(drop);
        match self.fault {
            Fault::Power => self.host.power_cut(),
            Fault::Reboot => self.host.reboot(),
            Fault::Freeze => self.host.freeze(),
            Fault::Cable => self.host.cable_pull(),
            Fault::Silence => self.host.partition(),
            Fault::Cut => self.other.map_or(Ok(()), |other| self.host.cut(other)),
            Fault::K3s => kill(self.k3s),
            Fault::Keepalived => kill("keepalived"),
            Fault::Clock => self.host.shift_clock(self.jump),
            // large blocks, then what is left
            Fault::Disk => {
                self.host.sh(&format!("for b in 1M 4k; do dd if=/dev/zero bs=$b status=none >> {FILLER} || true; done")).map(drop)
            }
        }
    }

    /// Ends it.
    pub fn end(&self) -> Result<()> {
        match self.fault {
            Fault::Power => self.host.power_on(),
            Fault::Freeze => self.host.thaw(),
            Fault::Cable => self.host.cable_plug(),
            Fault::Silence => self.host.heal(),
            Fault::Cut => self.other.map_or(Ok(()), |other| self.host.mend(other)),
            Fault::Disk => self.host.run(["rm", FILLER]).map(drop),
            Fault::Clock => self.host.shift_clock(0),
            Fault::Reboot | Fault::K3s | Fault::Keepalived => Ok(()),
        }
    }
}

/// Half a minute to two hours, forward or back.
fn jump(dice: &mut Dice) -> i64 {
    let seconds = i64::try_from(30 + dice.below(7170)).unwrap_or(30);
    if dice.below(2) == 0 { seconds } else { -seconds }
}
