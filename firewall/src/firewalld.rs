use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::time::Duration;

use ipnet::IpNet;
use node::{Error, Host, Result};
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, proxy};

use crate::settings::{Service, Services, Settings, network, overlap};
use crate::{Rule, RuleState, Rules};

/// firewalld's unit.
pub(crate) const UNIT: &str = "firewalld.service";
/// Where pods and services belong.
pub(crate) const TRUSTED: &str = "trusted";
/// An answer takes milliseconds; a change that must wait for a busy netfilter, a second or two.
const LIMIT: Duration = Duration::from_secs(20);

#[proxy(
    interface = "org.fedoraproject.FirewallD1",
    default_service = "org.fedoraproject.FirewallD1",
    default_path = "/org/fedoraproject/FirewallD1"
)]
trait Main {
    #[zbus(property(emits_changed_signal = "false"), name = "state")]
    fn state(&self) -> zbus::Result<String>;
    #[zbus(name = "getDefaultZone")]
    fn get_default_zone(&self) -> zbus::Result<String>;
    #[zbus(name = "getServiceSettings2")]
    fn get_service_settings2(&self, service: &str) -> zbus::Result<Service>;
}

/// What holds until the next reload.
#[proxy(
    interface = "org.fedoraproject.FirewallD1.zone",
    default_service = "org.fedoraproject.FirewallD1",
    default_path = "/org/fedoraproject/FirewallD1"
)]
trait Runtime {
    #[zbus(name = "getActiveZones")]
    fn get_active_zones(&self) -> zbus::Result<HashMap<String, HashMap<String, Vec<String>>>>;
    #[zbus(name = "getZoneOfInterface")]
    fn get_zone_of_interface(&self, interface: &str) -> zbus::Result<String>;
    #[zbus(name = "getZoneOfSource")]
    fn get_zone_of_source(&self, source: &str) -> zbus::Result<String>;
    #[zbus(name = "getZoneSettings2")]
    fn get_zone_settings2(&self, zone: &str) -> zbus::Result<Settings>;
    #[zbus(name = "addPort")]
    fn add_port(&self, zone: &str, port: &str, protocol: &str, timeout: i32) -> zbus::Result<String>;
    #[zbus(name = "removePort")]
    fn remove_port(&self, zone: &str, port: &str, protocol: &str) -> zbus::Result<String>;
    #[zbus(name = "addRichRule")]
    fn add_rich_rule(&self, zone: &str, rule: &str, timeout: i32) -> zbus::Result<String>;
    #[zbus(name = "removeRichRule")]
    fn remove_rich_rule(&self, zone: &str, rule: &str) -> zbus::Result<String>;
    #[zbus(name = "addSource")]
    fn add_source(&self, zone: &str, source: &str) -> zbus::Result<String>;
    #[zbus(name = "removeSource")]
    fn remove_source(&self, zone: &str, source: &str) -> zbus::Result<String>;
}

#[proxy(
    interface = "org.fedoraproject.FirewallD1.config",
    default_service = "org.fedoraproject.FirewallD1",
    default_path = "/org/fedoraproject/FirewallD1/config"
)]
trait Config {
    #[zbus(name = "getZoneByName")]
    fn get_zone_by_name(&self, zone: &str) -> zbus::Result<OwnedObjectPath>;
}

/// What holds from the next reload on.
#[proxy(interface = "org.fedoraproject.FirewallD1.config.zone", default_service = "org.fedoraproject.FirewallD1")]
trait Permanent {
    #[zbus(name = "getSettings2")]
    fn get_settings2(&self) -> zbus::Result<Settings>;
    #[zbus(name = "addPort")]
    fn add_port(&self, port: &str, protocol: &str) -> zbus::Result<()>;
    #[zbus(name = "removePort")]
    fn remove_port(&self, port: &str, protocol: &str) -> zbus::Result<()>;
    #[zbus(name = "addRichRule")]
    fn add_rich_rule(&self, rule: &str) -> zbus::Result<()>;
    #[zbus(name = "removeRichRule")]
    fn remove_rich_rule(&self, rule: &str) -> zbus::Result<()>;
    #[zbus(name = "addSource")]
    fn add_source(&self, source: &str) -> zbus::Result<()>;
    #[zbus(name = "removeSource")]
    fn remove_source(&self, source: &str) -> zbus::Result<()>;
}

/// Which of firewalld's two configurations a change goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum In {
    /// What holds now, until a reload.
    Runtime,
    /// What holds after a reload.
    Permanent,
}

/// Whether to add or to take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Do {
    Add,
    Remove,
}

/// A firewalld that runs.
pub(crate) struct Firewalld<'a> {
    main: MainProxy<'a>,
    runtime: RuntimeProxy<'a>,
    config: ConfigProxy<'a>,
    bus: &'a Connection,
}

/// The zones that count for some rules, in both configurations.
struct Zone {
    runtime: Settings,
    permanent: Settings,
}

