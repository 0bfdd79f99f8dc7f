use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use node::{Context as _, Output, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;

use crate::progress::{Mark, Progress};

/// How things are run on a host, and where its files are.
#[derive(Debug, Clone)]
pub struct OnHost {
    prefix: Vec<String>,
    root: PathBuf,
    progress: Progress,
}

/// What every command sees, whatever runs it: nobody is there to answer, and what is printed is to be read by us.
const ENVIRONMENT: [&str; 10] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LC_ALL=C",
    "TZ=UTC",
    "DEBIAN_FRONTEND=noninteractive",
    "DEBIAN_PRIORITY=critical",
    "APT_LISTCHANGES_FRONTEND=none",
    "UCF_FORCE_CONFFOLD=1",
    // needrestart(1): its hook in apt does nothing
    "NEEDRESTART_SUSPEND=1",
    // zypper(8): how many seconds another one is waited for
    "ZYPP_LOCK_TIMEOUT=120",
];

/// What a command has printed is there soon after its end; a daemon that it started may keep the pipe open for ever.
const REST: Duration = Duration::from_secs(3);

impl OnHost {
    /// This very host.
    pub fn here() -> Self {
        Self::through([], "/")
    }

    /// A host whose commands are run by `prefix`, a program with its arguments that takes theirs after its own and ends with them,
    /// and whose root is seen as the folder `root`.
    ///
    /// What updates packages may restart what it runs in: a prefix had better start it in a control group of its own.
    pub fn through(prefix: impl IntoIterator<Item = String>, root: impl Into<PathBuf>) -> Self {
        Self { prefix: prefix.into_iter().collect(), root: root.into(), progress: Progress::default() }
    }

    /// Where a file of the host is seen from here; `path` is absolute.
    pub fn file(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// How far the command has come that runs now.
    pub fn mark(&self) -> Mark {
        self.progress.mark()
    }

    /// Runs a command to its end, without standard input, in a process group of its own, which is killed when the future is dropped.
    /// What it has started and left behind goes on.
    pub(crate) async fn run<S: AsRef<str>>(&self, argv: &[S]) -> Result<Output> {
        let words = self.prefix.iter().map(String::as_str).chain(["/usr/bin/env"]).chain(ENVIRONMENT);
        let mut words = words.chain(argv.iter().map(AsRef::as_ref));
        let name = argv.first().map_or("", AsRef::as_ref);
        let mut child = Command::new(words.next().unwrap_or_default())
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context(format!("cannot run {name}"))?;
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
        self.progress.starts(group.0);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let (read, status) = {
            let mut reading = pin!(async { tokio::try_join!(self.read(out, &mut stdout), self.read(err, &mut stderr)) });
            tokio::select! {
                read = &mut reading => (Some(read), child.wait().await),
                status = child.wait() => (tokio::time::timeout(REST, reading).await.ok(), status),
            }
        };
        let reading = || format!("cannot read what {name} says");
        read.transpose().context(reading())?;
        let code = status.context(reading())?.code();
        // its children may go on, as daemons that it has started do
        group.disarm();
        self.progress.ends();
        tracing::debug!(command = name, code, "ran");
        Ok(Output { code, stdout, stderr })
    }

    async fn read(&self, from: Option<impl AsyncRead + Unpin>, all: &mut String) -> std::io::Result<()> {
        let Some(from) = from else { return Ok(()) };
        let (mut from, mut line) = (BufReader::new(from), Vec::new());
        while from.read_until(b'\n', &mut line).await? != 0 {
            all.push_str(&String::from_utf8_lossy(&line));
            line.clear();
            self.progress.line();
        }
        Ok(())
    }
}

/// A process group that is killed when nobody waits for it any more.
struct Group(Option<Pid>);

impl Group {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // gone already: nothing to do
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;

    /// A host where these scripts, which run in its root, are all the programs.
    pub(crate) fn scripted(root: &Path, scripts: &[(&str, &str)]) -> OnHost {
        for (name, script) in scripts {
            let path = root.join(name);
            fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}\n", root.display())).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // env, its variables, then the program
        let run = r#"shift; while case $1 in *=*) ;; *) false ;; esac; do shift; done; p=$1; shift; exec "$0/$p" "$@""#;
        OnHost::through(["sh", "-c", run, &root.to_string_lossy()].map(str::to_owned), root)
    }

    fn alive(pid: i32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|s| !s.contains(") Z"))
    }

    #[tokio::test]
    async fn a_prefix_runs_it_and_the_environment_is_ours() {
        let host = OnHost::through(["env".into(), "LC_ALL=de_DE".into()], "/proc/1/root");
        let out = host.run(&["sh", "-c", "echo $LC_ALL $DEBIAN_FRONTEND; echo bad >&2; exit 3"]).await.unwrap();
        assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str()), (Some(3), "C noninteractive\n", "bad\n"));
        assert_eq!(host.file("/run/reboot-required"), Path::new("/proc/1/root/run/reboot-required"));
    }

    #[tokio::test]
    async fn a_daemon_that_is_left_behind_is_not_waited_for_and_stays() {
        let began = Instant::now();
        let out = OnHost::here().run(&["sh", "-c", "echo one; echo two >&2; sleep 40 & echo $!"]).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        let (one, daemon) = out.stdout.trim().split_once('\n').unwrap();
        assert_eq!((out.code, one, out.stderr.as_str()), (Some(0), "one", "two\n"));
        let daemon = daemon.parse().unwrap();
        assert!(alive(daemon));
        rustix::process::kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn what_works_is_seen_and_what_is_dropped_is_killed() {
        let host = OnHost::here();
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        // the pid is a grandchild's, which outlives its parent unless the whole group is killed
        let script = format!("echo one; sh -c 'echo $$ > {0}; mv {0} {0}s; while :; do :; done'; true", pid.display());
        let argv = ["sh", "-c", &script];
        let mut running = Box::pin(host.run(&argv));
        let began = Instant::now();
        let mut before = host.mark();
        let mut steps = 0;
        while steps < 3 {
            assert!(began.elapsed() < Duration::from_secs(60), "it burns time");
            tokio::select! {
                _ = &mut running => unreachable!(),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
            let mark = host.mark();
            if mark.is_beyond(&before) && folder.path().join("pids").exists() {
                steps += 1;
            }
            before = mark;
        }
        let grandchild: i32 = fs::read_to_string(folder.path().join("pids")).unwrap().trim().parse().unwrap();
        assert!(alive(grandchild));
        drop(running);
        let began = Instant::now();
        while alive(grandchild) {
            assert!(began.elapsed() < Duration::from_secs(20), "it still runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
