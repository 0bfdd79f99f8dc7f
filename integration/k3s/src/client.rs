//! Asking another server: its CA certificates first, checked against the token, then the rest
//! with the token's credentials. Errors read as in k3s, which is written in Go.

use crate::token::{Token, hash};
use anyhow::{Result, anyhow, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::Duration;

/// A TLS configuration that trusts `ca` and shows `identity` (certificate, key), all PEM.
///
/// # Errors
/// No PEM, or a key that does not fit.
pub fn tls(ca: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca) {
        roots.add(cert?)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
        }
    })
}

/// An HTTP client over such a configuration.
///
/// # Errors
/// The client cannot be made.
pub fn http(tls: ClientConfig) -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(20))
        .build()?)
}

/// Accepts whatever certificate: only for fetching the CA bundle, which the token's hash proves.
#[derive(Debug)]
struct AnyServer(rustls::crypto::CryptoProvider);

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn insecure() -> Result<ClientConfig> {
    let provider = rustls::crypto::ring::default_provider();
    Ok(ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth())
}

/// A server whose CA certificates we know.
#[derive(Clone)]
pub struct Remote {
    url: String,
    client: reqwest::Client,
    token: Token,
}

impl Remote {
    /// Fetches the CA bundle and checks it against the token's hash, if the token has one.
    ///
    /// # Errors
    /// `failed to get CA certs: …`; `token CA hash does not match …`; an address that is no
    /// https URL.
    pub async fn connect(url: &str, token: &str, user: &str) -> Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        if !url.starts_with("https://") {
            bail!("only https:// URLs are supported, invalid scheme: {url}");
        }
        let mut token = Token::parse(token, user)?;
        user.clone_into(&mut token.user);
        let cacerts = format!("{url}/cacerts");
        let ca = get(&http(insecure()?)?, &cacerts, None, &[]).await.map_err(|e| anyhow!("failed to get CA certs: {e}"))?;
        if let Some(expected) = &token.ca_hash {
            let found = hash(&ca);
            if *expected != found {
                bail!("token CA hash does not match the Cluster CA certificate hash: {expected} != {found}");
            }
        } else {
            crate::warning!(
                "Cluster CA certificate is not trusted by the host CA bundle, but the token does not include a CA hash. Use the full token from the server's node-token file to enable Cluster CA validation."
            );
        }
        let client = http(tls(&ca, None)?)?;
        get(&client, &cacerts, None, &[]).await.map_err(|e| anyhow!("server {cacerts} is not trusted: {e}"))?;
        Ok(Self { url, client, token })
    }

    /// A GET with the token's credentials.
    ///
    /// # Errors
    /// `https://…: 401 Unauthorized` and the like; connection errors.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Vec<u8>> {
        let url = format!("{}{path}", self.url);
        get(&self.client, &url, Some(&self.token), headers).await
    }
}

async fn get(client: &reqwest::Client, url: &str, token: Option<&Token>, headers: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut request = client.get(url);
    if let Some(token) = token {
        request = request.basic_auth(&token.user, Some(&token.password));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.map_err(|e| anyhow!("Get \"{url}\": {}", go_error(&e)))?;
    let status = response.status();
    if status != reqwest::StatusCode::OK {
        bail!("{url}: {status}");
    }
    Ok(response.bytes().await?.to_vec())
}

/// The error in Go's words, since that is what people (and programs) look for in k3s's log.
pub fn go_error(error: &reqwest::Error) -> String {
    let host = error.url().and_then(|u| Some(format!("{}:{}", u.host_str()?, u.port_or_known_default()?))).unwrap_or_default();
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut last = error.to_string();
    while let Some(e) = source {
        if let Some(e) = e.downcast_ref::<rustls::Error>() {
            return tls_error(e);
        }
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            // They may be wrapped in each other, and do not name each other as their source.
            let mut inner = io.get_ref();
            while let Some(e) = inner {
                if let Some(e) = e.downcast_ref::<rustls::Error>() {
                    return tls_error(e);
                }
                inner = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
            }
            match io.kind() {
                std::io::ErrorKind::ConnectionRefused => return format!("dial tcp {host}: connect: connection refused"),
                std::io::ErrorKind::HostUnreachable => return format!("dial tcp {host}: connect: no route to host"),
                std::io::ErrorKind::NetworkUnreachable => return format!("dial tcp {host}: connect: network is unreachable"),
                std::io::ErrorKind::ConnectionReset => return format!("read tcp {host}: connection reset by peer"),
                std::io::ErrorKind::UnexpectedEof => return "EOF".to_owned(),
                _ => {}
            }
        }
        last = e.to_string();
        source = e.source();
    }
    if error.is_timeout() { format!("dial tcp {host}: i/o timeout") } else { last }
}

fn tls_error(error: &rustls::Error) -> String {
    use rustls::{CertificateError as C, Error as E};
    match error {
        E::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => "x509: certificate signed by unknown authority".to_owned(),
        E::InvalidCertificate(C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. }) => {
            format!("x509: certificate has expired or is not yet valid: {error}")
        }
        E::InvalidCertificate(C::NotValidForName) => "x509: certificate is not valid for that name".to_owned(),
        E::InvalidCertificate(C::NotValidForNameContext { expected, presented }) => {
            let wanted = match expected {
                ServerName::DnsName(name) => name.as_ref().to_owned(),
                ServerName::IpAddress(a) => std::net::IpAddr::from(*a).to_string(),
                _ => String::new(),
            };
            format!("x509: certificate is valid for {}, not {wanted}", presented.join(", "))
        }
        other => format!("remote error: tls: {other}"),
    }
}
