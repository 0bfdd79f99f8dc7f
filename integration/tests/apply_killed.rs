//! kill -9 of the control side at random moments: the next run goes on, and what comes of it is one cluster.

mod common;

use anyhow::{Context as _, Result, bail};
use common::{Control, LONG, is_one_cluster, yaml};
use integration::{Dice, Host, Lab, LabSpec, until};

/// So many times it is killed, three times over.
const KILLS: usize = 12;
const PARTS: usize = 3;
/// A run has about so many events when there is much to do.
const EVENTS: u64 = 420;

enum Fate {
    Killed,
    Done,
    /// What was killed before is still at work on a host.
    Refused,
}

/// Runs apply, and kills it after so many events, if it lasts that long.
fn run(control: &Control<'_>, events: u64) -> Result<Fate> {
    let mut run = control.start(&[])?;
    let mut said = Vec::new();
    for _ in 0..events {
        match run.line()? {
            Some(line) => said.push(line),
            None => break,
        }
    }
    if said.len() as u64 == events {
        run.kill()?;
        return Ok(Fate::Killed);
    }
    match run.wait()? {
        0 => Ok(Fate::Done),
        4 if said.iter().any(|l| l.contains("another smartup run is under way")) => Ok(Fate::Refused),
        code => bail!("exit code {code}:\n{}", said.join("\n")),
    }
}

fn all_released(hosts: &[&Host]) -> Result<()> {
    for host in hosts {
        until("the lock is free", LONG, || Ok(host.exec(["flock", "-n", "/run/smartup.lock", "true"])?.ok().then_some(())))?;
    }
    Ok(())
}

#[test]
#[ignore = "many minutes: make long-test"]
fn killed_at_random_moments_it_converges() -> Result<()> {
    let seed = u64::from(std::process::id());
    killed(&mut Dice::new(seed)).with_context(|| format!("the dice were {seed}"))
}

fn killed(dice: &mut Dice) -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4, _] = lab.hosts() else { bail!("there are five hosts") };
    let (servers, hosts) = ([h1, h2, h3], [h1, h2, h3, h4]);
    let file = |times: u32| {
        let flag = format!("k3sArgs: [--node-label=lab=n{times}]");
        yaml(&flag, &["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"])
    };
    let control = Control::on(&lab, "h5", &file(0))?;
    let mut flags = 0;
    // the cluster is built up; built up again after a reset; and changed, over and over
    for part in 0..PARTS {
        let mut kills = 0;
        while kills < KILLS {
            match run(&control, 1 + dice.below(EVENTS))? {
                Fate::Killed => kills += 1,
                Fate::Done => {
                    is_one_cluster(&servers, &[h4])?;
                    flags += 1;
                    control.says(&file(flags))?;
                }
                Fate::Refused => {}
            }
            // now and then the next one comes while hosts are still ending their step
            if dice.below(3) > 0 {
                all_released(&hosts)?;
            }
        }
        all_released(&hosts)?;
        control.applied(&[])?;
        is_one_cluster(&servers, &[h4])?;
        control.is_settled()?;
        if part == 0 {
            control.run("reset", &["--yes"])?.checked()?;
        }
        flags += 1;
        control.says(&file(flags))?;
    }
    Ok(())
}
