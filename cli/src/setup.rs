//! How a host becomes part of a cluster: its settings, the checks, and the steps in their order. The same for the commands
//! on a host and for `smartup node`.

use std::net::IpAddr;
use std::path::Path;

use cluster::{AuthPass, Interface, Port, Role, Runtime, Ticket, Token, Vip, Vrrp};
use fleet::protocol::VrrpWire;
use k3s::{EnvFile, Source};
use node::{
    Error, FileStep, Finding, Host, Kind, Mode, ModulesStep, PackageStep, Plan, Preflight, Result, Run, SysctlStep, Verdict, host_checks,
};
use operator::image::{Image, ImageStep};

use crate::commands::image::own;
use crate::membership::{Membership, present_flags};

/// What a host shall become.
pub struct Wanted {
    /// Server or agent.
    pub role: Role,
    /// Whether it starts the cluster.
    pub first: bool,
    /// The floating address.
    pub vip: Vip,
    /// The API's port; None = as before, or the default.
    pub port: Option<Port>,
    /// The token; None = as before; on a first server otherwise a new one, on a joiner one that comes later.
    pub token: Option<Token>,
    /// What servers say on the wire; ignored on an agent.
    pub vrrp: VrrpWish,
    /// Interface of the VIP and the pod network; None = the one whose subnet holds the VIP.
    pub interface: Option<Interface>,
    /// This node's own address; None = as before, or the interface's.
    pub node_ip: Option<IpAddr>,
    /// What runs the containers; None = as before, or containerd.
    pub runtime: Option<Runtime>,
    /// Where k3s comes from.
    pub source: Source,
    /// Whether the firewall is smartup's to set; once it is not, it stays so.
    pub firewall: bool,
    /// More flags for k3s.
    pub k3s_args: Vec<String>,
}

/// What servers shall say on the wire.
pub enum VrrpWish {
    /// Just this: the cluster says so.
    Cluster(Vrrp),
    /// As this host does already; for a new cluster with this password and these peers.
    Own {
        /// Means version 2.
        auth: Option<AuthPass>,
        /// Empty = as before, or multicast.
        unicast: Vec<IpAddr>,
    },
}

/// What this host says on the wire already: as smartup wrote it down, or as it was set up by hand.
///
/// # Errors
/// When that cannot be read.
pub fn spoken_here(host: &Host, saved: Option<&Membership>, vip: Vip) -> Result<Option<Vrrp>> {
    match saved.and_then(|m| m.vrrp.as_ref()) {
        Some(saved) => Ok(Some(saved.vrrp()?)),
        None => keepalived::by_hand(host, vip.addr()),
    }
}

impl VrrpWish {
    fn settle(self, here: Option<Vrrp>, vip: Vip) -> Result<Vrrp> {
        match (self, here) {
            (Self::Cluster(vrrp), _) => Ok(vrrp),
            (Self::Own { auth: None, unicast }, Some(here)) if unicast.is_empty() => Ok(here),
            (Self::Own { auth: None, unicast }, Some(here)) => Ok(Vrrp { unicast, ..here }),
            (Self::Own { auth: Some(pass), unicast }, Some(here)) => {
                let unicast = if unicast.is_empty() { here.unicast.clone() } else { unicast };
                Ok(Vrrp { version: cluster::Version::V2(pass), unicast, ..here })
            }
            (Self::Own { auth, unicast }, None) => Ok(Vrrp::for_vip(vip.addr(), auth, unicast)?),
        }
    }
}

/// A host's settings, all of them decided.
pub struct Setup {
    /// What is written down.
    pub membership: Membership,
    /// k3s's; its flags are the user's new ones only, since those that are there are kept by the step itself.
    pub k3s: k3s::Settings,
    /// Whether the token is still to come; until then `k3s` holds a random one that is nowhere valid.
    pub awaits_ticket: bool,
    source: Source,
    keepalived: Option<keepalived::Settings>,
    rules: firewall::Rules,
}

