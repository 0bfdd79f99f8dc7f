//! The two configurations of keepalived that are compared on the same hosts.

use anyhow::{Context as _, Result};
use integration::{Host, Lab};

use crate::cluster::vip;

const CONFIG: &str = "/etc/keepalived/keepalived.conf";
const CHECK: &str = "/etc/keepalived/check_apiserver.sh";
const DROP_IN: &str = "/etc/systemd/system/keepalived.service.d/10-smartup.conf";

/// Whose configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The sample for keepalived in Kubernetes' own guide to highly available control planes.
    Stock,
    /// What `smartup init` and `smartup join` write.
    Ours,
}

impl Side {
    /// Both, in the order of the table's columns.
    pub const ALL: [Self; 2] = [Self::Stock, Self::Ours];

    /// The column's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Ours => "smartup",
        }
    }
}

/// What smartup wrote on each host.
#[derive(Debug)]
pub struct Written(Vec<[String; 3]>);

impl Written {
    /// Reads it, before anything is put in its place.
    pub fn of(lab: &Lab) -> Result<Self> {
        let read = |host: &Host| -> Result<_> { Ok([host.read(CONFIG)?, host.read(CHECK)?, host.read(DROP_IN)?]) };
        Ok(Self(lab.hosts().iter().map(read).collect::<Result<_>>()?))
    }

    /// Puts a side's configuration in place on all hosts and starts keepalived with it, h1 first.
    pub fn put(&self, lab: &Lab, side: Side) -> Result<()> {
        for host in lab.hosts() {
            host.run(["systemctl", "stop", "keepalived"])?;
        }
        for (number, (host, [config, check, drop_in])) in lab.hosts().iter().zip(&self.0).enumerate() {
            match side {
                Side::Ours => {
                    host.write(CONFIG, 0o644, config)?;
                    host.write(CHECK, 0o755, check)?;
                    host.write(DROP_IN, 0o644, drop_in)?;
                }
                Side::Stock => {
                    host.write(CONFIG, 0o644, stock_config(number == 0))?;
                    host.write(CHECK, 0o755, STOCK_CHECK)?;
                    host.run(["rm", "-f", DROP_IN])?;
                }
            }
            host.run(["systemctl", "daemon-reload"])?;
            host.run(["systemctl", "start", "keepalived"]).with_context(|| format!("the {} side", side.name()))?;
        }
        Ok(())
    }
}

/// Version 2, an advert each second, a check each 3 s that fails ten times before it counts, and takes 2 from the
/// priority then; 101 on the first server and 100 on the others.
fn stock_config(first: bool) -> String {
    let (state, priority) = stock_rank(first);
    let sample = include_str!("../../../ansible/templates/keepalived.conf.j2");
    sample.replace("{{ state }}", state).replace("{{ priority }}", &priority.to_string()).replace("{{ vip }}", &vip().to_string())
}

/// How the first server, and each other, begins.
pub fn stock_rank(first: bool) -> (&'static str, u8) {
    if first { ("MASTER", 101) } else { ("BACKUP", 100) }
}

/// Whatever the API says is good enough, 401 and 500 too.
const STOCK_CHECK: &str = include_str!("../../../ansible/templates/check_apiserver.sh.j2");
