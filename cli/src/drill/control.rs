//! Conducts a drill: talks to all hosts at once, collects what they see, and lets one fault happen after the other.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster::Role;
use cluster::file::HostSpec;
use fleet::drill::{Fault, Here, Job, Order, Question as Asked, Said};
use fleet::protocol::{self, FromNode, ToNode};
use fleet::session::{Input, converse};
use node::{Error, Event, Reporter, Result};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::fault::{BOUND, LINK};
use super::host::TICK;
use super::judge::{Seat, refuse, whole};
use super::measure::{Change, Question, away, is_calm, ms, shared, worst};
use super::report::{Rehearsal, Transition};
use crate::clock::Clock;
use crate::remote::Remote;

/// How long a host may take to be connected to, with what is sent there.
const OPEN: Duration = Duration::from_secs(60);
/// How long an answer may take that needs no look at anything.
const PROMPT: Duration = Duration::from_secs(10);
/// How long a look may take: at units, the API, etcd's members, and the wire.
const LOOK: Duration = Duration::from_secs(20);
/// A lease that somebody left behind is watched for 15 s.
const LEASE: Duration = Duration::from_secs(40);
/// How long undoing may take: systemd waits 90 s before it kills.
const UNDO: Duration = Duration::from_secs(110);
/// How long the hosts have to undo what is left when all is over.
const FAREWELL: Duration = Duration::from_secs(20);
/// A clock is read so often, and the quickest answer counts.
const READINGS: usize = 5;
/// So long the API must answer without a miss before a fault, and in it before it is undone.
const CALM: Duration = Duration::from_secs(2);
/// How long that is waited for.
const CALM_LIMIT: Duration = Duration::from_secs(30);
const NOT_CALM: &str = "the API does not answer all the time through the VIP";
/// Questions follow each other in 20 ms; this long without an answer is more than a delay.
const PAUSE: Duration = Duration::from_millis(500);
/// A fault lasts so long at least: systemd starts a k3s that was killed again after 5 s.
const LEAST: Duration = Duration::from_secs(8);
/// And at most, before this side undoes it; the host does it by itself soon after.
const MOST: Duration = Duration::from_secs(25);
/// So long the cluster must be whole without a break: a k3s that was frozen may end some seconds after it goes on.
const STEADY: Duration = Duration::from_secs(5);
/// Between two looks, and between two tries to connect anew.
const AGAIN: Duration = Duration::from_secs(1);
/// What is not known yet: a question may take this long until it counts as not answered.
const OPEN_QUESTIONS: i64 = 1_000_000;

/// Rehearses the faults one after the other. `agree` is told who has the VIP, and may say no. Answers what was seen, also when it
/// ends early, and why it did. When this returns, or is dropped, the hosts undo what is left.
pub async fn run(
    remote: &Remote,
    faults: &[Fault],
    limit: Duration,
    agree: impl FnOnce(&str) -> bool,
    reporter: Reporter,
    stop: CancellationToken,
) -> (Vec<Rehearsal>, Result<()>) {
    let mut stage = Stage::new(remote, reporter, stop);
    let mut done = Vec::new();
    let end = stage.all(faults, limit, agree, &mut done).await;
    stage.farewell().await;
    (done, end)
}

/// The conversation with one host.
struct Line<'a> {
    host: &'a HostSpec,
    /// Counts the conversations: what an earlier one still says is not heard.
    talk: u64,
    /// None = there is no conversation.
    orders: Option<UnboundedSender<ToNode>>,
    /// What the host said that it is; None = it has not yet.
    here: Option<Here>,
    /// Why there is none, or none yet.
    missing: String,
    clock: Clock,
    /// Whether it had the VIP when it was heard of last.
    holds: bool,
}

impl Line<'_> {
    fn name(&self) -> String {
        self.host.host.to_string()
    }

    fn is_server(&self) -> bool {
        self.host.role == Role::Server
    }
}

