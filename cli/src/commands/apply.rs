use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use cluster::Role;
use fleet::apply::Work;
use fleet::order::{Conductor, End, Listed};
use node::{Error, Kind, Result};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Format, OutputArgs, duration};
use crate::exit;
use crate::output::{self, Hosts, outcome, short};
use crate::remote::{Connect, Remote};
use crate::run_here::stop_on_signal;

/// Make all hosts of cluster.yaml a cluster, over SSH
///
/// Shows what would change, asks, and does it: first the first server, then the other servers one by one, then the agents.
/// smartup sends itself to the hosts. Run again, it changes only what differs, and goes on where a run was cut off.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    smartup apply -f cluster.yaml\n  \
    smartup apply -f cluster.yaml --yes --only node4 node5\n  \
    smartup apply --accept-new-host-keys")]
pub struct Apply {
    #[command(flatten)]
    what: What,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// How long to wait for a host to be ready, as in 90s or 10m [default: the file's]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Show what `smartup apply` would change, and change nothing
///
/// On each host all checks are made and all steps compared; files are shown as diffs. What smartup sends there to find out is
/// removed again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    smartup plan -f cluster.yaml\n  \
    smartup plan -f cluster.yaml --exit-code -o json")]
pub struct Plan {
    #[command(flatten)]
    what: What,
    /// Exit with 3 when something would be changed
    #[arg(long)]
    exit_code: bool,
}

#[derive(Debug, Args)]
struct What {
    /// The file that describes the cluster
    #[arg(short, long, value_name = "FILE", default_value = "cluster.yaml")]
    file: PathBuf,
    /// Change these hosts only, called as in the file; servers are still asked what they are
    #[arg(long, value_name = "HOST", num_args = 1..)]
    only: Vec<String>,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: OutputArgs,
}

/// A host in the report, as `-o` prints it.
#[derive(Debug, Serialize)]
struct HostReport<'a> {
    host: &'a str,
    role: Role,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    /// What would be changed, in a plan.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<StepReport<'a>>,
}

#[derive(Debug, Serialize)]
struct StepReport<'a> {
    step: &'a str,
    changes: &'a [node::Change],
}

impl Apply {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        if !self.yes && !std::io::stdin().is_terminal() {
            return Err(Error::invalid("apply asks before it changes anything, and there is no terminal to ask on").hint("give --yes"));
        }
        let remote = Remote::load(&self.what.file, &self.what.connect, true)?;
        let (conductor, hosts) = run(&self.what, &remote, self.timeout, verbose, Some(self.yes)).await?;
        report(&self.what.output, &conductor, &hosts, false, &self.what.file)
    }
}

impl Plan {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        let remote = Remote::load(&self.what.file, &self.what.connect, false)?;
        let (conductor, hosts) = run(&self.what, &remote, None, verbose, None).await?;
        let code = report(&self.what.output, &conductor, &hosts, true, &self.what.file)?;
        let changes = conductor.ends().any(|(_, _, e)| matches!(e, Some(End::WouldChange)));
        Ok(if self.exit_code && changes && code == ExitCode::SUCCESS { ExitCode::from(exit::CHANGES) } else { code })
    }
}

/// `agreed`: whether the user need not be asked; None = a plan.
async fn run(what: &What, remote: &Remote, timeout: Option<Duration>, verbose: u8, agreed: Option<bool>) -> Result<(Conductor, Hosts)> {
    let plan = agreed.is_none();
    let work = remote.work(&what.only, timeout, plan)?;
    let conductor = Conductor::new(listed(&work), what.connect.parallel.into(), plan);
    conduct(remote, work, conductor, &what.output, verbose, agreed, "smartup plan").await
}

/// The hosts of a piece of work, for the conductor.
pub fn listed(work: &[Work]) -> Vec<Listed> {
    work.iter().map(|w| w.listed.clone()).collect()
}

