//! What an existing keepalived configuration is, before smartup's is put in its place.

use std::net::IpAddr;

use cluster::{AdvertInterval, AuthPass, RouterId, Version, Vrrp};

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Nothing but comments.
    Empty,
    /// The sample that keepalived itself and distributions ship.
    Sample,
    /// A single instance for the same VIP: the cluster's own, made by hand.
    SameVip(String),
    /// Something that serves others: what it is, by name.
    Foreign(Vec<String>),
}

/// The addresses of keepalived's own sample (its source, doc/samples/keepalived.conf.sample).
const SAMPLE_VIPS: [&str; 3] = ["192.168.200.16", "192.168.200.17", "192.168.200.18"];
const SAMPLE_SERVERS: [&str; 3] = ["192.168.200.100", "10.10.10.2", "10.10.10.3"];

/// Blocks that do something, and how many words of their name are of interest.
const NAMED: [(&str, usize); 7] = [
    ("vrrp_instance", 1),
    ("vrrp_sync_group", 1),
    ("virtual_server", 2),
    ("virtual_server_group", 1),
    ("static_ipaddress", 0),
    ("static_routes", 0),
    ("include", 1),
];

pub(crate) fn examine(text: &str, vip: IpAddr) -> Existing {
    let words = words(text);
    if words.is_empty() {
        return Existing::Empty;
    }
    let mut found = Vec::new();
    for (n, word) in words.iter().enumerate() {
        if let Some((keyword, count)) = NAMED.iter().find(|(k, _)| k == word) {
            let name: Vec<&str> = words[n + 1..].iter().take(*count).copied().take_while(|w| *w != "{").collect();
            found.push((*keyword, name));
        }
    }
    let vips = addresses(&words);
    let of = |keyword: &str| found.iter().filter(|(k, _)| *k == keyword).count();
    let sample_servers =
        found.iter().filter(|(k, _)| *k == "virtual_server").all(|(_, name)| name.first().is_some_and(|a| SAMPLE_SERVERS.contains(a)));
    let only = |keywords: &[&str]| found.iter().all(|(k, _)| keywords.contains(k));
    if !vips.is_empty() && vips.iter().all(|v| SAMPLE_VIPS.contains(v)) && sample_servers && only(&["vrrp_instance", "virtual_server"]) {
        return Existing::Sample;
    }
    let is_vip = |a: &&str| a.split('/').next().and_then(|a| a.parse::<IpAddr>().ok()) == Some(vip);
    if let [(_, name)] = found.as_slice()
        && of("vrrp_instance") == 1
        && vips.len() == 1
        && vips.iter().all(is_vip)
    {
        return Existing::SameVip(name.join(" "));
    }
    if found.is_empty() {
        found = vec![("global_defs", Vec::new())];
    }
    Existing::Foreign(found.into_iter().map(|(k, name)| format!("{k} {}", name.join(" ")).trim_end().to_owned()).collect())
}

/// What a configuration made by hand says on the wire; None when smartup cannot say the same: version 2 without a password,
/// a value out of range, IPv6 with a password.
///
/// keepalived's defaults (keepalived.conf(5)): version 2, id none, an advert each second; of a password the first 8
/// characters count.
pub(crate) fn spoken(text: &str) -> Option<Vrrp> {
    let words = words(text);
    let after = |keys: &[&str]| words.iter().position(|w| keys.contains(w)).and_then(|n| words.get(n + 1)).copied();
    let router_id = RouterId::try_from(after(&["virtual_router_id"])?.parse::<u8>().ok()?).ok()?;
    let advert = AdvertInterval::try_from(centiseconds(after(&["advert_int"]).unwrap_or("1"))?).ok()?;
    let version = match after(&["version"]).or_else(|| after(&["vrrp_version"])).unwrap_or("2") {
        "3" => Version::V3,
        "2" if after(&["auth_type"]) == Some("PASS") => {
            let pass: String = after(&["auth_pass"])?.chars().take(8).collect();
            Version::V2(AuthPass::parse(&pass).ok()?)
        }
        _ => return None,
    };
    let peers = words.iter().position(|w| *w == "unicast_peer").map_or(&[][..], |n| &words[n + 1..]);
    let unicast = peers.iter().skip_while(|w| **w == "{").take_while(|w| **w != "}").filter_map(|w| w.parse().ok()).collect();
    Some(Vrrp { version, router_id, advert, unicast })
}

/// `1`, `0.1` or `0.25` seconds, in hundredths.
fn centiseconds(text: &str) -> Option<u16> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let part = format!("{part:0<2}");
    let whole: u16 = whole.parse().ok()?;
    whole.checked_mul(100)?.checked_add(part.get(..2)?.parse().ok()?)
}

/// The words outside of comments; braces stand alone.
fn words(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| line.split(['#', '!']).next().unwrap_or_default())
        .flat_map(str::split_whitespace)
        .flat_map(|word| word.split_inclusive(['{', '}']))
        .flat_map(|word| match word.strip_suffix(['{', '}']) {
            Some(head) => vec![head, &word[head.len()..]],
            None => vec![word],
        })
        .filter(|word| !word.is_empty())
        .map(|word| word.trim_matches('"'))
        .collect()
}

