//! Takes the pods off a node as `kubectl drain` does: through evictions, which keep to `PodDisruptionBudget`s.

mod budget;
mod cordon;
mod decide;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use kube::core::Status;
use kube::{Client, ResourceExt};
use node::{Error, Result};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::ready::{in_words, transient};
use budget::Budget;
use decide::{Blocks, Plan};

pub use cordon::{CORDON, Cordon, cordon, uncordon, uncordon_for};
pub use decide::{PodName, Rules, Stays};

/// How a node is drained.
#[derive(Debug, Clone)]
pub struct Options {
    /// When it is given up. Pods may take their whole grace period (30 s unless they say otherwise).
    pub timeout: Duration,
    /// Which pods go.
    pub rules: Rules,
    /// What the node is drained for; the annotation [`CORDON`] says so.
    pub why: String,
    /// Set when the user wants to stop.
    pub stop: CancellationToken,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// Whose cordon is on the node now. Ours is taken off with [`uncordon`].
    pub cordon: Cordon,
    /// Pods that were evicted and are gone.
    pub evicted: BTreeSet<PodName>,
    /// Pods that stay, and why.
    pub stay: Vec<(PodName, Stays)>,
}

/// How often the node is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How many evictions are asked for at once. An admission webhook may take seconds for each.
const EVICTIONS: usize = 8;
/// How many pods a message names at most.
const NAMED: usize = 5;

/// Cordons a node, evicts its pods, and waits until they are gone. `report` is told what is awaited, whenever that changes.
///
/// Pods of `DaemonSet`s, static pods and finished ones stay. What pods have in an emptyDir goes with them (as with
/// `kubectl drain --delete-emptydir-data`), for it would go with any end of the pod. Where the API refuses for the sake of a
/// `PodDisruptionBudget` it is asked again, in growing pauses, until the time is up.
///
/// When it fails or is stopped, the node's cordon is as it was found; one that an earlier run of smartup left counts as none.
/// If this process ends in the middle, the annotation [`CORDON`] tells the next run whose the cordon is.
///
/// The client must not retry by itself (`default_retry`): kube would repeat refused evictions unseen.
///
/// # Errors
/// Refused, before anything is changed, when pods have no controller, unless forced; refused when a budget keeps a pod until
/// the time is up; failed when a pod does not end, an eviction is denied, the API is away for too long, or it was stopped.
pub async fn drain(client: &Client, node: &str, options: &Options, report: impl Fn(&str)) -> Result<Drained> {
    let mut work = Emptying::new(client, node, &options.rules);
    let pods = work.pods(Read::Fresh).await.map_err(|e| work.unlisted(&e))?;
    let plan = Plan::of(&pods, None, &options.rules, Timestamp::now());
    refuse(node, &plan)?;
    let lost: Vec<String> = plan.evict.iter().filter(|p| decide::loses_data(p)).map(|p| PodName::of(p).to_string()).collect();
    if !lost.is_empty() {
        report(&format!("what is in an emptyDir goes with its pod: {}", few(&lost)));
    }

    let deadline = Instant::now() + options.timeout;
    let outcome = tokio::select! {
        biased;
        () = options.stop.cancelled() => Err(Error::failed(format!("stopped while {node} was drained"))
            .hint("run the same command again to go on; pods that were evicted run elsewhere")),
        outcome = async {
            let cordon = cordon::cordon(client, node, None, &options.why).await?;
            work.run(deadline, options.timeout, report).await.map(|stay| (cordon, stay))
        } => outcome,
    };
    match outcome {
        Ok((cordon, stay)) => Ok(Drained { cordon, evicted: work.evicted, stay }),
        Err(mut e) => {
            // also where it is not known whether the cordon was put on: only what is ours is taken off
            if let Err(stuck) = uncordon(client, node).await {
                e.what = format!("{}; and it stays cordoned: {}", e.what, stuck.what);
            }
            Err(e)
        }
    }
}

