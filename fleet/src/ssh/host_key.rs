//! Whether the host at the other end is the one that is meant.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use node::{Context as _, Error, Result};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::ssh_key::{EcdsaCurve, Fingerprint};
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Preferred, client};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::known_hosts::{Known, KnownHosts, Verdict, is_of};
use super::route::Hop;

/// The types of keys we take, the best first; RSA never with SHA-1.
const TYPES: [Algorithm; 6] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

/// The one key that a host must show: `ssh-ed25519 AAAA…`, or its fingerprint `SHA256:…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey(Pin);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pin {
    Key(PublicKey),
    Fingerprint(Fingerprint),
}

impl HostKey {
    fn is(&self, key: &KeyData) -> bool {
        match &self.0 {
            Pin::Key(pinned) => pinned.key_data() == key,
            Pin::Fingerprint(pinned) => *pinned == key.fingerprint(pinned.algorithm()),
        }
    }

    fn has_type(&self, algorithm: &Algorithm) -> bool {
        matches!(&self.0, Pin::Key(key) if is_of(key.key_data(), algorithm))
    }
}

impl FromStr for HostKey {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let pin = if text.starts_with("SHA256:") {
            text.parse().ok().map(Pin::Fingerprint)
        } else {
            let mut fields = text.split_ascii_whitespace();
            let key = fields.next().zip(fields.next()).and_then(|(kind, key)| PublicKey::from_openssh(&format!("{kind} {key}")).ok());
            key.map(Pin::Key)
        };
        pin.map(Self).ok_or_else(|| {
            Error::invalid(format!("{text:?} is not a host's key"))
                .hint("write the key (as in /etc/ssh/ssh_host_ed25519_key.pub on the host) or its fingerprint, SHA256:…")
        })
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Pin::Key(key) => write!(f, "{}", key.fingerprint(HashAlg::Sha256)),
            Pin::Fingerprint(fingerprint) => fingerprint.fmt(f),
        }
    }
}

/// Checks the key that one host shows.
pub(super) struct Verifier {
    hop: Hop,
    known: KnownHosts,
    accept_new: bool,
    /// The connection has this as long as it lasts.
    over: DropGuard,
}

impl Verifier {
    /// Reads what is known.
    ///
    /// # Errors
    /// Failed when a file is there, but cannot be read.
    pub(super) fn new(hop: &Hop, accept_new: bool) -> Result<Self> {
        let known = read(hop)?;
        known.warnings.iter().for_each(|w| warn_once(w));
        Ok(Self { hop: hop.clone(), known, accept_new, over: CancellationToken::new().drop_guard() })
    }

    /// Says when the connection is over.
    pub(super) fn over(&self) -> CancellationToken {
        self.over.token().clone()
    }

    /// The algorithms to offer: those of known keys first, so that a host with several keys shows the one that is known
    /// (as OpenSSH's `order_hostkeyalgs` does), and certificates where an authority is known.
    pub(super) fn preferred(&self) -> Preferred {
        let known = self.known.of(&self.hop.known_as);
        let mut types = TYPES.to_vec();
        let certificates = if let Some(pin) = &self.hop.pinned {
            types.sort_by_key(|t| !pin.has_type(t));
            Vec::new()
        } else {
            types.sort_by_key(|t| !known.has_type(t));
            if known.has_authority() { TYPES.to_vec() } else { Vec::new() }
        };
        Preferred { key: types.into(), host_key_certificates: certificates.into(), ..Preferred::default() }
    }

    fn check(&self, key: &KeyData, certificate: Option<&Certificate>) -> Result<()> {
        let Hop { name, known_as, .. } = &self.hop;
        let shown = Shown { name, key };
        let known = self.known.of(known_as);
        if let Some(pin) = &self.hop.pinned {
            return match known.revoked(key) {
                Some(place) => Err(shown.revoked(&place.to_string())),
                None if pin.is(key) => Ok(()),
                None => Err(Error::refused(format!("{name} shows the {}, but {pin} is pinned for it", shown.key()))
                    .hint("if that is the fingerprint of the host's key of another type, pin the whole key instead; if the host was installed anew, pin its new key; otherwise somebody else answers in its place")),
            };
        }
        match shown.judge(&known, certificate)? {
            Verdict::Unknown { first_use: true, .. } if self.accept_new => self.accept(&shown),
            verdict => self.answer(&shown, verdict),
        }
    }

