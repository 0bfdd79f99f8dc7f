use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use cluster::{AuthPass, Role, Ticket, Token};
use fleet::protocol::{self, Begin, Door, Examined, FromNode, Job, Kubeconfig, Member, Secret, State, Survey, ToNode, Transport, VrrpWire};
use k3s::{EnvFile, Source};
use node::{Awaited, Context as _, Error, Host, Lock, Mode, Reporter, Result, Run};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

use super::{image, reset, snapshot, status, ticket};
use crate::depart;
use crate::doctor::doors::{self, Doors};
use crate::doctor::{self, Patient};
use crate::drill;
use crate::membership::Membership;
use crate::rollout;
use crate::setup::{self, Parts, Setup, VrrpWish, Wanted};
use crate::upgrade::Upgrade;

/// Do a job that another host's smartup sends on stdin (for `smartup apply`)
#[derive(Debug, Args)]
pub struct Node {}

impl Node {
    pub async fn run(self) -> Result<ExitCode> {
        let (say, said) = speak();
        let (mut heard, stop) = listen();
        let talk = Talk { say };
        let done = match heard.recv().await {
            Some(ToNode::Job(job)) => work(job, &mut heard, &stop, &talk).await,
            _ => Err(Error::invalid("no job came on stdin").hint("this command is for `smartup apply` and the like, not for people")),
        };
        let code = match done {
            Ok(result) => {
                talk.say(FromNode::Done { result });
                ExitCode::SUCCESS
            }
            Err(e) => {
                talk.say(FromNode::Failed((&e).into()));
                ExitCode::from(crate::exit::code(e.kind))
            }
        };
        drop(talk);
        // everything said has been written by then, or nobody is there to read it
        let _ = tokio::task::spawn_blocking(move || said.join()).await;
        Ok(code)
    }
}

/// What this side says.
#[derive(Clone)]
struct Talk {
    say: UnboundedSender<FromNode>,
}

impl Talk {
    fn say(&self, what: FromNode) {
        // it can only fail when nobody is there to hear it
        let _ = self.say.send(what);
    }

    fn reporter(&self) -> Reporter {
        let talk = self.clone();
        Reporter::new(move |event| talk.say(FromNode::Event { event }))
    }
}

/// Writes lines to stdout, on a thread of its own: a control side that does not read must not hold up a step.
fn speak() -> (UnboundedSender<FromNode>, std::thread::JoinHandle<()>) {
    let (sender, mut receiver) = unbounded_channel::<FromNode>();
    let thread = std::thread::spawn(move || {
        let mut out = std::io::stdout().lock();
        while let Some(message) = receiver.blocking_recv() {
            let Ok(line) = serde_json::to_string(&message) else { continue };
            if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    });
    (sender, thread)
}

/// The control side says something at least every 10 s ([`ToNode::Here`]). One that has been silent for this long has lost its
/// power or its network, and would keep this host's lock for as long as TCP believes in it.
const SILENCE: Duration = Duration::from_secs(60);

/// Reads lines from stdin. Its end, a stop, silence and nonsense all mean that nothing new shall start.
fn listen() -> (UnboundedReceiver<ToNode>, CancellationToken) {
    let (lines, mut read) = unbounded_channel::<String>();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let (sender, receiver) = unbounded_channel();
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        while let Ok(Some(line)) = tokio::time::timeout(SILENCE, read.recv()).await {
            match serde_json::from_str(&line) {
                Ok(ToNode::Here) => {}
                Ok(ToNode::Stop) | Err(_) => break,
                Ok(message) => {
                    if sender.send(message).is_err() {
                        return;
                    }
                }
            }
        }
        token.cancel();
    });
    (receiver, stop)
}

