//! What a pod shows over HTTP: `/healthz` and `/readyz` to the kubelet, `/metrics` to Prometheus.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use node::{Context as _, Result};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

use crate::{PORT, VERSION};

/// A main loop that has not come round for this long hangs: the kubelet starts the pod anew.
const HANGS: Duration = Duration::from_secs(300);
/// How often a main loop that waits must say that it does.
pub(crate) const BEAT: Duration = Duration::from_secs(60);
/// As much as a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a process is.
pub(crate) struct Pulse {
    began: Instant,
    /// Seconds after `began`.
    beat: Mutex<Instant>,
    ready: AtomicBool,
    registry: Registry,
}

impl Pulse {
    /// Of a process that has just started and is not ready; `registry` has its metrics.
    pub(crate) fn new(mut registry: Registry) -> Arc<Self> {
        registry.register("build", "What runs", Info::new([("version", VERSION)]));
        Arc::new(Self { began: Instant::now(), beat: Mutex::new(Instant::now()), ready: AtomicBool::new(false), registry })
    }

    /// The main loop has come round.
    pub(crate) fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// It does what it is there for.
    pub(crate) fn ready(&self) {
        self.beat();
        self.ready.store(true, Ordering::Relaxed);
    }

    /// It is told to stop, and does nothing new.
    pub(crate) fn stops(&self) {
        self.ready.store(false, Ordering::Relaxed);
    }

    /// The answer to a path, at this time.
    fn answer(&self, path: &str, now: Instant) -> (StatusCode, String) {
        let since = now.saturating_duration_since(*self.beat.lock().unwrap_or_else(PoisonError::into_inner));
        match path {
            "/healthz" if since > HANGS => (StatusCode::SERVICE_UNAVAILABLE, format!("nothing was done for {} s\n", since.as_secs())),
            "/readyz" if !self.ready.load(Ordering::Relaxed) => {
                let waits = now.saturating_duration_since(self.began).as_secs();
                (StatusCode::SERVICE_UNAVAILABLE, format!("not ready; it was started {waits} s ago\n"))
            }
            "/healthz" | "/readyz" => (StatusCode::OK, "ok\n".into()),
            "/metrics" => {
                let mut text = String::new();
                match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
                    Ok(()) => (StatusCode::OK, text),
                    Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
                }
            }
            _ => (StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n".into()),
        }
    }

    /// Answers for as long as the process lives.
    ///
    /// # Errors
    /// When the port is taken.
    pub(crate) async fn serve(self: &Arc<Self>) -> Result<()> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
        let listener = match TcpListener::bind(any).await {
            Ok(listener) => listener,
            // a host without IPv6
            Err(_) => TcpListener::bind(("0.0.0.0", PORT)).await.context(format!("cannot listen on port {PORT}"))?,
        };
        let pulse = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                };
                let pulse = Arc::clone(&pulse);
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (status, text) = pulse.answer(request.uri().path(), Instant::now());
                    let kind = if request.uri().path() == "/metrics" {
                        "application/openmetrics-text; version=1.0.0; charset=utf-8"
                    } else {
                        "text/plain; charset=utf-8"
                    };
                    let mut response = Response::new(Full::new(bytes::Bytes::from(text)));
                    *response.status_mut() = status;
                    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
                    std::future::ready(Ok::<_, Infallible>(response))
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), service);
                // who hangs up is nobody's trouble
                tokio::spawn(connection);
            }
        });
        Ok(())
    }
}

/// A registry whose names begin with `smartup_`.
pub(crate) fn registry() -> Registry {
    Registry::with_prefix("smartup")
}

/// A metric that holds a time, in seconds since 1970.
pub(crate) fn time_metric(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register_with_unit(name, help, Unit::Seconds, gauge.clone());
    gauge
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_is_seen_and_one_that_waits_is_not() {
        let pulse = Pulse::new(registry());
        let now = Instant::now();
        assert_eq!(pulse.answer("/readyz", now).0, StatusCode::SERVICE_UNAVAILABLE);
        pulse.ready();
        assert_eq!(pulse.answer("/readyz", now).0, StatusCode::OK);
        assert_eq!(pulse.answer("/healthz", now + 2 * BEAT).0, StatusCode::OK);
        assert_eq!(pulse.answer("/healthz", now + HANGS + BEAT).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(pulse.answer("/", now).0, StatusCode::NOT_FOUND);
        pulse.stops();
        assert_eq!((pulse.answer("/readyz", now).0, pulse.answer("/healthz", now).0), (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK));
    }
}