/// What would keep a node from being drained now, in words; nothing is changed. Pods that are told to end already do not count:
/// they go by themselves.
///
/// # Errors
/// When the API does not answer or refuses.
pub async fn obstacles(client: &Client, node: &str, rules: &Rules) -> kube::Result<Obstacles> {
    let pods = Emptying::new(client, node, rules).pods(Read::Fresh).await?;
    let plan = Plan::of(&pods, None, rules, Timestamp::now());
    let budgets = if plan.evict.is_empty() || rules.disable_eviction { Vec::new() } else { budget::list(client).await? };
    let kept = plan.evict.iter().filter_map(|pod| keepers(pod, &budgets)).collect();
    let left = plan.evict.len() + plan.ending.len() + plan.blocked.len();
    Ok(Obstacles { blocked: plan.blocked.iter().map(|(pod, why)| format!("{pod} {why}")).collect(), kept, left })
}

/// What would keep a node from being drained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obstacles {
    /// Pods that the rules do not let go, nor stay.
    pub blocked: Vec<String>,
    /// Pods that budgets keep.
    pub kept: Vec<String>,
    /// How many pods would have to go, those included.
    pub left: usize,
}

fn refuse(node: &str, plan: &Plan<'_>) -> Result<()> {
    let unmanaged = plan.blocked.iter().all(|(_, why)| *why == Blocks::Unmanaged);
    if plan.blocked.is_empty() {
        return Ok(());
    }
    if unmanaged {
        let names: Vec<String> = plan.blocked.iter().map(|(pod, _)| pod.to_string()).collect();
        return Err(Error::refused(format!("pods on {node} have no controller that would start them elsewhere: {}", few(&names)))
            .hint("move or delete them, or run again with --force, and they are gone"));
    }
    let names: Vec<String> = plan.blocked.iter().map(|(pod, why)| format!("{pod} {why}")).collect();
    Err(Error::refused(format!("the rules of the drain let pods on {node} neither go nor stay: {}", few(&names))))
}

/// Which budgets keep a pod, in words; None = none does.
fn keepers(pod: &Pod, budgets: &[Budget]) -> Option<String> {
    let (name, keepers) = (PodName::of(pod), budget::blocking(pod, budgets));
    match &keepers.iter().map(ToString::to_string).collect::<Vec<_>>()[..] {
        [] => None,
        [one] => Some(format!("{name} is kept by {one}")),
        many => Some(format!("{name} is covered by more than one budget, which allows no eviction: {}", many.join(", "))),
    }
}

/// The first of many.
fn few(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let text = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
    if more == 0 { text } else { format!("{text}; and {more} more") }
}

/// A node whose pods are being taken off. It is moved on by looking at it, again and again; it may be dropped at any time, and
/// another one goes on from what is there.
pub struct Emptying {
    client: Client,
    node: String,
    rules: Rules,
    /// The pods that were there when the cordon was on, by UID.
    first: Option<BTreeSet<String>>,
    /// Pods whose eviction was refused, by UID.
    refused: BTreeMap<String, Refusal>,
    evicted: BTreeSet<PodName>,
    budgets: Vec<Budget>,
}

/// An eviction that may succeed later.
#[derive(Default)]
struct Refusal {
    times: u32,
    again: Option<Instant>,
    why: String,
}

/// Where pods are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// What an API server has in memory, by node: one of thousands of pods costs it next to nothing.
    Cached,
    /// What is in etcd.
    Fresh,
}

/// How far a drain is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Pods that stay, and why.
    pub stay: Vec<(PodName, Stays)>,
    /// Pods that a budget keeps, in words.
    pub kept: Vec<String>,
    /// Anything else that is awaited, in words.
    pub awaited: Vec<String>,
}

impl Standing {
    /// Whether no pod is left that has to go.
    pub fn is_done(&self) -> bool {
        self.kept.is_empty() && self.awaited.is_empty()
    }

    /// What is awaited, the first of it.
    pub fn text(&self) -> String {
        few(&[self.kept.clone(), self.awaited.clone()].concat())
    }

