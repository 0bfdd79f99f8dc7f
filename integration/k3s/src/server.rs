//! `k3s server`.

use crate::cli::Parsed;
use crate::client::Remote;
use crate::control_plane::{ControlPlane, LOOPBACK};
use crate::etcd::{Etcd, Members};
use crate::identity::{Verifier, server_tls};
use crate::layout::{Layout, folder, write};
use crate::pki::{BOOTSTRAP, Sans, ensure_server};
use crate::proxy::Proxy;
use crate::settings::{Node, component_args, token};
use crate::supervisor::{Supervisor, listen};
use crate::{agent, bootstrap as keys, error, info, kubeconfig, manifests, nodes, notify, passwd, snapshot, warning};
use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// After which kube-apiserver's silence is worth a line, each time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the data is to come from.
enum Datastore {
    /// etcd has been up here before: no cluster flag counts.
    Existing,
    /// A new cluster of etcd's.
    New,
    /// A member of another one's.
    Join(Box<Remote>),
    /// No etcd cluster asked for: a store of its own, which nobody can join.
    Single,
}

/// Runs a server until the process ends.
///
/// # Errors
/// What makes a real one log `level=fatal` and exit 1.
pub async fn run(flags: &Parsed, args: &[String]) -> Result<()> {
    let node = Node::new(flags).await?;
    let layout = &node.layout;
    let port: u16 = flags.one("https-listen-port").unwrap_or("6443").parse().context("invalid https-listen-port")?;
    let given = token(flags, "token", "token-file")?;
    let agent_token = token(flags, "agent-token", "agent-token-file")?;
    let bind = flags.one("bind-address").map(str::parse::<IpAddr>).transpose().context("invalid bind-address")?;
    let advertise = flags.one("advertise-address").map(str::parse::<IpAddr>).transpose().context("invalid advertise-address")?;
    let service_cidr = flags.one("service-cidr").unwrap_or_default();
    info!("Starting k3s {} (1d4adb03)", crate::release::name());
    prepare_folders(layout)?;
    let reset = flags.is("cluster-reset");
    check_reset(layout, reset, flags.one("cluster-reset-restore-path"), flags.one("server"))?;

    let datastore =
        bootstrap(layout, flags, given.as_deref(), reset).await.map_err(|e| anyhow!("starting kubernetes: preparing server: {e:#}"))?;
    let (api, members) = sans(&node, flags, advertise, service_cidr)?;
    ensure_server(layout, &api, &members).context("starting kubernetes: preparing server")?;
    let passwords = passwd::ensure(layout, given.as_deref(), agent_token.as_deref())?;
    passwd::write_tokens(layout, &passwords)?;

    let single = matches!(datastore, Datastore::Single);
    let mut etcd = Etcd::new(layout, &node.name, node.ip, single, flags.many("etcd-arg"))?;
    if reset {
        return reset_cluster(layout, &mut etcd, flags.one("cluster-reset-restore-path"), &passwords.server).await;
    }
    let plane = ControlPlane {
        layout,
        advertise: advertise.unwrap_or(node.ip),
        port,
        cluster_cidr: flags.one("cluster-cidr").unwrap_or_default(),
        service_cidr,
        etcd: etcd.endpoint(),
    };
    plane.kubeconfigs()?;
    write_kubeconfig(layout, flags, port)?;
    let kube = kubeconfig::client(&layout.cred("admin.kubeconfig")).await?;
    let verifier = Verifier::new(&std::fs::read(layout.tls("client-ca.crt"))?)?;
    let tls = server_tls(
        verifier.clone(),
        &std::fs::read(layout.tls("serving-kube-apiserver.crt"))?,
        &std::fs::read(layout.tls("serving-kube-apiserver.key"))?,
    )?;
    let supervisor = Arc::new(Supervisor {
        layout: layout.clone(),
        passwords: passwords.clone(),
        proxy: Proxy::new(layout, format!("{LOOPBACK}:{port}"))?,
        etcd: (!single).then(|| etcd.clone()),
        config: serde_json::json!({
            "AdvertisePort": port,
            "HTTPSPort": port,
            "ClusterDomain": "cluster.local",
            "ClusterDNS": dns_address(service_cidr)?,
            "ClusterIPRange": plane.cluster_cidr,
            "ServiceIPRange": service_cidr,
            "DisableKubeProxy": flags.is("disable-kube-proxy"),
        }),
        node: node.name.clone(),
        ready: AtomicBool::new(false),
        kube: kube.clone(),
        verifier,
    });
    tokio::spawn(supervisor.clone().serve(listen(bind, port)?, tls));

    if !flags.is("disable-agent") {
        let (node, args, secret) = (node.clone(), args.to_vec(), passwords.node.clone());
        let url = format!("https://127.0.0.1:{port}");
        let long = crate::token::Token::long("node", &secret, &std::fs::read(layout.tls("server-ca.crt"))?);
        tokio::spawn(async move {
            if let Err(e) = agent::run(node, &url, None, &long, &args, || {}).await {
                crate::log::fatal(&format!("{e:#}"));
            }
        });
    }
    start_etcd(&etcd, &datastore).await?;
    etcd.wait_until_voter().await;
    if !single {
        if let Err(e) = keys::save(layout, etcd.client(), &passwords.server).await {
            warning!("Failed to save bootstrap data: {e:#}");
        }
        tokio::spawn(etcd.clone().manage_learners());
    }
    plane.api_server(&component_args(flags, "kube-apiserver-arg")).await?;
    wait_for(&kube, "/livez/ping").await;
    supervisor.ready.store(true, Ordering::Relaxed);
    // As with a real k3s, systemd hears of it 1.5 to 2 s before /readyz is ok.
    info!("k3s is up and running");
    notify::ready().context("cannot notify systemd")?;
    // The two need roles that the API makes for itself after its start, and end without them.
    wait_for(&kube, "/readyz").await;
    plane.controller_manager(&component_args(flags, "kube-controller-manager-arg")).await?;
    if !flags.is("disable-scheduler") {
        plane.scheduler(&component_args(flags, "kube-scheduler-arg")).await?;
    }
    tokio::spawn(manifests::keep(layout.clone(), flags.comma_separated("disable")));
    nodes::keep(kube, node.name, (!single).then_some(etcd)).await;
    Ok(())
}

