//! The operator's image: smartup's own program on nothing else, made by smartup itself. No registry is ever needed, and the
//! operator's version cannot drift from smartup's.

mod archive;
mod program;
mod reference;

pub use archive::Image;
pub use program::Program;
pub use reference::Reference;
