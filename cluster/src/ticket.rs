use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::{AdvertInterval, AuthPass, Invalid, Port, Role, RouterId, Token, Version, Vip, Vrrp};

/// Everything a host must know to join, on one line. A secret, since it holds the token.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// The floating address, with the prefix it has on the servers.
    pub vip: Vip,
    /// The API's port.
    pub port: Port,
    /// The token of the role, in the long form that pins the CA.
    pub token: Token,
    /// What the servers agree on; a ticket with it is a server's, one without it an agent's.
    pub vrrp: Option<Vrrp>,
}

/// The first characters of a ticket: a name to recognise it by, and the version of what follows.
const PREFIX: &str = "smartup1.";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    vip: Vip,
    port: Port,
    token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vrrp: Option<WireVrrp>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireVrrp {
    id: RouterId,
    advert: AdvertInterval,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unicast: Vec<IpAddr>,
}

impl Ticket {
    /// The role it is for.
    pub fn role(&self) -> Role {
        if self.vrrp.is_some() { Role::Server } else { Role::Agent }
    }

    /// The line itself.
    ///
    /// # Errors
    /// None in practice: every part of it can be written as JSON.
    pub fn expose(&self) -> Result<String, Invalid> {
        let wire = Wire {
            vip: self.vip,
            port: self.port,
            token: self.token.expose().to_owned(),
            vrrp: self.vrrp.as_ref().map(|v| WireVrrp {
                id: v.router_id,
                advert: v.advert,
                auth: match &v.version {
                    Version::V2(pass) => Some(pass.expose().to_owned()),
                    Version::V3 => None,
                },
                unicast: v.unicast.clone(),
            }),
        };
        let json = serde_json::to_vec(&wire).map_err(|e| Invalid::secret("ticket", e.to_string()))?;
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json)))
    }

    /// Takes a ticket apart. Surrounding white space is ignored.
    ///
    /// # Errors
    /// When it is empty, cut off, of another version, or holds what is not valid.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Invalid::secret("ticket", why);
        let text = text.trim();
        if text.is_empty() {
            return Err(bad("is empty"));
        }
        let body =
            text.strip_prefix(PREFIX).ok_or_else(|| bad("does not begin with 'smartup1.'; print one with `smartup ticket` on a server"))?;
        let cut = "is damaged or cut off; copy the whole line that `smartup ticket` printed";
        // serde's own message may quote the input, which is a secret
        let wire: Wire = URL_SAFE_NO_PAD.decode(body).ok().and_then(|json| serde_json::from_slice(&json).ok()).ok_or_else(|| bad(cut))?;
        let vrrp = match wire.vrrp {
            None => None,
            Some(v) => Some(Vrrp {
                version: match v.auth {
                    Some(pass) => Version::V2(AuthPass::parse(&pass)?),
                    None => Version::V3,
                },
                router_id: v.id,
                advert: v.advert,
                unicast: v.unicast,
            }),
        };
        Ok(Self { vip: wire.vip, port: wire.port, token: Token::parse(&wire.token)?, vrrp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(vrrp: Option<Vrrp>) -> Ticket {
        let token = Token::parse("K10e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855::server:s3cret").unwrap();
        Ticket { vip: "10.0.0.10/24".parse().unwrap(), port: Port::API, token, vrrp }
    }

    #[test]
    fn comes_back_as_it_went() {
        let auth = Some(AuthPass::parse("mypasswd").unwrap());
        let vrrp = Vrrp::for_vip("10.0.0.10".parse().unwrap(), auth, vec!["10.0.0.11".parse().unwrap()]).unwrap();
        let line = ticket(Some(vrrp)).expose().unwrap();
        let t = Ticket::parse(&format!("{line}\n")).unwrap();
        assert_eq!(t.role(), Role::Server);
        assert_eq!(t.expose().unwrap(), line);
        assert_eq!(Ticket::parse(&ticket(None).expose().unwrap()).unwrap().role(), Role::Agent);
    }

    #[test]
    fn refuses_a_damaged_one_without_showing_it() {
        let line = ticket(None).expose().unwrap();
        for bad in ["", "K10abc", &line[..line.len() - 4], &format!("{line}!"), &line.replace("smartup1", "smartup2")] {
            let e = Ticket::parse(bad).unwrap_err().to_string();
            assert!(!e.contains("s3cret") && !e.contains(&line[20..40]), "{e}");
        }
    }
}
