//! A client of Kubernetes' API that gives up early: each question over a connection of its own, as an administrator.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Host;

/// Nobody there, or nobody who accepts.
const CONNECT_LIMIT: Duration = Duration::from_millis(200);
/// From the connection to the answer's first line. Only a hang takes that long, and it counts from its question on.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// When a question has been answered, or never will be.
pub const PATIENCE: Duration = Duration::from_millis(1200);
/// The files that the client takes along, as k3s names them.
const FILES: [&str; 3] = ["server-ca.crt", "client-admin.crt", "client-admin.key"];

/// Copies to `folder` what a server keeps for its administrator.
pub fn save_credentials(server: &Host, folder: &Path) -> Result<()> {
    for file in FILES {
        std::fs::write(folder.join(file), server.read(&format!("/var/lib/rancher/k3s/server/tls/{file}"))?)?;
    }
    Ok(())
}

/// The API at an address.
#[derive(Clone)]
pub struct Api {
    address: SocketAddr,
    connector: TlsConnector,
}

impl Api {
    /// With what [`save_credentials`] saved in `folder`.
    pub fn new(address: SocketAddr, folder: &Path) -> Result<Self> {
        let [ca, cert, key] = FILES.map(|file| folder.join(file));
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(&ca)? {
            roots.add(cert?)?;
        }
        let chain = CertificateDer::pem_file_iter(&cert)?.collect::<Result<Vec<_>, _>>()?;
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&key)?)?;
        Ok(Self { address, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Asks, and waits for the first line of the answer, which must be a 200 or a 201.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Result<()> {
        let connect = TcpStream::connect(self.address);
        let stream = tokio::time::timeout(CONNECT_LIMIT, connect).await.context("no connection")??;
        let answer = async {
            let mut stream = self.connector.connect(ServerName::from(self.address.ip()), stream).await?;
            let (address, length) = (self.address, body.len());
            let question = format!(
                "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(question.as_bytes()).await?;
            stream.flush().await?;
            let mut status = [0; 12];
            stream.read_exact(&mut status).await?;
            ensure!(status.starts_with(b"HTTP/1.1 20"), "{}", status.escape_ascii());
            Ok(())
        };
        tokio::time::timeout(ANSWER_LIMIT, answer).await.context("no answer")?
    }
}
