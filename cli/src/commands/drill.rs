use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser as _};
use fleet::drill::Fault;
use node::{Error, Result};

use super::{Format, duration};
use crate::drill::{control, report};
use crate::output::{self, Progress};
use crate::remote::{Connect, Remote};
use crate::run_here::stop_on_signal;

/// Rehearse failovers on a live cluster, and measure them
///
/// One fault after the other happens to the server that has the floating address just then. Meanwhile the API is asked through the
/// floating address from another host, and all servers are watched. Before each fault the cluster must be whole and etcd must bear the
/// loss of that server, otherwise it is left alone (exit code 4). Each fault is undone by the host itself after 30 s at most,
/// whatever becomes of this side.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    smartup drill -f cluster.yaml\n  \
    smartup drill --only keepalived,kill,freeze,link,reboot\n  \
    smartup drill --only freeze --yes -o json | jq '.[0].away'")]
pub struct Drill {
    /// The file that describes the cluster
    #[arg(short, long, value_name = "FILE", default_value = "cluster.yaml")]
    file: PathBuf,
    /// What happens, in this order (several with commas)
    #[arg(long, value_name = "FAULT", value_delimiter = ',', value_parser = faults(), default_values_t = USUAL)]
    only: Vec<Fault>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// How long the cluster may take each time to be whole again, as in 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    connect: Connect,
    /// How what was measured is printed
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// What leaves the host itself alone.
const USUAL: [Fault; 3] = [Fault::Keepalived, Fault::Kill, Fault::Freeze];

fn faults() -> impl clap::builder::TypedValueParser<Value = Fault> {
    let values = Fault::ALL.map(|f| PossibleValue::new(f.name()).help(what(f)));
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Fault>())
}

fn what(fault: Fault) -> &'static str {
    match fault {
        Fault::Keepalived => "keepalived is stopped",
        Fault::Kill => "k3s is killed (SIGKILL)",
        Fault::Freeze => "k3s is frozen (SIGSTOP)",
        Fault::Link => "the network interface is taken down for 10 s",
        Fault::Reboot => "the host reboots",
    }
}

impl Drill {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        if !self.yes && !std::io::stdin().is_terminal() {
            return Err(Error::invalid("drill asks before it disturbs anything, and there is no terminal to ask on").hint("give --yes"));
        }
        let remote = Remote::load(&self.file, &self.connect, true)?;
        let progress = Progress::start(None, verbose > 0, false);
        let agree = |holder: &str| self.yes || output::ask(&self.question(&remote, holder)).unwrap_or(false);
        let (done, end) = control::run(&remote, &self.only, self.timeout, agree, progress.reporter(), stop_on_signal()?).await;
        progress.finish().await;
        if !done.is_empty() {
            output::print(&done, self.output, |all| report::in_words(all))?;
        }
        end?;
        Ok(if done.iter().all(report::Rehearsal::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn question(&self, remote: &Remote, holder: &str) -> String {
        let faults: Vec<&str> = self.only.iter().map(|f| what(*f)).collect();
        format!(
            "This disturbs the live cluster at {}. One after the other, on whichever server has the address then (now {holder}):\n  {}\n\
             The API is away for moments each time, and each is undone by itself.\n",
            remote.cluster.vip.addr(),
            faults.join("\n  ")
        )
    }
}