    fn gave_up(&self, node: &str, timeout: Duration) -> Error {
        let what = format!("{node} was not drained within {} s: {}", timeout.as_secs(), self.text());
        if self.kept.is_empty() {
            return Error::failed(what).hint("kubectl describe pod says what keeps a pod; a node whose kubelet is dead ends none");
        }
        Error::refused(what).hint("give the workload more replicas, or relax its budget, and run again")
    }
}

impl Emptying {
    /// Nothing is changed before the first look. The node should be cordoned, or its pods come back.
    pub fn new(client: &Client, node: &str, rules: &Rules) -> Self {
        Self {
            client: client.clone(),
            node: node.to_owned(),
            rules: rules.clone(),
            first: None,
            refused: BTreeMap::new(),
            evicted: BTreeSet::new(),
            budgets: Vec::new(),
        }
    }

    /// Evicts what may be evicted now, and says what is left. An API that does not answer is among what is awaited.
    ///
    /// # Errors
    /// Refused when the rules let a pod neither go nor stay; failed when the API refuses for good.
    pub async fn look(&mut self) -> Result<Standing> {
        let read = if self.first.is_none() { Read::Fresh } else { Read::Cached };
        let standing = self.look_at(read).await?;
        // what the API server has in memory may be old
        if standing.is_done() && read == Read::Cached { self.look_at(Read::Fresh).await } else { Ok(standing) }
    }

    async fn look_at(&mut self, read: Read) -> Result<Standing> {
        match self.pods(read).await {
            Ok(pods) => self.round(&pods).await,
            Err(e) if transient(&e) => {
                Ok(Standing { awaited: vec![format!("the API does not answer: {}", in_words(&e))], ..Standing::default() })
            }
            Err(e) => Err(self.unlisted(&e)),
        }
    }

    fn unlisted(&self, e: &kube::Error) -> Error {
        Error::failed(format!("cannot list the pods of {}: {}", self.node, in_words(e)))
    }

    async fn run(&mut self, deadline: Instant, timeout: Duration, report: impl Fn(&str)) -> Result<Vec<(PodName, Stays)>> {
        let mut said = String::new();
        loop {
            let standing = self.look().await?;
            if standing.is_done() {
                return Ok(standing.stay);
            }
            let text = standing.text();
            if text != said {
                report(&text);
                said = text;
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(standing.gave_up(&self.node, timeout));
            }
            sleep_until(deadline.min(now + LOOK)).await;
        }
    }

    async fn pods(&self, read: Read) -> kube::Result<Vec<Pod>> {
        let mut here = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        if read == Read::Cached {
            here = here.match_any();
        }
        here.label_selector.clone_from(&self.rules.pod_selector);
        Ok(Api::all(self.client.clone()).list(&here).await?.items)
    }

    /// Evicts what may be evicted now, and says what is left.
    async fn round(&mut self, pods: &[Pod]) -> Result<Standing> {
        let plan = Plan::of(pods, self.first.as_ref(), &self.rules, Timestamp::now());
        self.first.get_or_insert_with(|| pods.iter().filter_map(ResourceExt::uid).collect());
        refuse(&self.node, &plan)?;
        let mut standing = Standing { stay: plan.stay, ..Standing::default() };
        let not_yet = |pod: &&Pod| {
            let refusal = pod.metadata.uid.as_ref().and_then(|uid| self.refused.get(uid));
            refusal.and_then(|r| r.again).is_some_and(|again| Instant::now() < again)
        };
        let (mut refused, now): (Vec<_>, Vec<_>) = plan.evict.into_iter().partition(not_yet);
        let (client, rules) = (&self.client, &self.rules);
        let asked: Vec<_> = now.into_iter().map(|pod| async move { (pod, Answer::of(evict(client, pod, rules).await)) }).collect();
        let answers: Vec<_> = futures::stream::iter(asked).buffered(EVICTIONS).collect().await;
        let before = refused.len();
        for (pod, answer) in answers {
            let uid = pod.uid().unwrap_or_default();
            match answer {
                Answer::Evicted => {
                    self.evicted.insert(PodName::of(pod));
                    self.refused.remove(&uid);
                    standing.awaited.push(format!("{} was told to end", PodName::of(pod)));
                }
                Answer::Gone => standing.awaited.push(format!("{} ends by itself", PodName::of(pod))),
                Answer::NotNow { why, after } => {
                    let refusal = self.refused.entry(uid).or_default();
                    refusal.times = refusal.times.saturating_add(1);
                    refusal.again = Some(Instant::now() + pause(refusal.times, after));
                    refusal.why = why;
                    refused.push(pod);
                }
                Answer::Never(why) => return Err(Error::failed(format!("{} cannot be evicted: {why}", PodName::of(pod)))),
            }
        }
        if refused.len() > before {
            // as new as the refusals; without them the API's own words must do
            self.budgets = budget::list(&self.client).await.unwrap_or_default();
        }
        for pod in refused {
            if let Some(kept) = keepers(pod, &self.budgets) {
                standing.kept.push(kept);
            } else {
                let why = self.refused.get(&pod.uid().unwrap_or_default()).map_or("", |r| r.why.as_str());
                standing.awaited.push(format!("{}: {why}", PodName::of(pod)));
            }
        }
        standing.awaited.extend(plan.ending.into_iter().map(decide::ending));
        Ok(standing)
    }
}

