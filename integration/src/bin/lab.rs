//! `lab`: real hosts on one machine, by hand.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use integration::{Lab, LabSpec, gc, keeper};

/// Real hosts on one machine: systemd, ssh, firewalld, keepalived and a network of their own.
#[derive(Debug, Parser)]
#[command(name = "lab", after_help = "Example:\n  lab up 3\n  lab exec h1 -- systemctl status\n  lab cut-power h1\n  lab down")]
struct Cli {
    /// The lab's name.
    #[arg(long, global = true, env = "SMARTUP_LAB_NAME", default_value = "lab")]
    name: String,
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Boot a lab; it stays until `down`.
    Up(Up),
    /// Boot a lab for as long as a command runs; `SMARTUP_LAB_NAME` tells the command its name.
    With {
        #[command(flatten)]
        up: Up,
        /// The command and its arguments.
        #[arg(required = true, last = true)]
        argv: Vec<String>,
    },
    /// Run a command in a host.
    Exec {
        /// h1, h2, …
        host: String,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Log in to a host, or run a command there, over ssh.
    Ssh {
        /// h1, h2, …
        host: String,
        /// A command for its shell.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        line: Vec<String>,
    },
    /// Open a shell in the lab's network, on none of its hosts; or run a command there.
    Shell {
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Cut a host's power.
    CutPower(One),
    /// Start a host that is down.
    PowerOn(One),
    /// Reboot a host, and wait until it is ready.
    Reboot(One),
    /// Stop every process of a host.
    Freeze(One),
    /// Let a frozen host go on.
    Thaw(One),
    /// Pull a host's cable, or plug it in.
    Cable {
        /// h1, h2, …
        host: String,
        /// What to do with it.
        #[arg(value_parser = ["pull", "plug"])]
        what: String,
    },
    /// Drop all that a host sends and would receive, silently.
    Partition(One),
    /// End a partition.
    Heal(One),
    /// Drop all between two hosts, silently.
    Cut(Two),
    /// End a cut.
    Mend(Two),
    /// Lose a share of a host's packets, each way.
    Lose {
        /// h1, h2, …
        host: String,
        /// 0 (none) to 100.
        percent: u8,
    },
    /// Give a host that is down an empty disk.
    Wipe(One),
    /// List the hosts.
    Status,
    /// End the lab, with all that it left.
    Down,
    /// Remove labs whose owner is gone.
    Gc,
    /// Make all that labs are made of and is not in the cache yet.
    Cache,
    #[command(hide = true)]
    KeepHost { folder: PathBuf, host: String },
    #[command(hide = true)]
    Reap { folder: PathBuf },
}

#[derive(Debug, Args)]
struct Up {
    /// How many hosts with keepalived and firewalld.
    hosts: u8,
    /// Further hosts without them, which can install them with apt.
    #[arg(long, default_value_t = 0)]
    plain: u8,
    /// No k3s in the hosts, and nothing that it needs.
    #[arg(long)]
    no_k3s: bool,
    /// Neither k3s nor smartup in the hosts.
    #[arg(long)]
    bare: bool,
}

impl Up {
    fn spec(&self) -> LabSpec {
        let mut spec = LabSpec::hosts(self.hosts).plain_hosts(self.plain);
        if self.no_k3s || self.bare {
            spec = spec.without_k3s();
        }
        if self.bare {
            spec = spec.without_smartup();
        }
        spec
    }
}

#[derive(Debug, Args)]
struct One {
    /// h1, h2, …
    host: String,
}

#[derive(Debug, Args)]
struct Two {
    /// One host.
    a: String,
    /// The other host.
    b: String,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let lab = || Lab::open(&cli.name);
    match cli.command {
        Cmd::Up(up) => status(&Lab::up(&up.spec().named(&cli.name).kept())?)?,
        Cmd::With { up, argv } => {
            let lab = Lab::up(&up.spec().named(&cli.name))?;
            let (program, arguments) = argv.split_first().context("no command")?;
            let ended = follow(Command::new(program).args(arguments).env("SMARTUP_LAB_NAME", lab.id()));
            lab.down()?;
            return ended;
        }
        Cmd::Exec { host, argv } => return follow(&mut lab()?.host(&host)?.command(argv)?),
        Cmd::Ssh { host, line } => return follow(&mut lab()?.host(&host)?.ssh_command(line)),
        Cmd::Shell { argv } if argv.is_empty() => return follow(&mut lab()?.probe().command(["bash"])),
        Cmd::Shell { argv } => return follow(&mut lab()?.probe().command(argv)),
        Cmd::CutPower(one) => lab()?.host(&one.host)?.power_cut()?,
        Cmd::PowerOn(one) => lab()?.host(&one.host)?.power_on()?,
        Cmd::Reboot(one) => lab()?.host(&one.host)?.reboot()?,
        Cmd::Freeze(one) => lab()?.host(&one.host)?.freeze()?,
        Cmd::Thaw(one) => lab()?.host(&one.host)?.thaw()?,
        Cmd::Cable { host, what } if what == "pull" => lab()?.host(&host)?.cable_pull()?,
        Cmd::Cable { host, .. } => lab()?.host(&host)?.cable_plug()?,
        Cmd::Partition(one) => lab()?.host(&one.host)?.partition()?,
        Cmd::Heal(one) => lab()?.host(&one.host)?.heal()?,
        Cmd::Cut(two) => {
            let lab = lab()?;
            lab.host(&two.a)?.cut(lab.host(&two.b)?)?;
        }
        Cmd::Mend(two) => {
            let lab = lab()?;
            lab.host(&two.a)?.mend(lab.host(&two.b)?)?;
        }
        Cmd::Lose { host, percent } => lab()?.host(&host)?.lose(percent)?,
        Cmd::Wipe(one) => lab()?.host(&one.host)?.wipe()?,
        Cmd::Status => status(&lab()?)?,
        Cmd::Down => lab()?.down()?,
        Cmd::Gc => gc::collect()?.iter().for_each(|id| println!("{id}")),
        Cmd::Cache => integration::fill_cache()?,
        Cmd::KeepHost { folder, host } => keeper::keep(&folder, &host)?,
        Cmd::Reap { folder } => gc::reap(&folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command on our terminal, and ends as it does.
fn follow(command: &mut Command) -> Result<ExitCode> {
    let code = integration::exit_code(command.status()?);
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn status(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        println!("{}  {:10}  {}", host.name(), host.state()?, host.addresses()?.join(" "));
    }
    Ok(())
}
