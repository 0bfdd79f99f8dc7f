//! Smart updates: the `UpdateManager` API, its schema and its rules. Pure: no I/O, the time is an argument.

pub mod api;
mod assign;
pub mod edit;
mod item;
pub mod judge;
pub mod names;
mod package;
mod patch_name;
mod policy;
mod schedule;
mod span;
mod text;
mod window;
mod zone;

pub use assign::{Asked, assign};
pub use item::{Item, suggestion};
pub use package::{Bans, Names, PackageName};
pub use patch_name::PatchName;
pub use policy::{Policy, Stage};
pub use schedule::Schedule;
pub use span::Span;
pub use window::{Gate, Opening, Window, gate};
pub use zone::Zone;
