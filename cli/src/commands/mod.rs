//! The command line: one file for each command, with its arguments and what it does.

mod completions;
mod init;
mod join;
mod man;
mod reset;
mod status;
mod ticket;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cluster::Interface;
use k3s::{Runtime, Source};
use node::{Context as _, Error, Result};

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
    Init(Box<init::Init>),
    Join(Box<join::Join>),
    Ticket(ticket::Ticket),
    Status(status::Status),
    Reset(reset::Reset),
    Completions(completions::Completions),
    #[command(hide = true)]
    Man(man::Man),
}

/// Runs the command.
pub async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Init(c) => c.run(cli.verbose).await,
        Command::Join(c) => c.run(cli.verbose).await,
        Command::Ticket(c) => c.run().await,
        Command::Status(c) => c.run().await,
        Command::Reset(c) => c.run(cli.verbose).await,
        Command::Completions(c) => c.run(),
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
    #[arg(long, value_name = "RUNTIME", value_parser = runtime)]
    pub runtime: Option<Runtime>,
    /// Install this k3s binary
    #[arg(long, value_name = "PATH", conflicts_with = "k3s_version")]
    pub k3s: Option<PathBuf>,
    /// Download and install this release of k3s, its checksum verified (as in v1.31.2+k3s1)
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub k3s_version: Option<String>,
    /// Where releases are, laid out as k3s's own: URL/VERSION/k3s
    #[arg(long, value_name = "URL", requires = "k3s_version", value_parser = mirror)]
    pub k3s_mirror: Option<String>,
    /// Leave the firewall alone
    #[arg(long)]
    pub no_firewall: bool,
    /// One more flag for k3s, as in --k3s-arg=--disable=traefik (may be given several times)
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true, value_parser = k3s_arg)]
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

impl HostArgs {
    /// Where k3s comes from.
    pub fn source(&self) -> Result<Source> {
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

/// Reads a secret's file, or stdin for `-`.
pub fn read_secret(path: &Path, what: &str) -> Result<String> {
    let read = if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    read.context(format!("cannot read the {what} from {}", path.display())).map_err(|mut e| {
        e.kind = node::Kind::Invalid;
        e
    })
}

fn runtime(text: &str) -> Result<Runtime, String> {
    match text {
        "containerd" => Ok(Runtime::Containerd),
        "docker" => Ok(Runtime::Docker),
        _ => Err("is neither containerd nor docker".into()),
    }
}

fn version(text: &str) -> Result<String, String> {
    let ok = text.starts_with('v')
        && text[1..].starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    if ok { Ok(text.to_owned()) } else { Err("is not a release of k3s; write it as v1.31.2+k3s1".into()) }
}

fn mirror(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match host {
        Some(h) if !h.is_empty() && !h.contains(char::is_whitespace) => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err("is not an http or https URL".into()),
    }
}

fn k3s_arg(text: &str) -> Result<String, String> {
    if !text.starts_with('-') {
        return Err("must begin with '-'; give the value in the same argument: --k3s-arg=--disable=traefik".into());
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || "\"'\\$#%`".contains(c)) {
        return Err("has white space or one of \" ' \\ $ # % ` in it, which an environment file cannot carry safely".into());
    }
    if text.starts_with("--token") || text.starts_with("--agent-token") || text == "-t" {
        return Err("would put a secret where everybody on the host can read it; use --token-file".into());
    }
    Ok(text.to_owned())
}

/// A positive duration: `90s`, `10m`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| "is not a duration; write for example 90s, 10m or 1h30m".to_owned())?;
    match Duration::try_from(parsed) {
        Ok(d) if !d.is_zero() => Ok(d),
        _ => Err("must be more than nothing".into()),
    }
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
        for bad in ["--a b", "traefik", "--token=x", "--a=$HOME"] {
            assert!(k3s_arg(bad).is_err(), "{bad}");
        }
        assert!(k3s_arg("--disable=traefik").is_ok());
        for bad in ["0s", "-5m", "10", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        for bad in ["1.31", "v1/2", "latest"] {
            assert!(version(bad).is_err(), "{bad}");
        }
        assert!(mirror("ftp://x").is_err() && mirror("http://h:1/k3s/").unwrap() == "http://h:1/k3s");
    }
}
