//! cAdvisor, which is in kubelet, asks five times, a second apart, where Docker has its folder,
//! and only then goes on. Here it gets an answer at once, and one that shows no Docker to watch.

use crate::proxy::{Body, full};
use anyhow::{Context as _, Result};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::path::Path;
use tokio::net::UnixListener;

/// Where it listens.
pub const SOCKET: &str = "/run/k3s/no-docker.sock";

const ANSWER: &str = r#"{"DockerRootDir":"/var/lib/docker","Driver":"","Version":"0.0.0","ApiVersion":"1.0"}"#;

/// Answers for as long as the process lives.
///
/// # Errors
/// The socket cannot be made.
pub fn start() -> Result<()> {
    let path = Path::new(SOCKET);
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    if let Some(folder) = path.parent() {
        crate::layout::folder(folder)?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen unix {SOCKET}"))?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|_: Request<hyper::body::Incoming>| async {
                let mut response: Response<Body> = Response::new(full(ANSWER));
                response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
                Ok::<_, Infallible>(response)
            });
            // kubelet may hang up at any time.
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(())
}
