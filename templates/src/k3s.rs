//! k3s: its unit, and what NetworkManager must leave alone.

use serde::Serialize;

use crate::{RenderError, render};

/// The unit of a server or an agent, where no package ships one.
#[derive(Debug, Serialize)]
pub struct Unit<'a> {
    /// `server` or `agent`.
    pub role: &'a str,
    /// The k3s binary.
    pub binary: &'a str,
    /// The environment file.
    pub env: &'a str,
    /// Whether the containers run in docker.
    pub docker: bool,
}

impl Unit<'_> {
    /// The unit file.
    pub fn render(&self) -> Result<String, RenderError> {
        render("k3s/unit.service", include_str!("../k3s/unit.service.tera"), self)
    }
}

/// NetworkManager's drop-in. It has no variables.
#[derive(Debug, Serialize)]
pub struct NetworkManager {}

impl NetworkManager {
    /// The file.
    pub fn render(&self) -> Result<String, RenderError> {
        render("k3s/networkmanager.conf", include_str!("../k3s/networkmanager.conf.tera"), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit() {
        let unit = Unit { role: "server", binary: "/usr/local/bin/k3s", env: "/etc/k3s/k3s-server.env", docker: false };
        insta::assert_snapshot!("server_unit", unit.render().unwrap());
        let unit = Unit { role: "agent", env: "/etc/k3s/k3s-agent.env", docker: true, ..unit };
        insta::assert_snapshot!("agent_unit_with_docker", unit.render().unwrap());
    }

    #[test]
    fn network_manager() {
        insta::assert_snapshot!(NetworkManager {}.render().unwrap());
    }
}
