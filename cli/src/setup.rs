//! What init and join share: the checks, the steps in their order, and the run.

use std::path::Path;
use std::process::ExitCode;

use cluster::{Role, Token, Vip, Vrrp};
use k3s::EnvFile;
use node::{
    Error, FileStep, Finding, Host, Lock, Mode, ModulesStep, PackageStep, Plan, Preflight, Result, Summary, SysctlStep, Verdict,
    host_checks, run_plan,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::commands::{Format, HostArgs};
use crate::exit;
use crate::membership::{Membership, SavedVrrp, present_flags};
use crate::output::{self, Progress};

/// What a host shall become.
pub struct Wanted {
    /// Server or agent.
    pub role: Role,
    /// Whether it starts the cluster.
    pub first: bool,
    /// The floating address.
    pub vip: Vip,
    /// The API's port; None = as before, or the default.
    pub port: Option<cluster::Port>,
    /// The token; None on the first server: as before, or a new one.
    pub token: Option<Token>,
    /// What the servers agree on; None on an agent.
    pub vrrp: Option<Vrrp>,
}

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
    let (membership, url, name, summary) = done?;
    let report = Report {
        role: membership.role,
        node: name,
        vip: membership.vip,
        url: &url,
        dry_run: args.dry_run,
        changed: summary.changed,
        unchanged: summary.unchanged,
    };
    match args.output.output {
        Some(format @ (Format::Json | Format::Yaml)) => output::print(&report, format, |_| String::new())?,
        _ if args.output.events.is_some() => {}
        _ => anstream::println!("{}", in_words(&report, membership.first)),
    }
    Ok(if args.exit_code && summary.changed > 0 { ExitCode::from(exit::CHANGES) } else { ExitCode::SUCCESS })
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

async fn set_up(wanted: Wanted, args: &HostArgs, progress: &Progress) -> Result<(Membership, String, String, Summary)> {
    let source = args.source()?;
    let host = Host::open(progress.reporter(), stop_on_signal()?, args.timeout).await?;
    let _lock = if host.facts.root && !args.dry_run { Some(Lock::take(Path::new(Lock::PATH))?) } else { None };
    let saved = Membership::load()?;
    let port = wanted.port.or(saved.as_ref().map(|s| s.port)).unwrap_or(cluster::Port::API);
    if let Some(saved) = &saved {
        stays(saved, &wanted, port)?;
    }
    let node_ip = args.node_ip.or(saved.as_ref().map(|s| s.node_ip).filter(|a| host.facts.has(*a)));
    let (interface, own) = host.facts.place(wanted.vip, args.interface.as_ref(), node_ip)?;
    let placed = wanted.vip.place(&own)?;
    let token = match wanted.token {
        Some(token) => token,
        None => present_token(wanted.role)?
            .map_or_else(|| Token::generate().map_err(|e| Error::failed("no randomness for a token").because(e)), Ok)?,
    };
    let mut k3s_args: Vec<String> = present_flags(wanted.role).iter().map(str::to_owned).collect();
    k3s_args.extend(args.k3s_arg.iter().cloned());
    let mut membership = Membership {
        role: wanted.role,
        first: wanted.first,
        vip: placed.to_string().parse()?,
        port,
        interface: interface.clone(),
        node_ip: own.addr(),
        runtime: args.runtime.or(saved.as_ref().map(|s| s.runtime)).unwrap_or_default(),
        firewall: !args.no_firewall && saved.as_ref().is_none_or(|s| s.firewall),
        networks: Vec::new(),
        vrrp: wanted.vrrp.as_ref().map(SavedVrrp::of),
    };
    let k3s = membership.k3s(token, k3s_args);
    membership.networks = k3s.cidrs();
    // flags that are there already are kept by the step itself; only the user's new ones are added
    let k3s = membership.k3s(k3s.token, args.k3s_arg.clone());
    let keepalived =
        wanted.vrrp.map(|vrrp| keepalived::Settings { vip: placed, interface: interface.clone(), node: own.addr(), port, vrrp });
    let rules = firewall::Rules { role: wanted.role, port, interface, trusted: membership.networks.clone() };

    let mut checks = Preflight(host_checks(&host, own.addr()));
    checks.0.push(same_token(&k3s));
    // side by side: one of them listens to the wire for a second
    let (of_k3s, of_firewall, of_vip) =
        tokio::join!(k3s::preflight(&host, &k3s), firewall::preflight(&host, &rules, !membership.firewall), async {
            match &keepalived {
                Some(settings) => keepalived::preflight(&host, settings, !wanted.first).await,
                None => Vec::new(),
            }
        });
    checks.0.extend(of_k3s?.into_iter().chain(of_firewall).chain(of_vip));
    show(&host, &checks, args);
    checks.verdict(&args.ignore)?;

    let (files, start) = k3s::plan(&host, &k3s, &source).await?;
    let mut plan = Plan::default();
    if keepalived.is_some() {
        plan.push(PackageStep { package: "keepalived", program: "keepalived", unit: Some("keepalived.service") });
        plan.push(PackageStep { package: "curl", program: "curl", unit: None });
    }
    plan.append(kernel(own.addr().is_ipv6())?);
    plan.push(membership.step()?);
    plan.append(files);
    if membership.firewall {
        plan.append(firewall::plan(&rules));
    }
    if let Some(settings) = &keepalived {
        plan.append(keepalived::plan(settings)?);
    }
    plan.append(start);
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Apply };
    let summary = run_plan(&plan, &host, mode).await?;
    Ok((membership, k3s.url(), host.facts.hostname.clone(), summary))
}

