//! The floating address as it is on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cluster::Interface;
use keepalived::wire::{self, Heard, How, Mac, Pace};
use keepalived::{Seen, Settings};
use node::Result;

use super::finding::Finding;

const VIP: &str = "vip";
const DUPLICATE: &str = "vip-duplicate";

/// Routers announce each second at most, so this hears them all.
const LISTEN: Duration = Duration::from_millis(1200);

/// What is on the wire, beside this host itself.
pub struct Wire {
    /// Who answers for the VIP.
    answers: BTreeSet<Mac>,
    /// VRRP routers of its family.
    heard: Vec<Heard>,
}

/// Asks who has the VIP, and listens meanwhile.
///
/// # Errors
/// When the wire cannot be used.
pub async fn look(interface: &Interface, vip: IpAddr, interval: Option<Duration>) -> Result<Wire> {
    let limit = interval.map_or(LISTEN, |i| LISTEN.max(i.mul_f32(1.2)));
    let (claims, heard) =
        tokio::try_join!(wire::who_has(interface, vip, Pace::Careful), wire::listen(interface, vip.is_ipv6(), limit, |_| false))?;
    // other hosts may be looking at the same moment: who asks does not have it
    let answers = claims.into_iter().filter(|c| c.how == How::Answers).map(|c| c.mac).collect();
    Ok(Wire { answers, heard })
}

impl Wire {
    /// Who announces the VIP, and wants to go on doing so.
    fn announcers(&self, vip: IpAddr) -> BTreeMap<Mac, IpAddr> {
        let holds = |h: &&Heard| h.advert.addresses.contains(&vip) && h.advert.priority > 0;
        self.heard.iter().filter(holds).map(|h| (h.mac, h.advert.source)).collect()
    }

    /// The checks `vip` and `vip-duplicate` on a host of the cluster. `here`: whether this host has the VIP.
    pub fn judge(&self, vip: IpAddr, here: bool) -> [Finding; 2] {
        let announcers = self.announcers(vip);
        [self.holder(vip, here, &announcers), self.duplicate(vip, here, &announcers)]
    }

    /// Exactly one host holds it.
    fn holder(&self, vip: IpAddr, here: bool, announcers: &BTreeMap<Mac, IpAddr>) -> Finding {
        let others: Vec<String> = announcers.values().map(ToString::to_string).collect();
        match (here, others.as_slice()) {
            (true, []) => Finding::ok(VIP, format!("this host holds {vip}, and nobody else announces it")),
            (true, others) => split(vip, others.len() + 1, &format!("this host, {}", others.join(", "))),
            (false, [one]) => Finding::ok(VIP, format!("{vip} is held by {one}")),
            // unicast adverts are not for us to hear
            (false, []) if !self.answers.is_empty() => Finding::ok(VIP, format!("{vip} is held by {}", macs(&self.answers))),
            (false, []) => Finding::fail(
                VIP,
                format!("nobody holds {vip}"),
                "no server is healthy, or keepalived runs on none: smartup doctor on the servers",
            ),
            (false, others) => split(vip, others.len(), &others.join(", ")),
        }
    }

    /// Nobody answers for it who does not announce it.
    fn duplicate(&self, vip: IpAddr, here: bool, announcers: &BTreeMap<Mac, IpAddr>) -> Finding {
        let strangers: BTreeSet<Mac> = self.answers.iter().filter(|m| !announcers.contains_key(m)).copied().collect();
        let alone = !here && announcers.is_empty() && strangers.len() == 1;
        if strangers.is_empty() || alone {
            return Finding::ok(DUPLICATE, format!("no second host answers for {vip}"));
        }
        let what = format!("another host answers for {vip} too: {}", macs(&strangers));
        Finding::fail(DUPLICATE, what, "find that host by its hardware address (ip neigh, the switch's table), and take the address off it")
    }

