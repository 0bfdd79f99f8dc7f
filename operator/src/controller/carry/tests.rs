use std::cell::Cell;

use serde_json::{Value, json};
use updates::decide::Cordon;

use super::super::view::NodeView;
use super::*;
use crate::fake_api::{FakeApi, status};

const OURS: &str = "/apis/maintenance.virtuozzo.io/v1/namespaces/vz-maintenance-operator";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/vz-maintenance-operator/leases";

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

fn transaction(phase: &str) -> Transaction {
    let at = now();
    let more = json!({ "id": "0123456789abcdef", "packages": ["bash-5-1.noarch"], "reboot": "never", "startedAt": at, "since": at, "phase": phase });
    serde_json::from_value(more).unwrap()
}

fn update_path(node: &str) -> String {
    format!("{OURS}/nodeupdates/{node}")
}

fn node_path(node: &str) -> String {
    format!("/api/v1/nodes/{node}")
}

/// An API and what watches saw of it: nodes, each with the transaction that it is in.
fn cluster(nodes: &[(&str, Option<Transaction>)], spec: &Value) -> (FakeApi, Cluster) {
    let api = FakeApi::default();
    let mut all = Cluster { manager: None, nodes: BTreeMap::new(), updates: BTreeMap::new() };
    api.put(&format!("{OURS}/updatemanagers/default"), json!({ "spec": spec }));
    let manager = api.get(&format!("{OURS}/updatemanagers/default")).unwrap();
    let mut object: Value = json!({ "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "UpdateManager" });
    object.as_object_mut().unwrap().extend(manager.as_object().unwrap().clone());
    all.manager = Some(Arc::new(super::super::view::ManagerView::of(&serde_json::from_value(object).unwrap())));
    for (name, transaction) in nodes {
        let uid = format!("uid-{name}");
        api.put(&node_path(name), json!({ "metadata": { "uid": uid }, "spec": {} }));
        let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid }]);
        let mut spec = json!({ "stage": "fast", "policy": "fast", "check": "a" });
        if let Some(transaction) = transaction {
            spec["transaction"] = json!(transaction);
        }
        let update = json!({ "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "NodeUpdate", "metadata": { "ownerReferences": owner }, "spec": spec });
        api.put(&update_path(name), update);
        all.updates.insert((*name).to_owned(), Arc::new(serde_json::from_value(api.get(&update_path(name)).unwrap()).unwrap()));
        let node = NodeView {
            uid,
            labels: BTreeMap::new(),
            ready: true,
            server: false,
            etcd: false,
            address: None,
            cordon: Cordon::No,
            run_requested: None,
        };
        all.nodes.insert((*name).to_owned(), Arc::new(node));
    }
    (api, all)
}

fn decided(nodes: impl IntoIterator<Item = (String, Action)>) -> Decided {
    let nodes = nodes.into_iter().map(|(name, action)| (name, Next::Act(action))).collect();
    Decided { nodes, failed: vec![], unlock: vec![], attribution: None }
}

fn carry(api: &FakeApi) -> Carry {
    let clients = Clients::of_test(api.client());
    Carry {
        clients,
        http: web::tests::web(),
        looks: BTreeMap::new(),
        quiet: Quiet::default(),
        drains: BTreeMap::new(),
        etcd: None,
        alerts: None,
        telling: JoinSet::new(),
    }
}

fn start(slot: u32) -> Action {
    Action::Start { slot, transaction: Box::new(transaction("Checking")) }
}

fn phase(api: &FakeApi, node: &str) -> Value {
    api.get(&update_path(node)).unwrap()["spec"]["transaction"]["phase"].clone()
}

#[tokio::test]
async fn a_ban_that_is_refused_keeps_no_other_node_from_its_end() {
    let (api, cluster) = cluster(&[("h1", Some(transaction("Installing"))), ("h2", Some(transaction("Releasing")))], &json!({}));
    api.change(&node_path("h2"), |node| {
        node["spec"]["unschedulable"] = json!(true);
        node["metadata"]["annotations"] = json!({ k3s::CORDON: CORDONED_FOR });
    });
    let refuses = |asked: &crate::fake_api::Asked| asked.method == "PATCH" && asked.path.ends_with("/updatemanagers/default");
    api.on(move |_, asked| refuses(asked).then(|| status(422, "Too long: must have at most 262144 bytes")));
    let mut decided = decided([("h2".to_owned(), Action::Uncordon)]);
    let bans = vec!["bash-5-1.noarch".parse().unwrap()];
    decided.attribution = Some(Attribution { bans, suspects: vec![], node: "h1".into(), because: "it crashed".into() });
    let acted = carry(&api).act(&cluster, &[], &decided, now(), || ()).await;
    assert!(acted.failed.unwrap().what.contains("262144"), "it is said");
    assert!(!acted.learnt && acted.banned.is_none());
    assert_eq!(api.get(&node_path("h2")).unwrap()["spec"]["unschedulable"], Value::Null);
}

#[tokio::test]
async fn what_was_learnt_is_written_before_anything_else_is_done() {
    let (api, cluster) = cluster(&[("h1", Some(transaction("Installing"))), ("h2", None)], &json!({}));
    let mut decided = decided([("h2".to_owned(), start(0))]);
    let bans = vec!["bash-5-1.noarch".parse().unwrap()];
    decided.attribution = Some(Attribution { bans, suspects: vec![], node: "h1".into(), because: "it crashed".into() });
    api.put(&format!("{OURS}/updatemanagers/default/status"), json!({}));
    let acted = carry(&api).act(&cluster, &[], &decided, now(), || ()).await;
    assert!(acted.learnt && acted.failed.is_none(), "{:?}", acted.failed);
    assert_eq!(acted.banned.unwrap(), "banned after h1: bash-5-1.noarch (it crashed)");
    assert_eq!(phase(&api, "h2"), Value::Null);
}

#[tokio::test]
async fn marks_that_are_refused_keep_no_update_from_its_start_nor_from_its_end() {
    let spec = json!({ "marksBefore": { "labels": { "a": "b" } }, "marksAfter": { "annotations": { "c": "d" } } });
    let (api, cluster) = cluster(&[("h1", None), ("h2", Some(transaction("Releasing")))], &spec);
    api.on(|_, asked| (asked.method == "PATCH" && asked.path.starts_with("/api/v1/nodes/")).then(|| status(422, "not these")));
    let decided = decided([("h1".to_owned(), start(0)), ("h2".to_owned(), Action::Finish { retry: None })]);
    let acted = carry(&api).act(&cluster, &[], &decided, now(), || ()).await;
    assert!(acted.failed.is_none(), "{:?}", acted.failed);
    assert_eq!((phase(&api, "h1"), phase(&api, "h2")), (json!("Checking"), Value::Null));
    let mut notes: Vec<_> = acted.happenings.iter().map(|h| h.note.as_str()).collect();
    notes.sort_unstable();
    assert_eq!(
        notes,
        [
            "the update starts: 1 package; it could not be marked: not these",
            "updated: 1 package, in 0 s; it could not be marked: not these",
        ]
    );
}

#[tokio::test]
async fn many_start_with_one_look_at_the_leases_and_some_at_a_time() {
    let names: Vec<String> = (0..40).map(|n| format!("n{n:02}")).collect();
    let nodes: Vec<_> = names.iter().map(|n| (n.as_str(), None)).collect();
    let (api, cluster) = cluster(&nodes, &json!({}));
    let decided = decided(names.iter().zip(0..).map(|(name, slot)| (name.clone(), start(slot))));
    let beats = Cell::new(0);
    let acted = carry(&api).act(&cluster, &[], &decided, now(), || beats.set(beats.get() + 1)).await;
    assert!(acted.failed.is_none(), "{:?}", acted.failed);
    assert_eq!((acted.happenings.len(), beats.get()), (STARTS, STARTS));
    assert_eq!(api.asked().iter().filter(|asked| **asked == format!("GET {LEASES}")).count(), 1);
    let started = names.iter().filter(|name| phase(&api, name) == "Checking").count();
    assert_eq!((started, api.paths().iter().filter(|path| path.starts_with(LEASES)).count()), (STARTS, STARTS));
}

#[tokio::test]
async fn of_two_controllers_one_starts() {
    let (api, cluster) = cluster(&[("h1", None), ("h2", None)], &json!({}));
    let decided = decided([("h1".to_owned(), start(0)), ("h2".to_owned(), start(1))]);
    let lease = |name: &str| format!("{LEASES}/smartup-update-{name}");
    // its lease is seen
    let other = json!({ "metadata": { "labels": { LABEL: "true" } }, "spec": { "holderIdentity": "h9" } });
    api.put(&lease("5"), other.clone());
    assert!(carry(&api).act(&cluster, &[], &decided, now(), || ()).await.happenings.is_empty());
    api.remove(&lease("5"));
    // it comes between the look and the first lease
    let mut first = true;
    api.on(move |objects, asked| {
        if asked.method == "POST" && asked.path == LEASES && std::mem::take(&mut first) {
            objects.put(&lease("0"), other.clone());
        }
        None
    });
    let acted = carry(&api).act(&cluster, &[], &decided, now(), || ()).await;
    assert!(acted.happenings.is_empty() && acted.failed.is_none(), "{:?}", acted.failed);
    assert_eq!((phase(&api, "h1"), phase(&api, "h2")), (Value::Null, Value::Null));
    assert_eq!(api.paths().iter().filter(|path| path.starts_with(LEASES)).count(), 1, "nor is the second taken");
}

#[tokio::test]
async fn a_namesake_is_not_touched() {
    let (api, cluster) = cluster(&[("h1", Some(transaction("Draining")))], &json!({}));
    api.change(&node_path("h1"), |node| node["metadata"]["uid"] = json!("another"));
    let acted = carry(&api).act(&cluster, &[], &decided([("h1".to_owned(), Action::Cordon)]), now(), || ()).await;
    assert!(acted.failed.is_some() && !api.changes().iter().any(|c| c.starts_with("PATCH")), "{:?}", api.changes());
}

fn notified(api: &FakeApi, url: &str) {
    let value = serde_json::to_value(k8s_openapi::ByteString(url.as_bytes().to_vec())).unwrap();
    api.put("/api/v1/namespaces/vz-maintenance-operator/secrets/smartup-notify", json!({ "data": { "url": value } }));
}

#[tokio::test]
async fn who_ends_lets_its_notifications_arrive() {
    let (url, asked) = web::tests::served(vec![(200, String::new())]).await;
    let (api, cluster) = cluster(&[("h1", None)], &json!({ "notify": {} }));
    notified(&api, &url);
    let mut carry = carry(&api);
    carry.tell(&cluster, &story::started("h1", &transaction("Checking")));
    carry.ends().await;
    assert!(asked.lock().unwrap()[0].contains("smart updates: h1: the update starts: 1 package"));
}

#[tokio::test]
async fn prometheus_is_asked_until_the_node_is_touched_and_at_the_end() {
    let quiet = json!({ "status": "success", "data": { "resultType": "vector", "result": [] } }).to_string();
    for (phase, asks) in [
        ("Checking", 1),
        ("Downloading", 1),
        ("HandingOver", 0),
        ("Draining", 0),
        ("Installing", 0),
        ("Rebooting", 0),
        ("Verifying", 1),
        ("Broken", 1),
        ("Releasing", 0),
    ] {
        let (url, asked) = web::tests::served(vec![(200, quiet.clone()), (200, quiet.clone())]).await;
        let (api, cluster) = cluster(&[("h1", Some(transaction(phase)))], &json!({ "blockingAlerts": { "prometheusUrl": url } }));
        let slots = [Slot { number: 0, node: "h1".into(), uid: "uid-h1".into() }];
        let mut carry = carry(&api);
        for _ in 0..3 {
            carry.decide(&cluster, &slots, now()).await;
        }
        assert_eq!(asked.lock().unwrap().len(), asks, "{phase}");
    }
}
