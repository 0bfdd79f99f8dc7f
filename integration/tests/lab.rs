//! The lab itself: hosts are real, faults are real, and nothing is left behind.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use integration::{Host, Lab, LabSpec, until};

const SOON: Duration = Duration::from_secs(20);

fn bare(hosts: u8) -> LabSpec {
    LabSpec::hosts(hosts).without_k3s().without_smartup()
}

/// Whether `from` gets an answer to one ping within a second.
fn reaches(from: &Host, to: &Host) -> Result<bool> {
    Ok(from.exec(["ping", "-c1", "-W1", &to.ipv4().to_string()])?.ok())
}

/// Waits for an answer: hosts ask anew only now and then who has an address that did not answer.
fn reached(from: &Host, to: &Host) -> Result<()> {
    until("an answer", SOON, || Ok(reaches(from, to)?.then_some(())))
}

/// Whether anybody on the wire answers `from`'s ARP question for the address within a second.
fn answers_for(from: &Host, address: Ipv4Addr) -> Result<bool> {
    Ok(from.exec(["arping", "-c1", "-w1", "-I", "eth0", &address.to_string()])?.ok())
}

/// All that the machine still has of a lab.
fn leftovers(id: &str, folder: &Path) -> Vec<String> {
    let names = |folder: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let lines = |file: &Path| std::fs::read_to_string(file).unwrap_or_default();
    let mut left = Vec::new();
    let group = format!("smartup-lab.{id}");
    for hierarchy in names("/sys/fs/cgroup") {
        left.extend(Some(hierarchy.join(&group)).filter(|group| group.exists()).map(|group| group.display().to_string()));
    }
    left.extend(names("/run/netns").iter().map(|name| name.display().to_string()).filter(|name| name.contains(&format!("/lab.{id}."))));
    let folder_name = folder.display().to_string();
    left.extend(lines(Path::new("/proc/self/mountinfo")).lines().filter(|line| line.contains(&folder_name)).map(str::to_owned));
    let shared = names("/run/systemd/nspawn/propagate");
    left.extend(shared.iter().map(|name| name.display().to_string()).filter(|name| name.contains(&format!("/lab.{id}."))));
    for process in names("/proc") {
        let command = lines(&process.join("cmdline"));
        if command.contains(&folder_name) || lines(&process.join("cgroup")).contains(&group) {
            left.push(format!("{}: {}", process.display(), command.replace('\0', " ")));
        }
    }
    left.extend(folder.exists().then_some(folder_name));
    left
}

fn nothing_left(id: &str, folder: &Path) -> Result<()> {
    until("nothing left of the lab", SOON, || match leftovers(id, folder) {
        left if left.is_empty() => Ok(Some(())),
        left => bail!("still there:\n{}", left.join("\n")),
    })
}

#[test]
fn hosts_boot_and_run_what_they_are_told() -> Result<()> {
    let lab = Lab::up(&bare(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);

    let outcome = h1.exec(["sh", "-c", "hostname; echo on stderr >&2; exit 7"])?;
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "h1\n", "on stderr\n"));
    assert_eq!(h1.exec(["sh", "-c", "kill -9 $$"])?.code, 128 + 9);
    assert_eq!(h1.exec_with(["cat"], b"through stdin")?.stdout, "through stdin");
    assert!(h1.exec(["false"])?.checked().is_err());

    for unit in ["dbus", "ssh", "firewalld"] {
        assert_eq!(h2.run(["systemctl", "is-active", unit])?.trim(), "active", "{unit}");
    }
    assert_eq!(h1.run(["firewall-cmd", "--state"])?.trim(), "running");
    assert!(h1.run(["keepalived", "--version"]).is_ok());

    assert_eq!(h2.ssh("hostname")?.stdout, "h2\n");
    assert_eq!(h1.run(["ssh", "h2", "hostname"])?, "h2\n", "hosts know each other");
    assert!(h1.run(["ping", "-6", "-c1", "-W2", &h2.ipv6().to_string()]).is_ok());
    assert!(lab.probe().exec(["bash", "-c", &format!("read -r < /dev/tcp/{}/22", h1.ipv4())])?.ok());
    for family in ["-4", "-6"] {
        assert!(h1.run(["ip", family, "route", "show", "default"])?.contains("dev eth0"), "{family}");
    }

    h1.write("/etc/some/where/file", 0o640, "content\n")?;
    assert_eq!(h1.read("/etc/some/where/file")?, "content\n");
    assert_eq!(h1.run(["stat", "-c%a %U", "/etc/some/where/file"])?, "640 root\n");
    Ok(())
}

