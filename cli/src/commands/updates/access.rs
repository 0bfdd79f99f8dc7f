use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DynamicObject, ListParams, ObjectList, Patch, PatchParams, Request};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::error::DiscoveryError;
use kube::{Client, Config, ResourceExt as _, discovery};
use node::{Context as _, Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use updates::names::{FIELD_MANAGER, GROUP, INSTANCE, NAMESPACE};

use crate::commands::kubeconfig::admin_of_a_server;
use crate::remote::{Connect, Remote};

/// How a command gets to the cluster's API.
#[derive(Debug, Args)]
pub struct Reach {
    /// Ask a server of this file for access, over SSH; then the API is spoken to through the floating address
    #[arg(short, long, value_name = "FILE", conflicts_with = "kubeconfig")]
    file: Option<PathBuf>,
    /// Use the current context of this kubeconfig [default: that of k3s, on a server]
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    connect: Option<Connect>,
}

/// As long as one question may take.
pub const QUESTION: Duration = Duration::from_secs(10);
/// Longer than a watch lasts at one time: 290 s, by kube's default.
pub const WATCH: Duration = Duration::from_secs(300);

impl Reach {
    /// Finds the objects of smart updates in the cluster. The API is given up when it is silent for `patience`.
    ///
    /// # Errors
    /// When the cluster cannot be reached, or has no smart updates.
    pub async fn open(&self, patience: Duration) -> Result<Objects> {
        let mut config = Box::pin(self.config()).await?;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(patience);
        config.default_retry = false;
        config.proxy_url = None;
        Box::pin(Objects::find(config)).await
    }

    async fn config(&self) -> Result<Config> {
        let options = KubeConfigOptions::default();
        if let Some(remote) = Remote::maybe(self.file.as_deref(), self.connect.as_ref(), false)? {
            let admin = admin_of_a_server(&remote, None).await?;
            let what = "cannot use the server's kubeconfig";
            let kubeconfig = Kubeconfig::from_yaml(&admin.expose()).context(what)?;
            return Config::from_custom_kubeconfig(kubeconfig, &options).await.context(what);
        }
        let path = self.kubeconfig.as_deref().unwrap_or(Path::new(k3s::paths::KUBECONFIG));
        if self.kubeconfig.is_none() && !path.exists() {
            return Err(Error::refused("this host is not a server of a cluster")
                .hint("run it as root on a server, or with -f cluster.yaml, or with --kubeconfig ~/.kube/config"));
        }
        let what = || format!("cannot use {}", path.display());
        let kubeconfig = Kubeconfig::read_from(path).context(what())?;
        Config::from_custom_kubeconfig(kubeconfig, &options).await.context(what())
    }
}

/// The objects of smart updates in a cluster, whoever's operator serves them.
pub struct Objects {
    /// `UpdateManagers`.
    pub managers: Api<DynamicObject>,
    /// `NodeUpdates`; a vendor's operator has none.
    pub node_updates: Option<Api<DynamicObject>>,
    /// Nodes.
    pub nodes: Api<Node>,
    /// Leases beside them: each node that is being updated has one.
    pub leases: Api<Lease>,
}

/// There is nothing to be looked at or changed.
pub fn missing() -> Error {
    Error::failed("this cluster has no smart updates: it has no UpdateManager").hint("smartup enable-updates")
}

impl Objects {
    /// The group's version is the one that the API recommends: the reference prints none.
    async fn find(config: Config) -> Result<Self> {
        let what = format!("cannot ask the cluster at {}", config.cluster_url.to_string().trim_end_matches('/'));
        let client = Client::try_from(config).context("cannot use the kubeconfig")?;
        let group = match discovery::group(&client, GROUP).await {
            Ok(group) => group,
            Err(kube::Error::Discovery(DiscoveryError::MissingApiGroup(_) | DiscoveryError::EmptyApiGroup(_))) => return Err(missing()),
            Err(e) => return Err(api_error(what, e)),
        };
        let of = |kind| Some(Api::namespaced_with(client.clone(), NAMESPACE, &group.recommended_kind(kind)?.0));
        let managers = of("UpdateManager").ok_or_else(missing)?;
        Ok(Self { managers, node_updates: of("NodeUpdate"), nodes: Api::all(client.clone()), leases: Api::namespaced(client, NAMESPACE) })
    }

    /// The one `UpdateManager`.
    ///
    /// # Errors
    /// When there is none, or the API does not answer.
    pub async fn manager(&self) -> Result<DynamicObject> {
        let found = self.managers.get_opt(INSTANCE).await.map_err(|e| api_error("cannot read the UpdateManager", e))?;
        found.ok_or_else(missing)
    }

    /// All `NodeUpdates`, as the API server has them in memory; none with a vendor's operator. Of each only what `T` holds is kept:
    /// all of thousands is hundreds of megabytes.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn read_node_updates<T: Clone + DeserializeOwned>(&self) -> Result<Vec<T>> {
        let Some(api) = &self.node_updates else { return Ok(Vec::new()) };
        let request = Request::new(api.resource_url()).list(&ListParams::default().match_any()).map_err(kube::Error::BuildRequest);
        let list = async || api.clone().into_client().request::<ObjectList<T>>(request?).await;
        Ok(list().await.map_err(|e| api_error("cannot read the NodeUpdates", e))?.items)
    }

    /// What the API server's clock says, to the second: annotations with a time are good by the operator's, not by this host's.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn now(&self) -> Result<Timestamp> {
        let what = "cannot ask the API server for the time";
        let request = http::Request::get("/version").body(Body::empty()).context(what)?;
        let answer = self.nodes.clone().into_client().send(request).await.map_err(|e| api_error(what, e))?;
        date(answer.headers()).ok_or_else(|| Error::failed("the API server does not say what time it is: its answer has no Date"))
    }

    /// The nodes' labels, by name.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn node_labels(&self) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
        let nodes = self.nodes.list_metadata(&ListParams::default()).await.map_err(|e| api_error("cannot read the nodes", e))?;
        Ok(nodes.items.into_iter().map(|n| (n.name_any(), n.metadata.labels.unwrap_or_default())).collect())
    }
}

