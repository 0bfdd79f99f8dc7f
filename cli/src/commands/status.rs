use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use cluster::Role;
use firewall::RuleState;
use fleet::protocol::{Job, VrrpWire};
use k3s::NodeInfo;
use node::{Context as _, Error, FileStands, Host, Reporter, Result, WrittenFile, written_files};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Format;
use crate::membership::Membership;
use crate::output;
use crate::remote::{Connect, Remote};
use crate::run_here::stop_on_signal;

/// Show the cluster and this host's part in it
///
/// The nodes, who holds the floating address, whether the API answers through it, etcd's members and their health, and how
/// this host's units, firewall rules and files stand. What cannot be found out is said to be unknown.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  smartup status\n  smartup status --watch\n  smartup status -o json | jq .nodes\n  smartup status -f cluster.yaml"
)]
pub struct Status {
    /// How it is printed
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Show it again every two seconds until interrupted
    #[arg(long)]
    watch: bool,
    /// Ask all hosts of this file over SSH, rather than this host
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    connect: Option<Connect>,
}

/// What one host of several says, put into words there.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    /// As `-o json` prints it.
    report: Value,
    /// The cluster, as this host sees it.
    cluster: String,
    /// The host itself.
    host: String,
}

/// All of it, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    host: ThisHost,
    vip: VipState,
    api: ApiState,
    nodes: Known<Vec<NodeInfo>>,
    etcd: Known<Vec<k3s::MemberState>>,
}

/// What was found out, or why not.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Known<T> {
    Yes(T),
    No { unknown: String },
}

impl<T> Known<T> {
    fn of(result: Result<T>) -> Self {
        result.map_or_else(|e| Self::No { unknown: e.chain() }, Self::Yes)
    }
}

#[derive(Debug, Serialize)]
struct ThisHost {
    name: String,
    role: Role,
    address: std::net::IpAddr,
    units: Vec<UnitReport>,
    files: Vec<WrittenFile>,
    firewall: Known<Vec<RuleReport>>,
}

#[derive(Debug, Serialize)]
struct UnitReport {
    unit: String,
    active: String,
    sub: String,
    enabled: bool,
    restarts: u32,
}

#[derive(Debug, Serialize)]
struct RuleReport {
    rule: String,
    zone: Option<String>,
    runtime: Option<bool>,
    permanent: Option<bool>,
}

#[derive(Debug, Serialize)]
struct VipState {
    address: String,
    /// Whether this host has it.
    here: bool,
    /// The address of the host that says it has it; None = nobody was heard.
    holder: Known<Option<std::net::IpAddr>>,
    /// Its node's name.
    node: Option<String>,
}

#[derive(Debug, Serialize)]
struct ApiState {
    url: String,
    /// Whether it answers through the VIP.
    answers: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not: Option<String>,
}