/// What was seen since a fault began.
#[derive(Default)]
struct Record {
    version: BTreeMap<usize, Vec<Question>>,
    readyz: BTreeMap<usize, Vec<Question>>,
    changes: Vec<Change>,
    /// A server that had the VIP could not be watched any more.
    unseen: bool,
}

/// What happens.
enum News {
    /// A host answers.
    Said(usize, Said),
    /// A conversation has ended.
    Lost(usize, Error),
    /// It is time.
    Time,
}

/// All hosts that take part: all servers, and one agent to ask the API from, if there is one.
struct Stage<'a> {
    remote: &'a Remote,
    lines: Vec<Line<'a>>,
    inputs: UnboundedReceiver<(usize, u64, Input)>,
    input: UnboundedSender<(usize, u64, Input)>,
    talks: JoinSet<()>,
    record: Record,
    /// Who asks the API now.
    asking: Vec<usize>,
    began: Instant,
    reporter: Reporter,
    stop: CancellationToken,
}

impl<'a> Stage<'a> {
    fn new(remote: &'a Remote, reporter: Reporter, stop: CancellationToken) -> Self {
        let agent = remote.cluster.hosts.iter().find(|h| h.role == Role::Agent);
        let line = |host| Line {
            host,
            talk: 0,
            orders: None,
            here: None,
            missing: String::new(),
            clock: Clock { ahead: 0, error: 0 },
            holds: false,
        };
        let (input, inputs) = unbounded_channel();
        Self {
            remote,
            lines: remote.cluster.servers().chain(agent).map(line).collect(),
            inputs,
            input,
            talks: JoinSet::new(),
            record: Record::default(),
            asking: Vec::new(),
            began: Instant::now(),
            reporter,
            stop,
        }
    }

    async fn all(&mut self, faults: &[Fault], limit: Duration, agree: impl FnOnce(&str) -> bool, done: &mut Vec<Rehearsal>) -> Result<()> {
        let everybody: Vec<usize> = (0..self.lines.len()).collect();
        for host in &everybody {
            self.open(*host);
        }
        self.say("connecting", "to the servers and an agent");
        let here = self.answers(&everybody, None, OPEN, |_, said| matches!(said, Said::Here(_)).then_some(())).await?;
        let troubles: Vec<String> =
            here.into_iter().filter_map(|(host, here)| Some(format!("{}: {}", self.lines[host].name(), here.err()?.chain()))).collect();
        if !troubles.is_empty() {
            return Err(refuse(&troubles));
        }
        self.not_under_us(faults)?;
        self.say("cluster", "looking whether it is whole");
        let holder = self.look().await?.map_err(|troubles| refuse(&troubles))?;
        if !agree(&self.lines[holder].name()) {
            return Err(Error::failed("nothing was disturbed: you did not say yes"));
        }
        for fault in faults {
            let rehearsal = self.rehearse(*fault, limit).await?;
            let whole = rehearsal.whole_after_ms.is_some();
            done.push(rehearsal);
            if !whole {
                let why = format!("the cluster is not whole again {} s after {fault}, so the drill ends here", limit.as_secs());
                return Err(Error::failed(why).hint("smartup doctor -f FILE looks for the causes"));
            }
        }
        Ok(())
    }

    /// Who takes away the ground that smartup itself stands on sees nothing any more.
    fn not_under_us(&self, faults: &[Fault]) -> Result<()> {
        let Some(fault) = faults.iter().find(|f| matches!(f, Fault::Link | Fault::Reboot)) else { return Ok(()) };
        let own = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let here = |l: &&Line<'_>| l.is_server() && l.here.as_ref().is_some_and(|h| h.boot == own.trim());
        match self.lines.iter().find(here) {
            None => Ok(()),
            Some(line) => Err(Error::invalid(format!("smartup runs on {} itself, which `{fault}` may happen to", line.name()))
                .hint("run it on an agent, or on a host outside of the cluster")),
        }
    }