#[test]
fn built_in_modules_count_as_loaded_and_others_fail() -> Result<()> {
    let lab = Lab::up(&bare(1))?;
    let h1 = lab.host("h1")?;
    h1.run(["modprobe", "overlay"])?;
    h1.run(["modprobe", "br_netfilter"])?;
    assert!(!h1.exec(["modprobe", "no_such_module"])?.ok());
    Ok(())
}

#[test]
fn a_spawned_command_is_followed_and_killed_with_its_children() -> Result<()> {
    let lab = Lab::up(&bare(1))?;
    let h1 = lab.host("h1")?;
    let mut running = h1.spawn(["sh", "-c", "echo one; echo two; sleep 4242 & sleep 4242"])?;
    assert_eq!(running.line()?.as_deref(), Some("one"));
    assert_eq!(running.line()?.as_deref(), Some("two"));
    until("it sleeps", SOON, || Ok((h1.exec(["pgrep", "-fc", "^sleep 4242"])?.stdout == "2\n").then_some(())))?;
    running.kill()?;
    assert_eq!(running.line()?, None);
    assert_eq!(h1.exec(["pgrep", "-fc", "^sleep 4242"])?.stdout, "0\n");
    Ok(())
}

#[test]
fn a_power_cut_takes_every_address_off_the_wire() -> Result<()> {
    let lab = Lab::up(&bare(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    let floating = Ipv4Addr::new(10, 79, 0, 200);
    h1.run(["ip", "addr", "add", "10.79.0.200/24", "dev", "eth0"])?;
    h1.write("/root/kept", 0o600, "")?;
    assert!(answers_for(h2, h1.ipv4())? && answers_for(h2, floating)?);

    h1.power_cut()?;
    assert!(!h1.is_up());
    assert!(!answers_for(h2, h1.ipv4())? && !answers_for(h2, floating)?);
    assert!(h1.exec(["true"]).is_err());

    h1.power_on()?;
    until("it answers", SOON, || Ok(answers_for(h2, h1.ipv4())?.then_some(())))?;
    assert!(!answers_for(h2, floating)?, "an address of the last boot");
    assert_eq!(h1.read("/root/kept")?, "", "its disk is the same");

    h1.power_cut()?;
    h1.wipe()?;
    h1.power_on()?;
    assert!(h1.read("/root/kept").is_err(), "its disk is empty");
    Ok(())
}

#[test]
fn a_reboot_is_a_new_boot_with_the_same_disk() -> Result<()> {
    let lab = Lab::up(&bare(1))?;
    let h1 = lab.host("h1")?;
    h1.sh("touch /run/gone /root/kept; ip addr add 10.79.0.200/24 dev eth0")?;
    let (boot, machine) = (h1.boot_id()?, h1.read("/etc/machine-id")?);
    h1.reboot()?;
    assert_ne!(h1.boot_id()?, boot);
    assert_eq!(h1.read("/etc/machine-id")?, machine);
    h1.sh("test -e /root/kept && test ! -e /run/gone")?;
    assert!(!h1.addresses()?.contains(&"10.79.0.200/24".to_owned()));

    h1.run(["systemctl", "poweroff"])?;
    until("it is down", SOON, || Ok((!h1.is_up()).then_some(())))?;
    h1.power_on()
}

#[test]
fn a_command_ends_with_its_host() -> Result<()> {
    let lab = Lab::up(&bare(1))?;
    let h1 = lab.host("h1")?;
    std::thread::scope(|scope| {
        let sleeping = || until("it sleeps", SOON, || Ok((h1.exec(["pgrep", "-fc", "^sleep 4244"])?.stdout == "1\n").then_some(())));
        // A shutdown stops (SIGSTOP) all processes before it kills them; a power cut just kills.
        for end in [Host::reboot, |host: &Host| host.power_cut()] {
            let command = scope.spawn(|| h1.exec(["sleep", "4244"]));
            sleeping()?;
            end(h1)?;
            let outcome = command.join().expect("no panic")?;
            assert!(!outcome.ok(), "{outcome:?}");
        }
        Ok(())
    })
}

#[test]
fn a_frozen_host_says_nothing_until_it_thaws() -> Result<()> {
    let lab = Lab::up(&bare(1))?;
    let h1 = lab.host("h1")?;
    let banner = || lab.probe().exec(["timeout", "1", "bash", "-c", &format!("read -r line < /dev/tcp/{}/22", h1.ipv4())]);
    assert!(banner()?.ok());
    h1.freeze()?;
    assert_eq!(banner()?.code, 124, "sshd is stopped, the kernel still takes connections");
    assert_eq!(h1.run(["hostname"])?, "h1\n", "the lab can still look");
    h1.thaw()?;
    assert!(banner()?.ok());
    Ok(())
}

#[test]
fn a_pulled_cable_is_seen_and_a_partition_is_not() -> Result<()> {
    let lab = Lab::up(&bare(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    let carrier = || Ok::<_, anyhow::Error>(h1.read("/sys/class/net/eth0/carrier")?.trim().to_owned());

    h1.cable_pull()?;
    until("no carrier", SOON, || Ok((carrier()? == "0").then_some(())))?;
    assert!(!reaches(h2, h1)?);
    h1.reboot()?;
    assert_eq!(carrier()?, "0", "a reboot does not plug it in");
    h1.cable_plug()?;
    reached(h2, h1)?;

    h1.partition()?;
    assert_eq!(carrier()?, "1");
    assert!(!reaches(h2, h1)? && !reaches(h1, h2)?);
    assert!(!h1.exec(["ping", "-c1", "-W1", "10.79.0.1"])?.ok(), "nor the gateway");
    h1.heal()?;
    reached(h2, h1)?;
    h1.heal().context("what is whole can be healed")
}

#[test]
fn a_cut_divides_two_hosts_only() -> Result<()> {
    let lab = Lab::up(&bare(3))?;
    let (h1, h2, h3) = (lab.host("h1")?, lab.host("h2")?, lab.host("h3")?);
    h1.cut(h2)?;
    assert!(!reaches(h1, h2)? && !reaches(h2, h1)?);
    assert!(reaches(h1, h3)? && reaches(h3, h2)?);
    h2.mend(h1)?;
    reached(h1, h2)?;

    h1.lose(100)?;
    assert!(!reaches(h2, h1)?);
    h1.lose(0)?;
    reached(h2, h1)?;
    h1.lose(30)?;
    let pings = h2.exec(["ping", "-i0.005", "-c200", "-W1", "h1"])?.stdout;
    let received: u32 = pings.split(" received").next().and_then(|front| front.rsplit(' ').next()).unwrap().parse()?;
    // 0.7 * 0.7 of 200, less where neighbours' questions for each other are lost as well
    assert!((20..140).contains(&received), "{pings}");
    h1.lose(0)?;
    reached(h2, h1)
}

#[test]
fn labs_do_not_see_each_other() -> Result<()> {
    let (one, other) = (Lab::up(&bare(2))?, Lab::up(&bare(1))?);
    one.host("h2")?.power_cut()?;
    other.host("h1")?.run(["touch", "/root/other"])?;
    assert!(one.host("h1")?.read("/root/other").is_err());
    assert!(!answers_for(other.host("h1")?, one.host("h2")?.ipv4())?);
    let id = one.id().to_owned();
    one.down()?;
    nothing_left(&id, &integration::place::state().join(&id))?;
    assert!(other.host("h1")?.is_up());
    Ok(())
}

#[test]
fn a_panic_ends_the_lab() -> Result<()> {
    let (tell, told) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let lab = Lab::up(&bare(1)).unwrap();
        tell.send(lab.id().to_owned()).unwrap();
        panic!("on purpose");
    });
    assert!(test.join().is_err());
    let id = told.recv()?;
    nothing_left(&id, &integration::place::state().join(&id))
}

/// Another process that owns a lab, in a state folder of its own.
struct Owner {
    process: Child,
    id: String,
    state: tempfile::TempDir,
}

impl Owner {
    fn start() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let state = tempfile::Builder::new().prefix("lab-test-").tempdir_in("/var/tmp")?;
        let id = format!("owned-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // What runs in the background of a shell ignores SIGINT.
        let mut process = Command::new("env")
            .args(["--default-signal=INT,TERM", env!("CARGO_BIN_EXE_lab")])
            .args(["--name", &id, "with", "1", "--bare", "--", "sh", "-c", "echo up; exec sleep 4243"])
            .env("SMARTUP_LAB_STATE", state.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        BufReader::new(process.stdout.take().context("no pipe")?).read_line(&mut said)?;
        ensure!(said == "up\n", "the lab did not come up");
        Ok(Self { process, id, state })
    }

    fn folder(&self) -> PathBuf {
        self.state.path().join(&self.id)
    }

    /// To it and to the command that it runs, as from a terminal.
    fn signal(&mut self, name: &str) -> Result<()> {
        let sent = Command::new("kill").args([&format!("-{name}"), "--", &format!("-{}", self.process.id())]).status()?;
        ensure!(sent.success());
        self.process.wait()?;
        Ok(())
    }
}

#[test]
fn the_end_of_the_owner_ends_the_lab() -> Result<()> {
    for signal in ["KILL", "TERM", "INT"] {
        let mut owner = Owner::start()?;
        assert!(leftovers(&owner.id, &owner.folder()).len() > 5, "it is there before");
        owner.signal(signal)?;
        nothing_left(&owner.id, &owner.folder()).context(signal)?;
    }
    Ok(())
}

#[test]
fn the_next_lab_removes_what_nobody_could() -> Result<()> {
    let mut owner = Owner::start()?;
    let folder = owner.folder();
    let reapers = leftovers(&owner.id, &folder);
    let reaper = reapers.iter().find(|line| line.contains(" reap ")).context("no reaper")?;
    let pid = reaper.trim_start_matches("/proc/").split(':').next().unwrap();
    ensure!(Command::new("kill").args(["-KILL", pid]).status()?.success());
    until("the reaper is gone", SOON, || Ok((!leftovers(&owner.id, &folder).join("").contains(" reap ")).then_some(())))?;
    owner.signal("KILL")?;
    let host = format!("lab.{}.h1", owner.id);
    assert!(leftovers(&owner.id, &folder).join("").contains(&host), "there is something to remove");

    let state = owner.state.path();
    let gc = Command::new(env!("CARGO_BIN_EXE_lab")).arg("gc").env("SMARTUP_LAB_STATE", state).output()?;
    assert_eq!(String::from_utf8(gc.stdout)?.trim(), owner.id);
    nothing_left(&owner.id, &folder)
}

#[test]
fn a_lab_made_by_hand_stays_until_it_is_taken_down() -> Result<()> {
    let state = tempfile::Builder::new().prefix("lab-test-").tempdir_in("/var/tmp")?;
    let name = format!("hand-{}", std::process::id());
    let lab = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_lab"))
            .args(["--name", &name])
            .args(arguments)
            .env("SMARTUP_LAB_STATE", state.path())
            .output()?;
        Ok::<_, anyhow::Error>((output.status.code(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
    };
    let (code, shown, error) = lab(&["up", "1", "--bare"])?;
    assert_eq!(code, Some(0), "{error}");
    assert!(shown.starts_with("h1  running"), "{shown}");
    let (code, _, error) = lab(&["up", "1", "--bare"])?;
    assert!(code == Some(1) && error.contains("already is a lab"), "{error}");
    assert_eq!(lab(&["gc"])?.1, "", "it is not for the collector");
    let (code, shown, _) = lab(&["exec", "h1", "--", "sh", "-c", "hostname; exit 3"])?;
    assert_eq!((code, shown.as_str()), (Some(3), "h1\n"));
    assert_eq!(lab(&["ssh", "h1", "hostname"])?.1, "h1\n");
    assert_eq!(lab(&["cut-power", "h1"])?.0, Some(0));
    assert!(lab(&["status"])?.1.starts_with("h1  down"));
    assert!(lab(&["exec", "h1", "true"])?.2.contains("h1 is down"));
    assert_eq!(lab(&["down"])?.0, Some(0));
    nothing_left(&name, &state.path().join(&name))?;
    assert!(lab(&["status"])?.2.contains("there is no lab"));
    Ok(())
}

#[test]
fn hosts_run_what_they_are_given() -> Result<()> {
    let state = tempfile::Builder::new().prefix("lab-test-").tempdir_in("/var/tmp")?;
    let given = tempfile::Builder::new().prefix("lab-test-").tempdir_in("/var/tmp")?;
    let program = |name: &str, says: &str| {
        let file = given.path().join(name);
        std::fs::write(&file, format!("#!/bin/sh\necho {says}\n"))?;
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))
    };
    let with = |line: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_lab"))
            .args(["--name", &format!("given-{}", std::process::id()), "with", "1", "--"])
            .args([env!("CARGO_BIN_EXE_lab"), "exec", "h1", "--", "sh", "-c", line])
            .envs([("SMARTUP_LAB_STATE", state.path()), ("SMARTUP_LAB_K3S", given.path())])
            .env("SMARTUP_LAB_BIN", given.path().join("beside"))
            .output()?;
        Ok::<_, anyhow::Error>((String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
    };
    program("beside", "we are smartup")?;
    assert!(with("true")?.1.contains("there is no k3s in"));
    program("k3s", "we are k3s")?;
    let programs = "for p in /usr/libexec/lab-kubernetes/kube*; do $p --help > /dev/null && basename $p; done";
    let (said, errors) = with(&format!("k3s; beside; smartup; {programs}; runc --version | head -n1; etcdctl --help > /dev/null"))?;
    let expected = "we are k3s\nwe are smartup\nwe are smartup\n\
        kube-apiserver\nkube-controller-manager\nkube-proxy\nkube-scheduler\nkubectl\nkubelet\nrunc version 1.1.5+ds1\n";
    assert_eq!(said, expected, "{errors}");
    Ok(())
}

#[test]
fn an_idle_host_changes_nothing_and_every_change_is_seen() -> Result<()> {
    let lab = Lab::up(&bare(1))?;
    let h1 = lab.host("h1")?;
    let (tree, units, firewall) = (h1.tree_snapshot()?, h1.unit_snapshot()?, h1.firewall_snapshot()?);
    assert!(tree.get("/usr/bin/bash").is_some_and(|state| state.contains("base")), "{:?}", tree.get("/usr/bin/bash"));
    assert!(units.get("ssh.service").is_some_and(|state| state.starts_with("enabled, active (running), pid ")));
    assert!(firewall.get("permanent zone public").is_some_and(|zone| zone.contains("ssh")));

    // Reading, a login, and writing what was there already are no changes.
    h1.ssh("cat /etc/hosts; cp -a /etc/services /etc/services.new; mv /etc/services.new /etc/services")?;
    let later = h1.tree_snapshot()?;
    assert!(tree.diff(&later).is_empty(), "{}", tree.diff(&later));
    assert!(units.diff(&h1.unit_snapshot()?).is_empty(), "{}", units.diff(&h1.unit_snapshot()?));
    assert!(firewall.diff(&h1.firewall_snapshot()?).is_empty());

    h1.sh("echo x >> /etc/hosts; chmod 600 /etc/services; rm /etc/rmt; echo > /etc/new; mkdir /var/lib/rancher/x; chown 1:1 /etc/fstab")?;
    let changes = tree.diff(&h1.tree_snapshot()?);
    let names: Vec<&str> = changes.changes().iter().map(|change| change.name.as_str()).collect();
    assert_eq!(names, ["/etc/fstab", "/etc/hosts", "/etc/new", "/etc/rmt", "/etc/services", "/var/lib/rancher/x"], "{changes}");

    h1.sh("systemctl restart ssh; systemctl disable -q keepalived; firewall-cmd -q --add-port=1/tcp; firewall-cmd -q --permanent --add-port=2/tcp")?;
    let units = units.diff(&h1.unit_snapshot()?).to_string();
    assert!(units.contains("~ ssh.service") && units.contains("~ keepalived.service: enabled"), "{units}");
    let firewall = firewall.diff(&h1.firewall_snapshot()?).to_string();
    assert!(firewall.contains("~ runtime zone public") && firewall.contains("~ permanent zone public"), "{firewall}");
    Ok(())
}

#[test]
fn a_plain_host_installs_keepalived_and_firewalld_without_a_network() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(0).plain_hosts(1).without_k3s().without_smartup())?;
    let h1 = lab.host("h1")?;
    for program in ["keepalived", "firewall-cmd"] {
        assert!(!h1.exec(["which", program])?.ok(), "{program} is there already");
    }
    h1.sh("apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq -y install keepalived firewalld")?;
    h1.run(["keepalived", "--version"])?;
    h1.run(["firewall-cmd", "--state"])?;
    Ok(())
}

#[test]
fn the_time_of_day_and_a_disk_of_a_hosts_own() -> Result<()> {
    let lab = Lab::up(&bare(2).k3s_disk(16))?;
    let [h1, h2] = lab.hosts() else { bail!("there are two hosts") };
    let ticker = "use Time::HiRes qw(clock_gettime sleep); $| = 1; while (1) { print int(clock_gettime(0)), qq(\\n); sleep 0.05 }";
    for host in [h1, h2] {
        host.run(["systemd-run", "-q", "--unit=ticker", "-p", "StandardOutput=truncate:/run/ticks", "perl", "-e", ticker])?;
    }
    // by how much the program's clock is ahead of ours
    let ahead = |host: &Host| -> Result<i64> {
        let now = i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())?;
        Ok(host.run(["tail", "-n1", "/run/ticks"])?.trim().parse::<i64>()? - now)
    };
    let becomes = |wanted: i64| until("the other time", SOON, || Ok((ahead(h1)?.abs_diff(wanted) <= 2).then_some(())));
    becomes(0)?;
    for seconds in [3600, -90, 0] {
        h1.shift_clock(seconds)?;
        becomes(seconds)?;
        ensure!(ahead(h2)?.abs() <= 2, "the other host's time");
    }
    ensure!(h1.run(["systemctl", "is-active", "ticker"])?.trim() == "active");

    let full = h1.exec(["dd", "if=/dev/zero", "of=/var/lib/rancher/filler", "bs=1M"])?;
    ensure!(full.code == 1 && full.stderr.contains("No space left on device"), "{full:?}");
    h2.write("/var/lib/rancher/room", 0o600, "here")?;
    h1.power_cut()?;
    h1.power_on()?;
    ensure!(h1.run(["stat", "-c", "%s", "/var/lib/rancher/filler"])?.trim() == (16 << 20).to_string(), "it outlasts a power cut");
    h1.run(["rm", "/var/lib/rancher/filler"])?;
    h1.write("/var/lib/rancher/room", 0o600, "here")
}
