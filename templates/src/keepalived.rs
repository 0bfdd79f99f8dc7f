//! keepalived: its configuration, health check and drop-ins.
