//! What only shows when several hosts are compared. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cluster::{Port, Role, Vip};
use fleet::protocol::{Answer, Door, Examined, Knock, Member, Transport};

use super::doors::{self, KUBELET, VXLAN};
use super::finding::{Finding, OnHost};
use crate::clock::Clock;

const SAME: &str = "same-cluster";
const CLOCKS: &str = "clocks";
/// Its ports are knocked at.
pub const REACH: &str = "reach";

/// A host of the file, and what it said.
#[derive(Debug, Clone)]
pub struct Seat {
    /// As the file names it.
    pub name: String,
    /// As the file has it.
    pub role: Role,
    /// What it said of itself.
    pub said: Examined,
    /// Its clock in milliseconds, if it was read.
    pub clock: Option<Clock>,
}

fn on(seat: &Seat, finding: Finding) -> OnHost {
    OnHost { host: seat.name.clone(), finding }
}

/// The checks `same-cluster` and `clocks`, and whether several have the VIP.
pub fn judge(seats: &[Seat], vip: Vip, port: Port) -> Vec<OnHost> {
    let mut found = same(seats, vip, port);
    found.extend(clocks(seats));
    let holders: Vec<&Seat> = seats.iter().filter(|s| s.said.holds_vip).collect();
    if holders.len() > 1 {
        let hint =
            "they do not hear each other: VRRP (IP protocol 112) must pass between all servers, by multicast unless set up as unicast";
        let names: Vec<&str> = holders.iter().map(|s| s.name.as_str()).collect();
        let what = format!("{} hosts have {} at once: {}", names.len(), vip.addr(), names.join(", "));
        found.extend(holders.iter().map(|s| on(s, Finding::fail("vip", &what, hint))));
    }
    found
}

/// All are members of one cluster, and it is the file's. What most servers have counts as the cluster's.
fn same(seats: &[Seat], vip: Vip, port: Port) -> Vec<OnHost> {
    let members = || seats.iter().filter_map(|s| Some((s, s.said.member.as_ref()?)));
    let ca = most(members().filter_map(|(_, m)| m.ca.as_ref()));
    let spoken: Vec<_> = members().filter_map(|(_, m)| m.vrrp.as_ref()).collect();
    let vrrp = spoken.iter().rev().max_by_key(|v| spoken.iter().filter(|o| o.agrees_with(v)).count()).copied();
    let again = "smartup plan shows what would be changed; smartup reset takes a host out of a cluster that it should not be in";
    let fail = |what: String| Finding::fail(SAME, what, again);
    seats
        .iter()
        .filter_map(|seat| {
            let Some(member) = &seat.said.member else {
                let what = format!("it is no member of the cluster yet, as {}", article(seat.role));
                return members().next().map(|_| on(seat, Finding::warn(SAME, what, "smartup apply makes it one")));
            };
            let wrong = wrong(seat, member, (vip.addr(), port));
            let finding = if let Some(wrong) = wrong {
                fail(wrong)
            } else if member.ca.is_some() && member.ca.as_ref() != ca {
                fail("its cluster has another CA than the others': it is in a cluster of its own".to_owned())
            } else if let (Some(own), Some(theirs)) = (&member.vrrp, vrrp)
                && !own.agrees_with(theirs)
            {
                fail("it speaks VRRP otherwise than the others (version, id, interval or password): both would take the VIP".to_owned())
            } else {
                Finding::ok(SAME, format!("it is in the cluster of {}", vip.addr()))
            };
            Some(on(seat, finding))
        })
        .collect()
}

fn article(role: Role) -> &'static str {
    if role == Role::Server { "a server" } else { "an agent" }
}

fn wrong(seat: &Seat, member: &Member, file: (IpAddr, Port)) -> Option<String> {
    if member.role != seat.role {
        return Some(format!("it is {}, and {} in the file", article(member.role), article(seat.role)));
    }
    match seat.said.cluster {
        Some(own) if own != file => Some(format!("its cluster has the API at {}, and the file at {}", at(own), at(file))),
        _ => None,
    }
}

fn at((vip, port): (IpAddr, Port)) -> String {
    std::net::SocketAddr::new(vip, port.get()).to_string()
}

