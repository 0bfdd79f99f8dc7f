//! `server/cred/passwd`: the tokens' users (`password,user,uid,group` a line).

use crate::layout::{Layout, write};
use crate::token::{Token, random_hex};
use anyhow::Result;

/// The secrets of the two users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passwords {
    /// Of user `server`.
    pub server: String,
    /// Of user `node`.
    pub node: String,
}

impl Passwords {
    /// Which user (and group) these credentials belong to.
    pub fn check(&self, user: &str, password: &str) -> Option<(&'static str, &'static str)> {
        match user {
            "server" if same(password, &self.server) => Some(("server", "k3s:server")),
            "node" if same(password, &self.node) => Some(("node", "k3s:agent")),
            _ => None,
        }
    }
}

/// Compares without telling by the time it takes where the difference is.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

/// Reads the file; what is given on the command line replaces what it says (as in k3s, also on
/// a server that has been up before), what is missing is made up; and writes it back.
///
/// # Errors
/// A token in a wrong form; the file cannot be read or written.
pub fn ensure(layout: &Layout, token: Option<&str>, agent_token: Option<&str>) -> Result<Passwords> {
    let path = layout.cred("passwd");
    let text = if path.exists() { std::fs::read_to_string(&path)? } else { String::new() };
    let old = |user: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.split(',');
            let password = fields.next()?;
            (fields.next()? == user).then(|| password.to_owned())
        })
    };
    let server = match token {
        Some(t) => Token::parse(t, "server")?.password,
        None => match old("server") {
            Some(p) => p,
            None => random_hex(16)?,
        },
    };
    let node = match agent_token {
        Some(t) => Token::parse(t, "node")?.password,
        None => server.clone(),
    };
    let passwords = Passwords { server, node };
    let text = format!("{},node,node,k3s:agent\n{},server,server,k3s:server\n", passwords.node, passwords.server);
    write(&path, text.as_bytes(), 0o600)?;
    Ok(passwords)
}

/// Writes `token`, `node-token` and `agent-token` under `server`.
///
/// # Errors
/// The CA cannot be read, or a file not written.
pub fn write_tokens(layout: &Layout, passwords: &Passwords) -> Result<()> {
    let ca = std::fs::read(layout.tls("server-ca.crt"))?;
    let server = Token::long("server", &passwords.server, &ca);
    write(&layout.server("token"), format!("{server}\n").as_bytes(), 0o600)?;
    link(layout, "node-token", "token")?;
    if passwords.node == passwords.server {
        return link(layout, "agent-token", "token");
    }
    let node = Token::long("node", &passwords.node, &ca);
    let path = layout.server("agent-token");
    if path.is_symlink() {
        std::fs::remove_file(&path)?;
    }
    write(&path, format!("{node}\n").as_bytes(), 0o600)
}

fn link(layout: &Layout, name: &str, target: &str) -> Result<()> {
    let path = layout.server(name);
    if path.is_symlink() {
        return Ok(());
    }
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    Ok(std::os::unix::fs::symlink(layout.server(target), &path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_replaces_the_old_one_and_none_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let made = ensure(&layout, None, None).unwrap();
        assert_eq!(made.server.len(), 32);
        assert_eq!(ensure(&layout, None, None).unwrap(), made);
        let given = ensure(&layout, Some("K10aa::server:x"), Some("y")).unwrap();
        assert_eq!(given, Passwords { server: "x".into(), node: "y".into() });
        assert_eq!(given.check("server", "x"), Some(("server", "k3s:server")));
        assert_eq!(given.check("node", "x"), None);
        assert_eq!(given.check("node", "y"), Some(("node", "k3s:agent")));
    }
}
