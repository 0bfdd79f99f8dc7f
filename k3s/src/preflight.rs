use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use cluster::{Role, Runtime};
use node::{Context as _, Error, Finding, Host, Result};

use crate::settings::{Settings, paths};
use crate::unit::{self, vendor};
use crate::{EnvFile, JoinTarget, Joined};

/// TCP ports that every node listens on.
const PORTS_AGENT: [u16; 1] = [10250];
/// TCP ports that a server listens on beside the API's.
const PORTS_SERVER: [u16; 3] = [2379, 2380, 10250];

/// The slowest that 99 of 100 fsyncs should be (etcd's hardware page: 10 ms at the 99th percentile).
const FSYNC_LIMIT: Duration = Duration::from_millis(10);

/// k3s's checks of this host.
///
/// # Errors
/// When systemd does not answer; what a check finds is in its finding.
pub async fn preflight(host: &Host, settings: &Settings) -> Result<Vec<Finding>> {
    let mut found = vec![foreign(host, settings.role).await, role(settings)];
    if let Some(vendor) = vendor(host, settings.role).await? {
        found.push(vendor_flags(&vendor, settings));
    }
    if settings.runtime == Runtime::Docker {
        found.push(if host.systemd.unit("docker.service").await?.exists() {
            Finding::ok("docker", "docker is on this host")
        } else {
            Finding::fail("docker", &Error::invalid("docker is not on this host").hint("install it, or leave --runtime docker away"))
        });
    }
    if takes_part(host, settings.role).await? {
        return Ok(found);
    }
    found.push(ports(settings));
    if settings.role == Role::Server {
        found.push(fsync(Path::new("/var/lib")));
    }
    if settings.first {
        found.push(leftover(host, None));
    }
    Ok(found)
}

/// A joiner's checks of the cluster, with its token; none on a host that takes part already.
///
/// # Errors
/// As [`preflight`].
pub async fn cluster_preflight(host: &Host, settings: &Settings) -> Result<Vec<Finding>> {
    if settings.first || takes_part(host, settings.role).await? {
        return Ok(Vec::new());
    }
    Ok(join(host, settings).await)
}

/// Whether k3s runs here as part of a cluster. It may be on its way down: the ports are its own until then, and a run that was cut
/// short may have left it in the middle of a restart.
async fn takes_part(host: &Host, role: Role) -> Result<bool> {
    let unit = host.systemd.unit(&paths::unit(role)).await?;
    Ok((unit.running() || unit.active == "deactivating") && paths::ca(role).exists())
}

/// A server that is busy, or gives up the VIP just now, cuts a connection off or does not answer in time; so it is asked this often,
/// but not once more after this long: two time-outs.
const ASKED: usize = 3;
const PATIENCE: Duration = Duration::from_secs(8);

