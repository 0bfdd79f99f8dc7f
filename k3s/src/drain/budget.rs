//! Which `PodDisruptionBudget` keeps a pod. Pure but for [`list`].

use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::core::{Selector, SelectorExt as _};
use kube::{Client, ResourceExt as _};

/// A budget, and what it bears now.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    namespace: String,
    name: String,
    /// None = it selects no pod.
    selector: Option<Selector>,
    healthy: i32,
    needed: i32,
    allowed: i32,
}

impl Budget {
    /// `empty_selects_all`: an empty selector selects all pods of the namespace in policy/v1, and none in policy/v1beta1.
    fn of(pdb: PodDisruptionBudget, empty_selects_all: bool) -> Self {
        let (namespace, name) = (pdb.namespace().unwrap_or_default(), pdb.name_any());
        let selector = pdb.spec.and_then(|s| s.selector).and_then(|s| Selector::try_from(s).ok());
        let selector = selector.filter(|s| empty_selects_all || !s.selects_all());
        let status = pdb.status.unwrap_or_default();
        let (healthy, needed, allowed) = (status.current_healthy, status.desired_healthy, status.disruptions_allowed);
        Self { namespace, name, selector, healthy, needed, allowed }
    }

    fn covers(&self, pod: &Pod) -> bool {
        let labels = pod.labels();
        self.namespace == pod.namespace().unwrap_or_default() && self.selector.as_ref().is_some_and(|s| s.matches(labels))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name, healthy, needed, allowed, .. } = self;
        write!(f, "PodDisruptionBudget {namespace}/{name} ({healthy} healthy, {needed} needed, {allowed} may go)")
    }
}

/// The budgets that keep a pod whose eviction was refused: one that has nothing to give, or several at once, which the API
/// refuses whatever they would give (`the eviction subresource does not support` more than one).
pub(super) fn blocking<'a>(pod: &Pod, budgets: &'a [Budget]) -> Vec<&'a Budget> {
    let covering: Vec<&Budget> = budgets.iter().filter(|b| b.covers(pod)).collect();
    match covering[..] {
        [one] if one.allowed > 0 => Vec::new(),
        _ => covering,
    }
}

/// All budgets, in the version that the server has: policy/v1 from Kubernetes 1.21, policy/v1beta1 before 1.25.
pub(super) async fn list(client: &Client) -> kube::Result<Vec<Budget>> {
    match of_version(client, "v1").await {
        Err(kube::Error::Api(status)) if status.code == 404 => of_version(client, "v1beta1").await,
        other => other,
    }
}

async fn of_version(client: &Client, version: &str) -> kube::Result<Vec<Budget>> {
    let kind = GroupVersionKind::gvk("policy", version, "PodDisruptionBudget");
    let resource = ApiResource::from_gvk_with_plural(&kind, "poddisruptionbudgets");
    let found = Api::<DynamicObject>::all_with(client.clone(), &resource).list(&ListParams::default()).await?;
    // the fields that are read here are the same in both versions
    let parsed = found.items.into_iter().filter_map(|o| o.try_parse::<PodDisruptionBudget>().ok());
    Ok(parsed.map(|pdb| Budget::of(pdb, version == "v1")).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::decide::tests::pod;
    use super::*;
    use crate::fake_api::FakeApi;

    fn budget(namespace: &str, selector: &Value, allowed: i32, v1: bool) -> Budget {
        let pdb = json!({
            "metadata": { "namespace": namespace, "name": "b" },
            "spec": { "selector": selector, "minAvailable": 2 },
            "status": { "currentHealthy": 2, "desiredHealthy": 2, "disruptionsAllowed": allowed, "expectedPods": 2 },
        });
        Budget::of(serde_json::from_value(pdb).unwrap(), v1)
    }

    fn web() -> Pod {
        pod(json!({ "metadata": { "namespace": "n", "name": "web-1", "labels": { "app": "web", "tier": "front" } } }))
    }

    #[test]
    fn the_numbers_are_shown() {
        let b = budget("n", &json!({ "matchLabels": { "app": "web" } }), 0, true);
        insta::assert_snapshot!(b, @"PodDisruptionBudget n/b (2 healthy, 2 needed, 0 may go)");
    }

    #[test]
    fn a_budget_covers_what_it_selects_in_its_namespace() {
        let covers = |namespace, selector: Value, v1| budget(namespace, &selector, 0, v1).covers(&web());
        assert!(covers("n", json!({ "matchLabels": { "app": "web" } }), true));
        assert!(!covers("other", json!({ "matchLabels": { "app": "web" } }), true));
        assert!(!covers("n", json!({ "matchLabels": { "app": "web", "tier": "back" } }), true));
        let expression =
            |operator: &str, values: Value| json!({ "matchExpressions": [{ "key": "app", "operator": operator, "values": values }] });
        assert!(covers("n", expression("In", json!(["api", "web"])), true));
        assert!(!covers("n", expression("NotIn", json!(["web"])), true));
        assert!(covers("n", expression("Exists", json!([])), true));
        assert!(covers("n", json!({}), true), "all pods in policy/v1");
        assert!(!covers("n", json!({}), false), "none in policy/v1beta1");
        assert!(!covers("n", Value::Null, true));
    }

    #[tokio::test]
    async fn budgets_are_found_in_the_servers_own_version() {
        for (version, found) in [("v1", 2), ("v1beta1", 1)] {
            let api = FakeApi::default();
            let path = |name: &str| format!("/apis/policy/{version}/namespaces/n/poddisruptionbudgets/{name}");
            api.put(&path("all"), json!({ "spec": { "selector": {} } }));
            api.put(&path("web"), json!({ "spec": { "selector": { "matchLabels": { "app": "web" } } } }));
            api.put("/apis/policy/v1/namespaces/n/others/x", json!({}));
            let absent = if version == "v1" { "/apis/policy/v1beta1/poddisruptionbudgets" } else { "/apis/policy/v1/poddisruptionbudgets" };
            api.fail("GET", absent, 404);
            let budgets = list(&api.client()).await.unwrap();
            assert_eq!(budgets.len(), 2);
            assert_eq!(blocking(&web(), &budgets).len(), found, "{version}");
        }
    }

    proptest! {
        /// What is said to block covers the pod; one that has something to give blocks only beside another.
        #[test]
        fn only_who_covers_blocks(budgets in prop::collection::vec((0_usize..2, 0_usize..3, 0_i32..2), 0..5)) {
            let selectors = [json!({ "matchLabels": { "app": "web" } }), json!({ "matchLabels": { "app": "db" } }), json!({})];
            let all: Vec<Budget> = budgets.iter().map(|(n, s, allowed)| budget(["n", "m"][*n], &selectors[*s], *allowed, true)).collect();
            let covering: Vec<i32> = budgets.iter().filter(|(n, s, _)| *n == 0 && *s != 1).map(|(_, _, allowed)| *allowed).collect();
            let expected = match covering[..] {
                [] => 0,
                [allowed] => usize::from(allowed == 0),
                _ => covering.len(),
            };
            prop_assert_eq!(blocking(&web(), &all).len(), expected);
        }
    }
}
