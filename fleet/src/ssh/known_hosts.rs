//! What `known_hosts` files say about a host's key (sshd(8), `SSH_KNOWN_HOSTS` FILE FORMAT): text in, verdict out.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::hmac;
use russh::keys::ssh_key::HashAlg;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, PublicKey};

use super::pattern;

/// The port that `known_hosts` does not name.
const DEFAULT_PORT: u16 = 22;

/// What a host is called in `known_hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// A name or an address, in lower case, and a port.
    Host(String, u16),
    /// `HostKeyAlias`: as it is, whatever the port.
    Alias(String),
}

impl Name {
    pub(super) fn host(name: &str, port: u16) -> Self {
        Self::Host(name.to_ascii_lowercase(), port)
    }

    /// What a certificate must name.
    fn principal(&self) -> &str {
        match self {
            Self::Host(name, _) | Self::Alias(name) => name,
        }
    }

    /// The name without the port, for a host on another port than 22: OpenSSH looks there when nothing is known with it.
    fn without_port(&self) -> Option<&str> {
        match self {
            Self::Host(name, port) if *port != DEFAULT_PORT => Some(name),
            _ => None,
        }
    }

    /// The line that makes `key` known under this name; the name hashed when there is a salt for it (`HashKnownHosts`).
    pub(super) fn line(&self, key: &KeyData, salt: Option<[u8; 20]>) -> russh::keys::ssh_key::Result<String> {
        let name = match salt {
            None => self.to_string(),
            Some(salt) => format!(
                "|1|{}|{}",
                BASE64_STANDARD.encode(salt),
                BASE64_STANDARD
                    .encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt), self.to_string().as_bytes()))
            ),
        };
        Ok(format!("{name} {}", PublicKey::from(key.clone()).to_openssh()?.trim_end()))
    }
}

/// As in a line of `known_hosts`: `host`, or `[host]:port` for another port than 22.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name, port) if *port != DEFAULT_PORT => write!(f, "[{name}]:{port}"),
            Self::Host(name, _) | Self::Alias(name) => f.write_str(name),
        }
    }
}

/// A line of a file, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    file: Arc<PathBuf>,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What `known_hosts` says about the key that a host shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is known, or a known authority certifies it.
    Trusted,
    /// Nothing is known about this host, or only authorities.
    Unknown {
        /// Why the host's certificate, or the lack of one, does not make up for that; None where no authority is known.
        certificate: Option<String>,
        /// Whether it may be accepted on first use: not when the host shows a certificate that is not good.
        first_use: bool,
    },
    /// Other keys are known for this host, in these lines.
    Changed(Vec<Place>),
    /// The key, or the authority that certifies it, is marked as revoked.
    Revoked(Place),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    None,
    Authority,
    Revoked,
}

#[derive(Debug)]
enum Names {
    List(String),
    Hashed { salt: Vec<u8>, hash: Vec<u8> },
}

impl Names {
    fn parse(field: &str) -> Option<Self> {
        let Some(hashed) = field.strip_prefix('|') else { return Some(Self::List(field.to_ascii_lowercase())) };
        let (salt, hash) = hashed.strip_prefix("1|")?.split_once('|')?;
        let (salt, hash) = (BASE64_STANDARD.decode(salt).ok()?, BASE64_STANDARD.decode(hash).ok()?);
        (hash.len() == 20).then_some(Self::Hashed { salt, hash })
    }

    fn include(&self, name: &str) -> bool {
        match self {
            Self::List(patterns) => pattern::list_matches(patterns.split(','), name),
            Self::Hashed { salt, hash } => {
                hmac::verify(&hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt), name.as_bytes(), hash).is_ok()
            }
        }
    }
}

#[derive(Debug)]
struct Line {
    place: Place,
    marker: Marker,
    names: Names,
    key: KeyData,
}

/// Why a line cannot be used; None for a line that says nothing (empty, a comment).
fn parse(line: &str) -> Result<Option<(Marker, Names, KeyData)>, &'static str> {
    let mut fields = line.split([' ', '\t']).filter(|f| !f.is_empty());
    let Some(mut first) = fields.next() else { return Ok(None) };
    if first.starts_with('#') {
        return Ok(None);
    }
    let marker = match first {
        "@cert-authority" => Marker::Authority,
        "@revoked" => Marker::Revoked,
        _ if first.starts_with('@') => return Err("an unknown marker"),
        _ => Marker::None,
    };
    if marker != Marker::None {
        first = fields.next().ok_or("no host")?;
    }
    let names = Names::parse(first).ok_or("not a hashed name")?;
    let (kind, key) = (fields.next().ok_or("no key")?, fields.next().ok_or("no key")?);
    let key = PublicKey::from_openssh(&format!("{kind} {key}")).map_err(|_| "not a key")?;
    Ok(Some((marker, names, key.into())))
}

