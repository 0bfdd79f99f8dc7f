//! Logging in: the keys of the agent and of files, in OpenSSH's order, until the host takes one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use node::Error;
use russh::client::{self, AuthResult};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_encoding::Encode as _;
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Certificate, HashAlg, PrivateKey, PublicKey, decode_secret_key};
use russh::{MethodKind, Signer};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::passphrase::Passphrases;
use super::patience::Patience;
use super::route::{Hop, Identities};

/// How long an agent may take to say which keys it has.
const AGENT_LISTS: Duration = Duration::from_secs(5);

/// How long an agent may take to sign; its user may have to confirm. sshd does not wait longer (`LoginGraceTime`).
const AGENT_SIGNS: Duration = Duration::from_secs(120);

type Agent = AgentClient<UnixStream>;

/// A key to log in with.
struct Candidate {
    /// For messages: where it is from.
    label: String,
    public: PublicKey,
    certificate: Option<Certificate>,
    /// None: the agent signs.
    file: Option<KeyFile>,
}

#[derive(Clone)]
struct KeyFile {
    path: PathBuf,
    secret: Secret,
}

/// The private half, as far as it could be read.
#[derive(Clone)]
enum Secret {
    Open(Arc<PrivateKey>),
    /// The file's text.
    Encrypted(String),
}

/// What was tried, for the error when nothing works.
#[derive(Default)]
struct Tried {
    refused: Vec<String>,
    /// Keys that could not be tried, and why.
    failed: Vec<String>,
    hint: Option<String>,
}

/// Logs in on `session` as the hop's user.
///
/// # Errors
/// Failed when no key is taken: which were tried, and what the host would take.
pub(super) async fn login<H: client::Handler>(
    session: &mut client::Handle<H>,
    hop: &Hop,
    passphrases: &Passphrases,
    patience: &Patience,
) -> node::Result<()> {
    let mut tried = Tried::default();
    let (mut agent, held) = agent_keys(&hop.identities, &mut tried).await;
    let files = key_files(&hop.identities, passphrases, patience, &mut tried).await;
    let mut methods = None;

    for candidate in in_order(held, files, hop.identities.only) {
        let hash = if candidate.public.algorithm().is_rsa() {
            match session.best_supported_rsa_hash().await {
                // Without server-sig-algs (RFC 8308) nothing is known: then the stronger one.
                Ok(None) => Some(HashAlg::Sha512),
                Ok(Some(Some(hash))) => Some(hash),
                Ok(Some(None)) => {
                    tried.failed.push(format!("{}: the host takes RSA keys with SHA-1 only", candidate.label));
                    continue;
                }
                Err(_) => break,
            }
        } else {
            None
        };
        let mut signer = KeySigner { agent: agent.as_mut(), file: candidate.file.as_ref(), passphrases, patience };
        let result = match candidate.certificate {
            Some(certificate) => session.authenticate_certificate_with(&hop.user, certificate, hash, &mut signer).await,
            None => session.authenticate_publickey_with(&hop.user, candidate.public, hash, &mut signer).await,
        };
        match result {
            Ok(AuthResult::Success) => return Ok(()),
            Ok(AuthResult::Failure { remaining_methods, partial_success: true }) => {
                return Err(Error::failed(format!(
                    "{} takes the {}, but wants more than a key from {}: {}",
                    hop.name,
                    candidate.label,
                    hop.user,
                    names(&remaining_methods)
                ))
                .hint("smartup logs in with keys only: let this user in with a key alone (AuthenticationMethods in sshd_config)"));
            }
            Ok(AuthResult::Failure { remaining_methods, .. }) => {
                tried.refused.push(candidate.label);
                if session.is_closed() {
                    break;
                }
                let others = !remaining_methods.contains(&MethodKind::PublicKey);
                methods = Some(remaining_methods);
                if others {
                    break;
                }
            }
            Err(SignError(e)) => {
                tried.failed.push(format!("{}: {}", candidate.label, e.chain()));
                tried.hint = tried.hint.or(e.hint);
            }
        }
    }
    Err(tried.into_error(hop, session.is_closed(), methods.map(|m| names(&m))))
}

