//! The firewalld rules that each role needs, over D-Bus.
