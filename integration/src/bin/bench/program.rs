//! The program itself: its size, its start, its memory.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

/// The static release binary.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    /// All of it.
    pub content: Vec<u8>,
}

impl Program {
    /// What `make` built, beside the folder that we were built into.
    pub fn find() -> Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let target = own.ancestors().nth(2).context("this program is in no target folder")?;
        let path = target.join("x86_64-unknown-linux-gnu/release/smartup");
        let content = std::fs::read(&path).with_context(|| format!("cannot read {}; hint: make", path.display()))?;
        Ok(Self { path, content })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size as an archive, bytes.
    pub fn compressed(&self) -> Result<usize> {
        let mut xz =
            Command::new("xz").args(["-9e", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run xz")?;
        let mut stdin = xz.stdin.take().context("no pipe to xz")?;
        let output = std::thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(&self.content));
            xz.wait_with_output()
        })?;
        ensure!(output.status.success(), "xz: {}", output.status);
        Ok(output.stdout.len())
    }

    /// Seconds from the start to the end of `--version`, many times.
    pub fn starts(&self) -> Result<Vec<f64>> {
        let start = || {
            let start = Instant::now();
            let status = Command::new(&self.path).arg("--version").stdout(Stdio::null()).status()?;
            ensure!(status.success(), "{} --version: {status}", self.path.display());
            Ok(start.elapsed().as_secs_f64())
        };
        (0..51).map(|_| start()).collect()
    }
}