impl Status {
    pub async fn run(self) -> Result<ExitCode> {
        let stop = stop_on_signal()?;
        let remote = Remote::maybe(self.file.as_deref(), self.connect.as_ref(), false)?;
        loop {
            let code = match &remote {
                None => {
                    let report = look(stop.clone()).await?;
                    self.clear();
                    output::print(&report, self.output, in_words)?;
                    ExitCode::SUCCESS
                }
                Some(remote) => {
                    let told = remote.ask_all(remote.cluster.hosts.iter(), &Job::Status).await;
                    self.clear();
                    self.print_all(&told)?
                }
            };
            if !self.watch {
                return Ok(code);
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
        }
    }

    fn clear(&self) {
        if self.watch && self.output == Format::Table {
            // to the top left, and clear the screen
            print!("\x1b[H\x1b[2J");
        }
    }

    fn print_all(&self, answers: &[(String, Result<Value>)]) -> Result<ExitCode> {
        let all: Vec<(&str, Result<Told, String>)> = answers.iter().map(|(name, answer)| (name.as_str(), understood(answer))).collect();
        let data: Vec<Value> = all
            .iter()
            .map(|(host, told)| match told {
                Ok(told) => json!({ "host": host, "report": told.report }),
                Err(why) => json!({ "host": host, "error": why }),
            })
            .collect();
        output::print(&data, self.output, |_| all_in_words(&all))?;
        let good = all.iter().all(|(_, told)| told.is_ok());
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn understood(answer: &Result<Value>) -> Result<Told, String> {
    match answer {
        Ok(value) => serde_json::from_value(value.clone()).map_err(|e| format!("its answer is not understood: {e}")),
        Err(e) => Err(e.chain()),
    }
}

/// The cluster as the first host sees it that is a server of it, then each host.
fn all_in_words(all: &[(&str, Result<Told, String>)]) -> String {
    let told: Vec<&Told> = all.iter().filter_map(|(_, told)| told.as_ref().ok()).collect();
    let server = told.iter().find(|t| t.report["host"]["role"] == "server");
    let mut text: Vec<String> = server.or(told.first()).iter().map(|t| t.cluster.clone()).collect();
    for (host, told) in all {
        text.push(String::new());
        text.push(match told {
            Ok(told) => told.host.clone(),
            Err(why) => format!("HOST   {host}: {why}"),
        });
    }
    text.join("\n").trim_start().to_owned()
}

/// What this host says to one that asks many.
///
/// # Errors
/// As [`look`].
pub async fn tell(stop: CancellationToken) -> Result<Told> {
    let report = look(stop).await?;
    let value = serde_json::to_value(&report).context("cannot write JSON")?;
    Ok(Told { report: value, cluster: cluster_in_words(&report), host: host_in_words(&report, "HOST  ") })
}

/// Looks at the cluster from this host.
///
/// # Errors
/// When smartup has not set up this host, or it cannot be looked at; what else cannot be found out is said in the report.
async fn look(stop: CancellationToken) -> Result<Report> {
    let membership = Membership::load()?.ok_or_else(|| {
        Error::failed("smartup has not set up this host").hint("smartup init --vip ADDR starts a cluster here, smartup join joins one")
    })?;
    let host = Host::open(Reporter::default(), stop, Duration::from_secs(30)).await?;
    let settings = membership.vrrp.as_ref().map(VrrpWire::vrrp).transpose()?;
    let url = membership.vip.api_url(membership.port);
    let kubeconfig = k3s::paths::kubeconfig(membership.role);
    let (nodes, api, etcd, firewall, holder) = tokio::join!(
        async { k3s::nodes(&k3s::client(kubeconfig, None).await?).await },
        k3s::answers(kubeconfig, &url),
        async {
            match membership.role {
                Role::Server => k3s::members().await,
                Role::Agent => Err(Error::failed("etcd can be asked on a server only")),
            }
        },
        rules(&host, &membership),
        keepalived::holder(&membership.interface, membership.vip.addr(), settings.as_ref()),
    );
    let here = host.facts.has(membership.vip.addr());
    let holder = if here { Ok(Some(membership.node_ip)) } else { holder };
    let node = match (&holder, &nodes) {
        (Ok(Some(addr)), Ok(nodes)) => nodes.iter().find(|n| n.address == addr.to_string()).map(|n| n.name.clone()),
        _ => None,
    };
    let mut units = Vec::new();
    for unit in
        [Some(k3s::paths::unit(membership.role)), membership.vrrp.as_ref().map(|_| keepalived::paths::UNIT.into())].into_iter().flatten()
    {
        let state = host.systemd.unit(&unit).await?;
        let enabled = state.enabled();
        units.push(UnitReport { unit, active: state.active, sub: state.sub, enabled, restarts: state.restarts });
    }
    Ok(Report {
        host: ThisHost {
            name: host.facts.hostname.clone(),
            role: membership.role,
            address: membership.node_ip,
            units,
            files: written_files(&host.journal)?,
            firewall: Known::of(firewall),
        },
        vip: VipState { address: membership.vip.to_string(), here, holder: Known::of(holder), node },
        api: match api {
            Ok(()) => ApiState { url, answers: true, why_not: None },
            Err(e) => ApiState { url, answers: false, why_not: Some(e.chain()) },
        },
        nodes: Known::of(nodes),
        etcd: Known::of(etcd),
    })
}

async fn rules(host: &Host, membership: &Membership) -> Result<Vec<RuleReport>> {
    if !membership.firewall {
        return Err(Error::failed("the firewall is not smartup's here (--no-firewall)"));
    }
    let rules = firewall::Rules {
        role: membership.role,
        port: membership.port,
        interface: membership.interface.clone(),
        trusted: membership.networks.clone(),
    };
    let report = |r: RuleState| RuleReport { rule: r.rule.to_string(), zone: r.zone, runtime: r.runtime, permanent: r.permanent };
    Ok(firewall::state(host, &rules).await?.into_iter().map(report).collect())
}

fn in_words(report: &Report) -> String {
    format!("{}\n\n{}", cluster_in_words(report), host_in_words(report, "THIS HOST  "))
}

fn cluster_in_words(report: &Report) -> String {
    let Report { host, vip, api, nodes, etcd } = report;
    let mut text = vec![match &api.why_not {
        None => format!("API     {} answers", api.url),
        Some(why) => format!("API     {} does NOT answer: {why}", api.url),
    }];
    text.push(match (&vip.holder, &vip.node) {
        (Known::Yes(Some(_)), Some(node)) => format!("VIP     {} is held by {node}", vip.address),
        (Known::Yes(Some(addr)), None) => format!("VIP     {} is held by {addr}", vip.address),
        (Known::Yes(None), _) => format!("VIP     {} is held by NOBODY", vip.address),
        (Known::No { unknown }, _) => format!("VIP     {}: the holder is unknown: {unknown}", vip.address),
    });
    text.push(String::new());
    text.push(match nodes {
        Known::No { unknown } => format!("NODES   unknown: {unknown}"),
        Known::Yes(nodes) => output::table(&["node", "role", "ready", "version", "address"], nodes.iter().map(node_row).collect()),
    });
    match etcd {
        Known::No { .. } if host.role == Role::Agent => {}
        Known::No { unknown } => text.extend([String::new(), format!("ETCD    unknown: {unknown}")]),
        Known::Yes(members) => {
            let rows = members.iter().map(|m| vec![m.name.clone(), m.kind().into(), m.health(), m.address.clone()]).collect();
            text.extend([String::new(), output::table(&["etcd member", "kind", "health", "address"], rows)]);
        }
    }
    text.join("\n")
}

fn host_in_words(report: &Report, title: &str) -> String {
    let host = &report.host;
    let mut text = vec![format!("{title} {} ({}, {})", host.name, host.role, host.address)];
    for unit in &host.units {
        let boot = if unit.enabled { "starts at boot" } else { "does NOT start at boot" };
        text.push(format!("  {:<20} {} ({}), {boot}, restarted {} times", unit.unit, unit.active, unit.sub, unit.restarts));
    }
    text.extend(files_in_words(&host.files));
    text.extend(firewall_in_words(&host.firewall));
    text.join("\n")
}

fn node_row(n: &NodeInfo) -> Vec<String> {
    let ready = match (n.ready.as_str(), n.cordoned) {
        ("True", false) => "yes".to_owned(),
        ("True", true) => "yes, cordoned".to_owned(),
        ("False", _) => format!("NO: {}", n.reason.as_deref().unwrap_or("it does not say why")),
        _ => "unknown: the node does not report".to_owned(),
    };
    vec![n.name.clone(), n.role.to_string(), ready, n.version.clone(), n.address.clone()]
}

fn files_in_words(files: &[WrittenFile]) -> Vec<String> {
    let right = files.iter().filter(|f| f.stands == FileStands::AsExpected).count();
    let mut text = vec![format!("  files                {right} of {} as expected", files.len())];
    text.extend(files.iter().filter(|f| f.stands != FileStands::AsExpected).map(|f| {
        let word = if f.stands == FileStands::Edited { "edited " } else { "MISSING" };
        format!("    {word} {}", f.path.display())
    }));
    text
}

fn firewall_in_words(firewall: &Known<Vec<RuleReport>>) -> Vec<String> {
    let rules = match firewall {
        Known::No { unknown } => return vec![format!("  firewall             unknown: {unknown}")],
        Known::Yes(rules) => rules,
    };
    let right = rules.iter().filter(|r| r.runtime == Some(true) && r.permanent == Some(true)).count();
    let mut text = vec![format!("  firewall             {right} of {} rules as expected", rules.len())];
    for rule in rules {
        let word = match (rule.runtime, rule.permanent) {
            (Some(true), Some(true)) => continue,
            (None, _) | (_, None) => "unknown (firewalld does not run)",
            (Some(false), Some(true)) => "MISSING until the next reload",
            (Some(true), Some(false)) => "MISSING after the next reload",
            (Some(false), Some(false)) => "MISSING",
        };
        text.push(format!("    {word}: {}", rule.rule));
    }
    text
}
