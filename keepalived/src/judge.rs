//! What is made of what was seen on the wire. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cluster::Version;
use node::{Error, Finding};

use crate::Settings;
use crate::wire::{Advert, Claim, Heard, How, Mac};

/// What was seen before this host became a server of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Whether this host has the VIP already, though smartup did not put it there.
    pub here: bool,
    /// Who lays claim to the VIP.
    pub claims: Vec<Claim>,
    /// The VRRP routers of the VIP's family.
    pub heard: Vec<Heard>,
}

/// The checks `vip` and `router-id`, and on a join `vrrp-match`.
///
/// The first server needs a VIP that nobody has. A server that joins expects the others to announce it, all alike and as its
/// ticket says: two versions, passwords or (in version 2) intervals at once make every server take the VIP.
pub fn judge(settings: &Settings, joining: bool, seen: &Seen) -> Vec<Finding> {
    let vip = settings.vip.addr();
    let (ours, others): (Vec<&Heard>, Vec<&Heard>) = seen.heard.iter().partition(|h| h.advert.addresses.contains(&vip));
    let mut found = vec![if joining { vip_of_a_joiner(settings, seen, &ours) } else { vip_of_the_first(vip, seen, &ours) }];
    found.push(router_id(settings, &others));
    if joining {
        found.push(vrrp_match(settings, &ours));
    }
    found
}

fn already_here(vip: IpAddr) -> Finding {
    let what = format!("{vip} is an address of this host already, and smartup did not put it there");
    Finding::fail(
        "vip",
        &Error::refused(what).hint("take it off the interface and out of the network's configuration, or choose another VIP"),
    )
}

fn vip_of_the_first(vip: IpAddr, seen: &Seen, ours: &[&Heard]) -> Finding {
    if seen.here {
        return already_here(vip);
    }
    if !ours.is_empty() {
        let what = format!("{vip} is announced already: {}", list(ours));
        let hint = "to make this host a server of that cluster: smartup join --role server; for a new cluster choose another VIP";
        return Finding::fail("vip", &Error::refused(what).hint(hint));
    }
    if !seen.claims.is_empty() {
        return taken(vip, &seen.claims);
    }
    Finding::ok("vip", format!("nobody on the wire has {vip}"))
}

/// Another joiner's probe is no claim: several servers may join at the same moment.
fn vip_of_a_joiner(settings: &Settings, seen: &Seen, ours: &[&Heard]) -> Finding {
    let vip = settings.vip.addr();
    if seen.here {
        return already_here(vip);
    }
    let announcers: BTreeSet<Mac> = ours.iter().map(|h| h.mac).collect();
    let answers: Vec<Claim> = seen.claims.iter().filter(|c| c.how == How::Answers).cloned().collect();
    let strangers: Vec<Claim> = answers.iter().filter(|c| !announcers.contains(&c.mac)).cloned().collect();
    if answers.is_empty() && ours.is_empty() {
        return Finding::ok("vip", format!("nobody on the wire has {vip}"));
    }
    if !settings.vrrp.unicast.is_empty() && ours.is_empty() {
        return Finding::ok("vip", format!("{vip} is held by {}", macs(&answers)));
    }
    if ours.is_empty() {
        let what = format!("{vip} is held by {}, but no VRRP adverts of it are heard", macs(&answers));
        let hint = "either another host has taken the address, or the network keeps multicast (224.0.0.18, ff02::12) from this host: \
                    then every server would take the VIP; let it through, or set all servers up with --unicast-peer";
        return Finding::fail("vip", &Error::refused(what).hint(hint));
    }
    if !strangers.is_empty() {
        return taken(vip, &strangers);
    }
    let holders: BTreeSet<IpAddr> = ours.iter().filter(|h| h.advert.priority > 0).map(|h| h.advert.source).collect();
    if holders.len() > 1 {
        let all: Vec<String> = holders.iter().map(ToString::to_string).collect();
        let what = format!("{} hosts announce {vip} at once: {}", holders.len(), all.join(", "));
        return Finding::warn("vip", what, "VRRP does not get from one to the other: look at their firewalls (IP protocol 112)");
    }
    Finding::ok("vip", format!("{vip} is held by the cluster"))
}

