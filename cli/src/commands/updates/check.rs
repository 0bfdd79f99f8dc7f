use clap::Args;
use jiff::Timestamp;
use node::{Error, Result};
use serde_json::json;
use updates::names::{CHECK_ANNOTATION, INSTANCE};

use super::access::{QUESTION, Reach, missing, patched};

#[derive(Debug, Args)]
pub struct Check {}

impl Check {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        let objects = reach.open(QUESTION).await?;
        objects.manager().await?;
        if objects.node_updates.is_none() {
            return Err(Error::failed("this cluster's operator is not smartup's: it looks for updates when it wants to"));
        }
        // nothing but the annotation is touched, so no version is needed
        let patch = json!({ "metadata": { "annotations": { CHECK_ANNOTATION: Timestamp::now().to_string() } } });
        patched(&objects.managers, INSTANCE, &patch).await?.ok_or_else(missing)?;
        anstream::println!("all nodes were asked to look for updates now; smartup updates status --watch shows what they find");
        Ok(())
    }
}
