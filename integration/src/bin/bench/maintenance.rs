//! Smart updates of thousands of nodes: a real server with a real controller, and nodes that are objects only, as no machine of
//! ours bears so many kubelets.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::clock::now;
use integration::{Host, Lab, LabSpec};

use crate::cluster::{api, median_of, settle, vip};
use crate::program::Program;
use crate::simulate::Simulated;

/// How many nodes there are beside the server's own.
const NODES: usize = 5000;
/// How long nothing happens while requests are counted.
const IDLE: Duration = Duration::from_secs(120);
/// Beside what `init` asks for: a node that nobody looks after stays Ready, there are pods' networks for all, and the requests of
/// the operator are written down.
const ARGUMENTS: [&str; 4] = [
    "--k3s-arg=--kube-controller-manager-arg=node-monitor-grace-period=5h",
    "--k3s-arg=--kube-controller-manager-arg=node-cidr-mask-size=29",
    "--k3s-arg=--kube-apiserver-arg=audit-policy-file=/etc/audit.yaml",
    "--k3s-arg=--kube-apiserver-arg=audit-log-path=/var/log/audit.log",
];
const AUDIT: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- {level: Metadata, userGroups: [\"system:serviceaccounts:vz-maintenance-operator\"]}
- {level: None}
";
/// Nothing starts: there is nobody who would do it.
const UPDATE_MANAGER: &str = "
apiVersion: maintenance.virtuozzo.io/v1
kind: UpdateManager
metadata: {name: default, namespace: vz-maintenance-operator}
spec: {halted: true}
";

/// What was seen.
#[derive(Debug, Clone)]
pub struct Updates {
    /// From the API's side.
    pub simulated: Simulated,
    /// `updates status`.
    pub status: Duration,
    /// Most memory that a controller had resident, KiB.
    pub memory: u64,
    /// Requests of both controllers in a minute in which nothing happens.
    pub requests: f64,
}

/// Boots a host, makes it a server, and gives it so many nodes.
pub fn measure(program: &Program) -> Result<Updates> {
    let lab = Lab::up(&LabSpec::hosts(1).without_smartup())?;
    let host = lab.host("h1")?;
    host.write("/usr/local/bin/smartup", 0o755, &program.content)?;
    host.write("/etc/audit.yaml", 0o600, AUDIT)?;
    host.run(["smartup", "init", "--vip", &vip().to_string()].into_iter().chain(ARGUMENTS))?;
    settle(lab.hosts())?;
    start_controllers(host)?;

    let simulated = simulate(&lab, host)?;
    let status = || {
        let began = now();
        let said = host.run(["smartup", "updates", "status"])?;
        let took = now().saturating_sub(began);
        ensure!(said.lines().count() > NODES, "{said}");
        Ok(took)
    };
    let status = median_of(5, status)?;
    let before = requests(host)?;
    std::thread::sleep(IDLE);
    let requests = (requests(host)? - before) / IDLE.as_secs_f64() * 60.0;
    let updates = Updates { simulated, status, memory: memory(host)?, requests };
    eprintln!("{NODES} nodes: {updates:.2?}");
    Ok(updates)
}

/// The operator without what would run on each node.
fn start_controllers(host: &Host) -> Result<()> {
    let manifest = host.run(["smartup", "operator", "manifest"])?;
    let wanted = |document: &&str| !["kind: DaemonSet", "kind: Job"].iter().any(|kind| document.lines().any(|line| line == *kind));
    let some: Vec<&str> = manifest.split("\n---\n").filter(wanted).collect();
    host.write("/root/operator.yaml", 0o600, some.join("\n---\n"))?;
    host.write("/root/update-manager.yaml", 0o600, UPDATE_MANAGER)?;
    host.sh("k3s kubectl apply -f /root/operator.yaml
        k3s kubectl wait --for=condition=Established --timeout=60s crd/updatemanagers.maintenance.virtuozzo.io
        k3s kubectl apply -f /root/update-manager.yaml
        k3s kubectl -n vz-maintenance-operator rollout status deployment smartup-controller --timeout=240s")?;
    Ok(())
}

/// Runs the nodes' part on the wire.
fn simulate(lab: &Lab, host: &Host) -> Result<Simulated> {
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    let text = host.read("/etc/rancher/k3s/k3s.yaml")?.replace("127.0.0.1", &api().ip().to_string());
    std::fs::write(&kubeconfig, text)?;
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let count = NODES.to_string();
    let mut command = lab.probe().command([own.as_path(), Path::new("simulate"), &kubeconfig, Path::new(&count)]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot simulate nodes")?;
    ensure!(output.status.success(), "the simulated nodes: {}", output.status);
    serde_json::from_slice(&output.stdout).context("the simulated nodes")
}

/// Requests of the operator so far.
fn requests(host: &Host) -> Result<f64> {
    host.sh("wc -l < /var/log/audit.log")?.trim().parse().context("the number of requests")
}

fn memory(host: &Host) -> Result<u64> {
    let said = host.sh("for p in $(pgrep -f '[o]perator controller'); do awk '/^VmHWM:/ {print $2}' /proc/$p/status; done")?;
    let peaks: Vec<u64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>().with_context(|| said.clone())?;
    ensure!(peaks.len() == 2, "not two controllers: {peaks:?}");
    peaks.into_iter().max().context("no controller")
}
