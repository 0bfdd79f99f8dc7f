//! Whether a cluster is whole, so that it bears to be disturbed. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fleet::drill::{Looked, Survey};
use k3s::{MemberState, NodeInfo, Quorum};
use keepalived::Holders;
use node::{Error, Result};

/// A server of the cluster's file.
pub struct Seat<'a> {
    /// What the file calls it.
    pub name: &'a str,
    /// Its node's own address.
    pub address: Option<IpAddr>,
    /// How it is, or why that is not known.
    pub looked: Result<&'a Looked, String>,
}

/// The cluster as one of its servers sees it. `here`: whether that server has the VIP.
pub fn survey(nodes: Result<Vec<NodeInfo>>, members: Result<Vec<MemberState>>, wire: Result<Holders>, here: bool) -> Survey {
    let mut survey = Survey::default();
    match nodes {
        Err(e) => survey.troubles.push(e.chain()),
        Ok(nodes) => survey.troubles.extend(nodes.iter().filter(|n| n.ready != "True").map(|n| match &n.reason {
            Some(why) => format!("node {} is not Ready: {why}", n.name),
            None => format!("node {} is not Ready", n.name),
        })),
    }
    match members {
        Err(e) => survey.troubles.push(e.chain()),
        Ok(members) => {
            let wrong = members.iter().filter(|m| m.learner || !m.is_healthy());
            survey.troubles.extend(wrong.map(|m| format!("etcd member {} ({}): {}, {}", m.name, m.address, m.kind(), m.health())));
            let Quorum { voters, healthy } = Quorum::of(&members);
            (survey.voters, survey.healthy) = (voters, healthy);
            survey.servers = members.into_iter().map(|m| m.address).collect();
        }
    }
    match wire {
        Err(e) => survey.troubles.push(e.chain()),
        Ok(wire) => {
            let most = usize::from(!here);
            if wire.announced_by.len() > most || wire.answered_by.len() > most {
                let all: Vec<String> =
                    wire.announced_by.iter().map(ToString::to_string).chain(wire.answered_by.iter().map(ToString::to_string)).collect();
                survey.troubles.push(format!("more than one host has the VIP, as heard on the wire: {}", all.join(", ")));
            }
        }
    }
    survey
}

