//! Whether this host has an address, asked of the kernel without a program: cheap enough to be asked every few milliseconds.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Whether an interface of this host has the address now. Trying to bind to it would not tell where `ip_nonlocal_bind` is set, as
/// some set it for keepalived.
///
/// # Errors
/// When the kernel does not tell.
pub fn has_address(address: IpAddr) -> io::Result<bool> {
    has_address_at(Path::new("/proc/net"), address)
}

/// The same where a process is whose `/proc/PID/net` this is (proc(5)).
///
/// # Errors
/// When the kernel does not tell.
pub fn has_address_at(net: &Path, address: IpAddr) -> io::Result<bool> {
    match address {
        IpAddr::V4(a) => Ok(in_fib_trie(&std::fs::read_to_string(net.join("fib_trie"))?, a)),
        IpAddr::V6(a) => match std::fs::read_to_string(net.join("if_inet6")) {
            Ok(text) => Ok(in_if_inet6(&text, a)),
            // no IPv6 in this kernel
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        },
    }
}

/// The kernel's routes of IPv4: a leaf is a line with the prefix, and beneath it what there is of each length.
fn in_fib_trie(text: &str, address: Ipv4Addr) -> bool {
    let leaf = format!("|-- {address}");
    let mut lines = text.lines().map(str::trim_start);
    while let Some(line) = lines.next() {
        if line == leaf && lines.clone().take_while(|l| l.starts_with('/')).any(|l| l.starts_with("/32 host LOCAL")) {
            return true;
        }
    }
    false
}

/// Each line begins with an address, as 32 hexadecimal digits.
fn in_if_inet6(text: &str, address: Ipv6Addr) -> bool {
    let digits = format!("{:032x}", u128::from(address));
    text.lines().any(|l| l.starts_with(&digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_address_is_told_from_a_route_to_it() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.10\n        /32 universe UNICAST\nLocal:\n  +-- 10.0.0.0/24 2 0 2\n     \
                    |-- 10.0.0.0\n        /32 link BROADCAST\n        /24 link UNICAST\n     |-- 10.0.0.11\n        /24 link UNICAST\n        \
                    /32 host LOCAL\n     |-- 10.0.0.100\n        /32 host LOCAL\n";
        let has = |a: &str| in_fib_trie(trie, a.parse().unwrap());
        assert!(has("10.0.0.11") && has("10.0.0.100"));
        assert!(!has("10.0.0.10") && !has("10.0.0.0") && !has("10.0.0.1"));
    }

    #[test]
    fn ipv6() {
        let text = "fd000000000000000000000000000010 02 40 20 80     eth0\n00000000000000000000000000000001 01 80 10 80       lo\n";
        assert!(in_if_inet6(text, "fd00::10".parse().unwrap()) && !in_if_inet6(text, "fd00::11".parse().unwrap()));
    }

    #[test]
    fn this_host_is_asked() {
        assert!(has_address(Ipv4Addr::LOCALHOST.into()).unwrap());
        assert!(!has_address("203.0.113.7".parse().unwrap()).unwrap());
    }
}
