use clap::Args;
use node::Result;
use updates::Policy;
use updates::edit::{Edit, NodeEdit};

use super::access::{QUESTION, Reach};
use super::{change, parsed};

#[derive(Debug, Args)]
pub struct PolicyOf {
    /// The nodes, by name
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    /// How long after their publication, by the spec's stageDelays: fast: 0 days, slow: 14, stable: 42, if nobody changed them; auto:
    /// the operator chooses one of them
    #[arg(value_name = "fast|slow|stable|auto", value_parser = parsed::<Policy>)]
    policy: Policy,
}

impl PolicyOf {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        change::relabel(&reach.open(QUESTION).await?, &self.nodes, NodeEdit::Policy(self.policy)).await
    }
}

#[derive(Debug, Args)]
pub struct Suspend {
    /// The nodes, by name [default: the whole cluster]
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
}

impl Suspend {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        switch(reach, &self.nodes, Edit::Suspend, NodeEdit::Suspend).await
    }
}

#[derive(Debug, Args)]
pub struct Resume {
    /// The nodes, by name [default: the whole cluster]
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
}

impl Resume {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        switch(reach, &self.nodes, Edit::Resume, NodeEdit::Resume).await
    }
}

async fn switch(reach: &Reach, nodes: &[String], of_all: Edit, of_some: NodeEdit) -> Result<()> {
    let objects = reach.open(QUESTION).await?;
    if nodes.is_empty() { change::apply(&objects, &[of_all]).await } else { change::relabel(&objects, nodes, of_some).await }
}
