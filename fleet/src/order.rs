//! Whose turn it is. Pure: what the hosts say goes in, what they are told comes out.
//!
//! The stages: servers that are members already, restarted one at a time, the VIP's holder last; the server that starts a new
//! cluster; the other new servers, one by one, since etcd takes one learner at a time; then the agents, several at a time, as
//! soon as every server has its vote in etcd. All new hosts are prepared at once (packages, files, firewall), so that only
//! k3s's own start is waited for.
//!
//! A roll-out ([`Conductor::rolling`]) goes through the same stages with members alone, and ends with the first failure; of its agents
//! the first one goes alone.

use std::collections::{BTreeSet, VecDeque};

use cluster::Role;
use node::Error;

use crate::protocol::{Begin, FromNode, Node, State, Survey, Tickets, ToNode, VrrpWire};

/// A host's number: its place in the list that the conductor was made with.
pub type HostId = usize;

/// A host as the cluster's file has it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its name in the file.
    pub name: String,
    /// Its role there.
    pub role: Role,
    /// Whether it is to be changed. Servers that are not are asked what they are, and for tickets.
    pub selected: bool,
}

/// What to tell a host.
#[derive(Debug, Clone)]
pub struct Order {
    /// Whom.
    pub host: HostId,
    /// What.
    pub say: ToNode,
}

/// How it ended for a host.
#[derive(Debug)]
pub enum End {
    /// All was as it should be.
    Unchanged,
    /// A plan: it would be changed.
    WouldChange,
    /// It was changed.
    Changed,
    /// It failed. `unknown`: the connection was lost in the middle of it.
    Failed {
        /// Why.
        error: Error,
        /// Whether nobody knows how far it came.
        unknown: bool,
    },
    /// It was not, or not any further, worked on, because of others.
    NotStarted(String),
}

impl End {
    /// Whether the host is as it should be.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Unchanged | Self::WouldChange | Self::Changed)
    }
}

#[derive(Debug)]
struct Seat {
    listed: Listed,
    state: Option<State>,
    told: Told,
    survey: Option<Survey>,
    voted: bool,
    joined: bool,
    settled: bool,
    end: Option<End>,
}

/// How far a host has been told to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    /// Nothing but its job.
    Job,
    /// Its place in the cluster: it compares itself with what is wanted.
    Place,
    /// To prepare itself, and to wait for its ticket.
    Prepare,
    /// Its ticket, to check the cluster with, and to wait for its turn.
    Ticket,
    /// To go all the way.
    All,
}

impl Seat {
    fn is_server(&self) -> bool {
        self.listed.role == Role::Server
    }

    /// Whether its disk says that it belongs to a cluster.
    fn ca(&self) -> Option<&str> {
        self.state.as_ref()?.member.as_ref()?.ca.as_deref()
    }

    fn failed(&self) -> bool {
        matches!(self.end, Some(End::Failed { .. } | End::NotStarted(_)))
    }

    fn wants_ticket(&self) -> bool {
        self.survey.as_ref().is_some_and(|s| s.wants_ticket)
    }

    fn is_going(&self) -> bool {
        self.told >= Told::Prepare
    }

    fn is_released(&self) -> bool {
        self.told == Told::All
    }
}

/// What is done with the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// They become, and stay, one cluster.
    Setup,
    /// All are members already, and the first failure is the end.
    RollOut,
}

/// Decides who does what when.
#[derive(Debug)]
pub struct Conductor {
    seats: Vec<Seat>,
    /// How many agents join or change at the same time.
    parallel: usize,
    plan: bool,
    way: Way,
    /// Everybody's place is decided.
    placed: bool,
    founder: Option<HostId>,
    vrrp: Option<VrrpWire>,
    tickets: Option<Tickets>,
    /// Members that have not been asked for tickets yet.
    sources: VecDeque<HostId>,
    asked: Option<HostId>,
    going: bool,
    /// Servers in the order in which they are restarted or join.
    line: Vec<HostId>,
}

impl Conductor {
    /// For these hosts, in the file's order; `plan` ends when it is known what would change.
    pub fn new(hosts: Vec<Listed>, parallel: usize, plan: bool) -> Self {
        let seat =
            |listed| Seat { listed, state: None, told: Told::Job, survey: None, voted: false, joined: false, settled: false, end: None };
        Self {
            seats: hosts.into_iter().map(seat).collect(),
            parallel: parallel.max(1),
            plan,
            way: Way::Setup,
            placed: false,
            founder: None,
            vrrp: None,
            tickets: None,
            sources: VecDeque::new(),
            asked: None,
            going: false,
            line: Vec::new(),
        }
    }

    /// The same for a roll-out over members: nobody starts a cluster, nothing begins unless all hosts can be changed, and after the
    /// first failure nobody else does.
    #[must_use]
    pub fn rolling(mut self) -> Self {
        self.way = Way::RollOut;
        self
    }

