//! Which pods go. Pure.

use std::collections::BTreeSet;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use serde::Serialize;

/// A pod's name; shown as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl PodName {
    pub(super) fn of(pod: &Pod) -> Self {
        let m = &pod.metadata;
        Self { namespace: m.namespace.clone().unwrap_or_default(), name: m.name.clone().unwrap_or_default() }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Serialize for PodName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// Why a pod stays on a drained node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stays {
    /// A `DaemonSet` would put it there again at once.
    DaemonSet,
    /// The kubelet runs it from a file; the API has only its mirror.
    Static,
    /// Nothing of it runs any more, and its log can still be read.
    Finished,
    /// It came after the node was cordoned, and tolerates that: it would come again and again.
    Tolerates,
    /// It has been ending for longer than is waited for.
    EndsTooLong,
}

/// Which pods go, and how, with the names and meanings of kubectl drain.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "they are kubectl's")]
pub struct Rules {
    /// Whether pods without a controller go too. Nothing starts them again. Default: no, they block the node.
    pub force: bool,
    /// Whether pods go that have data in an emptyDir, which goes with them. Default: yes; else they block the node.
    pub delete_empty_dir_data: bool,
    /// Whether pods of `DaemonSets` are left where they are. Default: yes; else they block the node.
    pub ignore_daemon_sets: bool,
    /// Whether pods are deleted, past their disruption budgets. Default: no.
    pub disable_eviction: bool,
    /// Seconds that pods have to end. Default: what each pod says itself.
    pub grace_period_seconds: Option<u32>,
    /// Pods that have been ending for longer are not waited for. Default: all are.
    pub skip_wait_for_delete: Option<SignedDuration>,
    /// Only these pods go, by their labels. Default: all.
    pub pod_selector: Option<String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            force: false,
            delete_empty_dir_data: true,
            ignore_daemon_sets: true,
            disable_eviction: false,
            grace_period_seconds: None,
            skip_wait_for_delete: None,
            pod_selector: None,
        }
    }
}

/// Why a pod blocks a node: the rules do not let it go, nor stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Blocks {
    /// Nothing would start it again elsewhere.
    Unmanaged,
    /// A `DaemonSet` would put it there again at once.
    DaemonSet,
    /// It has data in an emptyDir.
    EmptyDir,
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unmanaged => "has no controller that would start it elsewhere",
            Self::DaemonSet => "belongs to a DaemonSet",
            Self::EmptyDir => "has data in an emptyDir",
        })
    }
}

/// What is to be done about a node's pods.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan<'a> {
    /// To be evicted.
    pub(super) evict: Vec<&'a Pod>,
    /// Told to end already, by whomever: to be waited for.
    pub(super) ending: Vec<&'a Pod>,
    /// Left alone.
    pub(super) stay: Vec<(PodName, Stays)>,
    /// These the rules do not let go, nor stay.
    pub(super) blocked: Vec<(PodName, Blocks)>,
}

/// The taint of a cordoned node.
const CORDONED: &str = "node.kubernetes.io/unschedulable";

impl<'a> Plan<'a> {
    /// As `kubectl drain` decides (kubectl's pkg/drain/filters.go), but that finished pods are left and late comers count too.
    /// `first`: the UIDs of the pods that were there at the beginning; None = this is the beginning.
    pub(super) fn of(pods: &'a [Pod], first: Option<&BTreeSet<String>>, rules: &Rules, now: Timestamp) -> Self {
        let mut plan = Self::default();
        for pod in pods {
            match stays(pod, first) {
                Some(Stays::DaemonSet) if !rules.ignore_daemon_sets => plan.blocked.push((PodName::of(pod), Blocks::DaemonSet)),
                Some(why) => plan.stay.push((PodName::of(pod), why)),
                None => match &pod.metadata.deletion_timestamp {
                    Some(since) if rules.skip_wait_for_delete.is_some_and(|limit| now.duration_since(since.0) > limit) => {
                        plan.stay.push((PodName::of(pod), Stays::EndsTooLong));
                    }
                    Some(_) => plan.ending.push(pod),
                    None => match blocks(pod, rules) {
                        Some(why) => plan.blocked.push((PodName::of(pod), why)),
                        None => plan.evict.push(pod),
                    },
                },
            }
        }
        plan
    }
}

fn blocks(pod: &Pod, rules: &Rules) -> Option<Blocks> {
    if controller(pod).is_none() && !rules.force {
        Some(Blocks::Unmanaged)
    } else if loses_data(pod) && !rules.delete_empty_dir_data {
        Some(Blocks::EmptyDir)
    } else {
        None
    }
}

