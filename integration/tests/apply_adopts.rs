//! A cluster that was made by hand, as the reference has it (7.4.1), is taken over as it is.

mod common;

use std::time::Duration;

use anyhow::{Result, ensure};
use common::{Before, Control, LONG, VIP, answered, holders, is_one_cluster, longest_silence, outcomes, status, yaml};
use integration::{Host, Lab, LabSpec, until};

/// The k3s package's unit.
const UNIT: &str = "[Unit]\nDescription=k3s, packaged\n[Service]\nType=notify\nEnvironmentFile=-/etc/k3s/k3s-server.env\n\
    ExecStart=/usr/local/bin/k3s server --https-listen-port 9443 --write-kubeconfig-mode 600 $K3S_EXTRA_FLAGS\n\
    TimeoutStartSec=0\nRestart=always\nRestartSec=5s\nKillMode=process\nDelegate=yes\n[Install]\nWantedBy=multi-user.target\n";

/// The sample that Kubernetes supplies, its placeholders replaced.
const KEEPALIVED: &str = "! Configuration File for keepalived\nglobal_defs {\n    router_id LVS_DEVEL\n}\n\
    vrrp_script check_apiserver {\n  script \"/etc/keepalived/check_apiserver.sh\"\n  interval 3\n  weight -2\n  fall 10\n  rise 2\n}\n\
    vrrp_instance VI_1 {\n    state BACKUP\n    interface eth0\n    virtual_router_id 51\n    priority 100\n    authentication {\n        \
    auth_type PASS\n        auth_pass mypasswd\n    }\n    virtual_ipaddress {\n        10.79.0.200\n    }\n    track_script {\n        \
    check_apiserver\n    }\n}\n";
const CHECK: &str = "#!/bin/sh\ncurl --silent --max-time 2 --insecure https://localhost:9443/ -o /dev/null || exit 1\n\
    if ip addr | grep -q 10.79.0.200; then\n    curl --silent --max-time 2 --insecure https://10.79.0.200:9443/ -o /dev/null || exit 1\nfi\n";

/// What the manual has one type on a control plane node; and the VIP as a name in k3s's certificate, which k3s's own listener
/// adds by itself when it is asked there, but the lab's does not.
fn by_hand(host: &Host, env: &str) -> Result<()> {
    host.write("/usr/lib/systemd/system/k3s-server.service", 0o644, UNIT)?;
    host.write("/etc/keepalived/keepalived.conf", 0o644, KEEPALIVED)?;
    host.write("/etc/keepalived/check_apiserver.sh", 0o755, CHECK)?;
    host.sh("firewall-cmd -q --permanent --add-rich-rule='rule protocol value=\"vrrp\" accept'")?;
    host.sh("firewall-cmd -q --permanent --add-port=8472/udp --add-port=9443/tcp --add-port=2379-2380/tcp; firewall-cmd -q --reload")?;
    host.write("/etc/k3s/k3s-server.env", 0o644, format!("K3S_TOKEN=my_secret_token\n{env}\n"))?;
    // one that comes too early ends, and systemd starts it again
    host.sh("systemctl daemon-reload; systemctl enable keepalived k3s-server; systemctl start --no-block keepalived k3s-server").map(drop)
}

#[test]
fn made_by_hand() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(6))?;
    let [h1, h2, h3, h4, h5] = ["h1", "h2", "h3", "h4", "h5"].map(|h| lab.host(h).expect("there are six hosts"));
    let servers = [h1, h2, h3];
    by_hand(h1, &format!("K3S_EXTRA_FLAGS=\"--cluster-init --tls-san {VIP}\""))?;
    answered(&lab)?;
    for host in [h2, h3] {
        by_hand(host, &format!("K3S_URL=https://{VIP}:9443\nK3S_EXTRA_FLAGS=\"--tls-san {VIP}\""))?;
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let get = ["k3s", "kubectl", "get", "node", host.name(), "-o", ready];
        until("it joins", LONG, || Ok((host.exec(get)?.stdout == "True").then_some(())))?;
    }
    until("one holder", LONG, || Ok((holders(&servers)?.len() == 1).then_some(())))?;
    let authority = h1.read("/var/lib/rancher/k3s/server/tls/server-ca.crt")?;

    // it is recognised, and the rest is shown: the password that the servers say is nowhere in the file
    let listed = ["h1, role: server", "h2, role: server", "h3, role: server"];
    let control = Control::on(&lab, "h6", &yaml("", &listed))?;
    let before = servers.map(|h| Before::of(h).map(|b| b.but(&["/var/lib/rancher", "/var/lib/kubelet", "/var/lib/containerd"])));
    let plan = control.plan(&[])?;
    ensure!(plan.code == 3 && plan.stdout.contains("3 hosts: 3 would be changed."), "{}{}", plan.stdout, plan.stderr);
    ensure!(plan.stdout.contains("/etc/k3s/k3s-server.env") && !plan.stdout.contains("mypasswd"), "{}", plan.stdout);
    ensure!(!plan.stdout.contains("my_secret_token"), "{}", plan.stdout);
    for (host, before) in servers.iter().zip(before) {
        before?.unchanged(host)?;
    }

    // taken over under the running cluster, one server after the other
    let (said, away) = longest_silence(&lab, || control.applied(&["-o", "json"]))?;
    eprintln!("the API was away for {away:?}");
    ensure!(away < Duration::from_secs(5), "the API did not answer through {VIP} for {away:?}: {said}");
    is_one_cluster(&servers, &[])?;
    ensure!(h2.read("/var/lib/rancher/k3s/server/tls/server-ca.crt")? == authority, "no second cluster");
    for host in servers {
        let conf = host.read("/etc/keepalived/keepalived.conf")?;
        ensure!(conf.contains("virtual_router_id 51") && conf.contains("auth_pass mypasswd"), "{}:\n{conf}", host.name());
        ensure!(host.read("/etc/k3s/k3s-server.env")?.contains("K3S_TOKEN=my_secret_token"));
        // the drop-ins count, though their units ran before there was a folder for them
        let read = host.run(["systemctl", "show", "-P", "DropInPaths", "keepalived", "k3s-server"])?;
        ensure!(read.contains("10-smartup.conf") && read.contains("10-smartup-vip.conf"), "{}: {read}", host.name());
    }
    ensure!(status(h1)?["host"]["role"] == "server");
    control.is_settled()?;

    // and it grows like one of smartup's own
    control.says(&yaml("", &[&listed[..], &["h4, role: server", "h5, role: agent"]].concat()))?;
    let said = outcomes(&control.apply(&["-o", "json"])?.checked()?)?;
    ensure!(said["h4"] == "changed" && said["h5"] == "changed" && said["h1"] == "unchanged", "{said:?}");
    is_one_cluster(&[h1, h2, h3, h4], &[h5])?;
    control.is_settled()
}
