//! k3s started by hand: one server after the other, with the flags that smartup gives it, and nothing besides.

use anyhow::{Context as _, Result};
use integration::{Host, Lab};

use crate::cluster::{Crew, api, flags};

const UNIT: &str = include_str!("../../../ansible/templates/k3s.service.j2");
/// What servers and agents must show.
pub const TOKEN: &str = "a-secret-of-the-bench";

/// Nobody opens ports here, so the firewall lets everything in.
pub fn prepare(lab: &Lab) -> Result<()> {
    lab.hosts().iter().try_for_each(|host| host.run(["firewall-cmd", "--set-default-zone=trusted"]).map(drop))
}

/// Starts k3s over ssh: the servers one by one, each when the API of the one before is ready, and then the agents.
pub fn start(crew: &Crew<'_>) -> Result<()> {
    let first = crew.first()?;
    for (host, role) in crew.roles() {
        let join = if host.name() == first.name() { String::new() } else { format!("K3S_URL=https://{}:{}\n", first.ipv4(), api().port()) };
        let env = format!("K3S_TOKEN={TOKEN}\n{join}K3S_EXTRA_FLAGS=\"{}\"", flags(host, role, join.is_empty()));
        start_one(host, role, &env)?;
    }
    Ok(())
}

fn start_one(host: &Host, role: &str, env: &str) -> Result<()> {
    let unit = UNIT.replace("{{ role }}", role);
    let ready = if role == "server" { "until k3s kubectl get --raw /readyz; do sleep 0.1; done >/dev/null 2>&1" } else { "" };
    let script = format!(
        "set -e
cat >/etc/systemd/system/k3s-{role}.service <<'END'
{unit}
END
mkdir -p /etc/k3s
umask 077
cat >/etc/k3s/k3s-{role}.env <<'END'
{env}
END
systemctl daemon-reload
systemctl enable --now k3s-{role}
{ready}"
    );
    host.ssh(&script)?.checked().map(drop).with_context(|| format!("{}: k3s by hand", host.name()))
}
