//! kubeconfig files, and Kubernetes clients made from them.

use crate::layout::write;
use anyhow::{Context as _, Result};
use base64::Engine as _;
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

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

/// The answer to a short question. An API server that is about to start or to end may leave it open: no answer for 5 s is an error.
///
/// # Errors
/// That, and what the API says.
pub async fn soon<T>(question: impl Future<Output = kube::Result<T>>) -> Result<T> {
    Ok(tokio::time::timeout(SOON, question).await.context("no answer")??)
}
