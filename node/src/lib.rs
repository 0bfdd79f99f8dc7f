//! The engine on a host: steps, plan, runner, journal, files, systemd, packages, facts.
