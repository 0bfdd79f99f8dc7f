//! What decisions look like as writes to the API.

use std::cmp::Reverse;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Attribution;
use crate::api::NodeUpdateSpec;
use crate::edit::{Edit, Refusal, edit};
use crate::names::BANS_ANNOTATION;

/// The merge patch (RFC 7396) that makes one spec the other, with null for what goes; None: they are the same.
pub fn spec_patch(before: &NodeUpdateSpec, after: &NodeUpdateSpec) -> Option<Value> {
    let text = |spec| serde_json::to_value(spec).unwrap_or_default();
    difference(&text(before), &text(after)).map(|spec| json!({ "spec": spec }))
}

fn difference(before: &Value, after: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (before, after) else { return (before != after).then(|| after.clone()) };
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = new.iter().filter_map(|(key, value)| Some((key.clone(), difference(old.get(key).unwrap_or(&Value::Null), value)?)));
    let patch: Map<_, _> = gone.chain(changed).collect();
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Of all annotations of an object the API takes 256 KiB (apimachinery, `TotalAnnotationSizeLimitB`), and kubectl keeps a copy of
/// the whole spec in one of them. So much of it is for the notes, bytes.
const NOTES: usize = 64 * 1024;

/// The merge patch that bans what crashed, on an `UpdateManager` as it was read; None where all of it is banned. It holds the
/// resource version, so no edit of anybody else's is lost. The annotation says of each who banned it, when and why; bans that
/// were taken back by hand are taken out of it, and where there are too many, the oldest.
///
/// # Errors
/// None that an edit of bans has.
pub fn bans(manager: &Value, attribution: &Attribution, now: Timestamp) -> Result<Option<Value>, Refusal> {
    let edits: Vec<_> = attribution.bans.iter().cloned().map(Edit::Ban).collect();
    let Some(mut patch) = edit(manager, &edits)?.patch else { return Ok(None) };
    let text = manager.pointer("/metadata/annotations").and_then(|a| a.get(BANS_ANNOTATION)).and_then(Value::as_str);
    let mut notes: Map<String, Value> = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let banned = |item: &str| {
        let lists = ["bannedPackages", "bannedPatches"].map(|list| manager.pointer(&format!("/spec/{list}")));
        lists.into_iter().flatten().filter_map(Value::as_array).flatten().any(|entry| entry == item)
    };
    notes.retain(|item, _| banned(item));
    for item in &attribution.bans {
        let note = json!({ "by": "smartup", "node": attribution.node, "at": now.to_string(), "why": attribution.because });
        notes.insert(item.to_string(), note);
    }
    let notes = newest(notes, NOTES);
    if let Some(metadata) = patch.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".into(), json!({ BANS_ANNOTATION: Value::Object(notes).to_string() }));
    }
    Ok(Some(patch))
}

