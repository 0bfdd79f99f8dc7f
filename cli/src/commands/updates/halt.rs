use clap::Args;
use node::Result;
use updates::edit::Edit;

use super::access::{QUESTION, Reach};
use super::change;

#[derive(Debug, Args)]
pub struct Halt {}

impl Halt {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        change::apply(&reach.open(QUESTION).await?, &[Edit::Halt]).await
    }
}

#[derive(Debug, Args)]
pub struct Continue {}

impl Continue {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        change::apply(&reach.open(QUESTION).await?, &[Edit::Continue]).await
    }
}
