//! Cases one by one, as small as they can be.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::fleet::short;
use crate::api::{NodeUpdate, UpdateManagerSpec};
use crate::decide::{Alerts, Cordon, Etcd, Input, Lock, Next, Node, decide};
use crate::{PackageName, Suspects, judge};

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

struct Host {
    name: &'static str,
    update: NodeUpdate,
    ready: bool,
    server: bool,
    cordon: Cordon,
    locked: bool,
    /// Minutes.
    quiet: Option<i64>,
}

/// A node whose agent says this.
fn host(name: &'static str, status: &Value) -> Host {
    let mut all = json!({
        "agentVersion": "1", "reportedAt": "2026-11-21T11:59:00Z", "kernel": "6.1", "check": "a",
        "bootId": "6a8e1b6c-0b0e-4b0e-9d3b-0123456789ab", "packages": { "checkedAt": "2026-11-21T11:00:00Z", "available": [] },
    });
    all.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
    let spec = json!({ "stage": "fast", "policy": "fast", "check": "a" });
    let update = json!({
        "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "NodeUpdate", "metadata": { "name": name }, "spec": spec, "status": all,
    });
    let update = serde_json::from_value(update).unwrap();
    Host { name, update, ready: true, server: false, cordon: Cordon::No, locked: false, quiet: Some(0) }
}

/// Packages of which these are available.
fn lacks(packages: &[&str]) -> Value {
    let available = packages.iter().map(|p| json!({ "name": package(p), "since": "2026-11-01T00:00:00Z" }));
    json!({ "packages": { "checkedAt": "2026-11-21T11:00:00Z", "available": available.collect::<Vec<_>>() } })
}

fn package(name: &str) -> String {
    format!("{name}-1-1.noarch")
}

impl Host {
    /// It is in this phase, with these packages.
    fn under_way(mut self, phase: &str, packages: &[&str], more: &Value) -> Self {
        let mut transaction = json!({
            "id": "0123456789abcdef", "reboot": "when-needed", "startedAt": "2026-11-21T11:00:00Z", "phase": phase, "since": "2026-11-21T11:00:00Z",
            "bootId": "6a8e1b6c-0b0e-4b0e-9d3b-0123456789ab", "packages": packages.iter().map(|p| package(p)).collect::<Vec<_>>(),
        });
        transaction.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.update.spec.transaction = serde_json::from_value(transaction).unwrap();
        Self { locked: true, ..self }
    }

    /// Its agent says so of the phase.
    fn says(mut self, outcome: &str, more: &Value) -> Self {
        let phase = self.update.spec.transaction.as_ref().unwrap().phase;
        let mut progress = json!({ "transaction": "0123456789abcdef", "phase": phase, "outcome": outcome, "at": "2001-01-01T00:00:00Z" });
        progress.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.update.status.as_mut().unwrap().progress = serde_json::from_value(progress).unwrap();
        self
    }
}

fn suspects(node: &str, packages: &[&str]) -> Vec<Suspects> {
    vec![Suspects { node: node.into(), packages: packages.iter().map(|p| package(p).parse().unwrap()).collect(), stuck: 0 }]
}

/// What is decided, in words; and the suspects after it.
fn decided(spec: &Value, suspects: &[Suspects], hosts: &[Host]) -> (String, Vec<Suspects>) {
    decided_during(&Alerts::Quiet, spec, suspects, hosts)
}

