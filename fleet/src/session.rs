//! The conversation with one host.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use node::{Context as _, Error, Result};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::protocol::{FromNode, Job, K3s, State, ToNode};
use crate::ssh::{self, Connection, Exit, Process, Stdin, Stdout, Target};
use crate::upload::{self, LocalFile, Programs, as_root};

/// A node that hears nothing for a minute takes us for gone.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// What holds for all hosts.
#[derive(Debug, Clone)]
pub struct Common {
    /// How to connect.
    pub ssh: ssh::Options,
    /// What to run there.
    pub programs: Programs,
    /// The k3s binaries that hosts may want, by their SHA-256.
    pub k3s: BTreeMap<String, LocalFile>,
    /// Whether smartup stays on a host that did not have it.
    pub keep: bool,
    /// How many hosts are connected to, and sent files, at the same time.
    pub permits: Arc<Semaphore>,
}

/// What comes of a conversation.
#[derive(Debug)]
pub enum Input {
    /// A file is on its way; said once for each further percent.
    Sending {
        /// What is sent.
        what: &'static str,
        /// How much of it, in percent.
        percent: u64,
    },
    /// The node said something.
    Said(FromNode),
    /// The conversation could not begin, or broke off before the node said how it ended.
    Lost(Error),
}

/// Connects, starts smartup on the host (and sends it there if need be), gives it the job, passes on `orders`, and hands over
/// all that is said, until the job has ended. The end of `orders` tells the node that there is nothing more to do.
pub async fn converse(common: &Common, target: &Target, job: Job, orders: UnboundedReceiver<ToNode>, hand: impl Fn(Input)) {
    if let Err(e) = try_converse(common, target, job, orders, &hand).await {
        hand(Input::Lost(e));
    }
}

async fn try_converse(common: &Common, target: &Target, job: Job, orders: UnboundedReceiver<ToNode>, hand: &impl Fn(Input)) -> Result<()> {
    let permit = common.permits.acquire().await.context("cannot begin")?;
    let connection = ssh::connect(target, &common.ssh).await?;
    let Started { mut process, stdin, mut stdout, first, sent } = start(common, &connection, &job, hand).await?;
    drop(permit);
    let pump = tokio::spawn(pump(stdin, orders));
    let mut next = Some(first);
    let mut over = false;
    while let Some(message) = next {
        over |= matches!(message, FromNode::Done { .. } | FromNode::Failed(_));
        let wants = matches!(&message, FromNode::State(State { wants_k3s: true, .. }) | FromNode::WantsK3s);
        if let (true, Some(k3s), true) = (wants, wanted_k3s(common, &job), common.keep) {
            let _permit = common.permits.acquire().await.context("cannot begin")?;
            upload::send(&connection, k3s, "k3s", |percent| hand(Input::Sending { what: "k3s", percent })).await?;
        }
        hand(Input::Said(message));
        next = read(&mut stdout).await?;
    }
    pump.abort();
    let exit = process.wait().await;
    let result = if over { Ok(()) } else { Err(ended(&connection, &exit, &process.stderr())) };
    if let (Some(program), false) = (&sent, common.keep) {
        upload::remove(&connection, program, "smartup").await?;
    }
    connection.close().await;
    result
}

fn wanted_k3s<'a>(common: &'a Common, job: &Job) -> Option<&'a LocalFile> {
    let k3s = match job {
        Job::Setup(setup) => &setup.k3s,
        Job::Upgrade(upgrade) => &upgrade.k3s,
        _ => return None,
    };
    match k3s {
        K3s::Sent { sha256, .. } => common.k3s.get(sha256),
        K3s::Host | K3s::Release { .. } => None,
    }
}

/// A node at work.
struct Started {
    process: Process,
    stdin: Stdin,
    stdout: Stdout,
    /// What it said first.
    first: FromNode,
    /// What had to be sent for it.
    sent: Option<LocalFile>,
}

async fn start(common: &Common, connection: &Connection, job: &Job, hand: &impl Fn(Input)) -> Result<Started> {
    let mut program = common.programs.first_guess().cloned();
    let mut sent = None;
    // another processor, then a program that is not there: three times at most
    for _ in 0..3 {
        let Some(guess) = program else { break };
        match run(connection, &guess, job).await? {
            Run::Started(mut started) => {
                started.sent = sent;
                return Ok(*started);
            }
            Run::Absent { arch } => {
                let right = common.programs.for_arch(&arch)?;
                if *right == guess {
                    upload::send(connection, right, "smartup", |percent| hand(Input::Sending { what: "smartup", percent })).await?;
                    sent = Some(right.clone());
                }
                program = Some(right.clone());
            }
        }
    }
    Err(Error::failed("smartup was sent to the host, and is not there").hint("does something remove files from /var/lib/smartup/bin?"))
}

enum Run {
    Started(Box<Started>),
    Absent { arch: String },
}

