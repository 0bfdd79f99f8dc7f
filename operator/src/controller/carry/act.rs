//! One step of one node. Each is carried out on what is there now: where that is not what was decided on, nothing is done, and the
//! decision is made anew.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use node::{Error, Result};
use serde_json::json;
use updates::api::{Marks, NodeUpdate, NodeUpdateSpec};
use updates::decide::spec_patch;
use updates::names;

use super::slots::{self, Slot};

/// The node as it was decided on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decided<'a> {
    pub(super) node: &'a str,
    pub(super) uid: &'a str,
    pub(super) spec: &'a NodeUpdateSpec,
}

/// Whether something was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Yes,
    /// Somebody was faster, or something has changed.
    NotAnyMore,
}

fn failed(what: impl Into<String>, e: &kube::Error) -> Error {
    Error::failed(format!("{}: {}", what.into(), k3s::in_words(e)))
}

/// An answer, or that things have changed.
fn settled(what: impl Into<String>, done: kube::Result<()>) -> Result<Done> {
    match done {
        Ok(()) => Ok(Done::Yes),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Done::NotAnyMore),
        Err(e) => Err(failed(what, &e)),
    }
}

/// Makes the `NodeUpdate`'s spec `after`, where it is still the one that was decided on.
pub(super) async fn write(client: &Client, decided: Decided<'_>, after: &NodeUpdateSpec) -> Result<Done> {
    let api = Api::<NodeUpdate>::namespaced(client.clone(), names::NAMESPACE);
    let what = format!("cannot write the NodeUpdate of {}", decided.node);
    let found = api.get_opt(decided.node).await.map_err(|e| failed(&what, &e))?;
    let Some(found) = found.filter(|f| f.spec == *decided.spec && is_of(f, decided.uid)) else { return Ok(Done::NotAnyMore) };
    let Some(mut patch) = spec_patch(&found.spec, after) else { return Ok(Done::Yes) };
    if let Some(patch) = patch.as_object_mut() {
        patch.insert("metadata".into(), json!({ "resourceVersion": found.metadata.resource_version, "uid": found.metadata.uid }));
    }
    let how = PatchParams::apply(names::CONTROLLER_MANAGER);
    settled(what, api.patch(decided.node, &how, &Patch::Merge(patch)).await.map(drop))
}

/// Whether a `NodeUpdate` is of the node with this UID, and not of a namesake.
fn is_of(update: &NodeUpdate, uid: &str) -> bool {
    update.metadata.owner_references.iter().flatten().any(|o| o.uid == uid)
}

/// Whether all slots are still as they were when something was decided.
pub(super) async fn are_as_seen(client: &Client, seen: &[Slot]) -> Result<bool> {
    let taken = slots::taken(client).await.map_err(|e| failed(format!("cannot list the leases {}*", names::LOCK_PREFIX), &e))?;
    Ok(taken == seen)
}

/// Takes a slot.
pub(super) async fn take(client: &Client, slot: &Slot, now: Timestamp) -> Result<Done> {
    settled(format!("cannot make the lease {}{}", names::LOCK_PREFIX, slot.number), slots::take(client, slot, now).await)
}

/// Frees a slot, unless its node is being updated after all.
pub(super) async fn unlock(client: &Client, number: u32) -> Result<Done> {
    let updates = Api::<NodeUpdate>::namespaced(client.clone(), names::NAMESPACE);
    let is_free = async |slot: &Slot| {
        let update = updates.get_opt(&slot.node).await?;
        if !update.is_some_and(|u| is_of(&u, &slot.uid) && u.spec.transaction.is_some()) {
            return Ok(true);
        }
        // or has two of them
        let all = slots::taken(client).await?;
        Ok(all.iter().any(|other| other.number != slot.number && (&other.node, &other.uid) == (&slot.node, &slot.uid)))
    };
    let freed = slots::free(client, number, is_free)
        .await
        .map_err(|e| failed(format!("cannot free the lease {}{number}", names::LOCK_PREFIX), &e))?;
    Ok(if freed { Done::Yes } else { Done::NotAnyMore })
}

