use std::net::IpAddr;

use cluster::{Interface, Port, Priority, Version, Vrrp};
use ipnet::IpNet;
use node::{Error, Result};
use templates::keepalived::{CheckScript, Config, K3sDropIn, KeepalivedDropIn};

use crate::version::Release;

/// Where everything is.
pub mod paths {
    /// keepalived's configuration.
    pub const CONFIG: &str = "/etc/keepalived/keepalived.conf";
    /// The health check.
    pub const CHECK: &str = "/etc/keepalived/check_apiserver.sh";
    /// keepalived's unit.
    pub const UNIT: &str = "keepalived.service";
    /// What that unit lacks.
    pub const DROP_IN: &str = "/etc/systemd/system/keepalived.service.d/10-smartup.conf";
    /// The unit of a k3s server.
    pub const K3S_UNIT: &str = "k3s-server.service";
    /// What makes that unit tell keepalived.
    pub const K3S_DROP_IN: &str = "/etc/systemd/system/k3s-server.service.d/10-smartup-vip.conf";
    /// The folder of the state file; a name that SELinux's policy gives to keepalived.
    pub const STATE_FOLDER: &str = "/run/keepalived-smartup";
    /// 0 = k3s runs and is ready, 1 = it does not. On a tmpfs: absent after a boot.
    pub const STATE: &str = "/run/keepalived-smartup/api-down";
}

/// What a server needs to know to hold the VIP.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The floating address with its prefix.
    pub vip: IpNet,
    /// The interface it belongs on.
    pub interface: Interface,
    /// This node's own address there.
    pub node: IpAddr,
    /// The API's port.
    pub port: Port,
    /// What all servers agree on.
    pub vrrp: Vrrp,
}

impl Settings {
    /// keepalived's configuration, for a release of it.
    pub(crate) fn config(&self, release: Release) -> Result<String> {
        let peers: Vec<String> = self.vrrp.unicast.iter().filter(|p| **p != self.node).map(ToString::to_string).collect();
        Config {
            track_file: release.track_file(),
            realtime_limit: release.realtime_limit(),
            state_file: paths::STATE,
            check_script: paths::CHECK,
            interface: self.interface.as_str(),
            router_id: self.vrrp.router_id.get(),
            priority: Priority::for_node(self.node).get(),
            version: self.vrrp.version.number(),
            advert: &self.vrrp.advert.to_string(),
            auth_pass: match &self.vrrp.version {
                Version::V2(password) => Some(password.expose()),
                Version::V3 => None,
            },
            node: &self.node.to_string(),
            unicast_peers: &peers,
            vip: &self.vip.to_string(),
            ipv6: self.vip.addr().is_ipv6(),
        }
        .render()
        .map_err(internal)
    }

    /// Whether the configuration holds a password.
    pub(crate) fn has_password(&self) -> bool {
        matches!(self.vrrp.version, Version::V2(_))
    }

    pub(crate) fn check_script(&self) -> Result<String> {
        CheckScript { port: self.port.get() }.render().map_err(internal)
    }
}

pub(crate) fn drop_in() -> Result<String> {
    let runtime_directory = paths::STATE_FOLDER.trim_start_matches("/run/");
    KeepalivedDropIn { runtime_directory, state_file: paths::STATE }.render().map_err(internal)
}

pub(crate) fn k3s_drop_in() -> Result<String> {
    K3sDropIn { folder: paths::STATE_FOLDER, state_file: paths::STATE }.render().map_err(internal)
}

fn internal(e: templates::RenderError) -> Error {
    Error::failed("a template of smartup's own cannot be rendered; please report this").because(e)
}

#[cfg(test)]
pub(crate) mod tests {
    use cluster::AuthPass;

    use super::*;

    /// The settings of 10.0.0.11 for the VIP 10.0.0.10, or the same over IPv6.
    pub(crate) fn settings(ipv6: bool, password: Option<&str>, unicast: &[&str]) -> Settings {
        let (vip, node): (IpNet, IpAddr) = if ipv6 {
            ("fd00::10/64".parse().unwrap(), "fd00::11".parse().unwrap())
        } else {
            ("10.0.0.10/24".parse().unwrap(), "10.0.0.11".parse().unwrap())
        };
        let password = password.map(|p| AuthPass::parse(p).unwrap());
        let unicast = unicast.iter().map(|a| a.parse().unwrap()).collect();
        let vrrp = Vrrp::for_vip(vip.addr(), password, unicast).unwrap();
        Settings { vip, interface: "eth0".parse().unwrap(), node, port: Port::API, vrrp }
    }

    #[test]
    fn peers_are_the_others() {
        let text = settings(false, None, &["10.0.0.11", "10.0.0.12"]).config(Release::NEWEST).unwrap();
        assert!(text.contains("unicast_src_ip 10.0.0.11") && text.contains("        10.0.0.12\n"), "{text}");
        assert!(!text.contains("        10.0.0.11\n") && !text.contains("mcast_src_ip"), "{text}");
    }

    #[test]
    fn a_password_is_version_2s() {
        let with = settings(false, Some("mypasswd"), &[]);
        assert!(with.has_password());
        let text = with.config(Release::NEWEST).unwrap();
        assert!(text.contains("version 2") && text.contains("auth_pass mypasswd") && text.contains("advert_int 1\n"), "{text}");
    }

    #[test]
    fn the_state_folder_is_below_run() {
        assert!(drop_in().unwrap().contains("RuntimeDirectory=keepalived-smartup\n"));
    }
}
