//! A small Kubernetes API for tests: objects by their paths, resource versions, and preconditions that are kept to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// Answers a request instead of the fake's own rules; None = the rules hold.
type Hook = Box<dyn FnMut(&mut Objects, &Asked) -> Option<(u16, Value)> + Send>;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

/// All objects, by path.
#[derive(Default)]
pub(crate) struct Objects {
    by_path: BTreeMap<String, Value>,
    version: u64,
}

#[derive(Default)]
struct Inner {
    objects: Objects,
    hooks: Vec<Hook>,
    log: Vec<Asked>,
}

/// The API; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<Mutex<Inner>>);

impl Objects {
    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        self.by_path.get(path)
    }

    pub(crate) fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let name = path.rsplit('/').next().unwrap_or_default();
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(name);
        metadata["resourceVersion"] = json!(self.version.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
        }
        if let Some((_, rest)) = path.split_once("/namespaces/")
            && let Some((namespace, _)) = rest.split_once('/')
        {
            metadata["namespace"] = json!(namespace);
        }
        self.by_path.insert(path.to_owned(), object.clone());
        object
    }

    pub(crate) fn change(&mut self, path: &str, how: impl FnOnce(&mut Value)) {
        let mut object = self.by_path.get(path).unwrap_or_else(|| panic!("there is no {path}")).clone();
        how(&mut object);
        self.put(path, object);
    }

    pub(crate) fn remove(&mut self, path: &str) -> Option<Value> {
        self.version += 1;
        self.by_path.remove(path)
    }

    /// What a watch of one object says that has seen all up to a version.
    fn event(&self, path: &str, since: u64) -> Option<Value> {
        let version = |o: &Value| o["metadata"]["resourceVersion"].as_str()?.parse::<u64>().ok();
        match self.get(path) {
            Some(object) => version(object).is_some_and(|v| v > since).then(|| json!({ "type": "MODIFIED", "object": object })),
            None if self.version > since => {
                let name = path.rsplit('/').next();
                Some(json!({ "type": "DELETED", "object": { "metadata": { "name": name, "resourceVersion": self.version.to_string() } } }))
            }
            None => None,
        }
    }

    /// Of `/api/v1/pods` also what lies under `/api/v1/namespaces/NAMESPACE/pods/`. Of selectors of labels it knows `a=b` and `a`.
    fn list(&self, path: &str, query: &str) -> Vec<Value> {
        let Some((group, plural)) = path.rsplit_once('/') else { return Vec::new() };
        let field = |name: &str| query.split('&').find_map(|q| q.strip_prefix("fieldSelector=")?.strip_prefix(name)?.strip_prefix("%3D"));
        let (node, name) = (field("spec.nodeName"), field("metadata.name"));
        let selector = query.split('&').find_map(|q| q.strip_prefix("labelSelector=")).map(|s| s.replace("%3D", "=").replace("%2F", "/"));
        let labelled = |o: &Value| match selector.as_deref().map(|s| s.split_once('=').ok_or(s)) {
            Some(Ok((key, value))) => o["metadata"]["labels"][key] == value,
            Some(Err(key)) => !o["metadata"]["labels"][key].is_null(),
            None => true,
        };
        let within = |p: &str| {
            p.strip_prefix(group).and_then(|p| p.rsplit_once('/')).is_some_and(|(folder, _)| folder.rsplit('/').next() == Some(plural))
        };
        let asked_for = |o: &Value| node.is_none_or(|n| o["spec"]["nodeName"] == n) && name.is_none_or(|n| o["metadata"]["name"] == n);
        self.by_path.iter().filter(|(p, o)| within(p) && asked_for(o) && labelled(o)).map(|(_, o)| o.clone()).collect()
    }

    fn answer(&mut self, asked: &Asked) -> (u16, Value) {
        let Asked { method, path, query, body } = asked;
        let found = self.by_path.get(path).cloned();
        let wanted = if method == "DELETE" { &body["preconditions"]["resourceVersion"] } else { &body["metadata"]["resourceVersion"] };
        let other_version = |found: &Value| !wanted.is_null() && *wanted != found["metadata"]["resourceVersion"];
        match (method.as_str(), found) {
            ("POST", _) => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
                if self.by_path.contains_key(&path) { status(409, "already exists") } else { (201, self.put(&path, body.clone())) }
            }
            ("GET", Some(found)) => (200, found),
            ("GET", None) if is_collection(path) => {
                (200, json!({ "metadata": { "resourceVersion": self.version.to_string() }, "items": self.list(path, query) }))
            }
            (_, None) => status(404, "not found"),
            (_, Some(found)) if other_version(&found) => status(409, "the object has been modified"),
            ("PUT", Some(_)) => (200, self.put(path, body.clone())),
            ("PATCH", Some(found)) if another(&body["metadata"]["uid"], &found["metadata"]["uid"]) => status(422, "field is immutable"),
            ("PATCH", Some(mut found)) => {
                merge(&mut found, body);
                (200, self.put(path, found))
            }
            ("DELETE", Some(_)) => {
                self.remove(path);
                (200, json!({ "kind": "Status", "status": "Success" }))
            }
            _ => status(405, "method not allowed"),
        }
    }
}

