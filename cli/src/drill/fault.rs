//! What is done to the holder of the VIP, and how it is undone.

use std::time::Duration;

use cluster::{Interface, Role, Vip};
use fleet::drill::Fault;
use node::{Context as _, Error, Guard, Host, Result, run};
use rustix::process::Signal;
use serde::Deserialize;

/// The unit that undoes it, whatever becomes of smartup.
pub const GUARD: &str = "smartup-drill.service";

/// How long a fault lasts at most; then the host itself undoes it. Less than the 40 s after which Kubernetes takes a node for lost
/// (kube-controller-manager, `--node-monitor-grace-period`).
pub const BOUND: Duration = Duration::from_secs(30);
/// How long the link is down: nobody can say sooner that it is enough.
pub const LINK: Duration = Duration::from_secs(10);

/// `ip` answers within milliseconds.
const IP: Duration = Duration::from_secs(10);

/// Arms what undoes it, and lets it happen; answers what `now` was when it began. For a reboot nothing is armed: the boot undoes it.
///
/// # Errors
/// When something is missing for undoing it, or it cannot be done; then it is undone.
pub async fn disturb(host: &Host, fault: Fault, interface: &Interface, vip: Vip, now: impl Fn() -> i64) -> Result<i64> {
    let k3s = k3s::paths::unit(Role::Server);
    let undo = undoing(fault, interface, vip).await?;
    if !undo.is_empty() {
        let lasts = if fault == Fault::Link { LINK } else { BOUND };
        Guard::named(&host.systemd, GUARD).arm(&format!("undoes what smartup drill did ({fault})"), lasts, &undo).await?;
    }
    let began = now();
    match fault {
        Fault::Keepalived => host.systemd.stop(keepalived::paths::UNIT).await?,
        Fault::Kill => host.systemd.signal(&k3s, Signal::KILL.as_raw()).await?,
        Fault::Freeze => host.systemd.signal(&k3s, Signal::STOP.as_raw()).await?,
        Fault::Link => ip(&["link", "set", "dev", interface.as_str(), "down"]).await.map(drop)?,
        Fault::Reboot => {
            let out = run("systemctl", &["reboot"], Duration::from_secs(10)).await?;
            if !out.success() {
                return Err(Error::failed(format!("systemctl reboot: {}", out.tail(3))));
            }
        }
    }
    Ok(began)
}

/// The commands that undo it, each of which does no harm where there is nothing to undo.
async fn undoing(fault: Fault, interface: &Interface, vip: Vip) -> Result<Vec<Vec<String>>> {
    let k3s = k3s::paths::unit(Role::Server);
    Ok(match fault {
        Fault::Keepalived => vec![words(&["systemctl", "start", "--no-block", keepalived::paths::UNIT])],
        // systemd does it by itself, where the unit says so
        Fault::Kill => vec![words(&["systemctl", "start", "--no-block", &k3s])],
        // --kill-whom is its name since systemd 252, which still takes this one
        Fault::Freeze => vec![words(&["systemctl", "kill", "--kill-who=main", "--signal=SIGCONT", &k3s])],
        Fault::Link => {
            let name = interface.as_str();
            let links = ip(&["-j", "-d", "link", "show"]).await?;
            if let Some(above) = vlan_on(&links, name)? {
                return Err(Error::refused(format!("{above} is a VLAN on {name}: taken down with it, it would lose its routes"))
                    .hint("leave out `link`"));
            }
            let v6 = ip(&["-j", "-6", "addr", "show", "dev", name, "scope", "global"]).await?;
            let routes = [
                ("-4", ip(&["-4", "-o", "route", "show", "table", "all", "dev", name]).await?),
                ("-6", ip(&["-6", "-o", "route", "show", "table", "all", "dev", name]).await?),
            ];
            relink(name, vip, &v6, &routes)?
        }
        Fault::Reboot => Vec::new(),
    })
}

async fn ip(args: &[&str]) -> Result<String> {
    let out = run("ip", args, IP).await?;
    if out.success() { Ok(out.stdout) } else { Err(Error::failed(format!("ip {}: {}", args.join(" "), out.tail(3)))) }
}

fn words(of: &[&str]) -> Vec<String> {
    of.iter().map(|w| (*w).to_owned()).collect()
}

/// The VLAN that lies on an interface, if any: the kernel takes it down too. Tunnels and macvlans keep their own state.
fn vlan_on(links: &str, interface: &str) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Link {
        ifname: Option<String>,
        #[serde(rename = "link")]
        below: Option<String>,
        #[serde(rename = "linkinfo")]
        info: Option<Info>,
    }
    #[derive(Deserialize)]
    struct Info {
        #[serde(rename = "info_kind")]
        kind: Option<String>,
    }
    let links: Vec<Link> = serde_json::from_str(links).context("cannot read what `ip -j link` says")?;
    let kind = |l: &Link| l.info.as_ref().and_then(|i| i.kind.clone());
    let vlan = links.into_iter().find(|l| l.below.as_deref() == Some(interface) && kind(l).as_deref() == Some("vlan"));
    Ok(vlan.and_then(|l| l.ifname))
}