/// The steps in their order. Between two parts a caller may do something else.
pub struct Parts {
    /// Packages, kernel, files, firewall: nothing of it needs the token, and nothing starts k3s.
    pub prepare: Plan,
    /// k3s and keepalived are started.
    pub start: Plan,
    /// A joining server gets its vote in etcd.
    pub vote: Plan,
    /// A server's API answers, here and through the VIP.
    pub api: Plan,
    /// The node is Ready.
    pub node: Plan,
}

impl Parts {
    /// All of them.
    pub fn all(&self) -> [&Plan; 5] {
        [&self.prepare, &self.start, &self.vote, &self.api, &self.node]
    }

    /// How many steps there are.
    pub fn total(&self) -> usize {
        self.all().iter().map(|p| p.0.len()).sum()
    }
}

impl Setup {
    /// Decides the settings from what is wanted, what was there before, and what the host is like.
    ///
    /// # Errors
    /// When what is wanted cannot be, or contradicts what the host's cluster has.
    pub fn resolve(host: &Host, wanted: Wanted) -> Result<Self> {
        let saved = Membership::load()?;
        let port = wanted.port.or(saved.as_ref().map(|s| s.port)).unwrap_or(Port::API);
        let here = spoken_here(host, saved.as_ref(), wanted.vip)?;
        let vrrp = match wanted.role {
            Role::Server => Some(wanted.vrrp.settle(here.clone(), wanted.vip)?),
            Role::Agent => None,
        };
        if let Some(saved) = &saved {
            stays(saved, wanted.vip, port)?;
        }
        if let (Some(old), Some(new)) = (&here, &vrrp) {
            agrees(old, new)?;
        }
        let node_ip = wanted.node_ip.or(saved.as_ref().map(|s| s.node_ip).filter(|a| host.facts.has(*a)));
        let (interface, own) = host.facts.place(wanted.vip, wanted.interface.as_ref(), node_ip)?;
        let placed = wanted.vip.place(&own)?;
        // the token of a joiner that k3s never took may be another cluster's
        let keeps = wanted.first || joined(wanted.role);
        let present = if wanted.token.is_none() && keeps { present_token(wanted.role)? } else { None };
        let known = wanted.token.or(present);
        let awaits_ticket = known.is_none() && !wanted.first;
        let token = known.map_or_else(|| Token::generate().map_err(|e| Error::failed("no randomness for a token").because(e)), Ok)?;
        let mut all_args: Vec<String> = present_flags(wanted.role).iter().map(str::to_owned).collect();
        all_args.extend(wanted.k3s_args.iter().cloned());
        let mut membership = Membership {
            role: wanted.role,
            first: wanted.first,
            vip: placed.to_string().parse()?,
            port,
            interface: interface.clone(),
            node_ip: own.addr(),
            runtime: wanted.runtime.or(saved.as_ref().map(|s| s.runtime)).unwrap_or_default(),
            firewall: wanted.firewall && saved.as_ref().is_none_or(|s| s.firewall),
            networks: Vec::new(),
            vrrp: vrrp.as_ref().map(VrrpWire::of),
        };
        membership.networks = membership.k3s(token.clone(), all_args).cidrs();
        let keepalived = vrrp.map(|vrrp| keepalived::Settings { vip: placed, interface: interface.clone(), node: own.addr(), port, vrrp });
        let rules = firewall::Rules { role: wanted.role, port, interface, trusted: membership.networks.clone() };
        let k3s = membership.k3s(token, wanted.k3s_args);
        Ok(Self { membership, k3s, awaits_ticket, source: wanted.source, keepalived, rules })
    }

