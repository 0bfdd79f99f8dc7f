use std::process::ExitCode;

use clap::Args;
use cluster::{Role, Token};
use fleet::protocol::Tickets;
use node::{Context as _, Error, Result};

use super::join::RoleArg;
use crate::membership::Membership;

/// Print the line that a new host joins with (a secret)
///
/// It holds the floating address, the API's port, the token that pins the cluster's CA and, for a server, the VRRP settings.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    smartup ticket --role server > server.ticket && chmod 600 server.ticket\n  \
    smartup ticket --role agent | ssh node4 smartup join --role agent --ticket -")]
pub struct Ticket {
    /// What the new host shall be
    #[arg(long, value_enum)]
    role: RoleArg,
}

impl Ticket {
    #[expect(clippy::unused_async, reason = "all commands that look at the host are the same")]
    pub async fn run(self) -> Result<ExitCode> {
        let membership = Membership::load()?
            .filter(|m| m.role == Role::Server)
            .ok_or_else(|| Error::refused("this host is not a server of a cluster that smartup set up").hint(HINT))?;
        println!("{}", ticket(&membership, self.role.into())?.expose()?);
        Ok(ExitCode::SUCCESS)
    }
}

const HINT: &str = "run it as root on a server that `smartup init` or `smartup join --role server` has set up";

/// The ticket for a role, on a server whose k3s is ready.
fn ticket(membership: &Membership, role: Role) -> Result<cluster::Ticket> {
    // newer releases of k3s have a token of its own for agents, which is not enough to become a server
    let agents = std::path::Path::new(k3s::paths::AGENT_TOKEN);
    let path = if role == Role::Agent && agents.exists() { k3s::paths::AGENT_TOKEN } else { k3s::paths::NODE_TOKEN };
    let text = std::fs::read_to_string(path)
        .context(format!("cannot read {path}"))
        .map_err(|e| e.hint("k3s writes it when it is ready: smartup status says whether it is"))?;
    let vrrp = match (role, &membership.vrrp) {
        (Role::Agent, _) => None,
        (Role::Server, Some(saved)) => {
            let mut vrrp = saved.vrrp()?;
            if !vrrp.unicast.is_empty() && !vrrp.unicast.contains(&membership.node_ip) {
                vrrp.unicast.push(membership.node_ip);
            }
            Some(vrrp)
        }
        (Role::Server, None) => return Err(Error::failed("this server's VRRP settings are not known").hint(HINT)),
    };
    Ok(cluster::Ticket { vip: membership.vip, port: membership.port, token: Token::parse(&text)?, vrrp })
}

/// The tickets for both roles.
///
/// # Errors
/// When k3s is not ready here.
pub fn tickets(membership: &Membership) -> Result<Tickets> {
    Ok(Tickets::of(&ticket(membership, Role::Server)?, &ticket(membership, Role::Agent)?)?)
}
