//! The operator's image: smartup's own program on nothing else, made by smartup itself. No registry is ever needed, and the
//! operator's version cannot drift from smartup's.

mod archive;
mod containerd;
mod program;
mod reference;
mod step;

pub use archive::Image;
pub use program::Program;
pub use reference::Reference;
pub use step::{BY, ImageStep, undo};
