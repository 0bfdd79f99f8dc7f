use std::net::IpAddr;
use std::path::PathBuf;

use super::problem::{Place, Problems};
use super::table::{At, Reader, Table, path};
use super::tree::{self, Node};
use super::{Cluster, HostSpec, K3sFrom, Ssh};
use crate::{Fingerprint, Interface, Jump, K3sArg, Port, Role, Runtime, SshHost, Timeout, Vip};

const SMALLEST: &str = "the least is 'vip: 10.0.0.10' and 'hosts:' with lines like '- {host: node1, role: server}'";
const A_HOST: &str = "{host: node1, role: server}";

/// Reads a cluster, or says all that is wrong.
pub(super) fn cluster(source: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Cluster, Problems> {
    let mut reader = Reader { source, env, problems: Vec::new() };
    let cluster = match tree::load(source) {
        Ok(Some(root)) => file(&mut reader, root),
        Ok(None) => {
            reader.wrong_with_hint(Place::WHOLE, "there is nothing in it", SMALLEST);
            None
        }
        Err(problem) => {
            reader.problems.push(*problem);
            None
        }
    };
    let mut problems = reader.problems;
    problems.sort_by_key(|p| (p.line, p.column));
    // an anchor's value may be wrong in many places
    problems.dedup();
    cluster.filter(|_| problems.is_empty()).ok_or(Problems(problems))
}

fn file(reader: &mut Reader<'_>, root: Node) -> Option<Cluster> {
    let mut table = Table::new(reader, root, "the file", "'vip: 10.0.0.10'")?;
    let vip: Option<At<Vip>> = table.required(reader, "vip", "for example 'vip: 10.0.0.10', a free address in the hosts' subnet");
    let port: Option<At<Port>> = table.value(reader, "port");
    let token_file = table.path(reader, "tokenFile");
    let (auth_pass_file, unicast) = vrrp(reader, &mut table);
    let common = Settings::read(reader, &mut table);
    let nodes = table.required_nodes(reader, "hosts", SMALLEST);
    table.end(reader);

    let hosts = nodes.map_or_else(Vec::new, |nodes| hosts(reader, nodes, &common));
    no_host_twice(reader, &hosts);

    let vip = vip?;
    vip_is_free(reader, vip.value, &hosts);
    let unicast = match unicast {
        Some(At { value: true, at }) => peers(reader, at, vip.value, &hosts),
        _ => Vec::new(),
    };
    if let Some(file) = &auth_pass_file
        && vip.value.addr().is_ipv6()
    {
        reader.wrong_with_hint(file.at, "VRRP version 2, which has passwords, knows no IPv6", "leave authPassFile out: version 3 is used");
    }
    Some(Cluster {
        vip: vip.value,
        port: port.map(|p| p.value),
        token_file: token_file.map(|f| f.value),
        auth_pass_file: auth_pass_file.map(|f| f.value),
        unicast,
        hosts: hosts.into_iter().map(|h| h.spec).collect(),
    })
}

fn vrrp(reader: &mut Reader<'_>, file: &mut Table) -> (Option<At<PathBuf>>, Option<At<bool>>) {
    let Some(mut table) = file.table(reader, "vrrp", "'vrrp: {unicast: true}'") else {
        return (None, None);
    };
    let auth_pass_file = table.path(reader, "authPassFile");
    let unicast = table.flag(reader, "unicast");
    table.end(reader);
    (auth_pass_file, unicast)
}

/// What can be said for all hosts and for one.
#[derive(Default)]
struct Settings {
    interface: Option<Interface>,
    runtime: Option<Runtime>,
    firewall: Option<bool>,
    k3s: Option<K3sFrom>,
    k3s_args: Vec<K3sArg>,
    ignore: Vec<String>,
    timeout: Option<Timeout>,
    ssh: Ssh,
}

impl Settings {
    fn read(reader: &mut Reader<'_>, table: &mut Table) -> Self {
        Self {
            interface: table.value(reader, "interface").map(|v| v.value),
            runtime: table.value(reader, "runtime").map(|v| v.value),
            firewall: table.flag(reader, "firewall").map(|v| v.value),
            k3s: k3s(reader, table),
            k3s_args: table.list(reader, "k3sArgs", str::parse).unwrap_or_default(),
            ignore: table.list(reader, "ignore", check).unwrap_or_default(),
            timeout: table.value(reader, "timeout").map(|v| v.value),
            ssh: ssh(reader, table),
        }
    }
}

/// The name of a check. Which there are, the host knows.
fn check(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("the name of the check is empty") } else { Ok(text.to_owned()) }
}