    /// One fault: from a whole cluster to a whole cluster.
    async fn rehearse(&mut self, fault: Fault, limit: Duration) -> Result<Rehearsal> {
        let (holder, keeper) = self.hold_the_cluster(fault).await?;
        let name = self.lines[holder].name();
        let askers = self.askers(holder);
        self.read_clocks().await?;
        self.record = Record::default();
        self.ask_api(askers.clone());
        self.say(fault.name(), &format!("{name} has the VIP; asking the API"));
        if !self.wait_calm(&askers, self.now(), CALM, CALM_LIMIT).await? {
            return Err(refuse(&[NOT_CALM.to_owned()]));
        }
        self.told(keeper, Order::Keep, LEASE, &Said::Taken).await??;

        self.record.changes.clear();
        self.say(fault.name(), &format!("now, on {name}"));
        let began = self.disturb(fault, holder).await?;
        self.wait_calm(&askers, began, LEAST, MOST).await?;
        if fault != Fault::Reboot {
            self.say(fault.name(), &format!("undoing it on {name}"));
            // a host that is not there any more does it by itself
            if let Err(e) = self.told(holder, Order::Restore, UNDO, &Said::Restored).await? {
                self.reporter.warn(format!("{name}: {}", e.chain()), Some(format!("it undoes it by itself within {} s", BOUND.as_secs())));
            }
        }
        let (whole_at, troubles) = self.whole_again(fault, &askers, limit).await?;
        let until = self.now() - OPEN_QUESTIONS;
        self.ask_api(Vec::new());
        // where it has lost the lease, it has none to give back
        let _ = self.told(keeper, Order::Give, PROMPT, &Said::Given).await?;
        Ok(self.seen(fault, holder, began, until, whole_at, troubles))
    }

    /// Takes the lease on a server that does not have the VIP, and looks again: who has it now, and who has the lease.
    async fn hold_the_cluster(&mut self, fault: Fault) -> Result<(usize, usize)> {
        for _ in 0..3 {
            let Some(keeper) = (0..self.lines.len()).find(|n| self.lines[*n].is_server() && !self.lines[*n].holds) else { break };
            self.told(keeper, Order::Take { fault }, LEASE, &Said::Taken).await??;
            let holder = self.look().await?.map_err(|troubles| refuse(&troubles))?;
            if holder != keeper {
                return Ok((holder, keeper));
            }
            self.told(keeper, Order::Give, PROMPT, &Said::Given).await??;
        }
        Err(Error::failed("the VIP moves all the time").hint("smartup doctor -f FILE looks for the causes"))
    }

    /// From where the API is asked: an agent, which never has the VIP; otherwise all servers but the one that is disturbed.
    fn askers(&self, holder: usize) -> Vec<usize> {
        let all = || (0..self.lines.len()).filter(|n| *n != holder);
        let agents: Vec<usize> = all().filter(|n| !self.lines[*n].is_server()).collect();
        if agents.is_empty() { all().collect() } else { agents }
    }

    /// Answers when it began, in our time.
    async fn disturb(&mut self, fault: Fault, holder: usize) -> Result<i64> {
        let sent = self.now();
        let limit = if fault == Fault::Link { PROMPT + LINK * 3 } else { PROMPT };
        let pick = |said| if let Said::Disturbed { us } = said { Some(us) } else { None };
        match self.ask(holder, Order::Disturb { fault }, limit, pick).await? {
            Ok(us) => Ok(self.lines[holder].clock.ours(us)),
            // it may be gone before it has said so
            Err(_) if fault == Fault::Reboot && self.lines[holder].here.is_none() => Ok(sent),
            Err(e) => Err(e),
        }
    }

    /// Waits until the API has answered for a while without a miss, from `since` on for `least` and for `most`. Whether it has.
    async fn wait_calm(&mut self, askers: &[usize], since: i64, least: Duration, most: Duration) -> Result<bool> {
        loop {
            let lasted = Duration::from_micros(u64::try_from(self.now() - since).unwrap_or(0));
            let calm = self.is_calm(askers);
            if lasted >= most || (lasted >= least && calm) {
                return Ok(calm);
            }
            self.pass(PAUSE / 2).await?;
        }
    }

