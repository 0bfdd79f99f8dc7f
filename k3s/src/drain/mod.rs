//! Takes the pods off a node as `kubectl drain` does: through evictions, which keep to `PodDisruptionBudget`s.

mod budget;
mod cordon;
mod decide;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::core::Status;
use kube::{Client, ResourceExt};
use node::{Error, Result};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::ready::{in_words, transient};
use budget::Budget;
use decide::Plan;

pub use cordon::{CORDON, Cordon, uncordon};
pub use decide::{PodName, Stays};

/// How a node is drained.
#[derive(Debug, Clone)]
pub struct Options {
    /// When it is given up. Pods may take their whole grace period (30 s unless they say otherwise).
    pub timeout: Duration,
    /// Whether pods without a controller go too. Nothing starts them again.
    pub force: bool,
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
    let mut work = Work {
        client,
        node,
        force: options.force,
        deadline: Instant::now() + options.timeout,
        first: None,
        refused: BTreeMap::new(),
        evicted: BTreeSet::new(),
        budgets: Vec::new(),
    };
    let pods = work.pods().await.map_err(|e| Error::failed(format!("cannot list the pods of {node}: {}", in_words(&e))))?;
    let plan = Plan::of(&pods, None, options.force);
    refuse_unmanaged(node, &plan)?;
    let lost: Vec<String> = plan.evict.iter().filter(|p| decide::loses_data(p)).map(|p| PodName::of(p).to_string()).collect();
    if !lost.is_empty() {
        report(&format!("what is in an emptyDir goes with its pod: {}", few(&lost)));
    }

    let outcome = tokio::select! {
        biased;
        () = options.stop.cancelled() => Err(Error::failed(format!("stopped while {node} was drained"))
            .hint("run the same command again to go on; pods that were evicted run elsewhere")),
        outcome = async {
            let cordon = cordon::cordon(client, node, &options.why).await?;
            work.run(options.timeout, report).await.map(|stay| (cordon, stay))
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

fn refuse_unmanaged(node: &str, plan: &Plan<'_>) -> Result<()> {
    if plan.unmanaged.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = plan.unmanaged.iter().map(ToString::to_string).collect();
    Err(Error::refused(format!("pods on {node} have no controller that would start them elsewhere: {}", few(&names)))
        .hint("move or delete them, or run again with --force, and they are gone"))
}

/// The first of many.
fn few(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let text = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
    if more == 0 { text } else { format!("{text}; and {more} more") }
}

/// A drain under way.
struct Work<'a> {
    client: &'a Client,
    node: &'a str,
    force: bool,
    deadline: Instant,
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

/// How far a drain is.
#[derive(Default)]
struct Standing {
    stay: Vec<(PodName, Stays)>,
    /// Pods that a budget keeps, in words.
    kept: Vec<String>,
    /// Anything else that is awaited, in words.
    awaited: Vec<String>,
}

impl Standing {
    fn is_done(&self) -> bool {
        self.kept.is_empty() && self.awaited.is_empty()
    }

    fn text(&self) -> String {
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

impl Work<'_> {
    async fn run(&mut self, timeout: Duration, report: impl Fn(&str)) -> Result<Vec<(PodName, Stays)>> {
        let mut said = String::new();
        loop {
            let standing = match self.pods().await {
                Ok(pods) => self.round(&pods).await?,
                Err(e) if transient(&e) => {
                    Standing { awaited: vec![format!("the API does not answer: {}", in_words(&e))], ..Standing::default() }
                }
                Err(e) => return Err(Error::failed(format!("cannot list the pods of {}: {}", self.node, in_words(&e)))),
            };
            if standing.is_done() {
                return Ok(standing.stay);
            }
            let text = standing.text();
            if text != said {
                report(&text);
                said = text;
            }
            let now = Instant::now();
            if now >= self.deadline {
                return Err(standing.gave_up(self.node, timeout));
            }
            sleep_until(self.deadline.min(now + LOOK)).await;
        }
    }

    async fn pods(&self) -> kube::Result<Vec<Pod>> {
        let here = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        Ok(Api::all(self.client.clone()).list(&here).await?.items)
    }

    /// Evicts what may be evicted now, and says what is left.
    async fn round(&mut self, pods: &[Pod]) -> Result<Standing> {
        let plan = Plan::of(pods, self.first.as_ref(), self.force);
        self.first.get_or_insert_with(|| pods.iter().filter_map(ResourceExt::uid).collect());
        refuse_unmanaged(self.node, &plan)?;
        let mut standing = Standing { stay: plan.stay, ..Standing::default() };
        let mut refused = Vec::new();
        for pod in plan.evict {
            let uid = pod.uid().unwrap_or_default();
            if self.refused.get(&uid).and_then(|r| r.again).is_some_and(|again| Instant::now() < again) {
                refused.push(pod);
                continue;
            }
            match Answer::of(evict(self.client, pod).await) {
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
                    // as new as the refusal; without them the API's own words must do
                    self.budgets = budget::list(self.client).await.unwrap_or_default();
                }
                Answer::Never(why) => return Err(Error::failed(format!("{} cannot be evicted: {why}", PodName::of(pod)))),
            }
        }
        for pod in refused {
            let (name, why) = (PodName::of(pod), self.refused.get(&pod.uid().unwrap_or_default()).map_or("", |r| r.why.as_str()));
            let keepers: Vec<String> = budget::blocking(pod, &self.budgets).iter().map(ToString::to_string).collect();
            match &keepers[..] {
                [] => standing.awaited.push(format!("{name}: {why}")),
                [one] => standing.kept.push(format!("{name} is kept by {one}")),
                many => {
                    let many = many.join(", ");
                    standing.kept.push(format!("{name} is covered by more than one budget, which allows no eviction: {many}"));
                }
            }
        }
        standing.awaited.extend(plan.ending.into_iter().map(decide::ending));
        Ok(standing)
    }
}

/// Asks the API to evict just this pod, and not another one of that name which has come since.
///
/// Not kube's own `Api::evict`: it sends its options under a name that the API does not know. The version is left to the
/// server: policy/v1beta1 before Kubernetes 1.22, policy/v1 since.
async fn evict(client: &Client, pod: &Pod) -> kube::Result<Status> {
    let PodName { namespace, name } = PodName::of(pod);
    let eviction = json!({
        "metadata": { "namespace": namespace, "name": name },
        "deleteOptions": { "preconditions": { "uid": pod.metadata.uid } },
    });
    let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(eviction.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
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
    fn of(answer: kube::Result<Status>) -> Self {
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
