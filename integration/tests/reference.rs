//! The reference's layout (7.4.1, by hand): a packaged unit, the same files, the same lines.

mod common;

use anyhow::{Result, ensure};
use common::{Before, VIP, done, smartup, status};
use integration::{Host, Lab, LabSpec};

/// A unit as a package ships it, with flags of its own.
const VENDOR: &str = "[Unit]\nDescription=k3s, packaged\n[Service]\nType=notify\nEnvironmentFile=-/etc/k3s/k3s-server.env\n\
    ExecStart=/usr/local/bin/k3s server --https-listen-port 9443 --write-kubeconfig-mode 600 $K3S_EXTRA_FLAGS\n\
    TimeoutStartSec=0\nRestart=always\nRestartSec=5s\nKillMode=process\nDelegate=yes\n[Install]\nWantedBy=multi-user.target\n";

fn ship(host: &Host) -> Result<()> {
    host.write("/usr/lib/systemd/system/k3s-server.service", 0o644, VENDOR)?;
    host.sh("mkdir -p /etc/k3s && systemctl daemon-reload")?;
    Ok(())
}

fn arguments(host: &Host) -> Result<String> {
    host.sh("tr '\\0' ' ' < /proc/$(systemctl show k3s-server -p MainPID --value)/cmdline")
}

#[test]
fn a_packaged_unit_is_used_as_it_is() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    for host in [h1, h2] {
        ship(host)?;
        host.write("/root/token", 0o600, "my_secret_token\n")?;
        host.write("/root/pass", 0o600, "mypasswd\n")?;
    }
    // what the manual has one write; a line of the user's own as well
    h1.write("/etc/k3s/k3s-server.env", 0o644, "HTTP_PROXY=\nK3S_TOKEN=my_secret_token\nK3S_EXTRA_FLAGS=\"--cluster-init\"\n")?;
    let before = Before::of(h1)?;
    done(h1, &["init", "--vip", VIP, "--token-file", "/root/token", "--auth-pass-file", "/root/pass"])?;

    let env = h1.read("/etc/k3s/k3s-server.env")?;
    for line in ["HTTP_PROXY=", "K3S_TOKEN=my_secret_token", "K3S_EXTRA_FLAGS=\"--cluster-init "] {
        ensure!(env.lines().any(|l| l.starts_with(line)), "{line} in:\n{env}");
    }
    ensure!(!env.contains("K3S_URL"), "{env}");
    ensure!(h1.run(["stat", "-c", "%a", "/etc/k3s/k3s-server.env"])?.trim() == "600");
    ensure!(!h1.exec(["test", "-e", "/etc/systemd/system/k3s-server.service"])?.ok(), "no unit of ours beside the packaged one");
    let args = arguments(h1)?;
    for once in ["--https-listen-port", "--cluster-init", "--node-ip", "--flannel-iface", "--tls-san"] {
        ensure!(args.matches(once).count() == 1, "{once} once in: {args}");
    }
    ensure!(!args.contains("my_secret_token"), "a secret is never in argv: {args}");

    // keepalived's sample with its placeholders filled, and the firewall's lines
    let conf = h1.read("/etc/keepalived/keepalived.conf")?;
    for words in ["interface eth0", "auth_pass mypasswd", &format!("{VIP}/24"), "check_apiserver.sh"] {
        ensure!(conf.contains(words), "{words} in:\n{conf}");
    }
    ensure!(h1.run(["stat", "-c", "%a", "/etc/keepalived/keepalived.conf"])?.trim() == "600", "it holds a password");
    for side in ["", "--permanent"] {
        let zone = h1.sh(&format!("firewall-cmd {side} --list-all"))?;
        for rule in ["8472/udp", "9443/tcp", "2379-2380/tcp", "rule protocol value=\"vrrp\" accept"] {
            ensure!(zone.contains(rule), "{side} {rule} in:\n{zone}");
        }
    }

    // a server of another version of VRRP would be a split brain
    let other = smartup(h2, &["join", "--role", "server", "--vip", VIP, "--token-file", "/root/token"])?;
    ensure!(other.code == 4 && other.stderr.contains("vrrp-match"), "{}", other.stderr);

    // the second server, piece by piece as in the manual, with the bare secret
    done(h2, &["join", "--role", "server", "--vip", VIP, "--token-file", "/root/token", "--auth-pass-file", "/root/pass"])?;
    let env = h2.read("/etc/k3s/k3s-server.env")?;
    ensure!(env.lines().any(|l| l == format!("K3S_URL=https://{VIP}:9443")) && !env.contains("--cluster-init"), "{env}");
    ensure!(status(h2)?["etcd"].as_array().is_some_and(|m| m.len() == 2));

    // run again without the password: the protocol stays what it is
    let again = smartup(h1, &["init", "--vip", VIP, "--dry-run", "--exit-code"])?;
    ensure!(again.code == 0, "{}{}", again.stdout, again.stderr);
    done(h1, &["reset", "--yes"])?;
    before.unchanged(h1)
}
