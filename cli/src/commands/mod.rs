//! The command line: one file for each command, with its arguments and what it does.

mod apply;
mod completions;
pub mod config;
mod disable;
mod doctor;
mod drill;
mod enable_updates;
pub mod image;
mod init;
mod join;
mod kubeconfig;
mod leave;
mod man;
mod node_job;
mod operator;
mod remove;
pub mod reset;
mod snapshot;
mod status;
pub mod ticket;
mod updates;
mod upgrade;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cluster::{Interface, Invalid, K3sArg, K3sVersion, Mirror, Port, Role, Timeout, Token, Vip};
use k3s::Source;
use node::{Context as _, Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::remote::{Connect, Remote};
use crate::setup::{VrrpWish, Wanted};

/// Makes a highly available k3s cluster out of Linux hosts, behind a floating address.
#[derive(Debug, Parser)]
#[command(name = "smartup", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say more on stderr; twice or three times for more still (the variable `SMARTUP_LOG` takes filters)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How diagnostics on stderr look
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// How diagnostics look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Apply(Box<apply::Apply>),
    Plan(Box<apply::Plan>),
    Init(Box<init::Init>),
    Join(Box<join::Join>),
    Ticket(ticket::Ticket),
    Status(status::Status),
    Doctor(doctor::Doctor),
    Drill(drill::Drill),
    Kubeconfig(kubeconfig::Kubeconfig),
    Upgrade(Box<upgrade::Upgrade>),
    Leave(leave::Leave),
    Remove(remove::Remove),
    Reset(reset::Reset),
    Snapshot(snapshot::SnapshotCommand),
    EnableUpdates(enable_updates::EnableUpdates),
    Disable(disable::Disable),
    Config(config::Config),
    Image(image::ImageCommand),
    Operator(operator::Operator),
    Updates(Box<updates::Updates>),
    Completions(completions::Completions),
    #[command(hide = true)]
    Node(node_job::Node),
    #[command(hide = true)]
    Man(man::Man),
}

/// Runs the command.
pub async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Apply(c) => c.run(cli.verbose).await,
        Command::Plan(c) => c.run(cli.verbose).await,
        Command::Init(c) => c.run(cli.verbose).await,
        Command::Join(c) => c.run(cli.verbose).await,
        Command::Ticket(c) => c.run().await,
        Command::Status(c) => c.run().await,
        Command::Doctor(c) => c.run(cli.verbose).await,
        Command::Drill(c) => c.run(cli.verbose).await,
        Command::Kubeconfig(c) => c.run().await,
        Command::Upgrade(c) => c.run(cli.verbose).await,
        Command::Leave(c) => c.run(cli.verbose).await,
        Command::Remove(c) => c.run(cli.verbose).await,
        Command::Reset(c) => c.run(cli.verbose).await,
        Command::Snapshot(c) => c.run(cli.verbose).await,
        Command::EnableUpdates(c) => c.run(cli.verbose).await,
        Command::Disable(c) => c.run(cli.verbose).await,
        Command::Config(c) => c.run(),
        Command::Image(c) => c.run(),
        Command::Operator(c) => Box::pin(c.run()).await,
        Command::Updates(c) => c.run().await,
        Command::Completions(c) => c.run(),
        Command::Node(c) => c.run().await,
        Command::Man(c) => c.run(),
    }
}