fn k3s(reader: &mut Reader<'_>, outer: &mut Table) -> Option<K3sFrom> {
    let example = "'k3s: {path: ./k3s}' or 'k3s: {version: v1.31.2+k3s1}'";
    let mut table = outer.table(reader, "k3s", example)?;
    let at = table.at;
    let empty = table.is_empty();
    let path = table.path(reader, "path");
    let version = table.value(reader, "version");
    let mirror = table.value(reader, "mirror");
    table.end(reader);
    match (path, version, mirror) {
        (Some(path), None, None) => Some(K3sFrom::File(path.value)),
        (None, Some(version), mirror) => Some(K3sFrom::Release { version: version.value, mirror: mirror.map(|m| m.value) }),
        (Some(path), _, _) => {
            reader.wrong_with_hint(
                path.at,
                "k3s has a path, and a version or a mirror too",
                "use one: a file here, or a release to download",
            );
            None
        }
        (None, None, Some(mirror)) => {
            reader.wrong_with_hint(mirror.at, "k3s has a mirror, but no version to take from it", format!("for example {example}"));
            None
        }
        (None, None, None) => {
            if empty {
                reader.wrong_with_hint(
                    at,
                    "k3s has neither a path nor a version",
                    format!("for example {example}; without k3s, the one on the host is used"),
                );
            }
            None
        }
    }
}

fn ssh(reader: &mut Reader<'_>, outer: &mut Table) -> Ssh {
    let Some(mut table) = outer.table(reader, "ssh", "'ssh: {user: admin, port: 2222}'") else {
        return Ssh::default();
    };
    let ssh = Ssh {
        user: table.value(reader, "user").map(|v| v.value),
        port: table.value(reader, "port").map(|v| v.value),
        identity_files: table.list(reader, "identityFiles", path),
        jump: table.parsed(reader, "jump", jumps).map(|v| v.value),
    };
    table.end(reader);
    ssh
}

/// As ssh's `ProxyJump` has it: hosts with commas between, or `none`.
fn jumps(text: &str) -> Result<Vec<Jump>, crate::Invalid> {
    if text == "none" { Ok(Vec::new()) } else { text.split(',').map(|jump| jump.trim().parse()).collect() }
}

fn hosts(reader: &mut Reader<'_>, nodes: At<Vec<Node>>, common: &Settings) -> Vec<Placed> {
    let count = nodes.value.len();
    let hosts: Vec<_> = nodes.value.into_iter().filter_map(|node| host(reader, node, common)).collect();
    // one that could not be read may have been the server
    if hosts.len() == count && !hosts.iter().any(|h| h.spec.role == Role::Server) {
        let message = if count == 0 { "there is no host" } else { "there is no server among the hosts" };
        reader.wrong_with_hint(nodes.at, message, "a cluster needs at least one host with 'role: server', better three");
    }
    hosts
}

/// A host, and where its parts stand.
struct Placed {
    spec: HostSpec,
    host_at: Place,
    node_ip_at: Place,
}