    /// The checks of this host; and, unless the ticket is still to come, of the cluster and the wire.
    ///
    /// # Errors
    /// When systemd does not answer; what a check finds is in its finding.
    pub async fn preflight(&self, host: &Host) -> Result<Preflight> {
        let mut checks = Preflight(host_checks(host, self.membership.node_ip));
        checks.0.push(same_token(&self.k3s));
        checks.0.push(no_restore()?);
        // side by side: one of them listens to the wire
        let (of_k3s, of_version, of_firewall, of_keepalived, of_cluster) = tokio::join!(
            k3s::preflight(host, &self.k3s),
            k3s::another_version(self.membership.role, &self.source),
            firewall::preflight(host, &self.rules, !self.membership.firewall),
            async {
                match &self.keepalived {
                    Some(settings) => keepalived::preflight(host, settings).await,
                    None => Vec::new(),
                }
            },
            async { if self.awaits_ticket { Ok(Preflight::default()) } else { self.cluster_preflight(host).await } }
        );
        checks.0.extend(of_k3s?.into_iter().chain(of_version).chain(of_firewall).chain(of_keepalived).chain(of_cluster?.0));
        Ok(checks)
    }

    /// The checks of the wire, and of the cluster that this host joins. A new cluster's hosts must not make them all at once:
    /// each would hear the others ask for the VIP.
    ///
    /// # Errors
    /// As [`Setup::preflight`].
    pub async fn cluster_preflight(&self, host: &Host) -> Result<Preflight> {
        let (of_wire, of_k3s) = tokio::join!(
            async {
                match &self.keepalived {
                    Some(settings) => keepalived::wire_preflight(host, settings, !self.membership.first).await,
                    None => Vec::new(),
                }
            },
            k3s::cluster_preflight(host, &self.k3s)
        );
        Ok(Preflight(of_wire.into_iter().chain(of_k3s?).collect()))
    }

    /// Takes what was still to come.
    ///
    /// # Errors
    /// When the ticket is another cluster's than the one that this host was prepared for.
    pub fn take(&mut self, ticket: Ticket) -> Result<()> {
        let ours = (ticket.vip.addr(), ticket.port) == (self.membership.vip.addr(), self.membership.port);
        let speaks_alike = match (&self.keepalived, &ticket.vrrp) {
            (Some(own), Some(cluster)) => own.vrrp.agrees_with(cluster),
            (None, None) => true,
            _ => false,
        };
        if !ours || !speaks_alike {
            return Err(Error::refused("the ticket is for another cluster than the one that this host was prepared for")
                .hint("run again: the cluster was changed in the meantime"));
        }
        self.k3s.token = ticket.token;
        self.awaits_ticket = false;
        Ok(())
    }

    /// The steps.
    ///
    /// # Errors
    /// When k3s is not on the host and was not given, or systemd does not answer.
    pub async fn parts(&self, host: &Host) -> Result<Parts> {
        let k3s = k3s::plan(host, &self.k3s, &self.source).await?;
        let mut prepare = Plan::default();
        if self.keepalived.is_some() {
            prepare.push(PackageStep { package: "keepalived", program: "keepalived", unit: Some(keepalived::paths::UNIT) });
            prepare.push(PackageStep { package: "curl", program: "curl", unit: None });
        }
        prepare.append(kernel(self.membership.node_ip.is_ipv6())?);
        prepare.push(self.membership.step()?);
        prepare.append(k3s.files);
        if self.membership.firewall {
            prepare.append(firewall::plan(&self.rules));
        }
        let (vip_files, vip_start) = self.keepalived.as_ref().map(keepalived::plan).transpose()?.unwrap_or_default();
        prepare.append(vip_files);
        // one that runs has to know its new checks before k3s restarts, or it keeps the VIP of an API that is away; for one that is still
        // to be started k3s does not wait
        let runs = self.keepalived.is_some() && host.systemd.unit(keepalived::paths::UNIT).await?.running();
        let (mut start, second) = if runs { (vip_start, k3s.start) } else { (k3s.start, vip_start) };
        start.append(second);
        let mut node = k3s.node;
        // last: the next host's turn does not wait for it
        if let Some(image) = image()? {
            node.push(ImageStep { image, runtime: self.membership.runtime });
        }
        Ok(Parts { prepare, start, vote: k3s.vote, api: k3s.api, node })
    }
}

