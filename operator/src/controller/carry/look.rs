//! What keeps a node from being updated, as its pods say.

use jiff::{SignedDuration, Timestamp};
use k3s::{DrainRules, Standing};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use updates::api::{Drain, UpdateManagerSpec};
use updates::decide::{Blocker, Look};

/// kubectl's options, as k3s knows them.
pub(super) fn rules(drain: &Drain) -> DrainRules {
    DrainRules {
        force: drain.force,
        delete_empty_dir_data: drain.delete_empty_dir_data,
        ignore_daemon_sets: drain.ignore_daemon_sets,
        disable_eviction: drain.disable_eviction,
        grace_period_seconds: drain.grace_period_seconds,
        skip_wait_for_delete: drain.skip_wait_for_delete_timeout_seconds.filter(|s| *s > 0).map(|s| SignedDuration::from_secs(s.into())),
        pod_selector: drain.pod_selector.as_ref().map(ToString::to_string),
    }
}

/// Looks at a node's pods; nothing is changed.
///
/// # Errors
/// When the API does not answer or refuses.
pub(super) async fn look(client: &Client, node: &str, spec: &UpdateManagerSpec) -> kube::Result<Look> {
    let at = Timestamp::now();
    let mut blockers = Vec::new();
    for selector in &spec.blocking_pods {
        let here = ListParams::default().fields(&format!("spec.nodeName={node}")).labels(selector.as_str());
        let pods = Api::<Pod>::all(client.clone()).list(&here).await?;
        let runs = pods.items.iter().find(|pod| !is_over(pod));
        blockers.extend(
            runs.map(|pod| Blocker::Pod(format!("{}/{} is on it ({selector})", pod.namespace().unwrap_or_default(), pod.name_any()))),
        );
    }
    let found = k3s::obstacles(client, node, &rules(&spec.drain)).await?;
    blockers.extend(found.blocked.into_iter().map(Blocker::Stays));
    blockers.extend(found.kept.into_iter().map(Blocker::Budget));
    Ok(Look { at, blockers, left: found.left })
}

fn is_over(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"))
}

/// What a round of a drain has come to.
pub(super) fn after(round: node::Result<Standing>, at: Timestamp) -> Look {
    match round {
        Ok(standing) => Look {
            at,
            left: standing.kept.len() + standing.awaited.len(),
            // what is awaited ends by itself, or the deadline ends it
            blockers: standing.kept.into_iter().map(Blocker::Budget).chain(standing.awaited.into_iter().map(Blocker::Stays)).collect(),
        },
        Err(e) => Look { at, left: 1, blockers: vec![Blocker::Stays(e.chain())] },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake_api::FakeApi;

    fn pod(api: &FakeApi, name: &str, app: &str, phase: &str) {
        let owners = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": "o", "controller": true }]);
        let pod = json!({
            "metadata": { "labels": { "app": app }, "ownerReferences": owners },
            "spec": { "nodeName": "h1", "containers": [] }, "status": { "phase": phase },
        });
        api.put(&format!("/api/v1/namespaces/n/pods/{name}"), pod);
    }

    #[tokio::test]
    async fn blocking_pods_and_budgets_are_named() {
        let api = FakeApi::default();
        pod(&api, "web", "web", "Running");
        pod(&api, "job", "long", "Succeeded");
        let spec: UpdateManagerSpec = serde_json::from_value(json!({ "blockingPods": ["app=long"] })).unwrap();
        let found = look(&api.client(), "h1", &spec).await.unwrap();
        assert_eq!((found.blockers, found.left), (vec![], 1), "a finished pod is in nobody's way");
        pod(&api, "job2", "long", "Running");
        let budget = json!({ "spec": { "selector": { "matchLabels": { "app": "web" } } }, "status": { "currentHealthy": 1, "desiredHealthy": 1, "disruptionsAllowed": 0, "expectedPods": 1 } });
        api.put("/apis/policy/v1/namespaces/n/poddisruptionbudgets/b", budget);
        let found = look(&api.client(), "h1", &spec).await.unwrap();
        let budget = "n/web is kept by PodDisruptionBudget n/b (1 healthy, 1 needed, 0 may go)";
        assert_eq!(found.blockers, [Blocker::Pod("n/job2 is on it (app=long)".into()), Blocker::Budget(budget.into())]);
        assert_eq!(found.left, 2);
        assert!(api.changes().is_empty());
    }

    #[test]
    fn a_round_says_what_is_left() {
        let at = Timestamp::UNIX_EPOCH;
        assert_eq!(after(Ok(Standing::default()), at), Look { at, blockers: vec![], left: 0 });
        let standing = Standing { kept: vec!["a".into()], awaited: vec!["b".into()], ..Standing::default() };
        let found = after(Ok(standing), at);
        assert_eq!((found.left, found.blockers), (2, vec![Blocker::Budget("a".into()), Blocker::Stays("b".into())]));
        assert_eq!(after(Err(node::Error::refused("no")), at).left, 1, "who cannot be drained is not empty");
    }
}
