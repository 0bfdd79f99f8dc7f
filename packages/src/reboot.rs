//! Whether a host needs a reboot.

use std::fs;
use std::path::{Path, PathBuf};

use node::{Output, Result};
use serde::{Deserialize, Serialize};

use crate::{Manager, OnHost};

/// Whether a host needs a reboot. Unknown is not no, and never reboots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reboot {
    /// It does; why.
    Yes(String),
    /// It does not.
    No,
    /// Nobody can tell; why.
    Unknown(String),
}

/// What the user has that says so, as with kured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sentinel {
    /// A file of the host that is there when a reboot is needed.
    File(PathBuf),
    /// A program of the host, with its arguments: 0 means a reboot, 1 none, anything else that it failed.
    Command(Vec<String>),
}

/// Says that a reboot is needed; and beside it, as Debian has it, which packages ask for it.
const REQUIRED: &str = "/run/reboot-required";
/// The same, as zypper has it.
const NEEDED: &str = "/run/reboot-needed";

/// Asks what the distribution has for it, and the user's sentinel: either may ask for a reboot. What the distribution cannot tell, the
/// sentinel decides. `/run/reboot-required` and `/run/reboot-needed` count on every host: other tools than the distribution's make them
/// as well.
///
/// # Errors
/// When nothing can be run on the host.
pub async fn needs_reboot(host: &OnHost, manager: Option<Manager>, sentinel: Option<&Sentinel>) -> Result<Reboot> {
    let distribution = match made(host) {
        Some(why) => Reboot::Yes(why),
        None => by_manager(host, manager).await?,
    };
    let sentinel = match sentinel {
        None => return Ok(distribution),
        Some(Sentinel::File(path)) => by_path(path, &host.run(&["test", "-e", &path.to_string_lossy()]).await?),
        Some(Sentinel::Command(argv)) => by_command(argv, &host.run(argv).await?),
    };
    Ok(both(distribution, sentinel))
}

async fn by_manager(host: &OnHost, manager: Option<Manager>) -> Result<Reboot> {
    Ok(match manager {
        Some(Manager::Apt) => debian(host).await?,
        Some(Manager::Dnf4) => needs_restarting(&host.run(&["dnf", "-C", "-q", "needs-restarting", "-r"]).await?),
        Some(Manager::Dnf5) => needs_restarting(&host.run(&["dnf5", "-C", "-q", "needs-restarting"]).await?),
        Some(Manager::Yum) => needs_restarting(&host.run(&["needs-restarting", "-r"]).await?),
        Some(Manager::Zypper) => suse(host).await?,
        Some(Manager::Pacman) => arch(host),
        None => Reboot::Unknown("the host has no package manager that is known".into()),
    })
}

fn both(distribution: Reboot, sentinel: Reboot) -> Reboot {
    match (distribution, sentinel) {
        (Reboot::Yes(why), _) | (_, Reboot::Yes(why)) => Reboot::Yes(why),
        (_, Reboot::No) => Reboot::No,
        (_, unknown) => unknown,
    }
}

fn made(host: &OnHost) -> Option<String> {
    let path = [REQUIRED, NEEDED].into_iter().find(|path| host.file(path).exists())?;
    let packages = fs::read_to_string(host.file(format!("{path}.pkgs"))).unwrap_or_default();
    let mut packages: Vec<&str> = packages.lines().collect();
    packages.sort_unstable();
    packages.dedup();
    let by = if packages.is_empty() { String::new() } else { format!(", by {}", packages.join(", ")) };
    Some(format!("{path} is there{by}"))
}

/// Asked on the host: /var/run, where kured has its own, is an absolute link, which leads elsewhere when it is followed from here.
fn by_path(path: &Path, out: &Output) -> Reboot {
    match out.code {
        Some(0) => Reboot::Yes(format!("{} is there", path.display())),
        Some(1) => Reboot::No,
        _ => Reboot::Unknown(format!("cannot look for {}: {}", path.display(), out.tail(1))),
    }
}

fn by_command(argv: &[String], out: &Output) -> Reboot {
    let program = argv.first().map_or("", String::as_str);
    match out.code {
        Some(0) => Reboot::Yes(format!("{program} says so")),
        Some(1) => Reboot::No,
        code => {
            let how = code.map_or_else(|| "was killed".to_owned(), |code| format!("ended with {code}"));
            tracing::warn!(program, "the command that says whether a reboot is needed {how}: {}", out.tail(3));
            Reboot::Unknown(format!("{program} {how}"))
        }
    }
}

/// Makes `/run/reboot-required` where one of these is installed.
const NOTIFIERS: [&str; 4] = [
    "/usr/share/update-notifier/notify-reboot-required",
    "/etc/kernel/postinst.d/unattended-upgrades",
    "/etc/kernel/postinst.d/update-notifier",
    "/etc/kernel/postinst.d/reboot-notifier",
];