/// Runs a program that may not be there yet.
async fn run(connection: &Connection, program: &LocalFile, job: &Job) -> Result<Run> {
    let path = program.remote_path("smartup");
    let script = format!("test -x {path} && exec {path} node; echo absent; uname -m");
    let mut process = connection.exec(&as_root(connection, &script)).await?;
    let (Some(mut stdin), Some(mut stdout)) = (process.stdin.take(), process.stdout.take()) else {
        return Err(Error::failed("the command has no input or output"));
    };
    // where there is no program to read it, it is lost, and sent again
    let _ = write(&mut stdin, &ToNode::Job(job.clone())).await;
    let line = read_line(&mut stdout).await?.unwrap_or_default();
    if line.trim() == "absent" {
        let arch = read_line(&mut stdout).await?.unwrap_or_default();
        return Ok(Run::Absent { arch: harmless(arch.trim()) });
    }
    if let Ok(first) = understand(&line) {
        return Ok(Run::Started(Box::new(Started { process, stdin, stdout, first, sent: None })));
    }
    drop((stdin, stdout));
    let exit = process.wait().await;
    Err(not_started(connection, &exit, &line, &process.stderr()))
}

/// The next thing that the node says; None at its end.
async fn read(stdout: &mut Stdout) -> Result<Option<FromNode>> {
    loop {
        let Some(line) = read_line(stdout).await? else { return Ok(None) };
        match understand(&line) {
            Ok(message) => return Ok(Some(message)),
            // only the place is told: the line itself may hold a secret
            Err(e) => tracing::warn!("a line from the host is not understood, column {}", e.column()),
        }
    }
}

/// The longest line that is taken from a host, in bytes: far more than any diff, far less than would be felt here.
const LONGEST: u64 = 16 << 20;

async fn read_line(stdout: &mut Stdout) -> Result<Option<String>> {
    let mut line = String::new();
    let n = stdout.take(LONGEST).read_line(&mut line).await.context("cannot read what the host says")?;
    if n > 0 && !line.ends_with('\n') && u64::try_from(n).is_ok_and(|n| n == LONGEST) {
        return Err(Error::failed("the host says more in one line than smartup ever does"));
    }
    Ok((n > 0).then_some(line))
}

/// A message, with nothing in it that would move a terminal's cursor: the host may not be ours any more.
fn understand(line: &str) -> serde_json::Result<FromNode> {
    let mut value: Value = serde_json::from_str(line)?;
    defuse(&mut value);
    serde_json::from_value(value)
}

fn defuse(value: &mut Value) {
    match value {
        Value::String(text) => *text = harmless(text),
        Value::Array(all) => all.iter_mut().for_each(defuse),
        Value::Object(all) => all.values_mut().for_each(defuse),
        _ => {}
    }
}

/// A text without what moves a cursor, but line breaks and tabs.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

async fn write(stdin: &mut Stdin, message: &ToNode) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stdin.write_all(&line).await
}

/// Passes orders on, and gives signs of life between them.
async fn pump(mut stdin: Stdin, mut orders: UnboundedReceiver<ToNode>) {
    loop {
        let message = tokio::select! {
            order = orders.recv() => match order {
                Some(order) => order,
                None => break,
            },
            () = tokio::time::sleep(SIGN_OF_LIFE) => ToNode::Here,
        };
        // a process that has ended is noticed where its output is read
        if write(&mut stdin, &message).await.is_err() {
            return;
        }
    }
    let _ = stdin.shutdown().await;
}

fn not_started(connection: &Connection, exit: &Exit, line: &str, stderr: &str) -> Error {
    let (user, stderr) = (connection.user(), harmless(stderr.trim()));
    if stderr.contains("sudo") {
        return Error::failed(format!("{user} may not use sudo without a password there: {stderr}"))
            .hint(format!("let {user} do so (`{user} ALL=(ALL) NOPASSWD: ALL` in sudoers), or log in as root (ssh: {{user: root}})"));
    }
    if *exit == Exit::Lost {
        return Error::failed("the connection was lost before smartup ran there").hint("run again");
    }
    let said = if stderr.is_empty() { harmless(line.trim()) } else { stderr };
    Error::failed(format!("smartup cannot be run there: {said}"))
        .hint(format!("{} must allow programs to be run (not mounted noexec), and the login must not print anything", node::Host::PROGRAMS))
}

fn ended(connection: &Connection, exit: &Exit, stderr: &str) -> Error {
    let stderr = harmless(stderr.trim());
    match exit {
        Exit::Lost => Error::failed("the connection was lost in the middle of the work; how far it came is unknown")
            .hint("run again: it goes on where it was; while smartup still runs there, it says so"),
        Exit::Signal(name) => Error::failed(format!("smartup was ended there by SIG{name} {stderr}")).hint("run again"),
        Exit::Code(code) => {
            let e = Error::failed(format!("smartup ended there without a word (exit {code}): {stderr}"));
            e.hint(format!("please report this; run again as {} on the host itself to see more", connection.user()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::Event;

    #[test]
    fn what_a_host_says_does_not_move_the_cursor() {
        let line = r#"{"say":"event","event":{"event":"warning","what":"a\u001b[2Jb\nc\td\u0007\u009b"}}"#;
        let FromNode::Event { event: Event::Warning { what, .. } } = understand(line).unwrap() else { panic!() };
        assert_eq!(what, "a\u{fffd}[2Jb\nc\td\u{fffd}\u{fffd}");
    }
}
