use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The ports that ssh comes in through: those of sshd's configuration, and the one of the session that this runs in,
/// which may be another (a socket unit, or a configuration that changed since).
pub(crate) async fn ports() -> BTreeSet<u16> {
    let program = if Path::new("/usr/sbin/sshd").exists() { "/usr/sbin/sshd" } else { "sshd" };
    let configured = match node::run(program, &["-T"], Duration::from_secs(10)).await {
        Ok(out) if out.success() => configured(&out.stdout),
        // it is there but cannot say (no host keys yet, for one): the port that it has by default
        Ok(_) => BTreeSet::from([22]),
        Err(_) => BTreeSet::new(),
    };
    configured.into_iter().chain(session()).collect()
}

/// What `sshd -T` says: `port 22`, once for each.
fn configured(text: &str) -> BTreeSet<u16> {
    text.lines().filter_map(|l| l.strip_prefix("port ")?.trim().parse().ok()).collect()
}

/// The port of our own session. sudo drops the variable, so the processes above are asked as well.
fn session() -> Option<u16> {
    let mut pid = std::process::id();
    while pid > 1 {
        if let Some(port) = fs::read(format!("/proc/{pid}/environ")).ok().as_deref().and_then(server_port) {
            return Some(port);
        }
        pid = parent(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)?;
    }
    None
}

/// `SSH_CONNECTION`: the client's address and port, then the server's (ssh(1)).
fn server_port(environ: &[u8]) -> Option<u16> {
    let text = environ.split(|b| *b == 0).find_map(|v| v.strip_prefix(b"SSH_CONNECTION="))?;
    std::str::from_utf8(text).ok()?.split(' ').nth(3)?.parse().ok()
}

fn parent(status: &str) -> Option<u32> {
    status.lines().find_map(|l| l.strip_prefix("PPid:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configured_port() {
        let text = "port 22\nport 2222\naddressfamily any\nlistenaddress [::]:2222\ngatewayports no\n";
        assert_eq!(configured(text), BTreeSet::from([22, 2222]));
    }

    #[test]
    fn the_port_of_a_session() {
        assert_eq!(server_port(b"A=1\0SSH_CONNECTION=10.0.0.1 50000 10.0.0.2 2222\0B=2\0"), Some(2222));
        assert_eq!(server_port(b"A=1\0XSSH_CONNECTION=1 2 3 4\0"), None);
        assert_eq!(server_port(b"SSH_CONNECTION=fd00::1 50000 fd00::2 22"), Some(22));
        assert_eq!(parent("Name:\tbash\nPid:\t7\nPPid:\t3\n"), Some(3));
    }
}
