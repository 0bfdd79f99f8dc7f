//! A node: certificates from a server, containerd, kubelet, kube-proxy and the pod network.

use crate::client::Remote;
use crate::kubeconfig::{self, by_reference};
use crate::layout::{folder, write};
use crate::loadbalancer::LoadBalancer;
use crate::process::kubernetes_component;
use crate::settings::Node;
use crate::{containerd, error, network, no_docker, node_password};
use anyhow::{Context as _, Result, anyhow, bail};
use kube::api::{Patch, PatchParams};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Joins the cluster behind `url` and runs until the process ends. `ready` is called once all
/// components run.
///
/// # Errors
/// What makes a real agent give up; a server that does not answer or refuses is asked again.
pub async fn run(
    node: Node,
    url: &str,
    balancer: Option<(LoadBalancer, String)>,
    token: &str,
    args: &[String],
    ready: impl FnOnce(),
) -> Result<()> {
    let remote = loop {
        match Remote::connect(url, token, "node").await {
            Ok(remote) => break remote,
            Err(e) => error!("{e:#}"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let config = loop {
        match fetch(&node, &remote).await {
            Ok(config) => break config,
            Err(e) => error!("Failed to retrieve agent config: {e:#}"),
        }
        // Our own server is up in a moment; another one is asked as often as k3s does.
        tokio::time::sleep(Duration::from_millis(if balancer.is_some() { 5000 } else { 500 })).await;
    };
    let layout = &node.layout;
    let (ca, kubelet, proxy) = (layout.agent("server-ca.crt"), layout.agent("kubelet.kubeconfig"), layout.agent("kubeproxy.kubeconfig"));
    by_reference(&kubelet, url, &ca, &layout.agent("client-kubelet.crt"), &layout.agent("client-kubelet.key"))?;
    by_reference(&proxy, url, &ca, &layout.agent("client-kube-proxy.crt"), &layout.agent("client-kube-proxy.key"))?;
    if !node.docker {
        no_docker::start()?;
        containerd::start(&node).await?;
    }
    wait_for_api(&kubelet).await;
    start_kubelet(&node, &config, &kubelet).await?;
    start_kube_proxy(&node, &config, &proxy).await?;
    let cluster_cidr = config["ClusterIPRange"].as_str().unwrap_or("10.42.0.0/16").to_owned();
    tokio::spawn(network::keep(node.clone(), cluster_cidr, kubelet.clone()));
    tokio::spawn(annotate(node.clone(), kubelet, args.to_vec()));
    if let Some((balancer, original)) = balancer {
        tokio::spawn(balancer.follow(original, proxy));
    }
    ready();
    std::future::pending().await
}

/// Gets configuration and certificates, and writes the latter.
async fn fetch(node: &Node, remote: &Remote) -> Result<serde_json::Value> {
    let config = serde_json::from_slice(&remote.get("/v1-k3s/config", &[]).await?)?;
    let password = node_password::own().context("cannot read the node password")?;
    let ip = node.ip.to_string();
    let headers = [("k3s-Node-Name", node.name.as_str()), ("k3s-Node-Password", &password), ("k3s-Node-IP", &ip)];
    let agent = |f: &str| node.layout.agent(f);
    for name in ["client-kubelet", "serving-kubelet"] {
        let pem = remote.get(&format!("/v1-k3s/{name}.crt"), &headers).await.map_err(|e| {
            if e.to_string().contains(": 403 ") {
                anyhow!("Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag")
            } else {
                e
            }
        })?;
        split(&pem, &agent(&format!("{name}.crt")), &agent(&format!("{name}.key")))?;
    }
    let pem = remote.get("/v1-k3s/client-kube-proxy.crt", &[]).await?;
    split(&pem, &agent("client-kube-proxy.crt"), &agent("client-kube-proxy.key"))?;
    let pem = remote.get("/v1-k3s/client-k3s-controller.crt", &[]).await?;
    split(&pem, &agent("client-k3s-controller.crt"), &agent("client-k3s-controller.key"))?;
    for name in ["client-ca.crt", "server-ca.crt"] {
        write(&agent(name), &remote.get(&format!("/v1-k3s/{name}"), &[]).await?, 0o644)?;
    }
    Ok(config)
}

/// Certificates and key come in one piece.
fn split(pem: &[u8], crt: &Path, key: &Path) -> Result<()> {
    let text = std::str::from_utf8(pem)?;
    let at = text.rfind("-----BEGIN").filter(|at| text[*at..].contains("PRIVATE KEY"));
    let Some(at) = at else { bail!("the server sent no key for {}", crt.display()) };
    write(crt, &pem[..at], 0o644)?;
    write(key, &pem[at..], 0o600)
}

/// kubelet would try only every few seconds.
async fn wait_for_api(kubelet: &Path) {
    loop {
        if let Ok(client) = kubeconfig::client(kubelet).await
            && kubeconfig::soon(client.apiserver_version()).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn start_kubelet(node: &Node, config: &serde_json::Value, kubeconfig: &Path) -> Result<()> {
    let agent = |f: &str| node.layout.agent(f);
    folder(&agent("pod-manifests"))?;
    let text = serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": agent("client-ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "clusterDNS": [config["ClusterDNS"]],
        "clusterDomain": "cluster.local",
        "evictionHard": {"imagefs.available": "1%", "nodefs.available": "1%"},
        "failSwapOn": false,
        "featureGates": {"LocalStorageCapacityIsolation": false},
        "healthzBindAddress": "127.0.0.1",
        "imageGCHighThresholdPercent": 100,
        // Changes show within 2 s; without a change there is nothing to write.
        "nodeStatusReportFrequency": "1m",
        "nodeStatusUpdateFrequency": "2s",
        "readOnlyPort": 0,
        "resolvConf": resolv_conf(&node.layout.agent("etc/resolv.conf"))?,
        "serializeImagePulls": false,
        "staticPodPath": agent("pod-manifests"),
        "tlsCertFile": agent("serving-kubelet.crt"),
        "tlsPrivateKeyFile": agent("serving-kubelet.key"),
        "volumePluginDir": agent("volume-plugins"),
    });
    let file = agent("etc/kubelet.conf");
    write(&file, text.to_string().as_bytes(), 0o600)?;
    let mut labels = vec!["beta.kubernetes.io/instance-type=k3s".to_owned(), "node.kubernetes.io/instance-type=k3s".to_owned()];
    labels.extend(node.labels.iter().cloned());
    let mut flags = vec![
        ("config", file.display().to_string()),
        ("hostname-override", node.name.clone()),
        ("kubeconfig", kubeconfig.display().to_string()),
        ("node-ip", node.ip.to_string()),
        ("node-labels", labels.join(",")),
    ];
    if !node.taints.is_empty() {
        flags.push(("register-with-taints", node.taints.join(",")));
    }
    if node.docker {
        flags.extend([
            ("container-runtime", "docker".to_owned()),
            ("network-plugin", "cni".to_owned()),
            ("cni-bin-dir", "/usr/lib/cni".to_owned()),
            ("cni-conf-dir", agent("etc/cni/net.d").display().to_string()),
            ("pod-infra-container-image", containerd::PAUSE.to_owned()),
        ]);
    } else {
        flags.extend([
            ("container-runtime", "remote".to_owned()),
            ("container-runtime-endpoint", format!("unix://{}", containerd::SOCKET)),
            ("docker", format!("unix://{}", no_docker::SOCKET)),
        ]);
    }
    kubernetes_component("kubelet", &flags, &node.kubelet_args).await
}

/// kubelet wants a file that exists; as k3s does, a host without a useful one gets a made-up one.
fn resolv_conf(made: &Path) -> Result<PathBuf> {
    let host = Path::new("/etc/resolv.conf");
    if std::fs::read_to_string(host).is_ok_and(|t| t.lines().any(|l| l.trim_start().starts_with("nameserver"))) {
        return Ok(host.to_owned());
    }
    write(made, b"nameserver 8.8.8.8\n", 0o644)?;
    Ok(made.to_owned())
}

async fn start_kube_proxy(node: &Node, config: &serde_json::Value, kubeconfig: &Path) -> Result<()> {
    if config["DisableKubeProxy"] == true {
        return Ok(());
    }
    let flags = [
        ("cluster-cidr", config["ClusterIPRange"].as_str().unwrap_or_default().to_owned()),
        // The machine's own limits are not a host's to change.
        ("conntrack-max-per-core", "0".to_owned()),
        ("conntrack-tcp-timeout-close-wait", "0s".to_owned()),
        ("conntrack-tcp-timeout-established", "0s".to_owned()),
        ("healthz-bind-address", "127.0.0.1".to_owned()),
        ("hostname-override", node.name.clone()),
        ("kubeconfig", kubeconfig.display().to_string()),
        ("proxy-mode", "iptables".to_owned()),
    ];
    kubernetes_component("kube-proxy", &flags, &node.kube_proxy_args).await
}

/// Writes what k3s notes on its Node, as soon as there is one.
async fn annotate(node: Node, kubelet: PathBuf, args: Vec<String>) {
    let patch = serde_json::json!({"metadata": {"annotations": {
        "k3s.io/hostname": node.name,
        "k3s.io/internal-ip": node.ip.to_string(),
        "k3s.io/node-args": serde_json::json!(redacted(&args)).to_string(),
        "k3s.io/node-env": "{}",
    }}});
    loop {
        if let Ok(client) = kubeconfig::client(&kubelet).await {
            let api: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client);
            if api.patch(&node.name, &PatchParams::default(), &Patch::Merge(&patch)).await.is_ok() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// As in k3s: the values of the long secret flags are stars; those of the short ones are not.
fn redacted(args: &[String]) -> Vec<String> {
    let secret = |name: &str| matches!(name.trim_start_matches('-'), "token" | "agent-token" | "datastore-endpoint");
    let mut out = Vec::new();
    let mut hide = false;
    for word in args {
        let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v)));
        if hide {
            out.push("********".to_owned());
            hide = false;
        } else if word.starts_with('-') && value.is_some() {
            out.push(name.to_owned());
            out.push(if secret(name) { "********" } else { value.unwrap_or_default() }.to_owned());
        } else {
            hide = word.starts_with("--") && secret(name);
            out.push(word.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_without_their_secrets() {
        let args = ["server", "--token", "s", "--agent-token=s", "-t", "s", "--tls-san=a"].map(String::from);
        assert_eq!(redacted(&args), ["server", "--token", "********", "--agent-token", "********", "-t", "s", "--tls-san", "a"]);
    }

    #[test]
    fn bundles_are_split() {
        let dir = tempfile::tempdir().unwrap();
        let (crt, key) = (dir.path().join("c"), dir.path().join("k"));
        let c = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n";
        let k = "-----BEGIN PRIVATE KEY-----\ny\n-----END PRIVATE KEY-----\n";
        split(format!("{c}{c}{k}").as_bytes(), &crt, &key).unwrap();
        assert_eq!(std::fs::read_to_string(&crt).unwrap(), format!("{c}{c}"));
        assert_eq!(std::fs::read_to_string(&key).unwrap(), k);
        assert!(split(c.as_bytes(), &crt, &key).is_err());
    }
}
