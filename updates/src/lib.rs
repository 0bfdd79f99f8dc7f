//! Smart updates: the `UpdateManager` API, its schema and its rules. Pure: no I/O, the time is an argument.

pub mod api;
mod assign;
mod builds;
mod choice;
pub mod decide;
pub mod edit;
mod impact;
mod item;
pub mod judge;
mod matched;
pub mod names;
mod package;
mod patch_name;
mod policy;
mod schedule;
mod share;
mod span;
mod suspects;
mod text;
mod window;
mod zone;

pub use assign::{Asked, assign};
pub use builds::Builds;
pub use impact::Impact;
pub use item::{Item, suggestion};
pub use matched::{AlertPattern, BootId, HostPath, LabelValue, MarkName, PodSelector, ServiceName, TransactionId, WebUrl};
pub use package::{Bans, PackageName};
pub use patch_name::PatchName;
pub use policy::{Policy, Stage};
pub use schedule::Schedule;
pub use share::Share;
pub use span::Span;
pub use suspects::Suspects;
pub use window::{Gate, Opening, Window, gate};
pub use zone::Zone;