    /// Waits until the cluster has been whole for a while; answers since when, or what was missing in the end.
    async fn whole_again(&mut self, fault: Fault, askers: &[usize], limit: Duration) -> Result<(Option<i64>, Vec<String>)> {
        let until = Instant::now() + limit;
        let mut since: Option<(i64, Instant)> = None;
        let mut said = String::new();
        loop {
            for host in 0..self.lines.len() {
                if self.lines[host].orders.is_none() {
                    self.open(host);
                }
            }
            let (at, now) = (self.now(), Instant::now());
            let troubles = match self.look().await? {
                Ok(_) if !self.is_calm(askers) => vec![NOT_CALM.to_owned()],
                Ok(_) => {
                    let (whole_at, begun) = *since.get_or_insert((at, now));
                    if now - begun >= STEADY {
                        return Ok((Some(whole_at), Vec::new()));
                    }
                    Vec::new()
                }
                Err(troubles) => troubles,
            };
            if !troubles.is_empty() {
                since = None;
            }
            if let Some(first) = troubles.first().filter(|t| **t != said) {
                self.say(fault.name(), &format!("waiting until the cluster is whole again: {first}"));
                said.clone_from(first);
            }
            if !troubles.is_empty() && Instant::now() >= until {
                return Ok((None, troubles));
            }
            self.pass(AGAIN).await?;
        }
    }

    /// Whether the cluster is whole, and then who has the VIP.
    async fn look(&mut self) -> Result<Result<usize, Vec<String>>> {
        let everybody: Vec<usize> = (0..self.lines.len()).collect();
        let pick = |_, said| if let Said::Looked(looked) = said { Some(looked) } else { None };
        let looked = self.answers(&everybody, Some(Order::Look), LOOK, pick).await?;
        for (host, looked) in &looked {
            if let Ok(looked) = looked {
                self.lines[*host].holds = looked.holds;
            }
        }
        // one that has the VIP may be about to lose it, and one that is not well cannot tell how the others are
        let others = || looked.iter().filter(|(n, _)| self.lines[**n].is_server()).filter_map(|(n, l)| Some((*n, l.as_ref().ok()?)));
        let backups = || others().filter(|(_, l)| !l.holds);
        let asked = backups().find(|(_, l)| l.troubles.is_empty()).or_else(|| backups().next()).map(|(n, _)| n);
        let survey = match asked {
            None => Err("there is no second server to ask".to_owned()),
            Some(server) => {
                let pick = |said| if let Said::Surveyed(survey) = said { Some(survey) } else { None };
                self.ask(server, Order::Survey, LOOK, pick).await?.map_err(|e| format!("{}: {}", self.lines[server].name(), e.chain()))
            }
        };
        let names: Vec<String> = self.lines.iter().map(Line::name).collect();
        let seats: Vec<Seat<'_>> = everybody
            .iter()
            .map(|n| Seat {
                name: &names[*n],
                address: self.lines[*n].here.as_ref().map(|h| h.address),
                looked: match looked.get(n) {
                    Some(Ok(looked)) => Ok(looked),
                    Some(Err(e)) => Err(e.chain()),
                    None => Err("it was not asked".to_owned()),
                },
            })
            .collect();
        Ok(whole(&seats, &survey))
    }