async fn ask(settings: &Settings) -> Result<Joined> {
    let target = JoinTarget { vip: settings.vip, port: settings.port, token: &settings.token };
    let began = Instant::now();
    let mut asked = 1;
    loop {
        match target.ask(settings.role, || jiff::Timestamp::now().as_second()).await {
            Err(e) if e.kind == node::Kind::Failed && asked < ASKED && began.elapsed() < PATIENCE => {
                asked += 1;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            answer => return answer,
        }
    }
}

async fn join(host: &Host, settings: &Settings) -> Vec<Finding> {
    match ask(settings).await {
        Err(e) => vec![Finding::fail("cluster", &e)],
        Ok(Joined { clock_ahead, ca, pinned }) => {
            let mut found = vec![leftover(host, Some(&ca)), clock_offset(clock_ahead)];
            found.push(if pinned {
                Finding::ok("cluster", format!("the cluster at {} takes the token", settings.url()))
            } else {
                Finding::warn(
                    "cluster",
                    "the token does not pin the cluster's CA, so this host trusts whoever answers at the VIP",
                    "use a ticket, or the long token from `smartup ticket` (K10…)",
                )
            });
            found
        }
    }
}

/// More than this apart, certificates and leases go wrong.
const CLOCK_LIMIT: i64 = 5;

fn clock_offset(ahead: Option<i64>) -> Finding {
    match ahead {
        None => Finding::warn("clock-offset", "the server does not tell its time", "compare `date` here and there"),
        Some(n) if n.abs() > CLOCK_LIMIT => {
            let way = if n > 0 { "behind" } else { "ahead of" };
            Finding::warn("clock-offset", format!("this host's clock is {} s {way} the server's", n.abs()), "run chrony on all hosts")
        }
        Some(_) => Finding::ok("clock-offset", "this host's clock agrees with the server's"),
    }
}

/// The units of other kinds of Kubernetes, and of k3s as upstream's script installs it.
const OTHERS: [&str; 6] = [
    "k3s.service",
    "rke2-server.service",
    "rke2-agent.service",
    "kubelet.service",
    "k0scontroller.service",
    "microk8s.daemon-kubelite.service",
];

async fn others(host: &Host) -> Result<Option<String>> {
    for unit in host.systemd.present(&OTHERS).await? {
        let state = host.systemd.unit(&unit).await?;
        if state.running() || state.enabled() {
            return Ok(Some(unit));
        }
    }
    Ok(None)
}

/// A k3s that smartup did not set up, or another Kubernetes.
async fn foreign(host: &Host, role: Role) -> Finding {
    let hint = "to have smartup build its own cluster here, uninstall that first (k3s: k3s-uninstall.sh)";
    let config = Path::new(paths::UPSTREAM_CONFIG);
    if config.exists() {
        return Finding::fail(
            "foreign-k3s",
            &Error::refused(format!("{} exists: k3s was configured here by somebody else", config.display())).hint(hint),
        );
    }
    match others(host).await {
        Ok(None) => {}
        Ok(Some(unit)) => {
            return Finding::fail("foreign-k3s", &Error::refused(format!("another Kubernetes is on this host: {unit}")).hint(hint));
        }
        Err(e) => return Finding::fail("foreign-k3s", &e),
    }
    // upstream's agent has the same name as the reference's
    let own = Path::new("/etc/systemd/system").join(paths::unit(role));
    if unit::is_foreign(host, &own) && !paths::env(role).exists() {
        return Finding::fail("foreign-k3s", &Error::refused(format!("{} was written by somebody else", own.display())).hint(hint));
    }
    Finding::ok("foreign-k3s", "no other Kubernetes is on this host")
}

/// A host that does something else already.
fn role(settings: &Settings) -> Finding {
    let other = if settings.role == Role::Server { Role::Agent } else { Role::Server };
    let refuse = |what: String, hint: &str| Finding::fail("role", &Error::refused(what).hint(hint.to_owned()));
    if paths::env(other).exists() {
        return refuse(
            format!("this host is set up as {other} ({})", paths::env(other).display()),
            "smartup reset first, then join in the other role",
        );
    }
    let env = fs::read_to_string(paths::env(settings.role)).map(|t| EnvFile::parse(&t)).unwrap_or_default();
    let joined = env.get("K3S_URL").is_some_and(|u| !u.is_empty());
    let first = env.get("K3S_EXTRA_FLAGS").is_some_and(|f| f.contains("--cluster-init"));
    if settings.first && joined {
        return refuse(
            "this host has joined a cluster; init would start another one".into(),
            "run `smartup join` again instead, or `smartup reset` first",
        );
    }
    if !settings.first && first && settings.role == Role::Server {
        return refuse(
            "this host started its cluster; it cannot join it".into(),
            "run `smartup init` again instead, or `smartup reset` first",
        );
    }
    Finding::ok("role", format!("this host becomes, or is, {} {}", if settings.role == Role::Server { "a" } else { "an" }, settings.role))
}

fn vendor_flags(vendor: &unit::Vendor, settings: &Settings) -> Finding {
    let conflicts = settings.flags().conflicts(&vendor.flags);
    match conflicts.first() {
        None => Finding::ok("vendor-unit", format!("{} is used as it is", vendor.path.display())),
        Some((ours, theirs)) => Finding::fail(
            "vendor-unit",
            &Error::invalid(format!("{} has {theirs}, which does not go with {ours}", vendor.path.display()))
                .hint("ask for what the unit has (for example --port), or override the unit with one of your own"),
        ),
    }
}

/// Data of a cluster that is not the one asked for. `ca` is what the cluster to join answers with; None for a new one.
fn leftover(host: &Host, ca: Option<&[u8]>) -> Finding {
    let ours = host.journal.entries().iter().any(|e| matches!(&e.undo, node::Undo::Other { by, .. } if by == "k3s"));
    for path in [paths::SERVER_CA, paths::AGENT_CA] {
        let Ok(found) = fs::read(path) else { continue };
        let same = ca.map_or(ours || paths::env(Role::Server).exists(), |ca| ca.trim_ascii() == found.trim_ascii());
        if !same {
            let what = format!("{} holds the data of another cluster", paths::DATA);
            let hint = "if nobody needs it any more: smartup reset, or move that folder away; then run again";
            return Finding::fail("data-folder", &Error::refused(what).hint(hint));
        }
    }
    if Path::new(paths::DATA).join("server/db/state.db").exists() {
        let what = format!("{}/server/db/state.db is the data of a one-node k3s without etcd", paths::DATA);
        return Finding::fail("data-folder", &Error::refused(what).hint("move /var/lib/rancher/k3s away if nobody needs it"));
    }
    Finding::ok("data-folder", "no other cluster's data is on this host")
}

fn ports(settings: &Settings) -> Finding {
    let mut wanted: Vec<u16> = match settings.role {
        Role::Server => [settings.port.get()].into_iter().chain(PORTS_SERVER).collect(),
        Role::Agent => PORTS_AGENT.to_vec(),
    };
    wanted.dedup();
    let busy: Vec<String> = listeners()
        .into_iter()
        .filter(|l| wanted.contains(&l.port) && !l.program.starts_with("k3s"))
        .map(|l| format!("{} by {}", l.port, l.program))
        .collect();
    if busy.is_empty() {
        Finding::ok("ports", "the ports that k3s needs are free")
    } else {
        Finding::fail(
            "ports",
            &Error::refused(format!("in use: port {}", busy.join(", port ")))
                .hint("stop that program, or choose another --port for the API"),
        )
    }
}

/// A listening TCP socket and whose it is.
#[derive(Debug, PartialEq, Eq)]
struct Listener {
    port: u16,
    program: String,
}

fn listeners() -> Vec<Listener> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|p| fs::read_to_string(p).unwrap_or_default());
    let mut found: Vec<(u16, String)> = tables.iter().flat_map(|t| parse_listeners(t)).collect();
    found.sort();
    found.dedup_by_key(|(port, _)| *port);
    found
        .into_iter()
        .map(|(port, inode)| Listener { port, program: owner(&inode).unwrap_or_else(|| "a program that cannot be told".into()) })
        .collect()
}