impl<'a> Firewalld<'a> {
    pub async fn connect(host: &'a Host) -> Result<Self> {
        let bus = host.systemd.bus();
        let what = "cannot reach firewalld over D-Bus";
        Ok(Self {
            // without a cache: it would ask for all properties, and listen to their changes
            main: call(what, MainProxy::builder(bus).cache_properties(CacheProperties::No).build()).await?,
            runtime: call(what, RuntimeProxy::builder(bus).cache_properties(CacheProperties::No).build()).await?,
            config: call(what, ConfigProxy::builder(bus).cache_properties(CacheProperties::No).build()).await?,
            bus,
        })
    }

    /// `RUNNING` when the rules are in the kernel; `INIT` before, `FAILED` when they could not be put there.
    pub async fn state(&self) -> Result<String> {
        call("cannot read firewalld's state", self.main.state()).await
    }

    /// The zone that an interface is in.
    pub async fn zone_of(&self, interface: &str) -> Result<String> {
        let own = call("cannot ask firewalld for the zone", self.runtime.get_zone_of_interface(interface)).await?;
        if own.is_empty() { call("cannot ask firewalld for its default zone", self.main.get_default_zone()).await } else { Ok(own) }
    }

    /// The zones that packets which come in through an interface from its own `subnets` are filtered by: the interface's,
    /// and those that claim such addresses as their sources, which goes before the interface (firewalld.zones(5)).
    async fn zones_of(&self, interface: &str, subnets: &[IpNet]) -> Result<BTreeSet<String>> {
        let active = call("cannot ask firewalld for its zones", self.runtime.get_active_zones()).await?;
        let claims = |of: &HashMap<String, Vec<String>>| {
            let sources = of.get("sources").into_iter().flatten().filter_map(|s| network(s));
            sources.into_iter().any(|s| subnets.iter().any(|n| overlap(&s, n)))
        };
        let mut zones: BTreeSet<String> = active.iter().filter(|(_, of)| claims(of)).map(|(zone, _)| zone.clone()).collect();
        zones.insert(self.zone_of(interface).await?);
        Ok(zones)
    }

