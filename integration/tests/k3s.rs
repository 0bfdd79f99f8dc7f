//! The lab's `k3s` behaves as a real one does: these tests also pass with `SMARTUP_LAB_K3S`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration::{Host, Lab, LabSpec, Outcome, until};

const SECRET: &str = "a-lab-secret";
const LONG: Duration = Duration::from_secs(180);
const ENDS: Duration = Duration::from_secs(150);

fn lab(hosts: u8) -> Result<Lab> {
    let lab = Lab::up(&LabSpec::hosts(hosts).without_smartup())?;
    for host in lab.hosts() {
        host.sh("firewall-cmd -q --add-port=9443/tcp --add-port=2379-2380/tcp --add-port=10250/tcp --add-port=8472/udp
             firewall-cmd -q --zone=trusted --add-source=10.42.0.0/16 --add-source=10.43.0.0/16")?;
    }
    Ok(lab)
}

/// Upstream's unit, with flags and secrets in an environment file.
fn install(host: &Host, role: &str, environment: &str, flags: &str) -> Result<()> {
    let unit = format!(
        "[Unit]\nAfter=network-online.target\n[Service]\nType=notify\nEnvironmentFile=/etc/k3s/k3s-{role}.env\nKillMode=process\n\
         Delegate=yes\nLimitNOFILE=1048576\nTimeoutStartSec=0\nRestart=always\nRestartSec=5s\n\
         ExecStart=/usr/local/bin/k3s {role} $K3S_EXTRA_FLAGS\n[Install]\nWantedBy=multi-user.target\n"
    );
    let file = format!("{environment}\nK3S_EXTRA_FLAGS={flags} --node-ip {} --flannel-iface eth0\n", host.ipv4());
    host.write(&format!("/etc/k3s/k3s-{role}.env"), 0o600, file)?;
    host.write(&format!("/etc/systemd/system/k3s-{role}.service"), 0o644, unit)?;
    host.run(["systemctl", "daemon-reload"]).map(drop)
}

const SERVER: &str = "--https-listen-port 9443 --tls-san 10.79.0.200";

fn first(host: &Host) -> Result<()> {
    install(host, "server", &format!("K3S_TOKEN={SECRET}"), &format!("--cluster-init {SERVER}"))?;
    start(host, "server")
}

fn start(host: &Host, role: &str) -> Result<()> {
    let started = host.exec(["timeout", "120", "systemctl", "start", &format!("k3s-{role}")])?;
    ensure!(started.ok(), "{}: {}{}", host.name(), started.stderr, log(host)?);
    Ok(())
}

fn log(host: &Host) -> Result<String> {
    host.sh("journalctl --no-pager -o cat -u k3s-server -u k3s-agent | tail -n 60")
}

fn token(server: &Host) -> Result<String> {
    Ok(server.read("/var/lib/rancher/k3s/server/node-token")?.trim().to_owned())
}

fn url(server: &Host) -> String {
    format!("https://{}:9443", server.ipv4())
}

fn joiner(host: &Host, server: &Host, role: &str) -> Result<()> {
    let environment = format!("K3S_TOKEN={}\nK3S_URL={}", token(server)?, url(server));
    install(host, role, &environment, if role == "server" { SERVER } else { "" })
}

fn kubectl(host: &Host, line: &str) -> Result<String> {
    host.sh(&format!("k3s kubectl {line}"))
}

fn readyz(host: &Host) -> Result<()> {
    until("/readyz is ok", LONG, || Ok((kubectl(host, "get --raw /readyz")? == "ok").then_some(())))
}

fn ready(server: &Host, node: &str) -> Result<()> {
    let path = r"{.status.conditions[?(@.type=='Ready')].status}";
    let line = format!("get node {node} -o jsonpath=\"{path}\"");
    until(&format!("{node} is Ready"), LONG, || Ok((kubectl(server, &line)? == "True").then_some(())))
}

/// `name learner?` of each member, as the etcd on this host tells them.
fn members(host: &Host) -> Result<Vec<(String, bool)>> {
    let text = host.sh("cd /var/lib/rancher/k3s/server/tls/etcd
         etcdctl --endpoints https://127.0.0.1:2379 --cacert server-ca.crt --cert client.crt --key client.key member list")?;
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(", ").collect();
            Ok(((*fields.get(2).context("no name")?).to_owned(), fields.last() == Some(&"true")))
        })
        .collect()
}

