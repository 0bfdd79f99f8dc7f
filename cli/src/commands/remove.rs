use std::process::ExitCode;

use clap::Args;
use cluster::Role;
use cluster::file::HostSpec;
use fleet::protocol::Job;
use node::{Error, Host, Result};
use serde_json::json;

use super::leave::{HowArgs, SLACK};
use super::reset::agree;
use super::{Format, Reach, understood};
use crate::depart;
use crate::output::{self, Progress};
use crate::remote::Remote;
use crate::run_here::stop_on_signal;

/// Take a host out of the cluster, also one that is dead for ever
///
/// Run as root on a server that stays, or with a cluster's file from anywhere. Only if etcd keeps its quorum. The host's pods go
/// elsewhere (disruption budgets are respected), its etcd member and its node are removed, and, with -f and where it can be
/// reached, what smartup did there is undone. A new host of the same name and address can join then.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smartup remove node4\n  smartup remove -f cluster.yaml node4")]
pub struct Remove {
    /// The host, by its node's name or address, or as the file calls it
    host: String,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    reach: Reach,
}

impl Remove {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        let remote = self.reach.remote()?;
        if !self.how.yes {
            agree(&format!("This takes {} out of the cluster, and its data with it.\n", self.host))?;
        }
        let done = match &remote {
            Some(remote) => self.over_ssh(remote).await?,
            None => self.here(verbose).await?,
        };
        let format = self.reach.output.output.unwrap_or(Format::Table);
        output::print(&json!({ "host": self.host, "done": done }), format, |_| match done.as_slice() {
            [] => format!("{} is not in the cluster; nothing was changed.", self.host),
            done => done.join("\n"),
        })?;
        Ok(ExitCode::SUCCESS)
    }

    async fn here(&self, verbose: u8) -> Result<Vec<String>> {
        let progress = Progress::start(self.reach.output.events, verbose > 0, false);
        let host = Host::open(progress.reporter(), stop_on_signal()?, self.how.timeout + SLACK).await?;
        let done = depart::of_another(&host, std::slice::from_ref(&self.host), self.how.how().into()).await;
        drop(host);
        progress.finish().await;
        let mut done = done?;
        if !done.is_empty() {
            done.push(format!("If {} lives, undo there what smartup did: smartup reset", self.host));
        }
        Ok(done)
    }

    /// A server that can be reached leaves by itself, which gives the VIP away first; all others are removed by another server.
    async fn over_ssh(&self, remote: &Remote) -> Result<Vec<String>> {
        let spec = remote.cluster.hosts.iter().find(|h| h.host.as_str() == self.host);
        let reached = match spec {
            Some(spec) => remote.reach(spec).await,
            None => Err(Error::failed("it is not in the file")),
        };
        let mut done = match (spec, &reached) {
            (Some(spec), Ok(())) if spec.role == Role::Server => return understood(remote.ask(spec, Job::Leave(self.how.how())).await),
            _ => self.by_a_server(remote, spec).await?,
        };
        match (spec, reached) {
            (Some(spec), Ok(())) => {
                if done.is_empty() {
                    done.push(format!("{} is not in the cluster", self.host));
                }
                remote.ask(spec, Job::Reset { packages: self.how.packages }).await?;
                done.push(format!("undone on {} what smartup did there", spec.host));
            }
            (_, Err(why)) if !done.is_empty() => {
                done.push(format!("{} itself was not touched: {}. If it comes back: smartup reset there", self.host, why.chain()));
            }
            _ => {}
        }
        Ok(done)
    }

    async fn by_a_server(&self, remote: &Remote, spec: Option<&HostSpec>) -> Result<Vec<String>> {
        let mut called = vec![self.host.clone()];
        called.extend(spec.and_then(|s| s.node_ip).map(|a| a.to_string()));
        let mut silent = Vec::new();
        for server in remote.cluster.servers().filter(|s| s.host.as_str() != self.host) {
            match remote.reach(server).await {
                Ok(()) => return understood(remote.ask(server, Job::Remove { called, how: self.how.how() }).await),
                Err(e) => silent.push(format!("{}: {}", server.host, e.chain())),
            }
        }
        Err(Error::failed(format!("no other server of the file can be reached:\n  {}", silent.join("\n  "))))
    }
}
