//! Whose a node's cordon is, and how it is put on and taken off. An annotation tells smartup's own from others'.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use node::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::ready::{in_words, transient};

/// What the annotation on a node that smartup cordoned is called; its value says what for.
pub const CORDON: &str = "smartup/cordoned";

/// Whose cordon is on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cordon {
    /// There is none.
    None,
    /// smartup's, of this run or of one that ended before it could take it off.
    Ours,
    /// Somebody else's.
    Theirs,
}

impl Cordon {
    /// What a node has.
    pub fn of(node: &Node) -> Self {
        let on = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
        match (on, node.annotations().contains_key(CORDON)) {
            (false, _) => Self::None,
            (true, true) => Self::Ours,
            (true, false) => Self::Theirs,
        }
    }
}

/// Cordons a node, unless it is; the annotation [`CORDON`] says what for. Answers whose cordon it has now. With a `uid`, only that
/// node, and no namesake that has come since.
///
/// # Errors
/// When there is no such node, the API does not answer for some seconds, or refuses.
pub async fn cordon(client: &Client, node: &str, uid: Option<&str>, why: &str) -> Result<Cordon> {
    let found = change(client, node, uid, |found| {
        (Cordon::of(found) == Cordon::None)
            .then(|| json!({ "metadata": { "annotations": { CORDON: why } }, "spec": { "unschedulable": true } }))
    })
    .await?;
    found.map(|n| Cordon::of(&n)).ok_or_else(|| unknown(node))
}

pub(super) fn unknown(node: &str) -> Error {
    Error::failed(format!("there is no node {node}")).hint("smartup status lists the nodes")
}

/// Lets pods onto a node again if it was smartup that kept them off; a cordon of somebody else's stays. Answers what the node
/// has now; None = there is no such node.
///
/// # Errors
/// When the API does not answer for some seconds, or refuses.
pub async fn uncordon(client: &Client, node: &str) -> Result<Option<Cordon>> {
    take_off(client, node, None, |_| true).await
}

/// The same, if smartup cordoned it for just this: what it does elsewhere at the same time goes on. With a `uid`, only that node.
///
/// # Errors
/// When the API does not answer for some seconds, or refuses.
pub async fn uncordon_for(client: &Client, node: &str, uid: Option<&str>, why: &str) -> Result<Option<Cordon>> {
    take_off(client, node, uid, |found| found == why).await
}

async fn take_off(client: &Client, node: &str, uid: Option<&str>, ours: impl Fn(&str) -> bool) -> Result<Option<Cordon>> {
    let found = change(client, node, uid, |found| {
        let off = json!({ "metadata": { "annotations": { CORDON: null } }, "spec": { "unschedulable": null } });
        found.annotations().get(CORDON).is_some_and(|why| ours(why)).then_some(off)
    })
    .await?;
    Ok(found.map(|n| Cordon::of(&n)))
}

/// How often a node is looked at anew when somebody else changed it or the API was away.
const TRIES: u32 = 10;

