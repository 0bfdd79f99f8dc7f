//! Commands of the machine, with errors that say what was run and what it answered.

use std::io::Write as _;
use std::ops::RangeInclusive;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Runs a command to its end and gives its standard output; anything but exit code 0 is an error with its stderr.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", line(command)))?;
    succeeded(&line(command), output)
}

/// Like [`run`], with `input` on the command's standard input.
pub(crate) fn run_with(command: &mut Command, input: &[u8]) -> Result<String> {
    let output = feed(command, input)?;
    succeeded(&line(command), output)
}

/// Runs a command with `input` on its standard input, whatever its exit code.
pub(crate) fn feed(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let mut stdin = child.stdin.take().context("no pipe to the command's stdin")?;
    std::thread::scope(|scope| {
        // Beside the reading, or both sides could wait for each other over full pipes. Not all commands read all their
        // input: a broken pipe is their decision.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    })
    .with_context(|| format!("cannot follow {}", line(command)))
}

fn succeeded(line: &str, output: Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{line}: {}: {}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{line}: its output is not UTF-8"))
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// From one question to the next.
const PAUSE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(500);

/// Asks `probe` again and again until it gives something; after `limit` it is an error that names `what` was awaited, and
/// the last error that `probe` gave. Most questions are processes: what is waited for gets most of the machine.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        let last = match probe() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= limit {
            let awaited = format!("{what}: not within {limit:?}");
            return Err(match last {
                Some(error) => error.context(awaited),
                None => anyhow::anyhow!(awaited),
            });
        }
        std::thread::sleep((asked.elapsed() * 3).clamp(*PAUSE.start(), *PAUSE.end()));
    }
}