    /// A host said something.
    pub fn heard(&mut self, host: HostId, said: &FromNode) -> Vec<Order> {
        let plan = self.plan;
        let same_name = match said {
            FromNode::State(state) => self.with_name(&state.name).map(|other| (other.listed.name.clone(), state.name.clone())),
            _ => None,
        };
        let Some(seat) = self.seats.get_mut(host) else { return Vec::new() };
        match said {
            FromNode::State(state) => {
                seat.state = Some(state.clone());
                if let Some((other, name)) = same_name {
                    let error = Error::refused(format!("{other} and {} both have the host name {name}", seat.listed.name))
                        .hint("give each a name of its own (hostnamectl set-hostname NAME), or take one out of the file if they are the same host");
                    seat.end = Some(End::Failed { error, unknown: false });
                }
            }
            FromNode::Surveyed(survey) => {
                seat.survey = Some(survey.clone());
                if survey.changed == 0 {
                    seat.end = Some(End::Unchanged);
                } else if plan {
                    seat.end = Some(End::WouldChange);
                }
            }
            FromNode::Joined(tickets) => {
                seat.joined |= seat.is_going();
                self.tickets.get_or_insert_with(|| tickets.clone());
            }
            FromNode::Voted => seat.voted = true,
            FromNode::NoTickets(_) => self.asked = None,
            FromNode::Settled => seat.settled = true,
            FromNode::Done { .. } => {
                if seat.end.is_none() {
                    seat.end = Some(End::Changed);
                }
            }
            FromNode::Failed(failure) => {
                // what came to its end before is not undone by how the conversation ends
                if seat.end.is_none() {
                    seat.end = Some(End::Failed { error: failure.clone().into(), unknown: false });
                }
                self.asked = self.asked.filter(|n| *n != host);
            }
            FromNode::Event { .. }
            | FromNode::WantsK3s
            | FromNode::Examined(_)
            | FromNode::Clock { .. }
            | FromNode::Knocked { .. }
            | FromNode::Drill(_) => {
                return Vec::new();
            }
        }
        self.next()
    }

    /// A host cannot be reached, or its connection was lost.
    pub fn lost(&mut self, host: HostId, error: Error) -> Vec<Order> {
        let Some(seat) = self.seats.get_mut(host) else { return Vec::new() };
        if seat.end.is_none() {
            seat.end = Some(End::Failed { error, unknown: seat.is_going() });
        }
        self.asked = self.asked.filter(|n| *n != host);
        self.next()
    }

    /// Whether every host that is to be changed has been compared with what is wanted, or cannot be.
    pub fn is_surveyed(&self) -> bool {
        self.selected().all(|s| s.survey.is_some() || s.end.is_some())
    }

    /// Whether a roll-out cannot begin, or go on.
    pub fn has_to_stop(&self) -> bool {
        self.stops_all().is_some()
    }

    /// Whether nothing more will happen.
    pub fn is_over(&self) -> bool {
        self.selected().all(|s| s.end.is_some())
    }

    /// The selected hosts' ends, by their places; None for one that has not come to an end.
    pub fn ends(&self) -> impl Iterator<Item = (HostId, &Listed, Option<&End>)> {
        self.seats.iter().enumerate().filter(|(_, s)| s.listed.selected).map(|(n, s)| (n, &s.listed, s.end.as_ref()))
    }

    /// What a host said of itself.
    pub fn state(&self, host: HostId) -> Option<&State> {
        self.seats.get(host)?.state.as_ref()
    }

    /// Nodes of the cluster that are none of the listed hosts, as one of its servers knows them; None when none of its servers could say.
    pub fn strangers(&self) -> Option<Vec<&Node>> {
        let nodes = self.seats.iter().filter_map(|s| s.survey.as_ref()).map(|s| &s.nodes).find(|n| !n.is_empty());
        if nodes.is_none() && self.seats.iter().any(|s| s.is_server() && s.ca().is_some() && s.survey.is_some()) {
            return None;
        }
        let listed = |n: &&Node| {
            self.seats.iter().any(|s| {
                s.listed.name == n.name || s.listed.name == n.address || s.state.as_ref().is_some_and(|state| state.name == n.name)
            })
        };
        Some(nodes.into_iter().flatten().filter(|n| !listed(n)).collect())
    }

    /// The user agreed: the changes begin.
    pub fn go(&mut self) -> Vec<Order> {
        if self.going || !self.is_surveyed() {
            return Vec::new();
        }
        self.going = true;
        if let Some(orders) = self.nothing_begins() {
            return orders;
        }
        let holds = |s: &Seat| s.state.as_ref().is_some_and(|s| s.holds_vip);
        let open = |s: &Seat| s.listed.selected && s.end.is_none() && s.is_server();
        let numbers = 0..self.seats.len();
        let mut members: Vec<HostId> = numbers.clone().filter(|n| open(&self.seats[*n]) && self.seats[*n].ca().is_some()).collect();
        members.sort_by_key(|n| holds(&self.seats[*n]));
        let new = numbers.clone().filter(|n| open(&self.seats[*n]) && self.seats[*n].ca().is_none() && Some(*n) != self.founder);
        self.line = members.into_iter().chain(new).collect();
        if self.founder.is_none() {
            self.sources = numbers.filter(|n| self.seats[*n].is_server() && self.seats[*n].ca().is_some()).collect();
        }
        let mut orders = self.ask_for_tickets();
        // all that needs nobody else's work to be done before
        for n in 0..self.seats.len() {
            let seat = &self.seats[n];
            if seat.listed.selected && seat.end.is_none() && (Some(n) == self.founder || seat.wants_ticket()) {
                orders.push(self.start(n));
            }
        }
        orders.extend(self.next());
        orders
    }