fn taken(vip: IpAddr, by: &[Claim]) -> Finding {
    let verb = if by.iter().all(|c| c.how == How::Probes) { "is about to be taken" } else { "is taken" };
    let what = format!("{vip} {verb} by another host on the wire: {}", macs(by));
    Finding::fail(
        "vip",
        &Error::refused(what).hint("choose an address that nobody has, or find that host by its hardware address and take it off there"),
    )
}

fn router_id(settings: &Settings, others: &[&Heard]) -> Finding {
    let id = settings.vrrp.router_id;
    let same: Vec<&Heard> = others.iter().filter(|h| h.advert.router_id == id.get()).copied().collect();
    if same.is_empty() {
        return Finding::ok("router-id", format!("nobody else on the wire uses the VRRP router id {id}"));
    }
    let what = format!("the VRRP router id {id} is used by another router: {}", list(&same));
    let hint = "choose a VIP with another last number (the id is derived from it), or give the other router another id";
    Finding::fail("router-id", &Error::refused(what).hint(hint))
}

fn vrrp_match(settings: &Settings, ours: &[&Heard]) -> Finding {
    let vip = settings.vip.addr();
    let vrrp = &settings.vrrp;
    let differing: Vec<&Heard> = ours.iter().filter(|h| !matches(settings, &h.advert)).copied().collect();
    if !differing.is_empty() {
        let wrong_password = differing
            .iter()
            .any(|h| h.advert.version == vrrp.version.number() && h.advert.password.is_some() && !password_is(settings, &h.advert));
        let mut what = format!(
            "this host would speak VRRP version {} with id {} each {} s, but the servers do not: {}",
            vrrp.version.number(),
            vrrp.router_id,
            vrrp.advert,
            list(&differing)
        );
        if wrong_password {
            what.push_str("; their password is another one");
        }
        let hint = "two kinds at once and every server takes the VIP; print a new ticket on a server: smartup ticket --role server";
        return Finding::fail("vrrp-match", &Error::refused(what).hint(hint));
    }
    if !vrrp.unicast.is_empty() {
        return Finding::ok("vrrp-match", "the servers speak VRRP to each other alone (unicast), which cannot be compared");
    }
    if ours.is_empty() {
        let hint = "look whether a server holds the VIP (smartup status there), and whether the network lets multicast through";
        return Finding::warn(
            "vrrp-match",
            format!("no VRRP adverts of {vip} are heard: no server holds it, or multicast is blocked"),
            hint,
        );
    }
    Finding::ok("vrrp-match", format!("the servers speak VRRP version {} each {} s, as this host will", vrrp.version.number(), vrrp.advert))
}

fn matches(settings: &Settings, advert: &Advert) -> bool {
    let vrrp = &settings.vrrp;
    advert.version == vrrp.version.number()
        && advert.router_id == vrrp.router_id.get()
        && advert.interval == vrrp.advert.centiseconds()
        && password_is(settings, advert)
}

fn password_is(settings: &Settings, advert: &Advert) -> bool {
    match (&settings.vrrp.version, &advert.password) {
        (Version::V2(ours), Some(theirs)) => theirs.is(ours.expose()),
        (Version::V2(_), None) => false,
        (Version::V3, _) => true,
    }
}

