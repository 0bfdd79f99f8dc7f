use serde_json::json;

use super::*;

const NOW: &str = "2026-11-21T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// A node, and what its agent has reported, if it has.
struct Host {
    name: &'static str,
    labels: BTreeMap<String, String>,
    update: Option<NodeUpdate>,
}

fn host(name: &'static str, labels: &[(&str, &str)], report: impl Into<serde_json::Value>) -> Host {
    let report = report.into();
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let update = (!report.is_null()).then(|| {
        let mut status = json!({ "agentVersion": "1", "reportedAt": NOW, "kernel": "6.1.0", "check": "" });
        status.as_object_mut().unwrap().extend(report.as_object().unwrap().clone());
        let spec = json!({ "stage": "stable", "policy": "auto", "check": "" });
        serde_json::from_value(json!({
            "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "NodeUpdate", "metadata": { "name": name }, "spec": spec, "status": status,
        }))
        .unwrap()
    });
    Host { name, labels, update }
}

fn nodes(hosts: &[Host]) -> Vec<Node<'_>> {
    hosts.iter().map(|h| Node { name: h.name, labels: &h.labels, update: h.update.as_ref() }).collect()
}

fn spec(spec: serde_json::Value) -> UpdateManagerSpec {
    serde_json::from_value(spec).unwrap()
}

fn packages(since: &[(&str, &str)]) -> serde_json::Value {
    let available: Vec<_> = since.iter().map(|(name, since)| json!({ "name": name, "since": since })).collect();
    json!({ "checkedAt": NOW, "available": available })
}

/// A line for each node, as the status has it.
fn lines(spec: Option<&UpdateManagerSpec>, hosts: &[Host]) -> String {
    let nodes = nodes(hosts);
    let line = |status: NodeStatus| {
        let json = serde_json::to_value(&status).unwrap();
        format!("{} {} {} {} {}", status.id, status.kernel.unwrap_or_default(), json["stageName"], json["readyKernel"], json["rpmPackages"])
    };
    statuses(spec, &nodes, &wanted(spec, None, &nodes), now()).into_iter().map(line).collect::<Vec<_>>().join("\n")
}

const POLICY: &str = "maintenance.virtuozzo.io/auto-updates-policy";
const SUSPENDED: &str = "maintenance.virtuozzo.io/suspend";

