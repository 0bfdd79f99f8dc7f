//! etcd on a server, over its own gRPC API with k3s's client certificate.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::settings::paths;

/// etcd answers within milliseconds; a member that needs longer than this cannot be counted on.
const LIMIT: Duration = Duration::from_secs(2);
/// The same for one member among several, so that a dead one does not hold up the others' report.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);
/// A change of the membership has to reach a majority's disks first.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);
/// Where k3s's etcd takes clients: on loopback and on the node's address, of every server.
const CLIENT_PORT: u16 = 2379;

/// A member's number, unique in its cluster; shown in hexadecimal as etcd does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl Serialize for MemberId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A member as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: MemberId,
    /// Its name, in k3s the host's and eight hexadecimal digits; empty until it has started for the first time.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started for the first time.
    pub client_urls: Vec<String>,
    /// Whether it only listens: it has no vote, and is not counted for the quorum.
    pub learner: bool,
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Its number.
    pub id: MemberId,
    /// etcd's version.
    pub version: String,
    /// The database's size on disk, in bytes.
    pub db_size: u64,
    /// How much of that is in use; the rest is freed by a defragmentation.
    pub db_size_in_use: u64,
    /// The member that it takes for the leader; None = it sees none.
    pub leader: Option<MemberId>,
    /// How far its log has come.
    pub raft_index: u64,
    /// Whether it only listens.
    pub learner: bool,
    /// Alarms and the like (`NOSPACE`).
    pub errors: Vec<String>,
}

/// A member, and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberState {
    /// Its number.
    pub id: MemberId,
    /// Its name; empty until it has started for the first time.
    pub name: String,
    /// The host part of its peer URL.
    pub address: String,
    /// Whether it only listens.
    pub learner: bool,
    /// Whether it says that it is the leader.
    pub leader: bool,
    /// What it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Health>,
    /// Why it is not healthy; None = it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl MemberState {
    /// Whether it answered, sees a leader and reports no error.
    pub fn is_healthy(&self) -> bool {
        self.trouble.is_none()
    }

    /// `leader`, `voter` or `learner`.
    pub fn kind(&self) -> &'static str {
        match (self.learner, self.leader) {
            (true, _) => "learner",
            (false, true) => "leader",
            (false, false) => "voter",
        }
    }

    /// `healthy`, or why not.
    pub fn health(&self) -> String {
        self.trouble.as_ref().map_or_else(|| "healthy".to_owned(), |why| format!("NOT healthy: {why}"))
    }

    fn new(member: Member, answer: Result<Health, EtcdError>) -> Self {
        let address = member.peer_urls.first().map(|url| host_of(url).to_owned()).unwrap_or_default();
        let (answer, trouble) = match answer {
            Ok(h) if !h.errors.is_empty() => (Some(h.clone()), Some(h.errors.join("; "))),
            Ok(h) if h.leader.is_none() => (Some(h), Some("it sees no leader".to_owned())),
            Ok(h) => (Some(h), None),
            Err(e) => (None, Some(e.to_string())),
        };
        let leader = answer.as_ref().is_some_and(|h| h.leader == Some(h.id));
        Self { id: member.id, name: member.name, address, learner: member.learner, leader, answer, trouble }
    }
}

/// Where a server is on its way to a vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vote {
    /// It has one.
    Has,
    /// It has been given one just now, and knows.
    Given,
    /// It has to catch up with the leader first.
    CatchingUp,
}

/// How it was that a member is out of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was taken out just now.
    Done,
    /// It was no member (any more).
    WasGone,
}

