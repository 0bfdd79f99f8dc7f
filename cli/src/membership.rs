//! What this host is in the cluster, as smartup remembers it between runs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cluster::{Interface, Port, Role, Runtime, Vip};
use fleet::protocol::VrrpWire;
use ipnet::IpNet;
use k3s::Flags;
use node::{Error, FileStep, Host, Result, read_optional};
use serde::{Deserialize, Serialize};

/// How this host was set up. Kept in smartup's own folder, mode 0600, since it may hold the VRRP password.
///
/// It is what `ticket` hands on, what `status` compares with, and the default of what a later run does not say: running
/// `init` again without `--auth-pass-file` must not change the protocol under a running cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// Server or agent.
    pub role: Role,
    /// Whether this host started the cluster.
    pub first: bool,
    /// The floating address with its prefix.
    pub vip: Vip,
    /// The API's port.
    pub port: Port,
    /// The interface of the VIP and the pod network.
    pub interface: Interface,
    /// This node's own address.
    pub node_ip: IpAddr,
    /// What runs the containers.
    pub runtime: Runtime,
    /// Whether the firewall is smartup's to set.
    pub firewall: bool,
    /// Pod and service networks.
    pub networks: Vec<IpNet>,
    /// What the servers agree on; none on an agent.
    pub vrrp: Option<VrrpWire>,
}

impl Membership {
    fn path() -> PathBuf {
        Path::new(Host::STATE).join("membership.json")
    }

    /// What was written down; None on a host that smartup has not set up.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load() -> Result<Option<Self>> {
        let path = Self::path();
        let Some(file) = read_optional(&path)? else { return Ok(None) };
        serde_json::from_slice(&file.content).map(Some).map_err(|e| {
            Error::failed(format!("{} is damaged", path.display()))
                .because(e)
                .hint("run init or join again with all its options, after moving that file away")
        })
    }

    /// The step that writes it down.
    ///
    /// # Errors
    /// None in practice.
    pub fn step(&self) -> Result<FileStep> {
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::failed("cannot write the membership").because(e))?;
        text.push('\n');
        Ok(FileStep::new(Self::path(), text).mode(0o600).mask(mask))
    }

    /// k3s's settings that follow from it. The token is not kept here, but in k3s's environment.
    pub fn k3s(&self, token: cluster::Token, args: Vec<String>) -> k3s::Settings {
        k3s::Settings {
            role: self.role,
            first: self.first,
            vip: self.vip,
            port: self.port,
            node_ip: self.node_ip,
            interface: self.interface.clone(),
            token,
            runtime: self.runtime,
            args,
        }
    }
}

fn mask(line: &str) -> String {
    match line.split_once("\"auth_pass\": ") {
        Some((indent, value)) if value.starts_with('"') => format!("{indent}\"auth_pass\": (not shown)"),
        _ => line.to_owned(),
    }
}

/// The flags that the environment file has now: what the user gave earlier goes on to count.
pub fn present_flags(role: Role) -> Flags {
    let text = std::fs::read_to_string(k3s::paths::env(role)).unwrap_or_default();
    k3s::EnvFile::parse(&text).get("K3S_EXTRA_FLAGS").map(|f| Flags::parse(&f)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use cluster::{AuthPass, Vrrp};

    use super::*;

    #[test]
    fn comes_back_as_it_was_and_hides_its_secret() {
        let vrrp = Vrrp::for_vip("10.0.0.10".parse().unwrap(), Some(AuthPass::parse("mypasswd").unwrap()), vec![]).unwrap();
        let m = Membership {
            role: Role::Server,
            first: true,
            vip: "10.0.0.10/24".parse().unwrap(),
            port: Port::API,
            interface: "eth0".parse().unwrap(),
            node_ip: "10.0.0.11".parse().unwrap(),
            runtime: Runtime::Docker,
            firewall: true,
            networks: vec!["10.42.0.0/16".parse().unwrap()],
            vrrp: Some(VrrpWire::of(&vrrp)),
        };
        let text = serde_json::to_string_pretty(&m).unwrap();
        let back: Membership = serde_json::from_str(&text).unwrap();
        assert_eq!(back.vrrp.unwrap().vrrp().unwrap().version.number(), 2);
        assert!(!text.lines().map(mask).any(|l| l.contains("mypasswd")));
    }
}
