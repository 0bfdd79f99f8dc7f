use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use fleet::protocol::{EnableUpdates as Wish, Job};
use node::{Context as _, Host, Result};

use super::{Format, OutputArgs, duration, read_text};
use crate::output::{self, Progress};
use crate::remote::{Connect, Remote};
use crate::rollout::{self, Enabled};
use crate::run_here::stop_on_signal;

/// Bring the maintenance operator into the cluster, which keeps its nodes patched
///
/// Run as root on a server, or with a cluster's file from anywhere. Ends when the operator works and says of every node how it
/// stands. Run again, it changes what is not so; what is wanted of updates stays as it is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smartup enable-updates\n  smartup enable-updates -f cluster.yaml --timeout 2h")]
pub struct EnableUpdates {
    /// Apply this manifest of the operator [default: /usr/share/smart-updates/maintenance-operator.yaml of the server, else smartup's own]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Say with this file what is wanted of updates, also over what is there [default: where nothing is,
    /// /usr/share/smart-updates/update-manager.yaml of the server, else nothing special]
    #[arg(long, value_name = "FILE")]
    update_manager: Option<PathBuf>,
    /// How long the operator may take, as in 90s or 1h
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    timeout: Duration,
    /// Do it on a server of this file over SSH
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    connect: Option<Connect>,
    #[command(flatten)]
    output: OutputArgs,
}

impl EnableUpdates {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        let remote = Remote::maybe(self.file.as_deref(), self.connect.as_ref(), true)?;
        let manifest = read(self.manifest.as_deref())?;
        let update_manager = read(self.update_manager.as_deref())?;
        let progress = Progress::start(self.output.events, verbose > 0, false);
        let done = if let Some(remote) = &remote {
            let wish = Wish { manifest, update_manager, timeout_s: self.timeout.as_secs().max(1) };
            remote.ask_a_server(Job::EnableUpdates(wish), &progress.reporter()).await.and_then(understood)
        } else {
            let host = Host::open(progress.reporter(), stop_on_signal()?, self.timeout).await?;
            rollout::enable(&host, manifest.as_deref(), update_manager.as_deref()).await
        };
        progress.finish().await;
        output::print(&done?, self.output.output.unwrap_or(Format::Table), in_words)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A file of the user's.
pub fn read(path: Option<&Path>) -> Result<Option<String>> {
    path.map(|p| {
        read_text(p).context(format!("cannot read {}", p.display())).map_err(|mut e| {
            e.kind = node::Kind::Invalid;
            e
        })
    })
    .transpose()
}

/// A server's answer.
pub fn understood<T: serde::de::DeserializeOwned>(answer: serde_json::Value) -> Result<T> {
    serde_json::from_value(answer).context("the server's answer is not understood")
}

fn in_words(done: &Enabled) -> String {
    let nodes = match done.nodes.len() {
        1 => "1 node has its status".to_owned(),
        n => format!("all {n} nodes have their status"),
    };
    let mut lines: Vec<String> = done.changed.iter().map(|c| format!("applied: {c}")).collect();
    lines.push(match done.changed.len() {
        0 => format!("Smart updates are enabled, and were so already: {} objects unchanged, {nodes}.", done.unchanged),
        n => format!("Smart updates are enabled: {n} objects applied, {} unchanged, {} is Complete, {nodes}.", done.unchanged, done.job),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_changed_or_that_nothing_was() {
        let nodes = |n: usize| (1..=n).map(|n| format!("h{n}")).collect();
        let some = Enabled { changed: vec!["DaemonSet smartup-agent".into()], unchanged: 2, job: "job-v1".into(), nodes: nodes(4) };
        let none = Enabled { changed: vec![], unchanged: 3, job: "job-v1".into(), nodes: nodes(1) };
        insta::assert_snapshot!([some, none].iter().map(in_words).collect::<Vec<_>>().join("\n\n"), @"
        applied: DaemonSet smartup-agent
        Smart updates are enabled: 1 objects applied, 2 unchanged, job-v1 is Complete, all 4 nodes have their status.

        Smart updates are enabled, and were so already: 3 objects unchanged, 1 node has its status.
        ");
    }
}
