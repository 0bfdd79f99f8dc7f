use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::{Ports, Rule};

/// What firewalld says of a zone; what it leaves out is empty.
#[derive(Debug, Clone, Default, zbus::DeserializeDict, zbus::Type)]
#[zbus(signature = "a{sv}")]
pub(crate) struct Settings {
    target: Option<String>,
    services: Option<Vec<String>>,
    ports: Option<Vec<(String, String)>>,
    protocols: Option<Vec<String>>,
    sources: Option<Vec<String>>,
    rules_str: Option<Vec<String>>,
}

/// What firewalld says of a service.
#[derive(Debug, Clone, Default, zbus::DeserializeDict, zbus::Type)]
#[zbus(signature = "a{sv}")]
pub(crate) struct Service {
    ports: Option<Vec<(String, String)>>,
    protocols: Option<Vec<String>>,
}

/// Services by their names.
pub(crate) type Services = BTreeMap<String, Service>;

impl Settings {
    /// The services that it lets in.
    pub fn services(&self) -> &[String] {
        self.services.as_deref().unwrap_or_default()
    }

    /// Whether what `rule` lets in is let in already: by itself, by a wider range or network, by a service, or since
    /// everything is.
    pub fn cover(&self, rule: &Rule, services: &Services) -> bool {
        let services = || self.services().iter().filter_map(|s| services.get(s));
        match rule {
            Rule::Source { net } => {
                let sources = self.sources.as_deref().unwrap_or_default();
                sources.iter().filter_map(|s| network(s)).any(|s| s.contains(net))
            }
            _ if self.target.as_deref() == Some("ACCEPT") => true,
            Rule::Vrrp => {
                let vrrp = |p: &Option<Vec<String>>| p.iter().flatten().any(|p| p == "vrrp" || p == "112");
                vrrp(&self.protocols) || self.rules_str.iter().flatten().any(|r| r == Rule::VRRP) || services().any(|s| vrrp(&s.protocols))
            }
            Rule::Port { ports, protocol } => {
                let own = self.ports.iter().flatten().chain(services().flat_map(|s| s.ports.iter().flatten()));
                let open: Vec<Ports> = own.filter(|(_, of)| of == protocol.as_str()).filter_map(|(p, _)| p.parse().ok()).collect();
                // several may do it together
                (ports.first..=ports.last).all(|port| open.iter().any(|o| o.cover(Ports::one(port))))
            }
        }
    }
}

/// A zone's source that is a network or an address; MAC addresses and sets of addresses are none.
pub(crate) fn network(source: &str) -> Option<IpNet> {
    source.parse().ok().or_else(|| source.parse().ok().map(|ip: std::net::IpAddr| ip.into()))
}

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    fn port(text: &str) -> Rule {
        let (ports, protocol) = text.split_once('/').unwrap();
        Rule::Port { ports: ports.parse().unwrap(), protocol: if protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp } }
    }

    fn pairs(text: &[&str]) -> Vec<(String, String)> {
        text.iter().map(|t| t.split_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap()).collect()
    }

    #[test]
    fn a_port_may_be_let_in_in_several_ways() {
        let mut services = Services::new();
        services.insert("etcd-server".into(), Service { ports: Some(pairs(&["2380/tcp"])), protocols: None });
        services.insert("etcd-client".into(), Service { ports: Some(pairs(&["2379/tcp"])), protocols: None });
        let zone = Settings {
            target: Some("default".into()),
            services: Some(vec!["ssh".into(), "etcd-server".into(), "etcd-client".into()]),
            ports: Some(pairs(&["10000-11000/tcp", "8472/udp", "53/sctp"])),
            ..Settings::default()
        };
        for there in ["10250/tcp", "8472/udp", "2379-2380/tcp", "2380/tcp"] {
            assert!(zone.cover(&port(there), &services), "{there}");
        }
        for missing in ["10250/udp", "9443/tcp", "2378-2379/tcp", "10999-11001/tcp", "22/tcp", "53/tcp"] {
            assert!(!zone.cover(&port(missing), &services), "{missing}");
        }
    }

    #[test]
    fn an_accepting_zone_lets_all_in_but_is_no_network() {
        let zone = Settings { target: Some("ACCEPT".into()), ..Settings::default() };
        assert!(zone.cover(&port("9443/tcp"), &Services::new()) && zone.cover(&Rule::Vrrp, &Services::new()));
        assert!(!zone.cover(&Rule::Source { net: "10.42.0.0/16".parse().unwrap() }, &Services::new()));
        let reject = Settings { target: Some("%%REJECT%%".into()), ..Settings::default() };
        assert!(!reject.cover(&Rule::Vrrp, &Services::new()));
    }

    #[test]
    fn vrrp_by_rule_or_by_protocol() {
        let by_rule = Settings { rules_str: Some(vec![Rule::VRRP.into()]), ..Settings::default() };
        let by_protocol = Settings { protocols: Some(vec!["vrrp".into()]), ..Settings::default() };
        let other = Settings { rules_str: Some(vec!["rule protocol value=\"vrrp\" drop".into()]), ..Settings::default() };
        assert!(by_rule.cover(&Rule::Vrrp, &Services::new()) && by_protocol.cover(&Rule::Vrrp, &Services::new()));
        assert!(!other.cover(&Rule::Vrrp, &Services::new()));
    }

    #[test]
    fn a_wider_network_covers_a_narrower_one() {
        let zone = Settings {
            sources: Some(vec!["00:11:22:33:44:55".into(), "ipset:pods".into(), "10.42.0.0/15".into(), "10.9.0.1".into()]),
            ..Settings::default()
        };
        let source = |s: &str| Rule::Source { net: s.parse().unwrap() };
        assert!(zone.cover(&source("10.42.0.0/16"), &Services::new()) && zone.cover(&source("10.43.0.0/16"), &Services::new()));
        assert!(!zone.cover(&source("10.44.0.0/16"), &Services::new()) && !zone.cover(&source("fd00::/64"), &Services::new()));
        assert!(zone.cover(&source("10.9.0.1/32"), &Services::new()));
        let (a, b) = ("10.0.0.0/8".parse().unwrap(), "10.79.0.0/24".parse().unwrap());
        assert!(overlap(&a, &b) && overlap(&b, &a) && !overlap(&b, &"10.80.0.0/24".parse().unwrap()));
    }
}
