//! The node agent: says in its node's `NodeUpdate` how the node stands, does to its host what the `NodeUpdate` asks, and holds back the
//! host's own automatic updates.

mod decide;
mod floating;
mod look;
mod order;
mod report;
mod runner;
mod services;
mod shelf;
mod worker;

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use node::{Context as _, Kind, Result};
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use updates::api::{NodeUpdate, NodeUpdateStatus, Phase, RebootNeed, Transaction};
use updates::{BootId, TransactionId, names};

use self::decide::{Act, Case, Floating, Held, Next, Say, Stand, downloaded, installed_at, next, refused, stuck};
use self::look::{Asked, Begun, Looks, Print, forget, listing};
use self::order::{End, Looked, Order, Work, Yield, short, up};
use self::report::{Listings, News, Seen, due, said};
use self::runner::{Runner, storage_services};
use self::services::{Service, amiss, critical, failed};
use self::shelf::Shelf;
use crate::client::Clients;
use crate::serve::{BEAT, Pulse, registry, time_metric};
use crate::updaters::{self, Hold};
use crate::{AGENTS, Pod, VERSION};

pub use self::order::Seat;
pub use self::worker::work;

/// How often it looks how far things are, while there are any.
const BUSY: Duration = Duration::from_secs(2);
/// How often, once a second, an agent that ends asks whether all do: the kubelet leaves it ten seconds.
const ASKED: u8 = 5;
/// How long to wait after a report that the API did not take.
const RETRY: Duration = Duration::from_secs(5);

/// Does what is asked and reports, until it is told to stop.
///
/// # Errors
/// When this is no pod, or its port is taken; everything else is tried again.
pub async fn agent(pod: &Pod, stop: &CancellationToken) -> Result<()> {
    let clients = Clients::in_cluster()?;
    let mut registry = registry();
    let (reports, failures) = (Counter::<u64>::default(), Counter::<u64>::default());
    registry.register("agent_reports", "Reports that the API took", reports.clone());
    registry.register("agent_report_failures", "Reports that the API did not take", failures.clone());
    let last = time_metric(&mut registry, "agent_last_report_timestamp", "When the API last took a report");
    let pulse = Pulse::new(registry);
    pulse.serve().await?;
    tracing::info!(node = pod.node, version = VERSION, "the agent runs");

    let watched = Api::<NodeUpdate>::namespaced(clients.watching, names::NAMESPACE);
    let client = clients.asking;
    let api = Api::<NodeUpdate>::namespaced(client.clone(), names::NAMESPACE);
    let mut changes = std::pin::pin!(watcher::watch_object(watched, &pod.node).default_backoff());
    let mut agent =
        Agent { api: api.clone(), node: pod.node.clone(), runner: None, looks: Looks::default(), found: None, reboot: None, stuck: None };
    let mut object: Option<NodeUpdate> = None;
    // whether the watch says that there is none
    let mut deleted = false;
    let mut pause = BEAT;
    let root = Runner::root();
    let mut hold = Hold::on(&root);
    loop {
        // also while the API is away
        pulse.beat();
        match hold.keep().await {
            Ok(new) if new.is_empty() => {}
            Ok(new) => tracing::info!("held back from now on: {}", new.join(", ")),
            Err(e) if e.kind == Kind::Refused => tracing::info!("the host's own automatic updates are held back later: {e}"),
            Err(e) => tracing::warn!("the host's own automatic updates are not held back: {}", e.chain()),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            change = changes.next() => match change {
                Some(Ok(now)) => (deleted, object) = (now.is_none(), now),
                Some(Err(e)) => {
                    tracing::warn!("cannot watch what is asked of this node: {e}");
                    continue;
                }
                None => return Err(node::Error::failed("the watch of this node's NodeUpdate has ended")),
            },
            () = tokio::time::sleep(pause) => {}
        }
        pause = BEAT;
        let Some(asked) = &object else { continue };
        let status = match agent.turn(asked).await {
            Ok(Turn { status, busy }) => {
                if busy {
                    pause = BUSY;
                }
                status
            }
            Err(e) => {
                tracing::error!("{}", e.chain());
                pause = RETRY;
                let Some(status) = agent.at_a_loss(asked, &e) else { continue };
                Some(status)
            }
        };
        let Some(status) = status else {
            pulse.ready();
            continue;
        };
        match api.patch_status(&pod.node, &PatchParams::apply(names::AGENT_MANAGER), &Patch::Merge(change(asked, &status)?)).await {
            Ok(now) => {
                tracing::info!(kernel = status.kernel, check = status.check, "reported");
                object = Some(now);
                reports.inc();
                last.set(status.reported_at.0.as_second());
                pulse.ready();
            }
            Err(e) => {
                tracing::warn!("the API did not take the report: {}", k3s::in_words(&e));
                failures.inc();
                pause = RETRY;
            }
        }
    }
    if all_go(&client, &mut changes, deleted).await {
        let left = match Runner::reach().await {
            Ok(runner) => runner.leave().await,
            Err(e) => Err(e),
        };
        let released = updaters::release(&root).await?;
        tracing::info!("smart updates are disabled; no longer held back: {}", released.join(", "));
        return left;
    }
    Ok(())
}