/// What occurs most often.
fn most<'a>(all: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(one, _)| one)
}

/// etcd warns of peers whose clocks are more than a second apart (its `rafthttp/probing_status.go`); so
/// much, in milliseconds, may a host be away from the middle one.
const APART: i64 = 1000;

/// The clocks agree. Judged is only what is beyond the measurement's own error.
fn clocks(seats: &[Seat]) -> Vec<OnHost> {
    let mut all: Vec<i64> = seats.iter().filter_map(|s| s.clock).filter(|c| c.error <= APART).map(|c| c.ahead).collect();
    all.sort_unstable();
    let Some(middle) = all.get(all.len() / 2).copied().filter(|_| all.len() > 1) else { return Vec::new() };
    let judged = seats.iter().filter_map(|seat| {
        let clock = seat.clock?;
        let away = clock.ahead - middle;
        let finding = if clock.error > APART {
            Finding::unknown(CLOCKS, format!("it takes {} ms to answer: too long to read its clock", 2 * clock.error), None)
        } else if away.abs() - clock.error > APART {
            let way = if away > 0 { "ahead of" } else { "behind" };
            let tenths = away.unsigned_abs() / 100;
            let what = format!("its clock is {}.{} s {way} the others'", tenths / 10, tenths % 10);
            Finding::warn(CLOCKS, what, "run chrony on all hosts, with the same servers")
        } else {
            Finding::ok(CLOCKS, "its clock agrees with the others' within a second")
        };
        Some(on(seat, finding))
    });
    judged.collect()
}

/// A port that one host must reach on another, or at the VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// The other's place among the hosts; None = the VIP.
    to: Option<usize>,
    door: Door,
    how: How,
}

