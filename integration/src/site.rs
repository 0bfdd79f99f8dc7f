//! One lab as it lies on the disk: who it is, what its hosts are, where their things are.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// The lab's own network, the same in every lab: network namespaces keep them apart.
pub const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 0);
/// Prefix length of [`NETWORK`].
pub const PREFIX: u8 = 24;
/// The IPv6 network on the same link.
pub const NETWORK6: Ipv6Addr = Ipv6Addr::new(0xfd79, 0, 0, 0, 0, 0, 0, 0);
/// Prefix length of [`NETWORK6`].
pub const PREFIX6: u8 = 64;
/// Addresses end in this plus the host's number.
const FIRST: u8 = 10;
/// The last host's number; in a lab of fewer than 90, addresses from .100 on are for the probe and for VIPs.
pub(crate) const MOST_HOSTS: u8 = 100;
const GATEWAY: u8 = 1;
const PROBE: u8 = 100;

/// The lab's place on the wire that is not a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Address {
    /// The same digits stand at the end of both: `10.79.0.11` and `fd79::11`.
    fn ending_in(number: u8) -> Self {
        let [a, b, c, _] = NETWORK.octets();
        let mut groups = NETWORK6.segments();
        groups[7] = u16::from(number / 100) << 8 | u16::from(number / 10 % 10) << 4 | u16::from(number % 10);
        Self { v4: Ipv4Addr::new(a, b, c, number), v6: Ipv6Addr::from(groups) }
    }

    pub(crate) fn gateway() -> Self {
        Self::ending_in(GATEWAY)
    }

    pub(crate) fn probe() -> Self {
        Self::ending_in(PROBE)
    }

    pub(crate) fn host(number: u8) -> Self {
        let ending = FIRST + number;
        Self::ending_in(if ending < PROBE { ending } else { ending + 1 })
    }
}

/// One host's part of the plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HostPlan {
    /// 1 for h1.
    pub(crate) number: u8,
    /// The trees its root is laid over, topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// The size of a disk for k3s alone, MiB; without one k3s has the machine's.
    pub(crate) k3s_disk: Option<u32>,
}

impl HostPlan {
    pub(crate) fn name(&self) -> String {
        format!("h{}", self.number)
    }

    pub(crate) fn address(&self) -> Address {
        Address::host(self.number)
    }
}

/// What `lab.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Whether the lab stays when the process that made it ends.
    pub(crate) kept: bool,
    pub(crate) hosts: Vec<HostPlan>,
}

/// A lab's folder.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) id: String,
    pub(crate) folder: PathBuf,
}

impl Site {
    /// The folder need not be there. Ids become names of namespaces and groups, so they are short and plain.
    pub(crate) fn new(state: &Path, id: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(!id.is_empty() && id.len() <= 20 && id.chars().all(plain), "a lab's name is up to 20 of a-z, 0-9 and '-', not {id:?}");
        Ok(Self { id: id.to_owned(), folder: state.join(id) })
    }

    /// The lab in this folder.
    pub(crate) fn at(folder: &Path) -> Result<Self> {
        let state = folder.parent().context("a lab's folder has a parent")?;
        let id = folder.file_name().and_then(|name| name.to_str()).context("a lab's folder has a name")?;
        Self::new(state, id)
    }

    pub(crate) fn plan(&self) -> Result<Plan> {
        let file = self.folder.join("lab.json");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a lab's plan", file.display()))
    }

    pub(crate) fn write_plan(&self, plan: &Plan) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).context("cannot write the lab's plan")?;
        serde_json::to_writer(&mut file, plan).context("cannot write the lab's plan")?;
        file.persist(self.folder.join("lab.json")).context("cannot put the lab's plan in place")?;
        Ok(())
    }

    /// Held by the process that owns the lab.
    pub(crate) fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// The private key that opens every host over ssh.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.join("key")
    }

    /// The topmost layer that all hosts of this lab share.
    pub(crate) fn layer(&self) -> PathBuf {
        self.folder.join("layer")
    }

    /// The folder with one host's disk.
    pub(crate) fn host(&self, host: &str) -> PathBuf {
        self.folder.join("hosts").join(host)
    }

    /// What the host's machine said while it booted, and why it ended.
    pub(crate) fn console(&self, host: &str) -> PathBuf {
        self.folder.join(format!("{host}.console"))
    }

    /// There while the host's cable is out, also across its reboots.
    pub(crate) fn unplugged(&self, host: &str) -> PathBuf {
        self.folder.join(format!("{host}.unplugged"))
    }

    /// The name of one of the lab's network namespaces.
    pub(crate) fn namespace(&self, part: &str) -> String {
        format!("lab.{}.{part}", self.id)
    }

    pub(crate) fn namespace_file(&self, part: &str) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_end_alike_and_no_host_has_the_probes() {
        assert_eq!(Address::host(1).v4.to_string(), "10.79.0.11");
        assert_eq!(Address::host(1).v6.to_string(), "fd79::11");
        assert_eq!(Address::host(100).v6.to_string(), "fd79::111");
        assert_eq!(Address::probe().v6.to_string(), "fd79::100");
    }

    #[test]
    fn ids_are_plain() {
        let state = Path::new("/state");
        assert!(Site::new(state, "demo-2").is_ok());
        for bad in ["", "a.b", "a/b", "Demo", "a-name-that-is-far-too-long"] {
            assert!(Site::new(state, bad).is_err(), "{bad}");
        }
    }
}