async fn work(job: Job, heard: &mut UnboundedReceiver<ToNode>, stop: &CancellationToken, talk: &Talk) -> Result<Value> {
    match job {
        Job::Setup(wish) => set_up(*wish, heard, stop, talk).await,
        Job::Upgrade(wish) => upgrade(*wish, heard, stop, talk).await,
        Job::Status => to_json(&status::tell(stop.clone()).await?),
        Job::Reset { packages } => {
            let host = Host::open(talk.reporter(), stop.clone(), Duration::from_secs(300)).await?;
            to_json(&reset::undo(&host, packages, &Lock::take(Path::new(Lock::PATH))?).await?)
        }
        Job::Kubeconfig => kubeconfig(),
        Job::Leave(how) => {
            let host = Host::open(talk.reporter(), stop.clone(), Duration::from_secs(how.timeout_s)).await?;
            let (done, _undone) = depart::of_this_server(&host, how.into(), how.packages).await?;
            to_json(&done)
        }
        Job::Remove { called, how } => {
            let host = Host::open(talk.reporter(), stop.clone(), Duration::from_secs(how.timeout_s)).await?;
            to_json(&depart::of_another(&host, &called, how.into()).await?)
        }
        Job::Snapshot(job) => snapshot::job(job, async |timeout| Host::open(talk.reporter(), stop.clone(), timeout).await).await,
        Job::Image { runtime } => {
            let host = Host::open(talk.reporter(), stop.clone(), image::LIMIT).await?;
            to_json(&setup::put_image(&host, runtime).await?)
        }
        Job::EnableUpdates(wish) => {
            let host = Host::open(talk.reporter(), stop.clone(), Duration::from_secs(wish.timeout_s)).await?;
            to_json(&rollout::enable(&host, wish.manifest.as_deref(), wish.update_manager.as_deref(), wish.goes_on).await?)
        }
        Job::Disable { manifest, now } => {
            let mut host = Host::open(talk.reporter(), stop.clone(), rollout::TIMEOUT).await?;
            to_json(&rollout::disable(&mut host, manifest.as_deref(), now).await?)
        }
        Job::Disabled { k3s } => {
            let host = Host::open(talk.reporter(), stop.clone(), rollout::TIMEOUT).await?;
            to_json(&rollout::put_back(&host, k3s).await?)
        }
        Job::Doctor(wish) => examine(*wish, heard, stop, talk).await,
        Job::Drill(job) => {
            let says = talk.clone();
            drill::host::take_part(job, heard, stop, talk.reporter(), move |said| says.say(FromNode::Drill(said))).await
        }
    }
}

/// The checks of this host; then what others ask, with this host's doors open, until nobody asks any more.
async fn examine(wish: protocol::Doctor, heard: &mut UnboundedReceiver<ToNode>, stop: &CancellationToken, talk: &Talk) -> Result<Value> {
    let (only, password) = (wish.only.clone(), wish.password.clone());
    let patient = Arc::new(Patient::here(Some(wish), stop.clone()).await?);
    // before the doors are open: their ports should be free
    let findings = doctor::examine(&patient, &only).await;
    let password = password.unwrap_or_default();
    let doors = match &patient.place {
        Some((_, address)) if !password.is_empty() && !runs(&patient.host).await? => {
            let wanted = doors::of(patient.role().unwrap_or(Role::Agent), patient.port());
            Some(Doors::open(*address, &wanted, &password).await)
        }
        _ => None,
    };
    let open = doors.as_ref().map(|d| d.open.clone()).unwrap_or_default();
    talk.say(FromNode::Examined(Box::new(examined(&patient, to_json(&findings)?, open).await?)));
    while let Some(order) = next(heard, talk).await {
        match order {
            ToNode::Clock => talk.say(FromNode::Clock { unix_ms: jiff::Timestamp::now().as_millisecond() }),
            ToNode::Knock { at } => talk.say(FromNode::Knocked { answers: doors::knock(&at, &password).await }),
            _ => break,
        }
    }
    drop(doors);
    Ok(Value::Null)
}