fn names(methods: &[MethodKind]) -> String {
    methods.iter().map(<&str>::from).collect::<Vec<_>>().join(", ")
}

impl Tried {
    fn into_error(self, hop: &Hop, closed: bool, methods: Option<String>) -> Error {
        let Hop { name, user, .. } = hop;
        let mut why = Vec::new();
        if !self.refused.is_empty() {
            let hung_up = if closed { ", and then hung up" } else { "" };
            why.push(format!("it refused the {}{hung_up}", self.refused.join(", the ")));
        } else if self.failed.is_empty() {
            why.push("there is no key to try".to_owned());
        }
        why.extend(methods.filter(|m| m != "publickey").map(|m| format!("it takes: {m}")));
        why.extend(self.failed);
        let hint = self.hint.unwrap_or_else(|| {
            if closed && self.refused.len() > 1 {
                "a host hangs up after a few wrong keys: name the right one (IdentityFile and `IdentitiesOnly yes` in ~/.ssh/config)"
                    .to_owned()
            } else {
                format!("does `ssh {user}@{name}` work? The public key belongs into {user}'s ~/.ssh/authorized_keys on {name}")
            }
        });
        Error::failed(format!("{name} does not let {user} in: {}", why.join("; "))).hint(hint)
    }
}

/// As OpenSSH orders them: what the agent has of the named files, the agent's other keys, then the files themselves.
fn in_order(agent: Vec<Candidate>, files: Vec<Candidate>, only: bool) -> Vec<Candidate> {
    let is_named = |c: &Candidate| files.iter().any(|f| f.public.key_data() == c.public.key_data());
    let (named, others): (Vec<_>, Vec<_>) = agent.into_iter().partition(is_named);
    let mut all = named;
    if !only {
        all.extend(others);
    }
    let held: Vec<KeyData> = all.iter().filter(|c| c.certificate.is_none()).map(|c| c.public.key_data().clone()).collect();
    // A public half alone says which of the agent's keys to take; a key that the agent has needs no second try.
    all.extend(files.into_iter().filter(|f| f.file.is_some() && (f.certificate.is_some() || !held.contains(f.public.key_data()))));
    all
}

async fn agent_keys(identities: &Identities, tried: &mut Tried) -> (Option<Agent>, Vec<Candidate>) {
    let Some(socket) = &identities.agent else { return (None, Vec::new()) };
    let keys = async {
        let mut agent = AgentClient::connect_uds(socket).await?;
        let held = agent.request_identities().await?;
        Ok::<_, russh::keys::Error>((agent, held))
    };
    let keys = timeout(AGENT_LISTS, keys).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()));
    match keys {
        Ok((agent, held)) => (Some(agent), held.into_iter().map(of_agent).collect()),
        Err(e) => {
            tried.failed.push(format!("the ssh-agent at {}: {e}", socket.display()));
            (None, Vec::new())
        }
    }
}

fn of_agent(identity: AgentIdentity) -> Candidate {
    match identity {
        AgentIdentity::PublicKey { key, comment } => {
            Candidate { label: format!("agent's key {comment:?}"), public: key, certificate: None, file: None }
        }
        AgentIdentity::Certificate { certificate, comment } => Candidate {
            label: format!("agent's certificate {comment:?}"),
            public: certificate.public_key().clone().into(),
            certificate: Some(certificate),
            file: None,
        },
    }
}

