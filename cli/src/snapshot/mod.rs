//! Snapshots of etcd and the restore from one, on this host: for the commands and for `smartup node` alike.

mod course;
mod kept;
mod told;

use std::path::Path;
use std::time::Duration;

use cluster::{Role, Ticket, Token};
use fleet::protocol::{Secret, Tickets};
use k3s::restore::{AsideStep, HaltStep, Mark, MarkStep, ResetStep, Stage, old_data, place};
use k3s::{Holder, JoinTarget, Lease, Quorum, Snapshot, SnapshotFile, SnapshotName, Source};
use kube::Client;
use node::{Error, Host, Lock, Mode, Plan, Result, Run, read_optional};

pub use course::{Course, Of, at, loses};
pub use kept::Kept;
pub use told::{Fitting, Found, Keeping, Listed, Restored, Seen};

use crate::age::Recipient;
use crate::commands::ticket;
use crate::membership::Membership;
use crate::setup::{Parts, Setup, VrrpWish, Wanted};

fn membership() -> Result<Membership> {
    Membership::load()?.ok_or_else(|| {
        Error::refused("smartup has not set up this host").hint("make it a server first: smartup init, or smartup apply from elsewhere")
    })
}

/// What this server is.
///
/// # Errors
/// Refused on a host that is none.
pub fn server() -> Result<Membership> {
    let membership = membership()?;
    if membership.role == Role::Agent {
        return Err(Error::refused("this host is an agent: etcd is on the servers").hint("run it on a server"));
    }
    Ok(membership)
}

/// The token that this server's k3s has.
fn own_token() -> Result<Option<Token>> {
    let Some(file) = read_optional(Path::new(k3s::paths::NODE_TOKEN))? else { return Ok(None) };
    Ok(Some(Token::parse(&String::from_utf8_lossy(&file.content))?))
}

/// Takes a snapshot, and keeps the token with it.
///
/// # Errors
/// When k3s cannot take one, or something cannot be written.
pub async fn save(name: &SnapshotName, recipients: &[Recipient]) -> Result<Listed> {
    let membership = server()?;
    let _lock = Lock::take(Path::new(Lock::PATH))?;
    let token = own_token()?.ok_or_else(|| Error::failed(format!("k3s has not written {} yet", k3s::paths::NODE_TOKEN)))?;
    let snapshot = k3s::save(name, membership.port).await?;
    let token = kept::keep(&snapshot.path, &token, recipients)?;
    Ok(Listed { snapshot, token })
}

/// The snapshots on this host, and how their tokens are kept.
///
/// # Errors
/// When they cannot be read.
pub fn list() -> Result<Vec<Listed>> {
    server()?;
    k3s::snapshots()?.into_iter().map(|s| Ok(Listed { token: Kept::of(&s.path)?.keeping(), snapshot: s })).collect()
}

/// What a restore of this snapshot would find here. Changes nothing.
///
/// # Errors
/// When this host cannot be looked at.
pub async fn look(host: &Host, snapshot: &str, token: Option<&Token>) -> Result<Seen> {
    let saved = Membership::load()?;
    let role = saved.as_ref().map(|m| m.role);
    let runs = match role {
        Some(role) => host.systemd.unit(&k3s::paths::unit(role)).await?.running(),
        None => false,
    };
    let members = if role == Some(Role::Server) && runs { k3s::members().await.unwrap_or_default() } else { Vec::new() };
    let own = saved.as_ref().map(|m| m.node_ip.to_string()).unwrap_or_default();
    let others = members.iter().filter(|m| !m.learner && m.is_healthy() && m.address != own);
    Ok(Seen {
        node: host.facts.hostname.clone(),
        role,
        runs,
        quorum: (!members.is_empty()).then(|| Quorum::of(&members)),
        healthy: others.map(|m| m.name.clone()).collect(),
        mark: Mark::load()?,
        found: match (role, Snapshot::find(snapshot)) {
            (Some(Role::Server), Ok(found)) => Some(examine(found, token)?),
            (_, Err(e)) if e.kind != node::Kind::Invalid => return Err(e),
            _ => None,
        },
    })
}