/// What cannot be changed by running again with other options.
fn stays(saved: &Membership, wanted: &Wanted, port: cluster::Port) -> Result<()> {
    let refuse = |what: String| Err(Error::refused(what).hint("run again with what the cluster has, or `smartup reset` this host first"));
    if saved.vip.addr() != wanted.vip.addr() {
        return refuse(format!("this host's cluster has the VIP {}, not {}", saved.vip.addr(), wanted.vip.addr()));
    }
    if saved.port != port {
        return refuse(format!("this host's cluster has its API on port {}, not {port}", saved.port));
    }
    let saved_vrrp = saved.vrrp.as_ref().map(SavedVrrp::vrrp).transpose()?;
    if let (Some(old), Some(new)) = (saved_vrrp, &wanted.vrrp)
        && (old.version.number() != new.version.number() || old.router_id != new.router_id || old.advert != new.advert)
    {
        return refuse(format!(
            "this host's cluster speaks VRRP version {} with id {} each {} s, not version {} with id {} each {} s; two kinds at once are a split brain",
            old.version.number(),
            old.router_id,
            old.advert,
            new.version.number(),
            new.router_id,
            new.advert
        ));
    }
    Ok(())
}

/// The token that the unit's environment holds already.
fn present_token(role: Role) -> Result<Option<Token>> {
    let Some(file) = node::read_optional(&k3s::paths::env(role))? else { return Ok(None) };
    match EnvFile::parse(&String::from_utf8_lossy(&file.content)).get("K3S_TOKEN") {
        Some(token) if !token.is_empty() => Ok(Some(Token::parse(&token)?)),
        _ => Ok(None),
    }
}

/// k3s takes another token on an initialised server without a word, and then the servers disagree.
fn same_token(settings: &k3s::Settings) -> Finding {
    let present = std::fs::read_to_string(k3s::paths::NODE_TOKEN).ok().and_then(|t| Token::parse(&t).ok());
    match present {
        Some(present) if settings.role == Role::Server && present.password() != settings.token.password() => Finding::fail(
            "token",
            &Error::refused("the cluster on this host has another token").hint("leave --token-file away: the present token is kept"),
        ),
        _ => Finding::ok("token", "a token is there"),
    }
}

/// What k3s and its network need of the kernel, now and after a boot.
fn kernel(ipv6: bool) -> Result<Plan> {
    let internal =
        |e: templates::RenderError| Error::failed("a template of smartup's own cannot be rendered; please report this").because(e);
    let modules: Vec<String> = ["overlay", "br_netfilter"].map(str::to_owned).into();
    let mut settings = vec![("net.ipv4.ip_forward", "1"), ("net.bridge.bridge-nf-call-iptables", "1")];
    if ipv6 {
        settings.extend([("net.ipv6.conf.all.forwarding", "1"), ("net.bridge.bridge-nf-call-ip6tables", "1")]);
    }
    let mut plan = Plan::default();
    let text = templates::kernel::Modules { modules: &modules }.render().map_err(internal)?;
    plan.push(FileStep::new("/etc/modules-load.d/smartup.conf", text));
    plan.push(ModulesStep { modules });
    let lines = settings.iter().map(|(key, value)| templates::kernel::Setting { key, value }).collect();
    let text = templates::kernel::Sysctl { settings: lines }.render().map_err(internal)?;
    plan.push(FileStep::new("/etc/sysctl.d/90-smartup.conf", text));
    plan.push(SysctlStep { settings: settings.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect() });
    Ok(plan)
}

/// Warnings are said; what is ignored is said too.
fn show(host: &Host, checks: &Preflight, args: &HostArgs) {
    for finding in &checks.0 {
        tracing::info!(check = finding.name, verdict = ?finding.verdict, "{}", finding.what);
        let ignored = args.ignore.iter().any(|i| i == finding.name);
        match (finding.verdict, ignored) {
            (Verdict::Ok, _) | (Verdict::Warn, true) | (Verdict::Fail, false) => {}
            (Verdict::Warn, false) => host.reporter.warn(format!("{}: {}", finding.name, finding.what), finding.hint.clone()),
            (Verdict::Fail, true) => host.reporter.warn(format!("{} (ignored): {}", finding.name, finding.what), None),
        }
    }
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