#[test]
fn every_state_and_its_reason() {
    let young = packages(&[("bash-5-1.x86_64", "2026-11-20T00:00:00Z"), ("vim-9-1.x86_64", "2026-11-20T00:00:00Z")]);
    let old = packages(&[("bash-5-1.x86_64", "2026-10-01T00:00:00Z"), ("vim-1:9-1.x86_64", "2026-10-01T00:00:00Z")]);
    let patch = json!({ "checkedAt": NOW, "available": [{ "name": "123-4-r5", "since": "2026-10-01T00:00:00Z" }] });
    let none = json!({ "checkedAt": NOW, "available": [] });
    let all = |more: serde_json::Value| {
        let mut report = json!({ "packages": none, "patches": none });
        report.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        report
    };
    let hosts = vec![
        host("current", &[], all(json!({}))),
        host("young", &[], all(json!({ "packages": young }))),
        host("young-fast", &[(POLICY, "fast")], all(json!({ "packages": young }))),
        host("old", &[], all(json!({ "packages": old }))),
        host("patch", &[], all(json!({ "patches": patch }))),
        host("no-patches", &[], json!({ "packages": none })),
        host("no-packages", &[], json!({ "patches": none })),
        host("unlooked", &[], all(json!({ "packages": { "available": [] } }))),
        host("failed", &[], all(json!({ "packages": { "checkedAt": NOW, "error": "dnf: exit code 1", "available": [] } }))),
        host("silent", &[], all(json!({ "reportedAt": "2026-11-20T10:59:59Z" }))),
        host("new", &[], serde_json::Value::Null),
        host("labelled", &[(SUSPENDED, "")], all(json!({ "packages": old, "storageServices": ["vstorage-csd.service"] }))),
        host("storage", &[], all(json!({ "storageServices": ["vstorage-csd.service"] }))),
        host("nonsense", &[(POLICY, "fats")], all(json!({}))),
    ];
    let open = spec(json!({ "bannedPackages": ["vim-9-1.x86_64"] }));
    insta::assert_snapshot!(lines(Some(&open), &hosts), @r#"
    current 6.1.0 "stable" {"status":"UpToDate"} {"status":"UpToDate"}
    failed 6.1.0 "stable" {"status":"UpToDate"} {"reason":"CheckFailed","status":"Unknown"}
    labelled 6.1.0 "stable" {"reason":"ManuallySuspended","status":"Suspended"} {"numberOfPackagesToUpdate":1,"reason":"ManuallySuspended","status":"Suspended"}
    new  "slow" {"reason":"NotReported","status":"Unknown"} {"reason":"NotReported","status":"Unknown"}
    no-packages 6.1.0 "stable" {"status":"UpToDate"} {"reason":"NotSupported","status":"Unknown"}
    no-patches 6.1.0 "stable" {"reason":"NotSupported","status":"UpToDate"} {"status":"UpToDate"}
    nonsense 6.1.0 "stable" {"reason":"InvalidPolicy","status":"Suspended"} {"reason":"InvalidPolicy","status":"Suspended"}
    old 6.1.0 "stable" {"status":"UpToDate"} {"numberOfPackagesToUpdate":1,"status":"Pending"}
    patch 6.1.0 "stable" {"status":"Pending"} {"status":"UpToDate"}
    silent 6.1.0 "stable" {"reason":"AgentSilent","status":"Unknown"} {"reason":"AgentSilent","status":"Unknown"}
    storage 6.1.0 "stable" {"reason":"StorageNode","status":"Suspended"} {"reason":"StorageNode","status":"Suspended"}
    unlooked 6.1.0 "stable" {"status":"UpToDate"} {"reason":"NotReported","status":"Unknown"}
    young 6.1.0 "stable" {"status":"UpToDate"} {"numberOfPackagesToUpdate":1,"status":"UpToDate"}
    young-fast 6.1.0 "fast" {"status":"UpToDate"} {"numberOfPackagesToUpdate":1,"status":"Pending"}
    "#);
    let closed = spec(json!({ "maintenanceWindows": [{ "schedule": "0 1 * * *", "duration": "1h" }], "bannedPatches": ["123-4-r5"] }));
    insta::assert_snapshot!(lines(Some(&closed), &hosts[2..5]), @r#"
    old 6.1.0 "stable" {"status":"UpToDate"} {"numberOfPackagesToUpdate":2,"reason":"WindowClosed","status":"Pending"}
    patch 6.1.0 "stable" {"status":"UpToDate"} {"status":"UpToDate"}
    young-fast 6.1.0 "fast" {"status":"UpToDate"} {"numberOfPackagesToUpdate":2,"reason":"WindowClosed","status":"Pending"}
    "#);
    insta::assert_snapshot!(lines(Some(&spec(json!({ "suspend": true }))), &hosts[10..13]), @r#"
    labelled 6.1.0 "stable" {"reason":"ManuallySuspended","status":"Suspended"} {"numberOfPackagesToUpdate":2,"reason":"ManuallySuspended","status":"Suspended"}
    new  "slow" {"reason":"ClusterSuspended","status":"Suspended"} {"reason":"ClusterSuspended","status":"Suspended"}
    storage 6.1.0 "stable" {"reason":"ClusterSuspended","status":"Suspended"} {"reason":"ClusterSuspended","status":"Suspended"}
    "#);
    insta::assert_snapshot!(lines(None, &hosts[..2]), @r#"
    current 6.1.0 "stable" {"reason":"InvalidSpec","status":"Suspended"} {"reason":"InvalidSpec","status":"Suspended"}
    young 6.1.0 "stable" {"reason":"InvalidSpec","status":"Suspended"} {"numberOfPackagesToUpdate":2,"reason":"InvalidSpec","status":"Suspended"}
    "#);

    let nodes = nodes(&hosts);
    let statuses = statuses(Some(&open), &nodes, &wanted(Some(&open), None, &nodes), now());
    let summary = summary(&statuses);
    assert_eq!((summary.nodes, summary.up_to_date, summary.pending, summary.suspended, summary.unknown), (14, 3, 3, 3, 5));
}

#[test]
fn all_reasons_the_node_s_own_first() {
    let hosts = [host("h1", &[(SUSPENDED, "x"), (POLICY, "no"), ("disk", "hdd")], serde_json::Value::Null)];
    let spec = spec(json!({ "suspend": true, "storageNodeSelector": { "disk": "hdd" } }));
    let all = [Reason::ManuallySuspended, Reason::InvalidPolicy, Reason::ClusterSuspended, Reason::StorageNode];
    assert_eq!(held_by(Some(&spec), &nodes(&hosts)[0]), all);
}

#[test]
fn storage_by_service_by_label_or_not_at_all() {
    let service = json!({ "storageServices": ["vstorage-mdsd.service"] });
    let hosts =
        [host("service", &[], service), host("label", &[("a", "1"), ("b", "2")], json!({})), host("half", &[("a", "1")], json!({}))];
    let held = |value| {
        let spec = spec(value);
        nodes(&hosts).iter().filter(|n| !held_by(Some(&spec), n).is_empty()).map(|n| n.name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(held(json!({})), "service");
    assert_eq!(held(json!({ "storageNodeSelector": { "a": "1", "b": "2" } })), "label");
    assert_eq!(held(json!({ "suspendStorageNodes": false })), "");
}

#[test]
fn a_ban_or_a_request_makes_nodes_look_again() {
    let hosts = [host("h1", &[], json!({}))];
    let nodes = nodes(&hosts);
    let check = |value, requested| wanted(Some(&spec(value)), requested, &nodes)["h1"].check.clone();
    let plain = check(json!({}), None);
    assert_eq!(plain, check(json!({ "suspend": true }), None));
    let mut others = vec![
        check(json!({ "bannedPackages": ["a-1-1.noarch"] }), None),
        check(json!({ "bannedPatches": ["1-2-r3"] }), None),
        check(json!({}), Some(NOW)),
        plain,
    ];
    others.sort();
    others.dedup();
    assert_eq!(others.len(), 4);
    assert_eq!(wanted(None, None, &nodes)["h1"].check, "", "kept as it was");
}

#[test]
fn auto_is_kept_and_what_was_asked_for_is_not() {
    let mut hosts = [host("h1", &[], json!({})), host("h2", &[], json!({}))];
    hosts[1].update.as_mut().unwrap().spec.policy = "slow".parse().unwrap();
    hosts[1].update.as_mut().unwrap().spec.stage = Stage::Slow;
    let nodes = nodes(&hosts);
    let wanted = wanted(None, None, &nodes);
    assert_eq!(wanted["h1"].stage, Stage::Stable, "kept");
    // alone, it would be stable: h1's place is taken, so it is next in turn
    assert_eq!((wanted["h2"].stage, wanted["h2"].policy), (Stage::Slow, Policy::Auto));
}

#[test]
fn conditions_say_who_is_silent_and_keep_their_time() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let hosts = names.map(|name| host(name, &[], serde_json::Value::Null));
    let nodes = nodes(&hosts);
    let said = |conditions: &[Condition]| {
        let line = |c: &Condition| format!("{} {} {} {} {:?}", c.type_, c.status, c.reason, c.last_transition_time.0, c.message);
        conditions.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    let first = conditions(&[], None, &nodes, Some(1), now());
    let later = now().checked_add(SignedDuration::from_hours(1)).unwrap();
    let second = conditions(&first, Some("spec.maintenanceWindows[0].timeZone: no such zone"), &nodes[..2], Some(2), later);
    insta::assert_snapshot!(format!("{}\n\n{}", said(&first), said(&second)), @r#"
    SpecValid True Understood 2026-11-21T12:00:00Z "the spec is understood"
    AgentsReporting False SomeSilent 2026-11-21T12:00:00Z "no report from a, b, c, d, e, f, g, h, i, j and 2 more"

    SpecValid False NotUnderstood 2026-11-21T13:00:00Z "spec.maintenanceWindows[0].timeZone: no such zone; nothing is started until that is mended"
    AgentsReporting False SomeSilent 2026-11-21T12:00:00Z "no report from a, b"
    "#);
}