/// Whether the agents of all nodes are to go, and not just this pod, as for an upgrade. Where the API does not say, they stay.
async fn all_go<E>(client: &Client, changes: &mut (impl Stream<Item = Result<Option<NodeUpdate>, E>> + Unpin), mut deleted: bool) -> bool {
    for _ in 0..ASKED {
        match Api::<DaemonSet>::namespaced(client.clone(), names::NAMESPACE).get_metadata(AGENTS).await {
            Ok(agents) => return agents.metadata.deletion_timestamp.is_some(),
            Err(kube::Error::Api(status)) if is_disabled(status.code, deleted) => return true,
            Err(e) => tracing::warn!("cannot ask whether smart updates are disabled: {}", k3s::in_words(&e)),
        }
        // a watch that was begun goes on without rights
        let news = async {
            while let Some(change) = changes.next().await {
                if let Ok(now) = change {
                    deleted = now.is_none();
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), news).await;
    }
    false
}

/// Whether that the API does not show the agents' `DaemonSet`, but this HTTP status, says that smart updates are disabled.
///
/// With `kubectl delete -f` the agents' account and role go first, but so does the node's `NodeUpdate`. That rights are missing says
/// nothing by itself: so it is with a pod that was deleted by force, and an API server that starts.
fn is_disabled(code: u16, deleted: bool) -> bool {
    code == 404 || (deleted && matches!(code, 401 | 403))
}

/// What a turn led to.
struct Turn {
    /// The status that is to be written.
    status: Option<NodeUpdateStatus>,
    /// Whether things are under way.
    busy: bool,
}

/// What it knows of its host by itself. It may be lost at any time: all that counts is in the API or on the host's disk.
struct Agent {
    api: Api<NodeUpdate>,
    node: String,
    runner: Option<Runner>,
    looks: Looks,
    found: Option<Listings>,
    /// In which boot, and how long after it, it was asked whether a reboot is needed.
    reboot: Option<(BootId, SignedDuration, RebootNeed)>,
    /// In which phase, and since when, the host cannot be asked or told anything.
    stuck: Option<(TransactionId, Phase, Instant)>,
}

impl Agent {
    /// Looks at the host, does the next thing, and says what there is to say.
    async fn turn(&mut self, object: &NodeUpdate) -> Result<Turn> {
        // one that fails is reached anew
        let runner = match self.runner.take() {
            Some(runner) => runner,
            None => Runner::reach().await?,
        };
        let (boot, now) = (Runner::boot()?, Timestamp::now());
        let (transaction, rules) = (object.spec.transaction.as_ref(), &object.spec.host);
        let storage_services = storage_services(&Runner::root());
        let ([update, look], services) = runner.look(&critical(rules, &storage_services)).await?;
        let (update, look) = (update.held(), look.held());
        self.take_in(&runner, object, &look, &boot, now)?;
        self.take_reboot(&update, &boot);
        let before = runner.shelf.before()?.filter(|b| transaction.is_some_and(|t| t.id == b.transaction));
        let vrrp = Runner::vrrp()?;
        let floating = match &vrrp {
            Some(vrrp) if transaction.is_some_and(|t| t.phase == Phase::HandingOver) => vrrp.place(&Runner::net()).await?,
            _ => Floating::None,
        };
        let case = Case {
            now,
            up: up(),
            boot: &boot,
            transaction,
            rules,
            update,
            look,
            noted: before.as_ref().map(|b| &b.transaction),
            floating,
            away: runner.shelf.away(),
            amiss: &before.as_ref().map(|b| amiss(&b.services, &services)).unwrap_or_default(),
            lags: self.looks.lag(installed_at(&update)),
        };
        let Next { act, mut say } = next(&case);
        let acts = act.is_some();
        let done = match act {
            // what does not end is told by its silence
            Some(act @ Act::Stop(_)) => self.act(&runner, transaction, act, &services).await.map(drop),
            Some(act) => match self.act(&runner, transaction, act, &services).await {
                Ok(true) => Ok(()),
                Ok(false) => {
                    say = say.map(Say::put_off);
                    Ok(())
                }
                Err(e) => {
                    say = transaction.map(|t| self.stuck(t, &e));
                    Err(e)
                }
            },
            None => self.look(&runner, object, &look, installed_at(&update)).await,
        };
        match &done {
            Ok(()) => self.stuck = None,
            Err(e) => tracing::error!("{}", e.chain()),
        }
        let seen = Seen {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            storage_services,
            has_vip: match floating {
                Floating::Here => true,
                Floating::Elsewhere => false,
                // until somebody else has it
                Floating::Lost => object.status.as_ref().is_some_and(|s| s.has_vip),
                Floating::None => vrrp.map(|v| v.is_here(&Runner::net())).transpose()?.unwrap_or(false),
            },
            failed_services: failed(&services),
            reboot: self.reboot.as_ref().filter(|(of, ..)| *of == boot).map(|(.., need)| need.clone()),
            boot,
        };
        let downloaded = transaction.and_then(|t| downloaded(t, &update));
        let refused = transaction.and_then(|t| refused(t, &update));
        let news = News { seen: &seen, listings: self.found.as_ref(), say: say.as_ref(), downloaded, refused };
        let status = due(object, news, now);
        let runs = [update, look].iter().any(|held| matches!(held.stand(), Some((_, Stand::Runs))));
        self.runner = done.is_ok().then_some(runner);
        // a watch tells of a new phase, and what is broken waits for people
        let waits = transaction.is_none_or(|t| matches!(t.phase, Phase::Checking | Phase::Draining | Phase::Broken));
        let looks = self.looks.last.as_ref().is_some_and(|begun| !begun.taken);
        Ok(Turn { status, busy: acts || runs || looks || !waits })
    }

    /// What is said of a phase in which something cannot be found out or done.
    fn stuck(&mut self, transaction: &Transaction, why: &node::Error) -> Say {
        let since = self.stuck.take().filter(|(id, phase, _)| *id == transaction.id && *phase == transaction.phase);
        let since = since.map_or_else(Instant::now, |(.., since)| since);
        self.stuck = Some((transaction.id.clone(), transaction.phase, since));
        stuck(&why.chain(), since.elapsed(), Timestamp::now())
    }

    /// The status where the host cannot be asked how it is.
    fn at_a_loss(&mut self, object: &NodeUpdate, why: &node::Error) -> Option<NodeUpdateStatus> {
        let transaction = object.spec.transaction.as_ref()?;
        if transaction.phase == Phase::Installing {
            // what is being installed may be what took the host's bus away: that there is no sign of it says the right thing
            let order = Shelf::below(&Runner::root()).order(Seat::Update).ok().flatten();
            if order.is_some_and(|o| o.transaction.as_ref() == Some(&transaction.id) && matches!(o.work, Work::Install { .. })) {
                return None;
            }
        }
        let say = self.stuck(transaction, why);
        said(object, &say, Timestamp::now())
    }

    /// What the last look has found.
    fn take_in(&mut self, runner: &Runner, object: &NodeUpdate, look: &Held<'_>, boot: &BootId, now: Timestamp) -> Result<()> {
        let Some(begun) = self.looks.last.as_mut().filter(|begun| !begun.taken) else { return Ok(()) };
        let Some((order, stand)) = look.stand().filter(|(order, _)| order.at == begun.at) else { return Ok(()) };
        let failed = |why: &str| Looked { packages: Some(Err(why.to_owned())), patches: None, reboot: RebootNeed::default() };
        let looked = match stand {
            Stand::Runs => return Ok(()),
            Stand::Ended(End::Done(Yield::Looked(looked))) => {
                self.reboot = Some((boot.clone(), order.up, looked.reboot.clone()));
                looked.clone()
            }
            Stand::Ended(End::Failed(why)) => failed(why),
            Stand::Ended(_) | Stand::Died => failed("the look for updates ended in the middle"),
            Stand::NotBegun => failed(&format!("the look for updates could not be started: journalctl -u {}", Seat::Look.unit())),
        };
        begun.taken = true;
        if !begun.listing {
            return Ok(());
        }
        let check = begun.check.clone();
        self.tell(runner, object, check, looked, now)
    }

    /// Says what a look has found.
    fn tell(&mut self, runner: &Runner, object: &NodeUpdate, check: String, looked: Looked, now: Timestamp) -> Result<()> {
        self.looks.failed = matches!(looked.packages, Some(Err(_))) || matches!(looked.patches, Some(Err(_)));
        let before = object.status.as_ref();
        let mut seen = runner.shelf.first_seen()?;
        let seen_before = seen.clone();
        let packages = looked.packages.map(|found| listing(before.and_then(|b| b.packages.as_ref()), found, &mut seen, now));
        let patches = looked.patches.map(|found| {
            let found = found.map(|patches| patches.into_iter().map(|patch| (patch, None)));
            listing(before.and_then(|b| b.patches.as_ref()), found, &mut seen, now)
        });
        if !self.looks.failed {
            forget(&mut seen, now);
        }
        self.found = Some(Listings { check, packages, patches });
        if seen == seen_before { Ok(()) } else { runner.shelf.note_first_seen(&seen) }
    }

    /// What the last installation says about a reboot, where that is newer.
    fn take_reboot(&mut self, update: &Held<'_>, boot: &BootId) {
        let Some((order, Stand::Ended(End::Done(Yield::Installed { reboot })))) = update.stand() else { return };
        let newer = self.reboot.as_ref().is_none_or(|(of, up, _)| of != boot || *up < order.up);
        if order.boot == *boot && newer {
            self.reboot = Some((boot.clone(), order.up, reboot.clone()));
        }
    }

    /// Begins a look, if one is due; ends one that hangs.
    async fn look(&mut self, runner: &Runner, object: &NodeUpdate, look: &Held<'_>, installed: Option<Timestamp>) -> Result<()> {
        let (spec, now) = (&object.spec, Timestamp::now());
        if let Some((order, Stand::Runs)) = look.stand() {
            if up().saturating_sub(order.up) > look::LIMIT {
                tracing::warn!("a look for updates hangs");
                runner.stop(Seat::Look).await?;
            }
            return Ok(());
        }
        let print = Print::take(&Runner::root(), &spec.host);
        let phase = spec.transaction.as_ref().map(|t| t.phase);
        let asked = Asked { phase, check: &spec.check, rules: &spec.host, print: &print, installed, now };
        let Some(listing) = look::due(&self.looks, asked) else { return Ok(()) };
        let begun = Begun { at: now, check: spec.check.clone(), rules: spec.host.clone(), print, listing, taken: false };
        let work = Work::Look { listing, rules: spec.host.clone() };
        tracing::info!(listing, "looks for updates");
        let order = Order { at: now, boot: Runner::boot()?, up: up(), transaction: None, phase: None, patience: None, work };
        if let Err(e) = runner.give(Seat::Look, order).await {
            // it is tried again with the next turn; what is known stays, and the API is told why it is not known better
            if listing {
                let looked = Looked { packages: Some(Err(short(&e.chain()))), patches: None, reboot: RebootNeed::default() };
                self.tell(runner, object, spec.check.clone(), looked, now)?;
            }
            return Err(e);
        }
        if listing {
            self.looks.listed = Some((now, installed));
        }
        self.looks.last = Some(begun);
        Ok(())
    }

    /// Whether it did it: what disturbs the host waits until the API says that it is still wanted.
    async fn act(&self, runner: &Runner, transaction: Option<&Transaction>, act: Act, services: &[Service]) -> Result<bool> {
        if act.disturbs() && !self.still(transaction).await {
            return Ok(false);
        }
        tracing::info!(act = act.word(), transaction = transaction.map(|t| t.id.as_str()), "acts");
        match act {
            Act::NoteServices => transaction.map_or(Ok(()), |t| runner.note_services(&t.id, services)),
            Act::Give { seat, work, patience } => {
                let (transaction, phase) = transaction.map(|t| (t.id.clone(), t.phase)).unzip();
                runner.give(seat, Order { at: Timestamp::now(), boot: Runner::boot()?, up: up(), transaction, phase, patience, work }).await
            }
            Act::Stop(seat) => runner.stop(seat).await,
            Act::LetGo => runner.let_go().await,
            Act::TakeBack => runner.take_back().await,
        }
        .map(|()| true)
    }

    /// Whether the API, asked now, still wants what the agent is about to do.
    async fn still(&self, transaction: Option<&Transaction>) -> bool {
        match self.api.get(&self.node).await {
            Ok(object) => {
                let now = object.spec.transaction.as_ref();
                now.map(|t| (&t.id, t.phase)) == transaction.map(|t| (&t.id, t.phase))
            }
            Err(e) => {
                tracing::warn!("waits, since the API cannot be asked: {}", k3s::in_words(&e));
                false
            }
        }
    }
}

/// The merge patch (RFC 7396) from the status that there is to this one: what is not there any more has to be named.
fn change(object: &NodeUpdate, status: &NodeUpdateStatus) -> Result<Value> {
    let before = serde_json::to_value(&object.status).context("cannot write JSON")?;
    let after = serde_json::to_value(status).context("cannot write JSON")?;
    Ok(json!({ "status": difference(&before, after) }))
}

fn difference(before: &Value, after: Value) -> Value {
    let (Value::Object(before), Value::Object(mut after)) = (before, after.clone()) else { return after };
    for (key, old) in before {
        match after.remove(key) {
            None => after.insert(key.clone(), Value::Null),
            Some(new) if new == *old => None,
            Some(new) => after.insert(key.clone(), difference(old, new)),
        };
    }
    Value::Object(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rights_alone_are_no_end() {
        assert!(is_disabled(404, false) && is_disabled(403, true) && is_disabled(401, true));
        assert!([401, 403, 500, 503].iter().all(|code| !is_disabled(*code, false)) && !is_disabled(500, true));
    }

    #[test]
    fn what_is_gone_is_named_and_what_stays_is_not() {
        let before = json!({ "a": 1, "b": { "c": [1], "d": 2 }, "e": null, "f": [1, 2] });
        let after = json!({ "a": 1, "b": { "c": [2] }, "f": [1], "g": { "h": 1 } });
        assert_eq!(difference(&before, after), json!({ "b": { "c": [2], "d": null }, "e": null, "f": [1], "g": { "h": 1 } }));
        assert_eq!(difference(&Value::Null, json!({ "a": 1 })), json!({ "a": 1 }));
        assert_eq!(difference(&json!({ "a": 1 }), json!({ "a": 1 })), json!({}));
    }
}
