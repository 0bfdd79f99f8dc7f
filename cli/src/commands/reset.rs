use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use cluster::Role;
use fleet::protocol::Job;
use node::{Context as _, Error, Host, Lock, Result, Undo, Undone, UndoneHow};

use serde::Serialize;
use serde_json::Value;

use super::{Format, Reach, understood};
use crate::membership::Membership;
use crate::output::{self, Progress};
use crate::remote::Remote;
use crate::run_here::stop_on_signal;

/// Undo on this host exactly what smartup did
///
/// Stops what it started, restores or removes the files that it wrote, takes back its firewall rules and kernel settings,
/// and removes k3s's pods and data if smartup had k3s make them. Files that someone edited since are kept and named.
/// With a file on all its hosts: agents first, the first server last.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  smartup reset --yes\n  smartup reset --yes --packages\n  smartup reset -f cluster.yaml")]
pub struct Reset {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Remove the packages that smartup installed as well
    #[arg(long)]
    packages: bool,
    /// Also when etcd loses its quorum by it: the cluster is given up
    #[arg(long, conflicts_with = "file")]
    force: bool,
    #[command(flatten)]
    reach: Reach,
}

/// What was undone on one host of several, or why not.
#[derive(Debug, Serialize)]
struct HostReport {
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    undone: Vec<Undone>,
}

impl Reset {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        match self.reach.remote()? {
            Some(remote) => self.all(&remote).await,
            None => self.here(verbose).await,
        }
    }

    /// Agents first; then the servers one by one, the one that the file has first as the last.
    async fn all(&self, remote: &Remote) -> Result<ExitCode> {
        if !self.yes {
            let names: Vec<&str> = remote.cluster.hosts.iter().map(|h| h.host.as_str()).collect();
            agree(&format!(
                "This undoes what smartup did on {} hosts, with the cluster and its data: {}\n",
                names.len(),
                names.join(", ")
            ))?;
        }
        let job = Job::Reset { packages: self.packages };
        let mut answers = remote.ask_all(remote.cluster.hosts.iter().filter(|h| h.role == Role::Agent), &job).await;
        let mut servers: Vec<_> = remote.cluster.servers().collect();
        servers.reverse();
        for server in servers {
            answers.push((server.host.to_string(), remote.ask(server, job.clone()).await));
        }
        let reports: Vec<HostReport> = answers.into_iter().map(|(host, answer)| HostReport::new(host, answer)).collect();
        let format = self.reach.output.output.unwrap_or(Format::Table);
        output::print(&reports, format, |all| all.iter().map(HostReport::in_words).collect::<Vec<_>>().join("\n"))?;
        let good = reports.iter().all(|r| r.error.is_none());
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn here(self, verbose: u8) -> Result<ExitCode> {
        let progress = Progress::start(self.reach.output.events, verbose > 0, false);
        let host = Host::open(progress.reporter(), stop_on_signal()?, Duration::from_secs(300)).await?;
        let done = self.ask_and_undo(&host).await;
        drop(host);
        progress.finish().await;
        output::print(&done?, self.reach.output.output.unwrap_or(Format::Table), |all| in_words(all))?;
        Ok(ExitCode::SUCCESS)
    }

    async fn ask_and_undo(&self, host: &Host) -> Result<Vec<Undone>> {
        if host.journal.entries().is_empty() {
            host.reporter.warn("smartup has changed nothing on this host", None);
        } else {
            if !self.force {
                bears_it(host).await?;
            }
            if !self.yes {
                confirm(host)?;
            }
        }
        undo(host, self.packages, &Lock::take(Path::new(Lock::PATH))?).await
    }
}

/// Whether the other servers go on without this one.
async fn bears_it(host: &Host) -> Result<()> {
    match Membership::load()? {
        Some(member) if member.role == Role::Server => k3s::may_stop_here(host, member.node_ip).await.map_err(|e| {
            e.hint("bring the server back that is not healthy, or give the cluster up: --force, or for all hosts smartup reset -f FILE")
        }),
        _ => Ok(()),
    }
}

impl HostReport {
    fn new(host: String, answer: Result<Value>) -> Self {
        match understood(answer) {
            Ok(undone) => Self { host, error: None, undone },
            Err(e) => Self { host, error: Some(e.chain()), undone: Vec::new() },
        }
    }

