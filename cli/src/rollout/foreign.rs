//! What somebody else keeps in a namespace that is to go. Pure.

use kube::api::ObjectMeta;

/// Whether an object in a namespace is somebody's own: neither made for another object, nor what Kubernetes puts into every namespace,
/// nor what comes and goes by itself.
pub fn is_somebodys(kind: &str, meta: &ObjectMeta) -> bool {
    if matches!(kind, "Event" | "Lease" | "Endpoints" | "EndpointSlice") || meta.owner_references.as_ref().is_some_and(|o| !o.is_empty()) {
        return false;
    }
    let account = || meta.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/service-account.name"));
    match (kind, meta.name.as_deref()) {
        ("ServiceAccount", Some("default")) | ("ConfigMap", Some("kube-root-ca.crt")) => false,
        ("Secret", _) => !account(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_kubernetes_makes_by_itself_is_nobodys() {
        let is = |kind: &str, meta: serde_json::Value| is_somebodys(kind, &serde_json::from_value(meta).unwrap());
        assert!(
            is("ConfigMap", json!({"name": "mine"}))
                && is("Secret", json!({"name": "mine"}))
                && is("ServiceAccount", json!({"name": "mine"}))
        );
        assert!(!is("ConfigMap", json!({"name": "kube-root-ca.crt"})) && !is("ServiceAccount", json!({"name": "default"})));
        assert!(!is("Secret", json!({"name": "default-token-x", "annotations": {"kubernetes.io/service-account.name": "default"}})));
        assert!(!is("Event", json!({"name": "e"})) && !is("Lease", json!({"name": "smartup-controller"})));
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u"}]);
        assert!(!is("Pod", json!({"name": "p", "ownerReferences": owner})) && is("Pod", json!({"name": "p"})));
    }
}