/// How it is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
enum How {
    /// At the port itself.
    Straight(Knock),
    /// At the other's kubelet, through the pod network, which needs the port in both directions.
    ThroughPods(Knock),
    /// Not at all, and why.
    Not(&'static str),
}

impl Errand {
    fn knock(&self) -> Option<&Knock> {
        match &self.how {
            How::Straight(knock) | How::ThroughPods(knock) => Some(knock),
            How::Not(_) => None,
        }
    }
}

/// What each host must reach (docs/usage/networks.md): no more than is needed.
pub fn errands(seats: &[Seat], vip: Vip, port: Port) -> Vec<Vec<Errand>> {
    let held = seats.iter().any(|s| s.said.holds_vip);
    let of = |(n, from): (usize, &Seat)| {
        let others = seats.iter().enumerate().filter(|(m, _)| *m != n);
        let mut all: Vec<Errand> = others
            .flat_map(|(m, to)| {
                needed(from.role, to.role, port).into_iter().map(move |door| Errand { to: Some(m), door, how: how(from, to, door) })
            })
            .collect();
        if held {
            let knock = Knock { at: (vip.addr(), port.get()).into(), transport: Transport::Tcp, smartup: false };
            all.push(Errand { to: None, door: doors::api(port), how: How::Straight(knock) });
        }
        all
    };
    seats.iter().enumerate().map(of).collect()
}

/// What a host must reach on another one.
fn needed(from: Role, to: Role, port: Port) -> Vec<Door> {
    let mut all = doors::of(to, port);
    all.retain(|d| from == Role::Server || !doors::ETCD.contains(d));
    all
}

fn how(from: &Seat, to: &Seat, door: Door) -> How {
    let Some(address) = to.said.address else { return How::Not("its address in the VIP's subnet is not known") };
    let knock = |address: IpAddr, port: u16, transport, smartup| Knock { at: (address, port).into(), transport, smartup };
    if to.said.doors.contains(&door) {
        return How::Straight(knock(address, door.port, door.transport, true));
    }
    match (door.transport, to.said.runs) {
        (_, false) => How::Not("k3s does not run there, and smartup could not open the port itself"),
        (Transport::Tcp, true) => How::Straight(knock(address, door.port, Transport::Tcp, false)),
        (Transport::Udp, true) => match (from.said.pod_network, to.said.pod_network) {
            (Some(_), Some(there)) if door == VXLAN => How::ThroughPods(knock(there, KUBELET.port, Transport::Tcp, false)),
            _ => How::Not("k3s uses the port, and there is no flannel.1 on both hosts to try it through"),
        },
    }
}

/// What a host is told to knock at.
pub fn knocks(errands: &[Errand]) -> Vec<Knock> {
    errands.iter().filter_map(|e| e.knock().cloned()).collect()
}

/// The check `reach` of one host, from the answers to its knocks, or why there are none.
pub fn reached(seats: &[Seat], from: usize, errands: &[Errand], answers: Result<&[Answer], &str>) -> Vec<OnHost> {
    let seat = &seats[from];
    let answers = match answers {
        Ok(answers) if answers.len() == errands.iter().filter(|e| e.knock().is_some()).count() => answers,
        Ok(_) => return vec![on(seat, Finding::unknown(REACH, "it did not answer for every port; please report this", None))],
        Err(why) => return vec![on(seat, Finding::unknown(REACH, why, None))],
    };
    let mut answers = answers.iter();
    // one line for each other host and each way in which it went wrong
    let mut wrong: BTreeMap<(Option<usize>, bool, String), Vec<String>> = BTreeMap::new();
    let mut good = 0;
    for errand in errands {
        let answer = errand.knock().and_then(|_| answers.next());
        match outcome(seats, errand, answer) {
            Ok(()) => good += 1,
            Err((fails, why)) => wrong.entry((errand.to, fails, why)).or_default().push(errand.door.to_string()),
        }
    }
    if wrong.is_empty() {
        return vec![on(seat, Finding::ok(REACH, format!("all {good} ports that it needs of others let it in")))];
    }
    let each = wrong.into_iter().map(|((to, fails, why), ports)| {
        let other = to.and_then(|n| seats.get(n));
        let name = other.map_or("the VIP", |o| &o.name);
        let address = other.and_then(|o| o.said.address).map(|a| a.to_string()).filter(|a| a != name);
        let address = address.map(|a| format!(" ({a})")).unwrap_or_default();
        let what = format!("to {name}{address}, {}: {why}", ports.join(", "));
        on(
            seat,
            if fails {
                let hint = format!("let it through on the way, and look at the firewall of {name} (smartup doctor there)");
                Finding::fail(REACH, what, hint)
            } else {
                Finding::unknown(REACH, what, None)
            },
        )
    });
    each.collect()
}

/// Whether it was let in; otherwise whether that is a failure, and why.
fn outcome(seats: &[Seat], errand: &Errand, answer: Option<&Answer>) -> Result<(), (bool, String)> {
    let to = errand.to.and_then(|n| seats.get(n));
    if let How::Not(why) = errand.how {
        return Err((false, why.to_owned()));
    }
    let why = match answer {
        Some(Answer::In) => return Ok(()),
        None => return Err((false, "it was not tried".to_owned())),
        Some(Answer::Not(why)) => return Err((false, format!("it could not be tried: {why}"))),
        Some(_) if to.is_some_and(|t| t.said.member.is_none() && t.said.shut.contains(&errand.door)) => {
            return Err((false, "that host's firewall does not let it in yet, as smartup apply will have it".to_owned()));
        }
        Some(Answer::Refused) => "refused: nobody listens there, or a firewall refuses it",
        Some(Answer::Forbidden) => "no way there: a firewall rejects it, or the host is down",
        Some(Answer::Silence) => "no answer: a firewall drops it, or the host is down",
        Some(Answer::Stranger) => "somebody else answers in that host's place",
    };
    let tried = if matches!(errand.how, How::ThroughPods(_)) { " (tried through the pod network, which it carries)" } else { "" };
    Err((true, format!("{why}{tried}")))
}

#[cfg(test)]
mod tests {
    use cluster::Vrrp;
    use fleet::protocol::VrrpWire;

    use super::super::finding::Verdict;
    use super::*;

    fn vip() -> Vip {
        "10.0.0.10".parse().unwrap()
    }

    fn member(role: Role) -> Member {
        let vrrp = Vrrp::for_vip(vip().addr(), None, Vec::new()).unwrap();
        Member { role, first: false, ca: Some("ca".into()), vrrp: (role == Role::Server).then(|| VrrpWire::of(&vrrp)) }
    }

