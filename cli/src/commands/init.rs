use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use cluster::{AuthPass, Port, Role, Token, Vip};
use node::Result;

use super::{HostArgs, read_secret};
use crate::run_here;
use crate::setup::VrrpWish;

/// Make this host the first server of a new cluster
///
/// Installs what is missing, writes k3s's and keepalived's configuration, opens the firewall, starts all of it and waits
/// until the API answers through the floating address. Run again, it changes only what differs. `smartup reset` undoes it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    smartup init --vip 10.0.0.10 --dry-run\n  \
    smartup init --vip 10.0.0.10 --k3s ./k3s\n  \
    smartup init --vip 10.0.0.10 --k3s-version v1.31.2+k3s1\n  \
    smartup init --vip 10.0.0.10/24 --interface eth0 --auth-pass-file pass   (VRRP version 2, as in the reference)")]
pub struct Init {
    /// The floating address, free and in the subnet of one of this host's interfaces
    #[arg(long, value_name = "ADDR[/PREFIX]")]
    vip: Vip,
    /// Port of the API [default: 9443]
    #[arg(long)]
    port: Option<Port>,
    /// File with the cluster's secret, '-' for stdin [default: one is made]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with a VRRP password of at most 8 characters: uses VRRP version 2
    #[arg(long, value_name = "FILE")]
    auth_pass_file: Option<PathBuf>,
    /// Address of another server, where the network has no multicast (several times: all other servers)
    #[arg(long, value_name = "ADDR", num_args = 1..)]
    unicast_peer: Vec<std::net::IpAddr>,
    #[command(flatten)]
    host: HostArgs,
}

impl Init {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        let token = match &self.token_file {
            Some(file) => Some(Token::parse(&read_secret(file, "token")?)?),
            None => None,
        };
        let auth = match &self.auth_pass_file {
            Some(file) => Some(AuthPass::parse(&read_secret(file, "VRRP password")?)?),
            None => None,
        };
        let vrrp = VrrpWish::Own { auth, unicast: self.unicast_peer };
        let wanted = self.host.wanted(Role::Server, true, self.vip, self.port, token, vrrp)?;
        run_here::run(wanted, &self.host, verbose).await
    }
}
