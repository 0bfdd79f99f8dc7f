use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn window(schedule: &str, duration: &str, zone: Option<&str>) -> Window {
    Window { schedule: schedule.parse().unwrap(), duration: duration.parse().unwrap(), time_zone: zone.map(|z| z.parse().unwrap()) }
}

fn which(schedule: &str, duration: Option<&str>) -> Edit {
    let duration = duration.map(|d| d.parse().unwrap());
    Edit::RemoveWindow(WhichWindow { schedule: schedule.parse().unwrap(), duration, time_zone: None })
}

fn ban(text: &str) -> Edit {
    Edit::Ban(text.parse().unwrap())
}

fn unban(text: &str) -> Edit {
    Edit::Unban(text.parse().unwrap())
}

fn manager() -> Value {
    json!({
        "metadata": { "name": "default", "resourceVersion": "17" },
        "spec": {
            "vendors": 1,
            "maintenanceWindows": [
                { "schedule": "0  1 * * MON-FRI", "duration": "90m", "vendors": true },
                { "schedule": "not a schedule", "duration": "1h" },
                { "schedule": "0 1 * * mon-fri", "duration": "2h" },
            ],
            "bannedPackages": ["bash-4.2.46-34.vl7.x86_64"],
        },
    })
}

/// What the API server makes of it (RFC 7396).
fn merged(mut manager: Value, patch: Option<&Value>) -> Value {
    fn merge(into: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            *into = patch.clone();
            return;
        };
        if !into.is_object() {
            *into = json!({});
        }
        for (key, value) in patch {
            let into = into.as_object_mut().unwrap();
            if value.is_null() {
                into.remove(key);
            } else {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
    if let Some(patch) = patch {
        merge(&mut manager, patch);
    }
    manager
}

#[test]
fn several_at_once_are_one_patch() {
    let edits = [
        Edit::AddWindow(window("30 22 * * 6", "8h", Some("europe/berlin"))),
        which("0 1 * * MON-FRI", Some("1h30m")),
        ban("123-4-r5"),
        ban("bash=5.2.15-2+b8"),
        unban("bash-4.2.46-34.vl7.x86_64"),
        ban("bash=5.2.15-2+b8"),
        Edit::Suspend,
    ];
    let edited = edit(&manager(), &edits).unwrap();
    insta::assert_snapshot!(edited.said.join("\n"), @r"
    window '30 22 * * 6' 8h00m Europe/Berlin added
    window '0 1 * * MON-FRI' 1h30m UTC removed
    123-4-r5 banned
    bash=5.2.15-2+b8 banned
    bash-4.2.46-34.vl7.x86_64 is no longer banned
    bash=5.2.15-2+b8 was already banned
    updates suspended on all nodes
    ");
    insta::assert_snapshot!(serde_json::to_string_pretty(&edited.patch).unwrap(), @r#"
    {
      "metadata": {
        "resourceVersion": "17"
      },
      "spec": {
        "bannedPackages": [
          "bash=5.2.15-2+b8"
        ],
        "bannedPatches": [
          "123-4-r5"
        ],
        "maintenanceWindows": [
          {
            "duration": "1h",
            "schedule": "not a schedule"
          },
          {
            "duration": "2h",
            "schedule": "0 1 * * mon-fri"
          },
          {
            "duration": "8h00m",
            "schedule": "30 22 * * 6",
            "timeZone": "Europe/Berlin"
          }
        ],
        "suspend": true
      }
    }
    "#);
}

#[test]
fn nothing_to_do_is_no_patch() {
    for edits in [
        vec![],
        vec![Edit::Resume],
        vec![ban("bash-4.2.46-34.vl7.x86_64")],
        vec![Edit::AddWindow(window("0 1 * * MON-fri", "1h30m", Some("UTC")))],
        vec![Edit::Suspend, Edit::Resume],
        vec![ban("123-4-r5"), unban("123-4-r5")],
    ] {
        assert_eq!(edit(&manager(), &edits).unwrap().patch, None, "{edits:?}");
    }
}

#[test]
fn a_manager_without_anything() {
    let edited = edit(&json!({ "metadata": { "resourceVersion": "1" }, "spec": null }), &[ban("1-2-r3")]).unwrap();
    assert_eq!(edited.patch, Some(json!({ "metadata": { "resourceVersion": "1" }, "spec": { "bannedPatches": ["1-2-r3"] } })));
}

#[test]
fn says_why_not() {
    let why = |e: Edit| {
        let refusal = edit(&manager(), &[Edit::Suspend, e]).unwrap_err();
        format!("{refusal}\n  hint: {}", refusal.hint.as_deref().unwrap_or("none"))
    };
    let text = [which("0 1 * * MON-FRI", None), which("0 2 * * *", None), unban("bash-4.2.46-35.vl7.x86_64"), unban("1-2-r3")].map(why);
    insta::assert_snapshot!(text.join("\n"), @r"
    '0 1 * * MON-FRI' could be any of '0 1 * * MON-FRI' 1h30m UTC, '0 1 * * mon-fri' 2h00m UTC
      hint: give its duration and time zone too
    no such window: '0 2 * * *'
      hint: there are '0 1 * * MON-FRI' 1h30m UTC, '0 1 * * mon-fri' 2h00m UTC
    bash-4.2.46-35.vl7.x86_64 is not banned
      hint: did you mean bash-4.2.46-34.vl7.x86_64?
    1-2-r3 is not banned
      hint: none
    ");
}

#[test]
fn labels() {
    let none = BTreeMap::new();
    let both = BTreeMap::from([(SUSPEND_LABEL.to_owned(), "x".to_owned()), (POLICY_LABEL.to_owned(), "fast".to_owned())]);
    let slow = NodeEdit::Policy("slow".parse().unwrap());
    let all = [(&none, NodeEdit::Suspend), (&none, NodeEdit::Resume), (&both, NodeEdit::Suspend), (&both, NodeEdit::Resume), (&both, slow)];
    let text = all.map(|(labels, edit)| {
        let Edited { patch, said } = label("h1", labels, edit);
        format!("{}: {}", said.join(""), patch.map_or("no patch".into(), |p| p.to_string()))
    });
    insta::assert_snapshot!(text.join("\n"), @r#"
    h1 suspended: {"metadata":{"labels":{"maintenance.virtuozzo.io/suspend":""}}}
    h1 was not suspended by its label: no patch
    h1 was already suspended: no patch
    h1 resumed: {"metadata":{"labels":{"maintenance.virtuozzo.io/suspend":null}}}
    h1 has policy slow: {"metadata":{"labels":{"maintenance.virtuozzo.io/auto-updates-policy":"slow"}}}
    "#);
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let item = prop::sample::select(vec!["1-2-r3", "1-2-r4", "a-1-1.noarch", "bash=1", "bash=2"]).prop_map(|t| t.parse().unwrap());
    let hour = prop::sample::select(vec!["0 1 * * *", "0 2 * * *"]);
    prop_oneof![
        Just(Edit::Suspend),
        Just(Edit::Resume),
        item.clone().prop_map(Edit::Ban),
        item.prop_map(Edit::Unban),
        (hour.clone(), prop::sample::select(vec!["1h", "2h"])).prop_map(|(s, d)| Edit::AddWindow(window(s, d, None))),
        hour.prop_map(|s| which(s, None)),
    ]
}

proptest! {
    #[test]
    fn at_once_is_one_by_one_and_all_else_stays(edits in prop::collection::vec(any_edit(), 0..12)) {
        let mut one_by_one = manager();
        let mut taken = Vec::new();
        for each in edits {
            if let Ok(edited) = edit(&one_by_one, std::slice::from_ref(&each)) {
                one_by_one = merged(one_by_one, edited.patch.as_ref());
                taken.push(each);
            }
        }
        let edited = edit(&manager(), &taken).unwrap();
        let at_once = merged(manager(), edited.patch.as_ref());
        // a field that only ever held nothing may stay away
        let get = |m: &Value, key: &str| m["spec"].get(key).cloned().unwrap_or_else(|| absent(key));
        for key in [WINDOWS, SUSPEND, "bannedPackages", "bannedPatches"] {
            prop_assert_eq!(get(&at_once, key), get(&one_by_one, key));
        }
        prop_assert_eq!(edited.said.len(), taken.len());
        prop_assert_eq!(&at_once["spec"]["vendors"], 1);
        let windows = &at_once["spec"]["maintenanceWindows"];
        prop_assert_eq!(&windows[0], &manager()["spec"]["maintenanceWindows"][0]);
        prop_assert_eq!(&windows[1], &manager()["spec"]["maintenanceWindows"][1]);
    }
}

#[test]
fn halts_and_approvals() {
    let said = |manager: &Value, edits: &[Edit]| {
        let edited = edit(manager, edits).unwrap();
        (edited.patch.map(|p| p["spec"].clone()), edited.said.join("; "))
    };
    let idle = json!({ "spec": {} });
    assert_eq!(said(&idle, &[Edit::Halt]), (Some(json!({ "halted": true })), "updates halted".into()));
    assert_eq!(said(&idle, &[Edit::Continue]), (None, "updates were not halted".into()));
    let halted = json!({ "spec": { "halted": true } });
    assert_eq!(said(&halted, &[Edit::Halt]), (None, "updates were already halted".into()));
    assert_eq!(said(&halted, &[Edit::Continue]).0, Some(json!({ "halted": false })));

    let boot: crate::BootId = "6a8e1b6c-0b0e-4b0e-9d3b-0123456789ab".parse().unwrap();
    let edits = ["bash-5-1.noarch", "1-2-r3"].map(|i| Edit::Approve(i.parse().unwrap()));
    let edits = [edits.to_vec(), vec![Edit::ApproveReboot(boot)]].concat();
    let before = json!({ "spec": { "approvedPackages": ["a-1-1.noarch"], "approvedPatches": ["1-2-r3"] } });
    let (patch, words) = said(&before, &edits);
    let boots = json!(["6a8e1b6c-0b0e-4b0e-9d3b-0123456789ab"]);
    assert_eq!(patch.unwrap(), json!({ "approvedPackages": ["a-1-1.noarch", "bash-5-1.noarch"], "approvedReboots": boots }));
    let reboot = "a reboot after boot 6a8e1b6c-0b0e-4b0e-9d3b-0123456789ab approved";
    assert_eq!(words, format!("bash-5-1.noarch approved; 1-2-r3 was already approved; {reboot}"));
}
