use std::time::Duration;

use cluster::{Port, Role, Token, Vip};
use node::{Error, Result};
use reqwest::{Certificate, Client, StatusCode};

/// The cluster that a host is about to join, through its VIP.
#[derive(Debug)]
pub struct JoinTarget<'a> {
    /// The floating address.
    pub vip: Vip,
    /// The API's port.
    pub port: Port,
    /// The token.
    pub token: &'a Token,
}

/// What a server said before anything was touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// How far its clock is ahead of ours, in seconds; None when it does not tell.
    pub clock_ahead: Option<i64>,
    /// The CA that it answered with, as bytes: what is on this host's disk must be the same.
    pub ca: Vec<u8>,
    /// Whether the token pinned that CA.
    pub pinned: bool,
}

/// A server that does not answer within this is not there.
const LIMIT: Duration = Duration::from_secs(5);

impl JoinTarget<'_> {
    /// Asks the cluster for its CA, compares it with what the token pins, and has the token checked. `now` is this host's
    /// clock, in seconds since 1970.
    ///
    /// # Errors
    /// Failed when nobody answers; invalid when the CA is not the token's or the token is refused.
    pub async fn ask(&self, role: Role, now: impl Fn() -> i64) -> Result<Joined> {
        let base = self.vip.api_url(self.port);
        let no_answer = |e: reqwest::Error| {
            Error::failed(format!("no server answers at {base}")).because(e).hint(
                "is the first server up (smartup status there), is the VIP right, and may this host reach that port through the firewall?",
            )
        };
        let build = |b: reqwest::ClientBuilder| {
            b.no_proxy().timeout(LIMIT).build().map_err(|e| Error::failed("cannot make an HTTPS client").because(e))
        };
        // as k3s does: the CA is not known yet, its hash in the token is what is trusted
        let blind = build(Client::builder().tls_danger_accept_invalid_certs(true))?;
        let answer = blind.get(format!("{base}/cacerts")).send().await.map_err(no_answer)?;
        if answer.status() != StatusCode::OK {
            return Err(Error::failed(format!("{base}/cacerts answers {}: this is not a k3s that is ready", answer.status()))
                .hint("is the port right, and the first server ready?"));
        }
        let clock_ahead = answer
            .headers()
            .get("date")
            .and_then(|d| d.to_str().ok())
            .and_then(|d| jiff::fmt::rfc2822::parse(d).ok())
            .map(|d| d.timestamp().as_second() - now());
        let ca = answer.bytes().await.map_err(no_answer)?.to_vec();
        let pinned = match self.token.matches_ca(&ca) {
            Some(false) => {
                return Err(Error::invalid(format!("the token pins another cluster's CA than the one at {base}"))
                    .hint("take a new ticket from a server of the cluster behind this VIP: smartup ticket"));
            }
            Some(true) => true,
            None => false,
        };
        let roots = Certificate::from_pem_bundle(&ca).map_err(|e| Error::failed(format!("{base}/cacerts is no CA")).because(e))?;
        let client = build(Client::builder().tls_certs_only(roots))?;
        let (user, path) = match role {
            Role::Server => ("server", "/v1-k3s/server-bootstrap"),
            Role::Agent => ("node", "/v1-k3s/config"),
        };
        let answer = client.get(format!("{base}{path}")).basic_auth(user, Some(self.token.password())).send().await.map_err(|e| {
            if !about_certificate(&e) {
                return no_answer(e);
            }
            Error::failed(format!("{base} cannot be asked with the cluster's own CA")).because(e).hint(
                "if the certificate does not name the VIP: on each server add --tls-san VIP, stop k3s, `k3s certificate rotate`, start it",
            )
        })?;
        match answer.status() {
            StatusCode::OK => Ok(Joined { clock_ahead, ca, pinned }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let more = if role == Role::Server { " (an agent's token is not enough for a server)" } else { "" };
                Err(Error::invalid(format!("the cluster at {base} refuses the token for the role {role}{more}"))
                    .hint(format!("take a new ticket on a server: smartup ticket --role {role}")))
            }
            other => {
                Err(Error::failed(format!("{base}{path} answers {other}")).hint("wait until the first server is ready, then run again"))
            }
        }
    }
}

/// Whether the connection failed for what the server showed, rather than for the network or a server that is starting.
fn about_certificate(error: &reqwest::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = next {
        if e.to_string().contains("certificate") {
            return true;
        }
        next = e.source();
    }
    false
}