    fn in_words(&self) -> String {
        let mut text = match &self.error {
            Some(why) => format!("{}: {why}", self.host),
            None => format!("{}: {} changes undone", self.host, self.undone.iter().filter(|u| u.how == UndoneHow::Undone).count()),
        };
        for kept in self.undone.iter().filter(|u| u.how == UndoneHow::Kept) {
            text.push_str("\n  kept: ");
            text.push_str(&kept.what);
        }
        text
    }
}

/// Undoes what smartup did on this host; with the packages that it installed, if asked to.
///
/// # Errors
/// When not run as root, when another run is under way, or when something cannot be undone.
pub async fn undo(host: &Host, packages: bool, _held: &Lock) -> Result<Vec<Undone>> {
    if !host.facts.root {
        return Err(Error::failed("smartup does not run as root").hint("run it with sudo"));
    }
    // what `smartup apply` sent here to run; it may be what runs now, and goes on all the same
    if let Err(e) = std::fs::remove_dir_all(Host::PROGRAMS)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        return Err(e).context(format!("cannot remove {}", Host::PROGRAMS));
    }
    node::undo(host, packages, async |host, by, data| match by {
        firewall::BY => firewall::undo(host, data).await,
        "k3s" => k3s::undo(host, data).await,
        operator::image::BY => operator::image::undo(host, data).await,
        operator::updaters::BY => operator::updaters::undo(data),
        other => Err(Error::failed(format!("the journal has a change of an unknown kind: {other}"))
            .hint("it was written by a newer smartup: use that one")),
    })
    .await
}

fn confirm(host: &Host) -> Result<()> {
    let entries = host.journal.entries();
    let mut text = format!("This takes {} from the cluster and undoes {} changes:\n", host.facts.hostname, entries.len());
    for entry in entries.iter().rev() {
        text.push_str("  ");
        text.push_str(&describe(&entry.undo));
        text.push('\n');
    }
    if Membership::load()?.is_some_and(|m| m.role == Role::Server) {
        text.push_str("It is a server: its etcd member stays. To take it out of a cluster that goes on: smartup leave\n");
    }
    agree(&text)
}

/// Asks, on a terminal.
///
/// # Errors
/// When the answer is not yes, or there is no terminal to ask on.
pub fn agree(text: &str) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::invalid("this asks before it takes anything away, and there is no terminal to ask on").hint("give --yes"));
    }
    if output::ask(text)? { Ok(()) } else { Err(Error::failed("nothing was undone: you did not say yes")) }
}

fn describe(undo: &Undo) -> String {
    match undo {
        Undo::File { path, .. } | Undo::Installed { path, .. } => format!("file {}", path.display()),
        Undo::Folder { path } => format!("folder {}", path.display()),
        Undo::Unit { unit, .. } => format!("unit {unit}"),
        Undo::Sysctl { key, .. } => format!("kernel setting {key}"),
        Undo::Module { module } => format!("kernel module {module}"),
        Undo::Package { package } => format!("package {package} (kept without --packages)"),
        Undo::Other { by, .. } if by == "k3s" => "k3s's pods and data on this host".into(),
        Undo::Other { by, .. } if by == operator::image::BY => "the operator's image".into(),
        Undo::Other { by, data } if by == operator::updaters::BY => {
            format!("{} held back", data["service"].as_str().unwrap_or("automatic updates"))
        }
        Undo::Other { by, .. } => format!("{by} rule"),
    }
}

/// What was undone, for people.
pub fn in_words(all: &[Undone]) -> String {
    let of = |how| all.iter().filter(move |u| u.how == how);
    let mut text: Vec<String> = of(UndoneHow::Undone).map(|u| u.what.clone()).collect();
    let kept: Vec<_> = of(UndoneHow::Kept).map(|u| format!("  {}", u.what)).collect();
    if !kept.is_empty() {
        text.push("kept:".into());
        text.extend(kept);
    }
    let n = of(UndoneHow::Undone).count();
    text.push(format!(
        "{n} changes undone; this host is as smartup found it{}.",
        if of(UndoneHow::Kept).count() > 0 { ", but for what is named above" } else { "" }
    ));
    text.join("\n")
}
