use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use node::{Context as _, Result};

use super::Cli;

/// Write the manual pages into a folder (for packages)
#[derive(Debug, Args)]
pub struct Man {
    /// The folder, which must exist
    folder: PathBuf,
}

impl Man {
    pub fn run(self) -> Result<ExitCode> {
        clap_mangen::generate_to(Cli::command(), &self.folder).context(format!("cannot write to {}", self.folder.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