async fn debian(host: &OnHost) -> Result<Reboot> {
    // 127: env(1) does not find it
    let out = host.run(&["needrestart", "-b", "-k", "-r", "l"]).await?;
    let state = out.stdout.lines().find_map(|line| line.strip_prefix("NEEDRESTART-KSTA:"));
    Ok(match state.map(str::trim) {
        Some("1") => Reboot::No,
        Some("2" | "3") => Reboot::Yes("needrestart finds a newer kernel than the running one".into()),
        _ if NOTIFIERS.iter().any(|path| host.file(path).exists()) => Reboot::No,
        Some(_) => Reboot::Unknown("needrestart cannot tell which kernels there are".into()),
        None => Reboot::Unknown("the host has nothing that makes /run/reboot-required, nor needrestart".into()),
    })
}

/// dnf and yum end with 1 also when they fail, or do not know the command: only with its sentence is it an answer.
fn needs_restarting(out: &Output) -> Reboot {
    match out.code {
        Some(0) => Reboot::No,
        Some(1) if out.stdout.contains("Reboot is required") => Reboot::Yes("needs-restarting says so".into()),
        _ => Reboot::Unknown(format!("needs-restarting did not work: {}", out.tail(2))),
    }
}

async fn suse(host: &OnHost) -> Result<Reboot> {
    let out = host.run(&["zypper", "--non-interactive", "needs-rebooting"]).await?;
    Ok(match out.code {
        Some(0) => Reboot::No,
        // ZYPPER_EXIT_INF_REBOOT_NEEDED
        Some(102) => Reboot::Yes("zypper needs-rebooting says so".into()),
        _ => Reboot::Unknown(format!("zypper needs-rebooting did not work: {}", out.tail(2))),
    })
}

/// An update of the kernel removes the modules of the one that runs.
fn arch(host: &OnHost) -> Reboot {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    modules(host, &kernel)
}

