//! The reference's steps as a playbook, in `integration/ansible/`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use integration::place;
use serde_json::{Map, Value, json};

use crate::by_hand::TOKEN;
use crate::cluster::{Crew, flags, vip};
use crate::control::Control;
use crate::memory::Peak;
use crate::side::stock_rank;

const FILES: [(&str, &str); 6] = [
    ("ansible.cfg", include_str!("../../../ansible/ansible.cfg")),
    ("site.yml", include_str!("../../../ansible/site.yml")),
    ("templates/keepalived.conf.j2", include_str!("../../../ansible/templates/keepalived.conf.j2")),
    ("templates/check_apiserver.sh.j2", include_str!("../../../ansible/templates/check_apiserver.sh.j2")),
    ("templates/k3s.service.j2", include_str!("../../../ansible/templates/k3s.service.j2")),
    ("templates/k3s.env.j2", include_str!("../../../ansible/templates/k3s.env.j2")),
];

/// Ansible, ready to be run.
#[derive(Debug)]
pub struct Playbook {
    program: PathBuf,
}

impl Playbook {
    /// Ansible from the lab's cache, or from `PyPI`.
    pub fn find() -> Result<Self> {
        let folder = place::cache()?.join("ansible");
        let program = folder.join("bin/ansible-playbook");
        if !program.exists() {
            run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
            run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "ansible-core"]))?;
        }
        Ok(Self { program })
    }

    /// Runs it, over new connections.
    pub fn run(&self, control: &Control<'_>) -> Result<Peak> {
        let sockets = tempfile::tempdir_in(control.home())?;
        let path = |path: &Path| path.as_os_str().to_owned();
        let mut sockets_here = std::ffi::OsString::from("ANSIBLE_SSH_CONTROL_PATH_DIR=");
        sockets_here.push(sockets.path());
        control.run(["env".into(), sockets_here, path(&self.program), "-i".into(), "inventory.json".into(), "site.yml".into()])
    }
}

/// Writes the playbook and the inventory into the home.
pub fn lay_out(control: &Control<'_>, crew: &Crew<'_>) -> Result<()> {
    for (path, content) in FILES {
        control.write(path, content)?;
    }
    control.write("inventory.json", &inventory(control, crew)?.to_string()).map(drop)
}

fn inventory(control: &Control<'_>, crew: &Crew<'_>) -> Result<Value> {
    let first = crew.first()?.name();
    let (mut servers, mut agents) = (Map::new(), Map::new());
    for (host, role) in crew.roles() {
        let (state, priority) = stock_rank(host.name() == first);
        let (list, ports) = match role {
            "server" => (&mut servers, json!(["8472/udp", "9443/tcp", "2379-2380/tcp"])),
            _ => (&mut agents, json!(["8472/udp"])),
        };
        let variables = json!({
            "ansible_host": host.ipv4(),
            "role": role,
            "ports": ports,
            "state": state,
            "priority": priority,
            "flags": flags(host, role, host.name() == first),
        });
        list.insert(host.name().to_owned(), variables);
    }
    let known = control.home().join(".ssh/known_hosts");
    Ok(json!({ "all": {
        "vars": {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": control.key(),
            "ansible_ssh_common_args": format!("-o UserKnownHostsFile={}", known.display()),
            "vip": vip(),
            "token": TOKEN,
        },
        "children": { "servers": { "hosts": servers }, "agents": { "hosts": agents } },
    }}))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
