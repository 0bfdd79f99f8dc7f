use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use cluster::file::HostSpec;
use fleet::protocol::{EnableUpdates as Wish, Job};
use node::{Error, Event, Host, Outcome, Reporter, Result};

use super::{Format, Reach, duration, read_file, understood};
use crate::output::{self, Progress};
use crate::remote::Remote;
use crate::rollout::{self, Enabled};
use crate::run_here::stop_on_signal;

/// Bring the maintenance operator into the cluster, which keeps its nodes patched
///
/// Run as root on a server, or with a cluster's file from anywhere: then every host is given the operator's image first. Ends when the
/// operator works and says of every node how it stands. The hosts' own automatic updates are held back from then on. Run again, it
/// changes what is not so; what is wanted of updates stays as it is.
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
    #[command(flatten)]
    reach: Reach,
}

impl EnableUpdates {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        let remote = self.reach.remote()?;
        let manifest = self.manifest.as_deref().map(read_file).transpose()?;
        let update_manager = self.update_manager.as_deref().map(read_file).transpose()?;
        let progress = Progress::start(self.reach.output.events, verbose > 0, false);
        let done = if let Some(remote) = &remote {
            let wish = Wish { manifest, update_manager, timeout_s: self.timeout.as_secs().max(1), goes_on: false };
            over_ssh(remote, wish, &progress.reporter()).await
        } else {
            let host = Host::open(progress.reporter(), stop_on_signal()?, self.timeout).await?;
            rollout::enable(&host, manifest.as_deref(), update_manager.as_deref(), false).await
        };
        progress.finish().await;
        output::print(&done?, self.reach.output.output.unwrap_or(Format::Table), in_words)?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn over_ssh(remote: &Remote, wish: Wish, reporter: &Reporter) -> Result<Enabled> {
    // an operator of somebody else's has an image of its own
    if wish.manifest.is_none() {
        put_images(remote, reporter).await?;
    }
    understood(remote.ask_a_server(|goes_on| Job::EnableUpdates(Wish { goes_on, ..wish.clone() }), reporter).await)
}

/// Puts the operator's image on every host.
async fn put_images(remote: &Remote, reporter: &Reporter) -> Result<()> {
    let put = async |host: &HostSpec| -> Result<()> {
        let (step, began) = (format!("operator image on {}", host.host), Instant::now());
        let new: bool = understood(remote.ask(host, Job::Image { runtime: host.runtime }).await)?;
        let outcome = if new { Outcome::Changed } else { Outcome::Unchanged };
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        reporter.report(Event::StepDone { step, outcome, changes: Vec::new(), ms });
        Ok(())
    };
    let hosts = &remote.cluster.hosts;
    let all = futures::future::join_all(hosts.iter().map(put)).await;
    let failed: Vec<_> = hosts.iter().zip(all).filter_map(|(host, put)| Some(format!("{}: {}", host.host, put.err()?.chain()))).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::failed(format!("the operator's image is not on every host:\n  {}", failed.join("\n  ")))
        .hint("run the same command again when that is mended"))
}

fn in_words(done: &Enabled) -> String {
    let nodes = match done.nodes.len() {
        1 => "1 node has its status".to_owned(),
        n => format!("all {n} nodes have their status"),
    };
    let mut lines: Vec<String> = done.changed.iter().map(|c| format!("applied: {c}")).collect();
    lines.extend(done.gone.iter().map(|g| format!("gone: {g}")));
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
        let of = |n| Enabled { job: "job-v2".into(), nodes: nodes(n), ..Enabled::default() };
        let some = Enabled { changed: vec!["DaemonSet smartup-agent".into()], gone: vec!["Job job-v1".into()], unchanged: 2, ..of(4) };
        let none = Enabled { unchanged: 3, ..of(1) };
        insta::assert_snapshot!([some, none].iter().map(in_words).collect::<Vec<_>>().join("\n\n"), @"
        applied: DaemonSet smartup-agent
        gone: Job job-v1
        Smart updates are enabled: 1 objects applied, 2 unchanged, job-v2 is Complete, all 4 nodes have their status.

        Smart updates are enabled, and were so already: 3 objects unchanged, 1 node has its status.
        ");
    }
}
