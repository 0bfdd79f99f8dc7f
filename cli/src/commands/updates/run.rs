use clap::Args;
use node::{Error, Result};
use serde_json::json;
use updates::names::RUN_ANNOTATION;

use super::access::{QUESTION, Reach, patched};
use super::change::{no_such_node, raw};
use super::view::obstacle;

#[derive(Debug, Args)]
pub struct Run {
    /// The nodes, by name
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    /// Do not wait for a window, nor for the time after a failure; without it nothing is done
    #[arg(long)]
    now: bool,
}

impl Run {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        if !self.now {
            let again = format!("smartup updates run {} --now", self.nodes.join(" "));
            return Err(Error::invalid("in their turn nodes are updated by themselves; this is for those that shall not wait").hint(again));
        }
        let objects = reach.open(QUESTION).await?;
        let manager = raw(&objects.manager().await?)?;
        if objects.node_updates.is_none() {
            return Err(Error::failed("this cluster's operator is not smartup's: it updates nodes when it wants to"));
        }
        let known = objects.node_labels().await?;
        if let Some(unknown) = self.nodes.iter().find(|n| !known.contains_key(n.as_str())) {
            return Err(no_such_node(unknown, &known.keys().map(String::as_str).collect::<Vec<_>>()));
        }
        let now = objects.now().await?;
        for node in &self.nodes {
            // nothing but the annotation is touched, so no version is needed
            let patch = json!({ "metadata": { "annotations": { RUN_ANNOTATION: now.to_string() } } });
            let done = patched(&objects.nodes, node, &patch).await?;
            done.ok_or_else(|| Error::failed(format!("{node} is being changed by somebody else")))?;
            match obstacle(&manager, node) {
                None => anstream::println!("{node}: an update was asked for, and is for the next hour"),
                Some(why) => anstream::println!("{node}: an update was asked for, and is for the next hour; at present: {why}"),
            }
        }
        anstream::println!("smartup updates status --watch shows what comes of it");
        Ok(())
    }
}
