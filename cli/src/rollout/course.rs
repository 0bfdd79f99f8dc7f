//! What the state of a Job, its pods, a cluster and an `UpdateManager` means. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use k3s::{MemberState, NodeInfo};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use kube::ResourceExt as _;
use serde_json::Value;

/// How many of the pods that wait are named.
const SHOWN: usize = 3;
/// A container that waits for one of these waits in vain.
const NO_IMAGE: [&str; 4] = ["ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName"];

/// How far the deployment is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Course {
    /// The Job is Complete.
    Complete,
    /// It will not be.
    Failed {
        /// Why not.
        why: String,
        /// The pod whose log may say more.
        pod: Option<String>,
        /// Whether a host lacks an image that nobody pulls.
        no_image: bool,
    },
    /// It goes on; what is awaited, in words.
    Going(String),
}

/// Judges the Job by itself, its own pods, and those pods of its namespace that are made of the manifest's images.
pub fn course(job: &Job, pods: &[Pod], images: &BTreeSet<String>) -> Course {
    if condition(job, "Complete").is_some() {
        return Course::Complete;
    }
    let own = own_pods(job, pods);
    if let Some(why) = condition(job, "Failed") {
        let last = own.iter().max_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
        return Course::Failed { why: format!("it has failed: {why}"), pod: last.map(|p| p.name_any()), no_image: false };
    }
    let ours = pods.iter().filter(|p| alive(p) && made_of(p, images));
    let lacking = own.iter().copied().chain(ours.clone()).find_map(|p| Some((p, no_image(p)?)));
    if let Some((pod, (reason, why))) = lacking {
        let why = format!("{}: {why}", place(pod));
        return Course::Failed { why, pod: Some(pod.name_any()), no_image: reason == "ErrImageNeverPull" };
    }
    if let Some((pod, why)) = own.iter().find_map(|p| Some((p, unschedulable(p)?))) {
        return Course::Failed { why: format!("no node takes its pod {}: {why}", pod.name_any()), pod: None, no_image: false };
    }
    let all: Vec<&Pod> = ours.collect();
    let waiting: Vec<String> = all.iter().filter_map(|p| Some(format!("{}: {}", place(p), waits_for(p)?))).collect();
    let mut text = format!("{} of {} pods run", all.len() - waiting.len(), all.len());
    for line in waiting.iter().take(SHOWN) {
        text.push_str("; ");
        text.push_str(line);
    }
    if waiting.len() > SHOWN {
        text.push_str("; …");
    }
    Course::Going(text)
}

/// Whether the Job stands in the way of another attempt: it has failed, or waits for an image in vain.
pub fn is_stuck(job: &Job, pods: &[Pod]) -> bool {
    condition(job, "Complete").is_none()
        && (condition(job, "Failed").is_some() || own_pods(job, pods).iter().any(|p| no_image(p).is_some() || unschedulable(p).is_some()))
}

/// The pods that wait for an image in vain.
pub fn lacking<'a>(pods: &'a [Pod], images: &BTreeSet<String>) -> Vec<&'a Pod> {
    pods.iter().filter(|p| alive(p) && made_of(p, images) && no_image(p).is_some()).collect()
}

fn condition(job: &Job, kind: &str) -> Option<String> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|c| c.type_ == kind && c.status == "True")?;
    let words: Vec<&str> = [&found.reason, &found.message].into_iter().flatten().map(String::as_str).filter(|w| !w.is_empty()).collect();
    Some(words.join(": "))
}

fn own_pods<'a>(job: &Job, pods: &'a [Pod]) -> Vec<&'a Pod> {
    let uid = job.uid().unwrap_or_default();
    pods.iter().filter(|p| alive(p) && p.owner_references().iter().any(|o| o.uid == uid)).collect()
}

fn alive(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

fn made_of(pod: &Pod, images: &BTreeSet<String>) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.containers.iter().any(|c| c.image.as_ref().is_some_and(|i| images.contains(i))))
}

fn containers(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    [&status.init_container_statuses, &status.container_statuses].into_iter().flatten().flatten()
}

/// The reason, and in words with the image.
fn no_image(pod: &Pod) -> Option<(String, String)> {
    containers(pod.status.as_ref()?).find_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone().filter(|r| NO_IMAGE.contains(&r.as_str()))?;
        let message = waiting.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
        Some((reason.clone(), format!("{reason} for {}{message}", c.image)))
    })
}

