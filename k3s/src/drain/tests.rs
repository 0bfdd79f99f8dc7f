use std::sync::{Arc, Mutex};

use node::Kind;
use serde_json::Value;

use super::*;
use crate::fake_api::{FakeApi, status};

const NODE: &str = "/api/v1/nodes/h1";

fn options() -> Options {
    Options { timeout: Duration::from_secs(60), rules: Rules::default(), why: "leave".into(), stop: CancellationToken::new() }
}

/// A node with a pod of each kind: `web-1` and `web-2` of a `ReplicaSet`, one of a `DaemonSet` and a static one.
fn api() -> FakeApi {
    let api = FakeApi::default();
    api.put(NODE, json!({ "spec": {} }));
    for name in ["web-1", "web-2"] {
        pod(&api, name, "ReplicaSet");
    }
    pod(&api, "net", "DaemonSet");
    pod(&api, "static", "Node");
    api.change(&path("static"), |p| p["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "x" }));
    pod(&api, "elsewhere", "ReplicaSet");
    api.change(&path("elsewhere"), |p| p["spec"]["nodeName"] = json!("h2"));
    api
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

fn pod(api: &FakeApi, name: &str, owner: &str) {
    let owners = json!([{ "apiVersion": "v1", "kind": owner, "name": "o", "uid": "o", "controller": true }]);
    let labels = json!({ "app": name.split('-').next() });
    let pod = json!({
        "metadata": { "ownerReferences": owners, "labels": labels },
        "spec": { "nodeName": "h1", "containers": [] },
        "status": { "phase": "Running" },
    });
    api.put(&path(name), pod);
}

fn bare(api: &FakeApi, name: &str) {
    pod(api, name, "ReplicaSet");
    api.change(&path(name), |p| p["metadata"]["ownerReferences"] = Value::Null);
}

/// Pods end `after` so many looks at them; a budget gives way after `refusals` evictions.
fn kubelet(api: &FakeApi, mut refusals: u32, mut after: u32) {
    api.on(move |objects, asked| {
        if asked.method == "GET" && asked.path == "/api/v1/pods" {
            after = after.saturating_sub(1);
            for name in ["web-1", "web-2", "bare", "late"] {
                if after == 0 && objects.get(&path(name)).is_some_and(|p| !p["metadata"]["deletionTimestamp"].is_null()) {
                    objects.remove(&path(name));
                }
            }
        }
        let pod = asked.path.strip_suffix("/eviction")?;
        if refusals > 0 {
            refusals -= 1;
            let (code, mut answer) = status(429, "Cannot evict pod as it would violate the pod's disruption budget.");
            answer["details"] = json!({ "causes": [{ "reason": "DisruptionBudget", "message": "The disruption budget web needs 2 healthy pods and has 2 currently" }] });
            return Some((code, answer));
        }
        let Some(found) = objects.get(pod) else { return Some(status(404, "not found")) };
        if asked.body["deleteOptions"]["preconditions"]["uid"] != found["metadata"]["uid"] {
            return Some(status(409, "the UID in the precondition does not match"));
        }
        objects.change(pod, |p| p["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
        Some((201, json!({ "kind": "Status", "status": "Success" })))
    });
}

fn budget(api: &FakeApi, version: &str, name: &str) {
    let pdb = json!({
        "spec": { "selector": { "matchLabels": { "app": "web" } }, "minAvailable": 2 },
        "status": { "currentHealthy": 2, "desiredHealthy": 2, "disruptionsAllowed": 0, "expectedPods": 2 },
    });
    api.put(&format!("/apis/policy/{version}/namespaces/default/poddisruptionbudgets/{name}"), pdb);
}

fn cordoned(api: &FakeApi) -> (bool, Value) {
    let node = api.get(NODE).unwrap();
    (node["spec"]["unschedulable"] == true, node["metadata"]["annotations"][CORDON].clone())
}

fn names<'a>(pods: impl IntoIterator<Item = &'a PodName>) -> Vec<&'a str> {
    pods.into_iter().map(|p| p.name.as_str()).collect()
}

/// Drains, and answers what was reported as well.
async fn drained(api: &FakeApi, options: &Options) -> (Result<Drained>, Vec<String>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let outcome = drain(&api.client(), "h1", options, |text| said.lock().unwrap().push(text.to_owned())).await;
    let said = said.lock().unwrap().clone();
    (outcome, said)
}

#[tokio::test(start_paused = true)]
async fn pods_go_and_those_of_daemonsets_and_static_ones_stay() {
    let api = api();
    kubelet(&api, 0, 4);
    let (outcome, said) = drained(&api, &options()).await;
    let done = outcome.unwrap();
    assert_eq!(names(&done.evicted), ["web-1", "web-2"]);
    assert_eq!(
        done.stay.iter().map(|(p, s)| (p.name.as_str(), *s)).collect::<Vec<_>>(),
        [("net", Stays::DaemonSet), ("static", Stays::Static)]
    );
    assert_eq!((done.cordon, cordoned(&api)), (Cordon::Ours, (true, json!("leave"))));
    assert!(api.get(&path("elsewhere")).is_some() && api.get(&path("web-1")).is_none());
    assert_eq!(
        said,
        [
            "default/web-1 was told to end; default/web-2 was told to end",
            "default/web-1 is ending (it may take 0 s); default/web-2 is ending (it may take 0 s)"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_gives_way_is_waited_for_in_growing_pauses() {
    let api = api();
    budget(&api, "v1", "web");
    kubelet(&api, 8, 1);
    let began = Instant::now();
    let (outcome, said) = drained(&api, &options()).await;
    assert_eq!(outcome.unwrap().evicted.len(), 2);
    // 1 + 2 + 4 + 8 s for each of the two
    assert!((15..18).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let kept = "default/web-1 is kept by PodDisruptionBudget default/web (2 healthy, 2 needed, 0 may go)";
    assert!(said[0].starts_with(kept), "{said:?}");
    let asked = api.changes().iter().filter(|c| c.ends_with("/web-1/eviction")).count();
    assert_eq!(asked, 5, "each refusal was seen");
    let budgets = api.asked().iter().filter(|a| *a == "GET /apis/policy/v1/poddisruptionbudgets").count();
    assert_eq!(budgets, 4, "once for all pods that were refused at the same time");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_behind_is_not_believed_that_a_node_is_empty() {
    let api = api();
    kubelet(&api, 0, 8);
    api.on(|_, asked| {
        let cached = asked.path == "/api/v1/pods" && asked.query.contains("resourceVersion=0");
        cached.then(|| (200, json!({ "metadata": {}, "items": [] })))
    });
    drained(&api, &options()).await.0.unwrap();
    assert!(api.get(&path("web-1")).is_none(), "it was waited for");
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_does_not_is_named_and_the_node_is_as_it_was() {
    for version in ["v1", "v1beta1"] {
        let api = api();
        budget(&api, version, "web");
        let absent = if version == "v1" { "/apis/policy/v1beta1/poddisruptionbudgets" } else { "/apis/policy/v1/poddisruptionbudgets" };
        api.fail("GET", absent, 404);
        kubelet(&api, u32::MAX, 1);
        let e = drained(&api, &options()).await.0.unwrap_err();
        insta::allow_duplicates! {
            insta::assert_snapshot!(e.what, @"h1 was not drained within 60 s: default/web-1 is kept by PodDisruptionBudget default/web (2 healthy, 2 needed, 0 may go); default/web-2 is kept by PodDisruptionBudget default/web (2 healthy, 2 needed, 0 may go)");
        }
        assert_eq!(e.kind, Kind::Refused);
        assert_eq!(cordoned(&api), (false, Value::Null));
    }
}

#[tokio::test(start_paused = true)]
async fn two_budgets_over_one_pod_are_both_named() {
    let api = api();
    budget(&api, "v1", "web");
    budget(&api, "v1", "other");
    api.on(|_, asked| {
        asked
            .path
            .ends_with("/eviction")
            .then(|| status(500, "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."))
    });
    let e = drained(&api, &options()).await.0.unwrap_err();
    assert!(
        e.what.contains("default/web-1 is covered by more than one budget, which allows no eviction: PodDisruptionBudget default/other (2"),
        "{}",
        e.what
    );
    assert_eq!(e.kind, Kind::Refused);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_end_is_named() {
    let api = api();
    kubelet(&api, 0, u32::MAX);
    api.change(&path("web-2"), |p| p["metadata"]["finalizers"] = json!(["example.com/backup"]));
    let e = drained(&api, &options()).await.0.unwrap_err();
    insta::assert_snapshot!(e.what, @"h1 was not drained within 60 s: default/web-1 is ending (it may take 0 s); default/web-2 is ending, and kept by its finalizer example.com/backup");
    assert_eq!((e.kind, cordoned(&api)), (Kind::Failed, (false, Value::Null)));
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_controller_is_refused_before_anything_is_touched() {
    let api = api();
    bare(&api, "bare");
    kubelet(&api, 0, 1);
    let e = drained(&api, &options()).await.0.unwrap_err();
    insta::assert_snapshot!(e.what, @"pods on h1 have no controller that would start them elsewhere: default/bare");
    assert_eq!((e.kind, api.changes()), (Kind::Refused, vec![]));
    let done = drained(&api, &Options { rules: Rules { force: true, ..Rules::default() }, ..options() }).await.0.unwrap();
    assert_eq!(names(&done.evicted), ["bare", "web-1", "web-2"]);
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_cordon_stays_however_it_ends() {
    for refusals in [0, u32::MAX] {
        let api = api();
        api.change(NODE, |n| n["spec"]["unschedulable"] = json!(true));
        kubelet(&api, refusals, 1);
        let outcome = drained(&api, &options()).await.0;
        assert_eq!(outcome.is_ok(), refusals == 0);
        assert!(outcome.is_err() || outcome.unwrap().cordon == Cordon::Theirs);
        assert_eq!(cordoned(&api), (true, Value::Null));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cordon_that_a_crashed_run_left_is_taken_for_our_own() {
    let api = api();
    api.change(NODE, |n| {
        n["spec"]["unschedulable"] = json!(true);
        n["metadata"]["annotations"] = json!({ CORDON: "upgrade" });
    });
    kubelet(&api, u32::MAX, 1);
    drained(&api, &options()).await.0.unwrap_err();
    assert_eq!(cordoned(&api), (false, Value::Null));
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_it_gets_the_node_back_as_it_was() {
    let api = api();
    kubelet(&api, u32::MAX, 1);
    let options = options();
    let stop = options.stop.clone();
    let (outcome, ()) = tokio::join!(drained(&api, &options), async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        stop.cancel();
    });
    let e = outcome.0.unwrap_err();
    assert_eq!((e.what.as_str(), cordoned(&api)), ("stopped while h1 was drained", (false, Value::Null)));
}

#[tokio::test(start_paused = true)]
async fn an_api_that_is_away_for_a_while_is_waited_for() {
    let api = api();
    kubelet(&api, 0, 1);
    let mut looks = 0;
    api.on(move |_, asked| {
        looks += u32::from(asked.path == "/api/v1/pods");
        (2..20).contains(&looks).then(|| status(503, "no leader"))
    });
    let (outcome, said) = drained(&api, &options()).await;
    outcome.unwrap();
    assert!(said.iter().any(|s| s == "the API does not answer: no leader"), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stays_cordoned_for_want_of_an_api_is_said_so() {
    let api = api();
    let mut cordoned = false;
    api.on(move |_, asked| {
        let away = cordoned;
        cordoned |= asked.method == "PATCH";
        away.then(|| status(503, "no leader"))
    });
    let e = drained(&api, &options()).await.0.unwrap_err();
    insta::assert_snapshot!(e.what, @"h1 was not drained within 60 s: the API does not answer: no leader; and it stays cordoned: cannot cordon or uncordon node h1: no leader");
}

#[tokio::test(start_paused = true)]
async fn a_late_pod_goes_too_unless_it_would_come_again_and_again() {
    for tolerates in [false, true] {
        let api = api();
        kubelet(&api, 0, 3);
        let mut looks = 0;
        let other = api.clone();
        pod(&other, "late", "ReplicaSet");
        let mut late = other.get(&path("late")).unwrap();
        other.remove(&path("late"));
        late["spec"]["tolerations"] = if tolerates { json!([{ "operator": "Exists" }]) } else { json!([]) };
        api.on(move |objects, asked| {
            looks += u32::from(asked.path == "/api/v1/pods");
            if looks == 3 && asked.path == "/api/v1/pods" {
                objects.put(&path("late"), late.clone());
            }
            None
        });
        let done = drained(&api, &options()).await.0.unwrap();
        assert_eq!(names(&done.evicted).contains(&"late"), !tolerates);
        assert_eq!(done.stay.iter().any(|(p, s)| p.name == "late" && *s == Stays::Tolerates), tolerates);
    }
}

#[tokio::test(start_paused = true)]
async fn a_namesake_that_came_since_is_not_evicted() {
    let api = api();
    kubelet(&api, 0, 1);
    let mut moved = false;
    api.on(move |objects, asked| {
        if asked.path.ends_with("/web-1/eviction") && !std::mem::replace(&mut moved, true) {
            // a StatefulSet's pod of the same name, on another node by now
            let mut again = objects.remove(&path("web-1")).unwrap();
            again["metadata"]["uid"] = json!("another");
            again["spec"]["nodeName"] = json!("h2");
            objects.put(&path("web-1"), again);
        }
        None
    });
    let done = drained(&api, &options()).await.0.unwrap();
    assert_eq!(names(&done.evicted), ["web-2"]);
    assert!(api.get(&path("web-1")).unwrap()["metadata"]["deletionTimestamp"].is_null());
}

#[tokio::test(start_paused = true)]
async fn a_denied_eviction_is_not_repeated_and_an_unknown_node_is_said_to_be() {
    let api = api();
    api.on(|_, asked| asked.path.ends_with("/eviction").then(|| status(400, "admission webhook \"w\" denied the request")));
    let e = drained(&api, &options()).await.0.unwrap_err();
    assert_eq!(e.what, "default/web-1 cannot be evicted: admission webhook \"w\" denied the request");
    assert_eq!(cordoned(&api), (false, Value::Null));
    let e = drain(&api.client(), "h9", &options(), |_| ()).await.unwrap_err();
    assert_eq!(e.what, "there is no node h9");
}

#[tokio::test(start_paused = true)]
async fn kubectls_options_reach_the_api() {
    let (api, bodies) = (api(), Arc::new(Mutex::new(Vec::new())));
    kubelet(&api, 0, 1);
    let seen = Arc::clone(&bodies);
    api.on(move |_, asked| {
        let selects = asked.path == "/api/v1/pods" && asked.query.contains("labelSelector=app%3Dweb");
        let tells = ["gracePeriodSeconds", "preconditions"].iter().any(|k| !asked.body[k].is_null()) || asked.path.ends_with("/eviction");
        if selects || tells {
            seen.lock().unwrap().push(format!("{} {} {}", asked.method, asked.path, asked.body));
        }
        None
    });
    let rules = Rules { grace_period_seconds: Some(5), pod_selector: Some("app=web".into()), ..Rules::default() };
    drained(&api, &Options { rules, ..options() }).await.0.unwrap();
    let said = std::mem::take(&mut *bodies.lock().unwrap()).join("\n");
    assert!(said.contains("GET /api/v1/pods") && said.contains(r#""gracePeriodSeconds":5"#), "{said}");

    let api = self::api();
    budget(&api, "v1", "web");
    kubelet(&api, u32::MAX, 1);
    let rules = Rules { disable_eviction: true, ..Rules::default() };
    drained(&api, &Options { rules, ..options() }).await.0.unwrap();
    assert!(api.changes().contains(&format!("DELETE {}", path("web-1"))), "{:?}", api.changes());
    assert!(api.get(&path("web-1")).is_none(), "past its budget");
}

#[tokio::test]
async fn obstacles_are_known_before_anything_is_touched() {
    let api = api();
    let free = obstacles(&api.client(), "h1", &Rules::default()).await.unwrap();
    assert_eq!(free, Obstacles { left: 2, ..Obstacles::default() });
    budget(&api, "v1", "web");
    bare(&api, "bare");
    let found = obstacles(&api.client(), "h1", &Rules::default()).await.unwrap();
    assert_eq!(found.blocked, ["default/bare has no controller that would start it elsewhere"]);
    assert_eq!(found.kept[0], "default/web-1 is kept by PodDisruptionBudget default/web (2 healthy, 2 needed, 0 may go)");
    assert_eq!((found.kept.len(), api.changes()), (2, vec![]));
    let past = Rules { disable_eviction: true, force: true, ..Rules::default() };
    assert_eq!(obstacles(&api.client(), "h1", &past).await.unwrap(), Obstacles { left: 3, ..Obstacles::default() });
}

#[test]
fn what_is_in_an_emptydir_is_said_and_long_lists_are_cut() {
    let names: Vec<String> = (0..8).map(|i| format!("n/p{i}")).collect();
    assert_eq!(few(&names), "n/p0; n/p1; n/p2; n/p3; n/p4; and 3 more");
}

#[test]
fn pauses_grow_to_ten_seconds_and_heed_the_api() {
    assert_eq!((1..7).map(|n| pause(n, 0).as_secs()).collect::<Vec<_>>(), [1, 2, 4, 8, 10, 10]);
    assert_eq!(pause(1, 20).as_secs(), 20);
    assert_eq!(pause(u32::MAX, u32::MAX).as_secs(), 60);
}
