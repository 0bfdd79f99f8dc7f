//! Which of a node's labels smartup has set. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use updates::names;

/// A node's labels of smart updates.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Those that smartup has set.
    pub ours: Vec<String>,
    /// Those that somebody else has set, with who it was.
    pub others: Vec<(String, String)>,
}

/// Tells them apart by who owns the field (Kubernetes, "Server-Side Apply", managedFields).
pub fn labels(meta: &ObjectMeta) -> Labels {
    let mut found = Labels::default();
    let prefix = format!("{}/", names::GROUP);
    for label in meta.labels.iter().flatten().map(|(name, _)| name).filter(|l| l.starts_with(&prefix)) {
        let field = format!("f:{label}");
        let owns = meta.managed_fields.iter().flatten().filter(|m| {
            let fields = m.fields_v1.as_ref().map(|f| &f.0["f:metadata"]["f:labels"]);
            fields.is_some_and(|f| f.get(&field).is_some())
        });
        let owners: Vec<&str> = owns.filter_map(|m| m.manager.as_deref()).collect();
        if owners.contains(&names::FIELD_MANAGER) {
            found.ours.push(label.clone());
        } else {
            found.others.push((label.clone(), owners.first().copied().unwrap_or("somebody").to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_labels_of_smart_updates_and_by_who_set_them() {
        let field = |manager: &str, label: &str| json!({"manager": manager, "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {format!("f:{label}"): {}}}}});
        let meta: ObjectMeta = serde_json::from_value(json!({
            "labels": {names::POLICY_LABEL: "fast", names::SUSPEND_LABEL: "", "maintenance.virtuozzo.io/x": "", "mine": "1"},
            "managedFields": [field("smartup", names::POLICY_LABEL), field("kubectl-label", names::SUSPEND_LABEL), field("smartup", "mine")],
        }))
        .unwrap();
        let others = [(names::SUSPEND_LABEL, "kubectl-label"), ("maintenance.virtuozzo.io/x", "somebody")];
        let others = others.map(|(l, who)| (l.to_owned(), who.to_owned())).to_vec();
        assert_eq!(labels(&meta), Labels { ours: vec![names::POLICY_LABEL.to_owned()], others });
    }
}