    async fn permanent(&self, zone: &str) -> Result<PermanentProxy<'a>> {
        let what = format!("cannot read firewalld's zone {zone}");
        let path = call(&what, self.config.get_zone_by_name(zone)).await?;
        let proxy = async { PermanentProxy::builder(self.bus).path(path).cache_properties(CacheProperties::No).build().await };
        call(&what, proxy).await
    }

    async fn zone(&self, zone: &str) -> Result<Zone> {
        let what = format!("cannot read firewalld's zone {zone}");
        let runtime = call(&what, self.runtime.get_zone_settings2(zone)).await?;
        let permanent = call(&what, self.permanent(zone).await?.get_settings2()).await?;
        Ok(Zone { runtime, permanent })
    }

    /// Each rule in each zone that it is needed in, and whether it is there.
    pub async fn rules(&self, rules: &Rules, subnets: &[IpNet]) -> Result<Vec<RuleState>> {
        let inner = self.zones_of(rules.interface.as_str(), subnets).await?;
        self.compare(&rules.required(), &inner).await
    }

    /// Whether these rules are there: trusted networks in the zone for them, the others in each of `zones`.
    pub async fn compare(&self, rules: &[Rule], zones: &BTreeSet<String>) -> Result<Vec<RuleState>> {
        let is_source = |rule: &Rule| matches!(rule, Rule::Source { .. });
        let mut read: BTreeMap<&str, Zone> = BTreeMap::new();
        for zone in zones.iter().map(String::as_str).chain(rules.iter().any(is_source).then_some(TRUSTED)) {
            if !read.contains_key(zone) {
                read.insert(zone, self.zone(zone).await?);
            }
        }
        let needed = |rule, zone: &str| if is_source(rule) { zone == TRUSTED } else { zones.contains(zone) };
        let each = || {
            let each = rules.iter().flat_map(|rule| read.iter().map(move |(zone, of)| (rule, *zone, of)));
            each.filter(|(rule, zone, _)| needed(*rule, zone))
        };
        let covers = |services: &Services, rule: &Rule, of: &Zone| [&of.runtime, &of.permanent].map(|s| s.cover(rule, services));
        // mostly the rules are there themselves, and no service needs to be asked for
        let none = Services::new();
        let services = if each().all(|(rule, _, of)| covers(&none, rule, of) == [true; 2]) { none } else { self.services(&read).await? };
        let state = |(rule, zone, of): (&Rule, &str, &Zone)| {
            let [runtime, permanent] = covers(&services, rule, of).map(Some);
            RuleState { zone: Some(zone.to_owned()), rule: rule.clone(), runtime, permanent }
        };
        Ok(each().map(state).collect())
    }

    /// The services that these zones let in.
    async fn services(&self, zones: &BTreeMap<&str, Zone>) -> Result<Services> {
        let names: BTreeSet<&String> = zones.values().flat_map(|z| z.runtime.services().iter().chain(z.permanent.services())).collect();
        let mut services = Services::new();
        for name in names {
            match within(self.main.get_service_settings2(name)).await? {
                Ok(service) => _ = services.insert(name.clone(), service),
                // a zone may name a service that nobody defined; it lets nothing in
                Err(e) if code(&e) == Some("INVALID_SERVICE") => {}
                Err(e) => return Err(failed(&format!("cannot read firewalld's service {name}"), &e)),
            }
        }
        Ok(services)
    }

    /// Another zone that a network is bound to: firewalld takes each network in one zone only.
    pub async fn zone_of_source(&self, net: &IpNet) -> Result<Option<String>> {
        let zone = call("cannot ask firewalld for the zone", self.runtime.get_zone_of_source(&net.to_string())).await?;
        Ok((!zone.is_empty()).then_some(zone))
    }

    /// Adds or removes a rule. Answers whether that changed anything: false when it was so already.
    pub async fn change(&self, what: Do, rule: &Rule, zone: &str, of: In) -> Result<bool> {
        let result = match of {
            In::Runtime => {
                let p = &self.runtime;
                let done = async {
                    match (what, rule) {
                        (Do::Add, Rule::Port { ports, protocol }) => p.add_port(zone, &ports.to_string(), protocol.as_str(), 0).await,
                        (Do::Remove, Rule::Port { ports, protocol }) => p.remove_port(zone, &ports.to_string(), protocol.as_str()).await,
                        (Do::Add, Rule::Vrrp) => p.add_rich_rule(zone, Rule::VRRP, 0).await,
                        (Do::Remove, Rule::Vrrp) => p.remove_rich_rule(zone, Rule::VRRP).await,
                        (Do::Add, Rule::Source { net }) => p.add_source(zone, &net.to_string()).await,
                        (Do::Remove, Rule::Source { net }) => p.remove_source(zone, &net.to_string()).await,
                    }
                };
                within(done).await?.map(|_| ())
            }
            In::Permanent => {
                let p = match self.permanent(zone).await {
                    Ok(p) => p,
                    // a zone that is gone holds no rule
                    Err(_) if what == Do::Remove => return Ok(false),
                    Err(e) => return Err(e),
                };
                let done = async {
                    match (what, rule) {
                        (Do::Add, Rule::Port { ports, protocol }) => p.add_port(&ports.to_string(), protocol.as_str()).await,
                        (Do::Remove, Rule::Port { ports, protocol }) => p.remove_port(&ports.to_string(), protocol.as_str()).await,
                        (Do::Add, Rule::Vrrp) => p.add_rich_rule(Rule::VRRP).await,
                        (Do::Remove, Rule::Vrrp) => p.remove_rich_rule(Rule::VRRP).await,
                        (Do::Add, Rule::Source { net }) => p.add_source(&net.to_string()).await,
                        (Do::Remove, Rule::Source { net }) => p.remove_source(&net.to_string()).await,
                    }
                };
                within(done).await?
            }
        };
        match result {
            Ok(()) => Ok(true),
            Err(e) => match (what, code(&e)) {
                (Do::Add, Some("ALREADY_ENABLED" | "ZONE_ALREADY_SET"))
                | (Do::Remove, Some("NOT_ENABLED" | "UNKNOWN_SOURCE" | "INVALID_ZONE")) => Ok(false),
                (Do::Add, _) => Err(failed(&format!("firewalld does not let {rule} in, in its zone {zone}"), &e)),
                (Do::Remove, _) => Err(failed(&format!("firewalld does not remove {rule} from its zone {zone}"), &e)),
            },
        }
    }
}

/// firewalld's own error code, with which its messages begin: `ALREADY_ENABLED: '9443:tcp' already in 'public'`.
fn code(error: &zbus::Error) -> Option<&str> {
    let text = error.description()?;
    let code = text.split(':').next()?.trim();
    (!code.is_empty() && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')).then_some(code)
}

fn failed(what: &str, error: &zbus::Error) -> Error {
    let hint = match error {
        zbus::Error::FDO(e) if matches!(**e, zbus::fdo::Error::UnknownMethod(_)) => {
            "this firewalld is older than 0.9; update it, or use --no-firewall and let in by hand what is needed"
        }
        _ if code(error) == Some("ACCESS_DENIED") => "firewalld is locked down: firewall-cmd --lockdown-off",
        _ => "see what firewalld says: /var/log/firewalld, journalctl -u firewalld",
    };
    Error::failed(what).because(error.clone()).hint(hint)
}

async fn within<T>(future: impl Future<Output = zbus::Result<T>>) -> Result<zbus::Result<T>> {
    tokio::time::timeout(LIMIT, future)
        .await
        .map_err(|_| Error::failed(format!("firewalld did not answer within {} s", LIMIT.as_secs())).hint("systemctl restart firewalld"))
}

async fn call<T>(what: &str, future: impl Future<Output = zbus::Result<T>>) -> Result<T> {
    within(future).await?.map_err(|e| failed(what, &e))
}
