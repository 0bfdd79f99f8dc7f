//! A stand-in for k3s.
fn main() {}
