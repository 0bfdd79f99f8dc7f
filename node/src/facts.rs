use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use cluster::{Hostname, Interface, Subnet, Vip};
use serde::Deserialize;

use crate::{Context as _, Error, Manager, Result, run};

/// SELinux's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeLinux {
    /// There is none.
    Disabled,
    /// It only logs; files still carry contexts.
    Permissive,
    /// It forbids.
    Enforcing,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: Interface,
    /// What the driver calls it (`vxlan`, `bridge`, `veth`); None for a physical one.
    pub kind: Option<String>,
    /// Its hardware address.
    pub mac: Option<[u8; 6]>,
    /// Whether it is up.
    pub up: bool,
    /// Its global addresses with their subnets, in the kernel's order.
    pub addrs: Vec<Subnet>,
}

/// What a host is like.
#[derive(Debug, Clone)]
pub struct Facts {
    /// As the kernel has it; not always a valid node name.
    pub hostname: String,
    /// All interfaces.
    pub links: Vec<Link>,
    /// The interface of the default route of IPv4, then of IPv6.
    pub default_routes: [Option<Interface>; 2],
    /// Memory in bytes.
    pub memory: u64,
    /// SELinux's state.
    pub selinux: SeLinux,
    /// The package manager, if one is known.
    pub manager: Option<Manager>,
    /// Whether this runs as root.
    pub root: bool,
    /// Whether systemd runs this host (`sd_booted(3)`).
    pub systemd: bool,
}

/// Kinds that carry tunnels, as `ip -d link` names them.
const TUNNELS: [&str; 12] = ["vxlan", "tun", "wireguard", "ipip", "sit", "gre", "gretap", "ip6tnl", "vti", "dummy", "geneve", "ip6gre"];

impl Facts {
    /// Looks at the host. Changes nothing.
    ///
    /// # Errors
    /// When `ip` is missing or says what is not understood.
    pub async fn gather() -> Result<Self> {
        let links = parse_links(&ip(&["-j", "-d", "addr", "show"]).await?)?;
        let route4 = parse_route(&ip(&["-j", "-4", "route", "show", "default"]).await?)?;
        let route6 = parse_route(&ip(&["-j", "-6", "route", "show", "default"]).await?)?;
        let selinux = match fs::read_to_string("/sys/fs/selinux/enforce").as_deref().map(str::trim) {
            Ok("1") => SeLinux::Enforcing,
            Ok(_) => SeLinux::Permissive,
            Err(_) => SeLinux::Disabled,
        };
        let info = rustix::system::sysinfo();
        Ok(Self {
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            links,
            default_routes: [route4, route6],
            memory: info.totalram.saturating_mul(u64::from(info.mem_unit)),
            selinux,
            manager: Manager::detect(),
            root: rustix::process::geteuid().is_root(),
            systemd: fs::metadata("/run/systemd/system").is_ok(),
        })
    }

    /// The host's name as a node's.
    ///
    /// # Errors
    /// When Kubernetes would not take it.
    pub fn node_name(&self) -> Result<Hostname> {
        let name: Hostname =
            self.hostname.parse().map_err(|e| Error::from(e).hint("give the host a name of its own: hostnamectl set-hostname NAME"))?;
        Ok(name)
    }

    /// Whether an interface of this host has the address.
    pub fn has(&self, addr: IpAddr) -> bool {
        self.links.iter().any(|l| l.addrs.iter().any(|a| a.addr() == addr))
    }

    /// Whether there is a default route of the address's family.
    pub fn has_default_route(&self, like: IpAddr) -> bool {
        self.default_routes[usize::from(like.is_ipv6())].is_some()
    }

