use std::time::Duration;

use kube::{Client, Config};
use node::{Context as _, Result};

/// The API is behind a service address: a server that has just died is still one of those behind it for some seconds.
const CONNECT: Duration = Duration::from_secs(2);

/// Clients of the cluster that this pod is in.
#[derive(Clone)]
pub(crate) struct Clients {
    /// For questions, which are answered within seconds.
    pub(crate) asking: Client,
    /// For watches, which are silent for minutes.
    pub(crate) watching: Client,
}

impl Clients {
    /// With the pod's own service account.
    ///
    /// # Errors
    /// When this is no pod.
    pub(crate) fn in_cluster() -> Result<Self> {
        let what = "cannot reach the cluster: this is meant to run in a pod of it";
        let mut config = Config::incluster().context(what)?;
        config.connect_timeout = Some(CONNECT);
        config.default_retry = false;
        let mut asking = config.clone();
        asking.read_timeout = Some(Duration::from_secs(5));
        Ok(Self { asking: Client::try_from(asking).context(what)?, watching: Client::try_from(config).context(what)? })
    }
}