fn decided_during(alerts: &Alerts, spec: &Value, suspects: &[Suspects], hosts: &[Host]) -> (String, Vec<Suspects>) {
    let spec: UpdateManagerSpec = serde_json::from_value(spec.clone()).unwrap();
    let labels = BTreeMap::new();
    let nodes = hosts.iter().map(|h| Node {
        node: judge::Node { name: h.name, labels: &labels, update: Some(&h.update) },
        uid: "u",
        ready: h.ready,
        server: h.server,
        cordon: h.cordon,
        run_requested: None,
        look: None,
        quiet_since: h.quiet.map(|minutes| now() - SignedDuration::from_mins(minutes)),
    });
    let nodes: Vec<_> = nodes.collect();
    let locks: Vec<_> = hosts.iter().filter(|h| h.locked).zip(0..).map(|(h, slot)| Lock { slot, node: h.name, uid: "u" }).collect();
    let etcd = Etcd::Elsewhere;
    let decision = decide(&Input { spec: Some(&spec), suspects, nodes: &nodes, locks: &locks, etcd: &etcd, alerts }, now());
    let next = |next: &Next| match next {
        Next::Act(action) => short(action),
        Next::Wait(wait) => wait.reason.to_string(),
        Next::Rest => "rests".into(),
    };
    let mut said: Vec<_> = decision.nodes.iter().map(|(name, n)| format!("{name} {}", next(n))).collect();
    let after = decision.attribution.as_ref().map_or_else(|| suspects.to_vec(), |a| a.suspects.clone());
    if let Some(learnt) = decision.attribution {
        let bans: Vec<_> = learnt.bans.iter().map(ToString::to_string).collect();
        let suspects: Vec<_> = learnt.suspects.iter().map(|s| format!("{} {}", s.node, names(s))).collect();
        said.push(format!("learns: bans {bans:?}, suspects {suspects:?}"));
    }
    (said.join("; "), after)
}

fn names(suspects: &Suspects) -> String {
    let names: Vec<_> = suspects.packages.iter().map(PackageName::name).collect();
    format!("{} ({} stuck)", names.join(" "), suspects.stuck)
}

fn bisect() -> Value {
    json!({ "crashBisect": true })
}

