use std::path::Path;
use std::time::Duration;

use kube::client::ConfigExt as _;
use node::{Context as _, Result};
use reqwest::{Client, StatusCode};

use crate::ready::config;

/// Asks the API as somebody does who comes anew: each question has a connection of its own, with TLS verified by the cluster's CA
/// and the credentials of this host.
#[derive(Debug, Clone)]
pub struct Probe {
    client: Client,
    base: String,
}

impl Probe {
    /// For the API at `base` (`https://…`), with what a kubeconfig on this host has. A question that has no answer within `limit`
    /// counts as not answered.
    ///
    /// # Errors
    /// When the kubeconfig is not there or cannot be used.
    pub async fn new(kubeconfig: &Path, base: String, limit: Duration) -> Result<Self> {
        let what = || format!("cannot use {}", kubeconfig.display());
        let tls = config(kubeconfig).await?.rustls_client_config().context(what())?;
        let client = Client::builder().tls_backend_preconfigured(tls).http1_only().pool_max_idle_per_host(0).no_proxy().timeout(limit);
        Ok(Self { client: client.build().context(what())?, base })
    }

    /// Whether a path is answered with 200.
    pub async fn answers(&self, path: &str) -> bool {
        let answer = self.client.get(format!("{}{path}", self.base)).send().await;
        answer.is_ok_and(|a| a.status() == StatusCode::OK)
    }
}
