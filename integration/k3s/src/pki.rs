//! Certificate authorities and certificates, at k3s's paths and with k3s's names.

use crate::layout::{Layout, write};
use crate::token::random_hex;
use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::net::IpAddr;
use std::path::Path;

/// The authorities: file name under `server/tls` and common name.
const AUTHORITIES: &[(&str, &str)] = &[
    ("client-ca", "k3s-client-ca"),
    ("server-ca", "k3s-server-ca"),
    ("request-header-ca", "k3s-request-header-ca"),
    ("etcd/server-ca", "etcd-server-ca"),
    ("etcd/peer-ca", "etcd-peer-ca"),
];

/// Client certificates of the control plane: file, common name, organisation.
const CLIENTS: &[(&str, &str, &str)] = &[
    ("client-admin", "system:admin", "system:masters"),
    ("client-controller", "system:kube-controller-manager", ""),
    ("client-scheduler", "system:kube-scheduler", ""),
    ("client-kube-apiserver", "system:apiserver", "system:masters"),
    ("client-kube-proxy", "system:kube-proxy", ""),
    ("client-k3s-controller", "system:k3s-controller", ""),
];

/// What a joining server gets from the first one: k3s's names of the files, and their paths
/// under `server`.
pub const BOOTSTRAP: &[(&str, &str)] = &[
    ("ServerCA", "tls/server-ca.crt"),
    ("ServerCAKey", "tls/server-ca.key"),
    ("ClientCA", "tls/client-ca.crt"),
    ("ClientCAKey", "tls/client-ca.key"),
    ("ServiceKey", "tls/service.key"),
    ("PasswdFile", "cred/passwd"),
    ("RequestHeaderCA", "tls/request-header-ca.crt"),
    ("RequestHeaderCAKey", "tls/request-header-ca.key"),
    ("IPSECKey", "cred/ipsec.psk"),
    ("ETCDServerCA", "tls/etcd/server-ca.crt"),
    ("ETCDServerCAKey", "tls/etcd/server-ca.key"),
    ("ETCDPeerCA", "tls/etcd/peer-ca.crt"),
    ("ETCDPeerCAKey", "tls/etcd/peer-ca.key"),
];

/// Names and addresses that a certificate is good for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sans {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Sans {
    /// Sorts texts into addresses and names.
    pub fn new<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        let mut sans = Self::default();
        for text in texts {
            match text.as_ref().parse() {
                Ok(a) => sans.addresses.push(a),
                Err(_) => sans.names.push(text.as_ref().to_owned()),
            }
        }
        sans
    }
}

/// What a certificate is to say.
pub struct Request<'a> {
    /// Common name.
    pub name: &'a str,
    /// Organisation (a Kubernetes group); empty for none.
    pub organisation: &'a str,
    /// Names and addresses.
    pub sans: Sans,
    /// `true`: for servers.
    pub server: bool,
    /// `true`: for clients.
    pub client: bool,
}

/// Makes whatever is missing under `server/tls`, `server/cred/ipsec.psk` included. Authorities
/// and keys that are there stay; certificates are made anew when their authority is new.
///
/// # Errors
/// A file cannot be read, parsed or written.
pub fn ensure_server(layout: &Layout, api: &Sans, etcd: &Sans) -> Result<()> {
    for (file, name) in AUTHORITIES {
        let (crt, key) = (layout.tls(&format!("{file}.crt")), layout.tls(&format!("{file}.key")));
        if !(crt.exists() && key.exists()) {
            let (own, pair) = authority(name)?;
            write(&key, pair.as_bytes(), 0o600)?;
            write(&crt, own.as_bytes(), 0o644)?;
        }
    }
    let service = layout.tls("service.key");
    if !service.exists() {
        write(&service, KeyPair::generate()?.serialize_pem().as_bytes(), 0o600)?;
    }
    // Kubernetes reads a public key only from a form of private key that rcgen does not write.
    write(&layout.tls("service.pub"), KeyPair::from_pem(&read(&service)?)?.public_key_pem().as_bytes(), 0o644)?;
    let psk = layout.cred("ipsec.psk");
    if !psk.exists() {
        write(&psk, format!("{}\n", random_hex(48)?).as_bytes(), 0o600)?;
    }
    for (file, name, organisation) in CLIENTS {
        let request = Request { name, organisation, sans: Sans::default(), server: false, client: true };
        ensure(layout, file, "client-ca", &request)?;
    }
    let proxy = Request { name: "system:auth-proxy", organisation: "", sans: Sans::default(), server: false, client: true };
    ensure(layout, "client-auth-proxy", "request-header-ca", &proxy)?;
    ensure(
        layout,
        "serving-kube-apiserver",
        "server-ca",
        &Request { name: "kube-apiserver", organisation: "", sans: api.clone(), server: true, client: false },
    )?;
    ensure(
        layout,
        "etcd/client",
        "etcd/server-ca",
        &Request { name: "etcd-client", organisation: "", sans: Sans::default(), server: false, client: true },
    )?;
    ensure(
        layout,
        "etcd/server-client",
        "etcd/server-ca",
        &Request { name: "etcd-server", organisation: "", sans: etcd.clone(), server: true, client: true },
    )?;
    ensure(
        layout,
        "etcd/peer-server-client",
        "etcd/peer-ca",
        &Request { name: "etcd-peer", organisation: "", sans: etcd.clone(), server: true, client: true },
    )?;
    for key in ["client-kubelet", "serving-kubelet"] {
        let path = layout.tls(&format!("{key}.key"));
        if !path.exists() {
            write(&path, KeyPair::generate()?.serialize_pem().as_bytes(), 0o600)?;
        }
    }
    Ok(())
}

