use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use node::Result;

use super::Cli;

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  smartup completions bash > /etc/bash_completion.d/smartup")]
pub struct Completions {
    shell: clap_complete::Shell,
}

impl Completions {
    #[expect(clippy::unnecessary_wraps, reason = "all commands answer the same")]
    pub fn run(self) -> Result<ExitCode> {
        clap_complete::generate(self.shell, &mut Cli::command(), "smartup", &mut std::io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}