/// Whether something is wanted, and something else is there.
fn another(wanted: &Value, there: &Value) -> bool {
    !wanted.is_null() && wanted != there
}

/// Whether a path is that of many objects.
fn is_collection(path: &str) -> bool {
    match path.split_once("/namespaces/") {
        Some((_, rest)) => rest.split('/').count() == 2,
        None => !path.contains("/nodes/"),
    }
}

impl FakeApi {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(crate) fn put(&self, path: &str, object: Value) {
        self.inner().objects.put(path, object);
    }

    pub(crate) fn change(&self, path: &str, how: impl FnOnce(&mut Value)) {
        self.inner().objects.change(path, how);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.inner().objects.remove(path);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.inner().objects.get(path).cloned()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.inner().objects.by_path.keys().cloned().collect()
    }

    /// Requests so far, `METHOD path`, of the methods that change something.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.inner().log.iter().filter(|a| a.method != "GET").map(|a| format!("{} {}", a.method, a.path)).collect()
    }

    /// All requests so far, `METHOD path`.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.inner().log.iter().map(|a| format!("{} {}", a.method, a.path)).collect()
    }

    /// Asked before the fake's own rules, the latest first.
    pub(crate) fn on(&self, hook: impl FnMut(&mut Objects, &Asked) -> Option<(u16, Value)> + Send + 'static) {
        self.inner().hooks.push(Box::new(hook));
    }

    /// Answers such requests with an error from now on.
    pub(crate) fn fail(&self, method: &'static str, path: &'static str, code: u16) {
        self.on(move |_, asked| (asked.method == method && asked.path == path).then(|| status(code, "so it is told to")));
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.respond(request).await) }
        });
        Client::new(service, "default")
    }

    async fn respond(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let asked = Asked {
            method: head.method.to_string(),
            path: head.uri.path().trim_end_matches('/').to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        };
        let (code, answer) = {
            let Inner { objects, hooks, log } = &mut *self.inner();
            log.push(asked.clone());
            hooks.iter_mut().rev().find_map(|hook| hook(objects, &asked)).unwrap_or_else(|| objects.answer(&asked))
        };
        if code == 200 && asked.query.contains("watch=true") {
            return Response::new(Body::from(self.next_event(&asked).await));
        }
        Response::builder().status(code).body(Body::from(serde_json::to_vec(&answer).unwrap())).unwrap()
    }
}

impl FakeApi {
    /// The next change of the one object that is watched, as a line; nothing when there is none for a minute.
    async fn next_event(&self, asked: &Asked) -> Vec<u8> {
        let part = |key: &str| asked.query.split('&').find_map(|q| q.strip_prefix(key)).unwrap_or_default();
        let path = format!("{}/{}", asked.path, part("fieldSelector=metadata.name%3D"));
        let since = part("resourceVersion=").parse().unwrap_or(0);
        for _ in 0..600 {
            if let Some(event) = self.inner().objects.event(&path, since) {
                return format!("{event}\n").into_bytes();
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Vec::new()
    }
}

/// An answer that says no.
pub(crate) fn status(code: u16, message: &str) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "" };
    let said = json!({ "kind": "Status", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": message });
    (code, said)
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}
