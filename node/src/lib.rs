//! The engine on a host: steps, plan, runner, journal, and the host's own things as typed steps.
//!
//! A [`Step`] has a name and `check → apply → check again`. A [`Plan`] is an ordered list of steps; running it twice
//! changes nothing the second time, and a crash anywhere is mended by running it again. Every change is first written
//! to the [`Journal`], so that [`undo`] can take back exactly what was done.

mod addresses;
mod command;
mod error;
mod event;
mod facts;
mod files;
mod guard;
mod host;
mod install;
mod journal;
mod kernel;
mod lock;
mod packages;
mod preflight;
mod selinux;
mod step;
mod systemd;
mod transient;
mod undo;
mod wait;
mod written;

pub use addresses::{has_address, has_address_at};
pub use command::{Output, run};
pub use error::{Context, Error, Kind, Result};
pub use event::{Change, Event, Outcome, Reporter};
pub use facts::{Facts, Link, SeLinux};
pub use files::{Content, Edit, FileStep, read_optional, remove_file, replace, write_atomically};
pub use guard::Guard;
pub use host::Host;
pub use install::{has_content, hash, install, keep, keeps, same_content};
pub use journal::{Entry, FileState, Journal, Undo, hex};
pub use kernel::{ModulesStep, SysctlStep};
pub use lock::Lock;
pub use packages::{Manager, PackageStep};
pub use preflight::{Finding, Preflight, Verdict, host_checks};
pub use step::{Mode, Plan, Run, State, Step, Summary};
pub use systemd::{OnChange, Systemd, TellStep, UnitState, UnitStep, last_lines};
pub use undo::{Undone, UndoneHow, undo};
pub use wait::Awaited;
pub use written::{FileStands, WrittenFile, written_files};
