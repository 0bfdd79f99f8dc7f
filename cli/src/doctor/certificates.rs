//! k3s's certificates: how long they are good for, and whether the API shows one that names the VIP.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use node::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore};
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

use super::finding::Finding;

const CERTIFICATES: &str = "certificates";
const API: &str = "api-certificate";

/// k3s renews what has less than 90 days left whenever it starts (k3s, "Certificate Management"): below this it has not been
/// started for two months.
const SOON_DAYS: i64 = 30;
const DAY: i64 = 86_400;

/// A certificate on disk, and when it is good; times in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    file: PathBuf,
    not_before: i64,
    not_after: i64,
    /// A CA, which k3s does not renew by itself.
    authority: bool,
}

/// All certificates in these folders of k3s's, and what could not be read.
pub fn read(folders: &[PathBuf]) -> (Vec<Certificate>, Vec<String>) {
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    let mut open: Vec<PathBuf> = folders.to_vec();
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) => {
                unread.push(format!("{}: {e}", folder.display()));
                continue;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.file_type() {
                // the agent's folder also holds containerd's images
                Ok(kind) if kind.is_dir() && path.starts_with(TLS) => open.push(path),
                Ok(kind) if kind.is_file() && path.extension().is_some_and(|e| e == "crt") => match parse(&path) {
                    Ok(certificates) => found.extend(certificates),
                    Err(e) => unread.push(e.chain()),
                },
                _ => {}
            }
        }
    }
    found.sort_by(|a, b| (a.not_after, &a.file).cmp(&(b.not_after, &b.file)));
    (found, unread)
}

/// Where a server keeps its own.
pub const TLS: &str = "/var/lib/rancher/k3s/server/tls";
/// Where every node keeps its own.
pub const AGENT: &str = "/var/lib/rancher/k3s/agent";

fn parse(path: &Path) -> Result<Vec<Certificate>> {
    let what = || format!("cannot read the certificate {}", path.display());
    let text = std::fs::read(path).context(what())?;
    let mut found = Vec::new();
    for pem in Pem::iter_from_buffer(&text) {
        let pem = pem.context(what())?;
        let certificate = pem.parse_x509().context(what())?;
        found.push(Certificate {
            file: path.to_owned(),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            authority: certificate.is_ca(),
        });
    }
    Ok(found)
}

/// The check `certificates`: none has expired or will within 30 days. `now` in seconds since 1970.
pub fn judge(found: &[Certificate], unread: &[String], now: i64) -> Vec<Finding> {
    let mut said = Vec::new();
    for c in found {
        let file = c.file.display();
        let hint = if c.authority {
            "it is the cluster's own authority: see `k3s certificate rotate-ca`"
        } else {
            "restart k3s here (systemctl restart k3s-server or k3s-agent): it renews its certificates when it starts"
        };
        let days = (c.not_after - now).div_euclid(DAY);
        if now > c.not_after {
            said.push(Finding::fail(CERTIFICATES, format!("{file} expired {} days ago", (now - c.not_after) / DAY), hint));
        } else if now < c.not_before {
            let what = format!("{file} is good only from {}", date(c.not_before));
            said.push(Finding::fail(CERTIFICATES, what, "this host's clock is behind: set it right"));
        } else if days < SOON_DAYS {
            said.push(Finding::warn(CERTIFICATES, format!("{file} expires in {days} days"), hint));
        }
    }
    said.dedup();
    said.extend(unread.iter().map(|why| Finding::unknown(CERTIFICATES, why, None)));
    match found.first() {
        Some(first) if said.is_empty() => {
            let days = (first.not_after - now).div_euclid(DAY);
            said.push(Finding::ok(CERTIFICATES, format!("{} certificates, the first expires in {days} days", found.len())));
        }
        None if said.is_empty() => said.push(Finding::unknown(CERTIFICATES, "k3s has no certificates here yet", None)),
        _ => {}
    }
    said
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "another age".to_owned(), |t| t.to_string())
}

/// The check `api-certificate`: what this server itself shows on the API's port is signed by the cluster's CA, good now, and
/// names the VIP, so that it can answer there. Asked as a joiner does, by a TLS handshake.
pub fn api(ca: &Path, server: SocketAddr, vip: IpAddr, now: i64, limit: Duration) -> Finding {
    match handshake(ca, server, vip, limit) {
        Ok(end) => {
            let days = (end - now).div_euclid(DAY);
            Finding::ok(API, format!("this server's certificate names {vip}, and is good for {days} days"))
        }
        Err(e) => {
            let wrong = match e.downcast_ref::<rustls::Error>() {
                Some(rustls::Error::InvalidCertificate(why)) => wrong(why, vip),
                _ => None,
            };
            match wrong {
                Some((what, hint)) => Finding::fail(API, what, hint),
                None => Finding::unknown(API, format!("{server} shows no certificate: {e}"), None),
            }
        }
    }
}