/// What went wrong with etcd, as far as callers decide by it.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// k3s has not fetched the certificates yet: it was never started, or it has not reached the cluster.
    #[error("this server has no certificate for etcd yet ({path})")]
    NoCertificate {
        /// The file that is missing.
        path: PathBuf,
    },
    /// A file of k3s's that cannot be used.
    #[error("cannot use {path}: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Nobody answers there, or not in time.
    #[error("etcd at {url} does not answer: {why}")]
    Unreachable {
        /// The client URL.
        url: String,
        /// Why.
        why: String,
    },
    /// A learner cannot be promoted before it has caught up.
    #[error("the learner is not in sync with the leader yet")]
    NotInSync,
    /// Only a learner can be promoted: somebody was faster.
    #[error("the member is no learner")]
    NotALearner,
    /// A learner answers nothing but questions about itself.
    #[error("etcd at {url} is a learner, and cannot answer that")]
    AskedALearner {
        /// The client URL.
        url: String,
    },
    /// There is no such member, or not any more.
    #[error("etcd at {url} knows no such member")]
    NoSuchMember {
        /// The client URL.
        url: String,
    },
    /// Too few members have been connected to each other for the last 5 s (`HealthInterval` in etcd's
    /// server/etcdserver/server.go), so that a change of the membership could cost the quorum.
    #[error("etcd at {url} refuses while its cluster is not healthy: too few members have been connected for 5 s")]
    Unhealthy {
        /// The client URL.
        url: String,
    },
    /// Those that would remain have not all been started, and could not make a quorum.
    #[error("etcd at {url} refuses: too few started members would remain")]
    TooFewWouldRemain {
        /// The client URL.
        url: String,
    },
    /// etcd refuses for another reason, in its own words.
    #[error("etcd at {url} refuses: {why}")]
    Refused {
        /// The client URL.
        url: String,
        /// What it says.
        why: String,
    },
}

impl EtcdError {
    /// etcd tells its errors apart by their texts (api/v3rpc/rpctypes/error.go); the codes are shared by several.
    fn from_status(url: &str, status: &Status) -> Self {
        let url = url.to_owned();
        match status.message() {
            m if m.contains("can only promote a learner member which is in sync with leader") => Self::NotInSync,
            m if m.contains("can only promote a learner member") => Self::NotALearner,
            m if m.contains("rpc not supported for learner") => Self::AskedALearner { url },
            m if m.contains("member not found") => Self::NoSuchMember { url },
            m if m.contains("unhealthy cluster") => Self::Unhealthy { url },
            m if m.contains("not enough started members") => Self::TooFewWouldRemain { url },
            m if m.starts_with("etcdserver:") => Self::Refused { url, why: m.to_owned() },
            m => match status.code() {
                Code::DeadlineExceeded | Code::Cancelled => Self::Unreachable { url, why: "it took too long".into() },
                Code::Unavailable | Code::Unknown => Self::Unreachable { url, why: causes(status) },
                code => Self::Refused { url, why: format!("{m} ({code})") },
            },
        }
    }
}

impl From<EtcdError> for node::Error {
    fn from(e: EtcdError) -> Self {
        let hint = match &e {
            EtcdError::NoCertificate { .. } => Some("ask on a server that has joined the cluster"),
            EtcdError::Unhealthy { .. } => {
                Some("try again in some seconds; if it stays so, bring back the members that do not answer (smartup status)")
            }
            EtcdError::Unreachable { .. } => Some("see whether k3s-server runs there, and whether 2379/tcp is let in"),
            _ => None,
        };
        let error = Self::failed(e.to_string());
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// What lies under a transport error, whose own text says next to nothing.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match deepest.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => deepest.to_string(),
    }
}

/// etcd as this host can reach it.
#[derive(Debug, Clone)]
pub struct Etcd {
    tls: ClientTlsConfig,
    /// This server's own.
    local: String,
    /// Other servers' client URLs, for what a learner cannot answer.
    others: Vec<String>,
}

impl Etcd {
    /// etcd of this server, with the certificate that k3s keeps for its own API server.
    ///
    /// # Errors
    /// [`EtcdError::NoCertificate`] until k3s has written it.
    pub fn here() -> Result<Self, EtcdError> {
        let tls = Path::new(paths::DATA).join("server/tls/etcd");
        let (ca, certificate, key) = (read(&tls.join("server-ca.crt"))?, read(&tls.join("client.crt"))?, read(&tls.join("client.key"))?);
        let local = format!("https://127.0.0.1:{CLIENT_PORT}");
        Ok(Self::new(&ca, &certificate, &key, local, peers(&Path::new(paths::ETCD).join("config"))?))
    }