    /// The user wants to stop: what is under way ends by itself, nothing new begins.
    pub fn stop(&mut self) -> Vec<Order> {
        let mut orders = Vec::new();
        for (host, seat) in self.seats.iter_mut().enumerate().filter(|(_, s)| s.end.is_none()) {
            if !seat.is_going() {
                seat.end = Some(End::NotStarted("it was stopped before".into()));
            }
            orders.push(Order { host, say: ToNode::Stop });
        }
        orders
    }

    /// In a roll-out, the host whose failure ends it.
    fn stops_all(&self) -> Option<&str> {
        self.selected().find(|s| self.way == Way::RollOut && s.failed()).map(|s| s.listed.name.as_str())
    }

    /// Before a roll-out: gives up on all hosts if one of them has failed.
    fn nothing_begins(&mut self) -> Option<Vec<Order>> {
        let why = format!("{} cannot be changed, and so nothing begins", self.stops_all()?);
        Some(self.leave((0..self.seats.len()).collect(), &why))
    }

    /// The host that has said that this is its name.
    fn with_name(&self, name: &str) -> Option<&Seat> {
        self.seats.iter().find(|s| !name.is_empty() && s.state.as_ref().is_some_and(|state| state.name == name))
    }

    fn selected(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(|s| s.listed.selected)
    }

    /// Tells a host to go; one without need of a ticket goes all the way.
    fn start(&mut self, host: HostId) -> Order {
        let last = self.line.last() == Some(&host) || !self.line.contains(&host);
        let seat = &mut self.seats[host];
        seat.told = if seat.wants_ticket() { Told::Prepare } else { Told::All };
        Order { host, say: ToNode::Go { settle: !last } }
    }

    fn next(&mut self) -> Vec<Order> {
        let mut orders = self.place();
        if self.going {
            orders.extend(self.ask_for_tickets());
            orders.extend(self.servers());
            orders.extend(self.agents());
        }
        orders
    }

    /// Decides who starts the cluster, once every server has said what it is.
    fn place(&mut self) -> Vec<Order> {
        if !self.placed {
            if self.seats.iter().any(|s| s.is_server() && s.state.is_none() && s.end.is_none()) {
                return self.begin();
            }
            self.placed = true;
            if let Some(orders) = self.nothing_begins() {
                return orders;
            }
            if let Err(error) = self.decide() {
                let mut error = Some(error);
                for seat in self.seats.iter_mut().filter(|s| s.listed.selected && s.end.is_none()) {
                    seat.end = Some(match error.take() {
                        Some(error) => End::Failed { error, unknown: false },
                        None => End::NotStarted("it is not known which cluster it belongs to".into()),
                    });
                }
                return Vec::new();
            }
        }
        self.begin()
    }

    /// Tells those who have said what they are their place: agents at once, servers when it is decided.
    fn begin(&mut self) -> Vec<Order> {
        let mut orders = Vec::new();
        for (host, seat) in self.seats.iter_mut().enumerate() {
            let waits = seat.listed.selected && seat.told == Told::Job && seat.end.is_none() && (self.placed || !seat.is_server());
            let Some(state) = seat.state.as_ref().filter(|_| waits) else { continue };
            let began = state.member.as_ref().is_some_and(|m| m.first && m.ca.is_some());
            let first = seat.is_server() && (Some(host) == self.founder || began);
            let vrrp = self.vrrp.clone().filter(|_| seat.is_server() && seat.ca().is_none());
            seat.told = Told::Place;
            orders.push(Order { host, say: ToNode::Begin(Begin { first, vrrp }) });
        }
        orders
    }

