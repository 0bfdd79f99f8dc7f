use std::time::Duration;

use hyper_util::client::legacy::{Client as Http, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::{Client, Config};
use node::{Context as _, Result};
use tower::ServiceBuilder;

/// The API is behind a service address: a server that has just died is still one of those behind it for some seconds.
const CONNECT: Duration = Duration::from_secs(2);

/// A server whose power is cut says nothing, just as a watch without news. So its kernel is asked after so long, and again each
/// [`AGAIN`]; after the third time it is dead (tcp(7), `TCP_KEEPIDLE`).
const IDLE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(5);

/// Clients of the cluster that this pod is in.
#[derive(Clone)]
pub(crate) struct Clients {
    /// For questions, which are answered within seconds.
    pub(crate) asking: Client,
    /// For watches, which are silent for minutes.
    pub(crate) watching: Client,
    config: Config,
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
        let config_of_servers = asking.clone();
        Ok(Self { asking: Client::try_from(asking).context(what)?, watching: watching(config).context(what)?, config: config_of_servers })
    }

    /// For questions to one server's own API server. Its certificate is for the cluster's name, whatever addresses it is for.
    ///
    /// # Errors
    /// When the address is none.
    pub(crate) fn of_server(&self, address: &str, port: u16) -> Result<Client> {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let what = || format!("cannot ask the API server at {host}:{port}");
        let mut config = self.config.clone();
        config.cluster_url = format!("https://{host}:{port}").parse().context(what())?;
        config.tls_server_name = Some("kubernetes.default.svc".into());
        Client::try_from(config).context(what())
    }
}

/// As [`Client::try_from`] makes one, but for the connection's keepalive.
fn watching(config: Config) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(IDLE));
    connector.set_keepalive_interval(Some(AGAIN));
    connector.set_keepalive_retries(Some(3));
    let http = Http::builder(TokioExecutor::new()).build(config.rustls_https_connector_with_connector(connector)?);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
impl Clients {
    /// Of an API that is made for a test; there are no servers behind it.
    pub(crate) fn of_test(client: Client) -> Self {
        let config = Config::new(http::Uri::from_static("https://127.0.0.1:1"));
        Self { asking: client.clone(), watching: client, config }
    }
}
