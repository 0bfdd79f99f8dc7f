//! One fault after the other on one side, and what the client and the hosts saw of each.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::clock::now;
use integration::outage::{longest, shared, taken};
use integration::watch::Watch;
use integration::{Host, Lab, until};

use crate::ask::{Asked, GAP};
use crate::cluster::settle;
use crate::fault::Fault;
use crate::side::Side;

/// How long a fault lasts at least, so that "two holders" can be compared.
const LEAST: Duration = Duration::from_secs(8);
/// How long the client must be content before a fault, or its end, counts as over.
const CALM: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(90);
/// A question that was asked just before the fault may be lost in it.
const MARGIN: Duration = Duration::from_millis(200);
const STEADY_LIMIT: Duration = Duration::from_secs(120);

/// What was seen of a fault, or of its end.
#[derive(Debug, Clone)]
pub struct Seen {
    /// How long the API was away.
    pub outage: Duration,
    /// How long two hosts held the VIP at once.
    pub shared: Duration,
    /// Who took the VIP (`+h2`) or gave it away (`-h1`), and how many seconds after the fault.
    pub moves: Vec<String>,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "away {:.2?}, two holders {:.2?} [{}]", self.outage, self.shared, self.moves.join(" "))
    }
}

/// A fault and its end.
#[derive(Debug, Clone)]
pub struct Failover {
    /// From the fault on.
    pub fault: Seen,
    /// From its end on.
    pub end: Seen,
}

/// A while without a fault.
#[derive(Debug, Clone, Copy)]
pub struct Calm {
    /// How often another host took the VIP.
    pub moves: usize,
    /// How long the API was away at most.
    pub outage: Duration,
}

/// Who looks, and at what.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The cluster's hosts.
    pub lab: &'a Lab,
    /// The client.
    pub asked: &'a Asked,
    /// The watch on the VIP's holders.
    pub watch: &'a Watch,
    /// Whose configuration is in place.
    pub side: Side,
}

impl Scene<'_> {
    /// Lets a fault happen to the holder, and ends it when the API is back.
    pub fn fail(&self, fault: Fault) -> Result<Failover> {
        let holder = self.steady()?;
        let begun = now();
        fault.begin(holder)?;
        let seen = self.seen(begun, LEAST)?;
        if !fault.stays() {
            self.steady()?;
            return Ok(Failover { fault: seen, end: self.seen(begun + LEAST, LEAST)? });
        }
        let ended = now();
        fault.finish(holder)?;
        self.steady()?;
        Ok(Failover { fault: seen, end: self.seen(ended, LEAST)? })
    }

    /// Lets some time go by with this many threads that keep the machine busy.
    pub fn wait(&self, time: Duration, busy: usize) -> Result<Calm> {
        self.steady()?;
        let (begun, end) = (now(), now() + time);
        std::thread::scope(|scope| {
            for _ in 0..busy {
                scope.spawn(move || while std::hint::black_box(now()) < end {});
            }
            std::thread::sleep(time);
        });
        std::thread::sleep(CALM); // for the answers to the last questions
        Ok(Calm { moves: taken(&self.watch.changes(), begun, end), outage: longest(&self.asked.gets(), GAP, begun, end) })
    }

    /// Waits until the client has been content for a while, at least as long after `from` as is said, and tells what
    /// it saw since then.
    fn seen(&self, from: Duration, least: Duration) -> Result<Seen> {
        let is_over = || now() >= from + least && self.asked.is_fine_for(CALM);
        let over = until("the API answers through the VIP", LIMIT, || Ok(is_over().then_some(())));
        over.with_context(|| format!("{}: holders: {:?}", self.side.name(), self.watch.holders()))?;
        let (to, changes) = (now(), self.watch.changes());
        let moves = changes.iter().filter(|change| change.at >= from).map(|change| {
            let sign = if change.holds { '+' } else { '-' };
            format!("{sign}{} {:.2}", change.host, change.at.saturating_sub(from).as_secs_f64())
        });
        Ok(Seen {
            outage: longest(&self.asked.gets(), GAP, from.saturating_sub(MARGIN), to),
            shared: shared(&changes, from, to),
            moves: moves.collect(),
        })
    }

    /// Waits until every server is ready, one of them holds the VIP and the others would take it; gives the holder.
    pub fn steady(&self) -> Result<&Host> {
        settle(self.lab.hosts())?;
        let mut last = String::new();
        let holder = until("one holder, and the others ready to take over", STEADY_LIMIT, || {
            std::thread::sleep(Duration::from_millis(100));
            let states = self.lab.hosts().iter().map(state).collect::<Result<Vec<_>>>()?;
            last = states.join(" ");
            let holders = self.watch.holders();
            let agreed = states.iter().filter(|state| *state == "MASTER").count() == 1
                && states.iter().filter(|state| *state == "BACKUP").count() + 1 == states.len();
            // With the sample's priorities the first server always takes the VIP back when its check is content.
            let at_home = self.side == Side::Ours || holders.iter().any(|host| host == "h1");
            ensure!(holders.len() == 1 && agreed && at_home, "holders: {holders:?}, states: {states:?}");
            ensure!(self.asked.is_fine_for(CALM), "the API does not answer all the time");
            Ok(holders.into_iter().next())
        })
        .with_context(|| format!("{}: {last}", self.side.name()))?;
        self.lab.host(&holder)
    }
}

/// The state that a host's keepalived entered last.
fn state(host: &Host) -> Result<String> {
    let line =
        "journalctl --boot --unit keepalived --output cat --lines 200 | sed -n 's/.*Entering \\([A-Z]*\\) STATE.*/\\1/p' | tail -n 1";
    Ok(host.sh(line)?.trim().to_owned())
}