    fn decide(&mut self) -> Result<(), Error> {
        let servers = || self.seats.iter().enumerate().filter(|(_, s)| s.is_server());
        let members: Vec<(HostId, &Seat)> = servers().filter(|(_, s)| s.ca().is_some()).collect();
        let clusters: BTreeSet<&str> = members.iter().filter_map(|(_, s)| s.ca()).collect();
        if clusters.len() > 1 {
            let names = |ca: &str| {
                let of: Vec<&str> = members.iter().filter(|(_, s)| s.ca() == Some(ca)).map(|(_, s)| s.listed.name.as_str()).collect();
                of.join(" and ")
            };
            let groups: Vec<String> = clusters.iter().map(|ca| names(ca)).collect();
            return Err(Error::refused(format!("the servers belong to different clusters: {}", groups.join(" | ")))
                .hint("take the hosts of the other cluster out of the file, or `smartup reset` them if nobody needs their data"));
        }
        let mut spoken: Vec<(&str, &VrrpWire)> = Vec::new();
        for (_, seat) in &members {
            if let Some(vrrp) = seat.state.as_ref().and_then(|s| s.member.as_ref()?.vrrp.as_ref()) {
                spoken.push((&seat.listed.name, vrrp));
            }
        }
        let differs = spoken.first().and_then(|(a, first)| Some((a, spoken.iter().find(|(_, v)| !v.agrees_with(first))?)));
        if let Some((a, (b, _))) = differs {
            return Err(Error::refused(format!("{a} and {b} do not say the same over VRRP: two kinds at once are a split brain"))
                .hint("compare /etc/keepalived/keepalived.conf there (virtual_router_id, advert_int, version, password)"));
        }
        let vrrp = spoken.first().map(|(_, v)| (*v).clone());
        if !members.is_empty() {
            self.vrrp = vrrp;
            return Ok(());
        }
        if self.way == Way::RollOut {
            return Err(Error::refused("no server of the file can be asked, or none belongs to a cluster"));
        }
        // no server belongs to a cluster: one of them starts it, and it must be certain that there is none
        let unseen: Vec<&str> = servers().filter(|(_, s)| s.state.is_none()).map(|(_, s)| s.listed.name.as_str()).collect();
        if !unseen.is_empty() {
            return Err(Error::refused(format!(
                "a new cluster would be started, but {} cannot be asked whether there is one already",
                unseen.join(" and ")
            ))
            .hint("make every server of the file reachable, or take those out that are gone for ever"));
        }
        let begun: Vec<HostId> =
            servers().filter(|(_, s)| s.state.as_ref().and_then(|s| s.member.as_ref()).is_some_and(|m| m.first)).map(|(n, _)| n).collect();
        let founder = match begun.as_slice() {
            [] => servers().map(|(n, _)| n).next(),
            [one] => Some(*one),
            [a, b, ..] => {
                let (a, b) = (&self.seats[*a].listed.name, &self.seats[*b].listed.name);
                return Err(Error::refused(format!("both {a} and {b} were set up to start a cluster")).hint(format!("`smartup reset` {b}")));
            }
        };
        let Some(founder) = founder else { return Err(Error::invalid("there is no server in the file")) };
        if !self.seats[founder].listed.selected {
            return Err(Error::refused(format!("there is no cluster yet, and {} would start it", self.seats[founder].listed.name))
                .hint("run without --only first, or with that host as well"));
        }
        self.founder = Some(founder);
        Ok(())
    }

    /// Asks one member after the other until one has tickets.
    fn ask_for_tickets(&mut self) -> Vec<Order> {
        if self.tickets.is_some() || self.asked.is_some() || !self.selected().any(|s| s.wants_ticket() && s.end.is_none()) {
            return Vec::new();
        }
        while let Some(host) = self.sources.pop_front() {
            let seat = &self.seats[host];
            if seat.state.is_some() && !seat.failed() && !seat.is_going() {
                self.asked = Some(host);
                return vec![Order { host, say: ToNode::Tickets }];
            }
        }
        Vec::new()
    }

    /// Whether tickets cannot come any more.
    fn no_tickets(&self) -> bool {
        let founder_failed = self.founder.is_none_or(|n| self.seats[n].failed());
        self.tickets.is_none() && self.asked.is_none() && self.sources.is_empty() && founder_failed
    }

    /// The next server in the line, if the one before is through.
    fn servers(&mut self) -> Vec<Order> {
        if let Some(n) =
            self.line.iter().copied().find(|n| self.seats[*n].is_going() && self.seats[*n].ca().is_some() && self.seats[*n].failed())
        {
            let name = self.seats[n].listed.name.clone();
            let rest = self.line.clone();
            let why = match self.way {
                Way::Setup => "failed, and one more server less could cost the quorum",
                Way::RollOut => "failed, which ends the roll-out",
            };
            return self.leave(rest, &format!("{name} {why}"));
        }
        let through = |s: &Seat| s.end.is_some() || (s.is_released() && s.ca().is_none() && s.settled);
        let Some(host) = self.line.iter().copied().find(|n| !through(&self.seats[*n])) else { return Vec::new() };
        let seat = &self.seats[host];
        if seat.is_released() {
            return Vec::new();
        }
        if !seat.wants_ticket() {
            return vec![self.start(host)];
        }
        match self.tickets.clone() {
            Some(tickets) => {
                // all of them check the cluster now, so that only the start itself waits for its turn
                let mut orders: Vec<Order> = Vec::new();
                for n in self.line.clone() {
                    if self.seats[n].told == Told::Prepare && self.seats[n].end.is_none() {
                        orders.push(self.hand_over(n, &tickets));
                    }
                }
                orders.push(self.release(host));
                orders
            }
            None if self.no_tickets() => {
                let rest = self.line.clone();
                let why = self.why_no_tickets();
                self.leave(rest, &why)
            }
            None => Vec::new(),
        }
    }

    fn why_no_tickets(&self) -> String {
        match self.founder {
            Some(n) => format!("{} did not start the cluster", self.seats[n].listed.name),
            None => "no server of the cluster could give a ticket".into(),
        }
    }

    fn hand_over(&mut self, host: HostId, tickets: &Tickets) -> Order {
        let seat = &mut self.seats[host];
        seat.told = Told::Ticket;
        Order { host, say: ToNode::Ticket { ticket: tickets.for_role(seat.listed.role).clone() } }
    }

