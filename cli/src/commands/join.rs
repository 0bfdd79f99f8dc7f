use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use cluster::{AuthPass, Port, Role, Ticket, Token, Vip, Vrrp};
use node::{Error, Result};

use super::{HostArgs, read_secret};
use crate::run_here;
use crate::setup::VrrpWish;

/// Make this host a server or an agent of a cluster
///
/// Takes what it must know from a ticket, which `smartup ticket` prints on a server, or piece by piece. The cluster and the
/// token are checked before anything on this host is touched.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    smartup join --role server --ticket server.ticket\n  \
    ssh node1 smartup ticket --role agent | smartup join --role agent --ticket -\n  \
    smartup join --role server --vip 10.0.0.10 --token-file token --auth-pass-file pass")]
pub struct Join {
    /// What this host shall be
    #[arg(long, value_enum)]
    role: RoleArg,
    /// File with the ticket, '-' for stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vip", "port", "token_file", "auth_pass_file", "unicast_peer"], required_unless_present = "vip")]
    ticket: Option<PathBuf>,
    /// The cluster's floating address
    #[arg(long, value_name = "ADDR[/PREFIX]", requires = "token_file")]
    vip: Option<Vip>,
    /// Port of the API [default: 9443]
    #[arg(long, requires = "vip")]
    port: Option<Port>,
    /// File with the cluster's token, '-' for stdin
    #[arg(long, value_name = "FILE", requires = "vip")]
    token_file: Option<PathBuf>,
    /// File with the servers' VRRP password (VRRP version 2)
    #[arg(long, value_name = "FILE", requires = "vip")]
    auth_pass_file: Option<PathBuf>,
    /// Address of another server, where the network has no multicast (several times: all other servers)
    #[arg(long, value_name = "ADDR", num_args = 1.., requires = "vip")]
    unicast_peer: Vec<std::net::IpAddr>,
    #[command(flatten)]
    host: HostArgs,
}

/// A host's role.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RoleArg {
    /// Control plane and etcd; may hold the VIP
    Server,
    /// Runs pods only
    Agent,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Server => Role::Server,
            RoleArg::Agent => Role::Agent,
        }
    }
}

impl Join {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        let ticket = self.ticket()?;
        let role = Role::from(self.role);
        if self.ticket.is_some() && ticket.role() != role {
            return Err(Error::invalid(format!("this is a ticket for the role {}, not {role}", ticket.role()))
                .hint(format!("print one on a server: smartup ticket --role {role}")));
        }
        let vrrp = match ticket.vrrp {
            Some(vrrp) => VrrpWish::Cluster(vrrp),
            None => VrrpWish::Own { auth: None, unicast: Vec::new() },
        };
        let wanted = self.host.wanted(role, false, ticket.vip, Some(ticket.port), Some(ticket.token), vrrp)?;
        run_here::run(wanted, &self.host, verbose).await
    }

    /// The ticket, from its file or put together from the pieces.
    fn ticket(&self) -> Result<Ticket> {
        if let Some(file) = &self.ticket {
            return Ok(Ticket::parse(&read_secret(file, "ticket")?)?);
        }
        let (Some(vip), Some(token_file)) = (self.vip, &self.token_file) else {
            return Err(Error::invalid("neither a ticket nor --vip with --token-file was given"));
        };
        let token = Token::parse(&read_secret(token_file, "token")?)?;
        let auth = match &self.auth_pass_file {
            Some(file) => Some(AuthPass::parse(&read_secret(file, "VRRP password")?)?),
            None => None,
        };
        let vrrp = match self.role {
            RoleArg::Server => Some(Vrrp::for_vip(vip.addr(), auth, self.unicast_peer.clone())?),
            RoleArg::Agent => None,
        };
        Ok(Ticket { vip, port: self.port.unwrap_or(Port::API), token, vrrp })
    }
}