/// The operator's image, which a host has from its first day: one that joins later needs it at once, and cannot tell. A smartup that
/// was built for its own machine alone can be none, and gets as far as it can without: `enable-updates` says so.
fn image() -> Result<Option<Image>> {
    match own() {
        Ok(image) => Ok(Some(image)),
        Err(e) if e.kind == Kind::Refused => {
            tracing::info!("the operator's image is not put on this host: {e}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Puts the operator's image on this host, with the cluster's or the host's own `runtime`; answers whether it was not there.
///
/// # Errors
/// Refused when smartup cannot be an image, or another run is under way here.
pub async fn put_image(host: &Host, runtime: Option<Runtime>) -> Result<bool> {
    let _lock = lock(host, false)?;
    let runtime = runtime.or(Membership::load()?.map(|m| m.runtime)).unwrap_or_default();
    let mut plan = Plan::default();
    plan.push(ImageStep { image: own()?, runtime });
    let mut run = Run::new(host, Mode::Apply, plan.0.len());
    run.part(&plan).await?;
    Ok(run.summary().changed > 0)
}

/// What cannot be changed by running again with other options.
fn stays(saved: &Membership, vip: Vip, port: Port) -> Result<()> {
    if saved.vip.addr() != vip.addr() {
        return differs(format!("this host's cluster has the VIP {}, not {}", saved.vip.addr(), vip.addr()));
    }
    if saved.port != port {
        return differs(format!("this host's cluster has its API on port {}, not {port}", saved.port));
    }
    Ok(())
}

/// Nor can what servers say on the wire: two kinds at once are a split brain.
fn agrees(old: &Vrrp, new: &Vrrp) -> Result<()> {
    if old.agrees_with(new) {
        return Ok(());
    }
    let (o, n) = (old.version.number(), new.version.number());
    if (o, old.router_id, old.advert) == (n, new.router_id, new.advert) {
        return differs("this host's cluster has another VRRP password; two at once are a split brain".into());
    }
    differs(format!(
        "this host's cluster speaks VRRP version {o} with id {} each {} s, not version {n} with id {} each {} s; two kinds at once are a split brain",
        old.router_id, old.advert, new.router_id, new.advert
    ))
}

fn differs(what: String) -> Result<()> {
    Err(Error::refused(what).hint("run again with what the cluster has, or `smartup reset` this host first"))
}

/// Whether k3s has become part of a cluster here.
pub fn joined(role: Role) -> bool {
    k3s::paths::ca(role).exists()
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

/// A server that is stopped for a restore has the old cluster's data, and would bring that back.
fn no_restore() -> Result<Finding> {
    use k3s::restore::{Mark, Stage};
    Ok(match Mark::load()?.map(|mark| mark.stage) {
        Some(Stage::Stopped | Stage::Begun { .. }) => Finding::fail(
            "restore",
            &Error::refused("a restore is under way on this host")
                .hint("run the same `smartup snapshot restore` again: it goes on where it was"),
        ),
        _ => Finding::ok("restore", "no restore is under way"),
    })
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

/// Takes the checks' verdict. Warnings are said; what is ignored is said too.
///
/// # Errors
/// When a check failed that is not ignored.
pub fn judge(host: &Host, checks: &Preflight, ignore: &[String]) -> Result<()> {
    for finding in &checks.0 {
        tracing::info!(check = finding.name, verdict = ?finding.verdict, "{}", finding.what);
        let ignored = ignore.iter().any(|i| i == finding.name);
        match (finding.verdict, ignored) {
            (Verdict::Ok, _) | (Verdict::Warn, true) | (Verdict::Fail, false) => {}
            (Verdict::Warn, false) => host.reporter.warn(format!("{}: {}", finding.name, finding.what), finding.hint.clone()),
            (Verdict::Fail, true) => host.reporter.warn(format!("{} (ignored): {}", finding.name, finding.what), None),
        }
    }
    checks.verdict(ignore)
}

/// The kind of file that keeps a process from running twice lives on a tmpfs, so a dry run leaves nothing behind.
///
/// # Errors
/// Refused when another run holds it.
pub fn lock(host: &Host, dry_run: bool) -> Result<Option<node::Lock>> {
    if host.facts.root && !dry_run { node::Lock::take(Path::new(node::Lock::PATH)).map(Some) } else { Ok(None) }
}