fn host(reader: &mut Reader<'_>, node: Node, common: &Settings) -> Option<Placed> {
    let mut table = Table::new(reader, node, "a host", A_HOST)?;
    let host: Option<At<SshHost>> = table.required(reader, "host", "the name, the address or the alias that ssh knows it by");
    let role: Option<At<Role>> = table.required(reader, "role", "server (control plane and etcd) or agent (pods only)");
    let node_ip = table.parsed(reader, "nodeIp", node_address);
    let host_key = table.value::<Fingerprint>(reader, "hostKey");
    let own = Settings::read(reader, &mut table);
    table.end(reader);
    let (host, role) = (host?, role?);
    let spec = HostSpec {
        host: host.value,
        role: role.value,
        node_ip: node_ip.as_ref().map(|a| a.value),
        host_key: host_key.map(|k| k.value),
        ssh: Ssh {
            user: own.ssh.user.or_else(|| common.ssh.user.clone()),
            port: own.ssh.port.or(common.ssh.port),
            identity_files: own.ssh.identity_files.or_else(|| common.ssh.identity_files.clone()),
            jump: own.ssh.jump.or_else(|| common.ssh.jump.clone()),
        },
        interface: own.interface.or_else(|| common.interface.clone()),
        runtime: own.runtime.or(common.runtime),
        firewall: own.firewall.or(common.firewall),
        k3s: own.k3s.or_else(|| common.k3s.clone()),
        k3s_args: [common.k3s_args.clone(), own.k3s_args].concat(),
        ignore: [common.ignore.clone(), own.ignore].concat(),
        timeout: own.timeout.or(common.timeout).unwrap_or(Timeout::READY),
    };
    Some(Placed { spec, host_at: host.at, node_ip_at: node_ip.map_or(host.at, |a| a.at) })
}

fn node_address(text: &str) -> Result<IpAddr, String> {
    let addr: IpAddr = text.parse().map_err(|_| format!("node address '{text}': is not an IPv4 or IPv6 address"))?;
    if addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() {
        return Err(format!("node address '{text}': is not one that other hosts could reach"));
    }
    Ok(addr)
}

/// No two hosts with one name or one address: that would be one machine with two roles.
fn no_host_twice(reader: &mut Reader<'_>, hosts: &[Placed]) {
    for (i, later) in hosts.iter().enumerate() {
        let same_name = |h: &&Placed| h.spec.host.as_str().eq_ignore_ascii_case(later.spec.host.as_str());
        let Some(earlier) =
            hosts.iter().take(i).find(|h| same_name(h) || later.spec.addr().is_some() && h.spec.addr() == later.spec.addr())
        else {
            continue;
        };
        if same_name(&earlier) {
            reader.wrong_with_hint(
                later.host_at,
                format!("the host '{}' is there twice, first in line {}", later.spec.host, earlier.host_at.line),
                "hosts behind one address: give each an alias in ~/.ssh/config",
            );
        } else {
            let message = format!("this is the address of '{}' too, in line {}", earlier.spec.host, earlier.node_ip_at.line);
            reader.wrong(later.node_ip_at, message);
        }
    }
}

fn vip_is_free(reader: &mut Reader<'_>, vip: Vip, hosts: &[Placed]) {
    for h in hosts {
        if h.spec.host.addr() == Some(vip.addr()) {
            reader.wrong_with_hint(
                h.host_at,
                "the VIP is given as the address of a host",
                "the VIP moves between the servers: choose a free address for it, and name the host by its own",
            );
        } else if h.spec.node_ip == Some(vip.addr()) {
            reader.wrong(h.node_ip_at, "the VIP cannot be a node's own address");
        }
    }
}

/// The servers' addresses, which all must be known and of the VIP's family.
fn peers(reader: &mut Reader<'_>, at: Place, vip: Vip, hosts: &[Placed]) -> Vec<IpAddr> {
    let mut peers = Vec::new();
    for server in hosts.iter().filter(|h| h.spec.role == Role::Server) {
        match server.spec.addr() {
            Some(addr) if addr.is_ipv4() == vip.addr().is_ipv4() => peers.push(addr),
            Some(addr) => reader.wrong_with_hint(
                server.node_ip_at,
                format!("unicast VRRP (line {}) needs a server's address of the VIP's family, and {addr} is not", at.line),
                format!("give 'nodeIp' of the family of {}", vip.addr()),
            ),
            None => reader.wrong_with_hint(
                server.host_at,
                format!("unicast VRRP (line {}) needs the addresses of all servers, and '{}' is a name", at.line, server.spec.host),
                "give its 'nodeIp'",
            ),
        }
    }
    peers
}
