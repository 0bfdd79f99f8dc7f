use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use cluster::Role;
use fleet::protocol::Job;
use node::{Error, Host, Result};

use super::{Format, Reach, read_file, understood};
use crate::output::{self, Progress};
use crate::remote::Remote;
use crate::rollout::{self, Disabled};
use crate::run_here::stop_on_signal;

/// Take the maintenance operator out of the cluster
///
/// Run as root on a server, or with a cluster's file from anywhere. Halts updates and lets those under way finish, for an hour at
/// most. Then deletes the `UpdateManager` with its windows and bans, what is known of the nodes, the manifest's objects, the last one
/// first, and the labels of nodes that smartup has set. The hosts update themselves as they did before.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smartup disable\n  smartup disable -f cluster.yaml --k3s")]
pub struct Disable {
    /// The manifest that was applied [default: /usr/share/smart-updates/maintenance-operator.yaml of the server, else smartup's own]
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Stop k3s as well and disable it at boot: on this host, or with -f on every host of the file. Its data and its pods stay
    #[arg(long)]
    k3s: bool,
    /// Do not wait for nodes in the middle of an update. What has begun on a host goes on there; the node takes pods again at once
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    reach: Reach,
}

impl Disable {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        let remote = self.reach.remote()?;
        let manifest = self.manifest.as_deref().map(read_file).transpose()?;
        let progress = Progress::start(self.reach.output.events, verbose > 0, false);
        let done = match &remote {
            Some(remote) => self.over_ssh(remote, manifest, &progress).await,
            None => self.here(manifest.as_deref(), &progress).await,
        };
        progress.finish().await;
        output::print(&done?, self.reach.output.output.unwrap_or(Format::Table), in_words)?;
        Ok(ExitCode::SUCCESS)
    }

    async fn here(&self, manifest: Option<&str>, progress: &Progress) -> Result<Disabled> {
        let mut host = Host::open(progress.reporter(), stop_on_signal()?, rollout::TIMEOUT).await?;
        let mut done = rollout::disable(&mut host, manifest, self.now).await?;
        done.gone.extend(rollout::put_back(&host, self.k3s).await?);
        Ok(done)
    }

    /// Agents before servers: they have nobody to speak to otherwise.
    async fn over_ssh(&self, remote: &Remote, manifest: Option<String>, progress: &Progress) -> Result<Disabled> {
        let disable = |_| Job::Disable { manifest: manifest.clone(), now: self.now };
        let mut done: Disabled = understood(remote.ask_a_server(disable, &progress.reporter()).await)?;
        let (job, mut failed) = (Job::Disabled { k3s: self.k3s }, Vec::new());
        for role in [Role::Agent, Role::Server] {
            for (host, answer) in remote.ask_all(remote.cluster.hosts.iter().filter(|h| h.role == role), &job).await {
                match understood::<Vec<String>>(answer) {
                    Ok(gone) => done.gone.extend(gone.iter().map(|g| format!("{host}: {g}"))),
                    Err(e) => failed.push(format!("{host}: {}", e.chain())),
                }
            }
        }
        if failed.is_empty() {
            return Ok(done);
        }
        Err(Error::failed(format!("the operator is gone, but these hosts could not be seen to:\n  {}", failed.join("\n  ")))
            .hint("run the same command again when they can be reached"))
    }
}

fn in_words(done: &Disabled) -> String {
    let mut lines: Vec<String> = done.gone.iter().map(|g| format!("gone: {g}")).collect();
    lines.extend(done.kept.iter().map(|k| format!("kept: {k}")));
    lines.push(if done.gone.is_empty() { "Smart updates were disabled already.".into() } else { "Smart updates are disabled.".into() });
    lines.join("\n")
}