/// The addresses in all `virtual_ipaddress` blocks.
fn addresses<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut inside = false;
    for (n, word) in words.iter().enumerate() {
        match *word {
            "{" => inside = n > 0 && words[n - 1].starts_with("virtual_ipaddress"),
            "}" => inside = false,
            w if inside && w.split('/').next().is_some_and(|a| a.parse::<IpAddr>().is_ok()) && !words[..n].ends_with(&["brd"]) => {
                found.push(w);
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::settings;
    use crate::version::Release;

    fn vip() -> IpAddr {
        "10.0.0.10".parse().unwrap()
    }

    #[test]
    fn what_is_spoken_by_hand_can_be_taken_over() {
        let by_hand = "vrrp_instance VI_1 {\n state MASTER\n virtual_router_id 51\n authentication {\n auth_type PASS\n \
            auth_pass mypassword\n }\n unicast_peer {\n 10.0.0.12\n 10.0.0.13\n }\n virtual_ipaddress {\n 10.0.0.10\n }\n}\n";
        let vrrp = spoken(by_hand).unwrap();
        assert_eq!((vrrp.router_id.get(), vrrp.advert, vrrp.unicast.len()), (51, AdvertInterval::SECOND, 2));
        assert!(matches!(&vrrp.version, Version::V2(p) if p.expose() == "mypasswo"));
        assert!(spoken(&by_hand.replace("auth_type PASS", "")).is_none());
        let three = spoken(&format!("global_defs {{\n vrrp_version 3\n}}\n{by_hand}\nadvert_int 0.25\n")).unwrap();
        assert_eq!((three.version.number(), three.advert.centiseconds()), (3, 25));
        // what smartup writes itself is read as it was meant
        for ours in [settings(false, None, &[]), settings(false, Some("mypasswd"), &["10.0.0.11", "10.0.0.12"])] {
            let read = spoken(&ours.config(Release::NEWEST).unwrap()).unwrap();
            assert!(read.agrees_with(&ours.vrrp), "{read:?}");
        }
    }

    #[test]
    fn nothing_but_comments() {
        assert_eq!(examine("! Configuration File for keepalived\n\n# nothing\n", vip()), Existing::Empty);
    }

    #[test]
    fn the_distributions_sample() {
        let text = "! Configuration File for keepalived\nglobal_defs {\n notification_email {\n acassen@firewall.loc\n }\n}\n\
            vrrp_instance VI_1 {\n state MASTER\n interface eth0\n virtual_ipaddress {\n 192.168.200.16\n 192.168.200.17\n }\n}\n\
            virtual_server 192.168.200.100 443 {\n real_server 192.168.201.100 443 {\n }\n}\nvirtual_server 10.10.10.2 1358 {\n}\n";
        assert_eq!(examine(text, vip()), Existing::Sample);
        let edited = text.replace("192.168.200.17", "10.1.2.3");
        assert_eq!(
            examine(&edited, vip()),
            Existing::Foreign(vec![
                "vrrp_instance VI_1".into(),
                "virtual_server 192.168.200.100 443".into(),
                "virtual_server 10.10.10.2 1358".into()
            ])
        );
    }

    #[test]
    fn the_references_sample_filled_in() {
        let text = "global_defs {\n router_id LVS_DEVEL\n}\nvrrp_script check_apiserver {\n script \"/etc/keepalived/check_apiserver.sh\"\n}\n\
            vrrp_instance VI_1 {\n state MASTER\n virtual_router_id 51\n authentication {\n auth_pass mypasswd\n }\n\
            virtual_ipaddress {\n 10.0.0.10\n }\n track_script {\n check_apiserver\n }\n}\n";
        assert_eq!(examine(text, vip()), Existing::SameVip("VI_1".into()));
        assert_eq!(examine(text, "10.0.0.9".parse().unwrap()), Existing::Foreign(vec!["vrrp_instance VI_1".into()]));
        assert_eq!(
            examine(&format!("{text}virtual_server 10.0.0.10 80 {{\n}}\n"), vip()),
            Existing::Foreign(vec!["vrrp_instance VI_1".into(), "virtual_server 10.0.0.10 80".into()])
        );
    }

    #[test]
    fn our_own_for_another_vip_is_foreign() {
        let ours = settings(false, None, &["10.0.0.12"]).config(Release::NEWEST).unwrap();
        assert_eq!(examine(&ours, vip()), Existing::SameVip("k3s_api".into()));
        assert_eq!(examine(&ours, "10.0.0.9".parse().unwrap()), Existing::Foreign(vec!["vrrp_instance k3s_api".into()]));
    }

    #[test]
    fn what_is_included_elsewhere_counts() {
        assert_eq!(
            examine("include /etc/keepalived/conf.d/*.conf", vip()),
            Existing::Foreign(vec!["include /etc/keepalived/conf.d/*.conf".into()])
        );
        assert_eq!(examine("global_defs{router_id x}", vip()), Existing::Foreign(vec!["global_defs".into()]));
        assert_eq!(
            examine("vrrp_instance a{virtual_ipaddress{10.0.0.7/24 brd 10.0.0.255}}", vip()),
            Existing::Foreign(vec!["vrrp_instance a".into()])
        );
    }

    proptest::proptest! {
        #[test]
        fn takes_any_text(text: String) {
            let _ = examine(&text, vip());
        }
    }
}