/// The newest notes, as many as there is room for, bytes. One without a time is the oldest.
fn newest(notes: Map<String, Value>, room: usize) -> Map<String, Value> {
    let at = |note: &Value| note.get("at").and_then(|at| at.as_str()?.parse::<Timestamp>().ok());
    let mut notes: Vec<_> = notes.into_iter().collect();
    notes.sort_by_key(|(_, note)| Reverse(at(note)));
    // the quotes around the item, a colon and a comma
    let size = |(item, note): &(String, Value)| item.len() + note.to_string().len() + 4;
    let mut used = 0;
    let fits = |note: &(String, Value)| {
        used += size(note);
        used <= room
    };
    notes.into_iter().take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Item, Policy, Stage};

    #[test]
    fn a_patch_makes_one_spec_the_other() {
        let idle = NodeUpdateSpec::new(Stage::Slow, Policy::Auto, "a");
        let busy: NodeUpdateSpec = serde_json::from_value(json!({
            "stage": "slow", "policy": "auto", "check": "a",
            "transaction": {
                "id": "0123456789abcdef", "packages": ["bash-5-1.noarch"], "reboot": "never", "startedAt": "2026-11-21T12:00:00Z",
                "phase": "Checking", "since": "2026-11-21T12:00:00Z", "deadline": "2026-11-21T12:05:00Z",
            },
        }))
        .unwrap();
        let patches = [(&idle, &busy), (&busy, &idle), (&busy, &busy)].map(|(from, to)| {
            let mut patched = serde_json::to_value(from).unwrap();
            let patch = spec_patch(from, to);
            merge(&mut patched, patch.as_ref().and_then(|p| p.get("spec")).unwrap_or(&json!({})));
            assert_eq!(&serde_json::from_value::<NodeUpdateSpec>(patched).unwrap(), to);
            patch
        });
        assert_eq!((&patches[1], &patches[2]), (&Some(json!({ "spec": { "transaction": null } })), &None));
    }

    /// RFC 7396, section 2.
    fn merge(target: &mut Value, patch: &Value) {
        let Some(patch) = patch.as_object() else { return *target = patch.clone() };
        if !target.is_object() {
            *target = json!({});
        }
        let target = target.as_object_mut().unwrap();
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }

    #[test]
    fn bans_say_who_when_and_why_and_lose_nothing() {
        let manager = json!({
            "metadata": { "resourceVersion": "7", "annotations": { BANS_ANNOTATION: r#"{"old-1-1.noarch":{"node":"h9"},"kept-1-1.noarch":{"node":"h8"}}"# } },
            "spec": { "bannedPackages": ["kept-1-1.noarch", "by a vendor"] },
        });
        let items = ["bash-5-1.noarch", "123-4-r5"].map(|i| i.parse::<Item>().unwrap()).to_vec();
        let attribution = Attribution { bans: items, suspects: vec![], node: "h1".into(), because: "it crashed".into() };
        let patch = bans(&manager, &attribution, "2026-11-21T12:00:00Z".parse().unwrap()).unwrap().unwrap();
        let notes = patch.pointer("/metadata/annotations").and_then(|a| a.get(BANS_ANNOTATION)).and_then(Value::as_str).unwrap();
        insta::assert_snapshot!(notes.replace("},", "},\n"), @r#"
        {"123-4-r5":{"at":"2026-11-21T12:00:00Z","by":"smartup","node":"h1","why":"it crashed"},
        "bash-5-1.noarch":{"at":"2026-11-21T12:00:00Z","by":"smartup","node":"h1","why":"it crashed"},
        "kept-1-1.noarch":{"node":"h8"}}
        "#);
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let spec = json!({ "bannedPackages": ["kept-1-1.noarch", "by a vendor", "bash-5-1.noarch"], "bannedPatches": ["123-4-r5"] });
        assert_eq!(patch["spec"], spec);
        let mut after = manager;
        merge(&mut after, &patch);
        assert_eq!(bans(&after, &attribution, Timestamp::UNIX_EPOCH).unwrap(), None, "once is enough");
    }

    #[test]
    fn of_many_bans_the_oldest_lose_their_notes() {
        let packages: Vec<String> = (0..4000).map(|n| format!("package{n}-1-1.noarch")).collect();
        let note =
            |n: usize| json!({ "by": "smartup", "node": "h9", "at": Timestamp::from_second(n.try_into().unwrap()).unwrap().to_string() });
        let notes: Map<String, Value> = packages.iter().enumerate().map(|(n, item)| (item.clone(), note(n))).collect();
        let manager = json!({
            "metadata": { "annotations": { BANS_ANNOTATION: Value::Object(notes).to_string() } },
            "spec": { "bannedPackages": packages },
        });
        let items = vec!["bash-5-1.noarch".parse::<Item>().unwrap()];
        let attribution = Attribution { bans: items, suspects: vec![], node: "h1".into(), because: "it crashed".into() };
        let patch = bans(&manager, &attribution, "2026-11-21T12:00:00Z".parse().unwrap()).unwrap().unwrap();
        let text = patch.pointer("/metadata/annotations").and_then(|a| a.get(BANS_ANNOTATION)).and_then(Value::as_str).unwrap();
        let kept: Map<String, Value> = serde_json::from_str(text).unwrap();
        assert!((NOTES - 200..=NOTES).contains(&text.len()), "{}", text.len());
        assert!(kept.contains_key("bash-5-1.noarch") && kept.contains_key(&packages[3999]) && !kept.contains_key(&packages[0]));
        assert_eq!(patch["spec"]["bannedPackages"].as_array().unwrap().len(), 4001, "and all stay banned");
    }
}