async fn key_files(identities: &Identities, passphrases: &Passphrases, patience: &Patience, tried: &mut Tried) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for path in &identities.files {
        let label = format!("key {}", path.display());
        match tokio::fs::read_to_string(path).await {
            Ok(text) => match key_file(path, text, passphrases, patience).await {
                Ok((public, file)) => {
                    candidates.extend(certified(path, &public, file.as_ref()).await);
                    candidates.push(Candidate { label, public, certificate: None, file });
                }
                Err(e) => {
                    tried.failed.push(format!("{label}: {}", e.chain()));
                    tried.hint = tried.hint.take().or(e.hint);
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound && !identities.named => {}
            Err(e) => tried.failed.push(format!("{label}: {e}")),
        }
    }
    candidates
}

/// The certificate beside a key file, if there is one for this key.
async fn certified(path: &Path, public: &PublicKey, file: Option<&KeyFile>) -> Option<Candidate> {
    let path = format!("{}-cert.pub", path.display());
    let certificate = Certificate::from_openssh(&tokio::fs::read_to_string(&path).await.ok()?).ok()?;
    let ours = certificate.public_key() == public.key_data();
    ours.then(|| Candidate {
        label: format!("certificate {path}"),
        public: public.clone(),
        certificate: Some(certificate),
        file: file.cloned(),
    })
}

/// What a key file holds: both halves of a key, or the public one alone.
async fn key_file(path: &Path, text: String, passphrases: &Passphrases, patience: &Patience) -> node::Result<(PublicKey, Option<KeyFile>)> {
    let file = |secret| Some(KeyFile { path: path.to_owned(), secret });
    if let Ok(public) = PublicKey::from_openssh(text.trim()) {
        return Ok((public, None));
    }
    // OpenSSH's own format shows the public half even when the private one is encrypted.
    if let Ok(key) = PrivateKey::from_openssh(&text) {
        let public = key.public_key().clone();
        let secret = if key.is_encrypted() { Secret::Encrypted(text) } else { Secret::Open(Arc::new(key)) };
        return Ok((public, file(secret)));
    }
    if !text.contains("ENCRYPTED") {
        let key = decode_secret_key(&text, None).map_err(|e| Error::failed("it is not a private key").because(e))?;
        return Ok((key.public_key().clone(), file(Secret::Open(Arc::new(key)))));
    }
    let beside = tokio::fs::read_to_string(format!("{}.pub", path.display())).await.ok();
    if let Some(public) = beside.and_then(|text| PublicKey::from_openssh(text.trim()).ok()) {
        return Ok((public, file(Secret::Encrypted(text))));
    }
    let pause = patience.pause();
    let key = passphrases.open(path, &text).await?;
    drop(pause);
    Ok((key.public_key().clone(), file(Secret::Open(key))))
}

/// Signs with the agent, or with a file's key, which is only opened when the host wants it.
struct KeySigner<'a> {
    agent: Option<&'a mut Agent>,
    file: Option<&'a KeyFile>,
    passphrases: &'a Passphrases,
    patience: &'a Patience,
}

struct SignError(Error);

impl From<russh::SendError> for SignError {
    fn from(_: russh::SendError) -> Self {
        Self(Error::failed("the connection ended"))
    }
}

impl Signer for KeySigner<'_> {
    type Error = SignError;

    async fn auth_sign(&mut self, key: &AgentIdentity, hash: Option<HashAlg>, mut data: Vec<u8>) -> Result<Vec<u8>, SignError> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| SignError(Error::failed("it does not sign").because(e));
        let Some(file) = self.file else {
            let agent = self.agent.as_mut().ok_or_else(|| SignError(Error::failed("the agent is gone")))?;
            // An agent may ask its user to confirm, or to touch a token.
            let _pause = self.patience.pause();
            let signature = timeout(AGENT_SIGNS, agent.sign_request(key, hash, data)).await;
            return signature.map_err(|_| SignError(Error::failed("the agent does not answer")))?.map_err(|e| failed(e.into()));
        };
        let key = match &file.secret {
            Secret::Open(key) => key.clone(),
            Secret::Encrypted(text) => {
                let _pause = self.patience.pause();
                self.passphrases.open(&file.path, text).await.map_err(SignError)?
            }
        };
        let signature = match key.key_data() {
            KeypairData::Rsa(rsa) => (rsa, hash).try_sign(&data),
            other => other.try_sign(&data),
        };
        // The signature goes behind what is signed, as a string (RFC 4252, 7).
        let blob = signature.map_err(|e| failed(e.into()))?.encode_vec().map_err(|e| failed(e.into()))?;
        blob.encode(&mut data).map_err(|e| failed(e.into()))?;
        Ok(data)
    }
}
