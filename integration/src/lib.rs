//! The lab: real hosts on one machine, and the tests that use it.
