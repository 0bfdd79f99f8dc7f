//! keepalived: its configuration, health check and drop-ins.

use serde::Serialize;

use crate::{RenderError, render};

/// keepalived's configuration on a server.
#[derive(Debug, Clone, Serialize)]
pub struct Config<'a> {
    /// How this version of keepalived calls a tracked file: `track_file`, or `vrrp_track_file` up to 2.0.
    pub track_file: &'a str,
    /// How it calls the limit of its real-time share: `vrrp_rlimit_rttime`, or `vrrp_rlimit_rtime` up to 2.0.
    pub realtime_limit: &'a str,
    /// The file that k3s's unit writes.
    pub state_file: &'a str,
    /// The health check.
    pub check_script: &'a str,
    /// The interface of the VIP and of the adverts.
    pub interface: &'a str,
    /// The virtual router's id.
    pub router_id: u8,
    /// The priority, 1 to 254.
    pub priority: u8,
    /// VRRP's version, 2 or 3.
    pub version: u8,
    /// Seconds between adverts.
    pub advert: &'a str,
    /// Version 2's password.
    pub auth_pass: Option<&'a str>,
    /// This node's own address, where adverts come from.
    pub node: &'a str,
    /// The other servers, where the network has no multicast; empty = multicast.
    pub unicast_peers: &'a [String],
    /// The VIP with its prefix.
    pub vip: &'a str,
    /// Whether the VIP is an IPv6 address.
    pub ipv6: bool,
}

impl Config<'_> {
    /// The file.
    pub fn render(&self) -> Result<String, RenderError> {
        render("keepalived/keepalived.conf", include_str!("../keepalived/keepalived.conf.tera"), self)
    }
}

/// The health check of the API.
#[derive(Debug, Clone, Serialize)]
pub struct CheckScript {
    /// The API's port.
    pub port: u16,
}

impl CheckScript {
    /// The script.
    pub fn render(&self) -> Result<String, RenderError> {
        render("keepalived/check_apiserver.sh", include_str!("../keepalived/check_apiserver.sh.tera"), self)
    }
}

/// What keepalived's unit lacks.
#[derive(Debug, Clone, Serialize)]
pub struct KeepalivedDropIn<'a> {
    /// The folder of the state file, below `/run`.
    pub runtime_directory: &'a str,
    /// The file that k3s's unit writes.
    pub state_file: &'a str,
}

impl KeepalivedDropIn<'_> {
    /// The drop-in.
    pub fn render(&self) -> Result<String, RenderError> {
        render("keepalived/keepalived.service.conf", include_str!("../keepalived/keepalived.service.conf.tera"), self)
    }
}

/// What k3s's unit tells keepalived.
#[derive(Debug, Clone, Serialize)]
pub struct K3sDropIn<'a> {
    /// The folder of the state file.
    pub folder: &'a str,
    /// The file that keepalived watches.
    pub state_file: &'a str,
}

impl K3sDropIn<'_> {
    /// The drop-in.
    pub fn render(&self) -> Result<String, RenderError> {
        render("keepalived/k3s-server.service.conf", include_str!("../keepalived/k3s-server.service.conf.tera"), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V3: Config<'_> = Config {
        track_file: "track_file",
        realtime_limit: "vrrp_rlimit_rttime",
        state_file: "/run/keepalived-smartup/api-down",
        check_script: "/etc/keepalived/check_apiserver.sh",
        interface: "eth0",
        router_id: 10,
        priority: 12,
        version: 3,
        advert: "0.1",
        auth_pass: None,
        node: "10.0.0.11",
        unicast_peers: &[],
        vip: "10.0.0.10/24",
        ipv6: false,
    };

    #[test]
    fn version_3() {
        insta::assert_snapshot!(V3.render().unwrap());
    }

    #[test]
    fn version_2_with_a_password_on_an_old_keepalived() {
        let config = Config {
            track_file: "vrrp_track_file",
            realtime_limit: "vrrp_rlimit_rtime",
            version: 2,
            advert: "1",
            auth_pass: Some("mypasswd"),
            ..V3
        };
        insta::assert_snapshot!(config.render().unwrap());
    }

    #[test]
    fn unicast() {
        let peers = ["10.0.0.12".to_owned(), "10.0.0.13".to_owned()];
        insta::assert_snapshot!(Config { unicast_peers: &peers, ..V3 }.render().unwrap());
    }

    #[test]
    fn ipv6() {
        insta::assert_snapshot!(Config { node: "fd00::11", vip: "fd00::10/64", ipv6: true, ..V3 }.render().unwrap());
    }

    #[test]
    fn check_script() {
        insta::assert_snapshot!(CheckScript { port: 9443 }.render().unwrap());
    }

    #[test]
    fn drop_ins() {
        let state_file = "/run/keepalived-smartup/api-down";
        insta::assert_snapshot!(
            "keepalived_drop_in",
            KeepalivedDropIn { runtime_directory: "keepalived-smartup", state_file }.render().unwrap()
        );
        insta::assert_snapshot!("k3s_drop_in", K3sDropIn { folder: "/run/keepalived-smartup", state_file }.render().unwrap());
    }
}
