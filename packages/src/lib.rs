//! Package managers and live patches of a host: what is available, exact transactions, and whether the host needs a reboot.
//!
//! ```no_run
//! # async fn update() -> node::Result<()> {
//! use packages::{Manager, OnHost};
//! let host = OnHost::here();
//! let manager = Manager::detect(&host)?;
//! let wanted = manager.available(&host).await?.into_iter().map(|u| u.package).collect();
//! let resolved = manager.resolve(&host, &wanted, &updates::Bans::default()).await?;
//! manager.download(&host, &resolved.transaction).await?;
//! manager.install(&host, &resolved.transaction).await
//! # }
//! ```
//!
//! Nothing here has a time-out: who calls watches [`OnHost::mark`], and drops the future of what hangs, which kills it.

mod apt;
mod detect;
mod dnf;
mod manager;
mod on_host;
mod pacman;
mod progress;
mod ready_kernel;
mod reboot;
mod resolve;
mod rpm;
mod transaction;
mod zypper;

pub use manager::Manager;
pub use on_host::OnHost;
pub use progress::Mark;
pub use ready_kernel::ReadyKernel;
pub use reboot::{Reboot, Sentinel, needs_reboot};
pub use resolve::{Excluded, Resolved};
pub use transaction::{Change, Transaction, Upgrade};