    /// Host number `n`, a member where k3s runs, or one that is still to be one.
    fn seat(n: u8, role: Role, runs: bool) -> Seat {
        let said = Examined {
            findings: serde_json::Value::Null,
            member: runs.then(|| member(role)),
            cluster: runs.then(|| (vip().addr(), Port::API)),
            holds_vip: runs && n == 1,
            address: Some(IpAddr::from([10, 0, 0, n])),
            pod_network: runs.then(|| IpAddr::from([10, 42, n, 0])),
            runs,
            doors: if runs { Vec::new() } else { doors::of(role, Port::API) },
            shut: Vec::new(),
        };
        Seat { name: format!("h{n}"), role, said, clock: Some(Clock { ahead: 0, error: 1 }) }
    }

    fn cluster(runs: bool) -> Vec<Seat> {
        vec![seat(1, Role::Server, runs), seat(2, Role::Server, runs), seat(3, Role::Agent, runs)]
    }

    fn said(found: &[OnHost]) -> Vec<String> {
        let wrong = found.iter().filter(|f| f.finding.verdict != Verdict::Ok);
        wrong.map(|f| format!("{} {:?} {}: {}", f.host, f.finding.verdict, f.finding.check, f.finding.what)).collect()
    }

    #[test]
    fn no_more_is_tried_than_is_needed() {
        let seats = cluster(true);
        let all = errands(&seats, vip(), Port::API);
        let words = |n: usize| -> Vec<String> {
            let to = |e: &Errand| e.to.map_or("vip".to_owned(), |n| seats[n].name.clone());
            all[n].iter().map(|e| format!("{} {}", to(e), e.door)).collect()
        };
        assert_eq!(
            words(0),
            ["h2 9443/tcp", "h2 2379/tcp", "h2 2380/tcp", "h2 10250/tcp", "h2 8472/udp", "h3 10250/tcp", "h3 8472/udp", "vip 9443/tcp"]
        );
        assert_eq!(words(2), ["h1 9443/tcp", "h1 10250/tcp", "h1 8472/udp", "h2 9443/tcp", "h2 10250/tcp", "h2 8472/udp", "vip 9443/tcp"]);
        // VXLAN is tried through the pods' network where k3s has the port, and straight where smartup has
        let vxlan = |seats: &[Seat]| errands(seats, vip(), Port::API)[2][2].knock().cloned().unwrap();
        assert_eq!((vxlan(&seats).at.to_string(), vxlan(&seats).transport), ("10.42.1.0:10250".to_owned(), Transport::Tcp));
        let before = cluster(false);
        assert_eq!(
            (vxlan(&before).at.to_string(), vxlan(&before).transport, vxlan(&before).smartup),
            ("10.0.0.1:8472".to_owned(), Transport::Udp, true)
        );
        assert!(errands(&before, vip(), Port::API)[0].iter().all(|e| e.to.is_some()), "nobody has the VIP yet");
    }

    fn reach(seats: &[Seat], answer: impl Fn(&Knock) -> Answer) -> Vec<OnHost> {
        let all = errands(seats, vip(), Port::API);
        let answers = all.iter().map(|e| knocks(e).iter().map(&answer).collect::<Vec<_>>());
        answers.enumerate().flat_map(|(n, answers)| reached(seats, n, &all[n], Ok(&answers))).collect()
    }

    #[test]
    fn a_port_that_is_blocked_is_named_with_both_ends() {
        let blocked = |k: &Knock| if k.at.to_string() == "10.0.0.3:10250" { Answer::Forbidden } else { Answer::In };
        let found = said(&reach(&cluster(true), blocked));
        let what = "Fail reach: to h3 (10.0.0.3), 10250/tcp: no way there: a firewall rejects it, or the host is down";
        assert_eq!(found, [format!("h1 {what}"), format!("h2 {what}")]);
        let blocked = |k: &Knock| if k.at.ip().to_string() == "10.42.2.0" { Answer::Silence } else { Answer::In };
        assert_eq!(
            said(&reach(&cluster(true), blocked))[0],
            "h1 Fail reach: to h2 (10.0.0.2), 8472/udp: no answer: a firewall drops it, or the host is down (tried through the pod network, which it carries)"
        );
        assert!(said(&reach(&cluster(false), |_| Answer::In)).is_empty());
    }