/// Has it done, and shows it. `agreed`: whether the user need not be asked; None = a plan. `in_full`: the command that shows more than
/// the question does.
pub async fn conduct(
    remote: &Remote,
    work: Vec<Work>,
    conductor: Conductor,
    output: &OutputArgs,
    verbose: u8,
    agreed: Option<bool>,
    in_full: &str,
) -> Result<(Conductor, Hosts)> {
    let names = listed(&work).into_iter().map(|l| l.name).collect();
    let hosts = std::cell::RefCell::new(Hosts::new(names, output.events, verbose > 0));
    let agree = async |conductor: &Conductor| {
        let mut hosts = hosts.borrow_mut();
        hosts.print_warnings();
        // there is nothing to agree to where nothing will begin
        agreed == Some(true)
            || conductor.has_to_stop()
            || output::quietly(|| output::ask(&summary_before(conductor, &hosts, in_full)).unwrap_or(false))
    };
    let stop = stop_twice()?;
    let conductor =
        fleet::apply::apply(remote.common.clone(), work, conductor, stop, agree, |host, news| hosts.borrow_mut().news(host, &news)).await;
    let mut hosts = hosts.into_inner();
    hosts.finish();
    Ok((conductor, hosts))
}

/// The first Ctrl-C lets the steps under way end, the second leaves at once.
fn stop_twice() -> Result<CancellationToken> {
    let stop = stop_on_signal()?;
    let token = stop.clone();
    tokio::spawn(async move {
        token.cancelled().await;
        anstream::eprintln!("stopping when the steps under way have ended (once more: at once)");
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(130);
        }
    });
    Ok(stop)
}

/// What is about to happen, for the question.
fn summary_before(conductor: &Conductor, hosts: &Hosts, in_full: &str) -> String {
    let mut lines = vec!["This would be changed:".to_owned()];
    for (host, listed, end) in conductor.ends() {
        let steps = hosts.changes().get(&host).map_or(0, Vec::len);
        let what = match end {
            Some(End::Failed { error, .. }) => format!("cannot be changed: {}", error.what.lines().next().unwrap_or_default()),
            Some(_) => continue,
            None if steps == 1 => "1 step".into(),
            None => format!("{steps} steps"),
        };
        lines.push(format!("  {} ({}): {what}", listed.name, listed.role));
    }
    lines.push(format!("{in_full} shows it in full. "));
    lines.join("\n")
}

/// Prints how it went, and answers the exit code.
pub fn report(output: &OutputArgs, conductor: &Conductor, hosts: &Hosts, plan: bool, file: &Path) -> Result<ExitCode> {
    match output.output {
        Some(format @ (Format::Json | Format::Yaml)) => output::print(&as_data(conductor, hosts), format, |_| String::new())?,
        _ if output.events.is_some() => {}
        _ => anstream::println!("{}", in_words(conductor, hosts, plan, file)),
    }
    Ok(ExitCode::from(exit_code(conductor)))
}

/// A refusal decides, or else the first failure; what was not started has no cause of its own.
fn exit_code(conductor: &Conductor) -> u8 {
    let failures = failures(conductor);
    let cause = failures.iter().find(|(_, e)| e.kind == Kind::Refused).or(failures.first());
    let good = conductor.ends().all(|(_, _, end)| end.is_some_and(End::is_good));
    cause.map_or(u8::from(!good), |(_, e)| exit::code(e.kind))
}

/// The hosts that failed, and why: what broke, then what was refused, since that often follows from it.
fn failures(conductor: &Conductor) -> Vec<(&str, &Error)> {
    let failure = conductor.ends().filter_map(|(_, listed, end)| match end {
        Some(End::Failed { error, .. }) => Some((listed.name.as_str(), error)),
        _ => None,
    });
    let mut failures: Vec<_> = failure.collect();
    failures.sort_by_key(|(_, error)| error.kind == Kind::Refused);
    failures
}

fn as_data<'a>(conductor: &'a Conductor, hosts: &'a Hosts) -> Vec<HostReport<'a>> {
    let report = |(host, listed, end): (usize, &'a Listed, Option<&'a End>)| {
        let (error, hint) = match end {
            Some(End::Failed { error, .. }) => (Some(error.chain()), error.hint.as_deref()),
            Some(End::NotStarted(why)) => (Some(why.clone()), None),
            _ => (None, None),
        };
        let changes = match end {
            Some(End::WouldChange) => hosts.changes().get(&host).map(Vec::as_slice).unwrap_or_default(),
            _ => &[],
        };
        let changes = changes.iter().map(|(step, changes)| StepReport { step, changes }).collect();
        HostReport { host: &listed.name, role: listed.role, outcome: end.map_or("unknown", outcome), error, hint, changes }
    };
    conductor.ends().map(report).collect()
}