fn wrong(why: &CertificateError, vip: IpAddr) -> Option<(String, &'static str)> {
    Some(match why {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            format!("this server's certificate does not name {vip}"),
            "run smartup init or join here again (it gives k3s --tls-san), then `k3s certificate rotate` with k3s stopped",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("this server's certificate has expired".to_owned(), "restart k3s here: it renews its certificates when it starts")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("this server's certificate is not good yet".to_owned(), "this host's clock is behind: set it right")
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            ("this server's certificate is not signed by the CA on its disk".to_owned(), "was the cluster's CA replaced? restart k3s here")
        }
        _ => return None,
    })
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// Ends when the certificate has been judged; answers when it expires.
fn handshake(ca: &Path, server: SocketAddr, name: IpAddr, limit: Duration) -> Result<i64, Boxed> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::IpAddress(name.into()))?;
    let mut socket = TcpStream::connect_timeout(&server, limit)?;
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    while tls.is_handshaking() {
        if let Err(e) = tls.complete_io(&mut socket) {
            // the reason for a refusal is inside
            return Err(match e.downcast::<rustls::Error>() {
                Ok(tls) => Box::new(tls),
                Err(e) => Box::new(e),
            });
        }
    }
    let shown = tls.peer_certificates().and_then(<[_]>::first).ok_or("it showed none")?;
    let (_, certificate) = x509_parser::parse_x509_certificate(shown)?;
    Ok(expires(&certificate))
}

fn expires(certificate: &X509Certificate<'_>) -> i64 {
    certificate.validity().not_after.timestamp()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
    use rustls::{ServerConfig, ServerConnection};

    use super::super::finding::Verdict;
    use super::*;

    fn certificate(days: i64, authority: bool) -> Certificate {
        Certificate { file: format!("/{days}.crt").into(), not_before: 0, not_after: NOW + days * DAY, authority }
    }

    const NOW: i64 = 1_700_000_000;

    fn judged(found: &[Certificate], unread: &[String]) -> Vec<(Verdict, String)> {
        judge(found, unread, NOW).into_iter().map(|f| (f.verdict, f.what)).collect()
    }

    #[test]
    fn days_are_counted() {
        assert_eq!(
            judged(&[certificate(30, false), certificate(364, false)], &[]),
            [(Verdict::Ok, "2 certificates, the first expires in 30 days".into())]
        );
        let young = Certificate { not_before: NOW + 1, ..certificate(300, false) };
        assert_eq!(
            judged(&[certificate(-3, false), certificate(29, true), young], &["it is no certificate".into()]),
            [
                (Verdict::Fail, "/-3.crt expired 3 days ago".into()),
                (Verdict::Warn, "/29.crt expires in 29 days".into()),
                (Verdict::Fail, "/300.crt is good only from 2023-11-14T22:13:21Z".into()),
                (Verdict::Unknown, "it is no certificate".into()),
            ]
        );
        assert_eq!(judged(&[], &[])[0].0, Verdict::Unknown);
    }

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        pem: tempfile::NamedTempFile,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let pem = tempfile::Builder::new().suffix(".crt").tempfile().unwrap();
            std::fs::write(pem.path(), params.self_signed(&key).unwrap().pem()).unwrap();
            Self { issuer: Issuer::new(params, key), pem }
        }

        /// What is made of a server with a certificate for this address.
        fn asked(&self, address: &str, until: i32) -> Finding {
            let mut params = CertificateParams::new([address.to_owned()]).unwrap();
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
            let key = KeyPair::generate().unwrap();
            let shown = params.signed_by(&key, &self.issuer).unwrap().der().clone();
            let config = ServerConfig::builder().with_no_client_auth();
            let config = config.with_single_cert(vec![shown], key.serialize_der().try_into().unwrap()).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let at = listener.local_addr().unwrap();
            let server = std::thread::spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                let mut tls = ServerConnection::new(Arc::new(config)).unwrap();
                // a client that does not like what it sees hangs up
                while tls.is_handshaking() && tls.complete_io(&mut socket).is_ok() {}
            });
            let found = api(self.pem.path(), at, "10.0.0.10".parse().unwrap(), NOW, Duration::from_secs(10));
            server.join().unwrap();
            found
        }
    }

    #[test]
    fn a_server_must_show_a_good_certificate_for_the_vip() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = Authority::new();
        let found = authority.asked("10.0.0.10", 2100);
        assert!(found.verdict == Verdict::Ok && found.what.contains("names 10.0.0.10"), "{found:?}");
        let found = authority.asked("10.0.0.11", 2100);
        assert!(found.verdict == Verdict::Fail && found.what.contains("does not name 10.0.0.10"), "{found:?}");
        let found = authority.asked("10.0.0.10", 2021);
        assert!(found.verdict == Verdict::Fail && found.what.contains("has expired"), "{found:?}");
        let found = Authority { pem: Authority::new().pem, ..authority }.asked("10.0.0.10", 2100);
        assert!(found.verdict == Verdict::Fail && found.what.contains("not signed by the CA"), "{found:?}");
    }

    #[test]
    fn who_shows_nothing_is_unknown() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let found = api(Authority::new().pem.path(), free, free.ip(), NOW, Duration::from_secs(1));
        assert_eq!(found.verdict, Verdict::Unknown, "{found:?}");
    }

    #[test]
    fn certificates_are_read_and_what_is_none_is_said() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(Authority::new().pem.path(), folder.path().join("a.crt")).unwrap();
        std::fs::write(folder.path().join("b.crt"), "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n").unwrap();
        std::fs::write(folder.path().join("c.key"), "secret").unwrap();
        let (found, unread) = read(&[folder.path().to_owned(), folder.path().join("none")]);
        assert!(found.len() == 1 && found[0].authority && found[0].not_after > NOW, "{found:?}");
        assert!(unread.len() == 2 && unread.iter().any(|u| u.contains("b.crt")), "{unread:?}");
    }
}