/// Whether a k3s runs here, or is about to: then its ports are left to it.
async fn runs(host: &Host) -> Result<bool> {
    for unit in ["k3s-server.service", "k3s-agent.service", "k3s.service"] {
        if host.systemd.unit(unit).await?.running() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What this host is to the others.
async fn examined(patient: &Patient, findings: Value, doors: Vec<Door>) -> Result<Examined> {
    let facts = node::Facts::gather().await?;
    let saved = patient.membership.as_ref();
    let vip = patient.vip();
    let ipv6 = patient.family().is_ipv6();
    let pod_network = facts.links.iter().find(|l| l.name.as_str() == if ipv6 { "flannel-v6.1" } else { "flannel.1" });
    Ok(Examined {
        findings,
        member: match vip {
            Some(vip) => member(&patient.host, saved, vip)?,
            None => None,
        },
        cluster: saved.map(|m| (m.vip.addr(), m.port)),
        holds_vip: vip.is_some_and(|vip| facts.has(vip.addr())),
        address: patient.place.as_ref().map(|(_, address)| *address),
        pod_network: pod_network.and_then(|l| l.addrs.first()).map(ipnet::IpNet::addr),
        runs: runs(&patient.host).await?,
        shut: shut(patient, &doors).await?,
        doors,
    })
}

/// Those of the open doors that this host's own firewall does not let in now.
async fn shut(patient: &Patient, doors: &[Door]) -> Result<Vec<Door>> {
    if doors.is_empty() || !patient.firewall() {
        return Ok(Vec::new());
    }
    let missing: Vec<firewall::RuleState> =
        firewall::state(&patient.host, &patient.rules()?).await?.into_iter().filter(|r| r.runtime == Some(false)).collect();
    let covers = |rule: &firewall::Rule, door: &Door| match rule {
        firewall::Rule::Port { ports, protocol } => {
            let transport = if *protocol == firewall::Protocol::Tcp { Transport::Tcp } else { Transport::Udp };
            transport == door.transport && ports.cover(firewall::Ports::one(door.port))
        }
        _ => false,
    };
    Ok(doors.iter().filter(|d| missing.iter().any(|r| covers(&r.rule, d))).copied().collect())
}

/// The administrator's kubeconfig as k3s wrote it, and where the API is to be reached.
fn kubeconfig() -> Result<Value> {
    let path = k3s::paths::KUBECONFIG;
    let text = std::fs::read_to_string(path).context(format!("cannot read {path}"))?;
    let membership = Membership::load()?.ok_or_else(|| Error::failed("smartup has not set up this host"))?;
    to_json(&Kubeconfig { text: Secret(text), vip: membership.vip, port: membership.port })
}

fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).context("cannot write JSON")
}

/// The next thing that the control side says, but for questions, which are answered.
async fn next(heard: &mut UnboundedReceiver<ToNode>, talk: &Talk) -> Option<ToNode> {
    loop {
        match heard.recv().await? {
            ToNode::Tickets => {
                let membership = Membership::load().and_then(|m| m.ok_or_else(|| Error::failed("smartup has not set up this host")));
                talk.say(match membership.and_then(|m| ticket::tickets(&m)) {
                    Ok(tickets) => FromNode::Joined(tickets),
                    Err(e) => FromNode::NoTickets((&e).into()),
                });
            }
            other => return Some(other),
        }
    }
}

/// The control side ended the conversation, as it does when there is nothing to do for this host.
fn left() -> Error {
    Error::failed("the control side has gone").hint("run the same command again to go on")
}

/// How long a server that is through waits for etcd to settle, which takes little more than 5 s where all members live. Where
/// one is dead, it never does, and the next server must not wait for that.
const SETTLE: Duration = Duration::from_secs(15);