/// Puts labels and annotations on the node of that UID. Answers why they were refused, if they were: that keeps no update from its
/// end.
pub(super) async fn mark(client: &Client, decided: Decided<'_>, marks: &Marks) -> Result<Option<String>> {
    if marks.is_empty() {
        return Ok(None);
    }
    let patch = json!({ "metadata": { "uid": decided.uid, "labels": marks.labels, "annotations": marks.annotations } });
    let how = PatchParams::apply(names::CONTROLLER_MANAGER);
    match Api::<Node>::all(client.clone()).patch_metadata(decided.node, &how, &Patch::Merge(patch)).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if matches!(status.code, 400..=428) && status.code != 409 => Ok(Some(status.message)),
        Err(e) => Err(failed(format!("cannot mark the node {}", decided.node), &e)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use updates::{Policy, Stage};

    use super::*;
    use crate::fake_api::FakeApi;

    const UPDATE: &str = "/apis/maintenance.virtuozzo.io/v1/namespaces/vz-maintenance-operator/nodeupdates/h1";
    const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/vz-maintenance-operator/leases/smartup-update-0";

    fn idle() -> NodeUpdateSpec {
        NodeUpdateSpec::new(Stage::Fast, Policy::Auto, "a")
    }

    fn busy(phase: &str) -> NodeUpdateSpec {
        let mut spec = idle();
        spec.transaction = Some(
            serde_json::from_value(json!({
                "id": "0123456789abcdef", "reboot": "never", "startedAt": "2026-11-21T12:00:00Z", "phase": phase, "since": "2026-11-21T12:00:00Z",
            }))
            .unwrap(),
        );
        spec
    }

    fn api(spec: &NodeUpdateSpec) -> FakeApi {
        let api = FakeApi::default();
        let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": "h1", "uid": "u1" }]);
        api.put(UPDATE, json!({ "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "NodeUpdate", "metadata": { "ownerReferences": owner }, "spec": spec }));
        api.put("/api/v1/nodes/h1", json!({ "metadata": { "uid": "u1" } }));
        api
    }

    fn decided(spec: &NodeUpdateSpec) -> Decided<'_> {
        Decided { node: "h1", uid: "u1", spec }
    }

    fn slot() -> Slot {
        Slot { number: 0, node: "h1".into(), uid: "u1".into() }
    }

    fn phase(api: &FakeApi) -> Value {
        api.get(UPDATE).unwrap()["spec"]["transaction"]["phase"].clone()
    }

    #[tokio::test]
    async fn a_step_is_done_only_on_what_was_decided_on() {
        let (idle, checking, draining) = (idle(), busy("Checking"), busy("Draining"));
        let api = api(&checking);
        let client = api.client();
        assert_eq!(write(&client, decided(&idle), &draining).await.unwrap(), Done::NotAnyMore, "it has a transaction by now");
        let namesake = Decided { uid: "u2", ..decided(&checking) };
        assert_eq!(write(&client, namesake, &draining).await.unwrap(), Done::NotAnyMore);
        assert!(api.changes().is_empty());
        assert_eq!(write(&client, decided(&checking), &draining).await.unwrap(), Done::Yes);
        assert_eq!(phase(&api), "Draining");
        assert_eq!(write(&client, decided(&draining), &idle).await.unwrap(), Done::Yes);
        assert_eq!(phase(&api), Value::Null);
        api.remove(UPDATE);
        assert_eq!(write(&client, decided(&idle), &draining).await.unwrap(), Done::NotAnyMore);
    }

    #[tokio::test]
    async fn somebody_who_writes_between_the_look_and_the_step_is_not_overwritten() {
        let (checking, draining) = (busy("Checking"), busy("Draining"));
        let api = api(&checking);
        let mut first = true;
        api.on(move |objects, asked| {
            if asked.method == "PATCH" && std::mem::take(&mut first) {
                objects.change(UPDATE, |u| u["spec"]["transaction"]["phase"] = json!("Broken"));
            }
            None
        });
        assert_eq!(write(&api.client(), decided(&checking), &draining).await.unwrap(), Done::NotAnyMore);
        assert_eq!(phase(&api), "Broken");
        api.fail("PATCH", UPDATE, 403);
        assert!(write(&api.client(), decided(&busy("Broken")), &draining).await.is_err(), "a refusal is said");
    }

    #[tokio::test]
    async fn a_lock_is_freed_only_when_its_node_does_nothing() {
        let api = api(&busy("Draining"));
        let client = api.client();
        slots::take(&client, &slot(), Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(unlock(&client, 0).await.unwrap(), Done::NotAnyMore, "the watch was behind");
        api.change(UPDATE, |u| u["spec"]["transaction"] = Value::Null);
        assert_eq!(unlock(&client, 0).await.unwrap(), Done::Yes);
        assert!(api.get(LEASE).is_none());
        // a ghost's
        slots::take(&client, &Slot { node: "h9".into(), ..slot() }, Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(unlock(&client, 0).await.unwrap(), Done::Yes);
    }

    #[tokio::test]
    async fn marks_are_put_on_that_node_only() {
        let api = api(&idle());
        let marks: Marks = serde_json::from_value(json!({ "labels": { "a": "b" }, "annotations": { "c": "d" } })).unwrap();
        let idle = idle();
        assert_eq!(mark(&api.client(), decided(&idle), &Marks::default()).await.unwrap(), None);
        assert!(api.changes().is_empty());
        assert_eq!(mark(&api.client(), decided(&idle), &marks).await.unwrap(), None);
        let node = api.get("/api/v1/nodes/h1").unwrap();
        assert_eq!((&node["metadata"]["labels"]["a"], &node["metadata"]["annotations"]["c"]), (&json!("b"), &json!("d")));
        let namesake = Decided { uid: "u2", ..decided(&idle) };
        assert_eq!(mark(&api.client(), namesake, &marks).await.unwrap().as_deref(), Some("field is immutable"));
        api.fail("PATCH", "/api/v1/nodes/h1", 503);
        assert!(mark(&api.client(), decided(&idle), &marks).await.is_err(), "it may be taken later");
    }
}
