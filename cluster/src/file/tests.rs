use std::collections::BTreeSet;
use std::time::Duration;

use insta::assert_snapshot;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn parse(text: &str) -> Result<Cluster, Problems> {
    Cluster::parse(text, |name| match name {
        "PORT" => Some("6443".into()),
        "USER" => Some("admin".into()),
        "YAML" => Some("server, role: agent\nport: 1".into()),
        _ => None,
    })
}

fn wrong(text: &str) -> String {
    parse(text).unwrap_err().text("f")
}

/// Every key there is.
const ALL: &str = r#"
vip: 10.0.0.10/24
port: 6443
tokenFile: secrets/token
vrrp: {authPassFile: pass, unicast: true}
interface: eth0
runtime: docker
firewall: false
k3s: {version: v1.31.2+k3s1, mirror: "https://mirror.example.org/k3s/"}
k3sArgs: [--disable=traefik]
ignore: [clock]
timeout: 5m
ssh: {user: admin, port: 2222, identityFiles: [~/.ssh/a, b], jump: "me@bastion:22, 10.0.0.1"}
hosts:
  - host: node1
    role: server
    nodeIp: 10.0.0.11
    hostKey: SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU
    interface: eth1
    runtime: containerd
    firewall: true
    k3s: {path: ./k3s}
    k3sArgs: [--node-label=disk=ssd]
    ignore: [memory]
    timeout: 1h
    ssh: {user: root, port: 22, identityFiles: [], jump: none}
  - {host: 10.0.0.12, role: agent}
"#;

#[test]
fn a_host_may_say_otherwise() {
    let cluster = parse(ALL).unwrap();
    assert_eq!((cluster.vip.to_string(), cluster.port.map(Port::get)), ("10.0.0.10/24".into(), Some(6443)));
    assert_eq!((cluster.token_file, cluster.auth_pass_file), (Some("secrets/token".into()), Some("pass".into())));
    assert_eq!(cluster.unicast, ["10.0.0.11".parse::<IpAddr>().unwrap()]);
    let [own, common] = cluster.hosts.as_slice() else { panic!() };

    assert_eq!((own.interface.as_ref().unwrap().as_str(), common.interface.as_ref().unwrap().as_str()), ("eth1", "eth0"));
    assert_eq!((own.runtime, common.runtime), (Some(Runtime::Containerd), Some(Runtime::Docker)));
    assert_eq!((own.firewall, common.firewall), (Some(true), Some(false)));
    assert_eq!((own.timeout.get(), common.timeout.get()), (Duration::from_secs(3600), Duration::from_secs(300)));
    assert_eq!(own.k3s, Some(K3sFrom::File("./k3s".into())));
    let mirror = Some("https://mirror.example.org/k3s".parse().unwrap());
    assert_eq!(common.k3s, Some(K3sFrom::Release { version: "v1.31.2+k3s1".parse().unwrap(), mirror }));
    assert_eq!(
        own.ssh,
        Ssh { user: Some("root".parse().unwrap()), port: Some("22".parse().unwrap()), identity_files: Some(vec![]), jump: Some(vec![]) }
    );
    assert_eq!(common.ssh.jump, Some(vec!["me@bastion:22".parse().unwrap(), "10.0.0.1".parse().unwrap()]));
    assert_eq!(common.ssh.identity_files, Some(vec!["~/.ssh/a".into(), "b".into()]));
    assert_eq!(common.addr(), Some("10.0.0.12".parse().unwrap()));

    // added rather than replaced
    assert_eq!(own.k3s_args.iter().map(K3sArg::as_str).collect::<Vec<_>>(), ["--disable=traefik", "--node-label=disk=ssd"]);
    assert_eq!(
        (own.ignore.as_slice(), common.ignore.as_slice()),
        (["clock".to_owned(), "memory".to_owned()].as_slice(), ["clock".to_owned()].as_slice())
    );
}

#[test]
fn a_small_file_does() {
    let cluster = parse("vip: fd00::10\nhosts: [{host: 12e4, role: server}, {host: 010, role: agent}]").unwrap();
    assert_eq!(cluster.port, None);
    assert_eq!(cluster.hosts[0].timeout, Timeout::READY);
    // what YAML takes for numbers are names here
    assert_eq!((cluster.hosts[0].host.as_str(), cluster.hosts[1].host.as_str()), ("12e4", "010"));
}

