//! What a cluster is made of: validated types, no I/O.
