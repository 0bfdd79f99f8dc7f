//! `smartup apply` for three servers and an agent, beside k3s started by hand and beside Ansible: each on new hosts.

use std::time::Duration;

use anyhow::Result;
use integration::clock::now;
use integration::{Lab, LabSpec};

use crate::ansible::{Playbook, lay_out};
use crate::by_hand;
use crate::cluster::{Crew, median_of};
use crate::control::Control;
use crate::course::{Course, follow};
use crate::memory::Peak;
use crate::program::Program;

/// A first run on new hosts, and the same again.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    /// How the first one went.
    pub first: Course,
    /// How long it takes when nothing is to be changed.
    pub again: Duration,
    /// The control side's memory in the first run.
    pub memory: Peak,
}

/// What one run of the bench has shown.
#[derive(Debug, Clone, Copy)]
pub struct Applied {
    /// `smartup apply`.
    pub ours: Runs,
    /// k3s by hand: what nobody can go below who leaves k3s alone.
    pub floor: Course,
    /// Ansible, where it could be had.
    pub ansible: Option<Runs>,
}

/// Makes the same cluster three times.
pub fn measure(program: &Program, playbook: Option<&Playbook>) -> Result<Applied> {
    let ours = with_lab(|lab| {
        let control = Control::new(lab)?;
        let file = control.cluster_file(&Crew::of(lab), "")?;
        let apply = || control.run([program.path(), "apply".as_ref(), "--yes".as_ref(), "-f".as_ref(), &file]);
        twice(lab, apply)
    })?;
    eprintln!("smartup apply: {ours:.2?}");
    let floor = with_lab(|lab| {
        by_hand::prepare(lab)?;
        Ok(follow(&Crew::of(lab), || by_hand::start(&Crew::of(lab)))?.0)
    })?;
    eprintln!("by hand: {floor:.2?}");
    let ansible = |playbook: &Playbook| {
        let runs = with_lab(|lab| {
            let control = Control::new(lab)?;
            lay_out(&control, &Crew::of(lab))?;
            twice(lab, || playbook.run(&control))
        })?;
        eprintln!("ansible: {runs:.2?}");
        Ok::<_, anyhow::Error>(runs)
    };
    Ok(Applied { ours, floor, ansible: playbook.map(ansible).transpose()? })
}

fn with_lab<T>(measure: impl FnOnce(&Lab) -> Result<T>) -> Result<T> {
    let lab = Lab::up(&LabSpec::hosts(4).without_smartup())?;
    measure(&lab)
}

fn twice(lab: &Lab, command: impl Fn() -> Result<Peak>) -> Result<Runs> {
    let (first, memory) = follow(&Crew::of(lab), &command)?;
    let again = median_of(3, || {
        let start = now();
        command()?;
        Ok(now().saturating_sub(start))
    })?;
    Ok(Runs { first, again, memory })
}