#[test]
fn an_alert_that_fires_during_the_download_leaves_the_node_untouched() {
    let spec = json!({ "blockingAlerts": { "prometheusUrl": "http://prometheus:9090" } });
    let firing = Alerts::Firing(vec!["Smoke".into()]);
    let said = |phase: &str, touched: bool| {
        let h1 = host("h1", &lacks(&["a"])).under_way(phase, &["a"], &json!({ "touched": touched })).says("Done", &json!({}));
        decided_during(&firing, &spec, &[], &[h1]).0
    };
    let all = [said("Downloading", false), said("Installing", true)];
    insta::assert_snapshot!(all.join("\n"), @r"
    h1 goes to Releasing Some(AlertsFiring)
    h1 goes to Verifying None
    ");
}

#[test]
fn only_an_installation_that_ended_clears_of_suspicion() {
    let all = suspects("h1", &["a", "b", "c", "d"]);
    let said = |phase: &str, outcome: &str, more: &Value| {
        let touched = json!({ "trial": true, "touched": phase == "Installing" });
        let h1 = host("h1", &lacks(&["a", "b", "c", "d"])).under_way(phase, &["a", "b"], &touched).says(outcome, more);
        let (said, after) = decided(&bisect(), &all, &[h1]);
        // what is written is not learnt again
        let h1 = host("h1", &lacks(&["a", "b", "c", "d"])).under_way(phase, &["a", "b"], &touched).says(outcome, more);
        let again = decided(&bisect(), &after, &[h1]).0;
        format!("{phase} {outcome}: {said}; then {again}")
    };
    let begun = json!({ "part": "packages" });
    let left_out = json!({ "leftOut": [package("a"), package("b")] });
    let all = [
        said("Downloading", "Done", &json!({})),
        said("Downloading", "Failed", &json!({})),
        said("Downloading", "Done", &left_out),
        said("Installing", "Done", &begun),
        said("Installing", "Failed", &json!({})),
        said("Installing", "Failed", &begun),
        said("Installing", "Crashed", &begun),
    ];
    insta::assert_snapshot!(all.join("\n"), @r#"
    Downloading Done: h1 goes to Installing None; then h1 goes to Installing None
    Downloading Failed: h1 goes to Releasing Some(DownloadFailed); then h1 goes to Releasing Some(DownloadFailed)
    Downloading Done: h1 Updating; learns: bans [], suspects ["h1 c d a b (2 stuck)"]; then h1 goes to Releasing Some(LeftOut)
    Installing Done: h1 Updating; learns: bans [], suspects ["h1 c d (0 stuck)"]; then h1 goes to Verifying None
    Installing Failed: h1 goes to Verifying Some(InstallFailed); then h1 goes to Verifying Some(InstallFailed)
    Installing Failed: h1 Updating; learns: bans [], suspects ["h1 c d (0 stuck)", "h1 a b (0 stuck)"]; then h1 goes to Verifying Some(InstallFailed)
    Installing Crashed: h1 Updating; learns: bans [], suspects ["h1 a b (0 stuck)"]; then h1 goes to Verifying Some(Crashed)
    "#);
}

#[test]
fn one_that_cannot_be_tried_alone_is_learnt_once_and_lets_all_else_go_first() {
    let mut group = suspects("h1", &["a"]);
    let left_out = || {
        let more = json!({ "leftOut": [package("a")] });
        host("h1", &lacks(&["a", "z"])).under_way("Downloading", &["a"], &json!({ "trial": true })).says("Done", &more)
    };
    let mut said = Vec::new();
    for _ in 0..2 {
        let (text, after) = decided(&bisect(), &group, &[left_out()]);
        said.push(text);
        group = after;
    }
    said.push(decided(&bisect(), &group, &[host("h1", &lacks(&["a", "z"]))]).0);
    said.push(decided(&bisect(), &group, &[host("h1", &lacks(&["a"]))]).0);
    // and no other node tries it meanwhile
    said.push(
        decided(
            &json!({ "crashBisect": true, "maxUnavailable": 2 }),
            &group,
            &[host("h1", &lacks(&["a", "z"])), host("h2", &lacks(&["a"]))],
        )
        .0,
    );
    insta::assert_snapshot!(said.join("\n"), @r#"
    h1 Updating; learns: bans [], suspects ["h1 a (1 stuck)"]
    h1 goes to Releasing Some(LeftOut)
    h1 starts in 0: ["z-1-1.noarch"]
    h1 starts in 0: ["a-1-1.noarch"] on trial
    h1 starts in 0: ["z-1-1.noarch"]; h2 Suspected
    "#);
}

#[test]
fn suspects_are_tried_by_one_node_that_can() {
    let all = suspects("h1", &["a", "b"]);
    let nodes = || [host("h1", &lacks(&["a", "b"])), host("h2", &lacks(&["b"])), host("h3", &lacks(&["a", "b"]))];
    let [own, lost, mended] = [(); 3].map(|()| nodes());
    let lost = lost.map(|h| Host { ready: h.name != "h1", ..h });
    let [h1, rest @ ..] = mended;
    let [h2, h3] = rest;
    let mended = [Host { update: host("h1", &lacks(&[])).update, ..h1 }, h2, h3];
    let two = json!({ "crashBisect": true, "maxUnavailable": 3 });
    let mut said: Vec<_> = [own, lost, mended].iter().map(|hosts| decided(&two, &all, hosts).0).collect();
    // as long as one tries them, no other does
    let [h1, h2, h3] = nodes();
    let h2 = h2.under_way("Downloading", &["b"], &json!({ "trial": true })).says("Running", &json!({}));
    said.push(decided(&two, &all, &[h1, h2, h3]).0);
    insta::assert_snapshot!(said.join("\n"), @r#"
    h1 starts in 0: ["a-1-1.noarch"] on trial; h2 Suspected; h3 Suspected
    h1 Suspected; h2 starts in 0: ["b-1-1.noarch"] on trial; h3 Suspected
    h1 rests; h2 starts in 0: ["b-1-1.noarch"] on trial; h3 Suspected
    h1 Suspected; h2 Updating; h3 Suspected
    "#);
}

#[test]
fn silence_bans_only_what_was_begun_on_a_node_that_is_there() {
    let said = |begun: bool, ready: bool, quiet: Option<i64>| {
        let more = if begun { json!({ "part": "packages" }) } else { json!({}) };
        let h1 = host("h1", &lacks(&["a"])).under_way("Installing", &["a"], &json!({ "touched": true })).says("Running", &more);
        decided(&json!({}), &[], &[Host { ready, quiet, ..h1 }]).0
    };
    let all = [
        said(true, true, Some(30)),
        // whatever the host's clock says; and however long the API was away
        said(true, true, Some(29)),
        said(true, true, None),
        said(false, true, Some(30)),
        said(true, false, Some(30)),
        said(false, false, Some(30)),
    ];
    insta::assert_snapshot!(all.join("\n"), @r#"
    h1 Updating; learns: bans ["a-1-1.noarch"], suspects []
    h1 Updating
    h1 Updating
    h1 goes to Broken Some(Hung)
    h1 goes to Broken Some(NodeNotReady)
    h1 goes to Broken Some(NodeNotReady)
    "#);
    // it is back, and says itself what came of it
    let failure = json!({ "touched": true, "failure": { "reason": "NodeNotReady", "message": "lost", "at": "2026-11-21T11:30:00Z" } });
    let back = |ready| Host { ready, ..host("h1", &lacks(&["a"])).under_way("Broken", &["a"], &failure).says("Done", &json!({})) };
    insta::assert_snapshot!([true, false].map(|ready| decided(&json!({}), &[], &[back(ready)]).0).join("\n"), @r"
    h1 goes to Installing None
    h1 Broken
    ");
}

#[test]
fn a_reboot_that_was_no_cure_is_not_tried_at_once() {
    let run = |packages: u32, rebooted: bool| json!({ "transaction": "0123456789abcdef", "startedAt": "2026-11-21T11:00:00Z", "finishedAt": "2026-11-21T11:20:00Z", "packages": packages, "patches": 0, "rebooted": rebooted });
    let said = |history: &[Value], more: &[&str]| {
        let mut status = lacks(more);
        status.as_object_mut().unwrap().extend(json!({ "reboot": { "needed": "yes" }, "history": history }).as_object().unwrap().clone());
        decided(&json!({}), &[], &[host("h1", &status)]).0
    };
    let all = [said(&[], &[]), said(&[run(3, true)], &[]), said(&[run(3, true)], &["a"]), said(&[run(3, false), run(0, true)], &[])];
    insta::assert_snapshot!(all.join("\n"), @r#"
    h1 starts in 0: []
    h1 RebootInVain
    h1 starts in 0: ["a-1-1.noarch"]
    h1 starts in 0: []
    "#);
}

#[test]
fn a_lost_lease_is_taken_again_only_where_there_is_room() {
    let untouched =
        |name| host(name, &lacks(&["a"])).under_way("Downloading", &["a"], &json!({})).says("Done", &json!({ "drainFirst": true }));
    let touched = |name| {
        let installed = json!({ "touched": true, "drainFirst": true });
        host(name, &json!({ "reboot": { "needed": "yes" } })).under_way("Installing", &["a"], &installed).says("Done", &json!({}))
    };
    let lost = |h: Host| Host { locked: false, ..h };
    let server = |h: Host| Host { server: true, ..h };
    let said = |spec: Value, hosts: [Host; 2]| decided(&spec, &[], &hosts).0;
    let all = [
        said(json!({}), [lost(untouched("h1")), host("h2", &lacks(&[]))]),
        said(json!({}), [lost(untouched("h1")), untouched("h2")]),
        said(json!({}), [lost(touched("h1")), untouched("h2")]),
        said(json!({ "maxUnavailable": 2 }), [lost(untouched("h1")), untouched("h2")]),
        said(json!({ "maxUnavailable": 2 }), [server(lost(untouched("h1"))), server(untouched("h2"))]),
        said(json!({ "maxUnavailable": 2 }), [lost(untouched("h1")), lost(untouched("h2"))]),
        said(json!({}), [lost(untouched("h1")), lost(untouched("h2"))]),
    ];
    insta::assert_snapshot!(all.join("\n"), @r"
    h1 Lock { slot: 0 }; h2 rests
    h1 goes to Releasing Some(TooManyUnavailable); h2 goes to Draining None
    h1 TooManyUnavailable; h2 goes to Draining None
    h1 Lock { slot: 1 }; h2 goes to Draining None
    h1 goes to Releasing Some(TooManyUnavailable); h2 goes to Draining None
    h1 Lock { slot: 0 }; h2 Lock { slot: 1 }
    h1 Lock { slot: 0 }; h2 goes to Releasing Some(TooManyUnavailable)
    ");
}

#[test]
fn of_servers_one_at_a_time_is_down() {
    let server = |h: Host| Host { server: true, ..h };
    let spec = json!({ "maxUnavailable": 3 });
    let loads = |name| server(host(name, &lacks(&["a"])).under_way("Downloading", &["a"], &json!({})).says("Done", &json!({})));
    let installs =
        |name| server(host(name, &lacks(&["a"])).under_way("Installing", &["a"], &json!({ "touched": true })).says("Done", &json!({})));
    let away = Host { ready: false, ..server(host("s3", &lacks(&[]))) };
    let idle = || server(host("s1", &lacks(&["a"])));
    let all = [
        decided(&spec, &[], &[loads("s1"), loads("s2")]).0,
        decided(&spec, &[], &[loads("s1"), installs("s2")]).0,
        decided(&spec, &[], &[idle(), server(host("s2", &lacks(&[])))]).0,
        // also where the cluster keeps its data elsewhere
        decided(&spec, &[], &[idle(), away]).0,
    ];
    insta::assert_snapshot!(all.join("\n"), @r#"
    s1 goes to Installing None; s2 TooManyUnavailable
    s1 TooManyUnavailable; s2 goes to Verifying None
    s1 starts in 0: ["a-1-1.noarch"]; s2 rests
    s1 TooManyUnavailable; s3 rests
    "#);
}

#[test]
fn a_cordon_of_an_update_that_is_gone_is_taken_back() {
    let cordoned = |cordon| Host { cordon, ..host("h1", &lacks(&["a"])) };
    let said = [Cordon::Ours, Cordon::Theirs].map(|cordon| decided(&json!({}), &[], &[cordoned(cordon)]).0);
    insta::assert_snapshot!(said.join("\n"), @r#"
    h1 Uncordon
    h1 starts in 0: ["a-1-1.noarch"]
    "#);
}

#[test]
fn of_live_patches_the_highest_that_is_due_is_installed() {
    let patches = [("1-9-r1", "2026-11-01"), ("1-10-r1", "2026-11-01"), ("1-2-r1", "2026-11-01"), ("1-11-r1", "2026-11-20")];
    let available: Vec<_> = patches.iter().map(|(name, day)| json!({ "name": name, "since": format!("{day}T00:00:00Z") })).collect();
    let h1 = || host("h1", &json!({ "patches": { "checkedAt": "2026-11-21T11:00:00Z", "available": available } }));
    let said = |spec| decided(&spec, &[], &[h1()]).0;
    let all = [json!({}), json!({ "stageDelays": { "fast": 5 } }), json!({ "bannedPatches": ["1-11-r1", "1-10-r1"] })].map(said);
    insta::assert_snapshot!(all.join("\n"), @r#"
    h1 starts in 0: ["1-11-r1"]
    h1 starts in 0: ["1-10-r1"]
    h1 starts in 0: ["1-9-r1"]
    "#);
}

#[test]
fn refused_live_patches_are_left_out() {
    let said = |left_out: &[&str], refused: bool| {
        let left_out: Vec<_> = left_out.iter().map(|name| package(name)).collect();
        let h1 = host("h1", &json!({})).under_way("Installing", &["a"], &json!({ "patches": ["1-2-r3"], "touched": true }));
        decided(&json!({}), &[], &[h1.says("Done", &json!({ "leftOut": left_out, "patchesRefused": refused }))]).0
    };
    insta::assert_snapshot!([said(&["a"], true), said(&["a"], false), said(&[], true)].join("\n"), @r"
    h1 goes to Verifying Some(LeftOut)
    h1 goes to Verifying None
    h1 goes to Verifying None
    ");
}

/// Otherwise the one would suspect what the other clears, again and again, and nothing else would be done.
#[test]
fn what_is_gone_or_was_installed_elsewhere_is_suspected_by_nobody() {
    let ends = |name, outcome| {
        let h = host(name, &lacks(&["a", "b"])).under_way("Installing", &["a", "b"], &json!({ "touched": true }));
        h.says(outcome, &json!({ "part": "packages" }))
    };
    let gone = |mut h: Host| {
        h.update.status.as_mut().unwrap().packages = host("", &lacks(&[])).update.status.unwrap().packages;
        h
    };
    let said = [vec![ends("h1", "Crashed")], vec![gone(ends("h1", "Crashed"))], vec![ends("h1", "Done"), ends("h2", "Crashed")]];
    insta::assert_snapshot!(said.map(|hosts| decided(&bisect(), &[], &hosts).0).join("\n"), @r#"
    h1 Updating; learns: bans [], suspects ["h1 a b (0 stuck)"]
    h1 goes to Verifying Some(Crashed)
    h1 goes to Verifying None; h2 goes to Verifying Some(Crashed)
    "#);
}

#[test]
fn what_is_left_out_each_time_keeps_neither_a_reboot_nor_suspects_waiting() {
    let left_out = |status: &Value| {
        let mut h1 = host("h1", status);
        let failure = json!({ "reason": "LeftOut", "message": "it needs z", "at": "2026-11-21T04:00:00Z" });
        h1.update.spec.retry =
            serde_json::from_value(json!({ "failure": failure, "notBefore": "2026-11-21T08:00:00Z", "times": 1 })).unwrap();
        h1
    };
    let mut reboots = lacks(&["a"]);
    reboots["reboot"] = json!({ "needed": "yes" });
    let stuck = vec![Suspects { stuck: 1, ..suspects("h1", &["z"]).remove(0) }];
    let said = [
        decided(&json!({}), &[], &[left_out(&lacks(&["a"]))]).0,
        decided(&json!({}), &[], &[left_out(&reboots)]).0,
        decided(&bisect(), &stuck, &[left_out(&lacks(&["a", "z"]))]).0,
    ];
    insta::assert_snapshot!(said.join("\n"), @r#"
    h1 starts in 0: ["a-1-1.noarch"]
    h1 starts in 0: []
    h1 starts in 0: ["z-1-1.noarch", "a-1-1.noarch"] on trial
    "#);
}

/// Packages of which each was tried alone in vain.
fn stuck(node: &str, packages: &[&str]) -> Suspects {
    Suspects { stuck: packages.len().try_into().unwrap(), ..suspects(node, packages).remove(0) }
}

/// Tried alone in vain, two of them are tried together: they may need each other. A crash must be one node's all the same.
#[test]
fn what_is_tried_together_with_others_is_tried_nowhere_else() {
    let apart = || vec![stuck("h1", &["y"]), stuck("h2", &["z"])];
    let left_out = |name, due: &[&str]| {
        let mut h = host(name, &lacks(due));
        let failure = json!({ "reason": "LeftOut", "message": "it needs others", "at": "2026-11-21T04:00:00Z" });
        h.update.spec.retry =
            serde_json::from_value(json!({ "failure": failure, "notBefore": "2026-11-21T08:00:00Z", "times": 1 })).unwrap();
        h
    };
    let tries = |packages: &[&str]| host("h1", &lacks(packages)).under_way("Checking", packages, &json!({ "trial": true }));
    let all = ["y", "z"];
    let said = [
        (apart(), [tries(&["y", "a"]), left_out("h2", &all)]),
        // what else is due may be what it needs
        (apart(), [tries(&["y", "a"]), left_out("h2", &["a", "z"])]),
        // another one of those that are suspected with it
        (vec![stuck("h1", &["y", "z"]), stuck("h2", &["x"])], [tries(&["z"]), left_out("h2", &["x", "y"])]),
        // at the same moment
        (apart(), [left_out("h1", &all), left_out("h2", &all)]),
        (apart(), [left_out("h1", &["a", "y"]), left_out("h2", &["a", "z"])]),
        (apart(), [left_out("h1", &["y"]), left_out("h2", &["z"])]),
    ];
    let spec = json!({ "crashBisect": true, "maxUnavailable": 2 });
    insta::assert_snapshot!(said.map(|(suspects, hosts)| decided(&spec, &suspects, &hosts).0).join("\n"), @r#"
    h1 Look; h2 Suspected
    h1 Look; h2 Suspected
    h1 Look; h2 Suspected
    h1 starts in 0: ["y-1-1.noarch", "z-1-1.noarch"] on trial; h2 Suspected
    h1 starts in 0: ["y-1-1.noarch", "a-1-1.noarch"] on trial; h2 Suspected
    h1 starts in 0: ["y-1-1.noarch"] on trial; h2 starts in 1: ["z-1-1.noarch"] on trial
    "#);
}

/// Two trials that others' crashes have put under one suspicion: neither node takes it from the other again and again, with all else
/// waiting.
#[test]
fn of_two_that_tried_in_vain_what_is_suspected_together_one_has_the_next_trial() {
    let in_vain = |name, packages: &[&str]| {
        let left_out: Vec<_> = packages.iter().map(|p| package(p)).collect();
        host(name, &lacks(&["s", "t", "y", "z"]))
            .under_way("Downloading", packages, &json!({ "trial": true }))
            .says("Done", &json!({ "leftOut": left_out }))
    };
    let hosts = [in_vain("h1", &["s", "y"]), in_vain("h2", &["t", "z"]), host("h3", &lacks(&["y", "z"]))];
    let mut all = [stuck("h1", &["s"]), stuck("h2", &["t"])].into_iter().chain(suspects("h3", &["y", "z"])).collect::<Vec<_>>();
    let spec = json!({ "crashBisect": true, "maxUnavailable": 3 });
    let mut said = Vec::new();
    for _ in 0..4 {
        let (text, after) = decided(&spec, &all, &hosts);
        said.push(text);
        all = after;
    }
    insta::assert_snapshot!(said.join("\n"), @r#"
    h1 Updating; h2 Updating; h3 Suspected; learns: bans [], suspects ["h1 s (1 stuck)", "h2 t (1 stuck)", "h1 z y (1 stuck)"]
    h1 goes to Releasing Some(LeftOut); h2 Updating; h3 Suspected; learns: bans [], suspects ["h1 s (1 stuck)", "h2 t (1 stuck)", "h2 y z (2 stuck)"]
    h1 goes to Releasing Some(LeftOut); h2 goes to Releasing Some(LeftOut); h3 Suspected
    h1 goes to Releasing Some(LeftOut); h2 goes to Releasing Some(LeftOut); h3 Suspected
    "#);
}

/// Or else the stage would wait for the trial, the trial for what else is due on its node or for what is banned, and that for the stage.
#[test]
fn what_can_be_tried_no_further_is_no_failure_of_a_stage() {
    let harmed = |name, lacks: &Value| {
        let mut h = host(name, lacks);
        let failure = json!({ "reason": "Crashed", "message": "it did", "at": "2026-11-21T04:00:00Z" });
        h.update.spec.retry =
            serde_json::from_value(json!({ "failure": failure, "notBefore": "2026-11-21T16:00:00Z", "times": 1 })).unwrap();
        h
    };
    let slow = |mut h: Host| {
        h.update.spec.stage = crate::Stage::Slow;
        h
    };
    let spec = json!({ "crashBisect": true, "stageDelays": { "slow": 1 } });
    let said = |more: &[&str], suspects: &[Suspects]| {
        decided(&spec, suspects, &[slow(host("h1", &lacks(&["a", "y"]))), harmed("h2", &lacks(more))]).0
    };
    let [fresh, in_vain] = [suspects("h2", &["y"]), vec![stuck("h1", &["y"])]];
    let all = [said(&["y"], &fresh), said(&["y"], &in_vain), said(&["a", "y"], &in_vain)];
    insta::assert_snapshot!(all.join("\n"), @r#"
    h1 StageFailed; h2 RetryLater
    h1 starts in 0: ["a-1-1.noarch"]; h2 Suspected
    h1 StageFailed; h2 RetryLater
    "#);
}

/// Or else all would be suspected together after the crash, and told apart anew, with crashes for ever.
#[test]
fn those_that_need_each_other_are_tried_by_themselves_before_others_join_them() {
    let spec = bisect();
    let h1 = |due: &[&str]| {
        let mut h = host("h1", &lacks(due));
        let failure = json!({ "reason": "LeftOut", "message": "it needs others", "at": "2026-11-21T04:00:00Z" });
        h.update.spec.retry =
            serde_json::from_value(json!({ "failure": failure, "notBefore": "2026-11-21T08:00:00Z", "times": 1 })).unwrap();
        h
    };
    let alone = vec![stuck("h1", &["y", "z"])];
    let left_out = json!({ "leftOut": [package("y"), package("z")] });
    let tried = h1(&["a", "y", "z"]).under_way("Downloading", &["y", "z"], &json!({ "trial": true })).says("Done", &left_out);
    let (learnt, together) = decided(&spec, &alone, &[tried]);
    let said = [
        decided(&spec, &alone, &[h1(&["a", "y", "z"])]).0,
        learnt,
        decided(&spec, &together, &[h1(&["a", "y", "z"])]).0,
        // only one of them is there
        decided(&spec, &alone, &[h1(&["a", "y"]), host("h2", &lacks(&["z"]))]).0,
    ];
    insta::assert_snapshot!(said.join("\n"), @r#"
    h1 starts in 0: ["y-1-1.noarch", "z-1-1.noarch"] on trial
    h1 Updating; learns: bans [], suspects ["h1 y z (3 stuck)"]
    h1 starts in 0: ["y-1-1.noarch", "z-1-1.noarch", "a-1-1.noarch"] on trial
    h1 starts in 0: ["y-1-1.noarch", "a-1-1.noarch"] on trial; h2 Suspected
    "#);
}
