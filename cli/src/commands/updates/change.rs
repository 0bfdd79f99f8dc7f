//! From edits to what the API server has: nobody else's change is lost, and every change is said.

use kube::api::DynamicObject;
use node::{Error, Result};
use serde_json::Value;
use updates::edit::{Edit, NodeEdit, Refusal, edit, label};

use super::access::{Objects, patched};

/// How often an edit is made anew because somebody else was faster. Each time, somebody has been.
const TRIES: usize = 10;

/// Makes all `edits` in one patch, on what is there at that moment.
///
/// # Errors
/// When an edit cannot be made, the API refuses the patch, or the cluster's `UpdateManager` cannot hold it.
pub async fn apply(objects: &Objects, edits: &[Edit]) -> Result<()> {
    for _ in 0..TRIES {
        let before = raw(&objects.manager().await?)?;
        let edited = edit(&before, edits).map_err(refused)?;
        let Some(patch) = &edited.patch else {
            say(&edited.said);
            return Ok(());
        };
        if let Some(after) = patched(&objects.managers, updates::names::INSTANCE, patch).await? {
            say(&edited.said);
            let lost = lost(&patch["spec"], raw(&after)?.get("spec").unwrap_or(&Value::Null), "spec");
            return if lost.is_empty() { Ok(()) } else { Err(not_kept(&lost)) };
        }
    }
    Err(Error::failed(format!("the UpdateManager was changed by others {TRIES} times meanwhile; nothing was changed by this command"))
        .hint("try it again"))
}

/// Changes the labels of nodes; all names are looked at before any is changed.
///
/// # Errors
/// When there is no such node, or the API refuses the change.
pub async fn relabel(objects: &Objects, names: &[String], edit: NodeEdit) -> Result<()> {
    let nodes = objects.node_labels().await?;
    if let Some(unknown) = names.iter().find(|n| !nodes.contains_key(n.as_str())) {
        return Err(no_such_node(unknown, &nodes.keys().map(String::as_str).collect::<Vec<_>>()));
    }
    for (name, labels) in nodes.iter().filter(|(name, _)| names.contains(name)) {
        let edited = label(name, labels, edit);
        if let Some(patch) = &edited.patch {
            patched(&objects.nodes, name, patch)
                .await?
                .ok_or_else(|| Error::failed(format!("{name} is being changed by somebody else")))?;
        }
        say(&edited.said);
    }
    Ok(())
}

/// The whole object as JSON, with all that a vendor's operator has in it.
///
/// # Errors
/// None that can come up with an object that came as JSON.
pub fn raw(object: &DynamicObject) -> Result<Value> {
    node::Context::context(serde_json::to_value(object), "cannot write JSON")
}

fn say(lines: &[String]) {
    for line in lines {
        anstream::println!("{line}");
    }
}

fn refused(refusal: Refusal) -> Error {
    let error = Error::invalid(refusal.what);
    match refusal.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// A name that no node has, with the nearest.
pub fn no_such_node(name: &str, known: &[&str]) -> Error {
    let hint = match (cluster::nearest(name, known.iter().copied()), known.split_at_checked(SHOWN)) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, Some((first, rest))) if !rest.is_empty() => format!("the nodes are {} and {} more", first.join(", "), rest.len()),
        (None, _) => format!("the nodes are {}", known.join(", ")),
    };
    Error::invalid(format!("there is no node {name}; nothing was changed")).hint(hint)
}

/// How many nodes a hint names.
const SHOWN: usize = 10;

/// What was sent, and is not there afterwards: an API server drops fields that a definition does not have. What it adds is
/// nobody's loss.
fn lost(sent: &Value, there: &Value, at: &str) -> Vec<String> {
    match (sent, there) {
        (Value::Object(sent), Value::Object(there)) => {
            let field = |(key, value): (&String, &Value)| lost(value, there.get(key).unwrap_or(&Value::Null), &format!("{at}.{key}"));
            sent.iter().flat_map(field).collect()
        }
        (Value::Array(sent), Value::Array(there)) if sent.len() == there.len() => {
            sent.iter().zip(there).enumerate().flat_map(|(i, (sent, there))| lost(sent, there, &format!("{at}[{i}]"))).collect()
        }
        _ if sent == there => Vec::new(),
        _ => vec![format!("{at}: {sent}")],
    }
}

fn not_kept(lost: &[String]) -> Error {
    let error = Error::failed(format!("the UpdateManager of this cluster's operator did not keep {}", lost.join(", ")));
    if lost.iter().any(|l| l.contains(".timeZone")) {
        error.hint("the window now opens by the operator's own clock, mostly UTC: remove it (smartup updates window list, remove), and write it in UTC")
    } else {
        error.hint("smartup updates status -o yaml shows what is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_definition_drops_is_seen() {
        let sent = json!({
            "maintenanceWindows": [{ "schedule": "0 1 * * *", "duration": "1h", "timeZone": "Europe/Berlin" }],
            "suspend": true, "bannedPatches": [],
        });
        assert_eq!(lost(&sent, &sent, "spec"), [""; 0]);
        let mut there = sent.clone();
        there["vendors"] = json!(1);
        there["maintenanceWindows"][0]["name"] = json!("defaulted");
        assert_eq!(lost(&sent, &there, "spec"), [""; 0]);
        there["maintenanceWindows"][0].as_object_mut().unwrap().remove("timeZone");
        there.as_object_mut().unwrap().remove("suspend");
        let e = not_kept(&lost(&sent, &there, "spec"));
        insta::assert_snapshot!(format!("{}\nhint: {}", e.chain(), e.hint.unwrap()), @r#"
        the UpdateManager of this cluster's operator did not keep spec.maintenanceWindows[0].timeZone: "Europe/Berlin", spec.suspend: true
        hint: the window now opens by the operator's own clock, mostly UTC: remove it (smartup updates window list, remove), and write it in UTC
        "#);
    }

    #[test]
    fn the_nearest_node_is_named() {
        let hint = |name: &str, known: &[&str]| no_such_node(name, known).hint.unwrap();
        assert_eq!(hint("node1.exmaple.local", &["node1.example.local", "n2"]), "did you mean node1.example.local?");
        assert_eq!(hint("db", &["n1", "n2"]), "the nodes are n1, n2");
        let many: Vec<_> = (100..120).map(|n| format!("n{n}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(hint("x", &many), "the nodes are n100, n101, n102, n103, n104, n105, n106, n107, n108, n109 and 10 more");
    }
}
