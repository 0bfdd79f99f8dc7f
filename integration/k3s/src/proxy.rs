//! Passing requests on to kube-apiserver: who asks goes along in front-proxy headers, bodies
//! stream, upgraded connections (exec, port-forward) become pipes.

use crate::identity::Identity;
use crate::layout::Layout;
use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// The body of an answer.
pub type Body = BoxBody<Bytes, hyper::Error>;

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// An error in Kubernetes' form.
pub fn status(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let text = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    })
    .to_string();
    let mut response = Response::new(full(text));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A kube-apiserver.
#[derive(Clone)]
pub struct Proxy {
    authority: String,
    client: Client<hyper_rustls::HttpsConnector<HttpConnector>, Incoming>,
}

impl Proxy {
    /// Passes on to `authority` (`address:port`), with the front-proxy certificate.
    ///
    /// # Errors
    /// The certificates under `server/tls` cannot be used.
    pub fn new(layout: &Layout, authority: String) -> Result<Self> {
        let read = |f: &str| std::fs::read(layout.tls(f));
        let (ca, crt, key) = (read("server-ca.crt")?, read("client-auth-proxy.crt")?, read("client-auth-proxy.key")?);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(crate::client::tls(&ca, Some((&crt, &key)))?)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self { authority, client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// Passes one request on.
    pub async fn pass(&self, request: Request<Incoming>, identity: Option<&Identity>) -> Response<Body> {
        match self.try_pass(request, identity).await {
            Ok(response) => response,
            Err(_) => status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "apiserver not ready"),
        }
    }

    async fn try_pass(&self, mut request: Request<Incoming>, identity: Option<&Identity>) -> Result<Response<Body>> {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let uri: Uri = format!("https://{}{path}", self.authority).parse()?;
        let upgrade = request.headers().get(header::UPGRADE).cloned();
        let down = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        parts.uri = uri;
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        clean(&mut parts.headers);
        parts.headers.remove(header::HOST);
        forward_identity(&mut parts.headers, identity)?;
        if let Some(protocol) = upgrade {
            parts.headers.insert(header::UPGRADE, protocol);
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        }
        let mut response = self.client.request(Request::from_parts(parts, body)).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(down) = down
        {
            let up = hyper::upgrade::on(&mut response);
            tokio::spawn(async move {
                if let (Ok(up), Ok(down)) = (up.await, down.await) {
                    // Either side may hang up at any time.
                    let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(up), &mut TokioIo::new(down)).await;
                }
            });
            return Ok(response.map(BodyExt::boxed));
        }
        clean(response.headers_mut());
        Ok(response.map(BodyExt::boxed))
    }
}

/// Takes out what belongs to one connection only.
fn clean(headers: &mut HeaderMap) {
    for name in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::TE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
}

/// Nobody may claim an identity by these headers: the sender's own go, ours come.
fn forward_identity(headers: &mut HeaderMap, identity: Option<&Identity>) -> Result<()> {
    let claimed: Vec<HeaderName> = headers.keys().filter(|n| n.as_str().starts_with("x-remote-")).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let Some(identity) = identity else {
        return Ok(());
    };
    headers.remove(header::AUTHORIZATION);
    headers.insert("x-remote-user", HeaderValue::from_str(&identity.user)?);
    for group in identity.groups.iter().map(String::as_str).chain(["system:authenticated"]) {
        headers.append("x-remote-group", HeaderValue::from_str(group)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claimed_identities_go() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-group", HeaderValue::from_static("system:masters"));
        headers.insert("authorization", HeaderValue::from_static("Bearer t"));
        forward_identity(&mut headers, None).unwrap();
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["authorization"]);
        let id = Identity { user: "u".into(), groups: vec!["g".into()] };
        forward_identity(&mut headers, Some(&id)).unwrap();
        assert_eq!(headers["x-remote-user"], "u");
        assert_eq!(headers.get_all("x-remote-group").iter().count(), 2);
        assert!(!headers.contains_key("authorization"));
    }
}