    fn release(&mut self, host: HostId) -> Order {
        self.seats[host].told = Told::All;
        Order { host, say: ToNode::Start }
    }

    /// The agents, when the servers' stage is done.
    fn agents(&mut self) -> Vec<Order> {
        let is_agent = |s: &Seat| s.listed.selected && !s.is_server();
        let waiting: Vec<HostId> = (0..self.seats.len())
            .filter(|n| is_agent(&self.seats[*n]) && self.seats[*n].end.is_none() && !self.seats[*n].is_released())
            .collect();
        let failed = self.selected().find(|s| s.is_server() && s.failed()).map(|s| s.listed.name.clone());
        if let Some(failed) = failed {
            let why = format!("{failed} failed, and agents come after the servers");
            return self.leave(waiting, &why);
        }
        // the founder votes from the first moment, but others can join it only when its API answers
        let through = |n: HostId, s: &Seat| s.end.is_some() || s.joined || (s.voted && Some(n) != self.founder && s.ca().is_none());
        if self.seats.iter().enumerate().any(|(n, s)| s.listed.selected && s.is_server() && !through(n, s)) {
            return Vec::new();
        }
        let (with, without): (Vec<HostId>, Vec<HostId>) =
            waiting.into_iter().partition(|n| self.tickets.is_some() || !self.seats[*n].wants_ticket());
        let mut orders = Vec::new();
        if self.no_tickets() {
            let why = self.why_no_tickets();
            orders.extend(self.leave(without, &why));
        }
        if let Some(failed) = self.stops_all().map(str::to_owned) {
            orders.extend(self.leave(with, &format!("{failed} failed, which ends the roll-out")));
            return orders;
        }
        let active = self.selected().filter(|s| is_agent(s) && s.is_released() && s.end.is_none()).count();
        // what one agent cannot bear shall not be done to many
        let tried = self.selected().any(|s| is_agent(s) && matches!(s.end, Some(End::Changed)));
        let parallel = if self.way == Way::RollOut && !tried { 1 } else { self.parallel };
        for host in with.into_iter().take(parallel.saturating_sub(active)) {
            match self.tickets.clone() {
                Some(tickets) if self.seats[host].wants_ticket() => {
                    orders.push(self.hand_over(host, &tickets));
                    orders.push(self.release(host));
                }
                _ => orders.push(self.start(host)),
            }
        }
        orders
    }

    /// Gives up on hosts that are still waiting.
    fn leave(&mut self, hosts: Vec<HostId>, why: &str) -> Vec<Order> {
        let mut orders = Vec::new();
        for host in hosts {
            let seat = &mut self.seats[host];
            if seat.end.is_none() && !seat.is_released() {
                seat.end = Some(End::NotStarted(why.to_owned()));
                orders.push(Order { host, say: ToNode::Stop });
            }
        }
        orders
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Failure, Member, Secret};

    fn listed(servers: usize, agents: usize) -> Vec<Listed> {
        let host = |n: usize, role| Listed { name: format!("h{}", n + 1), role, selected: true };
        (0..servers).map(|n| host(n, Role::Server)).chain((servers..servers + agents).map(|n| host(n, Role::Agent))).collect()
    }

    fn fresh() -> FromNode {
        FromNode::State(State::default())
    }

    fn member(ca: Option<&str>, first: bool) -> FromNode {
        let member = Member { role: Role::Server, first, ca: ca.map(str::to_owned), vrrp: None };
        FromNode::State(State { member: Some(member), ..State::default() })
    }

    fn surveyed(changed: usize, wants_ticket: bool) -> FromNode {
        FromNode::Surveyed(Survey { changed, unchanged: 1, wants_ticket, nodes: Vec::new() })
    }

    fn joined() -> FromNode {
        FromNode::Joined(Tickets { server: Secret("s".into()), agent: Secret("a".into()) })
    }

    fn done() -> FromNode {
        FromNode::Done { result: serde_json::Value::Null }
    }

    fn failed() -> FromNode {
        FromNode::Failed(Failure { kind: node::Kind::Failed, what: "it broke".into(), hint: None })
    }

    /// `h1: begin first`, …
    fn words(orders: &[Order]) -> Vec<String> {
        let say = |o: &Order| match &o.say {
            ToNode::Begin(b) if b.first => "begin first".to_owned(),
            ToNode::Begin(_) => "begin".into(),
            ToNode::Go { settle: true } => "go, settle".into(),
            ToNode::Go { settle: false } => "go".into(),
            ToNode::Ticket { ticket } => format!("ticket {}", ticket.0),
            ToNode::Tickets => "tickets?".into(),
            ToNode::Start => "start".into(),
            ToNode::Stop => "stop".into(),
            other => format!("{other:?}"),
        };
        orders.iter().map(|o| format!("h{}: {}", o.host + 1, say(o))).collect()
    }