fn macs(claims: &[Claim]) -> String {
    let all: BTreeSet<Mac> = claims.iter().map(|c| c.mac).collect();
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What was heard, each router once: its priority may have changed meanwhile.
fn list(heard: &[&Heard]) -> String {
    let lines: BTreeSet<String> = heard
        .iter()
        .map(|h| {
            let a = &h.advert;
            let addresses: Vec<String> = a.addresses.iter().map(ToString::to_string).collect();
            let seconds = f64::from(a.interval) / 100.0;
            format!(
                "{} ({}) announces {} as id {}, version {}, each {seconds} s",
                a.source,
                h.mac,
                addresses.join(" "),
                a.router_id,
                a.version
            )
        })
        .collect();
    lines.into_iter().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use node::{Kind, Verdict};
    use proptest::prelude::*;

    use super::*;
    use crate::settings::tests::settings;
    use crate::wire::Password;

    fn mac(n: u8) -> Mac {
        Mac([2, 0x79, 0, 0, 0, n])
    }

    /// What the server 10.0.0.<n> announces with the settings of the others.
    fn heard(n: u8) -> Heard {
        Heard {
            mac: mac(n),
            advert: Advert {
                source: IpAddr::from([10, 0, 0, n]),
                version: 3,
                router_id: 10,
                priority: n,
                interval: 10,
                addresses: vec!["10.0.0.10".parse().unwrap()],
                password: None,
            },
        }
    }

    fn answers(n: u8) -> Claim {
        Claim { mac: mac(n), how: How::Answers }
    }

    fn probes(n: u8) -> Claim {
        Claim { mac: mac(n), how: How::Probes }
    }

    fn of<'a>(found: &'a [Finding], name: &str) -> &'a Finding {
        found.iter().find(|f| f.name == name).unwrap()
    }

    fn refused(found: &[Finding], name: &str, what: &str) {
        let f = of(found, name);
        assert_eq!((f.verdict, f.kind), (Verdict::Fail, Kind::Refused), "{}", f.what);
        assert!(f.what.contains(what), "{}", f.what);
    }

    fn all_ok(found: &[Finding]) {
        assert!(found.iter().all(|f| f.verdict == Verdict::Ok), "{found:#?}");
    }

    #[test]
    fn a_quiet_wire_is_for_the_first_server() {
        let s = settings(false, None, &[]);
        all_ok(&judge(&s, false, &Seen::default()));
        let other =
            Heard { advert: Advert { router_id: 77, addresses: vec!["10.0.0.77".parse().unwrap()], ..heard(5).advert }, ..heard(5) };
        all_ok(&judge(&s, false, &Seen { heard: vec![other], ..Seen::default() }));
    }

    #[test]
    fn the_first_server_takes_nobodys_address() {
        let s = settings(false, None, &[]);
        refused(
            &judge(&s, false, &Seen { claims: vec![answers(9)], ..Seen::default() }),
            "vip",
            "taken by another host on the wire: 02:79:00:00:00:09",
        );
        refused(&judge(&s, false, &Seen { claims: vec![probes(9)], ..Seen::default() }), "vip", "about to be taken");
        refused(&judge(&s, false, &Seen { here: true, ..Seen::default() }), "vip", "address of this host");
        let found = judge(&s, false, &Seen { claims: vec![answers(12)], heard: vec![heard(12)], ..Seen::default() });
        refused(&found, "vip", "announced already: 10.0.0.12 (02:79:00:00:00:0c) announces 10.0.0.10 as id 10, version 3, each 0.1 s");
        assert!(of(&found, "vip").hint.as_ref().unwrap().contains("smartup join"));
    }

    #[test]
    fn a_foreign_router_with_our_id_is_refused() {
        let foreign = Heard {
            advert: Advert { version: 2, interval: 100, addresses: vec!["10.0.0.200".parse().unwrap()], ..heard(5).advert },
            ..heard(5)
        };
        for joining in [false, true] {
            let seen = Seen { heard: vec![foreign.clone()], ..Seen::default() };
            refused(
                &judge(&settings(false, None, &[]), joining, &seen),
                "router-id",
                "10.0.0.5 (02:79:00:00:00:05) announces 10.0.0.200 as id 10, version 2, each 1 s",
            );
        }
    }

    #[test]
    fn a_joiner_finds_the_cluster() {
        let s = settings(false, None, &[]);
        // another joiner probes at the same moment
        all_ok(&judge(&s, true, &Seen { claims: vec![answers(12), probes(13)], heard: vec![heard(12)], ..Seen::default() }));
    }

    #[test]
    fn a_joiner_is_warned_when_nothing_is_heard() {
        let found = judge(&settings(false, None, &[]), true, &Seen::default());
        assert_eq!(of(&found, "vrrp-match").verdict, Verdict::Warn);
        assert_eq!(of(&found, "vip").verdict, Verdict::Ok);
        let found = judge(&settings(false, None, &[]), true, &Seen { claims: vec![answers(12)], ..Seen::default() });
        refused(&found, "vip", "no VRRP adverts");
    }

    #[test]
    fn unicast_is_not_heard_by_others() {
        let s = settings(false, None, &["10.0.0.12"]);
        all_ok(&judge(&s, true, &Seen { claims: vec![answers(12)], ..Seen::default() }));
        refused(&judge(&s, false, &Seen { claims: vec![answers(12)], ..Seen::default() }), "vip", "taken");
    }

    #[test]
    fn a_stranger_with_the_vip_is_refused_beside_the_cluster() {
        let found = judge(
            &settings(false, None, &[]),
            true,
            &Seen { claims: vec![answers(9), answers(12)], heard: vec![heard(12)], ..Seen::default() },
        );
        refused(&found, "vip", "02:79:00:00:00:09");
        assert!(!of(&found, "vip").what.contains("00:0c"));
    }

    #[test]
    fn two_holders_at_once_are_worth_a_warning() {
        let both = Seen { claims: vec![answers(12), answers(13)], heard: vec![heard(12), heard(13)], ..Seen::default() };
        assert_eq!(of(&judge(&settings(false, None, &[]), true, &both), "vip").verdict, Verdict::Warn);
        let resigned = Heard { advert: Advert { priority: 0, ..heard(12).advert }, ..heard(12) };
        all_ok(&judge(&settings(false, None, &[]), true, &Seen { heard: vec![resigned, heard(13)], ..both }));
    }

    #[test]
    fn a_joiner_of_another_kind_is_refused() {
        let v3 = settings(false, None, &[]);
        for (change, said) in [
            (Advert { version: 2, interval: 100, ..heard(12).advert }, "version 2, each 1 s"),
            (Advert { interval: 20, ..heard(12).advert }, "each 0.2 s"),
            (Advert { router_id: 51, ..heard(12).advert }, "as id 51"),
        ] {
            let seen = Seen { heard: vec![Heard { advert: change, ..heard(12) }], ..Seen::default() };
            refused(&judge(&v3, true, &seen), "vrrp-match", said);
        }
    }

    #[test]
    fn a_joiner_with_another_password_is_refused() {
        let v2 = settings(false, Some("mypasswd"), &[]);
        let with = |password: Option<&[u8; 8]>| {
            let advert = Advert { version: 2, interval: 100, password: password.map(|p| Password::of(*p)), ..heard(12).advert };
            Seen { heard: vec![Heard { advert, ..heard(12) }], ..Seen::default() }
        };
        all_ok(&judge(&v2, true, &with(Some(b"mypasswd"))));
        let found = judge(&v2, true, &with(Some(b"other\0\0\0")));
        refused(&found, "vrrp-match", "their password is another one");
        assert!(!format!("{found:?}").contains("mypasswd") && !format!("{found:?}").contains("other\\0"));
        refused(&judge(&v2, true, &with(None)), "vrrp-match", "version 2");
    }

    fn any_heard() -> impl Strategy<Value = Heard> {
        (1_u8..5, 2_u8..=3, 9_u8..12, 0_u8..3, prop::sample::select(vec![10_u16, 20, 100]), 9_u8..12).prop_map(
            |(n, version, router_id, priority, interval, vip)| Heard {
                mac: mac(n),
                advert: Advert {
                    source: IpAddr::from([10, 0, 0, n]),
                    version,
                    router_id,
                    priority,
                    interval,
                    addresses: vec![IpAddr::from([10, 0, 0, vip])],
                    password: None,
                },
            },
        )
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        let claim =
            (1_u8..5, any::<bool>()).prop_map(|(n, answers)| Claim { mac: mac(n), how: if answers { How::Answers } else { How::Probes } });
        (any::<bool>(), prop::collection::vec(claim, 0..4), prop::collection::vec(any_heard(), 0..4))
            .prop_map(|(here, claims, heard)| Seen { here, claims, heard })
    }

    proptest! {
        #[test]
        fn the_first_server_starts_only_where_nobody_has_the_vip_or_the_id(seen in any_seen()) {
            let found = judge(&settings(false, None, &[]), false, &seen);
            let vip: IpAddr = "10.0.0.10".parse().unwrap();
            let busy = seen.here || !seen.claims.is_empty() || seen.heard.iter().any(|h| h.advert.addresses.contains(&vip) || h.advert.router_id == 10);
            prop_assert_eq!(found.iter().any(|f| f.verdict == Verdict::Fail), busy);
        }

        #[test]
        fn nobody_joins_those_who_speak_otherwise(seen in any_seen()) {
            let found = judge(&settings(false, None, &[]), true, &seen);
            let vip: IpAddr = "10.0.0.10".parse().unwrap();
            let other = seen.heard.iter().any(|h| h.advert.addresses.contains(&vip) && (h.advert.version, h.advert.router_id, h.advert.interval) != (3, 10, 10));
            prop_assert_eq!(of(&found, "vrrp-match").verdict == Verdict::Fail, other);
        }
    }
}