fn unschedulable(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found =
        conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False" && c.reason.as_deref() == Some("Unschedulable"))?;
    Some(found.message.clone().unwrap_or_else(|| "Unschedulable".into()))
}

/// What keeps a pod from running; None = it runs, or has done its work.
fn waits_for(pod: &Pod) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.clone().unwrap_or_else(|| "Pending".into());
    if phase == "Succeeded" {
        return None;
    }
    let waiting = containers(&status).find_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let unready = || containers(&status).any(|c| !c.ready).then(|| "not ready".to_owned());
    unschedulable(pod).or(waiting).or_else(|| (phase != "Running").then_some(phase)).or_else(unready)
}

fn place(pod: &Pod) -> String {
    match pod.spec.as_ref().and_then(|s| s.node_name.as_ref()) {
        Some(node) => format!("{} on {node}", pod.name_any()),
        None => pod.name_any(),
    }
}

/// How much time is left, in the unit that says enough.
pub fn left(time: Duration) -> String {
    match time.as_secs() {
        s if s >= 120 => format!("{} min left", s / 60),
        _ => "less than 2 min left".into(),
    }
}

/// What is not well; empty = nothing.
pub fn ailments(nodes: &[NodeInfo], members: &[MemberState]) -> Vec<String> {
    let unready = nodes.iter().filter(|n| n.ready != "True");
    let unready =
        unready.map(|n| format!("node {} is not Ready: {}", n.name, n.reason.as_deref().unwrap_or("its kubelet does not say why")));
    let ill = members.iter().filter(|m| !m.is_healthy());
    unready.chain(ill.map(|m| format!("etcd's member {} ({}) is {}", m.name, m.address, m.health()))).collect()
}

/// The nodes that an `UpdateManager` says nothing about yet, in words; None = there is none.
pub fn unreported(manager: &Value, nodes: &[String]) -> Option<String> {
    let of = manager["status"]["nodes"].as_array().into_iter().flatten();
    let said: BTreeSet<&str> = of.filter_map(|n| n["id"].as_str()).collect();
    let missing: Vec<&str> = nodes.iter().map(String::as_str).filter(|n| !said.contains(n)).collect();
    // an operator of somebody else's may call them otherwise
    if missing.is_empty() || said.len() >= nodes.len() {
        return None;
    }
    Some(format!("{} of {} nodes are in the status; not yet: {}", said.len(), nodes.len(), missing.join(", ")))
}

#[cfg(test)]
mod tests {
    use cluster::Role;
    use k3s::MemberId;
    use serde_json::json;

    use super::*;

    const IMAGE: &str = "example.com/operator:1";

    fn job(conditions: &Value) -> Job {
        serde_json::from_value(json!({"metadata": {"name": "job", "uid": "j"}, "status": {"conditions": conditions}})).unwrap()
    }