async fn set_up(wish: protocol::Setup, heard: &mut UnboundedReceiver<ToNode>, stop: &CancellationToken, talk: &Talk) -> Result<Value> {
    let timeout = Duration::from_secs(wish.timeout_s);
    let mut host = Host::open(talk.reporter(), stop.clone(), timeout).await?;
    let _lock = setup::lock(&host, wish.plan)?;
    talk.say(FromNode::State(state(&host, &wish)?));

    let Some(ToNode::Begin(begin)) = next(heard, talk).await else { return Err(left()) };
    let ignore = wish.ignore.clone();
    let plan_only = wish.plan;
    let mut setup = Setup::resolve(&host, wanted(wish, &begin)?)?;
    let (checks, nodes) = tokio::join!(setup.preflight(&host), nodes(setup.membership.role));
    setup::judge(&host, &checks?, &ignore)?;
    let mut parts = setup.parts(&host).await?;
    let mut survey = Run::new(&host, Mode::DryRun, parts.total());
    for part in parts.all() {
        survey.part(part).await?;
    }
    let found = survey.summary();
    let wants_ticket = setup.awaits_ticket;
    talk.say(FromNode::Surveyed(Survey { changed: found.changed, unchanged: found.unchanged, wants_ticket, nodes }));
    if plan_only {
        return Ok(Value::Null);
    }

    let Some(ToNode::Go { settle }) = next(heard, talk).await else { return Err(left()) };
    let mut run = Run::new(&host, Mode::Apply, parts.total());
    run.part(&parts.prepare).await?;
    let prepared = run.summary();
    if setup.awaits_ticket {
        host.waiting("ticket", "a server to join");
        let Some(ToNode::Ticket { ticket }) = next(heard, talk).await else { return Err(left()) };
        setup.take(Ticket::parse(&ticket.0)?)?;
        setup::judge(&host, &setup.cluster_preflight(&host).await?, &ignore)?;
        // as before, but with the token
        parts = setup.parts(&host).await?;
        host.waiting("ticket", "its turn to join");
        let Some(ToNode::Start) = next(heard, talk).await else { return Err(left()) };
        host.deadline = Instant::now() + timeout;
    }
    let mut run = Run::after(prepared, &host, Mode::Apply, parts.total());
    run.part(&parts.start).await?;
    run.part(&parts.vote).await?;
    if setup.membership.role == Role::Server {
        talk.say(FromNode::Voted);
    }
    let (failed, through) = (CancellationToken::new(), CancellationToken::new());
    let rest = async {
        let done = finish(&mut run, &parts, &setup, talk).await;
        if done.is_ok() {
            through.cancel();
        } else {
            failed.cancel();
        }
        done
    };
    let settled = async {
        if settle {
            tokio::select! {
                () = k3s::settled() => talk.say(FromNode::Settled),
                () = failed.cancelled() => {}
                () = stop.cancelled() => {}
                () = async { through.cancelled().await; tokio::time::sleep(SETTLE).await } => {}
            }
        }
    };
    let (done, ()) = tokio::join!(rest, settled);
    done?;
    to_json(&serde_json::json!({ "changed": run.summary().changed, "unchanged": run.summary().unchanged }))
}

async fn upgrade(wish: protocol::Upgrade, heard: &mut UnboundedReceiver<ToNode>, stop: &CancellationToken, talk: &Talk) -> Result<Value> {
    let timeout = Duration::from_secs(wish.timeout_s);
    let mut host = Host::open(talk.reporter(), stop.clone(), timeout).await?;
    let _lock = setup::lock(&host, wish.plan)?;
    let k3s = source(wish.k3s);
    let upgrade = Upgrade::here(&host, k3s.clone(), wish.version.parse()?, true).await?;
    let membership = &upgrade.membership;
    if membership.role != wish.role {
        return Err(
            Error::refused(format!("the file calls this host {}, and it is {}", wish.role, membership.role)).hint("correct the file")
        );
    }
    talk.say(FromNode::State(State {
        name: host.facts.hostname.clone(),
        member: member(&host, Some(membership), membership.vip)?,
        holds_vip: host.facts.has(membership.vip.addr()),
        wants_k3s: false,
    }));
    let Some(ToNode::Begin(_)) = next(heard, talk).await else { return Err(left()) };
    let (found, nodes) = tokio::join!(upgrade.survey(&host), nodes(membership.role));
    let found = found?;
    talk.say(FromNode::Surveyed(Survey { changed: found.changed, unchanged: found.unchanged, wants_ticket: false, nodes }));
    if wish.plan {
        return Ok(Value::Null);
    }
    let Some(ToNode::Go { .. }) = next(heard, talk).await else { return Err(left()) };
    host.deadline = Instant::now() + timeout;
    if let Source::Sent { path, .. } = &k3s
        && !path.exists()
        && upgrade.replaces(&host).await?
    {
        talk.say(FromNode::WantsK3s);
        host.wait_for("k3s binary", "the new k3s", async || {
            Ok(if path.exists() { Awaited::Done(()) } else { Awaited::missing("it is being sent") })
        })
        .await?;
    }
    let done = upgrade.carry_out(&mut host, timeout).await?;
    to_json(&serde_json::json!({ "changed": done.changed, "unchanged": done.unchanged }))
}

