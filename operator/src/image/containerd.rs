//! k3s's own containerd, over its gRPC API (`services/images/v1/images.proto`): a millisecond where `k3s ctr` takes a tenth of a
//! second or more.

use std::path::Path;
use std::time::Duration;

use node::{Error, Result};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

/// Where it listens.
const SOCKET: &str = "/run/k3s/containerd/containerd.sock";
/// The namespace that the kubelet's images are in.
const NAMESPACE: &str = "k8s.io";
/// It answers within milliseconds, unless its disk is busy.
const LIMIT: Duration = Duration::from_secs(10);

/// What containerd has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// Nobody answers: k3s does not run.
    NotRunning,
    /// No such image.
    Nothing,
    /// An image.
    Image,
}

/// Looks for an image.
///
/// # Errors
/// When containerd runs and does not answer as it should.
pub(super) async fn find(name: &str) -> Result<Found> {
    if !Path::new(SOCKET).exists() {
        return Ok(Found::NotRunning);
    }
    let asked = call::<_, proto::Nothing>("/containerd.services.images.v1.Images/Get", proto::Name { name: name.to_owned() }).await;
    match asked {
        Ok(_) => Ok(Found::Image),
        Err(status) if status.code() == Code::NotFound => Ok(Found::Nothing),
        // a socket that nobody listens at is what a k3s that ended leaves; one that ends breaks off
        Err(status) if status.code() == Code::Unavailable || broke_off(&status) => Ok(Found::NotRunning),
        Err(status) => Err(failed(&format!("cannot look for the image {name}"), &status)),
    }
}

/// Takes an image away, if it is there; answers whether it was.
///
/// # Errors
/// When containerd runs and does not do it.
pub(super) async fn remove(name: &str) -> Result<bool> {
    if matches!(find(name).await?, Found::NotRunning | Found::Nothing) {
        return Ok(false);
    }
    let name = proto::Name { name: name.to_owned() };
    match call::<_, proto::Nothing>("/containerd.services.images.v1.Images/Delete", name.clone()).await {
        Ok(_) => Ok(true),
        Err(status) if status.code() == Code::NotFound => Ok(false),
        Err(status) => Err(failed(&format!("cannot remove the image {}", name.name), &status)),
    }
}

/// The connection ended before there was an answer.
fn broke_off(status: &Status) -> bool {
    std::error::Error::source(status).is_some_and(<dyn std::error::Error>::is::<tonic::transport::Error>)
}

fn failed(what: &str, status: &Status) -> Error {
    Error::failed(format!("{what}: k3s's containerd says: {}", status.message()))
}

async fn call<Q, A>(path: &'static str, message: Q) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let unavailable = |e: tonic::transport::Error| Status::unavailable(e.to_string());
    let endpoint = Endpoint::from_shared(format!("unix:{SOCKET}")).map_err(unavailable)?.connect_timeout(LIMIT).timeout(LIMIT);
    let mut grpc = tonic::client::Grpc::new(endpoint.connect().await.map_err(unavailable)?);
    grpc.ready().await.map_err(unavailable)?;
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    let codec = ProstCodec::<Q, A>::default();
    grpc.unary(request, PathAndQuery::from_static(path), codec).await.map(tonic::Response::into_inner)
}

/// Its messages, as far as they are used here; the numbers are the protocol.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Nothing {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Name {
        #[prost(string, tag = "1")]
        pub name: String,
    }
}
