use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use cluster::{Interface, Vrrp};
use node::{Context as _, Error, Result, run};
use serde::Deserialize;

use crate::wire::{self, Heard, How, Mac, Pace};

/// Who has the VIP, as seen from the wire: more than one is a split brain, or a holder that was cut off and came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders {
    /// The hosts that announce it, by the address they announce it from.
    pub announced_by: BTreeSet<IpAddr>,
    /// The hosts that answer for it.
    pub answered_by: BTreeSet<Mac>,
}

/// Who else on the wire has the VIP, by asking and by listening; this host itself is not found. Takes a little more than a
/// second. `vrrp` is None where it is not known, as on agents.
///
/// # Errors
/// When the wire cannot be used.
pub async fn holders(interface: &Interface, vip: IpAddr, vrrp: Option<&Vrrp>) -> Result<Holders> {
    let (claims, heard) =
        tokio::try_join!(wire::who_has(interface, vip, Pace::Careful), wire::listen(interface, vip.is_ipv6(), limit(vrrp), |_| false))?;
    Ok(Holders {
        announced_by: heard.iter().filter(|h| holds(h, vip)).map(|h| h.advert.source).collect(),
        answered_by: claims.into_iter().filter(|c| c.how == How::Answers).map(|c| c.mac).collect(),
    })
}

/// The other host that holds the VIP, by its node's own address; None when nobody does. Where adverts are heard it takes one
/// advert interval, otherwise a little more than two seconds.
///
/// # Errors
/// When the wire cannot be used, or somebody answers whose address is not known.
pub async fn holder(interface: &Interface, vip: IpAddr, vrrp: Option<&Vrrp>) -> Result<Option<IpAddr>> {
    let heard = wire::listen(interface, vip.is_ipv6(), limit(vrrp), move |h| holds(h, vip)).await?;
    if let Some(h) = heard.iter().find(|h| holds(h, vip)) {
        // a link-local address names no node
        return match h.advert.source {
            IpAddr::V6(a) if a.is_unicast_link_local() => neighbour(interface, vip, h.mac).await.map(Some),
            source => Ok(Some(source)),
        };
    }
    match wire::who_has(interface, vip, Pace::Quick).await?.into_iter().find(|c| c.how == How::Answers) {
        None => Ok(None),
        Some(claim) => neighbour(interface, vip, claim.mac).await.map(Some),
    }
}

fn holds(heard: &Heard, vip: IpAddr) -> bool {
    heard.advert.addresses.contains(&vip) && heard.advert.priority > 0
}

fn limit(vrrp: Option<&Vrrp>) -> Duration {
    let least = Duration::from_millis(1200);
    vrrp.map_or(least, |v| least.max(v.advert.duration().mul_f32(1.2)))
}

/// The address of a neighbour with this hardware address, from the kernel's own table: nodes talk to each other.
async fn neighbour(interface: &Interface, vip: IpAddr, mac: Mac) -> Result<IpAddr> {
    let family = if vip.is_ipv6() { "-6" } else { "-4" };
    let out = run("ip", &["-j", family, "neigh", "show", "dev", interface.as_str()], Duration::from_secs(10)).await?;
    let text = if out.stdout.trim().is_empty() { "[]" } else { out.stdout.as_str() };
    pick(text, vip, mac)?.ok_or_else(|| Error::failed(format!("{mac} answers for {vip}, and its own address is not known")))
}

fn pick(json: &str, vip: IpAddr, mac: Mac) -> Result<Option<IpAddr>> {
    #[derive(Deserialize)]
    struct Entry {
        dst: Option<IpAddr>,
        lladdr: Option<String>,
    }
    let entries: Vec<Entry> = serde_json::from_str(json).context("cannot read what `ip -j neigh` says")?;
    let link_local = |a: &IpAddr| matches!(a, IpAddr::V6(a) if a.is_unicast_link_local());
    let of_mac = entries.into_iter().filter(|e| e.lladdr.as_deref() == Some(mac.to_string().as_str())).filter_map(|e| e.dst);
    Ok(of_mac.filter(|a| *a != vip && !link_local(a)).min())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_named_by_its_own_address() {
        let json = r#"[{"dst":"10.0.0.10","lladdr":"02:79:00:00:00:01","state":["REACHABLE"]},{"dst":"10.0.0.13","state":["FAILED"]},
            {"dst":"10.0.0.12","lladdr":"02:79:00:00:00:02","state":["STALE"]},{"dst":"10.0.0.11","lladdr":"02:79:00:00:00:01","state":["STALE"]}]"#;
        let of = |mac| pick(json, "10.0.0.10".parse().unwrap(), Mac([2, 0x79, 0, 0, 0, mac])).unwrap();
        assert_eq!(of(1), Some("10.0.0.11".parse().unwrap()));
        assert_eq!(of(3), None);
        let json = r#"[{"dst":"fe80::1","lladdr":"02:79:00:00:00:01"},{"dst":"fd00::11","lladdr":"02:79:00:00:00:01"}]"#;
        assert_eq!(pick(json, "fd00::10".parse().unwrap(), Mac([2, 0x79, 0, 0, 0, 1])).unwrap(), Some("fd00::11".parse().unwrap()));
        assert!(pick("nonsense", "10.0.0.10".parse().unwrap(), Mac([0; 6])).is_err());
    }
}
