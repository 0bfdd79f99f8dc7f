//! Which hosts smartup talks to: host keys as OpenSSH's `known_hosts` has them, against a real sshd.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::{Control, yaml};
use integration::{Host, Lab, LabSpec, Outcome, until};

const KNOWN: &str = "/root/.ssh/known_hosts";

/// A host with an sshd, and one that smartup is run on.
struct Pair<'a> {
    host: &'a Host,
    control: Control<'a>,
}

impl<'a> Pair<'a> {
    fn of(lab: &'a Lab) -> Result<Self> {
        let pair = Self { host: lab.host("h1")?, control: Control::on(lab, "h2", &yaml("", &["h1, role: server"]))? };
        // it is there already, so that each plan need not send it again
        let name = pair.host.run(["sha256sum", "/usr/local/bin/smartup"])?;
        let (sum, _) = name.split_once(' ').context("a sum")?;
        pair.host.sh(&format!("install -D /usr/local/bin/smartup /var/lib/smartup/bin/smartup-{sum}"))?;
        Ok(pair)
    }

    /// Makes these lines all that the control side knows.
    fn knows(&self, lines: &str) -> Result<()> {
        self.control.host.write(KNOWN, 0o600, lines)
    }

    fn known(&self) -> Result<String> {
        self.control.host.read(KNOWN)
    }

    /// What OpenSSH finds there under a name; Debian has it hash what it adds, and smartup does what it is told there.
    fn finds(&self, name: &str) -> Result<String> {
        Ok(self.control.host.exec(["ssh-keygen", "-F", name, "-f", KNOWN])?.stdout)
    }

    /// How often somebody has logged in.
    fn logins(&self) -> Result<usize> {
        Ok(self.host.run(["journalctl", "-u", "ssh", "-o", "cat", "--no-pager"])?.matches("Accepted publickey").count())
    }

    /// Smartup talks to the host.
    fn trusted(&self, args: &[&str]) -> Result<Outcome> {
        let done = self.control.plan(args)?;
        ensure!(done.code == 3, "knowing\n{}exit code {}: {}{}", self.known()?, done.code, done.stdout, done.stderr);
        Ok(done)
    }

    /// It does not: nobody logs in, and nothing more becomes known.
    fn refused(&self, args: &[&str], words: &str) -> Result<String> {
        let (known, logins) = (self.known()?, self.logins()?);
        let done = self.control.plan(args)?;
        ensure!(
            done.code == 4 && done.stdout.contains(words),
            "knowing\n{known}wanted '{words}', got exit code {}: {}{}",
            done.code,
            done.stdout,
            done.stderr
        );
        ensure!(self.known()? == known && self.logins()? == logins, "refused: {words}");
        Ok(done.stdout)
    }

    /// A host key of this type, as a line of `known_hosts` has it: the type and the key.
    fn key(&self, kind: &str) -> Result<String> {
        let text = self.host.read(&format!("/etc/ssh/ssh_host_{kind}_key.pub"))?;
        Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    }

    fn fingerprint(&self, kind: &str) -> Result<String> {
        let line = self.host.run(["ssh-keygen", "-lf", &format!("/etc/ssh/ssh_host_{kind}_key.pub")])?;
        Ok(line.split_whitespace().nth(1).context("a fingerprint")?.to_owned())
    }

    /// Gives the host a new key of this type, and lets its sshd know.
    fn new_key(&self, kind: &str) -> Result<()> {
        self.host.sh(&format!("cd /etc/ssh; rm -f ssh_host_{kind}_key*; ssh-keygen -q -t {kind} -N '' -f ssh_host_{kind}_key"))?;
        self.reload()
    }

    /// Lets sshd read its configuration and its keys, and waits until it listens again.
    fn reload(&self) -> Result<()> {
        let main = || self.host.run(["systemctl", "show", "ssh", "-p", "MainPID", "--value"]);
        let was = main()?;
        self.host.run(["systemctl", "restart", "ssh"])?;
        until("sshd listens again", common::LONG, || {
            Ok((main()? != was && self.host.exec(["nc", "-z", "127.0.0.1", "22"])?.ok()).then_some(()))
        })
    }
}

#[test]
fn unknown_then_known_then_changed() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let pair = Pair::of(&lab)?;
    let (key, fingerprint) = (pair.key("ed25519")?, pair.fingerprint("ed25519")?);

    pair.knows("")?;
    let said = pair.refused(&[], "is not known")?;
    ensure!(said.contains(&fingerprint) && said.contains(&format!("h1 {key}")), "the fingerprint and the line to add: {said}");
    pair.trusted(&["--accept-new-host-keys"])?;
    ensure!(pair.finds("h1")?.contains(&key), "{}", pair.known()?);
    pair.trusted(&[])?;

    // the line that was shown is one that works
    pair.knows(&format!("h1 {key}\n"))?;
    pair.trusted(&[])?;

    // another key, as after a new installation or with somebody in the middle
    pair.new_key("ed25519")?;
    for args in [&[][..], &["--accept-new-host-keys"]] {
        let said = pair.refused(args, "known_hosts has another key")?;
        ensure!(said.contains(&pair.fingerprint("ed25519")?) && said.contains(&format!("{KNOWN}:1")), "{said}");
    }
    // known by a type that the host does not have
    pair.control.host.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", "/root/else"])?;
    let other = pair.control.host.read("/root/else.pub")?;
    pair.knows(&format!("h1 {other}"))?;
    pair.refused(&["--accept-new-host-keys"], "known_hosts has another key")?;
    // known by a type that it has beside the others: that one is asked for
    pair.new_key("ecdsa")?;
    pair.knows(&format!("h1 {}\n", pair.key("ecdsa")?))?;
    pair.trusted(&[])?;
    pair.knows(&format!("h1 {other}h1 {}\n", pair.key("ed25519")?))?;
    pair.trusted(&[])?;
    Ok(())
}