    fn new(ca: &str, certificate: &str, key: &str, local: String, others: Vec<String>) -> Self {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).identity(Identity::from_pem(certificate, key));
        Self { tls, local, others }
    }

    /// The cluster's members, asked here; of other servers where this one is a learner.
    ///
    /// # Errors
    /// When none of them answers that.
    pub async fn members(&self) -> Result<Vec<Member>, EtcdError> {
        let mut answer = self.members_at(&self.local).await;
        for url in &self.others {
            if answer.is_ok() {
                break;
            }
            answer = self.members_at(url).await;
        }
        answer
    }

    async fn members_at(&self, url: &str) -> Result<Vec<Member>, EtcdError> {
        let list: proto::MemberList = self.call(url, "/etcdserverpb.Cluster/MemberList", proto::Nothing {}, LIMIT).await?;
        Ok(list.members.into_iter().map(Member::from).collect())
    }

    /// Each member and how it is, all asked at the same time.
    ///
    /// # Errors
    /// When the members cannot be told; one that does not answer is no error but in the report.
    pub async fn health(&self) -> Result<Vec<MemberState>, EtcdError> {
        let members = self.members().await?;
        let states = members.into_iter().map(async |member| {
            let answer = match member.client_urls.first() {
                Some(url) => self.status(url, HEALTH_LIMIT).await,
                None => Err(EtcdError::Unreachable { url: member.peer_urls.join(","), why: "it has not started yet".into() }),
            };
            MemberState::new(member, answer)
        });
        Ok(futures::future::join_all(states).await)
    }

    /// What one member says of itself; a learner does as well.
    async fn status(&self, url: &str, limit: Duration) -> Result<Health, EtcdError> {
        let status: proto::Status = self.call(url, "/etcdserverpb.Maintenance/Status", proto::Nothing {}, limit).await?;
        Ok(status.into())
    }

    /// Gives a learner a vote. etcd itself refuses that as long as it would endanger the quorum.
    ///
    /// # Errors
    /// [`EtcdError::NotInSync`] when it has to catch up first, [`EtcdError::NotALearner`] when it has a vote.
    pub async fn promote(&self, id: MemberId) -> Result<(), EtcdError> {
        let mut answer = self.promote_at(&self.local, id).await;
        for url in &self.others {
            if !matches!(answer, Err(EtcdError::AskedALearner { .. } | EtcdError::Unreachable { .. })) {
                break;
            }
            answer = self.promote_at(url, id).await;
        }
        answer
    }

    async fn promote_at(&self, url: &str, id: MemberId) -> Result<(), EtcdError> {
        let _: proto::MemberList = self.call(url, "/etcdserverpb.Cluster/MemberPromote", proto::Promote { id: id.0 }, LIMIT).await?;
        Ok(())
    }

    /// Takes a member out of the cluster for ever. It ends by itself if it runs, and must lose its data before it may join
    /// again. Whether the others bear that is [`Quorum::may_remove`](crate::Quorum::may_remove)'s to say; etcd checks as well.
    ///
    /// # Errors
    /// [`EtcdError::Unhealthy`] when a quorum is at stake, which may pass; [`EtcdError::TooFewWouldRemain`] when it is the last
    /// one; [`EtcdError::Unreachable`] when nobody answers, also for want of a quorum.
    pub async fn remove(&self, id: MemberId) -> Result<Removal, EtcdError> {
        let members = self.members().await?;
        // the one that goes is asked last: it may end before it has answered
        let others = members.iter().filter(|m| m.id != id && !m.learner).filter_map(|m| m.client_urls.first());
        let mut answer = Err(EtcdError::Unreachable { url: self.local.clone(), why: "no member has been asked".into() });
        for url in others.chain([&self.local]) {
            answer = self.remove_at(url, id).await;
            if !matches!(answer, Err(EtcdError::AskedALearner { .. } | EtcdError::Unreachable { .. })) {
                break;
            }
        }
        answer
    }

    async fn remove_at(&self, url: &str, id: MemberId) -> Result<Removal, EtcdError> {
        let answer: Result<proto::MemberList, _> =
            self.call(url, "/etcdserverpb.Cluster/MemberRemove", proto::Remove { id: id.0 }, CHANGE_LIMIT).await;
        match answer {
            Ok(_) => Ok(Removal::Done),
            Err(EtcdError::NoSuchMember { .. }) => Ok(Removal::WasGone),
            Err(e) => Err(e),
        }
    }

    /// Gives this server its vote as soon as it can have one.
    ///
    /// k3s itself looks only every 15 s for learners, and a joiner waits for that: of 13 s that a join takes, 9 are this.
    /// Meant to be asked again and again while k3s starts.
    ///
    /// # Errors
    /// When etcd does not answer (yet), here or on the other servers.
    pub async fn promote_here(&self) -> Result<Vote, EtcdError> {
        let own = self.status(&self.local, LIMIT).await?;
        if !own.learner {
            return Ok(Vote::Has);
        }
        match self.promote(own.id).await {
            Ok(()) => self.learned().await,
            Err(EtcdError::NotALearner) => Ok(Vote::Has),
            Err(EtcdError::NotInSync) => Ok(Vote::CatchingUp),
            Err(e) => Err(e),
        }
    }

    /// Waits until this server itself has heard of its vote, which reaches it as any other entry of the log does.
    async fn learned(&self) -> Result<Vote, EtcdError> {
        let heard = async {
            while self.status(&self.local, LIMIT).await?.learner {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(Vote::Given)
        };
        tokio::time::timeout(LIMIT, heard).await.unwrap_or(Ok(Vote::CatchingUp))
    }

    async fn call<Q, A>(&self, url: &str, path: &'static str, message: Q, limit: Duration) -> Result<A, EtcdError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let unreachable = |why: String| EtcdError::Unreachable { url: url.to_owned(), why };
        let endpoint =
            Endpoint::from_shared(url.to_owned()).and_then(|e| e.connect_timeout(limit).timeout(limit).tls_config(self.tls.clone()));
        let endpoint = endpoint.map_err(|e| unreachable(causes(&e)))?;
        let asked = async {
            let channel: Channel = endpoint.connect().await.map_err(|e| unreachable(causes(&e)))?;
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready().await.map_err(|e| unreachable(causes(&e)))?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await;
            answer.map(tonic::Response::into_inner).map_err(|status| EtcdError::from_status(url, &status))
        };
        // over all of it: the connection's own limit leaves the TLS handshake out
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(unreachable(format!("no answer within {} s", limit.as_secs()))))
    }
}