    /// What is made of all that was seen.
    fn seen(&self, fault: Fault, holder: usize, began: i64, until: i64, whole_at: Option<i64>, troubles: Vec<String>) -> Rehearsal {
        let name = |n: usize| self.lines[n].name();
        let Record { version, readyz, changes, unseen } = &self.record;
        let of = |all: &BTreeMap<usize, Vec<Question>>| {
            let seen: Vec<_> = all.iter().map(|(host, questions)| (*host, away(questions, began, until))).collect();
            worst(&seen, changes)
        };
        let (gone, unready) = (of(version), of(readyz));
        let mut errors: Vec<i64> = self.lines.iter().filter(|l| l.is_server()).map(|l| l.clock.error).collect();
        errors.sort_unstable();
        let tick = i64::try_from(TICK.as_micros()).unwrap_or(i64::MAX);
        let mut changes = changes.clone();
        changes.sort_by_key(|c| c.at);
        Rehearsal {
            fault,
            holder: name(holder),
            asked_from: gone.map(|(host, _)| name(host)),
            away: gone.map(|(_, a)| a),
            not_ready: unready.map(|(_, a)| a),
            two_holders_ms: (!unseen).then(|| ms(shared(holder, &changes, until))),
            two_holders_error_ms: ms(tick + errors.iter().rev().take(2).sum::<i64>()),
            transitions: changes.iter().map(|c| Transition { after_ms: ms(c.at - began), host: name(c.host), holds: c.holds }).collect(),
            whole_after_ms: whole_at.map(|at| ms(at - began)),
            troubles,
        }
    }

    fn is_calm(&self, askers: &[usize]) -> bool {
        let us = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        let now = self.now();
        askers.iter().all(|n| self.record.version.get(n).is_some_and(|q| is_calm(q, now, us(CALM), us(PAUSE))))
    }

    async fn read_clocks(&mut self) -> Result<()> {
        let everybody: Vec<usize> = (0..self.lines.len()).collect();
        let mut best: BTreeMap<usize, Clock> = BTreeMap::new();
        for _ in 0..READINGS {
            let asked = self.now();
            let pick = |at, said| if let Said::Time { us } = said { Some((us, at)) } else { None };
            for (host, read) in self.answers(&everybody, Some(Order::Time), PROMPT, pick).await? {
                let (us, answered) = read?;
                let clock = Clock::measured(asked, us, answered);
                best.entry(host).and_modify(|b| *b = if clock.error < b.error { clock } else { *b }).or_insert(clock);
            }
        }
        for (host, clock) in best {
            self.lines[host].clock = clock;
        }
        Ok(())
    }

    /// Begins a conversation.
    fn open(&mut self, host: usize) {
        let line = &mut self.lines[host];
        line.talk += 1;
        let (orders, heard) = unbounded_channel();
        line.orders = Some(orders);
        line.here = None;
        if line.missing.is_empty() {
            "it is being connected to".clone_into(&mut line.missing);
        }
        let (common, target, input, talk) = (self.remote.common.clone(), self.remote.target(line.host), self.input.clone(), line.talk);
        let job = protocol::Job::Drill(Job { vip: self.remote.cluster.vip });
        self.talks.spawn(async move {
            // the receiver is there as long as anybody waits for what is said
            converse(&common, &target, job, heard, |said| drop(input.send((host, talk, said)))).await;
        });
    }

    /// One that is not there is noticed where it is asked.
    fn order(&self, host: usize, order: Order) {
        if let Some(orders) = &self.lines[host].orders {
            let _ = orders.send(ToNode::Drill(order));
        }
    }

    /// From now on these ask the API, and no others.
    fn ask_api(&mut self, askers: Vec<usize>) {
        for host in std::mem::replace(&mut self.asking, askers) {
            self.order(host, Order::Ask { on: false });
        }
        for host in &self.asking {
            self.order(*host, Order::Ask { on: true });
        }
    }

    /// Tells hosts something and collects their answers, with whatever else is said meanwhile. Every one of them has an entry.
    async fn answers<T>(
        &mut self,
        hosts: &[usize],
        order: Option<Order>,
        limit: Duration,
        mut pick: impl FnMut(i64, Said) -> Option<T>,
    ) -> Result<BTreeMap<usize, Result<T>>> {
        let mut answers = BTreeMap::new();
        for host in hosts {
            if order.is_some() && self.lines[*host].here.is_none() {
                answers.insert(*host, Err(Error::failed(self.lines[*host].missing.clone())));
            } else if let Some(order) = order {
                self.order(*host, order);
            }
        }
        let until = Instant::now() + limit;
        while hosts.iter().any(|h| !answers.contains_key(h)) {
            match self.next(until).await? {
                News::Said(host, said) => {
                    if let (true, Some(picked)) = (hosts.contains(&host) && !answers.contains_key(&host), pick(self.now(), said)) {
                        answers.insert(host, Ok(picked));
                    }
                }
                News::Lost(host, error) => {
                    if hosts.contains(&host) {
                        answers.entry(host).or_insert(Err(error));
                    }
                }
                News::Time => {
                    for host in hosts {
                        let late = || Err(Error::failed(format!("no answer within {} s", limit.as_secs())));
                        answers.entry(*host).or_insert_with(late);
                    }
                }
            }
        }
        Ok(answers)
    }