/// Asks the API to evict (or, by the rules, delete) just this pod, and not another one of that name which has come since.
///
/// Not kube's own `Api::evict`: it sends its options under a name that the API does not know. The version is left to the
/// server: policy/v1beta1 before Kubernetes 1.22, policy/v1 since.
async fn evict(client: &Client, pod: &Pod, rules: &Rules) -> kube::Result<()> {
    let PodName { namespace, name } = PodName::of(pod);
    if rules.disable_eviction {
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let how = DeleteParams {
            grace_period_seconds: rules.grace_period_seconds,
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        return Api::<Pod>::namespaced(client.clone(), &namespace).delete(&name, &how).await.map(drop);
    }
    let mut options = json!({ "preconditions": { "uid": pod.metadata.uid } });
    if let Some(seconds) = rules.grace_period_seconds {
        options["gracePeriodSeconds"] = json!(seconds);
    }
    let eviction = json!({ "metadata": { "namespace": namespace, "name": name }, "deleteOptions": options });
    let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(eviction.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request::<Status>(request).await.map(drop)
}

/// What the API says to an eviction.
#[derive(Debug, PartialEq)]
enum Answer {
    Evicted,
    /// The pod has ended, or is another one by now.
    Gone,
    /// It may say otherwise later, after so many seconds if it says when.
    NotNow {
        why: String,
        after: u32,
    },
    Never(String),
}

impl Answer {
    fn of(answer: kube::Result<()>) -> Self {
        let Err(e) = answer else { return Self::Evicted };
        let kube::Error::Api(status) = &e else {
            let why = in_words(&e);
            return if transient(&e) { Self::NotNow { why, after: 0 } } else { Self::Never(why) };
        };
        let (causes, after) = status.details.as_ref().map_or((&[][..], 0), |d| (&d.causes[..], d.retry_after_seconds));
        let budget = causes.iter().find(|c| c.reason == "DisruptionBudget");
        let why = budget.map_or_else(|| in_words(&e), |c| c.message.clone());
        match status.code {
            404 | 409 => Self::Gone,
            // a namespace that is being deleted takes its pods along
            403 if causes.iter().any(|c| c.reason == "NamespaceTerminating") => Self::NotNow { why, after },
            _ if transient(&e) => Self::NotNow { why, after },
            _ => Self::Never(why),
        }
    }
}

/// How long to wait before a refused eviction is tried again: 1, 2, 4, 8, 10, 10, … s, or longer if the API asks for it.
fn pause(times: u32, after: u32) -> Duration {
    let growing = 1_u64.checked_shl(times.saturating_sub(1)).filter(|s| *s > 0).unwrap_or(u64::MAX).min(10);
    Duration::from_secs(growing.max(after.into()).min(60))
}

#[cfg(test)]
mod tests;