fn modules(host: &OnHost, kernel: &str) -> Reboot {
    let folders = ["/usr/lib/modules", "/lib/modules"];
    if folders.iter().any(|folder| host.file(folder).join(kernel).is_dir()) {
        Reboot::No
    } else if folders.iter().any(|folder| fs::read_dir(host.file(folder)).is_ok_and(|mut all| all.next().is_some())) {
        Reboot::Yes(format!("the modules of the running kernel {kernel} are gone"))
    } else {
        Reboot::Unknown("the host has no modules of any kernel".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::on_host::tests::scripted;

    fn out(code: i32, stdout: &str, stderr: &str) -> Output {
        Output { code: Some(code), stdout: stdout.into(), stderr: stderr.into() }
    }

    fn yes() -> Reboot {
        Reboot::Yes("so".into())
    }

    fn unknown() -> Reboot {
        Reboot::Unknown("so".into())
    }

    #[test]
    fn either_may_ask_for_it_and_the_user_decides_what_is_unknown() {
        for (distribution, sentinel, answer) in [
            (yes(), Reboot::No, yes()),
            (Reboot::No, yes(), yes()),
            (yes(), unknown(), yes()),
            (unknown(), Reboot::No, Reboot::No),
            (Reboot::No, unknown(), unknown()),
            (unknown(), unknown(), unknown()),
            (Reboot::No, Reboot::No, Reboot::No),
        ] {
            assert_eq!(both(distribution.clone(), sentinel.clone()), answer, "{distribution:?} {sentinel:?}");
        }
    }

    #[test]
    fn an_exit_code_alone_is_no_answer_of_dnf() {
        let required = "Core libraries or services have been updated since boot-up:\n  * glibc\n\nReboot is required to fully utilize these updates.\n";
        assert!(matches!(needs_restarting(&out(1, required, "")), Reboot::Yes(_)));
        assert_eq!(needs_restarting(&out(0, "Reboot should not be necessary.\n", "")), Reboot::No);
        let missing = "No such command: needs-restarting. Please use /usr/bin/dnf --help\n";
        assert!(matches!(needs_restarting(&out(1, "", missing)), Reboot::Unknown(_)));
        assert!(matches!(needs_restarting(&out(127, "", "env: 'needs-restarting': No such file or directory")), Reboot::Unknown(_)));
    }

    #[tokio::test]
    async fn a_sentinel_as_with_kured() {
        let root = tempfile::tempdir().unwrap();
        let host = OnHost::through([], root.path());
        let path = root.path().join("reboot-required");
        let file = Sentinel::File(path.clone());
        assert_eq!(needs_reboot(&host, None, Some(&file)).await.unwrap(), Reboot::No);
        fs::write(path, "").unwrap();
        assert!(matches!(needs_reboot(&host, None, Some(&file)).await.unwrap(), Reboot::Yes(_)));
        for (code, answer) in [(0, "Yes"), (1, "No"), (2, "Unknown"), (127, "Unknown")] {
            let command = Sentinel::Command(["sh", "-c", &format!("exit {code}")].map(str::to_owned).into());
            let found = needs_reboot(&host, None, Some(&command)).await.unwrap();
            assert!(format!("{found:?}").starts_with(answer), "{code}: {found:?}");
        }
        assert!(matches!(needs_reboot(&host, None, None).await.unwrap(), Reboot::Unknown(_)));
    }

    #[tokio::test]
    async fn files_that_ask_for_a_reboot_count_whatever_the_manager() {
        let managers = [Manager::Apt, Manager::Dnf4, Manager::Dnf5, Manager::Yum, Manager::Zypper, Manager::Pacman];
        for manager in managers.map(Some).into_iter().chain([None]) {
            for (name, packages, why) in [
                ("reboot-required", "linux-image\nlibc6\nlibc6\n", "/run/reboot-required is there, by libc6, linux-image"),
                ("reboot-needed", "", "/run/reboot-needed is there"),
            ] {
                let root = tempfile::tempdir().unwrap();
                fs::create_dir(root.path().join("run")).unwrap();
                fs::write(root.path().join("run").join(name), "").unwrap();
                fs::write(root.path().join("run").join(format!("{name}.pkgs")), packages).unwrap();
                let host = OnHost::through([], root.path());
                let no = Sentinel::Command(vec!["false".into()]);
                assert_eq!(needs_reboot(&host, manager, Some(&no)).await.unwrap(), Reboot::Yes(why.into()), "{manager:?}");
            }
        }
    }

    fn kind(reboot: &Reboot) -> &'static str {
        match reboot {
            Reboot::Yes(_) => "yes",
            Reboot::No => "no",
            Reboot::Unknown(_) => "unknown",
        }
    }

    #[tokio::test]
    async fn debian_is_asked_by_needrestart_where_nothing_makes_the_file() {
        for (state, alone, notified) in [
            // needrestart(1): unknown, none pending, an ABI compatible one pending, a newer one pending
            ("echo NEEDRESTART-KSTA: 0", "unknown", "no"),
            ("echo NEEDRESTART-KSTA: 1", "no", "no"),
            ("echo NEEDRESTART-KSTA: 2", "yes", "yes"),
            ("echo NEEDRESTART-KSTA: 3", "yes", "yes"),
            ("exit 127", "unknown", "no"),
        ] {
            let root = tempfile::tempdir().unwrap();
            // all that it prints, and only where it asks for what we ask
            let script = format!(
                "[ \"$*\" = '-b -k -r l' ] || exit 1; echo NEEDRESTART-VER: 3.6; echo NEEDRESTART-KCUR: 6.1.0-9-amd64; echo \
                 NEEDRESTART-KEXP: 6.1.0-18-amd64; {state}"
            );
            let host = scripted(root.path(), &[("needrestart", &script)]);
            let ask = async || kind(&needs_reboot(&host, Some(Manager::Apt), None).await.unwrap());
            assert_eq!(ask().await, alone, "{state}");
            let notifier = host.file(NOTIFIERS[3]);
            fs::create_dir_all(notifier.parent().unwrap()).unwrap();
            fs::write(notifier, "").unwrap();
            assert_eq!(ask().await, notified, "{state}");
        }
    }

    #[tokio::test]
    async fn zypper_says_so_by_its_exit_code() {
        for (code, answer) in [(0, "no"), (102, "yes"), (1, "unknown"), (103, "unknown"), (127, "unknown")] {
            let root = tempfile::tempdir().unwrap();
            let script = format!("[ \"$*\" = '--non-interactive needs-rebooting' ] || exit 0; exit {code}");
            let host = scripted(root.path(), &[("zypper", &script)]);
            assert_eq!(kind(&needs_reboot(&host, Some(Manager::Zypper), None).await.unwrap()), answer, "{code}");
        }
    }

    #[test]
    fn the_modules_of_the_running_kernel() {
        let root = tempfile::tempdir().unwrap();
        let host = OnHost::through([], root.path());
        assert!(matches!(modules(&host, "6.6.1-arch1-1"), Reboot::Unknown(_)));
        fs::create_dir_all(root.path().join("usr/lib/modules/6.6.2-arch1-1")).unwrap();
        assert!(matches!(modules(&host, "6.6.1-arch1-1"), Reboot::Yes(_)));
        assert_eq!(modules(&host, "6.6.2-arch1-1"), Reboot::No);
    }
}
