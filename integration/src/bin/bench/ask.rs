//! The client on the fourth host: asks the API through the VIP each 20 ms, whatever became of the questions before.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use integration::{Host, Lab};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::clock::now;
use crate::outage::{GAP, Get};

/// Nobody there, or nobody who accepts.
const CONNECT_LIMIT: Duration = Duration::from_millis(200);
/// From the connection to the answer's first line. Only a hang takes that long, and it counts from its question on.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// The files that the client takes along, as k3s names them.
const FILES: [&str; 3] = ["server-ca.crt", "client-admin.crt", "client-admin.key"];

/// What the client needs to know.
#[derive(Debug, Args)]
pub struct Ask {
    /// Where the API is
    address: SocketAddr,
    /// Folder with the CA, and the client's certificate and key
    folder: PathBuf,
}

impl Ask {
    /// Asks until it is killed: a line `MICROSECONDS ok` or `MICROSECONDS WHY` for each question.
    pub fn run(self) -> Result<()> {
        let connector = TlsConnector::from(Arc::new(tls(&self.folder)?));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
        runtime.block_on(async {
            let mut tick = tokio::time::interval(GAP);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                tick.tick().await;
                let connector = connector.clone();
                tokio::spawn(async move {
                    let asked = now();
                    let said = get(self.address, connector).await.map_or_else(|why| format!("{why:#}"), |()| "ok".to_owned());
                    if writeln!(std::io::stdout().lock(), "{} {said}", asked.as_micros()).is_err() {
                        std::process::exit(0); // nobody reads any more
                    }
                });
            }
        })
    }
}

fn tls(folder: &Path) -> Result<rustls::ClientConfig> {
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
    Ok(config)
}

/// One question, over a connection of its own: `/version`, which the API server answers without asking etcd.
async fn get(address: SocketAddr, connector: TlsConnector) -> Result<()> {
    let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await.context("no connection")??;
    let answer = async {
        let name = ServerName::from(address.ip());
        let mut stream = connector.connect(name, stream).await?;
        let question = format!("GET /version HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(question.as_bytes()).await?;
        stream.flush().await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        anyhow::ensure!(&status == b"HTTP/1.1 200", "{}", status.escape_ascii());
        Ok(())
    };
    tokio::time::timeout(ANSWER_LIMIT, answer).await.context("no answer")?
}

/// The client, as seen from here. It ends with this value.
#[derive(Debug)]
pub struct Asked {
    client: Child,
    gets: Arc<Mutex<Vec<Get>>>,
    _folder: tempfile::TempDir,
}

impl Asked {
    /// Starts the client, with the credentials that a server keeps for its administrator.
    pub fn start(lab: &Lab, server: &Host, api: SocketAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for file in FILES {
            std::fs::write(folder.path().join(file), server.read(&format!("/var/lib/rancher/k3s/server/tls/{file}"))?)?;
        }
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = lab.probe().command([own.as_os_str(), "ask".as_ref(), api.to_string().as_ref(), folder.path().as_os_str()]);
        let mut client = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start the client")?;
        let stdout = client.stdout.take().context("no pipe from the client")?;
        let gets = Arc::new(Mutex::new(Vec::new()));
        let list = gets.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let (Some(get), Ok(mut list)) = (parse(&line), list.lock()) {
                    list.push(get);
                }
            }
        });
        Ok(Self { client, gets, _folder: folder })
    }

    /// All questions so far that have come to an end.
    pub fn gets(&self) -> Vec<Get> {
        self.gets.lock().map(|gets| gets.clone()).unwrap_or_default()
    }

    /// Whether all questions of a while were answered, as far as one can know now.
    pub fn is_fine_for(&self, time: Duration) -> bool {
        let known = now().saturating_sub(CONNECT_LIMIT + ANSWER_LIMIT);
        let window = known.saturating_sub(time)..known;
        let recent: Vec<_> = self.gets().into_iter().filter(|get| get.asked >= window.start).collect();
        let complete = recent.iter().filter(|get| window.contains(&get.asked)).count() > 0;
        complete && recent.iter().all(|get| get.answered)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // It may have ended with its lab.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn parse(line: &str) -> Option<Get> {
    let (asked, said) = line.split_once(' ')?;
    Some(Get { asked: Duration::from_micros(asked.parse().ok()?), answered: said == "ok" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_when_and_whether() {
        let get = parse("1500 ok").unwrap();
        assert_eq!((get.asked, get.answered), (Duration::from_micros(1500), true));
        assert!(!parse("1500 no connection: deadline has elapsed").unwrap().answered);
        assert!(parse("").is_none());
    }
}