fn examine(snapshot: Snapshot, given: Option<&Token>) -> Result<Found> {
    let kept = Kept::of(&snapshot.path)?;
    let read = SnapshotFile::read(&snapshot.path);
    let own = own_token()?;
    let plain = if let Kept::Plain(token) = &kept { Some(token) } else { None };
    let (trouble, token) = match &read {
        Ok(file) => (None, fitting(file, given, plain, own.as_ref())),
        Err(e) => (Some(e.chain()), Fitting::None),
    };
    let sealed = if let Kept::Sealed(text) = kept { Some(text) } else { None };
    Ok(Found { snapshot, trouble, token, sealed })
}

/// Which of the tokens is the snapshot's. Where it does not tell, the nearest is taken.
fn fitting(file: &SnapshotFile, given: Option<&Token>, kept: Option<&Token>, own: Option<&Token>) -> Fitting {
    let all = match given {
        Some(token) => vec![(Fitting::Given, Some(token))],
        None => vec![(Fitting::Kept, kept), (Fitting::Own, own)],
    };
    let fits = |token: &Token| file.takes(token) != Some(false);
    all.into_iter().find(|(_, token)| token.is_some_and(fits)).map_or(Fitting::None, |(which, _)| which)
}

/// Stops k3s on this server, until another one has been restored.
///
/// # Errors
/// Refused when another operation is under way; when k3s does not stop.
pub async fn stop(host: &Host) -> Result<Vec<String>> {
    server()?;
    let _lock = Lock::take(Path::new(Lock::PATH))?;
    if let Ok(client) = k3s::client(Path::new(k3s::paths::KUBECONFIG), None).await {
        nothing_else(host, &client).await?;
    }
    let mut plan = Plan::default();
    plan.push(MarkStep(Mark::now(Stage::Stopped)));
    plan.push(HaltStep { unit: k3s::paths::unit(Role::Server) });
    run(host, &[&plan]).await?;
    Ok(vec![format!("{}: k3s stopped", host.facts.hostname)])
}