#[test]
fn even_numbers_of_servers_are_warned_of() {
    let servers = |n: usize| {
        let hosts: Vec<_> = (0..n).map(|i| format!("{{host: h{i}, role: server}}")).collect();
        parse(&format!("vip: 10.0.0.10\nhosts: [{}]", hosts.join(", "))).unwrap().warnings()
    };
    assert!(servers(1).is_empty() && servers(3).is_empty());
    assert_eq!(servers(2), ["2 servers bear the loss of 0, no more than 1 would; use an odd number"]);
    assert_eq!(servers(4), ["4 servers bear the loss of 1, no more than 3 would; use an odd number"]);
}

#[test]
fn the_example_is_valid_and_so_is_what_is_commented_out() {
    let cluster = parse(EXAMPLE).unwrap();
    assert_eq!((cluster.servers().count(), cluster.hosts.len()), (3, 4));

    let lines: Vec<&str> = EXAMPLE.lines().collect();
    // a commented key, and how far its comment is indented
    let key = |line: &str| {
        let indent = line.len() - line.trim_start().len();
        let word = line.trim_start().strip_prefix("# ")?.split(':').next()?;
        (line.contains(':') && !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric())).then_some(indent)
    };
    let mut shown = BTreeSet::new();
    for (at, indent) in lines.iter().enumerate().filter_map(|(at, line)| Some((at, key(line)?))) {
        let mut text = String::new();
        let mut within = false;
        for (i, line) in lines.iter().enumerate() {
            within = i == at || within && line.starts_with("#   ");
            text.push_str(&if within { line.replacen("# ", "", 1) } else { (*line).to_owned() });
            text.push('\n');
        }
        // unicast needs what the example's short hosts do not say
        let text = text.replace("unicast: true ", "unicast: false");
        if let Err(e) = parse(&text) {
            panic!("{e}");
        }
        let word = lines[at].trim_start_matches([' ', '#']).split(':').next().unwrap();
        shown.insert((indent > 0, word));
    }
    let of_all: Vec<_> = shown.iter().filter(|(of_host, _)| !of_host).map(|(_, word)| *word).collect();
    assert_eq!(of_all, ["firewall", "ignore", "interface", "k3s", "k3sArgs", "port", "runtime", "ssh", "timeout", "tokenFile", "vrrp"]);
}

