use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use node::{Context as _, Error, Host, Lock, Result, Undo, Undone, UndoneHow};

use super::{Format, OutputArgs};
use crate::membership::Membership;
use crate::output::{self, Progress};
use crate::setup::stop_on_signal;

/// Undo on this host exactly what smartup did
///
/// Stops what it started, restores or removes the files that it wrote, takes back its firewall rules and kernel settings,
/// and removes k3s's pods and data if smartup had k3s make them. Files that someone edited since are kept and named.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  smartup reset --yes\n  smartup reset --yes --packages")]
pub struct Reset {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Remove the packages that smartup installed as well
    #[arg(long)]
    packages: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Reset {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        let progress = Progress::start(self.output.events, verbose > 0, false);
        let host = Host::open(progress.reporter(), stop_on_signal()?, Duration::from_secs(300)).await?;
        if !host.facts.root {
            return Err(Error::failed("smartup does not run as root").hint("run it with sudo"));
        }
        let _lock = Lock::take(Path::new(Lock::PATH))?;
        if host.journal.entries().is_empty() {
            progress.reporter().warn("smartup has changed nothing on this host", None);
        } else if !self.yes {
            confirm(&host)?;
        }
        let done = node::undo(&host, self.packages, async |host, by, data| match by {
            firewall::BY => firewall::undo(host, data).await,
            "k3s" => k3s::undo(host, data).await,
            other => Err(Error::failed(format!("the journal has a change of an unknown kind: {other}"))
                .hint("it was written by a newer smartup: use that one")),
        })
        .await;
        drop(host);
        progress.finish().await;
        output::print(&done?, self.output.output.unwrap_or(Format::Table), |all| in_words(all))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn confirm(host: &Host) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::invalid("reset asks before it undoes anything, and there is no terminal to ask on").hint("give --yes"));
    }
    let entries = host.journal.entries();
    eprintln!("This takes {} from the cluster and undoes {} changes:", host.facts.hostname, entries.len());
    for entry in entries.iter().rev() {
        eprintln!("  {}", describe(&entry.undo));
    }
    if Membership::load()?.is_some_and(|m| m.role == cluster::Role::Server) {
        eprintln!("It is a server: its etcd member stays until it is removed from another server (kubectl delete node).");
    }
    eprint!("Go on? [y/N] ");
    std::io::stderr().flush().context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Error::failed("nothing was undone: you did not say yes")) }
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
        Undo::Other { by, .. } => format!("{by} rule"),
    }
}

fn in_words(all: &[Undone]) -> String {
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
