//! Random faults at a cluster that is written to all the time, for a minute. `make soak` does the same for twenty.

use std::process::Command;

use anyhow::{Result, ensure};

#[test]
fn a_minute_of_random_faults() -> Result<()> {
    let status = Command::new(env!("CARGO_BIN_EXE_soak")).args(["--minutes", "1", "--most", "10"]).status()?;
    ensure!(status.success(), "soak: {status}; what went wrong is said above");
    Ok(())
}