#[test]
fn variables_stand_in_values_only() {
    let text = "vip: 10.0.0.10 # ${NOT_READ}\nport: ${PORT}\ntokenFile: '$${PORT}/${USER}$USER'\nhosts: [{host: a, role: server}]";
    let cluster = parse(text).unwrap();
    assert_eq!(cluster.port.unwrap().get(), 6443);
    assert_eq!(cluster.token_file, Some("${PORT}/admin$USER".into()));
    assert_snapshot!(wrong("vip: ${VIP}\nport: \"1${PORTS}\"\n${USER}: x\nhosts:\n  - host: a\n    role: ${YAML}\n  - {host: b, role: ${USER}}"), @r#"
    f:7:22: this cannot be read as YAML: while parsing a flow mapping, did not find expected ',' or '}'
       7 |   - {host: b, role: ${USER}}
         |                      ^
           hint: within [ ] and { }, a value with ${NAME} needs quotes: "${NAME}"
    "#);
    assert_snapshot!(wrong("vip: ${VIP}\nport: \"1${PORTS}\"\n${USER}: x\ntokenFile: ${A:-b}\nhosts:\n  - host: a\n    role: ${YAML}"), @r#"
    f:1:6: the environment has no variable VIP
       1 | vip: ${VIP}
         |      ^^^^^^
           hint: set VIP before the command
    f:2:9: the environment has no variable PORTS
       2 | port: "1${PORTS}"
         |         ^^^^^^^^
           hint: set PORTS before the command
    f:3:1: unknown key '${USER}' in the file
       3 | ${USER}: x
         | ^^^^^^^
           hint: known are vip, port, tokenFile, vrrp, interface, runtime, firewall, k3s, k3sArgs, ignore, timeout, ssh, hosts
    f:4:12: '${A:-b}' is not of the form ${NAME}
       4 | tokenFile: ${A:-b}
         |            ^^^^^^^
           hint: write $${ where no variable is meant
    f:7:11: role 'server, role: agent\nport: 1': is neither server nor agent
       7 |     role: ${YAML}
         |           ^^^^^^^
    "#);
}

#[test]
fn anchors_aliases_and_merge_keys() {
    let cluster = parse(
        "vip: &vip 10.0.0.10\nhosts:\n- &first {host: a, role: server, ssh: &ssh {user: x}}\n- {<<: *first, host: b}\n- {host: c, role: agent, ssh: *ssh}",
    )
    .unwrap();
    assert_eq!(cluster.servers().count(), 2);
    assert!(cluster.hosts.iter().all(|h| h.ssh.user.as_ref().unwrap().as_str() == "x"));
    assert_snapshot!(wrong("vip: 10.0.0.10\nhosts:\n- &a {host: a, role: server, rank: 1}\n- {<<: *a, host: b}\n- *a\n- *a"), @r"
    f:3:13: the host 'a' is there twice, first in line 3
       3 | - &a {host: a, role: server, rank: 1}
         |             ^
           hint: hosts behind one address: give each an alias in ~/.ssh/config
    f:3:30: unknown key 'rank' in a host
       3 | - &a {host: a, role: server, rank: 1}
         |                              ^^^^
           hint: known are host, role, nodeIp, hostKey, interface, runtime, firewall, k3s, k3sArgs, ignore, timeout, ssh
    ");
    assert_snapshot!(wrong("vip: 10.0.0.10\nhosts: *all"), @r"
    f:2:8: there is no anchor of this name before it
       2 | hosts: *all
         |        ^
    ");
    assert_snapshot!(wrong("vip: &a [*a]"), @r"
    f:1:10: this cannot be read as YAML: Recursive reference not allowed here
       1 | vip: &a [*a]
         |          ^^
    ");
    let level = |n: i32| format!("a{n}: &a{n} [{}]", vec![if n == 0 { "x".into() } else { format!("*a{}", n - 1) }; 10].join(", "));
    let bomb = (0..10).map(level).collect::<Vec<_>>().join("\n");
    assert_snapshot!(wrong(&bomb), @r"
    f:5:45: the file, with its aliases expanded, is too large or nested too deeply
       5 | a4: &a4 [*a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3]
         |                                             ^^^
    ");
}

#[test]
fn one_document() {
    assert!(parse("---\n# nothing\n---\nvip: 10.0.0.10\nhosts: [{host: a, role: server}]\n...\n---\n").is_ok());
    assert_snapshot!(wrong("vip: 10.0.0.10\nhosts: [{host: a, role: server}]\n---\n# another\nvip: 10.0.0.11"), @r"
    f:5:1: a second document begins here
       5 | vip: 10.0.0.11
         | ^
           hint: a file describes one cluster; take out all but one document, each begins after '---'
    ");
    for empty in ["", "\n", "# nothing\n", "---\n---\n", "null"] {
        assert!(wrong(empty).contains("there is nothing in it"), "{empty}");
    }
    assert_snapshot!(wrong(""), @r"
    f:1:1: there is nothing in it
           hint: the least is 'vip: 10.0.0.10' and 'hosts:' with lines like '- {host: node1, role: server}'
    ");
    assert_snapshot!(wrong("10.0.0.10"), @r"
    f:1:1: the file is written as keys with values
       1 | 10.0.0.10
         | ^^^^^^^^^
           hint: for example 'vip: 10.0.0.10'
    ");
}

#[test]
fn what_is_not_yaml() {
    assert_snapshot!(wrong("vip: 10.0.0.10\nvip: 10.0.0.11\n"), @r"
    f:2:1: the key 'vip' is there twice
       2 | vip: 10.0.0.11
         | ^^^
    ");
    assert_snapshot!(wrong("vip: 10.0.0.10\nhosts:\n\t- {host: a, role: server}\n"), @r"
    f:3:2: this cannot be read as YAML: tabs disallowed within this context (block indentation)
       3 |  - {host: a, role: server}
         |  ^
           hint: YAML is indented with spaces, never with tabs
    ");
    assert_snapshot!(wrong("hosts:\n  - host: a\n   role: server\n"), @r"
    f:3:4: this cannot be read as YAML: while parsing a block collection, did not find expected '-' indicator
       3 |    role: server
         |    ^
    ");
    assert_snapshot!(wrong("hosts: [{host: a, role: server]\n"), @r"
    f:1:9: this cannot be read as YAML: mismatched bracket '{' closed by ']'
       1 | hosts: [{host: a, role: server]
         |         ^
    ");
    assert_snapshot!(wrong("vip: \"10.0.0.10\nhosts: []\n"), @r"
    f:2:1: this cannot be read as YAML: invalid indentation in multiline quoted scalar
       2 | hosts: []
         | ^
    ");
    assert_snapshot!(wrong("vip: !!python/object:x 10.0.0.10\n"), @r"
    f:1:24: this cannot be read as YAML: unsupported tag `!!python/object:x`
       1 | vip: !!python/object:x 10.0.0.10
         |                        ^^^^^^^^^
    ");
    assert_snapshot!(wrong("? [a, b]\n: c\n"), @r"
    f:1:3: this cannot be read as YAML: expected string scalar
       1 | ? [a, b]
         |   ^
    ");
}

#[test]
fn unknown_keys() {
    assert_snapshot!(
        wrong("vip: 10.0.0.10\nprot: 9443\nhosts:\n- {host: a, role: server, intreface: eth0}\n- {host: b, role: agent, rank: 1, node_ip: 10.0.0.12}\nvrrp: {unicats: true}"),
        @r"
    f:2:1: unknown key 'prot' in the file
       2 | prot: 9443
         | ^^^^
           hint: did you mean 'port'?
    f:4:27: unknown key 'intreface' in a host
       4 | - {host: a, role: server, intreface: eth0}
         |                           ^^^^^^^^^
           hint: did you mean 'interface'?
    f:5:26: unknown key 'rank' in a host
       5 | - {host: b, role: agent, rank: 1, node_ip: 10.0.0.12}
         |                          ^^^^
           hint: known are host, role, nodeIp, hostKey, interface, runtime, firewall, k3s, k3sArgs, ignore, timeout, ssh
    f:5:35: unknown key 'node_ip' in a host
       5 | - {host: b, role: agent, rank: 1, node_ip: 10.0.0.12}
         |                                   ^^^^^^^
           hint: did you mean 'nodeIp'?
    f:6:8: unknown key 'unicats' in vrrp
       6 | vrrp: {unicats: true}
         |        ^^^^^^^
           hint: did you mean 'unicast'?
    "
    );
}

#[test]
fn wrong_values_all_at_once() {
    assert_snapshot!(wrong("vip: 10.0.0\nport: 99999\nfirewall: yes\nruntime: podman\nk3sArgs: --disable=traefik\ntimeout: 10\ninterface:\nhosts: node1"), @r"
    f:1:6: VIP '10.0.0': is not an IPv4 or IPv6 address; write for example 10.0.0.10 or 10.0.0.10/24
       1 | vip: 10.0.0
         |      ^^^^^^
    f:2:7: port '99999': is not a number from 1 to 65535
       2 | port: 99999
         |       ^^^^^
    f:3:11: 'yes' is neither true nor false
       3 | firewall: yes
         |           ^^^
    f:4:10: runtime 'podman': is neither containerd nor docker
       4 | runtime: podman
         |          ^^^^^^
    f:5:10: 'k3sArgs' must be a list
       5 | k3sArgs: --disable=traefik
         |          ^^^^^^^^^^^^^^^^^
           hint: write each item on a line of its own, after '- '
    f:6:10: time '10': is not a duration; write for example 90s, 10m or 1h30m
       6 | timeout: 10
         |          ^^
    f:7:1: 'interface' has no value
       7 | interface:
         | ^^^^^^^^^
           hint: give it one, or leave the key out
    f:8:8: 'hosts' must be a list
       8 | hosts: node1
         |        ^^^^^
           hint: write each item on a line of its own, after '- '
    ");
    assert_snapshot!(
        wrong("hosts:\n- node1\n- {host: root@a, role: server, hostKey: abc}\n- {role: agent, nodeIp: 127.0.0.1, ssh: {port: 0, jump: 'a,,b'}}\n- {host: a:22, ignore: [[a], '']}"),
        @r"
    f:1:1: the file has no 'vip'
       1 | hosts:
         | ^
           hint: for example 'vip: 10.0.0.10', a free address in the hosts' subnet
    f:2:3: a host is written as keys with values
       2 | - node1
         |   ^^^^^
           hint: for example {host: node1, role: server}
    f:3:10: host 'root@a': has a user in it; give that as ssh.user
       3 | - {host: root@a, role: server, hostKey: abc}
         |          ^^^^^^
    f:3:41: host key 'abc': is not a fingerprint; on the host, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints it as SHA256:…
       3 | - {host: root@a, role: server, hostKey: abc}
         |                                         ^^^
    f:4:3: a host has no 'host'
       4 | - {role: agent, nodeIp: 127.0.0.1, ssh: {port: 0, jump: 'a,,b'}}
         |   ^
           hint: the name, the address or the alias that ssh knows it by
    f:4:25: node address '127.0.0.1': is not one that other hosts could reach
       4 | - {role: agent, nodeIp: 127.0.0.1, ssh: {port: 0, jump: 'a,,b'}}
         |                         ^^^^^^^^^
    f:4:48: port '0': is not a number from 1 to 65535
       4 | - {role: agent, nodeIp: 127.0.0.1, ssh: {port: 0, jump: 'a,,b'}}
         |                                                ^
    f:4:57: host '': is empty
       4 | - {role: agent, nodeIp: 127.0.0.1, ssh: {port: 0, jump: 'a,,b'}}
         |                                                         ^^^^^^
    f:5:3: a host has no 'role'
       5 | - {host: a:22, ignore: [[a], '']}
         |   ^
           hint: server (control plane and etcd) or agent (pods only)
    f:5:10: host 'a:22': has a port in it, or is not an IPv6 address; give a port as ssh.port
       5 | - {host: a:22, ignore: [[a], '']}
         |          ^^^^
    f:5:25: 'ignore' must be a single value
       5 | - {host: a:22, ignore: [[a], '']}
         |                         ^
    f:5:30: the name of the check is empty
       5 | - {host: a:22, ignore: [[a], '']}
         |                              ^^
    "
    );
    assert_snapshot!(wrong("vip: \"10.0.0.10\\u001b[31m\\n\"\nhosts: []"), @r#"
    f:1:6: VIP '10.0.0.10\u{1b}[31m\n': is not an IPv4 or IPv6 address; write for example 10.0.0.10 or 10.0.0.10/24
       1 | vip: "10.0.0.10\u001b[31m\n"
         |      ^^^^^^^^^^^^^^^^^^^^^^^
    f:2:8: there is no host
       2 | hosts: []
         |        ^
           hint: a cluster needs at least one host with 'role: server', better three
    "#);
    assert_snapshot!(wrong("vip: 10.0.0.10\nk3s: {path: k3s, version: v1.31.2+k3s1}\nhosts:\n- {host: a, role: server, k3s: {mirror: http://x}}\n- {host: b, role: agent, k3s: {}}"), @r"
    f:2:13: k3s has a path, and a version or a mirror too
       2 | k3s: {path: k3s, version: v1.31.2+k3s1}
         |             ^^^
           hint: use one: a file here, or a release to download
    f:4:41: k3s has a mirror, but no version to take from it
       4 | - {host: a, role: server, k3s: {mirror: http://x}}
         |                                         ^^^^^^^^
           hint: for example 'k3s: {path: ./k3s}' or 'k3s: {version: v1.31.2+k3s1}'
    f:5:31: k3s has neither a path nor a version
       5 | - {host: b, role: agent, k3s: {}}
         |                               ^
           hint: for example 'k3s: {path: ./k3s}' or 'k3s: {version: v1.31.2+k3s1}'; without k3s, the one on the host is used
    ");
}

#[test]
fn rules_between_values() {
    assert_snapshot!(wrong("vip: 10.0.0.10\nhosts: [{host: a, role: agent}]"), @r"
    f:2:8: there is no server among the hosts
       2 | hosts: [{host: a, role: agent}]
         |        ^
           hint: a cluster needs at least one host with 'role: server', better three
    ");
    assert_snapshot!(
        wrong("vip: 10.0.0.10\nhosts:\n- {host: node1, role: server}\n- {host: 10.0.0.10, role: server}\n- {host: NODE1, role: agent}\n- {host: x, role: agent, nodeIp: 10.0.0.12}\n- {host: 10.0.0.12, role: agent}\n- {host: y, role: agent, nodeIp: 10.0.0.10}"),
        @r"
    f:4:10: the VIP is given as the address of a host
       4 | - {host: 10.0.0.10, role: server}
         |          ^^^^^^^^^
           hint: the VIP moves between the servers: choose a free address for it, and name the host by its own
    f:5:10: the host 'NODE1' is there twice, first in line 3
       5 | - {host: NODE1, role: agent}
         |          ^^^^^
           hint: hosts behind one address: give each an alias in ~/.ssh/config
    f:7:10: this is the address of 'x' too, in line 6
       7 | - {host: 10.0.0.12, role: agent}
         |          ^^^^^^^^^
    f:8:34: this is the address of '10.0.0.10' too, in line 4
       8 | - {host: y, role: agent, nodeIp: 10.0.0.10}
         |                                  ^^^^^^^^^
    f:8:34: the VIP cannot be a node's own address
       8 | - {host: y, role: agent, nodeIp: 10.0.0.10}
         |                                  ^^^^^^^^^
    "
    );
    assert_snapshot!(wrong("vip: 10.0.0.10\nvrrp: {unicast: true}\nhosts:\n- {host: node1, role: server}\n- {host: fd00::1, role: server}\n- {host: node2, role: agent}"), @r"
    f:4:10: unicast VRRP (line 2) needs the addresses of all servers, and 'node1' is a name
       4 | - {host: node1, role: server}
         |          ^^^^^
           hint: give its 'nodeIp'
    f:5:10: unicast VRRP (line 2) needs a server's address of the VIP's family, and fd00::1 is not
       5 | - {host: fd00::1, role: server}
         |          ^^^^^^^
           hint: give 'nodeIp' of the family of 10.0.0.10
    ");
    assert_snapshot!(wrong("vip: fd00::10\nvrrp: {authPassFile: pass}\nhosts: [{host: node1, role: server}]"), @r"
    f:2:22: VRRP version 2, which has passwords, knows no IPv6
       2 | vrrp: {authPassFile: pass}
         |                      ^^^^
           hint: leave authPassFile out: version 3 is used
    ");
}

#[test]
fn secrets_are_refused_and_not_printed() {
    let text = wrong(
        "vip: 10.0.0.10\ntoken: s3cret\nhosts: [{host: a, role: server, ssh: {password: s3cret}, k3sArgs: [--token=s3cret]}]\nvrrp: {authPass: s3cret}",
    );
    assert!(!text.contains("s3cret"), "{text}");
    assert_snapshot!(text, @r"
    f:2:1: unknown key 'token' in the file
       2 | token: …
         | ^^^^^
           hint: secrets do not stand in this file: tokenFile and vrrp.authPassFile name files that hold them
    f:3:39: unknown key 'password' in ssh
       3 | hosts: [{host: a, role: server, ssh: {password: …
         |                                       ^^^^^^^^
           hint: secrets do not stand in this file: tokenFile and vrrp.authPassFile name files that hold them
    f:3:68: k3s flag (not shown): would put a secret where everybody on the host can read it; use a token file
       3 | hosts: [{host: a, role: server, ssh: {password: …
         |                                                  ^
    f:4:8: unknown key 'authPass' in vrrp
       4 | vrrp: {authPass: …
         |        ^^^^^^^^
           hint: secrets do not stand in this file: tokenFile and vrrp.authPassFile name files that hold them
    ");
    assert!(!wrong("token: \"s3cret").contains("s3cret"));
}

#[test]
fn the_schema_and_the_reader_know_the_same_keys() {
    let schema = schema();
    let all: Value = serde_saphyr::from_str(ALL).unwrap();
    let known = |text: &str| {
        let hint = parse(text).unwrap_err().0.into_iter().find(|p| p.message.contains("unknown key")).unwrap().hint.unwrap();
        hint.strip_prefix("known are ").unwrap().split(", ").map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    for (pointer, of_all, text) in [
        ("", &all, "zzzzzz: 1"),
        ("/properties/vrrp", &all["vrrp"], "vrrp: {zzzzzz: 1}"),
        ("/properties/ssh", &all["ssh"], "ssh: {zzzzzz: 1}"),
        ("/properties/hosts/items", &all["hosts"][0], "hosts: [{zzzzzz: 1}]"),
        ("/properties/hosts/items/properties/ssh", &all["hosts"][0]["ssh"], "hosts: [{ssh: {zzzzzz: 1}}]"),
    ] {
        let object = schema.pointer(pointer).unwrap();
        assert_eq!(keys(&object["properties"]), known(text), "{pointer}");
        assert_eq!(keys(of_all), known(text), "{pointer}");
    }
    assert_eq!(keys(&schema["properties"]["k3s"]["properties"]), known("k3s: {zzzzzz: 1}"));
}

#[test]
fn the_schema_takes_what_the_reader_takes() {
    let schema = schema();
    let fits = |text: &str| fits(&schema, &serde_saphyr::from_str(text).unwrap());
    for good in [EXAMPLE, ALL, "vip: '${VIP}'\nport: ${PORT}\nfirewall: ${F}\nhosts: [{host: a, role: '${ROLE}'}]"] {
        assert_eq!(fits(good), Ok(()));
    }
    for bad in [
        "hosts: [{host: a, role: server}]",
        "{vip: 10.0.0.10, hosts: []}",
        "{vip: 10.0.0.10, hosts: [{host: a}]}",
        "{vip: 10.0.0.10, hosts: [{host: a, role: boss}]}",
        "{vip: 10.0.0.10, token: x, hosts: [{host: a, role: server}]}",
        "{vip: 10.0.0.10, hosts: [{host: a, role: server, rank: 1}]}",
        "{vip: 10.0.0.10, hosts: [{host: a, role: server, ssh: {password: x}}]}",
        "{vip: 10.0.0.10, port: 0, hosts: [{host: a, role: server}]}",
        "{vip: 10.0.0.10, port: null, hosts: [{host: a, role: server}]}",
        "{vip: 10.0.0.10, k3s: {}, hosts: [{host: a, role: server}]}",
        "{vip: 10.0.0.10, k3s: {path: a, version: b}, hosts: [{host: a, role: server}]}",
        "{vip: 10.0.0.10, k3s: {path: a, mirror: b}, hosts: [{host: a, role: server}]}",
        "{vip: 10.0.0.10, k3sArgs: --a, hosts: [{host: a, role: server}]}",
    ] {
        assert!(fits(bad).is_err(), "{bad}");
        assert!(parse(bad).is_err(), "{bad}");
    }
}

/// As much of JSON schema as ours uses; another keyword fails the test rather than being passed over.
fn fits(schema: &Value, value: &Value) -> Result<(), String> {
    let no = |why: &str| Err(format!("{value}: {why} {schema}"));
    let some = |schemas: &Value| schemas.as_array().unwrap().iter().filter(|s| fits(s, value).is_ok()).count();
    for (keyword, with) in schema.as_object().unwrap() {
        let object = value.as_object();
        let ok = match keyword.as_str() {
            "$schema" | "title" | "description" => true,
            "type" => match with.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "integer" => value.is_u64(),
                "boolean" => value.is_boolean(),
                other => panic!("type {other}"),
            },
            "properties" => {
                for (key, value) in object.into_iter().flatten() {
                    with.get(key).map_or(Ok(()), |schema| fits(schema, value))?;
                }
                true
            }
            "additionalProperties" => {
                object.into_iter().flatten().all(|(key, _)| *with != json!(false) || schema["properties"].get(key).is_some())
            }
            "required" => with.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some()),
            "dependentRequired" => with
                .as_object()
                .unwrap()
                .iter()
                .all(|(key, needs)| value.get(key).is_none() || fits(&json!({"required": needs}), value).is_ok()),
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    fits(with, item)?;
                }
                true
            }
            "minItems" => value.as_array().is_none_or(|a| a.len() as u64 >= with.as_u64().unwrap()),
            "minLength" => value.as_str().is_none_or(|s| s.len() as u64 >= with.as_u64().unwrap()),
            "minimum" => value.as_u64().is_none_or(|n| n >= with.as_u64().unwrap()),
            "maximum" => value.as_u64().is_none_or(|n| n <= with.as_u64().unwrap()),
            "pattern" => value.as_str().is_none_or(|s| s.contains(&with.as_str().unwrap().replace('\\', ""))),
            "enum" => with.as_array().unwrap().contains(value),
            "anyOf" => some(with) > 0,
            "oneOf" => some(with) == 1,
            other => panic!("keyword {other}"),
        };
        if !ok {
            return no(keyword);
        }
    }
    Ok(())
}

/// The file that describes this cluster.
fn render(cluster: &Cluster) -> String {
    let hosts: Vec<Value> = cluster.hosts.iter().map(render_host).collect();
    let all = json!({
        "vip": cluster.vip,
        "port": cluster.port,
        "tokenFile": cluster.token_file,
        "vrrp": { "authPassFile": cluster.auth_pass_file, "unicast": !cluster.unicast.is_empty() },
        "hosts": hosts,
    });
    serde_saphyr::to_string(&without_null(all)).unwrap()
}

fn render_host(h: &HostSpec) -> Value {
    let jump = h.ssh.jump.as_ref().map(|jump| match jump.as_slice() {
        [] => "none".to_owned(),
        jumps => jumps.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    });
    let k3s = h.k3s.as_ref().map(|k3s| match k3s {
        K3sFrom::File(path) => json!({ "path": path }),
        K3sFrom::Release { version, mirror } => json!({ "version": version, "mirror": mirror }),
    });
    json!({
        "host": h.host, "role": h.role, "nodeIp": h.node_ip, "hostKey": h.host_key, "interface": h.interface, "runtime": h.runtime,
        "firewall": h.firewall, "k3s": k3s, "k3sArgs": h.k3s_args, "ignore": h.ignore, "timeout": h.timeout.to_string(),
        "ssh": { "user": h.ssh.user, "port": h.ssh.port, "identityFiles": h.ssh.identity_files, "jump": jump },
    })
}

fn without_null(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_null(v))).collect(),
        Value::Array(list) => list.into_iter().map(without_null).collect(),
        other => other,
    }
}

/// Names that YAML could take for something else are among them.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z0-9.-]{0,12}",
        Just("null".into()),
        Just("true".into()),
        Just("no".into()),
        Just("1e3".into()),
        Just("0x1f".into()),
        "[0-9]{1,5}"
    ]
}

fn file_name() -> impl Strategy<Value = PathBuf> {
    "[a-zA-Z0-9~./ :#'\"{}&*!%@-]{1,20}".prop_map(PathBuf::from)
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>(text: impl Strategy<Value = String>) -> impl Strategy<Value = T> {
    text.prop_map(|text| text.parse().unwrap())
}

prop_compose! {
    fn ssh()(
        user in prop::option::of(parsed("[a-z][a-z0-9-]{0,8}")),
        port in prop::option::of(parsed((1u16..).prop_map(|p| p.to_string()))),
        identity_files in prop::option::of(prop::collection::vec(file_name(), 0..3)),
        jump in prop::option::of(prop::collection::vec(parsed(prop_oneof!["[a-z]{1,5}@[a-z]{1,5}:[1-9][0-9]{0,3}", "b[a-z]{1,5}", Just("[fd00::1]:22".into())]), 0..3)),
    ) -> Ssh {
        Ssh { user, port, identity_files, jump }
    }
}

prop_compose! {
    fn a_host()(
        host in parsed(name()),
        server in any::<bool>(),
        address in prop::option::of(any::<u16>()),
        pinned in any::<bool>(),
        ssh in ssh(),
        interface in prop::option::of(parsed("[a-z]{1,5}[0-9]?")),
        (runtime, firewall) in (prop::option::of(prop_oneof![Just(Runtime::Docker), Just(Runtime::Containerd)]), any::<Option<bool>>()),
        k3s in prop::option::of(prop_oneof![
            file_name().prop_map(K3sFrom::File),
            prop::option::of(parsed("https://[a-z]{1,9}".boxed())).prop_map(|mirror| K3sFrom::Release { version: "v1.31.2+k3s1".parse().unwrap(), mirror }),
        ]),
        k3s_args in prop::collection::vec(parsed("--[a-s][a-z-]{0,9}=[a-z0-9:,!&*{}@-]{0,9}"), 0..3),
        ignore in prop::collection::vec("[a-z -]{1,9}", 0..3),
        seconds in 1u32..100_000,
    ) -> HostSpec {
        HostSpec {
            host,
            role: if server { Role::Server } else { Role::Agent },
            node_ip: address.map(|n| IpAddr::from([10, 1, n.to_be_bytes()[0], n.to_be_bytes()[1]])),
            host_key: pinned.then(|| "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU".parse().unwrap()),
            ssh, interface, runtime, firewall, k3s, k3s_args, ignore,
            timeout: format!("{seconds}s").parse().unwrap(),
        }
    }
}

prop_compose! {
    fn a_cluster()(
        vip in parsed(prop_oneof!["10\\.0\\.0\\.[1-9]/24", Just("10.0.0.10".into())]),
        port in prop::option::of(parsed((1u16..).prop_map(|p| p.to_string()))),
        token_file in prop::option::of(file_name()),
        auth_pass_file in prop::option::of(file_name()),
        unicast in any::<bool>(),
        mut hosts in prop::collection::vec(a_host(), 1..6),
    ) -> Cluster {
        hosts[0].role = Role::Server;
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        hosts.retain(|h| names.insert(h.host.as_str().to_owned()) && h.addr().is_none_or(|a| addresses.insert(a)));
        let servers: Vec<_> = hosts.iter().filter(|h| h.role == Role::Server).map(HostSpec::addr).collect();
        let unicast = if unicast { servers.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default() } else { vec![] };
        Cluster { vip, port, token_file, auth_pass_file, unicast, hosts }
    }
}

proptest! {
    #[test]
    fn a_file_comes_back_as_it_went(cluster in a_cluster()) {
        let text = render(&cluster);
        let back = Cluster::parse(&text, |_| None);
        prop_assert_eq!(back, Ok(cluster), "{}", text);
    }

    #[test]
    fn any_text_is_answered(text in "(?s).{0,200}") {
        let _ = parse(&text).map_err(|e| e.text("f"));
    }

    #[test]
    fn anything_like_a_file_is_answered(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "vip", "hosts", "host", "role", "server", "ssh", "k3s", "vrrp", "10.0.0.10", ": ", ":", "- ", "\n", "\n  ", "\n    ", "\t", "{", "}", "[", "]",
                ", ", "\"", "'", "&a ", "*a", "<<: *a", "---\n", "...", "|", ">", "#", "~", "${PORT}", "${", "$${", "!!int ", "? ", "\u{1b}", "ä", "\r", "\u{2028}",
            ]),
            0..60,
        )
    ) {
        if let Err(e) = parse(&words.concat()) {
            prop_assert!(!e.0.is_empty());
            prop_assert!(e.text("f").chars().all(|c| c == '\n' || !c.is_control()));
        }
    }
}
