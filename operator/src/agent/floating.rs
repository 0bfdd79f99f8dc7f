//! The floating address, and how a server lets another one have it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cluster::{Port, Role, Vip};
use http::Request;
use kube::{Client, Config};
use node::{Context as _, Host, Result, has_address_at, read_optional};
use serde::Deserialize;

use super::decide::Floating;

/// Who has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(2);

/// What smartup has written down on a host about its cluster, as far as it is about the floating address.
#[derive(Debug, Deserialize)]
struct Membership {
    role: Role,
    vip: Vip,
    port: Port,
}

/// The floating address of a server.
#[derive(Debug)]
pub(super) struct Vrrp {
    address: IpAddr,
    url: String,
}

impl Vrrp {
    /// Of the host whose root is seen as `root`; None where smartup made it no server.
    ///
    /// # Errors
    /// When what is written down cannot be read.
    pub(super) fn of(root: &Path) -> Result<Option<Self>> {
        let path = root.join(Host::STATE.trim_start_matches('/')).join("membership.json");
        let Some(file) = read_optional(&path)? else { return Ok(None) };
        let found: Membership = serde_json::from_slice(&file.content).context(format!("{} is damaged", path.display()))?;
        let url = found.vip.api_url(found.port);
        Ok((found.role == Role::Server).then(|| Self { address: found.vip.addr(), url }))
    }

    /// Whether the host has it, by the `net` folder of one of its processes.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn is_here(&self, net: &Path) -> Result<bool> {
        has_address_at(net, self.address).context("cannot read the host's addresses")
    }

    /// Where it is; the API is asked there as this pod may.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) async fn place(&self, net: &Path) -> Result<Floating> {
        if self.is_here(net)? {
            return Ok(Floating::Here);
        }
        let answered = tokio::time::timeout(PATIENCE, self.answers()).await.unwrap_or(Ok(false))?;
        Ok(if answered { Floating::Elsewhere } else { Floating::Lost })
    }

    async fn answers(&self) -> Result<bool> {
        let what = "cannot ask the API at the floating address";
        let mut config = Config::incluster().context(what)?;
        config.cluster_url = self.url.parse().context(what)?;
        config.default_retry = false;
        let client = Client::try_from(config).context(what)?;
        let request = Request::get("/readyz").body(Vec::new()).context(what)?;
        Ok(client.request_text(request).await.is_ok())
    }
}
