use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use cluster::Port;
use cluster::file::HostSpec;
use fleet::protocol::{self, Answer, Examined, FromNode, Job, ToNode};
use fleet::session::{Input, converse};
use futures::future::join_all;
use node::{Context as _, Error, Result};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Format;
use crate::clock::Clock;
use crate::doctor::between::{self, REACH, Seat};
use crate::doctor::{CHECKS, Finding, OnHost, Patient, Verdict, doors, examine, print};
use crate::output;
use crate::remote::{Connect, Remote};
use crate::run_here::stop_on_signal;

/// Look for what is wrong with this host and its cluster
///
/// Checks the host, what smartup set up on it, the floating address on the wire, certificates, the API, the nodes and etcd.
/// With -f it does so on all hosts of the file at once, compares them, and tries every port that they need between each other.
/// It changes nothing. The exit code is 0 when nothing failed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smartup doctor\n  smartup doctor --only vip,etcd-members\n  smartup doctor -o json | jq '.[] | select(.verdict != \"ok\")'\n  smartup doctor -f cluster.yaml"
)]
pub struct Doctor {
    /// How it is printed; of many hosts the table has only what is not fine, without -v
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Make only these checks (several with commas)
    #[arg(long, value_name = "CHECK", value_delimiter = ',', value_parser = PossibleValuesParser::new(CHECKS), hide_possible_values = true)]
    only: Vec<String>,
    /// Examine all hosts of this file over SSH, and what lies between them, rather than this host
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    connect: Option<Connect>,
}

impl Doctor {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        let failed = match Remote::maybe(self.file.as_deref(), self.connect.as_ref(), false)? {
            None => {
                let patient = Arc::new(Patient::here(None, stop_on_signal()?).await?);
                let mut found = examine(&patient, &self.only).await;
                let others = self.only.iter().filter(|o| !found.iter().any(|f| f.check == **o));
                let others: Vec<Finding> = others.map(|o| Finding::unknown(o, "it is made with -f FILE only", None)).collect();
                found.extend(others);
                output::print(&found, self.output, |found| print::one(found))?;
                found.iter().any(|f| f.verdict == Verdict::Fail)
            }
            Some(remote) => {
                let found = self.all(&remote).await?;
                output::print(&found, self.output, |found| print::many(found, verbose > 0))?;
                found.iter().any(|f| f.finding.verdict == Verdict::Fail)
            }
        };
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn wants(&self, check: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| o == check)
    }

    /// Three rounds with all hosts at once: what they find, what their clocks say, and what they reach of each other.
    async fn all(&self, remote: &Remote) -> Result<Vec<OnHost>> {
        // only to tell our doors from a stranger's: nothing is kept behind them
        let password = getrandom::u64().map_err(|e| Error::failed("no randomness").because(e))?;
        let password = self.wants(REACH).then(|| format!("smartup-{password:016x}"));
        let mut talks = JoinSet::new();
        let mut lines: Vec<(&HostSpec, Line)> = Vec::new();
        for host in &remote.cluster.hosts {
            let (orders, heard) = unbounded_channel();
            let (said, input) = unbounded_channel();
            let (common, target, job) =
                (remote.common.clone(), remote.target(host), Job::Doctor(Box::new(self.job(remote, host, password.clone()))));
            talks.spawn(async move { converse(&common, &target, job, heard, |input| drop(said.send(input))).await });
            lines.push((host, Line { orders, input }));
        }
        let mut found = Vec::new();
        let answers = join_all(lines.iter_mut().map(|(_, line)| line.examined())).await;
        let mut seats = Vec::new();
        let mut there = Vec::new();
        for ((host, line), answer) in lines.into_iter().zip(answers) {
            let name = host.host.to_string();
            let on = |finding| OnHost { host: name.clone(), finding };
            let understood = answer.and_then(|said| {
                let findings: Vec<Finding> = serde_json::from_value(said.findings.clone()).context("its findings are not understood")?;
                Ok((said, findings))
            });
            match understood {
                Err(e) => found.push(on(Finding { check: "ssh".into(), verdict: Verdict::Fail, what: e.chain(), hint: e.hint })),
                Ok((said, findings)) => {
                    if self.wants("ssh") {
                        found.push(on(Finding::ok("ssh", "smartup runs there")));
                    }
                    found.extend(findings.into_iter().map(on));
                    seats.push(Seat { name, role: host.role, said, clock: None });
                    there.push(line);
                }
            }
        }
        let clocks = join_all(there.iter_mut().map(Line::clock)).await;
        for (seat, clock) in seats.iter_mut().zip(clocks) {
            seat.clock = clock;
        }
        let (vip, port) = (remote.cluster.vip, remote.cluster.port.unwrap_or(Port::API));
        let judged = between::judge(&seats, vip, port);
        found.extend(judged.into_iter().filter(|f| self.wants(&f.finding.check)));
        if self.wants(REACH) && seats.len() > 1 {
            let errands = between::errands(&seats, vip, port);
            let knocked = join_all(there.iter_mut().zip(&errands).map(|(line, errands)| line.knock(between::knocks(errands)))).await;
            for (n, answers) in knocked.iter().enumerate() {
                let answers = answers.as_ref().map(Vec::as_slice).map_err(String::as_str);
                found.extend(between::reached(&seats, n, &errands[n], answers));
            }
        }
        // the end of the orders closes the doors; what was sent there is removed
        drop(there);
        let _ = timeout(FAREWELL, async { while talks.join_next().await.is_some() {} }).await;
        found.sort_by_key(|f| f.finding.rank());
        Ok(found)
    }

    fn job(&self, remote: &Remote, host: &HostSpec, password: Option<String>) -> protocol::Doctor {
        protocol::Doctor {
            only: self.only.clone(),
            role: host.role,
            vip: remote.cluster.vip,
            port: remote.cluster.port,
            interface: host.interface.clone(),
            node_ip: host.node_ip,
            password,
        }
    }
}