/// Whether a key is of an algorithm; RSA whatever the hash.
pub(super) fn is_of(key: &KeyData, algorithm: &Algorithm) -> bool {
    match (key.algorithm(), algorithm) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
        (of_key, algorithm) => of_key == *algorithm,
    }
}

/// All that the `known_hosts` files say.
#[derive(Debug, Default)]
pub(super) struct KnownHosts {
    lines: Vec<Line>,
    /// What could not be read, for the user: one sentence each.
    pub(super) warnings: Vec<String>,
}

impl KnownHosts {
    /// Adds what a file says. A line that cannot be read is skipped, and said in [`Self::warnings`].
    pub(super) fn add(&mut self, file: &Path, text: &str) {
        let file = Arc::new(file.to_owned());
        for (n, line) in text.lines().enumerate() {
            let place = Place { file: file.clone(), line: n + 1 };
            match parse(line) {
                Ok(None) => {}
                Ok(Some((marker, names, key))) => self.lines.push(Line { place, marker, names, key }),
                Err(why) => self.warnings.push(format!("{place} is skipped: {why}")),
            }
        }
    }

    /// What they say about one host.
    pub(super) fn of<'a>(&'a self, name: &'a Name) -> Known<'a> {
        let lines = |name: &str| self.lines.iter().filter(|l| l.names.include(name)).collect();
        Known { name, lines: lines(&name.to_string()), without_port: name.without_port().map(lines).unwrap_or_default() }
    }
}

/// What is known about one host.
#[derive(Debug)]
pub(super) struct Known<'a> {
    name: &'a Name,
    lines: Vec<&'a Line>,
    without_port: Vec<&'a Line>,
}

