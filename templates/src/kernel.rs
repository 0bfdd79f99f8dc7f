//! The kernel: modules and settings.
