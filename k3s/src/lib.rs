//! k3s on a host: binary, unit, environment, start, readiness, etcd.
