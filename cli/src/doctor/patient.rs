//! The host that is looked at: what it is, or is to be.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use cluster::{Interface, Port, Role, Token, Vip, Vrrp};
use fleet::protocol::{Doctor, VrrpWire};
use ipnet::IpNet;
use node::{Error, Host, Reporter, Result};
use tokio_util::sync::CancellationToken;

use crate::membership::Membership;
use crate::setup::spoken_here;

/// The host that is looked at.
pub struct Patient {
    /// The host.
    pub host: Host,
    /// Its part in a cluster, if smartup gave it one.
    pub membership: Option<Membership>,
    /// What it is to be, where a cluster's file says it.
    pub wish: Option<Doctor>,
    /// Its place on the network: as it was set up, as the file has it, or the default route's.
    pub place: Option<(Interface, IpAddr)>,
    /// Of a server, or of a host that is to be one.
    pub keepalived: Option<keepalived::Settings>,
}

impl Patient {
    /// Looks at this host. Changes nothing.
    ///
    /// # Errors
    /// When systemd does not answer, or what smartup wrote down about the host is damaged.
    pub async fn here(wish: Option<Doctor>, stop: CancellationToken) -> Result<Self> {
        let membership = Membership::load()?;
        let host = Host::open(Reporter::default(), stop, Duration::from_secs(60)).await?;
        let place = match (&membership, &wish) {
            (Some(m), _) => Some((m.interface.clone(), m.node_ip)),
            (None, Some(w)) => host.facts.place(w.vip, w.interface.as_ref(), w.node_ip).ok().map(|(i, own)| (i, own.addr())),
            (None, None) => default_place(&host),
        };
        let keepalived = settings(&host, membership.as_ref(), wish.as_ref())?;
        Ok(Self { host, membership, wish, place, keepalived })
    }

    /// The part that it plays, or is to play.
    pub fn role(&self) -> Option<Role> {
        self.membership.as_ref().map(|m| m.role).or(self.wish.as_ref().map(|w| w.role))
    }

    /// The membership.
    ///
    /// # Errors
    /// When there is none.
    pub fn member(&self) -> Result<&Membership> {
        self.membership.as_ref().ok_or_else(|| Error::failed("smartup has not set up this host"))
    }

    /// An address of the family that the cluster uses.
    pub fn family(&self) -> IpAddr {
        self.place.as_ref().map_or(Ipv4Addr::UNSPECIFIED.into(), |(_, address)| *address)
    }

    /// The API's port.
    pub fn port(&self) -> Port {
        let wished = || self.wish.as_ref().and_then(|w| w.port);
        self.membership.as_ref().map(|m| m.port).or_else(wished).unwrap_or(Port::API)
    }

    /// Whether the firewall is smartup's.
    pub fn firewall(&self) -> bool {
        self.membership.as_ref().is_none_or(|m| m.firewall)
    }

    /// k3s's settings, with a token that is nowhere valid; None without an address.
    pub fn k3s(&self, token: Token) -> Option<k3s::Settings> {
        if let Some(member) = &self.membership {
            return Some(member.k3s(token, Vec::new()));
        }
        let (interface, node_ip) = self.place.clone()?;
        Some(k3s::Settings {
            role: self.role().unwrap_or(Role::Server),
            first: true,
            vip: self.wish.as_ref().map(|w| w.vip).or_else(|| node_ip.to_string().parse().ok())?,
            port: self.port(),
            node_ip,
            interface,
            token,
            runtime: cluster::Runtime::default(),
            args: Vec::new(),
        })
    }

    /// What the role needs to be let in.
    ///
    /// # Errors
    /// When the host has no place on the network.
    pub fn rules(&self) -> Result<firewall::Rules> {
        let (interface, _) = self.place.clone().ok_or_else(|| Error::failed("this host has no address that a node could have"))?;
        let trusted = self.membership.as_ref().map(|m| m.networks.clone()).unwrap_or_default();
        Ok(firewall::Rules { role: self.role().unwrap_or(Role::Server), port: self.port(), interface, trusted })
    }

    /// The kubeconfig that k3s wrote for this role.
    ///
    /// # Errors
    /// When this host is no member.
    pub fn kubeconfig(&self) -> Result<&'static Path> {
        Ok(k3s::paths::kubeconfig(self.member()?.role))
    }

    /// The API through the VIP.
    ///
    /// # Errors
    /// When this host is no member.
    pub fn url(&self) -> Result<String> {
        let m = self.member()?;
        Ok(m.vip.api_url(m.port))
    }

    /// The floating address, as far as it is known.
    pub fn vip(&self) -> Option<Vip> {
        self.membership.as_ref().map(|m| m.vip).or(self.wish.as_ref().map(|w| w.vip))
    }
}

/// The interface of the default route, and its first address.
fn default_place(host: &Host) -> Option<(Interface, IpAddr)> {
    host.facts.default_routes.iter().enumerate().find_map(|(family, route)| {
        let link = host.facts.links.iter().find(|l| Some(&l.name) == route.as_ref())?;
        let own = link.addrs.iter().map(IpNet::addr).find(|a| a.is_ipv6() == (family == 1))?;
        Some((link.name.clone(), own))
    })
}

fn settings(host: &Host, membership: Option<&Membership>, wish: Option<&Doctor>) -> Result<Option<keepalived::Settings>> {
    if let Some(m) = membership {
        let Some(vrrp) = m.vrrp.as_ref().map(VrrpWire::vrrp).transpose()? else { return Ok(None) };
        let vip = m.vip.to_string().parse().map_err(|e| Error::failed(format!("the VIP {} has no prefix", m.vip)).because(e))?;
        return Ok(Some(keepalived::Settings { vip, interface: m.interface.clone(), node: m.node_ip, port: m.port, vrrp }));
    }
    let Some(wish) = wish.filter(|w| w.role == Role::Server) else { return Ok(None) };
    let Ok((interface, own)) = host.facts.place(wish.vip, wish.interface.as_ref(), wish.node_ip) else { return Ok(None) };
    let vrrp = match spoken_here(host, None, wish.vip)? {
        Some(vrrp) => vrrp,
        None => Vrrp::for_vip(wish.vip.addr(), None, Vec::new())?,
    };
    let port = wish.port.unwrap_or(Port::API);
    Ok(Some(keepalived::Settings { vip: wish.vip.place(&own)?, interface, node: own.addr(), port, vrrp }))
}
