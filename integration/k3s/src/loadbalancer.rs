//! An agent's way to the API: a port on loopback, all servers behind it.

use crate::layout::{Layout, write};
use crate::{info, kubeconfig};
use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Endpoints;
use kube::runtime::{WatchStreamExt as _, watcher};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Where it listens, as in k3s.
pub const ADDRESS: &str = "127.0.0.1:6444";

/// The servers, the one to try first at the front.
#[derive(Clone)]
pub struct LoadBalancer {
    file: PathBuf,
    /// The server of `--server`; always the last resort.
    original: String,
    servers: Arc<Mutex<Vec<String>>>,
}

impl LoadBalancer {
    /// Listens; the servers known from an earlier start are tried too.
    ///
    /// # Errors
    /// The URL has no host, or the port is taken.
    pub async fn start(layout: &Layout, server_url: &str) -> Result<Self> {
        let original = authority(server_url).with_context(|| format!("Invalid url, failed to parse {server_url}"))?;
        let file = layout.agent("etc/k3s-agent-load-balancer.json");
        let mut servers = std::fs::read(&file)
            .ok()
            .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
            .filter(|saved| saved["ServerURL"] == server_url)
            .and_then(|saved| serde_json::from_value::<Vec<String>>(saved["ServerAddresses"].clone()).ok())
            .unwrap_or_default();
        if servers.is_empty() {
            servers.push(original.clone());
        }
        let listener = TcpListener::bind(ADDRESS).await.with_context(|| format!("listen tcp {ADDRESS}"))?;
        info!("Running load balancer {ADDRESS} -> {servers:?}");
        let this = Self { file, original, servers: Arc::new(Mutex::new(servers)) };
        this.save(server_url)?;
        tokio::spawn(this.clone().serve(listener));
        Ok(this)
    }

    fn list(&self) -> Vec<String> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn serve(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((down, _)) => {
                    tokio::spawn(self.clone().carry(down));
                }
                Err(e) => {
                    crate::error!("load balancer: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn carry(self, mut down: TcpStream) {
        let mut servers = self.list();
        if !servers.contains(&self.original) {
            servers.push(self.original.clone());
        }
        for server in servers {
            let Ok(Ok(mut up)) = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(&server)).await else {
                self.demote(&server);
                continue;
            };
            // Either side may hang up at any time.
            let _ = tokio::io::copy_bidirectional(&mut down, &mut up).await;
            return;
        }
    }

    /// One that does not answer is tried last from now on.
    fn demote(&self, server: &str) {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = servers.iter().position(|s| s == server) {
            let gone = servers.remove(at);
            servers.push(gone);
        }
    }

    fn save(&self, server_url: &str) -> Result<()> {
        let text = serde_json::json!({"ServerURL": server_url, "ServerAddresses": self.list()});
        write(&self.file, text.to_string().as_bytes(), 0o600)
    }

    /// Keeps the list in step with the `kubernetes` endpoints, for ever.
    pub async fn follow(self, server_url: String, kubeconfig: PathBuf) {
        loop {
            if let Err(e) = self.follow_once(&server_url, &kubeconfig).await {
                crate::error!("load balancer: {e:#}");
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }

    async fn follow_once(&self, server_url: &str, kubeconfig: &std::path::Path) -> Result<()> {
        let api: kube::Api<Endpoints> = kube::Api::namespaced(kubeconfig::client(kubeconfig).await?, "default");
        let only = watcher::Config::default().fields("metadata.name=kubernetes");
        let mut events = std::pin::pin!(watcher(api, only).default_backoff().applied_objects());
        while let Some(endpoints) = events.try_next().await? {
            let mut found: Vec<String> = Vec::new();
            for subset in endpoints.subsets.into_iter().flatten() {
                let ports: Vec<i32> = subset.ports.into_iter().flatten().map(|p| p.port).collect();
                for address in subset.addresses.into_iter().flatten() {
                    let host = if address.ip.contains(':') { format!("[{}]", address.ip) } else { address.ip };
                    found.extend(ports.iter().map(|port| format!("{host}:{port}")));
                }
            }
            if found.is_empty() {
                continue;
            }
            found.sort();
            let old = self.list();
            let mut sorted = old.clone();
            sorted.sort();
            if sorted != found {
                info!("Updating load balancer server addresses -> {found:?}");
                // Those that work now keep their place.
                let mut next: Vec<String> = old.into_iter().filter(|s| found.contains(s)).collect();
                let more: Vec<String> = found.into_iter().filter(|s| !next.contains(s)).collect();
                next.extend(more);
                *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = next;
                self.save(server_url)?;
            }
        }
        Ok(())
    }
}

/// `host:port` of an https URL.
fn authority(url: &str) -> Option<String> {
    let rest = url.strip_prefix("https://")?.split('/').next()?;
    let port_at = rest.rfind(':').filter(|at| rest[*at..].find(']').is_none());
    let host = port_at.map_or(rest, |at| &rest[..at]);
    if host.is_empty() {
        return None;
    }
    Some(if port_at.is_some() { rest.to_owned() } else { format!("{rest}:443") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        assert_eq!(authority("https://10.0.0.1:9443").as_deref(), Some("10.0.0.1:9443"));
        assert_eq!(authority("https://[fd00::1]:9443/").as_deref(), Some("[fd00::1]:9443"));
        assert_eq!(authority("https://[fd00::1]").as_deref(), Some("[fd00::1]:443"));
        assert_eq!(authority("https://host").as_deref(), Some("host:443"));
        assert_eq!(authority("http://host"), None);
        assert_eq!(authority("https://"), None);
    }
}
