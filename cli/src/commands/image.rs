use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use node::{Context as _, Result};
use operator::image::{Image, Program};

/// The image that the maintenance operator runs from: this program on nothing else
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  smartup image save operator.tar && docker load -i operator.tar")]
pub struct ImageCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the image to a file that k3s, `ctr images import` and `docker load` take
    ///
    /// The hosts of a cluster have it already: init, join and apply put it there. It is for those who have a registry.
    Save {
        /// Where to; - for stdout
        file: PathBuf,
    },
}

impl ImageCommand {
    pub fn run(self) -> Result<ExitCode> {
        let Command::Save { file } = self.command;
        let image = own()?;
        let what = || format!("cannot write the image to {}", file.display());
        let digest = if file == Path::new("-") {
            image.write(std::io::stdout().lock()).context(what())?
        } else {
            let mut to = std::io::BufWriter::new(std::fs::File::create(&file).context(what())?);
            image.write(&mut to).and_then(|digest| to.flush().map(|()| digest)).context(what())?
        };
        anstream::eprintln!("{} ({digest})", image.reference());
        Ok(ExitCode::SUCCESS)
    }
}

/// How long a host may take to have the image: to write it, and to have containerd or docker import it.
pub const LIMIT: Duration = Duration::from_secs(300);

/// The image of the program that runs.
///
/// # Errors
/// Refused when it is dynamically linked; failed when it cannot be read.
pub fn own() -> Result<Image> {
    Ok(Image::of(Program::own()?, env!("CARGO_PKG_VERSION")))
}