    #[test]
    fn a_new_cluster() {
        let mut c = Conductor::new(listed(3, 2), 8, false);
        assert!(c.heard(0, &fresh()).is_empty() && c.heard(1, &fresh()).is_empty());
        assert_eq!(words(&c.heard(3, &fresh())), ["h4: begin"]);
        assert_eq!(words(&c.heard(2, &fresh())), ["h1: begin first", "h2: begin", "h3: begin"]);
        c.heard(4, &fresh());
        for n in 0..5 {
            c.heard(n, &surveyed(9, n > 0));
        }
        assert!(c.is_surveyed());
        assert_eq!(words(&c.go()), ["h1: go", "h2: go, settle", "h3: go", "h4: go", "h5: go"]);
        assert_eq!(words(&c.heard(0, &joined())), ["h2: ticket s", "h3: ticket s", "h2: start"]);
        assert!(c.heard(0, &done()).is_empty() && c.heard(1, &joined()).is_empty());
        assert_eq!(words(&c.heard(1, &FromNode::Settled)), ["h3: start"]);
        assert!(c.heard(0, &FromNode::Voted).is_empty());
        assert_eq!(words(&c.heard(2, &FromNode::Voted)), ["h4: ticket a", "h4: start", "h5: ticket a", "h5: start"]);
        assert!(c.heard(2, &joined()).is_empty());
        for n in 1..5 {
            assert!(!c.is_over());
            c.heard(n, &done());
        }
        assert!(c.is_over() && c.ends().all(|(_, _, e)| e.is_some_and(End::is_good)));
    }

    #[test]
    fn a_new_server_comes_to_an_old_cluster() {
        let mut c = Conductor::new(listed(3, 0), 8, false);
        c.heard(0, &fresh());
        c.heard(1, &member(Some("ca"), true));
        assert_eq!(words(&c.heard(2, &member(Some("ca"), false))), ["h1: begin", "h2: begin first", "h3: begin"]);
        c.heard(0, &surveyed(9, true));
        c.heard(1, &surveyed(0, false));
        c.heard(2, &surveyed(0, false));
        assert_eq!(words(&c.go()), ["h2: tickets?", "h1: go"]);
        // the one asked cannot, the next one can
        let no = FromNode::NoTickets(Failure { kind: node::Kind::Failed, what: "no".into(), hint: None });
        assert_eq!(words(&c.heard(1, &no)), ["h3: tickets?"]);
        assert_eq!(words(&c.heard(2, &joined())), ["h1: ticket s", "h1: start"]);
        c.heard(0, &done());
        assert!(c.is_over());
    }

    #[test]
    fn members_restart_one_at_a_time_the_holder_last() {
        let mut c = Conductor::new(listed(3, 1), 8, false);
        let FromNode::State(mut holder) = member(Some("ca"), true) else { unreachable!() };
        holder.holds_vip = true;
        c.heard(0, &FromNode::State(holder));
        c.heard(1, &member(Some("ca"), false));
        c.heard(2, &member(Some("ca"), false));
        c.heard(3, &member(Some("ca"), false));
        for n in 0..4 {
            c.heard(n, &surveyed(1, false));
        }
        assert_eq!(words(&c.go()), ["h2: go, settle"]);
        assert!(c.heard(1, &joined()).is_empty() && c.heard(1, &FromNode::Settled).is_empty());
        assert_eq!(words(&c.heard(1, &done())), ["h3: go, settle"]);
        // one that fails ends it, whether it does not come back or was never stopped
        assert_eq!(words(&c.heard(2, &failed())), ["h1: stop", "h4: stop"]);
        let Some(End::NotStarted(why)) = c.ends().next().unwrap().2 else { panic!() };
        assert_eq!(why, "h3 failed, and one more server less could cost the quorum");
        assert!(c.is_over());
    }

    /// A roll-out over so many members, the first server holding the VIP, ready to go.
    fn roll_out(servers: usize, agents: usize, parallel: usize) -> Conductor {
        let mut c = Conductor::new(listed(servers, agents), parallel, false).rolling();
        let FromNode::State(mut holder) = member(Some("ca"), true) else { unreachable!() };
        holder.holds_vip = true;
        c.heard(0, &FromNode::State(holder));
        for n in 1..servers + agents {
            c.heard(n, &member(Some("ca"), false));
        }
        c
    }

    #[test]
    fn a_roll_out_ends_with_the_first_failure_and_tries_one_agent_first() {
        let mut c = roll_out(3, 3, 8);
        for n in 0..6 {
            c.heard(n, &surveyed(1, false));
        }
        assert_eq!(words(&c.go()), ["h2: go, settle"]);
        assert_eq!(words(&c.heard(1, &done())), ["h3: go, settle"]);
        assert_eq!(words(&c.heard(2, &done())), ["h1: go"]);
        assert_eq!(words(&c.heard(0, &done())), ["h4: go"]);
        assert_eq!(words(&c.heard(3, &done())), ["h5: go", "h6: go"]);
        c.heard(4, &failed());
        c.heard(5, &done());
        assert!(c.is_over());
        let mut c = roll_out(1, 3, 2);
        for n in 0..4 {
            c.heard(n, &surveyed(usize::from(n > 0), false));
        }
        assert_eq!(words(&c.go()), ["h2: go"]);
        assert_eq!(words(&c.heard(1, &failed())), ["h3: stop", "h4: stop"]);
        let Some(End::NotStarted(why)) = c.ends().nth(2).unwrap().2 else { panic!() };
        assert_eq!(why, "h2 failed, which ends the roll-out");
    }

