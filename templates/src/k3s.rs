//! k3s: units and settings of the host that it needs.
