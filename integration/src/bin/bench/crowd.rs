//! A hundred hosts: three real servers, and agents in which something small stands in for k3s, as two cores do not bear 97
//! kubelets. All that smartup compares is there: units, files, firewall, and a node that is Ready in the API.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use integration::clock::now;
use integration::{Host, Lab, LabSpec, until};
use serde_json::json;

use crate::cluster::{Crew, api, median_of, settle};
use crate::control::Control;
use crate::memory::Peak;
use crate::program::Program;

/// How many there are.
pub const HOSTS: u8 = 100;
/// A node that nobody looks after stays Ready for as long.
const PATIENCE: &str = "k3sArgs: [--kube-controller-manager-arg=node-monitor-grace-period=5h]\n";

/// So many take smartup in and change themselves at a time: more, and the servers on the same two cores fall behind.
const FEW: &str = "8";
const LIMIT: Duration = Duration::from_secs(600);
/// The default of `--parallel`.
const MANY: &str = "32";

/// What was seen of them.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// How long it takes when nothing is to be changed.
    pub again: Duration,
    /// The control side's memory, over all runs.
    pub memory: u64,
}

/// Boots them, and makes them a cluster.
pub fn measure(program: &Program) -> Result<Crowd> {
    let lab = Lab::up(&LabSpec::hosts(HOSTS).without_smartup())?;
    eprintln!("{HOSTS} hosts are up");
    let crew = Crew::of(&lab);
    let control = Control::new(&lab)?;
    let mut memory = 0;
    let mut apply = |crew: &Crew<'_>, parallel: &str| {
        let file = control.cluster_file(crew, PATIENCE)?;
        let start = now();
        let Peak { largest, .. } = control.run([
            program.path(),
            "apply".as_ref(),
            "--yes".as_ref(),
            "--parallel".as_ref(),
            parallel.as_ref(),
            "-f".as_ref(),
            &file,
        ])?;
        memory = memory.max(largest);
        anyhow::Ok(now().saturating_sub(start))
    };
    apply(&Crew { agents: &[], ..crew }, FEW)?;
    stand_in(crew.first()?, crew.agents)?;
    until("the agents have joined", LIMIT, || {
        apply(&crew, FEW).inspect_err(|error| eprintln!("once more, after {:.120}", error.to_string())).map(Some)
    })?;
    settle(crew.servers)?;
    let again = median_of(3, || apply(&crew, MANY))?;
    let crowd = Crowd { again, memory };
    eprintln!("{HOSTS} hosts: {crowd:.2?}");
    Ok(crowd)
}

/// Replaces k3s on the agents, and gives each a node that is Ready.
fn stand_in(server: &Host, agents: &[Host]) -> Result<()> {
    let version = server.run(["k3s", "--version"])?;
    let ca = server.read("/var/lib/rancher/k3s/server/tls/server-ca.crt")?;
    let kubeconfig = server.read("/etc/rancher/k3s/k3s.yaml")?.replace("127.0.0.1", &api().ip().to_string());
    let program = format!(
        "#!/bin/sh
case $1 in
agent)
    mkdir -p /var/lib/rancher/k3s/agent
    cat >/var/lib/rancher/k3s/agent/server-ca.crt <<'END'
{ca}END
    cat >/var/lib/rancher/k3s/agent/kubelet.kubeconfig <<'END'
{kubeconfig}END
    systemd-notify --ready
    exec sleep infinity ;;
--version) cat <<'END' ;;
{version}END
esac
"
    );
    let mut nodes = String::new();
    for agent in agents {
        agent.write("/usr/local/bin/k3s", 0o755, &program)?;
        let ready = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": agent.name() },
            "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "StandIn" }] },
        });
        writeln!(nodes, "---\n{ready}")?;
    }
    server.exec_with(["k3s", "kubectl", "create", "-f", "-"], nodes.as_bytes())?.checked().map(drop)
}