    #[test]
    fn a_roll_out_begins_only_where_all_can_be_changed() {
        let mut c = roll_out(2, 1, 8);
        for n in 0..2 {
            c.heard(n, &surveyed(1, false));
        }
        c.lost(2, Error::failed("no route to host"));
        assert!(c.is_surveyed());
        assert_eq!(words(&c.go()), ["h1: stop", "h2: stop"]);
        let Some(End::NotStarted(why)) = c.ends().next().unwrap().2 else { panic!() };
        assert_eq!(why, "h3 cannot be changed, and so nothing begins");
        // a server that refuses is told before the others say more, and nobody starts a cluster instead
        let mut c = Conductor::new(listed(2, 1), 8, false).rolling();
        assert_eq!(words(&c.heard(2, &member(Some("ca"), false))), ["h3: begin"]);
        c.heard(0, &failed());
        assert_eq!(words(&c.heard(1, &failed())), ["h3: stop"]);
        assert!(c.is_over());
        let mut c = Conductor::new(listed(2, 0), 8, false).rolling();
        c.heard(0, &fresh());
        assert!(c.heard(1, &fresh()).is_empty() && c.is_over());
    }

    #[test]
    fn two_clusters_are_not_made_one() {
        let mut c = Conductor::new(listed(3, 0), 8, false);
        c.heard(0, &member(Some("a"), true));
        c.heard(1, &member(Some("b"), true));
        assert!(c.heard(2, &member(Some("a"), false)).is_empty());
        let Some(End::Failed { error, .. }) = c.ends().next().unwrap().2 else { panic!() };
        assert_eq!(error.what, "the servers belong to different clusters: h1 and h3 | h2");
        assert!(c.is_over());
    }

    #[test]
    fn no_new_cluster_while_a_server_is_silent() {
        let mut c = Conductor::new(listed(3, 0), 8, false);
        c.heard(0, &fresh());
        c.heard(1, &fresh());
        assert!(c.lost(2, Error::failed("no route to host")).is_empty());
        let Some(End::Failed { error, .. }) = c.ends().next().unwrap().2 else { panic!() };
        assert!(error.what.contains("h3 cannot be asked"), "{}", error.what);
        // but an old one goes on
        let mut c = Conductor::new(listed(3, 0), 8, false);
        c.heard(0, &fresh());
        c.heard(1, &member(Some("ca"), true));
        assert_eq!(words(&c.lost(2, Error::failed("no route to host"))), ["h1: begin", "h2: begin first"]);
    }

    #[test]
    fn a_node_that_is_not_in_the_file_is_named() {
        let mut c = Conductor::new(listed(2, 0), 8, true);
        let node = |name: &str, address: &str| Node { name: name.into(), role: Role::Agent, address: address.into() };
        let FromNode::State(mut state) = member(Some("ca"), true) else { unreachable!() };
        state.name = "one".into();
        c.heard(0, &FromNode::State(state));
        c.lost(1, Error::failed("no route to host"));
        c.heard(0, &FromNode::Surveyed(Survey::default()));
        assert_eq!(c.strangers(), None, "a server that cannot say which nodes there are");
        let nodes = vec![node("one", "10.0.0.1"), node("h2", "10.0.0.2"), node("old", "10.0.0.9")];
        c.heard(0, &FromNode::Surveyed(Survey { nodes, ..Survey::default() }));
        assert_eq!(c.strangers().into_iter().flatten().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["old"]);
    }

    #[test]
    fn two_hosts_of_one_name_are_not_two_nodes() {
        let mut c = Conductor::new(listed(1, 2), 8, false);
        let named = |name: &str| FromNode::State(State { name: name.into(), ..State::default() });
        c.heard(0, &named("localhost"));
        assert_eq!(words(&c.heard(1, &named("node"))), ["h2: begin"]);
        assert!(c.heard(2, &named("node")).is_empty());
        let Some(End::Failed { error, .. }) = c.ends().nth(2).unwrap().2 else { panic!() };
        assert_eq!(error.what, "h2 and h3 both have the host name node");
    }

    #[test]
    fn one_that_was_begun_is_taken_up_again() {
        let mut c = Conductor::new(listed(2, 0), 8, false);
        c.heard(0, &fresh());
        assert_eq!(words(&c.heard(1, &member(None, true))), ["h1: begin", "h2: begin first"]);
    }

    /// What a simulated host is before, and where it fails.
    #[derive(Debug, Clone)]
    struct Fake {
        ca: bool,
        changed: bool,
        fails_at: u8,
    }

    prop_compose! {
        fn fake()(ca: bool, changed: bool, fails_at in 0_u8..12) -> Fake { Fake { ca, changed, fails_at } }
    }