/// The one server that has the VIP, if all is as it must be.
///
/// # Errors
/// All that is not.
pub fn whole(seats: &[Seat<'_>], survey: &Result<Survey, String>) -> Result<usize, Vec<String>> {
    let mut troubles: Vec<String> = Vec::new();
    for seat in seats {
        match &seat.looked {
            Err(why) => troubles.push(format!("{}: {why}", seat.name)),
            Ok(looked) => troubles.extend(looked.troubles.iter().map(|t| format!("{}: {t}", seat.name))),
        }
    }
    let holds = |s: &Seat<'_>| s.looked.as_ref().is_ok_and(|l| l.holds);
    let holders: Vec<usize> = (0..seats.len()).filter(|n| holds(&seats[*n])).collect();
    match holders.as_slice() {
        [_] => {}
        [] => troubles.push("no server of the file has the VIP".to_owned()),
        several => {
            let names: Vec<&str> = several.iter().map(|n| seats[*n].name).collect();
            troubles.push(format!("{} servers have the VIP at once: {}", names.len(), names.join(", ")));
        }
    }
    match survey {
        Err(why) => troubles.push(why.clone()),
        Ok(survey) => {
            troubles.extend(survey.troubles.iter().cloned());
            let known: BTreeSet<String> = seats.iter().filter_map(|s| Some(s.address?.to_string())).collect();
            let strangers: Vec<&str> = survey.servers.iter().filter(|a| !known.contains(*a)).map(String::as_str).collect();
            if !strangers.is_empty() && seats.iter().all(|s| s.address.is_some()) {
                troubles.push(format!("the cluster has a server that is not in the file: {}", strangers.join(", ")));
            }
            let name = holders.first().map_or("one of them", |n| seats[*n].name);
            let quorum = Quorum { voters: survey.voters, healthy: survey.healthy };
            troubles.extend(quorum.survives(name).err().filter(|_| survey.voters > 0).map(|e| e.what));
        }
    }
    match holders.first() {
        Some(holder) if troubles.is_empty() => Ok(*holder),
        _ => Err(troubles),
    }
}

/// What is said where the cluster is not whole and nothing has been done yet.
pub fn refuse(troubles: &[String]) -> Error {
    Error::refused(format!("the cluster is not whole, so it is left alone:\n  {}", troubles.join("\n  ")))
        .hint("smartup doctor -f FILE looks for the causes")
}

#[cfg(test)]
mod tests {
    use cluster::Role;
    use keepalived::wire::Mac;

    use super::*;

    fn seats(looked: &[Looked]) -> Vec<Seat<'_>> {
        let names = ["h1", "h2", "h3"];
        (1..)
            .zip(looked)
            .map(|(n, l)| Seat { name: names[usize::from(n) - 1], address: Some(IpAddr::from([10, 0, 0, n])), looked: Ok(l) })
            .collect()
    }

    fn looked(holder: usize) -> Vec<Looked> {
        (0..3).map(|n| Looked { holds: n == holder, troubles: Vec::new() }).collect()
    }

    fn good() -> Survey {
        Survey { troubles: Vec::new(), voters: 3, healthy: 3, servers: ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(str::to_owned).into() }
    }

    #[test]
    fn a_whole_cluster_has_one_holder() {
        assert_eq!(whole(&seats(&looked(1)), &Ok(good())), Ok(1));
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let mut l = looked(0);
        l[1].holds = true;
        l[2].troubles.push("keepalived.service is inactive".into());
        let survey = Survey {
            troubles: vec!["node h4 is not Ready".into()],
            healthy: 2,
            servers: vec!["10.0.0.1".into(), "10.0.0.9".into()],
            ..good()
        };
        let said = whole(&seats(&l), &Ok(survey)).unwrap_err();
        insta::assert_snapshot!(refuse(&said).what, @r"
        the cluster is not whole, so it is left alone:
          h3: keepalived.service is inactive
          2 servers have the VIP at once: h1, h2
          node h4 is not Ready
          the cluster has a server that is not in the file: 10.0.0.9
          3 members, 2 healthy, 2 needed: without h1 there would be no quorum
        ");
    }

    #[test]
    fn what_is_not_known_is_not_whole() {
        let l = looked(0);
        let mut seats = seats(&l);
        seats[2].looked = Err("cannot be reached".into());
        assert_eq!(whole(&seats, &Ok(good())), Err(vec!["h3: cannot be reached".to_owned()]));
        seats.truncate(2);
        assert!(whole(&seats, &Err("nobody could be asked".into())).is_err());
    }

    #[test]
    fn the_loss_must_be_bearable() {
        let l: Vec<Looked> = looked(0).into_iter().take(2).collect();
        let survey = Survey { voters: 2, healthy: 2, servers: vec!["10.0.0.1".into(), "10.0.0.2".into()], ..good() };
        let said = whole(&seats(&l), &Ok(survey)).unwrap_err();
        assert_eq!(said, ["2 members, 2 healthy, 2 needed: without h1 there would be no quorum"]);
    }

    #[test]
    fn what_a_server_sees() {
        let node = |name: &str, ready: &str| NodeInfo {
            name: name.into(),
            role: Role::Agent,
            ready: ready.into(),
            reason: None,
            version: String::new(),
            address: String::new(),
            cordoned: false,
        };
        let wire = |n: u8| Holders {
            announced_by: (0..n).map(|n| IpAddr::from([10, 0, 0, n])).collect(),
            answered_by: (0..n).map(|n| Mac([2, 0, 0, 0, 0, n])).collect(),
        };
        let failed = || Err(Error::failed("etcd does not answer"));
        let said = survey(Ok(vec![node("h1", "True"), node("h4", "Unknown")]), failed(), Ok(wire(1)), true);
        assert_eq!(
            said.troubles,
            [
                "node h4 is not Ready",
                "etcd does not answer",
                "more than one host has the VIP, as heard on the wire: 10.0.0.0, 02:00:00:00:00:00"
            ]
        );
        assert!(survey(Ok(vec![]), Ok(vec![]), Ok(wire(1)), false).troubles.is_empty());
        // unicast adverts are not heard by others
        assert!(survey(Ok(vec![]), Ok(vec![]), Ok(Holders { announced_by: BTreeSet::new(), ..wire(1) }), false).troubles.is_empty());
    }
}