fn http(lab: &Lab, server: &Host, path: &str, more: &[&str]) -> Result<String> {
    let (url, probe) = (format!("{}{path}", url(server)), lab.probe());
    let argv = [&["curl", "-sk", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", &url], more].concat();
    Ok(probe.exec(argv)?.stdout)
}

/// Runs `k3s` by itself; it must end.
fn run(host: &Host, environment: &[&str], line: &[&str]) -> Result<(Outcome, Duration)> {
    let limit = ENDS.as_secs().to_string();
    let argv = [&["timeout", "-s", "KILL", &limit, "env"], environment, &["k3s"], line].concat();
    let begin = Instant::now();
    Ok((host.exec(argv)?, begin.elapsed()))
}

fn refused(host: &Host, environment: &[&str], args: &[&str], message: &str) -> Result<Duration> {
    let (outcome, took) = run(host, environment, args)?;
    ensure!(outcome.code == 1, "exit code {}: {}", outcome.code, outcome.stderr);
    let fatal = outcome.stderr.lines().any(|l| l.contains("level=fatal") && l.contains(message));
    ensure!(fatal, "no fatal {message:?} in:\n{}", outcome.stderr);
    Ok(took)
}

#[test]
fn three_servers_and_an_agent() -> Result<()> {
    let lab = lab(4)?;
    let [h1, h2, h3, h4] = lab.hosts() else { unreachable!() };

    // Nothing listens: a joiner does not wait for the first server.
    let early = format!("K3S_URL={}", url(h1));
    let flags = ["server", "--https-listen-port", "9443", "--node-ip", "10.79.0.12"];
    refused(h2, &["K3S_TOKEN=x", &early], &flags, "failed to get CA certs: ")?;

    first(h1)?;
    readyz(h1)?;
    assert_eq!(http(&lab, h1, "/ping", &[])?, "200");
    assert_eq!(http(&lab, h1, "/cacerts", &[])?, "200");
    for path in ["/readyz", "/livez", "/api", "/v1-k3s/server-bootstrap", "/db/info"] {
        assert_eq!(http(&lab, h1, path, &[])?, "401", "{path}");
    }
    let user = format!("server:{SECRET}");
    assert_eq!(http(&lab, h1, "/v1-k3s/server-bootstrap", &["-u", &user])?, "200");
    assert_eq!(http(&lab, h1, "/v1-k3s/server-bootstrap", &["-u", &format!("node:{SECRET}")])?, "401");
    assert_eq!(http(&lab, h1, "/v1-k3s/config", &["-u", &format!("node:{SECRET}")])?, "200");
    let head = lab.probe().exec(["curl", "-skI", &format!("{}/readyz", url(h1))])?.stdout.to_lowercase();
    assert!(head.contains("\ndate: "), "{head}");

    // Files, modes and the token that pins the CA.
    let hash = h1.sh("curl -sk https://127.0.0.1:9443/cacerts | sha256sum | cut -d' ' -f1")?;
    assert_eq!(token(h1)?, format!("K10{}::server:{SECRET}", hash.trim()));
    assert_eq!(h1.sh("stat -c %a /etc/rancher/k3s/k3s.yaml /var/lib/rancher/k3s/server/token")?, "600\n600\n");
    let sans = h1.sh("openssl s_client -connect 127.0.0.1:9443 </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName")?;
    for san in ["10.79.0.200", "10.79.0.11", "127.0.0.1", "10.43.0.1", "kubernetes.default.svc"] {
        assert!(sans.contains(san), "{san} not in {sans}");
    }

    // Refusals leave the way free for a proper join.
    let wrong = token(h1)?.replace(SECRET, "wrong");
    let url_variable = format!("K3S_URL={}", url(h1));
    let took = refused(h2, &[&format!("K3S_TOKEN={wrong}"), &url_variable], &flags, "/v1-k3s/server-bootstrap: 401 Unauthorized")?;
    assert!(took < Duration::from_secs(5), "{took:?}");
    let foreign = format!("K3S_TOKEN=K10{}::server:{SECRET}", "0".repeat(64));
    refused(h2, &[&foreign, &url_variable], &flags, "token CA hash does not match")?;
    assert!(!h2.exec(["test", "-e", "/var/lib/rancher/k3s/server/tls/server-ca.crt"])?.ok(), "only empty folders are left");

    let good = format!("K3S_TOKEN={}", token(h1)?);
    let twin = [&flags[..], &["--node-name", "h1"]].concat();
    refused(h2, &[&good, &url_variable], &twin, "duplicate node name found, please use a unique name for this node")?;

    // Two at once: one of them is refused by etcd, and comes back by itself.
    for host in [h2, h3] {
        joiner(host, h1, "server")?;
        host.run(["systemctl", "start", "--no-block", "k3s-server"])?;
    }
    // An agent asks again and again, and says why it waits.
    for (environment, message) in
        [(format!("K3S_TOKEN={wrong}"), "/v1-k3s/config: 401 Unauthorized"), (foreign, "token CA hash does not match")]
    {
        let argv = ["timeout", "-s", "KILL", "8", "env", &environment, &url_variable, "k3s", "agent", "--node-ip", "10.79.0.14"];
        let outcome = h4.exec(argv)?;
        assert_eq!(outcome.code, 137, "{outcome:?}");
        assert!(outcome.stderr.lines().any(|l| l.contains("level=error") && l.contains(message)), "{}", outcome.stderr);
    }
    joiner(h4, h1, "agent")?;
    h4.sh("install -D /usr/libexec/lab-kubernetes/pause.tar /var/lib/rancher/k3s/agent/images/extra.tar")?;
    start(h4, "agent")?;
    assert!(log(h4)?.contains("Imported images from /var/lib/rancher/k3s/agent/images/extra.tar"), "{}", log(h4)?);
    for host in [h2, h3] {
        until("active", LONG, || Ok((host.exec(["systemctl", "is-active", "-q", "k3s-server"])?.ok()).then_some(())))?;
        readyz(host)?;
    }
    let fatal = "journalctl --no-pager -o cat -u k3s-server | grep level=fatal || true";
    let logs = format!("{}{}", h2.sh(fatal)?, h3.sh(fatal)?);
    let said = ["etcdserver: too many learner members in cluster", "etcdserver: unhealthy cluster"];
    assert!(said.iter().any(|message| logs.contains(message)), "{logs}");
    let found = members(h1)?;
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|(_, learner)| !learner), "{found:?}");
    for host in lab.hosts() {
        ready(h1, host.name()).with_context(|| log(host).unwrap_or_default())?;
    }
    let roles = kubectl(
        h1,
        "get nodes -l node-role.kubernetes.io/etcd=true,node-role.kubernetes.io/control-plane=true,node-role.kubernetes.io/master=true -o name",
    )?;
    assert_eq!(roles, "node/h1\nnode/h2\nnode/h3\n");
    until("three endpoints", LONG, || {
        let text = kubectl(h1, "get endpoints kubernetes -o jsonpath='{.subsets[*].addresses[*].ip}:{.subsets[*].ports[*].port}'")?;
        Ok((text == "10.79.0.11 10.79.0.12 10.79.0.13:9443").then_some(()))
    })?;
    pods(h1, h4)?;
    faults(h1, h3, h4)?;
    lab.down()
}