/// The report for people: causes first, then what follows from them, then what was done.
fn in_words(conductor: &Conductor, hosts: &Hosts, plan: bool, file: &Path) -> String {
    let mut text = Vec::new();
    for (host, error) in failures(conductor) {
        text.push(format!("{host}: {}", error.chain()));
        text.extend(error.hint.iter().map(|h| format!("  hint: {h}")));
    }
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for (_, listed, end) in conductor.ends() {
        if let Some(End::NotStarted(why)) = end {
            match reasons.iter_mut().find(|(w, _)| w == why) {
                Some((_, names)) => names.push(&listed.name),
                None => reasons.push((why, vec![&listed.name])),
            }
        }
    }
    text.extend(reasons.iter().map(|(why, names)| format!("not started: {}: {why}", short(names))));
    if plan {
        for (host, listed, end) in conductor.ends() {
            if let (Some(End::WouldChange), Some(changes)) = (end, hosts.changes().get(&host)) {
                text.push(format!("{} ({})", listed.name, listed.role));
                for node::Change { what, diff } in changes.iter().flat_map(|(_, changes)| changes) {
                    text.push(format!("  {what}"));
                    text.extend(diff.iter().flat_map(|d| d.lines()).map(|l| format!("    {l}")));
                }
            }
        }
    }
    let strangers = conductor.strangers();
    if strangers.is_none() {
        text.push("Whether the cluster has nodes that are not in the file is unknown: none of its servers could list them in time.".into());
    }
    for node in strangers.unwrap_or_default() {
        text.push(format!(
            "{} ({}, {}) is in the cluster and not in the file; it is left alone.\n  To take it out: smartup remove -f {} {}",
            node.name,
            node.role,
            node.address,
            file.display(),
            node.name
        ));
    }
    text.push(counts(conductor));
    text.join("\n")
}

fn counts(conductor: &Conductor) -> String {
    let of = |word: &str| conductor.ends().filter(|(_, _, e)| e.map_or("unknown", outcome) == word).count();
    let said = [
        ("failed", "failed"),
        ("unknown", "unknown how far"),
        ("not_started", "not started"),
        ("would_change", "would be changed"),
        ("changed", "changed"),
        ("unchanged", "as wanted already"),
    ];
    let parts: Vec<String> = said.iter().filter(|(word, _)| of(word) > 0).map(|(word, text)| format!("{} {text}", of(word))).collect();
    let mut text = format!("{} hosts: {}.", conductor.ends().count(), parts.join(", "));
    if of("failed") + of("unknown") + of("not_started") > 0 {
        text.push_str(" Running it again goes on from here.");
    }
    text
}

#[cfg(test)]
mod tests {
    use fleet::protocol::{FromNode, State};

    use super::*;

    #[test]
    fn what_broke_comes_before_what_was_refused_because_of_it() {
        let names = ["h1", "h2", "h3"].map(str::to_owned);
        let listed = names.clone().map(|name| Listed { name, role: Role::Server, selected: true });
        let mut conductor = Conductor::new(listed.into(), 8, false);
        conductor.heard(0, &FromNode::State(State::default()));
        conductor.heard(1, &FromNode::State(State::default()));
        conductor.lost(2, Error::failed("cannot connect to h3").hint("is it up?"));
        let hosts = Hosts::new(names.into(), None, false);
        insta::assert_snapshot!(in_words(&conductor, &hosts, false, Path::new("cluster.yaml")), @r"
        h3: cannot connect to h3
          hint: is it up?
        h1: a new cluster would be started, but h3 cannot be asked whether there is one already
          hint: make every server of the file reachable, or take those out that are gone for ever
        not started: h2: it is not known which cluster it belongs to
        3 hosts: 2 failed, 1 not started. Running it again goes on from here.
        ");
        assert_eq!(exit_code(&conductor), exit::code(Kind::Refused));
    }
}
