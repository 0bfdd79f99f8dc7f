//! The controller's way to what is not Kubernetes: Prometheus, and whom it notifies.

use std::time::Duration;

use node::{Context as _, Result};
use reqwest::{Certificate, Client};

/// As long as an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A client that trusts those whom Mozilla trusts: the image has no certificates of its own.
///
/// # Errors
/// Only by a mistake of smartup's own.
pub(super) fn client() -> Result<Client> {
    let what = "cannot make an HTTPS client";
    let roots: Vec<_> = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(|der| Certificate::from_der(der).ok()).collect();
    Client::builder().tls_certs_only(roots).timeout(LIMIT).connect_timeout(LIMIT).build().context(what)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    pub(in super::super) fn web() -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        client().unwrap()
    }

    /// Answers one request after the other, each as it is told to, and then no more. What was asked is kept.
    pub(in super::super) async fn served(answers: Vec<(u16, String)>) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (kept, mut answers) = (Arc::clone(&asked), VecDeque::from(answers));
        tokio::spawn(async move {
            while let Some((code, body)) = answers.pop_front() {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !is_whole(&request) {
                    let mut part = [0; 4096];
                    let read = stream.read(&mut part).await.unwrap();
                    request.extend_from_slice(&part[..read]);
                    if read == 0 {
                        break;
                    }
                }
                kept.lock().unwrap().push(String::from_utf8(request).unwrap());
                let answer = format!("HTTP/1.1 {code} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (url, asked)
    }

    fn is_whole(request: &[u8]) -> bool {
        let text = String::from_utf8_lossy(request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
        body.len() >= length.unwrap_or(0)
    }

    #[test]
    fn all_roots_are_taken() {
        let all = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
        assert!(all.len() > 50 && all.iter().all(|der| Certificate::from_der(der).is_ok()));
        web();
    }
}
