//! The lab: real hosts on one machine, and the tests that use it.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use integration::{Lab, LabSpec};
//! let lab = Lab::up(&LabSpec::hosts(3))?;
//! let h1 = lab.host("h1")?;
//! h1.run(["systemctl", "start", "keepalived"])?;
//! h1.power_cut()?;
//! # Ok(())
//! # } // and the lab is gone
//! ```

pub mod api;
mod cgroup;
pub mod clock;
mod dice;
mod disk;
pub mod gc;
mod host;
pub mod keeper;
mod lab;
mod limits;
mod lock;
mod net;
mod nspawn;
pub mod outage;
pub mod place;
mod programs;
mod random;
mod recipe;
pub mod report;
mod run;
mod shift;
mod site;
pub mod snapshot;
pub mod watch;
pub mod writes;

pub use dice::Dice;
pub use host::{Host, Outcome, Probe, Running, exit_code};
pub use lab::{Lab, LabSpec};
pub use run::until;
pub use site::{NETWORK, NETWORK6, PREFIX, PREFIX6};

/// Makes all that labs are made of and is not in the cache yet.
pub fn fill_cache() -> anyhow::Result<()> {
    recipe::ALL.iter().try_for_each(|recipe| recipe.tree().map(drop))
}
