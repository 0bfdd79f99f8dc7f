//! The floating address: the wire, VRRP settings, health check, and their steps.