    /// The same for one host.
    async fn ask<T>(&mut self, host: usize, order: Order, limit: Duration, mut pick: impl FnMut(Said) -> Option<T>) -> Result<Result<T>> {
        let mut answers = self.answers(&[host], Some(order), limit, |_, said| pick(said)).await?;
        Ok(answers.remove(&host).unwrap_or_else(|| Err(Error::failed("it was not asked"))))
    }

    /// Tells a host something to which there is one answer only.
    async fn told(&mut self, host: usize, order: Order, limit: Duration, answer: &Said) -> Result<Result<()>> {
        self.ask(host, order, limit, |said| (said == *answer).then_some(())).await
    }

    /// Lets time go by.
    async fn pass(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while !matches!(self.next(until).await?, News::Time) {}
        Ok(())
    }

    /// What happens next. What hosts see is written down on the way.
    async fn next(&mut self, until: Instant) -> Result<News> {
        loop {
            let (host, talk, input) = tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => input,
                    None => return Err(Error::failed("nobody is there any more")),
                },
                () = self.stop.cancelled() => return Err(Error::failed("stopped; what was done to the holder is undone")),
                () = sleep_until(until) => return Ok(News::Time),
            };
            let now = self.now();
            let line = &mut self.lines[host];
            if talk != line.talk {
                continue;
            }
            let error = match input {
                Input::Sending { .. } => continue,
                Input::Said(FromNode::Event { event }) => {
                    self.reporter.report(event);
                    continue;
                }
                Input::Said(FromNode::Drill(said)) => match said {
                    Said::Held { us, holds } => {
                        line.holds = holds;
                        self.record.changes.push(Change { host, at: line.clock.ours(us), holds });
                        continue;
                    }
                    Said::Asked { question, asked, answered } => {
                        let one = Question { asked: line.clock.ours(asked), answered: answered.map(|a| line.clock.ours(a)) };
                        let list = if question == Asked::Version { &mut self.record.version } else { &mut self.record.readyz };
                        list.entry(host).or_default().push(one);
                        continue;
                    }
                    said => {
                        if let Said::Here(here) = &said {
                            // until it is read more closely
                            line.clock = Clock::measured(now, here.us, now);
                            line.here = Some(here.clone());
                            line.missing.clear();
                            if self.asking.contains(&host) {
                                self.order(host, Order::Ask { on: true });
                            }
                        }
                        return Ok(News::Said(host, said));
                    }
                },
                Input::Said(FromNode::Failed(failure)) => failure.into(),
                Input::Said(_) => Error::failed("smartup ended there"),
                Input::Lost(error) => error,
            };
            self.record.unseen |= line.holds && line.is_server();
            line.holds = false;
            line.orders = None;
            line.here = None;
            line.missing = error.chain();
            return Ok(News::Lost(host, error));
        }
    }

    /// Microseconds since the drill began.
    fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    fn say(&self, step: &str, what: &str) {
        self.reporter.report(Event::Waiting { step: step.to_owned(), what: what.to_owned() });
    }

    /// The end of the orders makes the hosts undo what is left.
    async fn farewell(mut self) {
        self.lines.clear();
        // one that hangs undoes it by itself
        let _ = timeout(FAREWELL, async { while self.talks.join_next().await.is_some() {} }).await;
    }
}