/// Taking an interface down takes its IPv6 addresses and all its routes away for good. The kernel brings back what follows from
/// addresses and router advertisements; the rest is put back as it was. The VIP is keepalived's to put somewhere.
fn relink(interface: &str, vip: Vip, v6: &str, routes: &[(&str, String); 2]) -> Result<Vec<Vec<String>>> {
    #[derive(Deserialize)]
    struct Shown {
        #[serde(default)]
        addr_info: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct Address {
        local: Option<std::net::IpAddr>,
        prefixlen: Option<u8>,
        #[serde(default)]
        dynamic: bool,
        #[serde(default)]
        nodad: bool,
    }
    let mut commands = vec![words(&["ip", "link", "set", "dev", interface, "up"])];
    // where there is none, some versions print nothing at all, and some an empty object
    let v6 = if v6.trim().is_empty() { "[]" } else { v6 };
    let shown: Vec<Shown> = serde_json::from_str(v6).context("cannot read what `ip -j addr` says")?;
    for address in shown.into_iter().flat_map(|s| s.addr_info).filter(|a| !a.dynamic) {
        if let (Some(local), Some(length)) = (address.local, address.prefixlen)
            && local != vip.addr()
        {
            let nodad = address.nodad.then_some("nodad".to_owned());
            commands.push(
                [words(&["ip", "-6", "address", "replace", &format!("{local}/{length}"), "dev", interface]), nodad.into_iter().collect()]
                    .concat(),
            );
        }
    }
    for (family, table) in routes {
        commands.extend(table.lines().filter_map(|line| reroute(family, line, interface)));
    }
    Ok(commands)
}

/// A line of `ip route show dev …` as a command that makes the route, unless the kernel makes it itself.
fn reroute(family: &str, line: &str, interface: &str) -> Option<Vec<String>> {
    let line: Vec<&str> = line.split_whitespace().filter(|w| !["linkdown", "dead", "\\"].contains(w)).collect();
    let by = |who: &str| line.windows(2).any(|w| w == ["proto", who]);
    let kinds = ["local", "broadcast", "multicast", "anycast"];
    if line.is_empty() || by("kernel") || by("ra") || line.first().is_some_and(|f| kinds.contains(f)) {
        return None;
    }
    let mut command = words(&["ip", family, "route", "replace"]);
    command.extend(line.iter().map(|w| (*w).to_owned()));
    if !line.contains(&"dev") {
        command.extend(words(&["dev", interface]));
    }
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_comes_back_with_all_that_was_on_it() {
        let v6 = r#"[{"ifname":"eth0","addr_info":[{"family":"inet6","local":"fd00::11","prefixlen":64,"nodad":true},{"local":"fd00::10","prefixlen":64},
            {"local":"fd01::5","prefixlen":64,"dynamic":true}]},{}]"#;
        let v4 = "default via 10.0.0.1 proto dhcp src 10.0.0.11 metric 100 \n10.0.0.0/24 proto kernel scope link src 10.0.0.11 \n\
                  10.9.0.0/16 via 10.0.0.3 linkdown \nbroadcast 10.0.0.255 table local proto kernel scope link src 10.0.0.11 \n\
                  default table 100 proto static metric 20 \\	nexthop via 10.0.0.1 dev eth0 weight 1 \n";
        let v6_routes = "fd00::/64 proto kernel metric 256 pref medium\ndefault via fe80::1 proto ra metric 1024 expires 1700sec pref medium\n\
                         multicast ff00::/8 table local proto kernel metric 256 pref medium\nfd05::/64 via fd00::1 metric 1024 pref medium\n";
        let commands = relink("eth0", "fd00::10".parse().unwrap(), v6, &[("-4", v4.into()), ("-6", v6_routes.into())]).unwrap();
        insta::assert_snapshot!(commands.iter().map(|c| c.join(" ")).collect::<Vec<_>>().join("\n"), @r"
        ip link set dev eth0 up
        ip -6 address replace fd00::11/64 dev eth0 nodad
        ip -4 route replace default via 10.0.0.1 proto dhcp src 10.0.0.11 metric 100 dev eth0
        ip -4 route replace 10.9.0.0/16 via 10.0.0.3 dev eth0
        ip -4 route replace default table 100 proto static metric 20 nexthop via 10.0.0.1 dev eth0 weight 1
        ip -6 route replace fd05::/64 via fd00::1 metric 1024 pref medium dev eth0
        ");
        assert_eq!(relink("eth0", "10.0.0.10".parse().unwrap(), "", &[("-4", String::new()), ("-6", String::new())]).unwrap().len(), 1);
    }

    #[test]
    fn what_lies_on_the_link_is_looked_at() {
        let vlan = r#"[{"ifname":"eth0"},{},{"ifname":"eth0.7","link":"eth0","linkinfo":{"info_kind":"vlan"}}]"#;
        assert_eq!(vlan_on(vlan, "eth0").unwrap(), Some("eth0.7".to_owned()));
        assert_eq!(vlan_on(vlan, "eth1").unwrap(), None);
        let tunnel = r#"[{"ifname":"flannel.1","link":"eth0","linkinfo":{"info_kind":"vxlan"}}]"#;
        assert_eq!(vlan_on(tunnel, "eth0").unwrap(), None);
        assert!(vlan_on("nonsense", "eth0").is_err());
    }
}
