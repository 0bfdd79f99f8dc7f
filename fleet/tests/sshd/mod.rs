//! A real sshd on loopback, with its keys in a temporary folder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot be set up fails")]

use std::fs;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fleet::ssh::{Connection, Exit, Options, Target, connect};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;

/// An sshd that lets root in with the key `id` in its folder.
pub struct Sshd {
    pub dir: TempDir,
    pub port: u16,
    child: Child,
    types: Vec<String>,
}

impl Sshd {
    /// With host keys of these types, and these lines of configuration.
    pub fn start(types: &[&str], config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        keygen(&dir.path().join("id"), "ed25519", "");
        fs::copy(dir.path().join("id.pub"), dir.path().join("authorized_keys")).unwrap();
        for kind in types {
            keygen(&dir.path().join(format!("host_{kind}")), kind, "");
        }
        fs::create_dir_all("/run/sshd").unwrap();
        let types: Vec<String> = types.iter().map(ToString::to_string).collect();
        let (child, port) = start(dir.path(), &types, config);
        Self { dir, port, child, types }
    }

    /// Starts it anew, on another port, with these lines of configuration.
    pub fn restart(&mut self, config: &str) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, self.port) = start(self.dir.path(), &self.types, config);
    }

    /// The process of the only connection.
    pub fn child(&self) -> String {
        run(Command::new("pgrep").args(["-P", &self.child.id().to_string()])).trim().to_owned()
    }

    /// Lets the process of the only connection stand still.
    pub fn stop_child(&self) -> Stopped {
        let stopped = Stopped(self.child());
        run(Command::new("kill").args(["-STOP", &stopped.0]));
        stopped
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A public key in the folder, `type base64`.
    pub fn public(&self, name: &str) -> String {
        let text = self.read(&format!("{name}.pub"));
        text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// `[127.0.0.1]:port`
    pub fn name(&self) -> String {
        format!("[127.0.0.1]:{}", self.port)
    }

    /// This sshd, and the key `id`.
    pub fn target(&self) -> Target {
        Target {
            name: "127.0.0.1".into(),
            port: Some(self.port),
            user: Some("root".into()),
            identity_files: vec![self.path("id")],
            ..Target::default()
        }
    }

    /// Nothing but what is in the folder: `config`, or without it no agent; `known_hosts`.
    pub fn options(&self) -> Options {
        let config = self.path("config");
        if !config.exists() {
            fs::write(&config, "IdentityAgent none\n").unwrap();
        }
        // Patient: without optimisation, and beside other tests, the arithmetic alone takes seconds.
        let connect_timeout = Duration::from_secs(120);
        Options { config: Some(config), known_hosts: vec![self.path("known_hosts")], connect_timeout, ..Options::default() }
    }

    /// Makes the key of this type known.
    pub fn know(&self, kind: &str) {
        self.write("known_hosts", &format!("{} {}\n", self.name(), self.public(&format!("host_{kind}"))));
    }

    /// Whether OpenSSH's own client trusts this host, as `known_hosts` in the folder says.
    pub fn ssh(&self) -> bool {
        let output = Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "IdentityAgent=none",
            ])
            .args(["-o", "GlobalKnownHostsFile=none", "-o", &format!("UserKnownHostsFile={}", self.path("known_hosts").display())])
            .args(["-o", "UpdateHostKeys=no", "-i"])
            .arg(self.path("id"))
            .args(["-p", &self.port.to_string(), "root@127.0.0.1", "true"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("Host key verification failed"), "{said}");
        output.status.success()
    }

    /// Connects as [`Self::target`] and [`Self::options`] say.
    pub async fn connect(&self) -> node::Result<Connection> {
        connect(&self.target(), &self.options()).await
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(dir: &Path, types: &[String], config: &str) -> (Child, u16) {
    loop {
        // Another program may take the port in between: then sshd ends, and another one is tried.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if let Some(child) = start_on(dir, port, types, config) {
            return (child, port);
        }
    }
}

fn start_on(dir: &Path, port: u16, types: &[String], config: &str) -> Option<Child> {
    let d = dir.display();
    let keys = types.iter().map(|t| format!("HostKey {d}/host_{t}")).collect::<Vec<_>>().join("\n");
    fs::write(
        dir.join("sshd_config"),
        format!(
            "{config}\nPort {port}\nListenAddress 127.0.0.1\n{keys}\nAuthorizedKeysFile {d}/authorized_keys\nStrictModes no\nUsePAM no\n\
             PidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\nLogLevel VERBOSE\n"
        ),
    )
    .unwrap();
    let mut child = Command::new("/usr/sbin/sshd")
        .args(["-D", "-f"])
        .arg(dir.join("sshd_config"))
        .arg("-E")
        .arg(dir.join("sshd.log"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("these tests need Debian's openssh-server (/usr/sbin/sshd), and root");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if child.try_wait().unwrap().is_some() {
            let log = fs::read_to_string(dir.join("sshd.log")).unwrap_or_default();
            assert!(log.contains("Address already in use"), "sshd ended: {log}");
            return None;
        }
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            let mut greeting = [0; 4];
            if stream.read_exact(&mut greeting).is_ok() && greeting == *b"SSH-" {
                return Some(child);
            }
        }
        assert!(Instant::now() < deadline, "sshd does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that stands still, and is ended with this.
pub struct Stopped(String);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.0]).status();
    }
}

/// An ssh-agent at `agent` in the folder.
pub struct Agent(Child);

impl Agent {
    /// With these keys of the folder.
    pub fn start(sshd: &Sshd, keys: &[&str]) -> Self {
        let socket = sshd.path("agent");
        let child = Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        let agent = Self(child);
        while UnixStream::connect(&socket).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        for key in keys {
            run(Command::new("ssh-add").arg("-q").arg(sshd.path(key)).env("SSH_AUTH_SOCK", &socket));
        }
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a key: `path` and `path.pub`.
pub fn keygen(path: &Path, kind: &str, passphrase: &str) {
    run(Command::new("ssh-keygen").args(["-q", "-t", kind, "-C", "", "-N", passphrase, "-f"]).arg(path));
}

/// Signs a key for hosts: `path-cert.pub`.
pub fn certify(authority: &Path, key: &Path, options: &[&str]) {
    run(Command::new("ssh-keygen").args(["-q", "-h", "-I", "a host", "-s"]).arg(authority).args(options).arg(key.with_extension("pub")));
}

pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command to its end: standard output, and how it ended.
pub async fn output(connection: &Connection, command: &str) -> (String, Exit) {
    let mut process = connection.exec(command).await.unwrap();
    let mut out = String::new();
    process.stdin = None;
    process.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    (out, process.wait().await)
}