/// Applies a merge patch to a node as long as it is as `patch` saw it. Answers the node as it is then; None = it is not there.
async fn change(client: &Client, name: &str, uid: Option<&str>, patch: impl Fn(&Node) -> Option<Value>) -> Result<Option<Node>> {
    let is_it = |node: &Node| uid.is_none_or(|uid| node.metadata.uid.as_deref() == Some(uid));
    let nodes: Api<Node> = Api::all(client.clone());
    let mut tries = 0;
    loop {
        let done = async {
            let Some(node) = nodes.get_opt(name).await?.filter(is_it) else { return Ok(None) };
            let Some(mut patch) = patch(&node) else { return Ok(Some(node)) };
            patch["metadata"]["resourceVersion"] = json!(node.metadata.resource_version);
            nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(Some)
        };
        match done.await {
            Ok(node) => return Ok(node),
            Err(e) if tries < TRIES && (transient(&e) || conflicts(&e)) => tries += 1,
            Err(e) => return Err(Error::failed(format!("cannot cordon or uncordon node {name}: {}", in_words(&e)))),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn conflicts(e: &kube::Error) -> bool {
    matches!(e, kube::Error::Api(status) if status.code == 409)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;

    const NODE: &str = "/api/v1/nodes/h1";

    fn api(node: Value) -> FakeApi {
        let api = FakeApi::default();
        api.put(NODE, node);
        api
    }

    fn state(api: &FakeApi) -> (Value, Value) {
        let node = api.get(NODE).unwrap();
        (node["spec"]["unschedulable"].clone(), node["metadata"]["annotations"][CORDON].clone())
    }

    #[tokio::test]
    async fn what_we_put_on_we_take_off() {
        let api = api(json!({ "spec": { "podCIDR": "10.42.0.0/24" } }));
        assert_eq!(cordon(&api.client(), "h1", None, "leave").await.unwrap(), Cordon::Ours);
        assert_eq!(state(&api), (json!(true), json!("leave")));
        assert_eq!(cordon(&api.client(), "h1", None, "another").await.unwrap(), Cordon::Ours);
        assert_eq!(api.changes().len(), 1, "once is enough");
        assert_eq!(uncordon(&api.client(), "h1").await.unwrap(), Some(Cordon::None));
        assert_eq!(state(&api), (Value::Null, Value::Null));
        assert_eq!(uncordon(&api.client(), "h1").await.unwrap(), Some(Cordon::None));
        assert_eq!(api.changes().len(), 2);
        assert_eq!(api.get(NODE).unwrap()["spec"]["podCIDR"], "10.42.0.0/24");
    }

    #[tokio::test]
    async fn an_administrators_cordon_is_never_undone() {
        let api = api(json!({ "spec": { "unschedulable": true } }));
        assert_eq!(cordon(&api.client(), "h1", None, "leave").await.unwrap(), Cordon::Theirs);
        assert_eq!(uncordon(&api.client(), "h1").await.unwrap(), Some(Cordon::Theirs));
        assert!(api.changes().is_empty(), "{:?}", api.changes());
    }

    #[tokio::test]
    async fn what_it_is_cordoned_for_besides_goes_on() {
        let api = api(json!({ "spec": {} }));
        cordon(&api.client(), "h1", None, "h1 leaves the cluster").await.unwrap();
        assert_eq!(uncordon_for(&api.client(), "h1", None, "update").await.unwrap(), Some(Cordon::Ours));
        assert_eq!(uncordon_for(&api.client(), "h1", None, "h1 leaves the cluster").await.unwrap(), Some(Cordon::None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_namesake_is_left_alone() {
        let api = api(json!({ "metadata": { "uid": "u1" }, "spec": {} }));
        let client = api.client();
        assert_eq!(cordon(&client, "h1", Some("u9"), "update").await.unwrap_err().what, "there is no node h1");
        assert_eq!(uncordon_for(&client, "h1", Some("u9"), "update").await.unwrap(), None);
        assert!(api.changes().is_empty());
        // it comes between the look and the change
        let mut first = true;
        api.on(move |objects, asked| {
            if asked.method == "PATCH" && std::mem::take(&mut first) {
                objects.change(NODE, |n| n["metadata"]["uid"] = json!("u2"));
            }
            None
        });
        assert!(cordon(&client, "h1", Some("u1"), "update").await.is_err());
        assert_eq!(state(&api), (Value::Null, Value::Null));
        assert_eq!(cordon(&client, "h1", Some("u2"), "update").await.unwrap(), Cordon::Ours);
    }

    #[tokio::test]
    async fn who_uncordoned_in_between_is_followed_and_the_annotation_goes() {
        let api = api(json!({ "spec": {}, "metadata": { "annotations": { CORDON: "leave" } } }));
        assert_eq!(uncordon(&api.client(), "h1").await.unwrap(), Some(Cordon::None));
        assert_eq!(state(&api), (Value::Null, Value::Null));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_changed_in_between_is_looked_at_again() {
        let api = api(json!({ "spec": {} }));
        let mut first = true;
        api.on(move |objects, asked| {
            if asked.method == "PATCH" && std::mem::take(&mut first) {
                objects.change(NODE, |n| n["spec"]["unschedulable"] = json!(true));
            }
            None
        });
        assert_eq!(cordon(&api.client(), "h1", None, "leave").await.unwrap(), Cordon::Theirs, "somebody was faster");
        assert_eq!(state(&api), (json!(true), Value::Null));
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_is_away_for_a_moment_is_waited_for_and_one_that_refuses_is_not() {
        let api = api(json!({ "spec": {} }));
        let mut away = 3;
        api.on(move |_, _| {
            away -= 1;
            (away >= 0).then(|| crate::fake_api::status(503, "etcd has no leader"))
        });
        assert_eq!(cordon(&api.client(), "h1", None, "leave").await.unwrap(), Cordon::Ours);
        api.fail("GET", NODE, 403);
        assert_eq!(uncordon(&api.client(), "h1").await.unwrap_err().what, "cannot cordon or uncordon node h1: so it is told to");
        assert_eq!(uncordon(&api.client(), "h9").await.unwrap(), None);
        assert_eq!(cordon(&api.client(), "h9", None, "leave").await.unwrap_err().what, "there is no node h9");
    }
}