impl Known<'_> {
    fn every(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().chain(&self.without_port).copied()
    }

    /// Whether an authority is known for it: then its certificate is worth asking for.
    pub(super) fn has_authority(&self) -> bool {
        self.every().any(|l| l.marker == Marker::Authority)
    }

    /// Whether a key of this algorithm is known for it.
    pub(super) fn has_type(&self, algorithm: &Algorithm) -> bool {
        self.every().any(|l| l.marker == Marker::None && is_of(&l.key, algorithm))
    }

    /// Where a key that the host shows is marked as revoked.
    pub(super) fn revoked(&self, key: &KeyData) -> Option<Place> {
        self.every().find(|l| l.marker == Marker::Revoked && l.key == *key).map(|l| l.place.clone())
    }

    /// Judges the key that the host showed: bare, or in a certificate. `now` in seconds since 1970.
    ///
    /// As OpenSSH does it (sshconnect.c, `check_host_key`): what is revoked is refused before anything else; a
    /// certificate that is not good, or that no known authority signed, is no more than the key in it.
    pub(super) fn judge(&self, key: &KeyData, certificate: Option<&Certificate>, now: u64) -> Verdict {
        let authority = certificate.map(Certificate::signature_key);
        if let Some(place) = [Some(key), authority].into_iter().flatten().find_map(|k| self.revoked(k)) {
            return Verdict::Revoked(place);
        }
        let problem = match certificate {
            Some(certificate) => match self.check(certificate, now) {
                Ok(()) => return Verdict::Trusted,
                Err(why) => Some(why),
            },
            None => self
                .every()
                .find(|l| l.marker == Marker::Authority)
                .map(|l| format!("a certificate authority is known for it ({}), but it shows a bare key, without a certificate", l.place)),
        };
        let plain = |lines: &[&Line]| {
            lines.iter().filter(|l| l.marker == Marker::None).map(|l| (l.key == *key, l.place.clone())).collect::<Vec<_>>()
        };
        let (known, elsewhere) = (plain(&self.lines), plain(&self.without_port));
        if known.iter().any(|(same, _)| *same) || (known.is_empty() && elsewhere.iter().any(|(same, _)| *same)) {
            Verdict::Trusted
        } else if known.is_empty() {
            Verdict::Unknown { certificate: problem, first_use: certificate.is_none() }
        } else {
            Verdict::Changed(known.into_iter().map(|(_, place)| place).collect())
        }
    }

    /// Why a certificate does not vouch for this host (OpenSSH's PROTOCOL.certkeys).
    fn check(&self, certificate: &Certificate, now: u64) -> Result<(), String> {
        let signer = certificate.signature_key();
        let fingerprint = signer.fingerprint(HashAlg::Sha256);
        if !self.every().any(|l| l.marker == Marker::Authority && l.key == *signer) {
            return Err(format!("its certificate is signed by {fingerprint}, which is not a known authority for it"));
        }
        let bad = |why: String| Err(format!("its certificate, signed by {fingerprint}, is not good: {why}"));
        if certificate.cert_type() != CertType::Host {
            return bad("it is for users, not for hosts".to_owned());
        }
        // Sign with SHA-1, and anybody with enough money makes such a certificate (OpenSSH's CASignatureAlgorithms).
        if matches!(certificate.signature().algorithm(), Algorithm::Rsa { hash: None } | Algorithm::Dsa) {
            return bad(format!("the signature's algorithm {} is too weak", certificate.signature().algorithm()));
        }
        if now < certificate.valid_after() {
            return bad("it is not valid yet (are the clocks right?)".to_owned());
        }
        if now >= certificate.valid_before() {
            return bad("it has expired (are the clocks right?)".to_owned());
        }
        let (principal, principals) = (self.name.principal(), certificate.valid_principals());
        if !principals.is_empty() && !principals.iter().any(|p| p == principal) {
            return bad(format!("it is for {}, not for {principal}", principals.join(", ")));
        }
        if let Some(option) = certificate.critical_options().keys().next() {
            return bad(format!("it has a critical option that is not known here: {option:?}"));
        }
        certificate.validate_at(now, [&fingerprint]).or_else(|_| bad("the signature does not fit".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use russh::keys::ssh_key::certificate::Builder;
    use russh::keys::{PrivateKey, key::safe_rng};

    use super::*;

    const NOW: u64 = 2_000_000_000;

    fn key() -> PrivateKey {
        PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap()
    }

    fn public(key: &PrivateKey) -> String {
        key.public_key().to_openssh().unwrap()
    }

    fn known(text: &str) -> KnownHosts {
        let mut known = KnownHosts::default();
        known.add(Path::new("known_hosts"), text);
        known
    }

    fn judge(text: &str, name: &Name, key: &PrivateKey) -> Verdict {
        known(text).of(name).judge(key.public_key().key_data(), None, NOW)
    }

    fn places(lines: &[usize]) -> Vec<Place> {
        lines.iter().map(|line| Place { file: Arc::new("known_hosts".into()), line: *line }).collect()
    }

    const UNKNOWN: Verdict = Verdict::Unknown { certificate: None, first_use: true };

    #[test]
    fn lines_that_cannot_be_read_are_skipped_and_said() {
        let key = key();
        let text = format!(
            "# a comment\n\n  # another\nh1\n@revoked\n@unknown h1 {0}\n|1|xx h1\nh1 ssh-ed25519 AAAA\nh1 ssh-rsa {1}\n h1\t{0}\tcomment # more\n",
            public(&key),
            public(&key).split(' ').nth(1).unwrap()
        );
        assert_eq!(judge(&text, &Name::host("h1", 22), &key), Verdict::Trusted);
        let warnings = known(&text).warnings.join("\n");
        insta::assert_snapshot!(warnings, @"
        known_hosts:4 is skipped: no key
        known_hosts:5 is skipped: no host
        known_hosts:6 is skipped: an unknown marker
        known_hosts:7 is skipped: not a hashed name
        known_hosts:8 is skipped: not a key
        known_hosts:9 is skipped: not a key
        ");
    }

    #[test]
    fn several_files_count_as_one() {
        let (right, old) = (key(), key());
        let mut known = known(&format!("h1 {}\n", public(&old)));
        known.add(Path::new("/etc/ssh/ssh_known_hosts"), &format!("h1 {}\n", public(&right)));
        let name = Name::host("H1", 22);
        assert_eq!(known.of(&name).judge(right.public_key().key_data(), None, NOW), Verdict::Trusted);
        known.add(Path::new("more"), &format!("@revoked * {}\n", public(&right)));
        let place = Place { file: Arc::new("more".into()), line: 1 };
        assert_eq!(known.of(&name).judge(right.public_key().key_data(), None, NOW), Verdict::Revoked(place));
    }

    #[test]
    fn a_revocation_counts_whatever_separates_it() {
        let key = key();
        let text = format!("h1 {0}\n@revoked\th1\t{0}\n", public(&key));
        assert_eq!(judge(&text, &Name::host("h1", 22), &key), Verdict::Revoked(places(&[2]).remove(0)));
    }

    #[test]
    fn the_known_types_are_known() {
        let name = Name::host("h1", 2222);
        let text = format!("[h1]:2222 {0}\n@cert-authority h2 {0}\n", public(&key()));
        let known = known(&text);
        assert!(known.of(&name).has_type(&Algorithm::Ed25519) && !known.of(&name).has_type(&Algorithm::Rsa { hash: None }));
        assert!(!known.of(&name).has_authority() && known.of(&Name::host("h2", 2222)).has_authority());
    }

    #[test]
    fn a_certificate_with_another_signature_is_not_good() {
        let (host, authority) = (key(), key());
        let mut builder = Builder::new_with_random_nonce(&mut safe_rng(), host.public_key().clone(), 0, u64::MAX).unwrap();
        builder.cert_type(CertType::Host).unwrap();
        builder.valid_principal("h1").unwrap();
        let good = builder.sign(&authority).unwrap();
        let text = format!("@cert-authority *.example,h? {}\n", public(&authority));
        let judge =
            |certificate: &Certificate, name: &Name| known(&text).of(name).judge(host.public_key().key_data(), Some(certificate), NOW);
        assert_eq!(judge(&good, &Name::host("h1", 22)), Verdict::Trusted);
        assert!(matches!(judge(&good, &Name::host("h2", 22)), Verdict::Unknown { first_use: false, .. }));
        assert_eq!(judge(&good, &Name::Alias("h1".into())), Verdict::Trusted);

        // The same bytes, one bit of the signature turned over.
        let mut bytes = good.to_bytes().unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let forged = Certificate::from_bytes(&bytes).unwrap();
        let Verdict::Unknown { certificate: Some(why), first_use: false } = judge(&forged, &Name::host("h1", 22)) else { panic!() };
        assert!(why.ends_with("the signature does not fit"), "{why}");
    }

    proptest! {
        /// Line by line, against what the man page says in words.
        #[test]
        fn judged_as_the_man_page_says(
            lines in prop::collection::vec((0..3_u8, prop::sample::select(vec!["h1", "h2", "h1,h2", "*", "*,!h1", "!h1", "H1", "[h1]:22"]), 0..3_usize), 0..6)
        ) {
            let keys = [key(), key(), key()];
            let text = lines.iter().map(|(marker, names, key)| {
                format!("{}{names} {}", ["", "@revoked ", "@cert-authority "][usize::from(*marker)], public(&keys[*key]))
            }).collect::<Vec<_>>().join("\n");
            let matches = |names: &str| matches!(names, "h1" | "h1,h2" | "*" | "H1");
            let of = |marker: u8| lines.iter().enumerate().filter(move |(_, l)| l.0 == marker && matches(l.1)).map(|(n, l)| (n + 1, l.2));
            let verdict = judge(&text, &Name::host("h1", 22), &keys[0]);
            if let Some((line, _)) = of(1).find(|(_, key)| *key == 0) {
                prop_assert_eq!(verdict, Verdict::Revoked(places(&[line]).remove(0)));
            } else if of(0).any(|(_, key)| key == 0) {
                prop_assert_eq!(verdict, Verdict::Trusted);
            } else if of(0).count() > 0 {
                prop_assert_eq!(verdict, Verdict::Changed(places(&of(0).map(|(n, _)| n).collect::<Vec<_>>())));
            } else {
                let Verdict::Unknown { certificate, first_use: true } = verdict else { panic!("{verdict:?}") };
                prop_assert_eq!(certificate.is_some(), of(2).count() > 0);
            }
        }

        #[test]
        fn a_written_line_is_found_again_and_only_for_its_name(
            name in "[a-z0-9.:-]{1,20}", port in 1..=u16::MAX, other in "[a-z0-9.:-]{1,20}", salt in prop::option::of(any::<[u8; 20]>())
        ) {
            let key = key();
            let line = Name::host(&name, port).line(key.public_key().key_data(), salt).unwrap();
            prop_assert_eq!(judge(&line, &Name::host(&name.to_ascii_uppercase(), port), &key), Verdict::Trusted);
            if other != name {
                prop_assert_eq!(judge(&line, &Name::host(&other, port), &key), UNKNOWN);
            }
            if salt.is_some() {
                prop_assert!(line.starts_with("|1|"), "{}", line);
            }
        }

        #[test]
        fn no_text_makes_a_key_trusted_that_is_not_in_it(text in "([@|!*#, \t\n1a-z]|ssh-ed25519|cert-authority|revoked){0,60}") {
            prop_assert_ne!(judge(&text, &Name::host("h1", 22), &key()), Verdict::Trusted);
        }
    }
}
