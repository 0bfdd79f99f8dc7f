use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use crate::{Change, Context as _, Error, Host, Result, State, Step, Undo, run};

/// Kernel modules that should be there now. After a boot a file in `/etc/modules-load.d` sees to it.
#[derive(Debug, Clone)]
pub struct ModulesStep {
    /// Their names.
    pub modules: Vec<String>,
}

#[async_trait(?Send)]
impl Step for ModulesStep {
    fn name(&self) -> String {
        "kernel modules".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        Ok(State::of(self.modules.iter().filter(|m| !present(m)).map(|m| Change::new(format!("load {m}"))).collect()))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        for module in self.modules.iter().filter(|m| !present(m)) {
            host.journal.record(Undo::Module { module: module.clone() })?;
            let out = run("modprobe", &[module], Duration::from_secs(30)).await?;
            if !out.success() {
                return Err(Error::failed(format!("cannot load the kernel module {module}: {}", out.tail(2)))
                    .hint("install the kernel's extra modules (RHEL 10: kernel-modules-extra), or boot the installed kernel"));
            }
        }
        Ok(())
    }
}

/// Loaded, or built in. A built-in module without parameters has no folder in /sys/module.
pub(crate) fn present(module: &str) -> bool {
    let name = module.replace('-', "_");
    let builtin = || {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let list = fs::read_to_string(format!("/lib/modules/{release}/modules.builtin")).unwrap_or_default();
        list.lines().filter_map(|l| Path::new(l).file_stem()?.to_str()).any(|l| l.replace('-', "_") == name)
    };
    Path::new("/sys/module").join(&name).exists() || feature_present(&name) || builtin()
}

/// What the module brings, for kernels that have it built in but ship no list of that.
fn feature_present(module: &str) -> bool {
    match module {
        "overlay" => fs::read_to_string("/proc/filesystems").is_ok_and(|f| f.lines().any(|l| l.ends_with("\toverlay"))),
        "br_netfilter" => Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists(),
        _ => false,
    }
}

/// Kernel settings that should hold now. After a boot a file in `/etc/sysctl.d` sees to it.
#[derive(Debug, Clone)]
pub struct SysctlStep {
    /// Keys as in `net.ipv4.ip_forward`, with their values.
    pub settings: Vec<(String, String)>,
}

impl SysctlStep {
    fn wrong(&self) -> Result<Vec<(&String, &String, String)>> {
        let mut wrong = Vec::new();
        for (key, want) in &self.settings {
            let path = sysctl_path(key);
            match fs::read_to_string(&path) {
                Ok(now) if now.trim() == want => {}
                Ok(now) => wrong.push((key, want, now.trim().to_owned())),
                // appears with its module; a dry run may come before that
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => wrong.push((key, want, String::new())),
                Err(e) => return Err(e).context(format!("cannot read {}", path.display())),
            }
        }
        Ok(wrong)
    }
}

#[async_trait(?Send)]
impl Step for SysctlStep {
    fn name(&self) -> String {
        "kernel settings".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        Ok(State::of(self.wrong()?.into_iter().map(|(k, v, now)| Change::new(format!("set {k} from '{now}' to {v}"))).collect()))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        for (key, want, before) in self.wrong()? {
            host.journal.record(Undo::Sysctl { key: key.clone(), before })?;
            fs::write(sysctl_path(key), want).context(format!("cannot set {key}"))?;
        }
        Ok(())
    }
}

pub(crate) fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}