/// A manifest becomes pods on all nodes, that reach each other, also through a service.
fn pods(h1: &Host, h4: &Host) -> Result<()> {
    let manifest = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: docker.io/library/busybox:test
        imagePullPolicy: Never
        command: [sh, -c, "while :; do (printf 'HTTP/1.0 200 OK\r\n\r\n'; hostname) | nc -l -p 80; done"]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"#;
    h1.write("/var/lib/rancher/k3s/server/manifests/web.yaml", 0o600, manifest)?;
    until("four pods run", LONG, || {
        let ready = kubectl(h1, "get daemonset web -o jsonpath='{.status.numberReady}'")?;
        Ok((ready == "4").then_some(()))
    })?;
    let addresses = kubectl(h1, "get pods -l app=web -o jsonpath='{.items[*].status.podIP}'")?;
    for address in addresses.split_whitespace() {
        let answer = |host: &Host| Ok(host.exec(["curl", "-sf", "--max-time", "2", &format!("http://{address}/")])?.ok().then_some(()));
        until(&format!("{address} answers h1"), LONG, || answer(h1))?;
        until(&format!("{address} answers h4"), LONG, || answer(h4))?;
    }
    let service = kubectl(h1, "get service web -o jsonpath='{.spec.clusterIP}'")?;
    let pod = kubectl(h1, "get pods -l app=web --field-selector spec.nodeName=h4 -o name")?;
    // A static busybox's wget may crash where it would look up a name.
    let line = format!(r#"exec {} -- sh -c "printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 {service} 80""#, pod.trim());
    until("the service answers a pod", LONG, || Ok(kubectl(h1, &line)?.contains("200 OK").then_some(())))
}

fn faults(h1: &Host, h3: &Host, h4: &Host) -> Result<()> {
    // Stopping k3s leaves its pods; a killed one takes all but those along.
    let shims = || h4.sh("pgrep -fc [c]ontainerd-shim-runc-v2");
    let before = shims()?;
    h4.run(["systemctl", "stop", "k3s-agent"])?;
    assert_eq!(shims()?, before);
    start(h4, "agent")?;
    let id = h3.run(["systemctl", "show", "-p", "MainPID", "--value", "k3s-server"])?;
    h3.run(["kill", "-9", id.trim()])?;
    until("its components end", Duration::from_secs(2), || {
        Ok((!h3.exec(["sh", "-c", "ps -eo stat,comm | grep -E '^[^Z].*(etcd|kube-apiserver|kubelet|kube-proxy|containerd$)'"])?.ok())
            .then_some(()))
    })?;
    until("k3s comes back", LONG, || Ok(h3.exec(["systemctl", "is-active", "-q", "k3s-server"])?.ok().then_some(())))?;
    readyz(h3)?;

    // A restart needs no other server's address, and a dead one does no harm.
    h3.sh("sed -i 's#^K3S_URL=.*#K3S_URL=https://10.79.0.99:9443#' /etc/k3s/k3s-server.env; systemctl stop k3s-server")?;
    start(h3, "server")?;
    readyz(h3)?;
    assert_eq!(members(h3)?.len(), 3);

    // A snapshot, and a node that is deleted.
    h3.run(["k3s", "etcd-snapshot", "save"])?;
    assert!(h3.run(["k3s", "etcd-snapshot", "ls"])?.contains("on-demand-h3-"));
    h3.run(["systemctl", "stop", "k3s-server"])?;
    kubectl(h1, "delete node h3")?;
    until("its member is gone", LONG, || Ok((members(h1)?.len() == 2).then_some(())))?;
    h3.sh("rm -rf /var/lib/rancher/k3s/server/db; sed -i 's#^K3S_URL=.*#K3S_URL=https://10.79.0.11:9443#' /etc/k3s/k3s-server.env")?;
    // etcd takes a member only when all others have been connected for 5 s: systemd tries again.
    h3.run(["systemctl", "start", "--no-block", "k3s-server"])?;
    until("it is back", LONG, || Ok((h3.exec(["systemctl", "is-active", "-q", "k3s-server"])?.ok()).then_some(())))?;
    assert_eq!(members(h1)?.len(), 3);
    Ok(())
}

#[test]
fn a_url_without_a_token_makes_a_cluster_of_its_own() -> Result<()> {
    let lab = lab(2)?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    first(h2)?;
    install(h1, "server", &format!("K3S_URL={}", url(h2)), SERVER)?;
    start(h1, "server")?;
    readyz(h1)?;
    h1.run(["test", "-e", "/var/lib/rancher/k3s/server/db/state.db"])?;
    assert!(!h1.exec(["test", "-e", "/var/lib/rancher/k3s/server/db/etcd"])?.ok());
    // What it left there is another cluster's: a proper join does not work any more.
    h1.run(["systemctl", "stop", "k3s-server"])?;
    let (good, url) = (format!("K3S_TOKEN={}", token(h2)?), format!("K3S_URL={}", url(h2)));
    let flags = ["server", "--https-listen-port", "9443", "--node-ip", "10.79.0.11", "--flannel-iface", "eth0"];
    let (outcome, _) = run(h1, &[&good, &url], &flags)?;
    assert!(outcome.stderr.contains("x509: certificate signed by unknown authority"), "{}", outcome.stderr);
    assert_eq!(members(h2)?.len(), 1);
    lab.down()
}

#[test]
fn a_new_token_does_not_stop_an_old_server_and_a_snapshot_brings_back_what_was() -> Result<()> {
    let lab = lab(1)?;
    let h1 = lab.host("h1")?;
    first(h1)?;
    readyz(h1)?;
    kubectl(h1, "create namespace before")?;
    h1.run(["k3s", "etcd-snapshot", "save", "--name", "keep"])?;
    kubectl(h1, "create namespace after")?;

    h1.sh("sed -i 's/^K3S_TOKEN=.*/K3S_TOKEN=another/' /etc/k3s/k3s-server.env; systemctl restart k3s-server")?;
    readyz(h1)?;
    assert!(token(h1)?.ends_with("::server:another"));

    h1.run(["systemctl", "stop", "k3s-server"])?;
    let snapshot = h1.sh("ls /var/lib/rancher/k3s/server/db/snapshots/keep-h1-*")?;
    let restore = format!("--cluster-reset-restore-path={}", snapshot.trim());
    let args = ["server", "--https-listen-port", "9443", "--node-ip", "10.79.0.11", "--cluster-reset", &restore];
    let (outcome, _) = run(h1, &[&format!("K3S_TOKEN={SECRET}")], &args)?;
    ensure!(outcome.ok() && outcome.stderr.contains("restart without --cluster-reset flag now"), "{outcome:?}");
    start(h1, "server")?;
    readyz(h1)?;
    let names = kubectl(h1, "get namespaces -o name")?;
    assert!(names.contains("namespace/before") && !names.contains("namespace/after"), "{names}");
    lab.down()
}

#[test]
fn the_command_line_is_k3ss() -> Result<()> {
    let lab = lab(1)?;
    let h1 = lab.host("h1")?;
    let (version, _) = run(h1, &[], &["--version"])?;
    let mut lines = version.stdout.lines();
    assert!(lines.next().is_some_and(|l| l.starts_with("k3s version v1.") && l.contains("+k3s")), "{version:?}");
    assert!(lines.next().is_some_and(|l| l.starts_with("go version go")), "{version:?}");
    refused(h1, &[], &["server", "--no-such-flag"], "flag provided but not defined: -no-such-flag")?;
    refused(h1, &[], &["agent"], "--token is required")?;
    refused(h1, &["K3S_TOKEN=x"], &["agent"], "--server is required")?;
    h1.write("/etc/rancher/k3s/config.yaml", 0o600, "flannel-iface: none9\n")?;
    refused(h1, &[], &["server"], "no such network interface")?;
    h1.sh("rm -r /etc/rancher; ip route del default; ip -6 route del default || true")?;
    refused(h1, &[], &["server"], "no default routes found")?;
    let taken =
        ["python3", "-c", "import socket,time\ns=socket.socket(); s.bind(('', 9443)); s.listen(); print(flush=True); time.sleep(600)"];
    let mut holder = h1.spawn(taken)?;
    holder.line()?;
    let args = ["server", "--cluster-init", "--https-listen-port", "9443", "--node-ip", "10.79.0.11", "--flannel-iface", "eth0"];
    refused(h1, &[], &args, "listen tcp :9443: bind: address already in use")?;
    drop(holder);
    refused(h1, &[], &[&args[..], &["--docker"]].concat(), "kubelet exited")?;
    lab.down()
}