/// When an answer was made (RFC 9110, 6.6.1).
fn date(headers: &http::HeaderMap) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(headers.get(http::header::DATE)?.to_str().ok()?).ok()
}

/// Applies a merge patch; None: what it was made from has changed since.
///
/// # Errors
/// When the API refuses it, or does not answer.
pub async fn patched<K>(api: &Api<K>, name: &str, patch: &Value) -> Result<Option<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    match api.patch(name, &params, &Patch::Merge(patch)).await {
        Ok(after) => Ok(Some(after)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(e) => Err(api_error(format!("cannot change {name}"), e)),
    }
}

/// What the API said, without what it said it in; or why it said nothing.
pub fn api_error(what: impl Into<String>, error: kube::Error) -> Error {
    let what = what.into();
    match error {
        kube::Error::Api(status) => {
            let said = format!("{what}: {}", status.message);
            if status.code == 422 { Error::invalid(said) } else { Error::failed(said) }
        }
        e => {
            let error = Error::failed(format!("{what}: {}", k3s::in_words(&e)));
            if k3s::transient(&e) { error.hint("`smartup status` on a server says whether the API answers") } else { error }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::{DATE, HeaderMap, HeaderValue};

    use super::*;

    #[tokio::test]
    async fn nobody_answers() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut config = Config::new(format!("http://{gone}").parse().unwrap());
        config.default_retry = false;
        let error = Objects::find(config).await.err().unwrap();
        let said = format!("{}\nhint: {}", error.chain(), error.hint.unwrap_or_default()).replace(&gone.to_string(), "10.0.0.10:9443");
        insta::assert_snapshot!(said, @r"
        cannot ask the cluster at http://10.0.0.10:9443: Connection refused (os error 111)
        hint: `smartup status` on a server says whether the API answers
        ");
    }

    #[test]
    fn the_time_is_the_answers() {
        let said = |text| date(&HeaderMap::from_iter([(DATE, HeaderValue::from_static(text))]));
        assert_eq!(said("Sat, 21 Nov 2026 18:52:49 GMT"), "2026-11-21T18:52:49Z".parse().ok());
        assert_eq!((said("now"), date(&HeaderMap::new())), (None, None));
    }
}
