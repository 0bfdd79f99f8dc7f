use std::net::IpAddr;

use cluster::{Interface, Port, Role, Runtime, Token, Vip};
use ipnet::IpNet;

use crate::Flags;

/// Where k3s and the reference keep things.
pub mod paths {
    use std::path::{Path, PathBuf};

    use cluster::Role;

    /// k3s's data.
    pub const DATA: &str = "/var/lib/rancher/k3s";
    /// What joiners need: `K10<hash>::server:<secret>`.
    pub const NODE_TOKEN: &str = "/var/lib/rancher/k3s/server/node-token";
    /// What agents need; a file of its own where `--agent-token` is set, otherwise the same secret.
    pub const AGENT_TOKEN: &str = "/var/lib/rancher/k3s/server/agent-token";
    /// The CA that the API's certificate is signed by, as `/cacerts` answers it.
    pub const SERVER_CA: &str = "/var/lib/rancher/k3s/server/tls/server-ca.crt";
    /// The same on an agent.
    pub const AGENT_CA: &str = "/var/lib/rancher/k3s/agent/server-ca.crt";
    /// etcd's data: there from the first start of a server.
    pub const ETCD: &str = "/var/lib/rancher/k3s/server/db/etcd";
    /// The administrator's kubeconfig on a server.
    pub const KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";
    /// The kubelet's kubeconfig: all that an agent has.
    pub const KUBELET_CONFIG: &str = "/var/lib/rancher/k3s/agent/kubelet.kubeconfig";
    /// Upstream's configuration file, which smartup does not use.
    pub const UPSTREAM_CONFIG: &str = "/etc/rancher/k3s/config.yaml";
    /// Where the binary goes when smartup installs it.
    pub const BINARY: &str = "/usr/local/bin/k3s";

    /// The CA of the cluster that k3s has become part of in this role; there from then on.
    pub fn ca(role: Role) -> &'static Path {
        Path::new(if role == Role::Server { SERVER_CA } else { AGENT_CA })
    }

    /// What this host asks the API with in this role.
    pub fn kubeconfig(role: Role) -> &'static Path {
        Path::new(if role == Role::Server { KUBECONFIG } else { KUBELET_CONFIG })
    }

    /// The unit of a role, in the reference's names (7.4.1).
    pub fn unit(role: Role) -> String {
        format!("k3s-{role}.service")
    }

    /// The unit's environment (7.4.1).
    pub fn env(role: Role) -> PathBuf {
        format!("/etc/k3s/k3s-{role}.env").into()
    }
}

/// How k3s should be on this host.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Server or agent.
    pub role: Role,
    /// Whether this host starts the cluster rather than joining one.
    pub first: bool,
    /// The floating address.
    pub vip: Vip,
    /// The API's port.
    pub port: Port,
    /// This node's own address.
    pub node_ip: IpAddr,
    /// The interface that flannel sends from.
    pub interface: Interface,
    /// The join token; on the first server the bare secret.
    pub token: Token,
    /// What runs the containers.
    pub runtime: Runtime,
    /// More flags of the user's, after smartup's own.
    pub args: Vec<String>,
}

impl Settings {
    /// The flags that k3s needs beyond the environment: there is no variable for them.
    pub fn flags(&self) -> Flags {
        let mut flags = Flags::default();
        if self.role == Role::Server {
            if self.first {
                flags.add("--cluster-init");
            }
            flags.add(&format!("--tls-san={}", self.vip.addr()));
            flags.add(&format!("--https-listen-port={}", self.port));
        }
        flags.add(&format!("--node-ip={}", self.node_ip));
        flags.add(&format!("--flannel-iface={}", self.interface));
        if self.runtime == Runtime::Docker {
            flags.add("--docker");
        }
        if self.node_ip.is_ipv6() && self.role == Role::Server {
            // k3s's own defaults are IPv4 and do not go with an IPv6 node
            for net in default_cidrs(true) {
                let name = if net.prefix_len() == 56 { "--cluster-cidr" } else { "--service-cidr" };
                flags.add(&format!("{name}={net}"));
            }
        }
        flags.apply(&self.args);
        flags
    }

    /// Where joiners reach the API: through the VIP.
    pub fn url(&self) -> String {
        self.vip.api_url(self.port)
    }

    /// The pod and service networks, whose packets the firewall must trust.
    pub fn cidrs(&self) -> Vec<IpNet> {
        let flags = self.flags();
        let given: Vec<IpNet> = ["--cluster-cidr", "--service-cidr"]
            .iter()
            .zip(default_cidrs(self.node_ip.is_ipv6()))
            .flat_map(|(name, default)| match flags.value(name) {
                Some(v) => v.split(',').filter_map(|c| c.parse().ok()).collect(),
                None => vec![default],
            })
            .collect();
        given
    }
}

/// k3s's defaults for IPv4 (pods 10.42.0.0/16, services 10.43.0.0/16), and unique local ones of the same pattern for IPv6.
fn default_cidrs(ipv6: bool) -> [IpNet; 2] {
    use std::net::{Ipv4Addr, Ipv6Addr};
    if ipv6 {
        [
            IpNet::new_assert(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0).into(), 56),
            IpNet::new_assert(Ipv6Addr::new(0xfd00, 0x43, 0, 0, 0, 0, 0, 0).into(), 112),
        ]
    } else {
        [IpNet::new_assert(Ipv4Addr::new(10, 42, 0, 0).into(), 16), IpNet::new_assert(Ipv4Addr::new(10, 43, 0, 0).into(), 16)]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn settings(role: Role, first: bool) -> Settings {
        Settings {
            role,
            first,
            vip: "10.0.0.10/24".parse().unwrap(),
            port: Port::API,
            node_ip: "10.0.0.11".parse().unwrap(),
            interface: "eth0".parse().unwrap(),
            token: Token::parse("s3cret").unwrap(),
            runtime: Runtime::Containerd,
            args: vec![],
        }
    }

    #[test]
    fn the_vip_is_never_the_nodes_address_and_always_in_the_certificate() {
        let flags = settings(Role::Server, true).flags().to_string();
        assert_eq!(flags, "--cluster-init --tls-san=10.0.0.10 --https-listen-port=9443 --node-ip=10.0.0.11 --flannel-iface=eth0");
        let flags = settings(Role::Agent, false).flags().to_string();
        assert_eq!(flags, "--node-ip=10.0.0.11 --flannel-iface=eth0");
    }

    #[test]
    fn networks_follow_the_users_flags() {
        let mut s = settings(Role::Server, true);
        assert_eq!(s.cidrs().iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.42.0.0/16", "10.43.0.0/16"]);
        s.args = vec!["--cluster-cidr=10.99.0.0/16".into()];
        assert_eq!(s.cidrs()[0].to_string(), "10.99.0.0/16");
        s.node_ip = "fd00::11".parse().unwrap();
        s.args.clear();
        assert_eq!(s.cidrs().iter().map(ToString::to_string).collect::<Vec<_>>(), ["fd00:42::/56", "fd00:43::/112"]);
    }
}
