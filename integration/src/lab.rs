//! A whole lab: its hosts, the wire between them, and its end.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cgroup::Hierarchies;
use crate::host::{Host, Probe};
use crate::lock::Lock;
use crate::recipe::{self, Recipe};
use crate::run::until;
use crate::site::{HostPlan, MOST_HOSTS, Plan, Site};
use crate::{disk, gc, limits, net, place, programs, random};

/// So many hosts boot side by side: a hundred at once would all be late.
const AT_ONCE: usize = 8;
const FREE_LIMIT: Duration = Duration::from_secs(2);

/// What a lab is to be like.
#[derive(Debug, Clone)]
pub struct LabSpec {
    full: u8,
    plain: u8,
    managers: u8,
    k3s: bool,
    smartup: bool,
    k3s_disk: Option<u32>,
    name: Option<String>,
    kept: bool,
}

impl LabSpec {
    /// This many hosts (h1, h2, …) with keepalived and firewalld, k3s and smartup.
    pub fn hosts(count: u8) -> Self {
        Self { full: count, plain: 0, managers: 0, k3s: true, smartup: true, k3s_disk: None, name: None, kept: false }
    }

    /// Further hosts, numbered after the others, without keepalived and firewalld; their apt can install both.
    #[must_use]
    pub fn plain_hosts(mut self, count: u8) -> Self {
        self.plain = count;
        self
    }

    /// Further hosts, numbered after those, which have dnf, zypper and pacman beside apt, and what makes packages for each.
    #[must_use]
    pub fn manager_hosts(mut self, count: u8) -> Self {
        self.managers = count;
        self
    }

    /// No k3s and nothing that it needs.
    #[must_use]
    pub fn without_k3s(mut self) -> Self {
        self.k3s = false;
        self
    }

    /// No smartup.
    #[must_use]
    pub fn without_smartup(mut self) -> Self {
        self.smartup = false;
        self
    }

    /// `/var/lib/rancher` is a disk (tmpfs) of so many MiB, which can be full. It outlasts reboots and power cuts.
    #[must_use]
    pub fn k3s_disk(mut self, mebibytes: u32) -> Self {
        self.k3s_disk = Some(mebibytes);
        self
    }

    /// This id instead of a random one; up to 20 of a-z, 0-9 and `-`.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The lab stays when its owner ends, until [`Lab::down`].
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.kept = true;
        self
    }

    fn bases(&self) -> impl Iterator<Item = Recipe> {
        let full = std::iter::repeat_n(recipe::FULL, self.full.into());
        let plain = std::iter::repeat_n(recipe::PLAIN, self.plain.into());
        full.chain(plain).chain(std::iter::repeat_n(recipe::MANAGERS, self.managers.into()))
    }
}

/// A running lab. It ends with this value, unless it is a kept one; also when the process ends in any other way.
#[derive(Debug)]
pub struct Lab {
    site: Arc<Site>,
    hosts: Vec<Host>,
    probe: Probe,
    owner: Option<Lock>,
}

