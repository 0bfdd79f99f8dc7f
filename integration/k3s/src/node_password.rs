//! Node passwords: each host proves with a secret of its own that a node name is its own. The
//! cluster keeps the hash in the secret `<node>.node-password.k3s`.

use crate::layout::write;
use crate::token::{hash, random_hex};
use anyhow::Result;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use std::path::Path;

const FILE: &str = "/etc/rancher/node/password";

/// This host's password; made at the first use.
///
/// # Errors
/// The file cannot be read or written.
pub fn own() -> Result<String> {
    let path = Path::new(FILE);
    if !path.exists() {
        write(path, format!("{}\n", random_hex(16)?).as_bytes(), 0o600)?;
    }
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

/// Whether a node's password is the one that the cluster knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is, or it was unknown and is now remembered.
    Right,
    /// Another host has that name.
    Wrong,
}

/// Checks a node's password; an unknown node's is remembered.
///
/// # Errors
/// The API does not answer.
pub async fn check(client: &Client, node: &str, password: &str) -> Result<Verdict> {
    let api: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let name = format!("{node}.node-password.k3s");
    if let Some(secret) = api.get_opt(&name).await? {
        let known = secret.data.and_then(|mut d| d.remove("hash")).and_then(|h| String::from_utf8(h.0).ok());
        return Ok(if known.is_some_and(|k| matches(&k, password)) { Verdict::Right } else { Verdict::Wrong });
    }
    let mut secret = Secret::default();
    secret.metadata.name = Some(name);
    secret.immutable = Some(true);
    secret.string_data = Some([("hash".to_owned(), hashed(&random_hex(8)?, password))].into());
    api.create(&PostParams::default(), &secret).await?;
    Ok(Verdict::Right)
}

/// Forgets a node's password, as its node is gone.
///
/// # Errors
/// The API does not answer, or there is none.
pub async fn forget(client: &Client, node: &str) -> Result<()> {
    let api: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    api.delete(&format!("{node}.node-password.k3s"), &kube::api::DeleteParams::default()).await?;
    Ok(())
}

fn hashed(salt: &str, password: &str) -> String {
    format!("$1:{salt}:{}", hash(format!("{salt}{password}").as_bytes()))
}

fn matches(known: &str, password: &str) -> bool {
    known.split(':').nth(1).is_some_and(|salt| hashed(salt, password) == known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes() {
        let known = hashed("aa", "secret");
        assert!(matches(&known, "secret"));
        assert!(!matches(&known, "other"));
        assert!(!matches("", "other"));
    }
}
