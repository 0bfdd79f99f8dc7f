use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Client;
use kube::api::{Api, DeleteParams};
use node::{Error, Result};

use crate::ready::in_words;

/// Deletes a node, and the password that k3s keeps for it: a new host of the same name brings another one, and would be refused.
/// What is gone already is no error; answers whether anything was there. The host's kubelet must have ended: it would register
/// the node again.
///
/// # Errors
/// When the API does not answer or refuses.
pub async fn forget(client: &Client, node: &str) -> Result<bool> {
    let gone = |what: String| {
        move |e: kube::Error| match e {
            kube::Error::Api(status) if status.code == 404 => Ok(false),
            e => Err(Error::failed(format!("cannot delete {what}: {}", in_words(&e)))),
        }
    };
    let deleted = Api::<Node>::all(client.clone()).delete(node, &DeleteParams::default()).await;
    let there = deleted.map(|_| true).or_else(gone(format!("node {node}")))?;
    // after the node: k3s deletes the password as well once the node is gone, but not every version does
    let secret = format!("{node}.node-password.k3s");
    let deleted = Api::<Secret>::namespaced(client.clone(), "kube-system").delete(&secret, &DeleteParams::default()).await;
    let password = deleted.map(|_| true).or_else(gone(format!("secret kube-system/{secret}")))?;
    Ok(there || password)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake_api::FakeApi;

    #[tokio::test]
    async fn node_and_password_go_and_a_second_time_does_no_harm() {
        let api = FakeApi::default();
        api.put("/api/v1/nodes/h3", json!({}));
        api.put("/api/v1/nodes/h4", json!({}));
        api.put("/api/v1/namespaces/kube-system/secrets/h3.node-password.k3s", json!({}));
        let client = api.client();
        assert!(forget(&client, "h3").await.unwrap());
        assert_eq!(api.paths(), ["/api/v1/nodes/h4"]);
        assert!(!forget(&client, "h3").await.unwrap());
        api.put("/api/v1/namespaces/kube-system/secrets/h3.node-password.k3s", json!({}));
        assert!(forget(&client, "h3").await.unwrap(), "a password without a node");
        assert_eq!(api.paths(), ["/api/v1/nodes/h4"]);
        api.fail("DELETE", "/api/v1/nodes/h4", 403);
        let e = forget(&client, "h4").await.unwrap_err();
        assert!(e.what.starts_with("cannot delete node h4: "), "{}", e.what);
    }
}
