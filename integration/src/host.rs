//! One host of a lab, and everything that can be done to it.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::cgroup::{self, Hierarchies};
use crate::programs;
use crate::recipe::tail;
use crate::run::{feed, run, until};
use crate::shift::Function;
use crate::site::{HostPlan, Site};
use crate::{disk, net, nspawn};

/// From power to the host's first process; the machine may be busy with other labs.
const POWER_LIMIT: Duration = Duration::from_secs(30);
/// From there until all units have started, or failed.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// For a moment in which no thread of a host asks for the time.
const SHIFT_LIMIT: Duration = Duration::from_secs(10);

/// Stays outside of the host's process namespace, and waits for the command inside. nsenter would do that too, but it stops itself
/// when the command is stopped, as every process is in a shutdown, and nobody would ever wake it. `env` is no builtin: the shell's own
/// `kill` would be outside as well.
const WAIT: &str = "/usr/bin/env -i \"$@\"; exit $?";

/// What a command in a host came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code; 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

impl Outcome {
    fn new(output: &std::process::Output) -> Self {
        Self {
            code: exit_code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Whether the exit code is 0.
    pub fn ok(&self) -> bool {
        self.code == 0
    }

    /// Standard output, or an error with all there is when the exit code is not 0.
    pub fn checked(self) -> Result<String> {
        ensure!(self.ok(), "exit code {}: {}{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}

/// The exit code of a process, as in [`Outcome`].
pub fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// A command that runs in a host, or in the probe. Dropping it kills it with all it started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    group: PathBuf,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(mut command: Command, group: PathBuf) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no pipe from the command")?;
        Ok(Self { child, group, lines: BufReader::new(stdout).lines() })
    }

    /// The next line of standard output; `None` at its end.
    pub fn line(&mut self) -> Result<Option<String>> {
        self.lines.next().transpose().context("cannot read the command's output")
    }

    /// Kills it (SIGKILL) with all it started.
    pub fn kill(&mut self) -> Result<()> {
        cgroup::kill(&self.group)?;
        self.child.wait().context("cannot wait for the command")?;
        Ok(())
    }

    /// Waits for its end and gives the exit code, as in [`Outcome`].
    pub fn wait(&mut self) -> Result<i32> {
        Ok(exit_code(self.child.wait().context("cannot wait for the command")?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = self.kill().and_then(|()| cgroup::remove(&self.group));
        if let Err(error) = ended {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Makes a control group for one command below `group`.
fn own_group(group: &std::path::Path) -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let own = group.join(name);
    cgroup::make(&own)?;
    Ok(own)
}

/// A host: a handle that may be cloned and used from several threads.
#[derive(Debug, Clone)]
pub struct Host {
    site: Arc<Site>,
    plan: HostPlan,
    name: String,
    groups: Hierarchies,
}

impl Host {
    pub(crate) fn new(site: Arc<Site>, plan: HostPlan, groups: Hierarchies) -> Self {
        Self { name: plan.name(), site, plan, groups }
    }

    /// `h1`, `h2`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, on `eth0`.
    pub fn ipv4(&self) -> std::net::Ipv4Addr {
        self.plan.address().v4
    }

    /// Its other address, on the same interface.
    pub fn ipv6(&self) -> std::net::Ipv6Addr {
        self.plan.address().v6
    }

    /// Where its disk is, and what it is made of.
    pub(crate) fn disk(&self) -> (&Site, &HostPlan) {
        (&self.site, &self.plan)
    }

    fn group(&self, part: &str) -> PathBuf {
        self.groups.host(&self.site.id, &self.name).join(part)
    }

    /// The machine's process id of the host's systemd; `None` while the host is down.
    pub fn leader(&self) -> Option<u32> {
        let payload = self.group("boot/payload");
        let candidates = [payload.join("init.scope"), payload];
        candidates.iter().flat_map(|group| cgroup::processes(group)).find(|pid| is_leader(*pid))
    }

    /// Whether the host has power and its systemd runs.
    pub fn is_up(&self) -> bool {
        self.leader().is_some()
    }

    // Power.

    /// Starts the host and waits until its units have started.
    pub fn power_on(&self) -> Result<()> {
        self.start()?;
        self.wait_ready()
    }

    /// Starts the host and waits only for its first process.
    pub fn start(&self) -> Result<()> {
        ensure!(!self.is_up(), "{} is already up", self.name);
        self.clear()?; // what is left of a host that powered itself off
        disk::mount(&self.site, &self.plan)?;
        self.groups.make_host(&self.site.id, &self.name)?;
        let console = std::fs::File::create(self.site.console(&self.name))?;
        // In a session of its own (no Ctrl-C reaches it) and nobody's child (nobody has to wait for it).
        let started = Command::new("setsid")
            .arg("--fork")
            .arg(programs::lab()?)
            .arg("keep-host")
            .arg(&self.site.folder)
            .arg(&self.name)
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .status()
            .context("cannot run setsid")?;
        ensure!(started.success(), "setsid: {started}");
        let booted = until(&format!("{} boots", self.name), POWER_LIMIT, || Ok(self.leader().map(drop)));
        booted.map_err(|error| {
            let said = std::fs::read_to_string(self.site.console(&self.name)).unwrap_or_default();
            anyhow!("{error:#}; its console:\n{}", tail(&said, 20))
        })
    }

    /// Waits until the host's units have started (failed ones too), so that ssh, D-Bus and firewalld answer.
    pub fn wait_ready(&self) -> Result<()> {
        until(&format!("{} ready", self.name), BOOT_LIMIT, || {
            // --wait ends early when it comes before D-Bus, and has no limit of its own.
            let state = self.exec(["timeout", "10", "systemctl", "is-system-running", "--wait"])?.stdout;
            match state.trim() {
                "running" | "degraded" => Ok(Some(())),
                other => bail!("its systemd says {other:?}"),
            }
        })
    }

    /// Cuts the power: the host is off the wire at once, and its processes are killed. What it wrote without fsync is
    /// not lost, since the machine keeps it.
    pub fn power_cut(&self) -> Result<()> {
        if self.site.namespace_file(&self.name).exists() {
            // The wire first, or it would answer for its addresses while it dies.
            let _ = net::unlink(&self.site, &self.name);
        }
        self.clear()
    }

    fn clear(&self) -> Result<()> {
        cgroup::kill(&self.group(""))?;
        net::detach(&self.site, &self.name)?;
        self.groups.remove_host(&self.site.id, &self.name)
    }

    /// Reboots the host as `systemctl reboot` does, and waits until it is ready again.
    pub fn reboot(&self) -> Result<()> {
        let before = self.boot_id()?;
        // Its own end may cut the command's answer short.
        let _ = self.exec(["systemctl", "reboot"])?;
        until(&format!("{} boots again", self.name), BOOT_LIMIT, || {
            Ok(self.is_up() && self.boot_id()? != before).map(|again| again.then_some(()))
        })?;
        self.wait_ready()
    }

    /// What changes with each boot. (A pod's own /proc shows the machine's.)
    pub fn boot_id(&self) -> Result<String> {
        Ok(self.run(["cat", "/proc/sys/kernel/random/boot_id"])?.trim().to_owned())
    }

    /// Stops every process of the host, without a word to anybody. Commands that the lab runs there later still run.
    pub fn freeze(&self) -> Result<()> {
        ensure!(self.is_up(), "{} is down", self.name);
        ["boot/payload", "exec"].iter().try_for_each(|part| cgroup::freeze(&self.group(part), true))
    }

    /// Lets a frozen host go on.
    pub fn thaw(&self) -> Result<()> {
        ensure!(self.is_up(), "{} is down", self.name);
        ["boot/payload", "exec"].iter().try_for_each(|part| cgroup::freeze(&self.group(part), false))
    }

    /// Shifts the time of day by so many seconds for all that runs in the host now; 0 ends it. What is started later has the right
    /// time, and so has the kernel.
    pub fn shift_clock(&self, seconds: i64) -> Result<()> {
        let (function, payload) = (Function::find()?, self.group("boot/payload"));
        // until no thread is stopped in the very function that is replaced
        until(&format!("the clock of {} shifted", self.name), SHIFT_LIMIT, || {
            self.freeze()?;
            let shifted = shift_all(&function, &payload, seconds);
            self.thaw()?;
            shifted.map(|done| done.then_some(()))
        })
    }

    /// Gives the host, which must be down, an empty disk.
    pub fn wipe(&self) -> Result<()> {
        ensure!(!self.is_up(), "{} is up; cut its power first", self.name);
        self.clear()?;
        disk::wipe(&self.site, &self.name)
    }

    // The wire.

    /// Pulls the cable: the host's interface loses its carrier.
    pub fn cable_pull(&self) -> Result<()> {
        net::plug(&self.site, &self.name, false)
    }

    /// Plugs the cable in again.
    pub fn cable_plug(&self) -> Result<()> {
        net::plug(&self.site, &self.name, true)
    }

    /// Drops all that the host sends or would receive; the host sees no fault.
    pub fn partition(&self) -> Result<()> {
        net::silence(&self.site, &self.name, true)
    }

    /// Ends [`Host::partition`].
    pub fn heal(&self) -> Result<()> {
        net::silence(&self.site, &self.name, false)
    }

    /// Drops all between this host and another.
    pub fn cut(&self, other: &Host) -> Result<()> {
        net::cut(&self.site, &self.name, &other.name, true)
    }

    /// Ends [`Host::cut`].
    pub fn mend(&self, other: &Host) -> Result<()> {
        net::cut(&self.site, &self.name, &other.name, false)
    }

    /// Loses this many percent of the host's packets, each way; 0 ends it.
    pub fn lose(&self, percent: u8) -> Result<()> {
        ensure!(percent <= 100, "a loss is 0 to 100 percent, not {percent}");
        net::lose(&self.site, &self.name, percent)
    }

    // Inside.

    /// A command in the host, as root, with a clean environment; nothing of it passes through a shell.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Command> {
        let part = if cgroup::is_frozen(&self.group("exec")) { "look" } else { "exec" };
        let files = self.entrances(part);
        self.enter(&files, argv)
    }

    fn entrances(&self, part: &str) -> String {
        let files = self.groups.entrances(&self.site.id, &self.name, part);
        files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" ")
    }

    fn enter<S: AsRef<std::ffi::OsStr>>(&self, entrances: &str, argv: impl IntoIterator<Item = S>) -> Result<Command> {
        let leader = self.leader().with_context(|| format!("{} is down", self.name))?;
        let mut command = nspawn::entering(entrances);
        command
            .arg("nsenter")
            .arg(format!("--target={leader}"))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--no-fork"])
            .args(["sh", "-c", WAIT, "sh"])
            .args(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root", "LANG=C.UTF-8"])
            .arg(format!("TERM={}", std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned())))
            .args(argv);
        Ok(command)
    }

    /// Runs a command in the host to its end.
    pub fn exec<S: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Outcome> {
        self.exec_with(argv, b"")
    }

    /// The same with `input` on its standard input.
    pub fn exec_with<S: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = S>, input: &[u8]) -> Result<Outcome> {
        Ok(Outcome::new(&feed(&mut self.command(argv)?, input)?))
    }

    /// Runs a command in the host and gives its standard output; an error when its exit code is not 0.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<String> {
        let argv: Vec<S> = argv.into_iter().collect();
        let line: Vec<_> = argv.iter().map(|part| part.as_ref().to_string_lossy().into_owned()).collect();
        self.exec(&argv)?.checked().with_context(|| format!("{}: {}", self.name, line.join(" ")))
    }

    /// The same for a line of shell.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(["sh", "-ec", line])
    }

    /// When a node said last that it lives, by its Lease, as this server has it: in seconds since 1970. Its condition alone may be 40 s old.
    pub fn lease_renewed(&self, node: &str) -> Result<u64> {
        let renewed = "date +%s -d \"$(k3s kubectl -n kube-node-lease get lease $0 -o jsonpath={.spec.renewTime})\"";
        self.run(["sh", "-ec", renewed, node])?.trim().parse().with_context(|| format!("when {node} renewed its lease"))
    }

    /// Starts a command in the host and goes on; its standard error is ours.
    pub fn spawn<S: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Running> {
        let group = own_group(&self.group("exec"))?;
        let mut files = self.groups.entrances(&self.site.id, &self.name, "exec");
        if let Some(unified) = files.first_mut() {
            *unified = group.join("cgroup.procs");
        }
        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        Running::start(self.enter(&files.join(" "), argv)?, group)
    }

    /// Runs a line of shell in the host over ssh, from the probe.
    pub fn ssh(&self, line: &str) -> Result<Outcome> {
        Ok(Outcome::new(&feed(&mut self.ssh_command([line]), b"")?))
    }

    /// An ssh client in the probe; `arguments` follow the host's name.
    pub fn ssh_command<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Probe::new(self.site.clone(), self.groups.clone()).command(["ssh"]);
        command
            .arg("-q")
            .arg("-i")
            .arg(self.site.key())
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10"])
            .arg(format!("root@{}", self.ipv4()))
            .args(arguments);
        command
    }

    /// The content of a file of the host.
    pub fn read(&self, path: &str) -> Result<String> {
        self.run(["cat", "--", path])
    }

    /// Writes a file of the host, with this mode (such as 0o644) and root's; missing folders are made.
    pub fn write(&self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Result<()> {
        let argv = ["install", "-D", "-m", &format!("{mode:o}"), "/dev/stdin", path];
        self.exec_with(argv, content.as_ref())?.checked().map(drop).with_context(|| format!("{}: {path}", self.name))
    }

    /// Adds the host's line to what the lab tells about itself.
    pub fn state(&self) -> Result<String> {
        if !self.is_up() {
            return Ok("down".to_owned());
        }
        if cgroup::is_frozen(&self.group("exec")) {
            return Ok("frozen".to_owned());
        }
        Ok(self.exec(["systemctl", "is-system-running"])?.stdout.trim().to_owned())
    }

    /// All addresses on its interface, with prefix; none while it is down.
    pub fn addresses(&self) -> Result<Vec<String>> {
        if !self.site.namespace_file(&self.name).exists() {
            return Ok(Vec::new());
        }
        let listed = run(net::inside(&self.site, &self.name).args(["ip", "-br", "addr", "show", "eth0"]))?;
        Ok(listed.split_whitespace().skip(2).map(str::to_owned).collect())
    }
}

/// Shifts the clock of each process of a group that is stopped, or of none.
fn shift_all(function: &Function, group: &std::path::Path, seconds: i64) -> Result<bool> {
    let processes = cgroup::processes_below(group)?;
    for pid in &processes {
        if !function.is_left_alone(*pid)? {
            return Ok(false);
        }
    }
    processes.iter().try_for_each(|pid| function.shift(*pid, seconds))?;
    Ok(true)
}

/// Whether the process is the first one of a container that is not in a container itself.
fn is_leader(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    leads(&status)
}

fn leads(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| matches!(ids.split_whitespace().collect::<Vec<_>>()[..], [_, "1"]))
}

/// The fourth host of three: a place on the same wire without an operating system of its own. What runs there is the
/// machine's, in the lab's network.
#[derive(Debug, Clone)]
pub struct Probe {
    site: Arc<Site>,
    groups: Hierarchies,
}

impl Probe {
    pub(crate) fn new(site: Arc<Site>, groups: Hierarchies) -> Self {
        Self { site, groups }
    }