    fn answer(&self, shown: &Shown<'_>, verdict: Verdict) -> Result<()> {
        let (Hop { name, known_as, new_keys, .. }, key) = (&self.hop, shown.key());
        match verdict {
            Verdict::Trusted => Ok(()),
            Verdict::Revoked(place) => Err(shown.revoked(&place.to_string())),
            Verdict::Changed(places) => {
                let places = places.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Err(Error::refused(format!("{name} shows the {key}, but known_hosts has another key for it: {places}")).hint(format!(
                    "if the host was installed anew, remove what is old (ssh-keygen -R '{known_as}'); otherwise somebody else answers in its place"
                )))
            }
            Verdict::Unknown { certificate, first_use } => {
                let why = certificate.map(|why| format!(": {why}")).unwrap_or_default();
                let file = new_keys.as_ref().map_or("a known_hosts file".to_owned(), |f| f.display().to_string());
                let line = known_as.line(shown.key, None).context(format!("cannot write the key of {name} down"))?;
                let or = if first_use { ", or accept keys on first use with --accept-new-host-keys" } else { "" };
                Err(Error::refused(format!("the {key} of {name} is not known{why}")).hint(format!(
                    "compare it with what `ssh-keygen -lf /etc/ssh/ssh_host_{}_key.pub` says on {name}; then add this line to {file}{or}:\n{line}",
                    shown.file()
                )))
            }
        }
    }

    /// Makes a key known on first use.
    fn accept(&self, shown: &Shown<'_>) -> Result<()> {
        // One at a time, and what was added since is looked at first: many connections may lead over one jump host.
        static ADDING: Mutex<()> = Mutex::new(());
        let _adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);

        let Hop { name, known_as, new_keys, hash_names, .. } = &self.hop;
        let verdict = shown.judge(&read(&self.hop)?.of(known_as), None)?;
        if !matches!(verdict, Verdict::Unknown { .. }) {
            return self.answer(shown, verdict);
        }
        let file = new_keys.as_ref().ok_or_else(|| Error::failed(format!("there is no known_hosts file to write the key of {name} to")))?;
        let salt = if *hash_names { Some(random()?) } else { None };
        let line = known_as.line(shown.key, salt).context(format!("cannot write the key of {name} down"))?;
        append(file, &line).context(format!("cannot add the key of {name} to {}", file.display()))?;
        tracing::warn!("{name}: its {} was not known; it is now in {}", shown.key(), file.display());
        Ok(())
    }
}

/// A key that a host showed.
struct Shown<'a> {
    name: &'a str,
    key: &'a KeyData,
}

impl Shown<'_> {
    fn key(&self) -> String {
        format!("{} key {}", self.key.algorithm(), self.key.fingerprint(HashAlg::Sha256))
    }

    /// As sshd names the file of such a key.
    fn file(&self) -> &'static str {
        match self.key {
            KeyData::Ecdsa(_) => "ecdsa",
            KeyData::Rsa(_) => "rsa",
            _ => "ed25519",
        }
    }

    fn judge(&self, known: &Known<'_>, certificate: Option<&Certificate>) -> Result<Verdict> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
        Ok(known.judge(self.key, certificate, now))
    }

    fn revoked(&self, place: &str) -> Error {
        Error::refused(format!("the {} of {}, or the authority behind it, is marked as revoked: {place}", self.key(), self.name))
            .hint("somebody may have the private key: find out why it was revoked, and give the host a new one")
    }
}

fn read(hop: &Hop) -> Result<KnownHosts> {
    let mut known = KnownHosts::default();
    for file in &hop.known_hosts {
        match fs::read(file) {
            Ok(bytes) => known.add(file, &String::from_utf8_lossy(&bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).context(format!("cannot read {}, and so not verify {}", file.display(), hop.name)),
        }
    }
    Ok(known)
}

/// Adds a line in one write, so that what others add at the same time stays, and is never torn.
fn append(file: &Path, line: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut file = File::options().read(true).append(true).create(true).mode(0o600).open(file)?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    let before = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{before}{line}\n").as_bytes())
}

fn random() -> Result<[u8; 20]> {
    let mut salt = [0; 20];
    getrandom::fill(&mut salt).map_err(|e| Error::failed(format!("no randomness: {e}")))?;
    Ok(salt)
}

/// Says something about a file once, however many connections read it.
pub(super) fn warn_once(warning: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(warning.to_owned()) {
        tracing::warn!("{warning}");
    }
}

/// Why a connection did not come about.
#[derive(Debug)]
pub(super) enum Failure {
    Ssh(russh::Error),
    Refused(Error),
}

impl From<russh::Error> for Failure {
    fn from(e: russh::Error) -> Self {
        Self::Ssh(e)
    }
}

impl client::Handler for Verifier {
    type Error = Failure;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Failure> {
        self.check(shown.public_key().key_data(), shown.certificate()).map_err(Failure::Refused)?;
        Ok(true)
    }
}