fn stays(pod: &Pod, first: Option<&BTreeSet<String>>) -> Option<Stays> {
    let annotations = pod.metadata.annotations.as_ref();
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let late = first.is_some_and(|first| pod.metadata.uid.as_ref().is_none_or(|uid| !first.contains(uid)));
    if annotations.is_some_and(|a| a.contains_key("kubernetes.io/config.mirror")) {
        Some(Stays::Static)
    } else if controller(pod) == Some("DaemonSet") {
        Some(Stays::DaemonSet)
    } else if matches!(phase, Some("Succeeded" | "Failed")) {
        Some(Stays::Finished)
    } else if late && pod.spec.iter().filter_map(|s| s.tolerations.as_ref()).flatten().any(tolerates_a_cordon) {
        Some(Stays::Tolerates)
    } else {
        None
    }
}

/// The kind of what manages it.
fn controller(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().find(|o| o.controller == Some(true)).map(|o| o.kind.as_str())
}

fn tolerates_a_cordon(t: &Toleration) -> bool {
    let key = t.key.as_deref().unwrap_or_default();
    let value = match t.operator.as_deref() {
        Some("Exists") => key.is_empty() || key == CORDONED,
        _ => key == CORDONED && t.value.as_deref().unwrap_or_default().is_empty(),
    };
    value && matches!(t.effect.as_deref(), None | Some("" | "NoSchedule"))
}

/// Whether what it has in an emptyDir goes with it.
pub(super) fn loses_data(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| v.empty_dir.is_some())
}

