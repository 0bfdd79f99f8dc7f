//! What init and join share: the run on this host, and its report.

use std::process::ExitCode;

use cluster::{Role, Vip};
use node::{Error, Host, Mode, Result, Run, Summary};
use serde::Serialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::commands::{Format, HostArgs};
use crate::exit;
use crate::output::{self, Progress};
use crate::setup::{self, Setup, Wanted};

/// The result, as `-o` prints it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    role: Role,
    node: String,
    vip: Vip,
    url: &'a str,
    dry_run: bool,
    changed: usize,
    unchanged: usize,
}

/// Brings this host to what is wanted, or says what that would change.
///
/// # Errors
/// When an input cannot be, a check fails, or a step does.
pub async fn run(wanted: Wanted, args: &HostArgs, verbose: u8) -> Result<ExitCode> {
    let progress = Progress::start(args.output.events, verbose > 0, args.dry_run);
    let done = set_up(wanted, args, &progress).await;
    progress.finish().await;
    if args.output.events.is_some() {
        say_how_it_ended(done.as_ref().map(|(_, _, summary)| *summary), args.dry_run);
    }
    let (setup, node, summary) = done?;
    let url = setup.k3s.url();
    let report = Report {
        role: setup.membership.role,
        node,
        vip: setup.membership.vip,
        url: &url,
        dry_run: args.dry_run,
        changed: summary.changed,
        unchanged: summary.unchanged,
    };
    match args.output.output {
        Some(format @ (Format::Json | Format::Yaml)) => output::print(&report, format, |_| String::new())?,
        _ if args.output.events.is_some() => {}
        _ => anstream::println!("{}", in_words(&report, setup.membership.first)),
    }
    Ok(if args.exit_code && summary.changed > 0 { ExitCode::from(exit::CHANGES) } else { ExitCode::SUCCESS })
}

async fn set_up(wanted: Wanted, args: &HostArgs, progress: &Progress) -> Result<(Setup, String, Summary)> {
    let host = Host::open(progress.reporter(), stop_on_signal()?, args.timeout).await?;
    let _lock = setup::lock(&host, args.dry_run)?;
    let setup = Setup::resolve(&host, wanted)?;
    setup::judge(&host, &setup.preflight(&host).await?, &args.ignore)?;
    let parts = setup.parts(&host).await?;
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Apply };
    let mut run = Run::new(&host, mode, parts.total());
    for part in parts.all() {
        run.part(part).await?;
    }
    let summary = run.summary();
    Ok((setup, host.facts.hostname.clone(), summary))
}

/// The last of the events, as `smartup apply` has one for each host.
pub fn say_how_it_ended(done: Result<Summary, &Error>, dry_run: bool) {
    let event = match done {
        Ok(summary) if summary.changed == 0 => json!({ "event": "host_done", "outcome": "unchanged" }),
        Ok(_) if dry_run => json!({ "event": "host_done", "outcome": "would_change" }),
        Ok(_) => json!({ "event": "host_done", "outcome": "changed" }),
        Err(e) => json!({ "event": "host_done", "outcome": "failed", "error": e.chain(), "hint": e.hint }),
    };
    anstream::println!("{event}");
}

fn in_words(report: &Report<'_>, first: bool) -> String {
    let Report { role, node, url, changed, unchanged, .. } = report;
    if report.dry_run {
        return match changed {
            0 => format!("Nothing would be changed ({unchanged} steps checked)."),
            1 => format!("1 step would change this host, {unchanged} would not. Nothing was changed."),
            n => format!("{n} steps would change this host, {unchanged} would not. Nothing was changed."),
        };
    }
    let did = if *changed == 0 {
        format!("nothing had to be changed ({unchanged} steps checked)")
    } else {
        format!("{changed} steps changed, {unchanged} unchanged")
    };
    let article = if *role == Role::Server { "a" } else { "an" };
    let mut text = format!("{node} is {article} {role} of the cluster at {url}: {did}.");
    if first {
        text.push_str(
            "\n\nTo add a host, print a ticket here (a secret: keep it out of logs and shell histories):\n  \
             smartup ticket --role server > server.ticket    and on the new host: smartup join --role server --ticket server.ticket\n  \
             smartup ticket --role agent > agent.ticket      and on the new host: smartup join --role agent --ticket agent.ticket",
        );
    }
    text
}

/// Ctrl-C and SIGTERM let the step under way end.
///
/// # Errors
/// When the signals cannot be caught.
pub fn stop_on_signal() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let of = |kind| signal(kind).map_err(|e| Error::failed("cannot catch signals").because(e));
    let (mut int, mut term) = (of(SignalKind::interrupt())?, of(SignalKind::terminate())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
        token.cancel();
    });
    Ok(stop)
}
