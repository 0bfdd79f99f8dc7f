use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use cluster::Role;
use fleet::protocol::{self, Job};
use node::{Context as _, Error, Result, read_optional};

use crate::kubeconfig::{Admin, Change, Name, Stored, store};
use crate::membership::Membership;
use crate::remote::{Connect, Remote};

/// Print a kubeconfig that points at the floating address (a secret), or merge it into yours
///
/// Run as root on a server, or with a cluster's file from anywhere. Cluster, user and context have the same name. Merging again brings them up to date; it never
/// touches other entries.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    smartup kubeconfig > admin.yaml && chmod 600 admin.yaml\n  \
    smartup kubeconfig --merge --use\n  \
    sudo smartup kubeconfig --merge --kubeconfig ~/.kube/config\n  \
    smartup kubeconfig -f cluster.yaml --merge")]
pub struct Kubeconfig {
    /// Put it into your own kubeconfig instead of printing it; the former file is kept beside it
    #[arg(long)]
    merge: bool,
    /// Merge into this file [default: the first one in $KUBECONFIG, or ~/.kube/config]
    #[arg(long = "kubeconfig", value_name = "PATH", requires = "merge")]
    path: Option<PathBuf>,
    /// Make it the current context
    #[arg(long = "use", requires = "merge")]
    use_context: bool,
    /// Name of cluster, user and context [default: smartup-VIP]
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Fetch it from a server of this file over SSH, rather than from this host
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    connect: Option<Connect>,
}

impl Kubeconfig {
    pub async fn run(self) -> Result<ExitCode> {
        let ours = match Remote::maybe(self.file.as_deref(), self.connect.as_ref(), false)? {
            Some(remote) => admin_of_a_server(&remote, self.name).await?,
            None => admin_of_this_host(self.name)?,
        };
        if !self.merge {
            print!("{}", ours.expose());
            return Ok(ExitCode::SUCCESS);
        }
        let path = target(self.path, std::env::var_os("KUBECONFIG"), std::env::var_os("HOME"))?;
        if is_k3ss_own(&path) {
            return Err(Error::refused(format!("{} is k3s's own file: it writes it anew when it starts", path.display()))
                .hint("name yours: smartup kubeconfig --merge --kubeconfig ~/.kube/config"));
        }
        let stored = store(&path, &ours, self.use_context)?;
        anstream::println!("{}", in_words(&stored, &path, &ours.name));
        Ok(ExitCode::SUCCESS)
    }
}

fn admin_of_this_host(name: Option<Name>) -> Result<Admin> {
    let hint = "run it as root on a server that `smartup init` or `smartup join --role server` has set up";
    if !rustix::process::geteuid().is_root() {
        return Err(Error::refused("only root may read the administrator's kubeconfig").hint(hint));
    }
    let membership = Membership::load()?.ok_or_else(|| Error::refused("this host is not in a cluster that smartup set up").hint(hint))?;
    if membership.role != Role::Server {
        return Err(Error::refused("this host is an agent, which has no administrator's kubeconfig").hint(hint));
    }
    let file = read_optional(Path::new(k3s::paths::KUBECONFIG))?.ok_or_else(|| {
        Error::failed(format!("{} is not there", k3s::paths::KUBECONFIG))
            .hint("k3s writes it when it is ready: smartup status says whether it is")
    })?;
    let url = membership.vip.api_url(membership.port);
    Admin::parse(&String::from_utf8_lossy(&file.content), url, name.unwrap_or_else(|| Name::of_vip(membership.vip.addr())))
}

/// The servers are asked in the file's order; the first answer counts.
///
/// # Errors
/// When no server hands one out.
pub async fn admin_of_a_server(remote: &Remote, name: Option<Name>) -> Result<Admin> {
    let mut failures = Vec::new();
    for server in remote.cluster.servers() {
        let answer = remote.ask(server, Job::Kubeconfig).await;
        match answer.and_then(|v| serde_json::from_value::<protocol::Kubeconfig>(v).context("its answer is not understood")) {
            Ok(protocol::Kubeconfig { text, vip, port }) => {
                return Admin::parse(&text.0, vip.api_url(port), name.unwrap_or_else(|| Name::of_vip(vip.addr())));
            }
            Err(e) => failures.push(format!("{}: {}", server.host, e.chain())),
        }
    }
    Err(Error::failed(format!("no server handed out a kubeconfig:\n  {}", failures.join("\n  "))).hint("smartup status -f FILE says more"))
}

