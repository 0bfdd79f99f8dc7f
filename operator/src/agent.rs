//! The node agent: says in its node's `NodeUpdate` how the node stands, and holds back the host's own automatic updates.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use node::{Kind, Result};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use updates::api::{NodeUpdate, NodeUpdateStatus};
use updates::names;

use crate::client::Clients;
use crate::serve::{BEAT, Pulse, registry, time_metric};
use crate::updaters::{self, Hold};
use crate::{AGENTS, Pod, VERSION};

/// An agent that has nothing new to say says so this often: seldom enough for thousands of nodes, and several times in the day
/// after which it counts as silent.
const REPORT: SignedDuration = SignedDuration::from_hours(4);
/// How long to wait after a report that the API did not take.
const RETRY: Duration = Duration::from_secs(5);
/// The host's root, as a pod with `hostPID` sees it.
const HOST: &str = "/proc/1/root";
/// How often an agent that ends asks whether all do: the kubelet leaves it ten seconds.
const ASKED: u8 = 3;

/// What the host is like.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kernel: String,
    storage_services: Vec<String>,
}

impl Seen {
    /// Looks at the host below `root`.
    fn look(root: &Path) -> Self {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Self { kernel, storage_services: storage_services(&root.join("etc/systemd/system")) }
    }
}

/// Virtuozzo Storage's services that are enabled: they are in some `.wants` folder of systemd's (systemd.unit(5)).
fn storage_services(units: &Path) -> Vec<String> {
    let list = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let wants = list(units).filter(|e| e.path().extension().is_some_and(|x| x == "wants"));
    let names = wants.flat_map(|e| list(&e.path()).collect::<Vec<_>>()).filter_map(|e| e.file_name().into_string().ok());
    let found: BTreeSet<String> = names.filter(|n| n.starts_with("vstorage") && n.ends_with(".service")).collect();
    found.into_iter().collect()
}

/// How often the agent of this node says so: up to an hour more often than others, so that those that reported at once, as all do
/// after a change that concerns all, do not do so for ever.
fn own_pace(node: &str) -> SignedDuration {
    let minutes = node.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 60;
    REPORT - SignedDuration::from_mins(minutes.into())
}

/// The status that is to be written over what there is; None when that says it already, and lately.
fn due(object: &NodeUpdate, seen: &Seen, now: Timestamp) -> Option<NodeUpdateStatus> {
    let pace = own_pace(&object.name_any());
    let fresh = |status: &NodeUpdateStatus| {
        let age = now.duration_since(status.reported_at.0);
        // a time in the future comes from a clock that was set back
        age < pace && age > -pace
    };
    let before = object.status.as_ref();
    let mut status = before.cloned().unwrap_or_else(|| NodeUpdateStatus::new(Time(now)));
    status.agent_version = VERSION.into();
    status.reported_at = Time(now);
    status.kernel.clone_from(&seen.kernel);
    status.check.clone_from(&object.spec.check);
    status.storage_services.clone_from(&seen.storage_services);
    let same = before.is_some_and(|b| NodeUpdateStatus { reported_at: b.reported_at.clone(), ..status.clone() } == *b && fresh(b));
    (!same).then_some(status)
}

/// Reports, until it is told to stop.
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
    let mut object: Option<NodeUpdate> = None;
    let mut pause = BEAT;
    let mut hold = Hold::on(Path::new(HOST));
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
                Some(Ok(now)) => object = now,
                Some(Err(e)) => {
                    tracing::warn!("cannot watch what is asked of this node: {e}");
                    continue;
                }
                None => return Err(node::Error::failed("the watch of this node's NodeUpdate has ended")),
            },
            () = tokio::time::sleep(pause) => {}
        }
        pause = BEAT;
        let Some(status) = object.as_ref().and_then(|o| due(o, &Seen::look(Path::new(HOST)), Timestamp::now())) else {
            if object.is_some() {
                pulse.ready();
            }
            continue;
        };
        let patch = Patch::Merge(json!({ "status": status }));
        match api.patch_status(&pod.node, &PatchParams::apply(names::AGENT_MANAGER), &patch).await {
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
    if all_go(&client).await {
        let released = updaters::release(Path::new(HOST)).await?;
        tracing::info!("smart updates are disabled; no longer held back: {}", released.join(", "));
    }
    Ok(())
}

/// Whether the agents of all nodes are to go, and not just this pod, as for an upgrade. Where the API does not say, they stay.
async fn all_go(client: &Client) -> bool {
    for _ in 0..ASKED {
        match Api::<DaemonSet>::namespaced(client.clone(), names::NAMESPACE).get_metadata(AGENTS).await {
            Ok(agents) => return agents.metadata.deletion_timestamp.is_some(),
            // with `kubectl delete -f` roles and accounts go as well
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403 | 404) => return true,
            Err(e) => tracing::warn!("cannot ask whether smart updates are disabled: {}", k3s::in_words(&e)),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    false
}

#[cfg(test)]
mod tests {
    use updates::api::NodeUpdateSpec;
    use updates::{Policy, Stage};

    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1000 + hours)
    }

    #[test]
    fn reports_what_is_new_at_once_and_otherwise_seldom() {
        let seen = Seen { kernel: "6.1".into(), storage_services: vec![] };
        let mut object = NodeUpdate::new("n", NodeUpdateSpec::new(Stage::Fast, Policy::Auto, "a"));
        object.status = due(&object, &seen, at(0));
        let status = object.status.clone().unwrap();
        assert_eq!((status.kernel.as_str(), status.check.as_str(), status.agent_version.as_str()), ("6.1", "a", VERSION));
        assert_eq!(due(&object, &seen, at(3)), None);
        assert!(due(&object, &seen, at(4)).is_some() && due(&object, &seen, at(-4)).is_some(), "also when the clock was set back");
        assert!(due(&object, &Seen { kernel: "6.2".into(), ..seen.clone() }, at(0)).is_some());
        assert!(due(&object, &Seen { storage_services: vec!["vstorage-mdsd.service".into()], ..seen.clone() }, at(0)).is_some());
        object.spec.check = "b".into();
        assert_eq!(due(&object, &seen, at(0)).unwrap().check, "b");
    }

    #[test]
    fn agents_that_report_at_once_do_not_always() {
        let paces: BTreeSet<_> = (0..5000).map(|n| own_pace(&format!("node{n}.example.local"))).collect();
        assert_eq!((paces.len(), paces.first(), paces.last()), (60, Some(&SignedDuration::from_mins(181)), Some(&REPORT)));
    }

    #[test]
    fn only_storage_services_that_are_enabled() {
        let root = tempfile::tempdir().unwrap();
        let units = root.path().join("etc/systemd/system");
        for (folder, unit) in [
            ("multi-user.target.wants", "vstorage-mdsd.service"),
            ("multi-user.target.wants", "sshd.service"),
            ("a.target.wants", "vstorage-csd.c.1025.service"),
            ("b.target.wants", "vstorage-mdsd.service"),
            ("vstorage-x.service.d", "vstorage-no.service"),
        ] {
            std::fs::create_dir_all(units.join(folder)).unwrap();
            std::fs::write(units.join(folder).join(unit), "").unwrap();
        }
        let seen = Seen::look(root.path());
        assert_eq!(seen.storage_services, ["vstorage-csd.c.1025.service", "vstorage-mdsd.service"]);
        assert!(!seen.kernel.is_empty());
    }
}
