use serde_json::json;

use super::super::reports::PutOff;
use super::*;

fn now() -> Zoned {
    "2026-11-21T14:00:00+01:00[Europe/Berlin]".parse().unwrap()
}

fn node(id: &str, patches: &Value, packages: &Value) -> Value {
    json!({ "id": id, "kernel": "6.1.0-40-amd64", "stageName": "slow", "readyKernel": patches, "rpmPackages": packages })
}

fn report(minutes: i64, errors: &[&str]) -> Report {
    let at = now().timestamp() - jiff::SignedDuration::from_mins(minutes);
    Report { at, errors: errors.iter().map(|e| (*e).to_owned()).collect(), last_update: None, phase: None, put_off: None }
}

#[test]
fn every_reason_in_words() {
    let fine = json!({ "status": "UpToDate" });
    let none = json!({ "status": "UpToDate", "reason": "NotSupported" });
    let due = json!({ "status": "Pending", "reason": "WindowClosed", "numberOfPackagesToUpdate": 3 });
    let held = |reason: &str| json!({ "status": "Suspended", "reason": reason });
    let unknown = |reason: &str| json!({ "status": "Unknown", "reason": reason });
    let nodes = [
        node("n1", &fine, &fine),
        node("n2", &none, &due),
        node("n3", &held("ManuallySuspended"), &held("ManuallySuspended")),
        node("n4", &held("StorageNode"), &json!({ "status": "Suspended", "reason": "StorageNode", "numberOfPackagesToUpdate": 12 })),
        node("n5", &fine, &unknown("CheckFailed")),
        node("n6", &unknown("AgentSilent"), &unknown("AgentSilent")),
        json!({ "id": "n7", "readyKernel": { "status": "Unknown", "reason": "NotReported" }, "rpmPackages": unknown("NotReported") }),
        node("n8", &json!({ "status": "Installing" }), &json!({ "status": "Held", "reason": "WaitsForItsTurn" })),
        json!({ "id": "n9", "stageName": "weekly", "rpmPackages": 7 }),
        node("n10", &held("InvalidPolicy"), &held("InvalidSpec")),
        node("n11", &fine, &json!({ "status": "UpToDate", "numberOfPackagesToUpdate": 1 })),
    ];
    let manager = json!({
        "spec": { "maintenanceWindows": [
            { "schedule": "0 1 * * 1-5", "duration": "1h30m" }, { "schedule": "0 22 * * 0", "duration": "1h" }, { "schedule": "@daily" },
        ] },
        "status": { "nodes": nodes, "conditions": [
            { "type": "SpecValid", "status": "False", "message": "@daily: is not a schedule" },
            { "type": "AgentsReporting", "status": "False", "message": "no report from n6, n7" },
            { "type": "Degraded", "status": "False" },
        ] },
    });
    let reports =
        [("n1", report(0, &[])), ("n2", report(12, &[])), ("n5", report(130, &["dnf: no route to host"])), ("n6", report(4000, &[]))];
    let reports = reports.map(|(name, report)| (name.to_owned(), report)).into();
    insta::assert_snapshot!(in_words(&manager, &reports, &now()), @r#"
    NODE   STAGE    KERNEL           LIVE PATCHES   PACKAGES                  REPORTED     NEXT WINDOW                       WHY NOT
    n1     slow     6.1.0-40-amd64   up to date     up to date                now          Sun 11-22 23:00 CET (22:00 UTC)   -
    n2     slow     6.1.0-40-amd64   none here      due, 3 available          12 min ago   Sun 11-22 23:00 CET (22:00 UTC)   no window is open
    n3     slow     6.1.0-40-amd64   suspended      suspended                 -            -                                 suspended by its label
    n4     slow     6.1.0-40-amd64   suspended      suspended, 12 available   -            -                                 serves storage
    n5     slow     6.1.0-40-amd64   up to date     unknown                   2 h ago      Sun 11-22 23:00 CET (22:00 UTC)   looking for updates failed: dnf: no route to host
    n6     slow     6.1.0-40-amd64   unknown        unknown                   2 d ago      Sun 11-22 23:00 CET (22:00 UTC)   its agent is silent for more than a day
    n7     -        -                unknown        unknown                   -            Sun 11-22 23:00 CET (22:00 UTC)   its agent has not reported yet
    n8     slow     6.1.0-40-amd64   Installing     Held                      -            Sun 11-22 23:00 CET (22:00 UTC)   WaitsForItsTurn
    n9     weekly   -                -              -                         -            Sun 11-22 23:00 CET (22:00 UTC)   -
    n10    slow     6.1.0-40-amd64   suspended      suspended                 -            -                                 the UpdateManager's spec is not understood; its policy label is none of fast, slow, stable and auto
    n11    slow     6.1.0-40-amd64   up to date     up to date, 1 available   -            Sun 11-22 23:00 CET (22:00 UTC)   -

    No window is open.
    The next window opens on Sun 2026-11-22 23:00 CET (Sun 2026-11-22 22:00 UTC).
    This window is not understood: {"schedule":"@daily"}
    The spec is not understood: @daily: is not a schedule
    Not all agents report: no report from n6, n7
    "#);
}

#[test]
fn who_waits_for_what_and_until_when() {
    let due = |id: &str, reason: &str| node(id, &json!({ "status": "UpToDate" }), &json!({ "status": "Pending", "reason": reason }));
    let nodes = [
        due("n1", "WaitingForTurn"),
        due("n2", "WaitingForTurn"),
        due("n3", "Updating"),
        due("n4", "RetryLater"),
        due("n5", "PodDisruptionBudget"),
        due("n6", "WindowClosed"),
        due("n7", "Broken"),
    ];
    let put_off = |reason: &str, message: &str| {
        let until = "2026-11-21T18:00:00Z".parse().unwrap();
        Some(PutOff { reason: reason.into(), message: message.into(), until })
    };
    let all = [
        ("n1", Report { last_update: Some(now().timestamp()), ..report(1, &[]) }),
        ("n2", report(1, &[])),
        ("n3", Report { phase: Some("Draining".into()), put_off: put_off("Crashed", "the time before"), ..report(1, &[]) }),
        ("n4", Report { put_off: put_off("InstallFailed", "postinst of bash"), ..report(1, &[]) }),
        ("n5", Report { put_off: put_off("PodDisruptionBudget", "PodDisruptionBudget default/kept: pod web"), ..report(1, &[]) }),
        ("n6", Report { put_off: put_off("Crashed", "it did"), ..report(1, &[]) }),
        ("n7", Report { phase: Some("Broken".into()), ..report(1, &[]) }),
    ];
    let reports = all.map(|(name, report)| (name.to_owned(), report)).into();
    let shown = in_words(&json!({ "status": { "nodes": nodes } }), &reports, &now());
    let why: Vec<_> = shown.lines().filter(|line| line.starts_with('n')).filter_map(|line| line.split("any time   ").nth(1)).collect();
    insta::assert_snapshot!(why.join("\n"), @r"
    other nodes come first, it is number 2
    other nodes come first, it is number 1
    an update of the node is under way: Draining
    an update failed lately and is tried again later: postinst of bash; again on Sat 11-21 19:00 CET (18:00 UTC)
    a disruption budget keeps a pod on the node: PodDisruptionBudget default/kept: pod web; again on Sat 11-21 19:00 CET (18:00 UTC)
    no window is open
    the last update left the node in a state in which it takes no pods; it goes on when the node is well
    ");
}

#[test]
fn what_holds_for_all_nodes() {
    let said = |spec: Value| in_words(&json!({ "spec": spec }), &Reports::new(), &now());
    insta::assert_snapshot!(said(json!({})), @r"
    No node has a status yet: the operator writes them when it runs.

    There are no windows: updates may start at any time.
    ");
    insta::assert_snapshot!(said(json!({ "suspend": true, "maintenanceWindows": [{ "schedule": "30 13 * * *", "duration": "1h", "timeZone": "Europe/Berlin" }] })), @r"
    No node has a status yet: the operator writes them when it runs.

    Suspended on all nodes; smartup updates resume ends it.
    A window is open until Sat 2026-11-21 14:30 CET (Sat 2026-11-21 13:30 UTC).
    The next window opens on Sun 2026-11-22 13:30 CET (Sun 2026-11-22 12:30 UTC).
    ");
}

#[test]
fn who_asks_for_an_update_now_hears_what_is_in_its_way() {
    let items = |status: &str, reason: Option<&str>| json!({ "status": status, "reason": reason });
    let fine = items("UpToDate", None);
    let due = |reason| items("Pending", Some(reason));
    let nodes = [
        node("due", &fine, &items("Pending", None)),
        node("closed", &fine, &due("WindowClosed")),
        node("failed", &fine, &due("RetryLater")),
        node("current", &items("UpToDate", Some("NotSupported")), &fine),
        node("held", &items("Suspended", Some("ManuallySuspended")), &items("Suspended", Some("ManuallySuspended"))),
        node("alerts", &due("AlertsFiring"), &fine),
    ];
    let said = |spec: Value, id: &str| obstacle(&json!({ "spec": spec, "status": { "nodes": nodes } }), id).unwrap_or_else(|| "-".into());
    let all = ["due", "closed", "failed", "current", "held", "alerts", "new"].map(|id| format!("{id}: {}", said(json!({}), id)));
    insta::assert_snapshot!(all.join("\n"), @r"
    due: -
    closed: -
    failed: -
    current: nothing is due on it
    held: suspended by its label
    alerts: alerts are firing, or nobody can say whether any are
    new: -
    ");
    assert_eq!(said(json!({ "halted": true }), "due"), "updates are halted: the spec has halted: true");
}