/// From the vote on: a server's API, which others can join then, and the node.
async fn finish(run: &mut Run<'_>, parts: &Parts, setup: &Setup, talk: &Talk) -> Result<()> {
    run.part(&parts.api).await?;
    if setup.membership.role == Role::Server {
        talk.say(FromNode::Joined(ticket::tickets(&setup.membership)?));
    }
    run.part(&parts.node).await
}

/// The cluster's nodes, on a server whose API answers in time; none elsewhere.
async fn nodes(role: Role) -> Vec<protocol::Node> {
    let kubeconfig = Path::new(k3s::paths::KUBECONFIG);
    if role != Role::Server || !kubeconfig.exists() {
        return Vec::new();
    }
    let ask = async { k3s::nodes(&k3s::client(kubeconfig, None).await?).await };
    let nodes = tokio::time::timeout(Duration::from_secs(3), ask).await;
    let nodes = nodes.ok().and_then(Result::ok).unwrap_or_default();
    nodes.into_iter().map(|n| protocol::Node { name: n.name, role: n.role, address: n.address }).collect()
}

/// What this host is.
fn state(host: &Host, wish: &protocol::Setup) -> Result<State> {
    let member = member(host, Membership::load()?.as_ref(), wish.vip)?;
    let wants_k3s = match &wish.k3s {
        protocol::K3s::Sent { sha256, size, .. } => !node::has_content(Path::new(k3s::paths::BINARY), sha256, *size)?,
        _ => false,
    };
    Ok(State { name: host.facts.hostname.clone(), member, holds_vip: host.facts.has(wish.vip.addr()), wants_k3s })
}

/// Its part in a cluster, as smartup wrote it down or as it was set up by hand.
fn member(host: &Host, saved: Option<&Membership>, vip: cluster::Vip) -> Result<Option<Member>> {
    let Some(role) = saved.map(|m| m.role).or_else(by_hand) else { return Ok(None) };
    Ok(Some(Member {
        role,
        first: saved.map_or_else(|| started_here(role), |m| m.first),
        ca: ca_hash(role)?,
        vrrp: match role {
            Role::Server => setup::spoken_here(host, saved, vip)?.as_ref().map(VrrpWire::of),
            Role::Agent => None,
        },
    }))
}

/// The role of a host that was set up by hand, as in the reference: its unit's environment is there, and k3s has run.
fn by_hand() -> Option<Role> {
    [Role::Server, Role::Agent].into_iter().find(|role| k3s::paths::env(*role).exists() && setup::joined(*role))
}

/// Whether a server that was set up by hand is the one that started the cluster: it joins nobody.
fn started_here(role: Role) -> bool {
    let text = std::fs::read_to_string(k3s::paths::env(role)).unwrap_or_default();
    role == Role::Server && EnvFile::parse(&text).get("K3S_URL").is_none_or(|url| url.is_empty())
}

/// What tells clusters apart.
fn ca_hash(role: Role) -> Result<Option<String>> {
    // the agent's copy may end with another line break
    Ok(node::read_optional(k3s::paths::ca(role))?.map(|file| node::hex(&Sha256::digest(file.content.trim_ascii()))))
}

fn source(k3s: protocol::K3s) -> Source {
    match k3s {
        protocol::K3s::Host => Source::Host,
        protocol::K3s::Sent { path, sha256, size } => Source::Sent { path, sha256, size },
        protocol::K3s::Release { version, mirror } => Source::Release { version, mirror: mirror.unwrap_or_else(|| Source::MIRROR.into()) },
    }
}

fn wanted(wish: protocol::Setup, begin: &Begin) -> Result<Wanted> {
    let auth = wish.auth_pass.as_ref().map(|p| AuthPass::parse(&p.0)).transpose()?;
    let vrrp = match &begin.vrrp {
        Some(cluster) => VrrpWish::Cluster(cluster.vrrp()?),
        None => VrrpWish::Own { auth, unicast: wish.unicast },
    };
    Ok(Wanted {
        role: wish.role,
        first: begin.first,
        vip: wish.vip,
        port: wish.port,
        token: match &wish.token {
            Some(token) if begin.first => Some(Token::parse(&token.0)?),
            _ => None,
        },
        vrrp,
        interface: wish.interface,
        node_ip: wish.node_ip,
        runtime: wish.runtime,
        source: source(wish.k3s),
        firewall: wish.firewall,
        k3s_args: wish.k3s_args,
    })
}