/// Each member of this server's etcd and how it is.
///
/// # Errors
/// When the host is no server of a cluster yet, or the members cannot be told.
pub async fn members() -> node::Result<Vec<MemberState>> {
    Ok(Etcd::here()?.health().await?)
}

/// Whether this server has a vote in etcd.
///
/// # Errors
/// When etcd on this host does not answer.
pub async fn votes_here() -> Result<bool, EtcdError> {
    let etcd = Etcd::here()?;
    Ok(!etcd.status(&etcd.local, LIMIT).await?.learner)
}

/// Gives this server its vote in etcd as soon as it can have one; see [`Etcd::promote_here`].
///
/// # Errors
/// [`EtcdError::NoCertificate`] and [`EtcdError::Unreachable`] while k3s is starting.
pub async fn promote_here() -> Result<Vote, EtcdError> {
    Etcd::here()?.promote_here().await
}

fn read(path: &Path) -> Result<String, EtcdError> {
    fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => EtcdError::NoCertificate { path: path.to_owned() },
        _ => EtcdError::Unusable { path: path.to_owned(), why: e.to_string() },
    })
}

/// The client URLs of the members that this one was started beside. k3s writes etcd's configuration file itself, and a
/// learner can find the others in no other way: it answers no question about them.
fn peers(config: &Path) -> Result<Vec<String>, EtcdError> {
    match fs::read_to_string(config) {
        Ok(text) => peers_in(&text).map_err(|why| EtcdError::Unusable { path: config.to_owned(), why }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(EtcdError::Unusable { path: config.to_owned(), why: e.to_string() }),
    }
}

fn peers_in(config: &str) -> Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Config {
        #[serde(default, rename = "initial-cluster")]
        cluster: String,
        #[serde(default)]
        name: String,
    }
    let Config { cluster, name } = serde_saphyr::from_str(config).map_err(|e| e.to_string())?;
    let members = cluster.split(',').filter_map(|member| member.split_once('='));
    let others = members.filter(|(of, _)| *of != name);
    Ok(others.map(|(_, url)| format!("https://{}:{CLIENT_PORT}", host_of(url))).collect())
}