/// What init and join have in common.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Interface of the VIP and of the pod network [default: the one whose subnet holds the VIP]
    #[arg(long, value_name = "NAME")]
    pub interface: Option<Interface>,
    /// This node's own address [default: the interface's address in the VIP's subnet]
    #[arg(long, value_name = "ADDR")]
    pub node_ip: Option<IpAddr>,
    /// What runs the containers [default: containerd]
    #[arg(long, value_name = "RUNTIME")]
    pub runtime: Option<cluster::Runtime>,
    /// Install this k3s binary
    #[arg(long, value_name = "PATH", conflicts_with = "k3s_version")]
    pub k3s: Option<PathBuf>,
    /// Download and install this release of k3s, its checksum verified (as in v1.31.2+k3s1)
    #[arg(long, value_name = "VERSION", value_parser = checked::<K3sVersion>)]
    pub k3s_version: Option<String>,
    /// Where releases are, laid out as k3s's own: URL/VERSION/k3s
    #[arg(long, value_name = "URL", requires = "k3s_version", value_parser = checked::<Mirror>)]
    pub k3s_mirror: Option<String>,
    /// Leave the firewall alone
    #[arg(long)]
    pub no_firewall: bool,
    /// One more flag for k3s, as in --k3s-arg=--disable=traefik (may be given several times)
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true, value_parser = checked::<K3sArg>)]
    pub k3s_arg: Vec<String>,
    /// Go on although this check fails (names as in the report; several with commas)
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    pub ignore: Vec<String>,
    /// Only say what would be changed
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: exit with 3 when something would be changed
    #[arg(long, requires = "dry_run")]
    pub exit_code: bool,
    /// How long to wait for the host to be ready, as in 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How results and progress are printed.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// How the result is printed on stdout
    #[arg(short, long, value_enum, value_name = "FORMAT", conflicts_with = "events")]
    pub output: Option<Format>,
    /// Print events as they happen, one JSON object a line, on stdout
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub events: Option<Events>,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// How events are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Events {
    /// One JSON object a line.
    Json,
}

/// Where a command works, and how the result is printed.
#[derive(Debug, Args)]
pub struct Reach {
    /// Reach the hosts of this file over SSH
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub connect: Option<Connect>,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl Reach {
    /// The hosts of the file; None = this host.
    pub fn remote(&self) -> Result<Option<Remote>> {
        Remote::maybe(self.file.as_deref(), self.connect.as_ref(), true)
    }
}

impl HostArgs {
    /// What the host shall become, as these options and the command's own say it.
    pub fn wanted(&self, role: Role, first: bool, vip: Vip, port: Option<Port>, token: Option<Token>, vrrp: VrrpWish) -> Result<Wanted> {
        Ok(Wanted {
            role,
            first,
            vip,
            port,
            token,
            vrrp,
            interface: self.interface.clone(),
            node_ip: self.node_ip,
            runtime: self.runtime,
            source: self.source()?,
            firewall: !self.no_firewall,
            k3s_args: self.k3s_arg.clone(),
        })
    }

    /// Where k3s comes from.
    fn source(&self) -> Result<Source> {
        match (&self.k3s, &self.k3s_version) {
            (Some(path), _) if !path.is_file() => Err(Error::invalid(format!("--k3s {}: there is no such file", path.display()))),
            (Some(path), _) => Ok(Source::File(path.clone())),
            (None, Some(version)) => {
                let mirror = self.k3s_mirror.clone().unwrap_or_else(|| Source::MIRROR.into());
                Ok(Source::Release { version: version.clone(), mirror })
            }
            (None, None) => Ok(Source::Host),
        }
    }
}

/// Reads a file, or stdin for `-`.
pub fn read_text(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) }
}

/// Reads a file of the user's, or stdin for `-`.
pub fn read_file(path: &Path) -> Result<String> {
    read_text(path).context(format!("cannot read {}", path.display())).map_err(invalid)
}

/// Reads a secret's file, or stdin for `-`.
pub fn read_secret(path: &Path, what: &str) -> Result<String> {
    read_text(path).context(format!("cannot read the {what} from {}", path.display())).map_err(invalid)
}

fn invalid(mut e: Error) -> Error {
    e.kind = node::Kind::Invalid;
    e
}

/// What a host answers.
pub fn understood<T: DeserializeOwned>(answer: Result<Value>) -> Result<T> {
    serde_json::from_value(answer?).context("the host's answer is not understood")
}

/// A text that is right for a type of `cluster`; clap says the name and the value itself.
fn checked<T: FromStr<Err = Invalid> + Into<String>>(text: &str) -> Result<String, String> {
    text.parse::<T>().map(Into::into).map_err(|e| e.why)
}

/// A positive duration: `90s`, `10m`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<Timeout>().map(Timeout::get).map_err(|e| e.why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("smartup {}", command.get_name())), "{}", command.get_name());
        }
    }

    #[test]
    fn arguments_that_cannot_be() {
        assert_eq!(checked::<K3sArg>("--disable=traefik").unwrap(), "--disable=traefik");
        assert!(
            checked::<K3sArg>("--token=x").is_err() && checked::<K3sVersion>("latest").is_err() && checked::<Mirror>("ftp://x").is_err()
        );
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("0s").unwrap_err(), "must be more than nothing");
    }
}