    /// The checks `router-id` and `vrrp-match` on a server.
    pub fn settings(&self, settings: &Settings, here: bool) -> Vec<Finding> {
        let vip = settings.vip.addr();
        let ours = self.heard.iter().any(|h| h.advert.addresses.contains(&vip));
        let mut found = self.through_keepalived(settings);
        if here && !ours {
            // who holds it hears nobody
            found.retain(|f| f.check != "vrrp-match");
            found.push(Finding::ok("vrrp-match", "no other server announces the VIP, as it should be while this host holds it"));
        }
        found.retain(|f| f.check != VIP);
        found
    }

    /// The checks `vip` and `router-id` on a host that is to be a server.
    pub fn before(&self, settings: &Settings) -> Vec<Finding> {
        let mut found = self.through_keepalived(settings);
        found.retain(|f| f.check != "vrrp-match");
        found
    }

    fn through_keepalived(&self, settings: &Settings) -> Vec<Finding> {
        let claims = self.answers.iter().map(|mac| wire::Claim { mac: *mac, how: How::Answers }).collect();
        let seen = Seen { here: false, claims, heard: self.heard.clone() };
        keepalived::judge(settings, true, &seen).into_iter().map(Finding::from).collect()
    }
}

fn split(vip: IpAddr, count: usize, who: &str) -> Finding {
    let hint = "they do not hear each other: VRRP (IP protocol 112) must pass between all servers, by multicast unless set up as unicast";
    Finding::fail(VIP, format!("{count} hosts hold {vip} at once: {who}"), hint)
}

fn macs(of: &BTreeSet<Mac>) -> String {
    of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use keepalived::wire::Advert;

    use super::super::finding::Verdict;
    use super::*;

    fn vip() -> IpAddr {
        "10.0.0.10".parse().unwrap()
    }

    fn mac(n: u8) -> Mac {
        Mac([2, 0x79, 0, 0, 0, n])
    }

    fn announces(n: u8, priority: u8) -> Heard {
        let source = IpAddr::from([10, 0, 0, n]);
        Heard {
            mac: mac(n),
            advert: Advert { source, version: 3, router_id: 10, priority, interval: 10, addresses: vec![vip()], password: None },
        }
    }

    fn judged(here: bool, answers: &[u8], heard: Vec<Heard>) -> (Verdict, Verdict, String) {
        let wire = Wire { answers: answers.iter().map(|n| mac(*n)).collect(), heard };
        let [holder, duplicate] = wire.judge(vip(), here);
        (holder.verdict, duplicate.verdict, format!("{}; {}", holder.what, duplicate.what))
    }

    #[test]
    fn one_holder_is_fine_wherever_it_is_seen_from() {
        use Verdict::Ok;
        for (here, answers, heard) in [
            (true, &[][..], vec![]),
            (false, &[11], vec![announces(11, 100)]),
            // unicast
            (false, &[11], vec![]),
            // it has just moved from h12 to h11
            (false, &[11], vec![announces(11, 100), announces(12, 0)]),
            (true, &[], vec![announces(12, 0)]),
        ] {
            let (holder, duplicate, what) = judged(here, answers, heard);
            assert_eq!((holder, duplicate), (Ok, Ok), "{what}");
        }
    }

    #[test]
    fn two_that_announce_are_a_split_brain_and_one_that_only_answers_is_a_stranger() {
        let (holder, duplicate, what) = judged(true, &[12], vec![announces(12, 100)]);
        assert_eq!((holder, duplicate), (Verdict::Fail, Verdict::Ok), "{what}");
        assert!(what.contains("2 hosts hold 10.0.0.10 at once: this host, 10.0.0.12"), "{what}");
        let (holder, duplicate, what) = judged(true, &[99], vec![]);
        assert_eq!((holder, duplicate), (Verdict::Ok, Verdict::Fail), "{what}");
        let (holder, duplicate, what) = judged(false, &[11, 99], vec![announces(11, 100)]);
        assert_eq!((holder, duplicate), (Verdict::Ok, Verdict::Fail), "{what}");
        assert!(what.ends_with("too: 02:79:00:00:00:63"), "{what}");
    }

    #[test]
    fn nobody() {
        assert_eq!(judged(false, &[], vec![]).0, Verdict::Fail);
    }
}