    #[test]
    fn what_cannot_be_tried_is_unknown() {
        let mut seats = cluster(true);
        seats[1].said.pod_network = None;
        seats[2].said.runs = false;
        let found = said(&reach(&seats, |_| Answer::In));
        assert_eq!(
            found[0],
            "h1 Unknown reach: to h2 (10.0.0.2), 8472/udp: k3s uses the port, and there is no flannel.1 on both hosts to try it through"
        );
        assert_eq!(
            found[1],
            "h1 Unknown reach: to h3 (10.0.0.3), 10250/tcp, 8472/udp: k3s does not run there, and smartup could not open the port itself"
        );
        // a firewall that apply will open tells nothing of what lies between
        let mut before = cluster(false);
        before[2].said.shut = vec![KUBELET];
        let shut =
            |k: &Knock| if k.at.port() == KUBELET.port && k.at.ip().to_string() == "10.0.0.3" { Answer::Forbidden } else { Answer::In };
        let found = said(&reach(&before, shut));
        assert!(found.len() == 2 && found[0].starts_with("h1 Unknown") && found[0].ends_with("as smartup apply will have it"), "{found:?}");
        let seats = cluster(true);
        assert_eq!(said(&reached(&seats, 0, &[], Err("it has gone"))), ["h1 Unknown reach: it has gone"]);
    }

    #[test]
    fn hosts_of_one_cluster_and_strangers() {
        assert!(said(&judge(&cluster(true), vip(), Port::API)).is_empty());
        assert!(said(&judge(&cluster(false), vip(), Port::API)).is_empty(), "none of them is a member yet");
        let mut seats = cluster(true);
        seats.push(seat(4, Role::Server, true));
        seats.push(seat(5, Role::Agent, false));
        seats.push(seat(6, Role::Server, true));
        seats[1].said.member.as_mut().unwrap().ca = Some("other".into());
        seats[2].said.cluster = Some(("10.0.0.99".parse().unwrap(), Port::API));
        let slow = Vrrp { advert: cluster::AdvertInterval::SECOND, ..Vrrp::for_vip(vip().addr(), None, Vec::new()).unwrap() };
        seats[3].said.member.as_mut().unwrap().vrrp = Some(VrrpWire::of(&slow));
        seats[5].role = Role::Agent;
        insta::assert_snapshot!(said(&judge(&seats, vip(), Port::API)).join("\n"), @r"
        h2 Fail same-cluster: its cluster has another CA than the others': it is in a cluster of its own
        h3 Fail same-cluster: its cluster has the API at 10.0.0.99:9443, and the file at 10.0.0.10:9443
        h4 Fail same-cluster: it speaks VRRP otherwise than the others (version, id, interval or password): both would take the VIP
        h5 Warn same-cluster: it is no member of the cluster yet, as an agent
        h6 Fail same-cluster: it is a server, and an agent in the file
        ");
    }

    #[test]
    fn several_holders_are_named() {
        let mut seats = cluster(true);
        seats[1].said.holds_vip = true;
        let found = said(&judge(&seats, vip(), Port::API));
        assert_eq!(found, ["h1", "h2"].map(|h| format!("{h} Fail vip: 2 hosts have 10.0.0.10 at once: h1, h2")));
    }

    #[test]
    fn clocks_that_are_apart() {
        let mut seats = cluster(true);
        for (seat, (ahead, error)) in seats.iter_mut().zip([(40, 5), (1500, 20), (1100, 2000)]) {
            seat.clock = Some(Clock { ahead, error });
        }
        assert_eq!(
            said(&clocks(&seats)),
            [
                "h1 Warn clocks: its clock is 1.4 s behind the others'",
                "h3 Unknown clocks: it takes 4000 ms to answer: too long to read its clock"
            ]
        );
        seats.truncate(1);
        assert!(clocks(&seats).is_empty(), "there is nothing to compare it with");
    }
}