/// The file to merge into. kubectl reads all files of `$KUBECONFIG`, and the first one wins.
fn target(path: Option<PathBuf>, kubeconfig: Option<OsString>, home: Option<OsString>) -> Result<PathBuf> {
    let not_empty = |p: &PathBuf| !p.as_os_str().is_empty();
    let listed = || std::env::split_paths(&kubeconfig?).find(not_empty);
    let at_home = || home.map(PathBuf::from).filter(not_empty).map(|h| h.join(".kube/config"));
    path.or_else(listed)
        .or_else(at_home)
        .filter(not_empty)
        .ok_or_else(|| Error::invalid("it is not known where your kubeconfig is: $HOME is not set").hint("name it with --kubeconfig"))
}

fn is_k3ss_own(path: &Path) -> bool {
    let real = |p: &Path| std::fs::canonicalize(p).ok();
    real(path).is_some_and(|p| Some(p) == real(Path::new(k3s::paths::KUBECONFIG)))
}

fn in_words(stored: &Stored, path: &Path, name: &Name) -> String {
    let path = path.display();
    let mut lines = vec![match stored.change {
        Change::None => format!("{path} has the context {name} as it is; nothing was changed."),
        Change::Added => format!("The context {name} was added to {path}."),
        Change::Updated => format!("The context {name} was updated in {path}."),
    }];
    lines.extend(stored.backup.as_ref().map(|b| format!("What the file held before is in {}.", b.display())));
    lines.push(match &stored.current {
        Some(current) if current == name.as_str() => "It is the current context.".into(),
        Some(current) => format!("The current context is still {current}; for this one: kubectl --context {name}"),
        None => format!("There is no current context; for this one: kubectl --context {name}"),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(change: Change, current: Option<&str>, backup: bool) -> Stored {
        Stored { change, current: current.map(str::to_owned), backup: backup.then(|| "/home/u/.kube/config.smartup-backup".into()) }
    }

    #[test]
    fn says_what_was_done_and_what_is_current() {
        let (path, name) = (Path::new("/home/u/.kube/config"), "smartup-10.0.0.10".parse().unwrap());
        let said = [
            stored(Change::Added, Some("smartup-10.0.0.10"), false),
            stored(Change::Added, Some("prod"), true),
            stored(Change::Updated, None, true),
            stored(Change::None, Some("prod"), false),
        ]
        .map(|s| in_words(&s, path, &name));
        insta::assert_snapshot!(said.join("\n\n"), @"
        The context smartup-10.0.0.10 was added to /home/u/.kube/config.
        It is the current context.

        The context smartup-10.0.0.10 was added to /home/u/.kube/config.
        What the file held before is in /home/u/.kube/config.smartup-backup.
        The current context is still prod; for this one: kubectl --context smartup-10.0.0.10

        The context smartup-10.0.0.10 was updated in /home/u/.kube/config.
        What the file held before is in /home/u/.kube/config.smartup-backup.
        There is no current context; for this one: kubectl --context smartup-10.0.0.10

        /home/u/.kube/config has the context smartup-10.0.0.10 as it is; nothing was changed.
        The current context is still prod; for this one: kubectl --context smartup-10.0.0.10
        ");
    }

    #[test]
    fn the_file_is_the_named_one_the_first_listed_one_or_the_one_at_home() {
        let of = |path: Option<&str>, list: Option<&str>, home: Option<&str>| {
            target(path.map(Into::into), list.map(Into::into), home.map(Into::into)).map_err(|e| e.to_string())
        };
        assert_eq!(of(Some("k"), Some("/a:/b"), Some("/root")).unwrap(), Path::new("k"));
        assert_eq!(of(None, Some(":/a:/b"), Some("/root")).unwrap(), Path::new("/a"));
        assert_eq!(of(None, Some(""), Some("/root")).unwrap(), Path::new("/root/.kube/config"));
        assert_eq!(of(None, None, Some("/root")).unwrap(), Path::new("/root/.kube/config"));
        assert!(of(None, None, Some("")).is_err() && of(None, None, None).is_err());
    }
}