    /// The interface that the VIP belongs on and this node's own address there.
    ///
    /// Without `wanted`, it is the one whose subnet holds the VIP, never one of containers or a tunnel. The node's own
    /// address is `node_ip`, or the first one in the VIP's subnet; never the VIP itself.
    ///
    /// # Errors
    /// Invalid when there is none, or more than one, or what was asked for is not there.
    pub fn place(&self, vip: Vip, wanted: Option<&Interface>, node_ip: Option<IpAddr>) -> Result<(Interface, Subnet)> {
        let own = |l: &Link| -> Option<Subnet> {
            l.addrs
                .iter()
                .filter(|a| a.addr() != vip.addr() && a.trunc().contains(&vip.addr()))
                .find(|a| node_ip.is_none_or(|n| n == a.addr()))
                .copied()
        };
        let hosts: Vec<&Link> = self.links.iter().filter(|l| !is_container_or_tunnel(l)).collect();
        if let Some(n) = node_ip
            && n == vip.addr()
        {
            return Err(Error::invalid(format!("--node-ip {n} is the VIP; it must be an address of this node's own")));
        }
        if let Some(n) = node_ip
            && !self.has(n)
        {
            return Err(Error::invalid(format!("--node-ip {n} is not an address of this host")).hint(self.overview()));
        }
        let found: Vec<(&Link, Subnet)> = match wanted {
            Some(name) => {
                let link = self
                    .links
                    .iter()
                    .find(|l| &l.name == name)
                    .ok_or_else(|| Error::invalid(format!("this host has no interface {name}")).hint(self.overview()))?;
                own(link).map(|a| (link, a)).into_iter().collect()
            }
            None => hosts.iter().filter_map(|l| own(l).map(|a| (*l, a))).collect(),
        };
        match found.as_slice() {
            [(link, own)] => {
                vip.place(own)?;
                Ok((link.name.clone(), *own))
            }
            [] => {
                // the VIP may be the only address of its subnet, or the node's own
                if let Some(own) =
                    hosts.iter().flat_map(|l| &l.addrs).find(|a| a.addr() == vip.addr() && a.prefix_len() < a.max_prefix_len())
                {
                    vip.place(own)?;
                }
                let what = match wanted {
                    Some(name) => format!("the VIP {} lies outside every subnet of {name}", vip.addr()),
                    None => format!("the VIP {} lies outside the subnets of this host's interfaces", vip.addr()),
                };
                Err(Error::invalid(what).hint(self.overview()))
            }
            more => {
                let names: Vec<_> = more.iter().map(|(l, _)| l.name.to_string()).collect();
                Err(Error::invalid(format!("the VIP {} lies in the subnets of several interfaces: {}", vip.addr(), names.join(", ")))
                    .hint("choose one with --interface"))
            }
        }
    }