/// Port and inode of the listening sockets (state 0A) in `/proc/net/tcp` (proc(5)).
fn parse_listeners(table: &str) -> Vec<(u16, String)> {
    table
        .lines()
        .skip(1)
        .filter_map(|l| {
            let f: Vec<&str> = l.split_whitespace().collect();
            let port = u16::from_str_radix(f.get(1)?.rsplit_once(':')?.1, 16).ok()?;
            (*f.get(3)? == "0A").then(|| Some((port, (*f.get(9)?).to_owned())))?
        })
        .collect()
}

fn owner(inode: &str) -> Option<String> {
    let socket = format!("socket:[{inode}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|p| {
        let path = p.path();
        let pid = path.file_name()?.to_str()?.parse::<u32>().ok()?;
        let holds =
            fs::read_dir(path.join("fd")).ok()?.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|l| l.to_str() == Some(&socket)));
        holds.then(|| format!("{} (pid {pid})", fs::read_to_string(path.join("comm")).unwrap_or_default().trim()))
    })
}

/// The check `fsync`: writes as etcd does, small appends, each synced (etcd's hardware page measures 2300 bytes with
/// fdatasync), for a second at most. The file has no name and is gone afterwards.
pub fn fsync(dir: &Path) -> Finding {
    match fsync_times(dir) {
        Err(e) => Finding::warn("fsync", format!("cannot measure the disk: {}", e.chain()), "etcd needs a disk that syncs within 10 ms"),
        Ok(times) => {
            let p99 = times[times.len() * 99 / 100];
            if p99 > FSYNC_LIMIT {
                Finding::warn(
                    "fsync",
                    format!("the disk is slow: 1 fsync of 100 takes {} ms", p99.as_millis()),
                    "etcd wants 10 ms at most: use an SSD, keep other writers off it; leaders get lost on slow disks",
                )
            } else {
                Finding::ok("fsync", format!("99 of 100 fsyncs take {:.1} ms at most", p99.as_secs_f64() * 1000.0))
            }
        }
    }
}

/// 100 syncs, or as many as fit into a second, sorted.
fn fsync_times(dir: &Path) -> Result<Vec<Duration>> {
    let mut file = tempfile::tempfile_in(dir).context(format!("cannot write to {}", dir.display()))?;
    let began = Instant::now();
    let mut times = Vec::new();
    while times.len() < 100 && (times.is_empty() || began.elapsed() < Duration::from_secs(1)) {
        let one = Instant::now();
        file.write_all(&[7; 2300]).and_then(|()| file.sync_data()).context("cannot sync")?;
        times.push(one.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_listening_sockets() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 00000000:24E3 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0\n   1: 0100007F:0016 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 99 1 0 20 4 30 10 -1\n";
        assert_eq!(parse_listeners(table), [(9443, "12345".into())]);
    }

    #[test]
    fn tells_who_listens() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let found = listeners().into_iter().find(|l| l.port == port).unwrap();
        assert!(found.program.contains(&format!("pid {}", std::process::id())), "{found:?}");
    }

    #[test]
    fn measures_a_disk_in_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let times = fsync_times(dir.path()).unwrap();
        assert!(!times.is_empty() && times.len() <= 100 && times.is_sorted());
    }

    #[test]
    fn clocks() {
        use node::Verdict;
        assert_eq!(clock_offset(Some(-5)).verdict, Verdict::Ok);
        let f = clock_offset(Some(6));
        assert!(f.verdict == Verdict::Warn && f.what.contains("6 s behind"));
        assert!(clock_offset(Some(-60)).what.contains("60 s ahead"));
    }
}
