use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Client;
use kube::api::{Api, ListParams};
use node::{Error, Result};

use crate::ready::in_words;

/// The volumes that can be used on this node alone, as k3s's local-path provisioner makes them: by their claims' names, or
/// their own where they have none.
///
/// # Errors
/// When the API does not answer or refuses.
pub async fn volumes_on(client: &Client, node: &str) -> Result<Vec<String>> {
    let all = Api::<PersistentVolume>::all(client.clone()).list(&ListParams::default()).await;
    let all = all.map_err(|e| Error::failed(format!("cannot list the volumes: {}", in_words(&e))))?;
    Ok(all.items.iter().filter(|v| is_only_on(v, node)).map(name).collect())
}

fn is_only_on(volume: &PersistentVolume, node: &str) -> bool {
    let terms = || Some(&volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?.node_selector_terms);
    let names_only = |values: &Vec<String>| values.len() == 1 && values[0] == node;
    terms().is_some_and(|terms| {
        !terms.is_empty()
            && terms.iter().all(|term| {
                let rules = term.match_expressions.iter().flatten();
                rules.into_iter().any(|rule| {
                    rule.key == "kubernetes.io/hostname" && rule.operator == "In" && rule.values.as_ref().is_some_and(names_only)
                })
            })
    })
}

fn name(volume: &PersistentVolume) -> String {
    let claim = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let claim = claim.and_then(|c| Some(format!("{}/{}", c.namespace.as_ref()?, c.name.as_ref()?)));
    claim.unwrap_or_else(|| volume.metadata.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_bound_to_the_node() {
        let volume = |values: serde_json::Value| -> PersistentVolume {
            serde_json::from_value(json!({
                "metadata": { "name": "pvc-1" },
                "spec": {
                    "claimRef": { "namespace": "default", "name": "data" },
                    "nodeAffinity": { "required": { "nodeSelectorTerms": [
                        { "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": values }] }
                    ] } }
                }
            }))
            .unwrap()
        };
        assert!(is_only_on(&volume(json!(["h1"])), "h1") && !is_only_on(&volume(json!(["h1"])), "h2"));
        assert!(!is_only_on(&volume(json!(["h1", "h2"])), "h1") && !is_only_on(&PersistentVolume::default(), "h1"));
        assert_eq!(name(&volume(json!(["h1"]))), "default/data");
    }
}