impl Lab {
    /// Boots a lab, and gives it when all hosts are ready. What it needs and is not in the cache is made first, which
    /// takes minutes.
    pub fn up(spec: &LabSpec) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "the lab needs root: it makes namespaces, mounts and control groups");
        ensure!(spec.full + spec.plain + spec.managers <= MOST_HOSTS, "a lab has at most {MOST_HOSTS} hosts");
        let groups = Hierarchies::of_machine()?;
        let plan = plan(spec)?;
        let mut programs = Vec::new();
        if spec.k3s {
            programs.extend(programs::k3s()?);
        }
        if spec.smartup {
            programs.extend(programs::smartup()?);
        }
        if let Err(error) = gc::collect() {
            eprintln!("lab: cannot remove what others left: {error:#}");
        }
        limits::raise()?;
        let (site, owner) = claim(spec.name.as_deref(), &groups)?;
        let mut lab = Self::over(site, &plan, groups, Some(owner));
        // From here on dropping `lab` cleans up, and the reaper does if there is no dropping.
        lab.build(&plan, &programs)?;
        if spec.kept {
            lab.site.write_plan(&Plan { kept: true, ..lab.site.plan()? })?;
            lab.owner = None;
        }
        Ok(lab)
    }

    /// A lab that is up; it does not end with this value.
    pub fn open(name: &str) -> Result<Self> {
        let site = Site::new(&place::state(), name)?;
        ensure!(site.folder.exists(), "there is no lab {name:?}; hint: lab up 3 --name {name}");
        let plan = site.plan()?;
        Ok(Self::over(site, &plan, Hierarchies::of_machine()?, None))
    }

    fn over(site: Site, plan: &Plan, groups: Hierarchies, owner: Option<Lock>) -> Self {
        let site = Arc::new(site);
        let host = |plan: &HostPlan| {
            let mut plan = plan.clone();
            if !plan.layers.contains(&site.layer()) {
                plan.layers.insert(0, site.layer());
            }
            Host::new(site.clone(), plan, groups.clone())
        };
        let hosts = plan.hosts.iter().map(host).collect();
        let probe = Probe::new(site.clone(), groups);
        Self { site, hosts, probe, owner }
    }

    fn build(&mut self, plan: &Plan, programs: &[(String, std::path::PathBuf)]) -> Result<()> {
        self.site.write_plan(plan)?;
        self.start_reaper()?;
        Hierarchies::of_machine()?.make_lab(&self.site.id)?;
        net::lay(&self.site, &plan.hosts)?;
        disk::make_layer(&self.site, programs)?;
        for hosts in self.hosts.chunks(AT_ONCE) {
            let results: Vec<Result<()>> = std::thread::scope(|scope| {
                let starts: Vec<_> = hosts.iter().map(|host| scope.spawn(|| host.power_on())).collect();
                starts.into_iter().map(|start| start.join().unwrap_or_else(|_| bail!("starting a host panicked"))).collect()
            });
            results.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    /// Starts the process that waits for this one's end.
    fn start_reaper(&self) -> Result<()> {
        let status = Command::new("setsid")
            .arg("--fork")
            .arg(programs::lab()?)
            .arg("reap")
            .arg(&self.site.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("cannot run setsid")?;
        ensure!(status.success(), "setsid: {status}");
        Ok(())
    }

    /// Its hosts, h1 first.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of this name (`h1`).
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name() == name).with_context(|| format!("no host {name:?} in this lab"))
    }

    /// A place on the same wire that is none of the hosts.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The id that the names of its namespaces, groups and folders hold.
    pub fn id(&self) -> &str {
        &self.site.id
    }

    /// The private key (OpenSSH, ed25519) that opens every host as root.
    pub fn ssh_key(&self) -> std::path::PathBuf {
        self.site.key()
    }

    /// Ends the lab: no process, namespace, mount, group or file of it is left.
    pub fn down(mut self) -> Result<()> {
        let owner = match self.owner.take() {
            Some(owner) => owner,
            // Not at once: when a kept lab is new, its reaper takes a moment to see that there is nothing to do.
            None => until("the lab is free to be ended", FREE_LIMIT, || Lock::attempt_existing(&self.site.lock()))
                .context("the lab belongs to a process that still runs")?,
        };
        gc::remove(&self.site, &owner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take()
            && let Err(error) = gc::remove(&self.site, &owner)
        {
            eprintln!("lab: {}: {error:#}", self.site.id);
        }
    }
}

fn plan(spec: &LabSpec) -> Result<Plan> {
    let mut shared = Vec::new();
    if spec.k3s {
        shared.push(recipe::RUNTIME.tree()?);
        shared.push(recipe::KUBERNETES.tree()?);
    }
    let mut hosts = Vec::new();
    for (number, base) in (1..).zip(spec.bases()) {
        let mut layers = shared.clone();
        layers.push(base.tree()?);
        hosts.push(HostPlan { number, layers, k3s_disk: spec.k3s_disk });
    }
    Ok(Plan { kept: false, hosts })
}

/// Makes the lab's folder and takes its lock.
fn claim(name: Option<&str>, groups: &Hierarchies) -> Result<(Site, Lock)> {
    let state = place::state();
    fs::create_dir_all(&state).with_context(|| format!("cannot make {}", state.display()))?;
    let _all = gc::lock_all(&state)?;
    let site = match name {
        Some(name) => Site::new(&state, name)?,
        None => Site::new(&state, &random::hex::<4>()?)?,
    };
    let taken = site.folder.exists() || net::exists(&site) || groups.lab(&site.id).exists();
    ensure!(!taken, "there already is a lab {:?}; hint: lab down --name {0}", site.id);
    fs::create_dir(&site.folder).with_context(|| format!("cannot make {}", site.folder.display()))?;
    let owner = Lock::on_new(&site.lock())?;
    Ok((site, owner))
}
