//! kubeconfig files, and Kubernetes clients made from them.

use crate::layout::write;
use anyhow::Result;
use base64::Engine as _;
use std::path::Path;

/// Writes one that points at certificate files.
///
/// # Errors
/// It cannot be written.
pub fn by_reference(path: &Path, url: &str, ca: &Path, cert: &Path, key: &Path) -> Result<()> {
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    server: {url}\n    certificate-authority: {}\n  name: local\ncontexts:\n- context:\n    cluster: local\n    namespace: default\n    user: user\n  name: Default\ncurrent-context: Default\npreferences: {{}}\nusers:\n- name: user\n  user:\n    client-certificate: {}\n    client-key: {}\n",
        ca.display(),
        cert.display(),
        key.display(),
    );
    write(path, text.as_bytes(), 0o600)
}

/// The text of one that holds its certificates, as in `k3s.yaml`.
///
/// # Errors
/// A certificate cannot be read.
pub fn embedded(url: &str, ca: &Path, cert: &Path, key: &Path) -> Result<String> {
    let data = |p: &Path| Ok::<_, std::io::Error>(base64::engine::general_purpose::STANDARD.encode(std::fs::read(p)?));
    Ok(format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: {url}\n  name: default\ncontexts:\n- context:\n    cluster: default\n    user: default\n  name: default\ncurrent-context: default\nkind: Config\npreferences: {{}}\nusers:\n- name: default\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        data(ca)?,
        data(cert)?,
        data(key)?,
    ))
}

/// A client as the file's user.
///
/// # Errors
/// The file or its certificates cannot be used.
pub async fn client(path: &Path) -> Result<kube::Client> {
    let file = kube::config::Kubeconfig::read_from(path)?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?;
    // Whoever asks here asks again by itself, and wants to know of each failure.
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?)
}
