use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use node::{Error, Result};

use super::edit::Value;
use super::yaml::{Kind, Node, Unreadable};

/// A name in a kubeconfig: letters, digits and `-_./+=:@`, beginning with a letter or a digit, so that it needs no quotes in
/// a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The default: `smartup-` and the VIP, which two clusters on one network cannot share.
    pub fn of_vip(vip: IpAddr) -> Self {
        Self(format!("smartup-{vip}"))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./+=:@".contains(c);
        if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err("must begin with a letter or a digit, and have only letters, digits and - _ . / + = : @")
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An administrator's access to a cluster: one cluster, one user and one context, all of the same name.
///
/// There is no Debug: it holds a private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Admin {
    /// The name of all three.
    pub name: Name,
    /// The API's URL.
    pub url: String,
    /// The cluster's CA.
    pub(super) ca: Data,
    /// The user's certificate.
    pub(super) certificate: Data,
    /// Its key.
    pub(super) key: Data,
}

/// Base64, as kubeconfigs hold certificates and keys. It is decoded once to see that it can be: kubectl refuses a whole file
/// for one entry's broken base64.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Data(String);

impl Data {
    fn parse(text: &str) -> Option<Self> {
        let text: String = text.split_ascii_whitespace().collect();
        let decoded = STANDARD.decode(&text).ok()?;
        (!decoded.is_empty()).then_some(Self(text))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Admin {
    /// Takes the access that a kubeconfig's current context gives, which in k3s's own is the only one, and turns it to `url`.
    ///
    /// # Errors
    /// Invalid, when the text is not a kubeconfig with a CA, a client certificate and its key in it.
    pub fn parse(text: &str, url: String, name: Name) -> Result<Self> {
        let unusable = |why: String| Error::invalid(format!("the administrator's kubeconfig cannot be used: {why}"));
        let root = Node::parse(text).map_err(|e| unusable(e.to_string()))?.ok_or_else(|| unusable("it is empty".into()))?;
        let context = value(&root, "current-context").map_err(&unusable)?;
        let found = Self::read(&root, context).map_err(&unusable)?;
        Ok(Self { name, url, ..found })
    }

    /// What a context of a kubeconfig gives; the name is left as the context's.
    ///
    /// # Errors
    /// What is missing, in words.
    pub(super) fn read(root: &Node, context: &str) -> Result<Self, String> {
        let body = |list, name, key| -> Result<&Node, String> {
            let entry = entry(root, list, name).map_err(|e| e.to_string())?;
            let body = entry.map_or(Ok(None), |e| e.get(key)).map_err(|e| e.to_string())?;
            body.ok_or_else(|| format!("there is no {key} \"{name}\" in it"))
        };
        let data = |node, key| Data::parse(value(node, key)?).ok_or_else(|| format!("{key} is not base64"));
        let bound = body("contexts", context, "context")?;
        let cluster = body("clusters", value(bound, "cluster")?, "cluster")?;
        let user = body("users", value(bound, "user")?, "user")?;
        Ok(Self {
            name: Name(context.to_owned()),
            url: value(cluster, "server")?.to_owned(),
            ca: data(cluster, "certificate-authority-data")?,
            certificate: data(user, "client-certificate-data")?,
            key: data(user, "client-key-data")?,
        })
    }

    /// The kubeconfig with nothing else in it. A secret.
    pub fn expose(&self) -> String {
        self.document().block(0, "\n") + "\n"
    }

    /// The same, to be written into a text.
    pub(super) fn document(&self) -> Value<'_> {
        let name = self.name.as_str();
        let [clusters, contexts, users] = self.parts().map(|part| (part.list, Value::List(vec![part.entry(name)])));
        let (version, kind) = (("apiVersion", Value::Text("v1")), ("kind", Value::Text("Config")));
        Value::Mapping(vec![version, clusters, contexts, ("current-context", Value::Text(name)), kind, users])
    }

    /// What stands in a kubeconfig's three lists.
    pub(super) fn parts(&self) -> [Part<'_>; 3] {
        let name = self.name.as_str();
        let cluster = [("certificate-authority-data", self.ca.as_str()), ("server", &self.url)];
        let user = [("client-certificate-data", self.certificate.as_str()), ("client-key-data", self.key.as_str())];
        [
            Part { list: "clusters", kind: "cluster", fields: cluster },
            Part { list: "contexts", kind: "context", fields: [("cluster", name), ("user", name)] },
            Part { list: "users", kind: "user", fields: user },
        ]
    }
}

/// An entry in one of the lists.
pub(super) struct Part<'a> {
    /// The list's key.
    pub list: &'static str,
    /// The key of what the entry has besides its name.
    pub kind: &'static str,
    /// What stands there.
    pub fields: [(&'static str, &'a str); 2],
}

impl<'a> Part<'a> {
    /// The whole entry.
    pub fn entry(&self, name: &'a str) -> Value<'a> {
        let body = Value::Mapping(self.fields.map(|(key, value)| (key, Value::Text(value))).into());
        Value::Mapping(vec![(self.kind, body), ("name", Value::Text(name))])
    }
}

/// The entry of a name in one of a kubeconfig's lists.
///
/// # Errors
/// When that cannot be told: entries that are not mappings, or two of that name.
pub(super) fn entry<'a>(root: &'a Node, list: &'static str, name: &str) -> Result<Option<&'a Node>, Unreadable> {
    let no_entries = Unreadable::Entries { key: list };
    let mut found = None;
    for item in items(root, list)? {
        if !matches!(item.kind, Kind::Mapping { .. }) {
            return Err(no_entries);
        }
        if item.get("name")?.and_then(Node::text) == Some(name) && found.replace(item).is_some() {
            return Err(no_entries);
        }
    }
    Ok(found)
}

/// The entries of one of a kubeconfig's lists; none when it is left out or null.
pub(super) fn items<'a>(root: &'a Node, list: &'static str) -> Result<&'a [Node], Unreadable> {
    match root.get(list)? {
        None => Ok(&[]),
        Some(node) if node.is_null() => Ok(&[]),
        Some(Node { kind: Kind::Sequence { items, .. }, .. }) => Ok(items),
        Some(_) => Err(Unreadable::Entries { key: list }),
    }
}

fn value<'a>(node: &'a Node, key: &'static str) -> Result<&'a str, String> {
    let value = node.get(key).map_err(|e| e.to_string())?;
    value.filter(|v| !v.is_null()).and_then(Node::text).filter(|t| !t.is_empty()).ok_or_else(|| format!("there is no {key} in it"))
}