    proptest! {
        /// Whatever fails in whatever order: a roll-out ends; servers go one at a time, the holder as the last of them; agents when
        /// all servers are done; and nobody is told to go after the first failure.
        #[test]
        fn a_roll_out_keeps_its_order(hosts in prop::collection::vec(fake(), 1..7), servers in 1_usize..4, picks in prop::collection::vec(0_usize..64, 60)) {
            let servers = servers.min(hosts.len());
            let mut c = roll_out(servers, hosts.len() - servers, 2);
            for (n, host) in hosts.iter().enumerate() {
                c.heard(n, &if host.fails_at == 1 { failed() } else { surveyed(usize::from(host.changed), false) });
            }
            let (mut working, mut open) = (Vec::new(), hosts.iter().filter(|h| h.changed).count());
            let mut broken = hosts.iter().any(|h| h.fails_at == 1);
            let mut picks = picks.into_iter();
            let mut orders = if c.is_over() { Vec::new() } else { c.go() };
            loop {
                for Order { host, say } in orders {
                    if matches!(say, ToNode::Go { .. }) {
                        prop_assert!(!broken, "h{} after a failure", host + 1);
                        prop_assert!(host >= servers || working.is_empty(), "{working:?} and h{}", host + 1);
                        prop_assert!(working.iter().all(|n| *n >= servers) && working.len() < 2, "{working:?} and h{}", host + 1);
                        let waits = |n: usize| hosts[n].changed && c.ends().nth(n).is_some_and(|(_, _, end)| end.is_none());
                        prop_assert!(host != 0 || (1..servers).all(|n| !waits(n)), "the holder before others");
                        prop_assert!(host < servers || (0..servers).all(|n| !waits(n)), "an agent before a server");
                        working.push(host);
                    }
                }
                let Some(pick) = picks.next().filter(|_| !working.is_empty()) else { break };
                let host = working.remove(pick % working.len());
                open -= 1;
                let fails = hosts[host].fails_at > 6;
                broken |= fails;
                orders = c.heard(host, &if fails { failed() } else { done() });
            }
            prop_assert!(c.is_over(), "{:?}", c.ends().collect::<Vec<_>>());
            prop_assert!(broken || open == 0);
        }

        /// Whatever fails in whatever order: it ends, one server at most starts a cluster, and only where there is none; one
        /// server at a time is between its ticket (or restart) and its end; agents come when no server is left.
        #[test]
        fn order_holds(hosts in prop::collection::vec(fake(), 1..7), servers in 1_usize..4, picks in prop::collection::vec(0_usize..64, 400)) {
            let servers = servers.min(hosts.len());
            let mut c = Conductor::new(listed(servers, hosts.len() - servers), 2, false);
            // what each host will say next
            let mut queue: Vec<Vec<FromNode>> = hosts.iter().map(|h| vec![if h.ca { member(Some("ca"), false) } else { fresh() }]).collect();
            let mut said = vec![0_u8; hosts.len()];
            let (mut busy, mut voters): (BTreeSet<usize>, BTreeSet<usize>) = Default::default();
            let (mut firsts, mut went) = (0, false);
            for pick in picks {
                let ready: Vec<usize> = (0..hosts.len()).filter(|n| !queue[*n].is_empty()).collect();
                let orders = if let Some(n) = ready.get(pick % ready.len().max(1)).copied() {
                    said[n] += 1;
                    if said[n] == hosts[n].fails_at {
                        queue[n].clear();
                        busy.remove(&n);
                        c.heard(n, &failed())
                    } else {
                        let message = queue[n].remove(0);
                        if matches!(message, FromNode::Joined(_) | FromNode::Voted) {
                            voters.insert(n);
                        }
                        if matches!(message, FromNode::Settled | FromNode::Done { .. }) {
                            busy.remove(&n);
                        }
                        c.heard(n, &message)
                    }
                } else if c.is_surveyed() && !went {
                    went = true;
                    c.go()
                } else {
                    break;
                };
                for Order { host, say } in orders {
                    let fake = hosts[host].clone();
                    if said[host] >= fake.fails_at && fake.fails_at > 0 { continue; }
                    match say {
                        ToNode::Begin(b) => {
                            if b.first && !fake.ca { firsts += 1; prop_assert!(hosts[..servers].iter().all(|h| !h.ca)); }
                            let new = !fake.ca;
                            queue[host].push(surveyed(usize::from(new || fake.changed), new && !b.first));
                        }
                        ToNode::Go { settle } if fake.ca || (firsts == 1 && host == 0) => {
                            if host < servers { prop_assert!(busy.is_empty(), "{busy:?} and {host}"); busy.insert(host); queue[host].push(joined()); }
                            else { prop_assert!(busy.is_subset(&voters), "{busy:?}"); }
                            if settle { queue[host].push(FromNode::Settled); }
                            queue[host].push(done());
                        }
                        ToNode::Start => {
                            if host < servers {
                                prop_assert!(busy.iter().all(|n| *n == 0 && firsts == 1), "{busy:?} and {host}");
                                busy.insert(host);
                                queue[host].extend([FromNode::Voted, joined(), FromNode::Settled]);
                            } else {
                                prop_assert!(busy.is_subset(&voters), "{busy:?}");
                            }
                            queue[host].push(done());
                        }
                        ToNode::Tickets => queue[host].push(joined()),
                        _ => {}
                    }
                }
            }
            prop_assert!(firsts <= 1);
            prop_assert!(c.is_over(), "{c:?}");
        }
    }
}