/// Why a pod that was told to end may still be there, as far as the pod says.
pub(super) fn ending(pod: &Pod) -> String {
    let name = PodName::of(pod);
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
    match pod.metadata.finalizers.as_deref() {
        Some(held @ [_, ..]) => format!("{name} is ending, and kept by its finalizer {}", held.join(", ")),
        _ => format!("{name} is ending (it may take {grace} s)"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    pub(in crate::drain) fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-02T00:00:00Z".parse().unwrap()
    }

    fn owned(by: &str) -> Value {
        json!([{ "apiVersion": "apps/v1", "kind": by, "name": "o", "uid": "u", "controller": true }])
    }

    fn tolerated(t: Value) -> bool {
        tolerates_a_cordon(&serde_json::from_value(t).unwrap())
    }

    #[test]
    fn what_tolerates_a_cordon() {
        assert!(tolerated(json!({ "operator": "Exists" })));
        assert!(tolerated(json!({ "key": CORDONED, "operator": "Exists", "effect": "NoSchedule" })));
        assert!(tolerated(json!({ "key": CORDONED })));
        assert!(!tolerated(json!({ "key": CORDONED, "value": "x" })));
        assert!(!tolerated(json!({ "key": CORDONED, "operator": "Exists", "effect": "NoExecute" })));
        assert!(!tolerated(json!({ "key": "node.kubernetes.io/not-ready", "operator": "Exists" })));
        assert!(!tolerated(json!({ "value": "" })), "an empty key tolerates all only with Exists");
    }

    #[test]
    fn an_owner_that_does_not_control_is_none() {
        let mut owner = owned("ReplicaSet");
        owner[0]["controller"] = json!(false);
        let pods = [pod(json!({ "metadata": { "namespace": "n", "name": "p", "ownerReferences": owner } }))];
        let plan = Plan::of(&pods, None, &Rules::default(), now());
        assert_eq!(
            plan.blocked.iter().map(|(pod, why)| format!("{pod} {why}")).collect::<Vec<_>>(),
            ["n/p has no controller that would start it elsewhere"]
        );
    }

    #[test]
    fn what_kubectls_options_change() {
        let mut ending = build(0, &Case { owner: Some("ReplicaSet"), mirror: false, phase: "Running", ending: true, tolerates: false });
        ending.metadata.deletion_timestamp = Some(Time(now() - SignedDuration::from_secs(60)));
        let daemon = build(1, &Case { owner: Some("DaemonSet"), mirror: false, phase: "Running", ending: false, tolerates: false });
        let mut data = build(2, &Case { owner: Some("ReplicaSet"), mirror: false, phase: "Running", ending: false, tolerates: false });
        data.spec.as_mut().unwrap().volumes = Some(vec![serde_json::from_value(json!({ "name": "v", "emptyDir": {} })).unwrap()]);
        let pods = [ending, daemon, data];
        let plan = |rules: &Rules| {
            let plan = Plan::of(&pods, None, rules, now());
            let blocked = plan.blocked.iter().map(|(pod, why)| format!("{pod} {why}")).collect::<Vec<_>>();
            (plan.evict.len(), plan.ending.len(), plan.stay.len(), blocked.join("; "))
        };
        assert_eq!(plan(&Rules::default()), (1, 1, 1, String::new()));
        let blocked = "n/p1 belongs to a DaemonSet; n/p2 has data in an emptyDir".to_owned();
        assert_eq!(plan(&Rules { delete_empty_dir_data: false, ignore_daemon_sets: false, ..Rules::default() }), (0, 1, 0, blocked));
        let waits = |seconds| plan(&Rules { skip_wait_for_delete: Some(SignedDuration::from_secs(seconds)), ..Rules::default() });
        assert_eq!((waits(60).1, waits(59).1, waits(59).2), (1, 0, 2));
    }

    #[test]
    fn who_is_ending_says_what_keeps_it() {
        let at = "2026-01-01T00:00:00Z";
        let p = pod(json!({ "metadata": { "namespace": "n", "name": "p", "deletionTimestamp": at, "deletionGracePeriodSeconds": 30 } }));
        assert_eq!(ending(&p), "n/p is ending (it may take 30 s)");
        let p = pod(json!({ "metadata": { "namespace": "n", "name": "p", "deletionTimestamp": at, "finalizers": ["a/b"] } }));
        assert_eq!(ending(&p), "n/p is ending, and kept by its finalizer a/b");
        assert!(loses_data(&pod(json!({ "spec": { "containers": [], "volumes": [{ "name": "v", "emptyDir": {} }] } }))));
        assert!(!loses_data(&pod(json!({ "spec": { "containers": [], "volumes": [{ "name": "v", "hostPath": { "path": "/" } }] } }))));
    }

    #[derive(Debug, Clone)]
    struct Case {
        owner: Option<&'static str>,
        mirror: bool,
        phase: &'static str,
        ending: bool,
        tolerates: bool,
    }

    fn case() -> impl Strategy<Value = Case> {
        let owner = prop::sample::select(vec![None, Some("DaemonSet"), Some("ReplicaSet"), Some("StatefulSet"), Some("Job")]);
        let phase = prop::sample::select(vec!["Pending", "Running", "Succeeded", "Failed", "Unknown"]);
        (owner, any::<bool>(), phase, any::<bool>(), any::<bool>()).prop_map(|(owner, mirror, phase, ending, tolerates)| Case {
            owner,
            mirror,
            phase,
            ending,
            tolerates,
        })
    }

    fn build(i: usize, case: &Case) -> Pod {
        let mut p = json!({
            "metadata": { "namespace": "n", "name": format!("p{i}"), "uid": format!("u{i}"), "annotations": {} },
            "spec": { "containers": [], "tolerations": [] },
            "status": { "phase": case.phase },
        });
        if let Some(owner) = case.owner {
            p["metadata"]["ownerReferences"] = owned(owner);
        }
        if case.mirror {
            p["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x");
        }
        if case.ending {
            p["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if case.tolerates {
            p["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
        }
        pod(p)
    }

    proptest! {
        /// Every pod has exactly one fate, and who may not be evicted is not.
        #[test]
        fn every_pod_has_one_fate(cases in prop::collection::vec(case(), 0..12), known in 0_usize..12, late: bool, force: bool) {
            let pods: Vec<Pod> = cases.iter().enumerate().map(|(i, c)| build(i, c)).collect();
            let first: BTreeSet<String> = (0..known).map(|i| format!("u{i}")).collect();
            let plan = Plan::of(&pods, late.then_some(&first), &Rules { force, ..Rules::default() }, now());
            let names = |pods: &[&Pod]| pods.iter().map(|p| PodName::of(p)).collect::<Vec<_>>();
            let mut all = [names(&plan.evict), names(&plan.ending)].concat();
            all.extend(plan.blocked.iter().map(|(name, _)| name.clone()));
            all.extend(plan.stay.iter().map(|(name, _)| name.clone()));
            all.sort();
            let mut expected: Vec<PodName> = pods.iter().map(PodName::of).collect();
            expected.sort();
            prop_assert_eq!(all, expected);

            for (i, (case, pod)) in cases.iter().zip(&pods).enumerate() {
                let finished = matches!(case.phase, "Succeeded" | "Failed");
                let comes_back = late && i >= known && case.tolerates;
                let left = case.mirror || case.owner == Some("DaemonSet") || finished || comes_back;
                let name = PodName::of(pod);
                prop_assert_eq!(plan.stay.iter().any(|(n, _)| *n == name), left);
                let goes = !left && !case.ending && (force || case.owner.is_some());
                prop_assert_eq!(names(&plan.evict).contains(&name), goes);
                let blocked = plan.blocked.contains(&(name, Blocks::Unmanaged));
                prop_assert_eq!(blocked, !left && !case.ending && !force && case.owner.is_none());
            }
        }
    }
}