#[test]
fn what_known_hosts_may_say() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let pair = Pair::of(&lab)?;
    let key = pair.key("ed25519")?;

    for line in [format!("h1,other {key}"), format!("h? {key}"), format!("*,!h2 {key}"), format!("H1 {key} a comment")] {
        pair.knows(&format!("# a comment\n\n{line}\n"))?;
        pair.trusted(&[])?;
    }
    for line in [format!("*,!h1 {key}"), format!("h2 {key}"), format!("[h1]:2222 {key}")] {
        pair.knows(&format!("{line}\n"))?;
        pair.refused(&[], "is not known")?;
    }
    // hashed by OpenSSH itself
    pair.knows(&format!("h1 {key}\n"))?;
    pair.control.host.run(["ssh-keygen", "-q", "-H", "-f", KNOWN])?;
    ensure!(pair.known()?.starts_with("|1|"), "{}", pair.known()?);
    pair.trusted(&[])?;

    // revoked, whatever else is said
    pair.knows(&format!("h1 {key}\n@revoked * {key}\n"))?;
    pair.refused(&[], "revoked")?;
    pair.refused(&["--accept-new-host-keys"], "revoked")?;
    pair.control.says(&yaml("", &[&format!("h1, role: server, hostKey: \"{}\"", pair.fingerprint("ed25519")?)]))?;
    pair.refused(&[], "revoked")?;

    // pinned: what else is known does not count
    pair.knows("")?;
    pair.trusted(&[])?;
    ensure!(pair.known()?.is_empty(), "{}", pair.known()?);
    let wrong = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
    pair.control.says(&yaml("", &[&format!("h1, role: server, hostKey: \"{wrong}\"")]))?;
    pair.knows(&format!("h1 {key}\n"))?;
    let said = pair.refused(&["--accept-new-host-keys"], "is pinned for it")?;
    ensure!(said.contains(wrong) && said.contains(&pair.fingerprint("ed25519")?), "{said}");

    // another port is another name
    pair.host.sh("echo 'Port 22\nPort 2222' > /etc/ssh/sshd_config.d/ports.conf; firewall-cmd -q --add-port=2222/tcp")?;
    pair.reload()?;
    pair.control.says(&yaml("", &["h1, role: server, ssh: {port: 2222}"]))?;
    pair.knows(&format!("[h1]:2222 {key}\n"))?;
    pair.trusted(&[])?;
    pair.knows("")?;
    pair.trusted(&["--accept-new-host-keys"])?;
    ensure!(pair.finds("[h1]:2222")?.contains(&key) && pair.finds("h1")?.is_empty(), "{}", pair.known()?);
    Ok(())
}

#[test]
fn certificates() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let pair = Pair::of(&lab)?;
    // the authority's key is on neither of them in earnest
    pair.host.sh("cd /root; for ca in ca other; do ssh-keygen -q -t ed25519 -N '' -f $ca; done")?;
    let authority = pair.host.read("/root/ca.pub")?;
    let certify = |options: &str| -> Result<()> {
        pair.host.sh(&format!("cd /etc/ssh; rm -f *-cert.pub; ssh-keygen -q -s /root/ca -I h1 -h {options} ssh_host_ed25519_key.pub"))?;
        pair.host.sh("echo HostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub > /etc/ssh/sshd_config.d/certificate.conf")?;
        pair.reload()
    };

    certify("-n h1 -V +1h")?;
    pair.knows(&format!("@cert-authority h* {authority}"))?;
    pair.trusted(&[])?;
    ensure!(pair.known()?.lines().count() == 1, "the host's own key need not be known: {}", pair.known()?);
    // an authority for other hosts, and another authority, count for nothing
    pair.knows(&format!("@cert-authority db* {authority}"))?;
    pair.refused(&[], "is not known")?;
    pair.knows(&format!("@cert-authority * {}", pair.host.read("/root/other.pub")?))?;
    pair.refused(&[], "is not known")?;
    pair.knows(&format!("@cert-authority h* {authority}@revoked * {authority}"))?;
    pair.refused(&["--accept-new-host-keys"], "revoked")?;

    // for another name; no longer valid: it is not made known on first use either
    for options in ["-n h2 -V +1h", "-n h1 -V 20200101:20200102"] {
        certify(options)?;
        pair.knows(&format!("@cert-authority h* {authority}"))?;
        pair.refused(&[], "is not known")?;
        pair.refused(&["--accept-new-host-keys"], "is not known")?;
    }
    Ok(())
}
