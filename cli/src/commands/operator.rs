use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use node::Result;
use operator::Pod;
use operator::image::Reference;

use super::image;
use crate::run_here::stop_on_signal;

/// The maintenance operator, which keeps the nodes of a cluster patched
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  smartup operator manifest | kubectl apply -f -")]
pub struct Operator {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print all that is to be applied to a cluster
    Manifest {
        /// Run this image, from a registry, in the place of the one that smartup puts on every host
        #[arg(long, value_name = "REF")]
        image: Option<Reference>,
        /// For Kubernetes 1.30 or newer: agents can write the status of their own nodes only
        #[arg(long)]
        admission_policy: bool,
    },
    /// Be the controller (in a pod)
    #[command(hide = true)]
    Controller(PodArgs),
    /// Be a node's agent (in a pod)
    #[command(hide = true)]
    Agent(PodArgs),
    /// Wait until the operator works (in a pod)
    #[command(hide = true)]
    Job,
    /// Carry out what this host's agent has ordered (on the host)
    #[command(hide = true)]
    Work { seat: Seat },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Seat {
    Update,
    Look,
}

#[derive(Debug, Args)]
struct PodArgs {
    /// The pod's name
    #[arg(long, env)]
    pod_name: String,
    /// The node that it is on
    #[arg(long, env)]
    node_name: String,
}

impl From<PodArgs> for Pod {
    fn from(args: PodArgs) -> Self {
        Self { name: args.pod_name, node: args.node_name }
    }
}

impl Operator {
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Manifest { image, admission_policy } => {
                let image = image.map_or_else(|| image::own().map(|own| own.reference().clone()), Ok)?;
                anstream::print!("{}", operator::manifest(&image, admission_policy)?);
            }
            Command::Controller(pod) => operator::controller(&pod.into(), &stop_on_signal()?).await?,
            Command::Agent(pod) => operator::agent(&pod.into(), &stop_on_signal()?).await?,
            Command::Job => operator::job(&stop_on_signal()?).await?,
            Command::Work { seat: Seat::Update } => operator::work(operator::Seat::Update).await?,
            Command::Work { seat: Seat::Look } => operator::work(operator::Seat::Look).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