/// The host part of a URL, IPv6 addresses with their brackets.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end =
        if rest.starts_with('[') { rest.find(']').map_or(rest.len(), |i| i + 1) } else { rest.find([':', '/']).unwrap_or(rest.len()) };
    &rest[..end]
}

impl From<proto::Member> for Member {
    fn from(m: proto::Member) -> Self {
        Self { id: MemberId(m.id), name: m.name, peer_urls: m.peer_urls, client_urls: m.client_urls, learner: m.learner }
    }
}

impl From<proto::Status> for Health {
    fn from(s: proto::Status) -> Self {
        Self {
            id: MemberId(s.header.map_or(0, |h| h.member_id)),
            version: s.version,
            db_size: u64::try_from(s.db_size).unwrap_or(0),
            db_size_in_use: u64::try_from(s.db_size_in_use).unwrap_or(0),
            leader: (s.leader != 0).then_some(MemberId(s.leader)),
            raft_index: s.raft_index,
            learner: s.learner,
            errors: s.errors,
        }
    }
}

/// etcd's messages (rpc.proto), as far as they are read here; the numbers are the protocol.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Nothing {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Header {
        #[prost(uint64, tag = "2")]
        pub member_id: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Member {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(string, tag = "2")]
        pub name: String,
        #[prost(string, repeated, tag = "3")]
        pub peer_urls: Vec<String>,
        #[prost(string, repeated, tag = "4")]
        pub client_urls: Vec<String>,
        #[prost(bool, tag = "5")]
        pub learner: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct MemberList {
        #[prost(message, repeated, tag = "2")]
        pub members: Vec<Member>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Promote {
        #[prost(uint64, tag = "1")]
        pub id: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Remove {
        #[prost(uint64, tag = "1")]
        pub id: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Status {
        #[prost(message, optional, tag = "1")]
        pub header: Option<Header>,
        #[prost(string, tag = "2")]
        pub version: String,
        #[prost(int64, tag = "3")]
        pub db_size: i64,
        #[prost(uint64, tag = "4")]
        pub leader: u64,
        #[prost(uint64, tag = "5")]
        pub raft_index: u64,
        #[prost(string, repeated, tag = "8")]
        pub errors: Vec<String>,
        #[prost(int64, tag = "9")]
        pub db_size_in_use: i64,
        #[prost(bool, tag = "10")]
        pub learner: bool,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;

    #[test]
    fn the_others_are_in_the_configuration_that_k3s_writes() {
        let yaml = "advertise-client-urls: https://10.0.0.12:2379\nheartbeat-interval: 500\n\
                    initial-cluster: h1-1a2b3c4d=https://10.0.0.11:2380,h2-5e6f7a8b=https://10.0.0.12:2380\n\
                    initial-cluster-state: existing\nname: h2-5e6f7a8b\npeer-transport-security:\n  client-cert-auth: true\n";
        assert_eq!(peers_in(yaml).unwrap(), ["https://10.0.0.11:2379"]);
        let json = r#"{"name": "a", "initial-cluster": "a=https://[fd00::1]:2380,b=https://[fd00::2]:2380"}"#;
        assert_eq!(peers_in(json).unwrap(), ["https://[fd00::2]:2379"]);
        assert!(peers_in("name: h1-1a2b3c4d\n").unwrap().is_empty());
        assert!(peers_in("name: [").is_err());
    }

    #[test]
    fn errors_are_told_apart_by_what_etcd_says() {
        let of = |code, text: &str| EtcdError::from_status("u", &Status::new(code, text));
        let sync = "etcdserver: can only promote a learner member which is in sync with leader";
        assert!(matches!(of(Code::FailedPrecondition, sync), EtcdError::NotInSync));
        assert!(matches!(of(Code::FailedPrecondition, "etcdserver: can only promote a learner member"), EtcdError::NotALearner));
        assert!(matches!(of(Code::Unavailable, "etcdserver: rpc not supported for learner"), EtcdError::AskedALearner { .. }));
        assert!(matches!(of(Code::Unavailable, "etcdserver: no leader"), EtcdError::Refused { .. }));
        assert!(matches!(of(Code::NotFound, "etcdserver: member not found"), EtcdError::NoSuchMember { .. }));
        assert!(matches!(of(Code::Unavailable, "etcdserver: unhealthy cluster"), EtcdError::Unhealthy { .. }));
        let few = "etcdserver: re-configuration failed due to not enough started members";
        assert!(matches!(of(Code::FailedPrecondition, few), EtcdError::TooFewWouldRemain { .. }));
        assert!(matches!(of(Code::DeadlineExceeded, "timeout"), EtcdError::Unreachable { .. }));
    }

    /// A CA, and a certificate that serves as everyone's.
    struct Trust {
        dir: tempfile::TempDir,
        ca: String,
        certificate: String,
        key: String,
    }

    impl Trust {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca_key = KeyPair::generate().unwrap();
            let ca = params.self_signed(&ca_key).unwrap();
            let issuer = Issuer::from_params(&params, ca_key);
            let mut params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            let trust = Self { dir: tempfile::tempdir().unwrap(), ca: ca.pem(), certificate: certificate.pem(), key: key.serialize_pem() };
            for (name, text) in [("ca.crt", &trust.ca), ("all.crt", &trust.certificate), ("all.key", &trust.key)] {
                fs::write(trust.dir.path().join(name), text).unwrap();
            }
            trust
        }

        fn client(&self, local: &Process, others: &[&Process]) -> Etcd {
            let others = others.iter().map(|m| m.client.clone()).collect();
            Etcd::new(&self.ca, &self.certificate, &self.key, local.client.clone(), others)
        }
    }

    fn free_url() -> String {
        format!("https://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
    }

    /// A real etcd, which ends with this value.
    struct Process {
        name: &'static str,
        client: String,
        peer: String,
        /// Whether it refuses changes of the membership that could cost the quorum, as k3s's does.
        strict: bool,
        child: Option<Child>,
    }

    impl Process {
        fn new(name: &'static str) -> Self {
            Self { name, client: free_url(), peer: free_url(), strict: false, child: None }
        }

        /// Starts it beside `others`; without any it makes a cluster of its own.
        fn start(&mut self, trust: &Trust, others: &[&Process]) {
            let dir = trust.dir.path();
            let own = (self.name, self.peer.as_str());
            let all = others.iter().map(|o| (o.name, o.peer.as_str())).chain([own]);
            let cluster: Vec<String> = all.map(|(name, peer)| format!("{name}={peer}")).collect();
            let mut command = Command::new("etcd");
            command.args(["--name", self.name, "--data-dir"]).arg(dir.join(self.name));
            for listen in ["--listen-client-urls", "--advertise-client-urls"] {
                command.args([listen, &self.client]);
            }
            for listen in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
                command.args([listen, &self.peer]);
            }
            for kind in ["", "peer-"] {
                command.arg(format!("--{kind}client-cert-auth"));
                for (flag, file) in [("trusted-ca-file", "ca.crt"), ("cert-file", "all.crt"), ("key-file", "all.key")] {
                    command.arg(format!("--{kind}{flag}")).arg(dir.join(file));
                }
            }
            command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state"]);
            command.arg(if others.is_empty() { "new" } else { "existing" });
            // two servers may join one after the other without the five seconds in between
            command.arg(format!("--strict-reconfig-check={}", self.strict));
            command.args(["--unsafe-no-fsync", "--heartbeat-interval=50", "--election-timeout=500"]);
            let log = fs::File::create(dir.join(format!("{}.log", self.name))).unwrap();
            let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
            self.child = Some(child.expect("the tests need etcd (Debian: etcd-server)"));
        }

        fn stop(&mut self) {
            if let Some(mut child) = self.child.take() {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            self.stop();
        }
    }

    async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct MemberAdd {
        #[prost(string, repeated, tag = "1")]
        peer_urls: Vec<String>,
        #[prost(bool, tag = "2")]
        learner: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct MemberAdded {
        #[prost(message, optional, tag = "2")]
        member: Option<proto::Member>,
    }

    async fn add_learner(etcd: &Etcd, of: &Process) -> MemberId {
        let add = MemberAdd { peer_urls: vec![of.peer.clone()], learner: true };
        let added: MemberAdded = etcd.call(&etcd.local, "/etcdserverpb.Cluster/MemberAdd", add, LIMIT).await.unwrap();
        MemberId(added.member.unwrap().id)
    }

    #[tokio::test]
    async fn a_learner_gets_its_vote_through_another_server() {
        let trust = Trust::new();
        let (mut a, mut b, mut c) = (Process::new("a"), Process::new("b"), Process::new("c"));
        a.start(&trust, &[]);
        let first = trust.client(&a, &[]);
        until("a leads", async || first.health().await.ok().filter(|m| m[0].kind() == "leader" && m[0].is_healthy())).await;
        assert_eq!(first.promote_here().await.unwrap(), Vote::Has);
        let own = first.members().await.unwrap()[0].id;
        assert!(matches!(first.promote(own).await, Err(EtcdError::NotALearner)));

        let id = add_learner(&first, &b).await;
        assert!(matches!(first.promote(id).await, Err(EtcdError::NotInSync)), "it has not even started");
        let report = first.health().await.unwrap();
        let unstarted = report.iter().find(|m| m.id == id).unwrap();
        assert!(unstarted.health().contains("has not started") && unstarted.kind() == "learner", "{unstarted:?}");

        b.start(&trust, &[&a]);
        let second = trust.client(&b, &[&a]);
        until("b answers", async || second.status(&b.client, LIMIT).await.ok()).await;
        assert!(matches!(second.members_at(&b.client).await, Err(EtcdError::AskedALearner { .. })), "a learner does not know");
        assert_eq!(second.members().await.unwrap().len(), 2, "but the others do");
        let alone = trust.client(&b, &[]);
        assert!(matches!(alone.promote(id).await, Err(EtcdError::AskedALearner { .. })), "nor can it promote itself");
        let vote = until("b has a vote", async || second.promote_here().await.ok().filter(|v| *v != Vote::CatchingUp)).await;
        assert_eq!(vote, Vote::Given);
        assert_eq!(second.promote_here().await.unwrap(), Vote::Has, "and it knows at once");

        add_learner(&first, &c).await;
        c.start(&trust, &[&a, &b]);
        let third = trust.client(&c, &[&a, &b]);
        until("c has a vote", async || (third.promote_here().await.ok()? == Vote::Has).then_some(())).await;
        let states = until("all are healthy", async || {
            let states = third.health().await.ok()?;
            states.iter().all(MemberState::is_healthy).then_some(states)
        })
        .await;
        let mut names: Vec<_> = states.iter().map(|m| m.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(states.iter().filter(|m| m.kind() == "leader").count(), 1);
        assert!(
            states
                .iter()
                .all(|m| m.address == "127.0.0.1" && m.answer.as_ref().is_some_and(|h| h.db_size > 0 && h.version.starts_with("3.")))
        );

        b.stop();
        let states = third.health().await.unwrap();
        let dead = states.iter().find(|m| m.name == "b").unwrap();
        assert!(!dead.is_healthy() && dead.answer.is_none(), "{dead:?}");
        a.stop();
        // without a quorum etcd still says who its members are, and that it is alone
        let state =
            until("c sees no leader", async || third.health().await.ok()?.into_iter().find(|m| m.name == "c" && !m.is_healthy())).await;
        assert!(state.health().contains("no leader"), "{}", state.health());
    }

    #[tokio::test]
    async fn a_member_is_taken_out_dead_or_alive_but_not_the_last_one() {
        let trust = Trust::new();
        let (mut a, mut b, mut c) = (Process::new("a"), Process::new("b"), Process::new("c"));
        a.strict = true;
        a.start(&trust, &[]);
        let first = trust.client(&a, &[]);
        let own = until("a answers", async || first.members().await.ok()).await[0].id;
        assert!(matches!(first.remove(own).await, Err(EtcdError::TooFewWouldRemain { .. })), "it is the only one");
        a.stop();
        a.strict = false;
        a.start(&trust, &[]);
        until("a leads", async || first.health().await.ok().filter(|m| m[0].is_healthy())).await;

        let gone = add_learner(&first, &b).await;
        b.start(&trust, &[&a]);
        let second = trust.client(&b, &[&a]);
        until("b has a vote", async || (second.promote_here().await.ok()? == Vote::Has).then_some(())).await;
        let leaving = add_learner(&first, &c).await;
        c.start(&trust, &[&a, &b]);
        let third = trust.client(&c, &[&a, &b]);
        until("c has a vote", async || (third.promote_here().await.ok()? == Vote::Has).then_some(())).await;

        b.stop();
        let removed = until("a dead one is taken out", async || first.remove(gone).await.ok()).await;
        assert_eq!(removed, Removal::Done);
        assert_eq!(first.remove(gone).await.unwrap(), Removal::WasGone, "twice does no harm");
        assert_eq!(third.remove(leaving).await.unwrap(), Removal::Done, "one that is alive takes itself out through another");
        let left: Vec<_> = first.members().await.unwrap().into_iter().map(|m| m.name).collect();
        assert_eq!(left, ["a"]);

        let id = add_learner(&first, &Process::new("d")).await;
        assert_eq!(first.remove(id).await.unwrap(), Removal::Done, "a learner that has never started");
    }

    #[tokio::test]
    async fn who_does_not_answer_is_given_up_and_who_is_not_trusted_is_not_believed() {
        let trust = Trust::new();
        let mut a = Process::new("a");
        let nobody = trust.client(&a, &[]);
        let refused = nobody.members().await.unwrap_err();
        assert!(matches!(&refused, EtcdError::Unreachable { why, .. } if why.contains("refused")), "{refused}");
        a.start(&trust, &[]);
        until("a answers", async || nobody.members().await.ok()).await;
        let stranger = Trust::new().client(&a, &[]);
        let e = stranger.members().await.unwrap_err();
        assert!(matches!(&e, EtcdError::Unreachable { why, .. } if why.contains("certificate")), "{e}");

        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let hung = Process {
            name: "hung",
            client: format!("https://{}", silent.local_addr().unwrap()),
            peer: String::new(),
            strict: false,
            child: None,
        };
        let began = Instant::now();
        assert!(matches!(trust.client(&hung, &[]).members().await, Err(EtcdError::Unreachable { .. })));
        assert!(began.elapsed() < LIMIT * 2, "{:?}", began.elapsed());
        assert_eq!(trust.client(&hung, &[&a]).members().await.unwrap().len(), 1, "another server is asked");
    }
}
