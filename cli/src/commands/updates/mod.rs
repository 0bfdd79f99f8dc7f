//! `smartup updates …`: how the nodes' updates stand, and how they are steered.

mod access;
mod bans;
mod change;
mod check;
mod forecast;
mod halt;
mod history;
mod nodes;
mod plan;
mod reports;
mod run;
mod status;
mod view;
mod when;
mod windows;

use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Subcommand};
use cluster::Invalid;
use node::Result;

use access::Reach;

/// See how the nodes' updates stand, and steer them
///
/// Run as root on a server, or from anywhere with a cluster's file or a kubeconfig. Everything can be done with kubectl as well.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smartup updates status\n  smartup updates window add '0 1 * * 1-5' 1h30m --time-zone Europe/Berlin\n  \
    smartup updates ban bash-4.2.46-34.vl7.x86_64 123-4-r5\n  smartup updates policy node1 node2 fast\n  \
    smartup updates suspend node1 -f cluster.yaml"
)]
pub struct Updates {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how the updates of each node stand
    Status(At<status::Status>),
    /// Say when updates may start
    Window(Box<windows::WindowCommand>),
    /// Keep builds of packages, and live patches, from being installed
    Ban(At<bans::Ban>),
    /// Let them be installed again
    Unban(At<bans::Unban>),
    /// List what is banned
    Bans(At<bans::List>),
    /// Say how soon after their publication updates are installed on nodes
    Policy(At<nodes::PolicyOf>),
    /// Let no update start any more, on some nodes or on all
    Suspend(At<nodes::Suspend>),
    /// Let updates start again, on some nodes or on all
    ///
    /// Without nodes it ends what `suspend` without nodes began; nodes that were suspended by their names stay so.
    Resume(At<nodes::Resume>),
    /// Let all nodes look for updates now
    Check(At<check::Check>),
    /// Show what would happen to which nodes, when, and with which packages
    ///
    /// It is what the controller would decide if everything went well, every server and every alert included.
    Plan(At<plan::Plan>),
    /// Let what a plan has be installed, where that has to be approved
    Approve(At<plan::Approve>),
    /// Show the updates that came to an end
    History(At<history::History>),
    /// Let nodes be updated now, first of all and outside of windows
    ///
    /// Everything else still holds: bans, suspension, budgets, alerts, quorum, and how many at a time.
    Run(At<run::Run>),
    /// Let no update start, and give back what has touched nothing yet
    Halt(At<halt::Halt>),
    /// End what `halt` began
    Continue(At<halt::Continue>),
}

/// A command's own arguments, and how it gets to the cluster.
#[derive(Debug, Args)]
struct At<T: Args> {
    #[command(flatten)]
    what: T,
    #[command(flatten)]
    reach: Reach,
}

impl Updates {
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Status(c) => return c.what.run(&c.reach).await,
            Command::Window(c) => c.run().await,
            Command::Ban(c) => c.what.run(&c.reach).await,
            Command::Unban(c) => c.what.run(&c.reach).await,
            Command::Bans(c) => c.what.run(&c.reach).await,
            Command::Policy(c) => c.what.run(&c.reach).await,
            Command::Suspend(c) => c.what.run(&c.reach).await,
            Command::Resume(c) => c.what.run(&c.reach).await,
            Command::Check(c) => c.what.run(&c.reach).await,
            Command::Plan(c) => c.what.run(&c.reach).await,
            Command::Approve(c) => c.what.run(&c.reach).await,
            Command::History(c) => c.what.run(&c.reach).await,
            Command::Run(c) => c.what.run(&c.reach).await,
            Command::Halt(c) => c.what.run(&c.reach).await,
            Command::Continue(c) => c.what.run(&c.reach).await,
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

/// For clap, which says the name and the value itself.
fn parsed<T: FromStr<Err = Invalid>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: Invalid| e.why)
}