/// How long the hosts have to take their leave.
const FAREWELL: Duration = Duration::from_secs(15);
/// How long an answer may take that needs no look at anything.
const PROMPT: Duration = Duration::from_secs(10);
/// A clock is read so often, and the quickest answer counts: its error is the least.
const READINGS: u32 = 4;

/// The conversation with one host.
struct Line {
    orders: UnboundedSender<ToNode>,
    input: UnboundedReceiver<Input>,
}

impl Line {
    /// The next thing that is of interest.
    async fn hear<T>(&mut self, mut pick: impl FnMut(FromNode) -> Option<T>) -> Result<T> {
        while let Some(input) = self.input.recv().await {
            match input {
                Input::Lost(e) => return Err(e),
                Input::Said(FromNode::Failed(failure)) => return Err(failure.into()),
                Input::Said(said) => {
                    if let Some(picked) = pick(said) {
                        return Ok(picked);
                    }
                }
                Input::Sending { .. } => {}
            }
        }
        Err(Error::failed("smartup ended there without an answer"))
    }

    /// Every look on the host has its own time-out; how long it takes to get there is for SSH to judge.
    async fn examined(&mut self) -> Result<Examined> {
        self.hear(|said| match said {
            FromNode::Examined(examined) => Some(*examined),
            _ => None,
        })
        .await
    }

    async fn clock(&mut self) -> Option<Clock> {
        let mut best: Option<Clock> = None;
        for _ in 0..READINGS {
            let asked = jiff::Timestamp::now().as_millisecond();
            self.orders.send(ToNode::Clock).ok()?;
            let read = self.hear(|said| match said {
                FromNode::Clock { unix_ms } => Some(unix_ms),
                _ => None,
            });
            let read = timeout(PROMPT, read).await.ok()?.ok()?;
            let clock = Clock::measured(asked, read, jiff::Timestamp::now().as_millisecond());
            if best.is_none_or(|b| clock.error < b.error) {
                best = Some(clock);
            }
        }
        best
    }

    async fn knock(&mut self, at: Vec<protocol::Knock>) -> Result<Vec<Answer>, String> {
        // where it has gone, it is noticed below
        let _ = self.orders.send(ToNode::Knock { at });
        let answers = self.hear(|said| match said {
            FromNode::Knocked { answers } => Some(answers),
            _ => None,
        });
        match timeout(doors::LIMIT + PROMPT, answers).await {
            Ok(answers) => answers.map_err(|e| e.chain()),
            Err(_) => Err(format!("it did not answer within {} s", (doors::LIMIT + PROMPT).as_secs())),
        }
    }
}