    fn overview(&self) -> String {
        let all: Vec<String> = self
            .links
            .iter()
            .filter(|l| !is_container_or_tunnel(l) && !l.addrs.is_empty())
            .map(|l| format!("{} {}", l.name, l.addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")))
            .collect();
        if all.is_empty() { "this host has no interface with an address".into() } else { format!("this host has {}", all.join(", ")) }
    }
}

fn is_container_or_tunnel(link: &Link) -> bool {
    link.name.is_container_or_tunnel() || link.kind.as_deref().is_some_and(|k| TUNNELS.contains(&k))
}

async fn ip(args: &[&str]) -> Result<String> {
    let out = run("ip", args, Duration::from_secs(10)).await.map_err(|e| e.hint("install the package iproute2 (iproute on RHEL)"))?;
    if out.success() { Ok(out.stdout) } else { Err(Error::failed(format!("ip {} failed: {}", args.join(" "), out.tail(2)))) }
}

#[derive(Deserialize)]
struct RawLink {
    ifname: String,
    #[serde(default)]
    flags: Vec<String>,
    address: Option<String>,
    linkinfo: Option<RawInfo>,
    #[serde(default)]
    addr_info: Vec<RawAddr>,
}

#[derive(Deserialize)]
struct RawInfo {
    info_kind: Option<String>,
}

#[derive(Deserialize)]
struct RawAddr {
    local: Option<IpAddr>,
    prefixlen: u8,
    scope: Option<String>,
}

fn parse_links(json: &str) -> Result<Vec<Link>> {
    // older iproute2 pads lists with empty objects
    let raw: Vec<serde_json::Value> = serde_json::from_str(json).context("cannot read what `ip -j addr` says")?;
    let raw = raw.into_iter().filter_map(|v| serde_json::from_value::<RawLink>(v).ok());
    Ok(raw
        .filter_map(|l| {
            let addrs = l.addr_info.iter().filter(|a| a.scope.as_deref() == Some("global"));
            Some(Link {
                name: l.ifname.parse().ok()?,
                kind: l.linkinfo.and_then(|i| i.info_kind),
                mac: l.address.as_deref().and_then(parse_mac),
                up: l.flags.iter().any(|f| f == "UP"),
                addrs: addrs.filter_map(|a| Subnet::new(a.local?, a.prefixlen).ok()).collect(),
            })
        })
        .collect())
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn parse_route(json: &str) -> Result<Option<Interface>> {
    #[derive(Deserialize)]
    struct Route {
        dev: Option<String>,
    }
    if json.trim().is_empty() {
        return Ok(None);
    }
    let routes: Vec<Route> = serde_json::from_str(json).context("cannot read what `ip -j route` says")?;
    Ok(routes.into_iter().find_map(|r| r.dev).and_then(|d| d.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ip -j -d addr show` of a node with the VIP, flannel and a docker bridge; shortened to what is read.
    const ADDR: &str = r#"[{"ifname":"lo","flags":["LOOPBACK","UP"],"address":"00:00:00:00:00:00","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8,"scope":"host"}]},{},
      {"ifname":"eth0","flags":["BROADCAST","UP"],"address":"02:79:00:00:00:01","addr_info":[{"local":"10.0.0.11","prefixlen":24,"scope":"global"},{"local":"10.0.0.10","prefixlen":24,"scope":"global"},{"local":"fd00::11","prefixlen":64,"scope":"global"},{"local":"fe80::1","prefixlen":64,"scope":"link"}]},
      {"ifname":"flannel.1","flags":["UP"],"linkinfo":{"info_kind":"vxlan"},"addr_info":[{"local":"10.42.0.0","prefixlen":32,"scope":"global"}]},
      {"ifname":"docker0","flags":[],"linkinfo":{"info_kind":"bridge"},"addr_info":[{"local":"172.17.0.1","prefixlen":16,"scope":"global"}]},
      {"ifname":"ovpn","flags":["UP"],"linkinfo":{"info_kind":"tun"},"addr_info":[{"local":"10.8.0.2","prefixlen":24,"scope":"global"}]}]"#;

    fn facts() -> Facts {
        Facts {
            hostname: "h1".into(),
            links: parse_links(ADDR).unwrap(),
            default_routes: [None, None],
            memory: 0,
            selinux: SeLinux::Disabled,
            manager: None,
            root: true,
            systemd: true,
        }
    }

    fn place(vip: &str, wanted: Option<&str>, node_ip: Option<&str>) -> Result<String, String> {
        let wanted = wanted.map(|w| w.parse().unwrap());
        facts()
            .place(vip.parse().unwrap(), wanted.as_ref(), node_ip.map(|n| n.parse().unwrap()))
            .map(|(i, a)| format!("{i} {a}"))
            .map_err(|e| e.what)
    }

    #[test]
    fn finds_the_hosts_own_interface_and_address() {
        assert_eq!(place("10.0.0.50", None, None).unwrap(), "eth0 10.0.0.11/24");
        assert_eq!(place("fd00::50", None, None).unwrap(), "eth0 fd00::11/64");
    }

    #[test]
    fn never_takes_the_vip_for_the_nodes_own_address() {
        assert_eq!(place("10.0.0.10", None, None).unwrap(), "eth0 10.0.0.11/24", "also on the second run, when the VIP is up");
        assert!(place("10.0.0.10", None, Some("10.0.0.10")).unwrap_err().contains("is the VIP"));
    }

    #[test]
    fn never_takes_a_container_or_tunnel_interface() {
        for vip in ["172.17.0.5", "10.8.0.9"] {
            assert!(place(vip, None, None).unwrap_err().contains("outside the subnets"), "{vip}");
        }
        assert_eq!(place("10.8.0.9", Some("ovpn"), None).unwrap(), "ovpn 10.8.0.2/24", "unless it is named");
    }

    #[test]
    fn says_what_is_wrong() {
        for (vip, wanted, node_ip, what) in [
            ("192.168.7.7", None, None, "outside the subnets"),
            ("10.0.0.50", Some("eth9"), None, "no interface eth9"),
            ("10.0.0.50", Some("docker0"), None, "outside every subnet of docker0"),
            ("10.0.0.50", None, Some("10.0.0.99"), "not an address of this host"),
            ("10.0.0.255", None, None, "broadcast"),
        ] {
            let e = place(vip, wanted, node_ip).unwrap_err();
            assert!(e.contains(what), "{vip}: {e}");
        }
    }

    #[test]
    fn the_only_address_cannot_float() {
        let mut f = facts();
        f.links[1].addrs = vec!["10.0.0.11/24".parse().unwrap()];
        let e = f.place("10.0.0.11".parse().unwrap(), None, None).unwrap_err().what;
        assert!(e.contains("own address"), "{e}");
    }

    #[test]
    fn reads_routes() {
        assert_eq!(parse_route("").unwrap(), None);
        assert_eq!(parse_route("[]").unwrap(), None);
        let r = parse_route(r#"[{"dst":"default","gateway":"10.0.0.1","dev":"eth0","flags":[]}]"#).unwrap();
        assert_eq!(r.unwrap().as_str(), "eth0");
    }
}