    /// A pod of the Job if `own`, else one of the others, in this state.
    fn pod(name: &str, own: bool, status: &Value) -> Pod {
        let owner = if own { json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": "j"}]) } else { json!([]) };
        let spec = json!({"nodeName": "h1", "containers": [{"name": "c", "image": IMAGE}]});
        serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owner}, "spec": spec, "status": status})).unwrap()
    }

    fn container(state: &Value, ready: bool) -> Value {
        json!({"name": "c", "image": IMAGE, "imageID": "", "ready": ready, "restartCount": 0, "state": state})
    }

    fn running(ready: bool) -> Value {
        json!({"phase": "Running", "containerStatuses": [container(&json!({"running": {}}), ready)]})
    }

    fn waiting(reason: &str) -> Value {
        json!({"phase": "Pending", "containerStatuses": [container(&json!({"waiting": {"reason": reason, "message": "why"}}), false)]})
    }

    fn unschedulable() -> Value {
        json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes are available"}
        ]})
    }

    fn judged(job: &Job, pods: &[Pod]) -> String {
        match course(job, pods, &BTreeSet::from([IMAGE.to_owned()])) {
            Course::Complete => "Complete".into(),
            Course::Failed { why, pod, no_image } => format!("Failed: {why} (pod {pod:?}, no image {no_image})"),
            Course::Going(text) => text,
        }
    }

    #[test]
    fn says_what_is_awaited_and_fails_as_soon_as_it_is_in_vain() {
        let going = job(&json!([]));
        let failed = job(&json!([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too often"}]));
        let complete = job(&json!([{"type": "Complete", "status": "True"}]));
        let mut dying = pod("dying", false, &waiting("ErrImagePull"));
        dying.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let mut strange = pod("strange", false, &waiting("ErrImagePull"));
        strange.spec = None;
        let said = [
            judged(&going, &[]),
            judged(&going, &[pod("a", false, &running(true)), pod("j", true, &running(true)), dying, strange]),
            judged(
                &going,
                &[pod("a", false, &waiting("ContainerCreating")), pod("b", false, &running(false)), pod("c", false, &unschedulable())],
            ),
            judged(&going, &[pod("a", false, &waiting("ErrImageNeverPull")), pod("j", true, &running(true))]),
            judged(&going, &[pod("j", true, &waiting("ImagePullBackOff"))]),
            judged(&going, &[pod("j", true, &unschedulable())]),
            judged(&failed, &[pod("j", true, &json!({"phase": "Failed"}))]),
            judged(&complete, &[pod("a", false, &waiting("ErrImagePull"))]),
        ];
        insta::assert_snapshot!(said.join("\n"), @r#"
        0 of 0 pods run
        2 of 2 pods run
        0 of 3 pods run; a on h1: ContainerCreating; b on h1: not ready; c on h1: 0/4 nodes are available
        Failed: a on h1: ErrImageNeverPull for example.com/operator:1: why (pod Some("a"), no image true)
        Failed: j on h1: ImagePullBackOff for example.com/operator:1: why (pod Some("j"), no image false)
        Failed: no node takes its pod j: 0/4 nodes are available (pod None, no image false)
        Failed: it has failed: BackoffLimitExceeded: too often (pod Some("j"), no image false)
        Complete
        "#);
    }

    #[test]
    fn a_job_that_cannot_complete_any_more_is_in_the_way() {
        let (going, failed) = (job(&json!([])), job(&json!([{"type": "Failed", "status": "True"}])));
        let complete = job(&json!([{"type": "Complete", "status": "True"}]));
        let stuck = [pod("j", true, &waiting("ErrImagePull"))];
        assert!(is_stuck(&failed, &[]) && is_stuck(&going, &stuck));
        assert!(!is_stuck(&complete, &stuck) && !is_stuck(&going, &[pod("j", true, &running(true))]));
    }

    #[test]
    fn names_what_is_not_well() {
        let node = |name: &str, ready: &str| NodeInfo {
            name: name.into(),
            role: Role::Server,
            ready: ready.into(),
            reason: (ready != "True").then(|| "the kubelet is silent".into()),
            version: String::new(),
            address: String::new(),
            cordoned: false,
        };
        let member = |name: &str, trouble: Option<&str>| MemberState {
            id: MemberId(1),
            name: name.into(),
            address: "10.0.0.1".into(),
            learner: false,
            leader: false,
            answer: None,
            trouble: trouble.map(Into::into),
        };
        assert!(ailments(&[node("a", "True")], &[member("a", None)]).is_empty());
        let said = ailments(&[node("a", "True"), node("b", "Unknown")], &[member("b", Some("no answer"))]);
        insta::assert_snapshot!(said.join("\n"), @"
        node b is not Ready: the kubelet is silent
        etcd's member b (10.0.0.1) is NOT healthy: no answer
        ");
    }

    #[test]
    fn a_status_is_complete_when_it_has_every_node() {
        let nodes = ["a", "b"].map(str::to_owned);
        let of = |ids: &[&str]| json!({"status": {"nodes": ids.iter().map(|i| json!({"id": i})).collect::<Vec<_>>()}});
        assert_eq!(unreported(&of(&["a", "b", "gone"]), &nodes), None);
        assert_eq!(unreported(&of(&["b"]), &nodes).unwrap(), "1 of 2 nodes are in the status; not yet: a");
        assert_eq!(unreported(&json!({}), &nodes).unwrap(), "0 of 2 nodes are in the status; not yet: a, b");
        assert_eq!(unreported(&of(&["node-uid-1", "node-uid-2"]), &nodes), None);
    }

    #[test]
    fn time_left_in_minutes() {
        assert_eq!(left(Duration::from_secs(3599)), "59 min left");
        assert_eq!(left(Duration::from_secs(119)), "less than 2 min left");
    }
}
