//! How smartup logs in: with a key that an agent has, and with one whose passphrase is typed on a terminal.

mod common;

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::{Control, yaml};
use integration::{Lab, LabSpec, Outcome, exit_code};

const PLAN: &str = "smartup plan --exit-code -f /root/cluster.yaml";

/// Longer than what is live on the terminal leaves it alone.
const REDRAWN: Duration = Duration::from_millis(1200);

/// Runs the plan on a terminal of its own, where each answer is typed a while after its question, which nothing may disturb.
fn on_a_terminal(control: &Control<'_>, question: &str, answers: &[&str]) -> Result<(i32, String)> {
    let line = ["env", "TERM=xterm", "setsid", "-w", "script", "-qec", PLAN, "/dev/null"];
    let mut child = control.host.command(line)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut keys, mut screen) = (child.stdin.take().context("no stdin")?, child.stdout.take().context("no stdout")?);
    let (mut seen, mut typed, mut buffer) = (String::new(), 0, [0; 4096]);
    loop {
        let n = screen.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        if let Some(answer) = answers.get(typed).filter(|_| seen.matches(question).count() > typed) {
            // whether something comes meanwhile is seen afterwards
            std::thread::sleep(REDRAWN);
            writeln!(keys, "{answer}")?;
            typed += 1;
        }
    }
    ensure!(typed == answers.len(), "asked {typed} times: {seen}");
    let undisturbed = seen.split(question).skip(1).all(|after| after.starts_with(['\r', '\n']));
    ensure!(undisturbed, "something was drawn after the question: {seen:?}");
    Ok((exit_code(child.wait()?), seen))
}

#[test]
fn an_agent_and_a_passphrase() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let h1 = lab.host("h1")?;
    let control = Control::on(&lab, "h2", &yaml("", &["h1, role: server"]))?;
    control.host.sh("cd /root/.ssh; rm id_ed25519*; for k in held locked; do ssh-keygen -q -t ed25519 -N '' -f /root/$k; done")?;
    control.host.sh("ssh-keygen -q -p -N 'open, sesame' -f /root/locked")?;
    let [held, locked] = ["held", "locked"].map(|key| control.host.read(&format!("/root/{key}.pub")));
    let (held, locked) = (held?, locked?);
    let lets_in = |keys: &str| h1.write("/root/.ssh/authorized_keys", 0o600, keys);

    // no key at all
    lets_in(&held)?;
    let Outcome { code, stdout, .. } = control.plan(&[])?;
    ensure!(code == 1 && stdout.contains("h1 does not let root in: there is no key to try"), "{code}: {stdout}");
    // the agent's: the key is in no file any more
    let agent = control.host.exec(["ssh-agent", "sh", "-ec", &format!("ssh-add -q /root/held; rm /root/held; {PLAN}")])?;
    ensure!(agent.code == 3 && agent.stdout.contains("1 hosts: 1 would be changed."), "{}: {}{}", agent.code, agent.stdout, agent.stderr);
    // an agent that has the wrong one
    lets_in(&locked)?;
    control.host.sh("ssh-keygen -q -t ed25519 -N '' -C somebodys -f /root/other")?;
    let agent = control.host.exec(["ssh-agent", "sh", "-ec", &format!("ssh-add -q /root/other; {PLAN}")])?;
    ensure!(agent.code == 1 && agent.stdout.contains("it refused the agent's key \"somebodys\""), "{}: {}", agent.code, agent.stdout);

    // a passphrase: nobody to ask; mistyped once; and never shown
    control.says(&yaml("", &["h1, role: server, ssh: {identityFiles: [/root/locked]}"]))?;
    let nobody = control.host.exec(["setsid", "-w", "sh", "-c", PLAN])?;
    ensure!(nobody.code == 1 && nobody.stdout.contains("there is no terminal to ask for its passphrase"), "{}", nobody.stdout);
    ensure!(nobody.stdout.contains("ssh-add /root/locked"), "{}", nobody.stdout);
    let question = "Passphrase for /root/locked: ";
    let (code, seen) = on_a_terminal(&control, question, &["open", "open, sesame"])?;
    ensure!(code == 3 && seen.contains("1 hosts: 1 would be changed."), "{code}: {seen}");
    ensure!(!seen.contains("sesame") && seen.matches(question).count() == 2, "{seen}");
    let (code, seen) = on_a_terminal(&control, question, &["one", "two", "three"])?;
    ensure!(code == 1 && seen.contains("the passphrase was wrong 3 times"), "{code}: {seen}");
    Ok(())
}