/// The names of the API's certificate, and of etcd's.
fn sans(node: &Node, flags: &Parsed, advertise: Option<IpAddr>, service_cidr: &str) -> Result<(Sans, Sans)> {
    let own = ["127.0.0.1".to_owned(), "::1".to_owned(), "localhost".to_owned(), node.name.clone(), node.ip.to_string()];
    let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let mut all = own.to_vec();
    all.extend(service.map(ToOwned::to_owned));
    all.extend([LOOPBACK.to_string(), first_host(service_cidr)?]);
    all.extend(flags.comma_separated("tls-san"));
    all.extend(advertise.map(|a| a.to_string()));
    Ok((Sans::new(all), Sans::new(own)))
}

fn prepare_folders(layout: &Layout) -> Result<()> {
    for path in ["tls/etcd", "cred", "db", "etc", "manifests", "static"] {
        folder(&layout.server(path))?;
    }
    Ok(())
}

/// A second reset in a row, and a restore without reset, are refused as in k3s; a start without
/// the flag clears the mark of the first.
fn check_reset(layout: &Layout, reset: bool, restore: Option<&str>, url: Option<&str>) -> Result<()> {
    let mark = layout.db("reset-flag");
    if restore.is_some() && !reset {
        bail!("invalid flag use; --cluster-reset required with --cluster-reset-restore-path");
    }
    if reset && url.is_some() {
        bail!("cannot perform cluster-reset while server URL is set - remove server from configuration before resetting");
    }
    if reset && mark.exists() {
        bail!(
            "Cluster reset was successfully performed, please remove the cluster-reset flag and start k3s normally, if you need to perform another cluster reset, you must first manually delete the {} file",
            mark.display()
        );
    }
    if !reset && mark.exists() {
        std::fs::remove_file(&mark)?;
    }
    Ok(())
}

async fn bootstrap(layout: &Layout, flags: &Parsed, token: Option<&str>, reset: bool) -> Result<Datastore> {
    if layout.etcd_initialised() || reset {
        info!("Managed etcd cluster bootstrap already complete and initialized");
        return Ok(Datastore::Existing);
    }
    // k3s takes etcd only if asked to, or if it has all it needs to join: a URL without a token
    // quietly makes a cluster of its own.
    let (url, token) = match (flags.one("server"), token) {
        (Some(url), Some(token)) => (url, token),
        _ if flags.is("cluster-init") => {
            if flags.one("server").is_some() {
                bail!("K3S_TOKEN is required to join a cluster");
            }
            info!("Managed etcd cluster initializing");
            return Ok(Datastore::New);
        }
        _ => return Ok(Datastore::Single),
    };
    let remote = Remote::connect(url, token, "server").await?;
    info!("Managed etcd cluster not yet initialized");
    let answer: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&remote.get("/v1-k3s/server-bootstrap", &[]).await?)?;
    for (name, path) in BOOTSTRAP {
        let text = answer.get(*name).and_then(|v| v.as_str()).with_context(|| format!("the server sent no {name}"))?;
        let path = layout.server(path);
        // What is here already stays: a folder of another cluster goes on with its own keys.
        if !path.exists() {
            write(&path, &base64::engine::general_purpose::STANDARD.decode(text)?, 0o600)?;
        }
    }
    Ok(Datastore::Join(Box::new(remote)))
}