/// Makes a certificate and key unless those on disk come from this authority, are good for the
/// same names and have 90 days left (k3s's own limit).
fn ensure(layout: &Layout, file: &str, authority: &str, request: &Request<'_>) -> Result<()> {
    let (crt, key) = (layout.tls(&format!("{file}.crt")), layout.tls(&format!("{file}.key")));
    if crt.exists() && key.exists() && still_good(&crt, &layout.tls(&format!("{authority}.crt")), request)? {
        return Ok(());
    }
    let pair = if key.exists() { KeyPair::from_pem(&read(&key)?)? } else { KeyPair::generate()? };
    let signed = sign(layout, authority, request, &pair)?;
    write(&key, pair.serialize_pem().as_bytes(), 0o600)?;
    write(&crt, signed.as_bytes(), 0o644)
}

fn still_good(crt: &Path, authority: &Path, request: &Request<'_>) -> Result<bool> {
    use x509_parser::prelude::{GeneralName, parse_x509_pem};
    let (text, ca_text) = (std::fs::read(crt)?, std::fs::read(authority)?);
    let (Ok((_, pem)), Ok((_, ca_pem))) = (parse_x509_pem(&text), parse_x509_pem(&ca_text)) else {
        return Ok(false);
    };
    let (Ok(leaf), Ok(ca)) = (pem.parse_x509(), ca_pem.parse_x509()) else {
        return Ok(false);
    };
    let soon = (time::OffsetDateTime::now_utc() + time::Duration::days(90)).unix_timestamp();
    if leaf.verify_signature(Some(ca.public_key())).is_err() || leaf.validity().not_after.timestamp() < soon {
        return Ok(false);
    }
    let mut has = Sans::default();
    if let Ok(Some(extension)) = leaf.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(n) => has.names.push((*n).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                        has.addresses.push(v4.into());
                    } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                        has.addresses.push(v6.into());
                    }
                }
                _ => {}
            }
        }
    }
    Ok(request.sans.names.iter().all(|n| has.names.contains(n)) && request.sans.addresses.iter().all(|a| has.addresses.contains(a)))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = time::OffsetDateTime::now_utc();
    // An hour's grace, since the hosts' clocks differ.
    params.not_before = now - time::Duration::hours(1);
    params.not_after = now + time::Duration::days(days);
}

fn authority(name: &str) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{name}@{now}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
    validity(&mut params, 3650);
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Signs a certificate for `key` with the authority `server/tls/<authority>`; PEM.
///
/// # Errors
/// The authority cannot be read, or the request is not one.
pub fn sign(layout: &Layout, authority: &str, request: &Request<'_>, key: &KeyPair) -> Result<String> {
    let ca = read(&layout.tls(&format!("{authority}.crt")))?;
    let ca_key = KeyPair::from_pem(&read(&layout.tls(&format!("{authority}.key")))?)?;
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !request.organisation.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, request.organisation);
    }
    params.distinguished_name.push(DnType::CommonName, request.name);
    for name in &request.sans.names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    for address in &request.sans.addresses {
        params.subject_alt_names.push(SanType::IpAddress(*address));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    if request.server {
        params.extended_key_usages.push(Usage::ServerAuth);
    }
    if request.client {
        params.extended_key_usages.push(Usage::ClientAuth);
    }
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, 365);
    Ok(params.signed_by(key, &issuer)?.pem() + &ca)
}

/// A kubelet's certificate, its authority and its key, one after the other, as k3s hands them out.
///
/// # Errors
/// As [`sign`].
pub fn kubelet_bundle(layout: &Layout, key_file: &str, authority: &str, request: &Request<'_>) -> Result<String> {
    let pem = read(&layout.tls(key_file))?;
    Ok(sign(layout, authority, request, &KeyPair::from_pem(&pem)?)? + &pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(dir: &tempfile::TempDir, sans: &[&str]) -> Layout {
        let layout = Layout::new(dir.path());
        ensure_server(&layout, &Sans::new(sans), &Sans::new(["127.0.0.1"])).unwrap();
        layout
    }

    #[test]
    fn made_once_and_again_only_for_new_names() {
        let dir = tempfile::tempdir().unwrap();
        let layout = made(&dir, &["10.0.0.1", "kubernetes"]);
        let files = ["server-ca.crt", "serving-kube-apiserver.crt", "client-admin.crt"];
        let first: Vec<_> = files.iter().map(|f| std::fs::read(layout.tls(f)).unwrap()).collect();
        made(&dir, &["10.0.0.1"]);
        let second: Vec<_> = files.iter().map(|f| std::fs::read(layout.tls(f)).unwrap()).collect();
        assert_eq!(first, second);
        made(&dir, &["10.0.0.1", "10.0.0.10"]);
        let third: Vec<_> = files.iter().map(|f| std::fs::read(layout.tls(f)).unwrap()).collect();
        assert_eq!(first[0], third[0]);
        assert_ne!(first[1], third[1]);
        assert_eq!(first[2], third[2]);
    }

    #[test]
    fn a_new_authority_means_new_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let layout = made(&dir, &["10.0.0.1"]);
        let before = std::fs::read(layout.tls("client-admin.crt")).unwrap();
        std::fs::remove_file(layout.tls("client-ca.crt")).unwrap();
        made(&dir, &["10.0.0.1"]);
        assert_ne!(before, std::fs::read(layout.tls("client-admin.crt")).unwrap());
    }

    #[test]
    fn keys_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let layout = made(&dir, &["10.0.0.1"]);
        for key in ["server-ca.key", "client-admin.key", "service.key", "etcd/peer-ca.key"] {
            let mode = std::fs::metadata(layout.tls(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }
}
