//! smartup.
fn main() {}
