use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use fleet::protocol::Leave as How;
use node::{Host, Result};
use serde_json::json;

use super::reset::{agree, in_words};
use super::{Format, OutputArgs, duration};
use crate::depart;
use crate::output::{self, Progress};
use crate::run_here::stop_on_signal;

/// Take this server out of its cluster
///
/// Only if etcd keeps its quorum without it. Its pods go elsewhere (disruption budgets are respected), the floating address
/// goes to another server, its etcd member and its node are removed, and then what smartup did here is undone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smartup leave\n  smartup leave --yes --timeout 30m")]
pub struct Leave {
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What leaving and removing have in common.
#[derive(Debug, Args)]
pub struct HowArgs {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Evict pods that nothing brings back, and give up volumes on the host's own disk
    #[arg(long)]
    pub force: bool,
    /// How long the pods may take to go elsewhere, as in 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub timeout: Duration,
    /// Remove the packages that smartup installed there as well
    #[arg(long)]
    pub packages: bool,
}

impl HowArgs {
    /// For the other side.
    pub fn how(&self) -> How {
        How { force: self.force, timeout_s: self.timeout.as_secs().max(1), packages: self.packages }
    }
}

impl Leave {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        if !self.how.yes {
            agree("This takes this host out of its cluster and undoes what smartup did here.\n")?;
        }
        let progress = Progress::start(self.output.events, verbose > 0, false);
        let host = Host::open(progress.reporter(), stop_on_signal()?, self.how.timeout + SLACK).await?;
        let done = depart::of_this_server(&host, self.how.how().into(), self.how.packages).await;
        drop(host);
        progress.finish().await;
        let (done, undone) = done?;
        let data = json!({ "done": done, "undone": undone });
        output::print(&data, self.output.output.unwrap_or(Format::Table), |_| format!("{}\n{}", done.join("\n"), in_words(&undone)))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What comes after the drain.
pub const SLACK: Duration = Duration::from_secs(120);