async fn start_etcd(etcd: &Etcd, datastore: &Datastore) -> Result<()> {
    match datastore {
        Datastore::Existing => etcd.start_existing(),
        Datastore::New | Datastore::Single => etcd.start_new(),
        Datastore::Join(remote) => {
            let join = async {
                let known: Members = serde_json::from_slice(&remote.get("/db/info", &[]).await?)?;
                etcd.join(&known).await
            };
            join.await.map_err(|e| anyhow!("ETCD join failed: {e:#}"))
        }
    }
}

async fn reset_cluster(layout: &Layout, etcd: &mut Etcd, restore: Option<&str>, secret: &str) -> Result<()> {
    if let Some(path) = restore {
        snapshot::restore(layout, Path::new(path), &etcd.name, &etcd.peer_url()).await?;
    }
    if !layout.etcd_initialised() {
        bail!("cannot perform cluster-reset without an etcd data folder");
    }
    write(&layout.db("reset-flag"), b"", 0o600)?;
    etcd.start_reset()?;
    etcd.finish_reset().await?;
    keys::load(layout, etcd.client(), secret).await?;
    info!(
        "Etcd is running, restart without --cluster-reset flag now. Backup and delete ${{datadir}}/server/db on each peer etcd server and rejoin the nodes"
    );
    // etcd has written its data; it ends with us.
    std::process::exit(0)
}

async fn wait_for(kube: &kube::Client, path: &str) {
    info!("Waiting for API server to become available");
    let mut warn_at = tokio::time::Instant::now() + PATIENCE;
    let ask = async || kubeconfig::soon(kube.request_text(hyper::Request::get(path).body(Vec::new())?)).await;
    while let Err(e) = ask().await {
        if tokio::time::Instant::now() > warn_at {
            warning!("API server does not answer yet: {e:#}");
            warn_at += PATIENCE;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn write_kubeconfig(layout: &Layout, flags: &Parsed, port: u16) -> Result<()> {
    let path = Path::new(flags.one("write-kubeconfig").unwrap_or_default());
    let mode = flags.one("write-kubeconfig-mode").unwrap_or("600");
    let mode = u32::from_str_radix(mode, 8).unwrap_or_else(|_| {
        warning!("Failed to set {} to mode {mode}", path.display());
        0o600
    });
    let text = kubeconfig::embedded(
        &format!("https://127.0.0.1:{port}"),
        &layout.tls("server-ca.crt"),
        &layout.tls("client-admin.crt"),
        &layout.tls("client-admin.key"),
    )?;
    // A folder for others too: a kubeconfig's mode is what protects it.
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if let Err(e) = write(path, text.as_bytes(), mode) {
        error!("Failed to write kubeconfig: {e:#}");
        return Ok(());
    }
    info!("Wrote kubeconfig {}", path.display());
    info!("Run: k3s kubectl");
    Ok(())
}

fn nth_host(cidr: &str, n: usize) -> Result<String> {
    let net: ipnet::IpNet = cidr.parse().with_context(|| format!("invalid service-cidr: {cidr}"))?;
    Ok(net.hosts().nth(n).with_context(|| format!("service-cidr {cidr} is too small"))?.to_string())
}

fn first_host(cidr: &str) -> Result<String> {
    nth_host(cidr, 0)
}

fn dns_address(cidr: &str) -> Result<String> {
    nth_host(cidr, 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_addresses() {
        assert_eq!(first_host("10.43.0.0/16").unwrap(), "10.43.0.1");
        assert_eq!(dns_address("10.43.0.0/16").unwrap(), "10.43.0.10");
        assert!(first_host("nonsense").is_err());
    }

    #[test]
    fn resets_are_guarded() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        folder(&layout.server("db")).unwrap();
        assert!(check_reset(&layout, false, Some("/x"), None).is_err());
        check_reset(&layout, true, None, None).unwrap();
        assert!(check_reset(&layout, true, None, Some("https://x")).unwrap_err().to_string().contains("while server URL is set"));
        write(&layout.db("reset-flag"), b"", 0o600).unwrap();
        assert!(check_reset(&layout, true, None, None).unwrap_err().to_string().contains("reset-flag"));
        check_reset(&layout, false, None, None).unwrap();
        assert!(!layout.db("reset-flag").exists());
    }
}