/// Where the API answers, another operation of smartup's may be under way.
async fn nothing_else(host: &Host, client: &Client) -> Result<()> {
    let holder = Holder { host: host.facts.hostname.clone(), pid: std::process::id(), doing: "restoring a snapshot".into() };
    match tokio::time::timeout(Duration::from_secs(30), Lease::take(client, &holder, |what| host.waiting("lease", what))).await {
        Ok(Ok(lease)) => {
            lease.end().await;
            Ok(())
        }
        Ok(Err(e)) if e.kind == node::Kind::Refused => Err(e),
        // the API does not answer, or cannot write: nothing can be under way
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

async fn run(host: &Host, plans: &[&Plan]) -> Result<()> {
    let mut run = Run::new(host, Mode::Apply, plans.iter().map(|p| p.0.len()).sum());
    for plan in plans {
        run.part(plan).await?;
    }
    Ok(())
}

/// What this host was, in its new place in the cluster.
fn again(membership: &Membership, first: bool, token: Option<Token>) -> Wanted {
    Wanted {
        role: membership.role,
        first,
        vip: membership.vip,
        port: Some(membership.port),
        token,
        vrrp: VrrpWish::Own { auth: None, unicast: Vec::new() },
        interface: Some(membership.interface.clone()),
        node_ip: Some(membership.node_ip),
        runtime: Some(membership.runtime),
        source: Source::Host,
        firewall: membership.firewall,
        k3s_args: Vec::new(),
    }
}

/// Restores this server: a cluster of one, with the data of the snapshot. All other servers must have been stopped.
///
/// # Errors
/// Refused when another server serves the cluster, or no token goes with the snapshot; invalid when the snapshot is none.
pub async fn restore(host: &Host, snapshot: &str, token: Option<Token>, last: bool) -> Result<Restored> {
    let membership = server()?;
    let _lock = Lock::take(Path::new(Lock::PATH))?;
    let seen = look(host, snapshot, token.as_ref()).await?;
    let found = Snapshot::find(snapshot)?;
    let Some(Found { trouble: None, token: fit, .. }) = seen.found else {
        SnapshotFile::read(&found.path)?;
        return Err(Error::failed(format!("{} cannot be restored", found.path.display())));
    };
    let token = match (fit, token, Kept::of(&found.path)?) {
        (Fitting::Given, Some(token), _) | (Fitting::Kept, _, Kept::Plain(token)) => Some(token),
        (Fitting::Own, ..) => own_token()?,
        _ => None,
    };
    let token = token.ok_or_else(|| course::no_token(&found.path))?;
    alone(host, &membership, &seen).await?;

    let whole = Stage::Restored { snapshot: found.path.clone() };
    let begun = Stage::Begun { snapshot: found.path.clone() };
    let mark = match seen.mark {
        Some(mark) if mark.stage == whole || mark.stage == begun => mark,
        _ => {
            ResetStep::forget(host).await?;
            Mark::now(begun)
        }
    };
    let (at, through) = (mark.at, mark.stage == whole);
    // the first server's token is the bare secret: its CA is the one in the snapshot
    let bare = Token::parse(token.password())?;
    let mut before = Plan::default();
    if !through {
        before.push(MarkStep(mark));
        before.push(HaltStep { unit: k3s::paths::unit(Role::Server) });
        before.push(place(true, Some(bare.clone())));
        before.push(ResetStep { snapshot: found.path.clone() });
    }
    run(host, &[&before]).await?;
    let setup = Setup::resolve(host, again(&membership, true, Some(bare)))?;
    let Parts { prepare, start, api, node, .. } = setup.parts(host).await?;
    run(host, &[&prepare, &start, &api, &node]).await?;
    if last {
        Mark::clear()?;
    }
    let name = &host.facts.hostname;
    Ok(Restored {
        done: vec![if through {
            format!("{name}: was restored from {} by an earlier run, which has gone on now", found.path.display())
        } else {
            format!("{name}: restored from {}", found.path.display())
        }],
        old: old_data(at),
        tickets: ticket::tickets(&setup.membership)?,
    })
}

/// That no other server goes on with the old cluster: two would have the same VIP, and the same agents.
async fn alone(host: &Host, membership: &Membership, seen: &Seen) -> Result<()> {
    let refuse = |what: String| Err(Error::refused(what).hint("on each other server, first: smartup snapshot stop"));
    if !seen.healthy.is_empty() {
        return refuse(format!("other servers run: etcd's {} answer", seen.healthy.join(", ")));
    }
    let vip = membership.vip.addr();
    if node::Facts::gather().await?.has(vip) {
        return Ok(());
    }
    let asked = tokio::net::TcpStream::connect((vip, membership.port.get()));
    match tokio::time::timeout(Duration::from_secs(2), asked).await {
        Ok(Ok(_)) => {
            let what = format!("another server than {} serves the cluster at {vip}", host.facts.hostname);
            refuse(what)
        }
        _ => Ok(()),
    }
}

/// Brings this host into the restored cluster: a server's old data is set aside, and it joins; an agent starts anew.
///
/// # Errors
/// Refused on a server that was not stopped for a restore; when the cluster does not take it.
pub async fn rejoin(host: &Host, ticket: Option<Ticket>, last: bool) -> Result<Vec<String>> {
    let membership = membership()?;
    let _lock = Lock::take(Path::new(Lock::PATH))?;
    let name = &host.facts.hostname;
    let mut setup = Setup::resolve(host, again(&membership, false, None))?;
    if let Some(ticket) = ticket {
        setup.take(ticket)?;
    }
    if setup.awaits_ticket {
        return Err(Error::invalid("this host has no token any more").hint(format!(
            "on the restored server: smartup ticket --role {}; then here: smartup snapshot rejoin --ticket FILE",
            membership.role
        )));
    }
    if membership.role == Role::Agent {
        host.systemd.restart(&k3s::paths::unit(Role::Agent)).await?;
        return settle_in(host, &setup).await.map(|()| vec![format!("{name}: k3s started anew")]);
    }
    let mark = Mark::load()?.filter(|m| matches!(m.stage, Stage::Stopped | Stage::Aside | Stage::Back)).ok_or_else(|| {
        Error::refused(format!("{name} was not stopped for a restore, so its data is not touched")).hint("smartup snapshot stop")
    })?;
    let folder = AsideStep::folder(mark.at);
    if mark.stage == Stage::Stopped {
        let target = JoinTarget { vip: membership.vip, port: membership.port, token: &setup.k3s.token };
        let joined = target.ask(Role::Server, || jiff::Timestamp::now().as_second()).await?;
        let here = read_optional(Path::new(k3s::paths::SERVER_CA))?;
        let identity = here.is_none_or(|ca| ca.content.trim_ascii() != joined.ca.trim_ascii());
        let mut before = Plan::default();
        before.push(HaltStep { unit: k3s::paths::unit(Role::Server) });
        before.push(place(false, None));
        before.push(AsideStep { identity });
        run(host, &[&before]).await?;
    }
    settle_in(host, &setup).await?;
    // or the next one, which may be waiting, would be refused by etcd
    let _ = tokio::time::timeout(SETTLE, k3s::settled()).await;
    if last {
        Mark::clear()?;
    } else {
        Mark { at: mark.at, stage: Stage::Back }.save()?;
    }
    Ok(vec![format!("{name}: joined again; its old data is in {}", folder.display())])
}

/// As in `smartup apply`.
const SETTLE: Duration = Duration::from_secs(15);

async fn settle_in(host: &Host, setup: &Setup) -> Result<()> {
    let parts = setup.parts(host).await?;
    run(host, &parts.all()).await
}

/// The restore is through. Forgets nodes that are new hosts now: their passwords would be refused.
///
/// # Errors
/// When the API does not do it.
pub async fn finish(host: &Host, forget: &[String]) -> Result<Vec<String>> {
    let mut done = Vec::new();
    if !forget.is_empty() {
        let client = k3s::client(Path::new(k3s::paths::KUBECONFIG), None).await?;
        for name in forget {
            let gone = host.wait_for("node", "the API to remove a node", async || {
                Ok(match k3s::forget(&client, name).await {
                    Ok(gone) => node::Awaited::Done(gone),
                    Err(e) => node::Awaited::missing(e.chain()),
                })
            });
            if gone.await? {
                done.push(format!("node {name} removed, with its password"));
            }
        }
    }
    Mark::clear()?;
    Ok(done)
}

/// A secret that came as text.
///
/// # Errors
/// When it is no token.
pub fn token(secret: Option<Secret>) -> Result<Option<Token>> {
    Ok(secret.map(|s| Token::parse(&s.0)).transpose()?)
}

/// The ticket for a role.
pub fn ticket_for(tickets: &Tickets, role: Role) -> Secret {
    tickets.for_role(role).clone()
}

/// Names that others gave.
///
/// # Errors
/// Invalid when one of them cannot be.
pub fn name(text: &str) -> Result<SnapshotName> {
    text.parse().map_err(|why| Error::invalid(format!("the name of a snapshot {why}")))
}

/// Recipients that others gave.
///
/// # Errors
/// Invalid when one of them is none.
pub fn recipients(texts: &[String]) -> Result<Vec<Recipient>> {
    texts.iter().map(|t| t.parse().map_err(|why: String| Error::invalid(format!("{t} {why}")))).collect()
}