    /// A command of the machine that runs in the lab's network.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        self.enter(&self.group(), argv)
    }

    /// Brings the calling thread, and no other, into the probe's network.
    pub fn enter_network(&self) -> Result<()> {
        net::enter_probe(&self.site)
    }

    fn group(&self) -> PathBuf {
        self.groups.lab(&self.site.id).join("probe")
    }

    fn enter<S: AsRef<std::ffi::OsStr>>(&self, group: &std::path::Path, argv: impl IntoIterator<Item = S>) -> Command {
        let mut command = nspawn::entering(&group.join("cgroup.procs").display().to_string());
        let inside = net::inside_probe(&self.site);
        command.arg(inside.get_program()).args(inside.get_args()).args(argv);
        command
    }

    /// Runs a command in the probe to its end.
    pub fn exec<S: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Outcome> {
        Ok(Outcome::new(&feed(&mut self.command(argv), b"")?))
    }

    /// Starts a command in the probe and goes on.
    pub fn spawn<S: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Running> {
        let group = own_group(&self.group())?;
        Running::start(self.enter(&group, argv), group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_is_first_in_exactly_one_namespace() {
        assert!(leads("Name:\tsystemd\nNSpid:\t4711\t1\n"));
        assert!(!leads("NSpid:\t4711\t12\n"));
        assert!(!leads("NSpid:\t4711\t80\t1\n"), "a pod's first process");
        assert!(!leads("NSpid:\t1\n"), "the machine's own");
    }
}
