//! Somebody is notified. Nothing waits for that, and a failure is only logged.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use serde_json::json;
use templates::notify::Notification;
use updates::api::{Notice, Notify};
use updates::{WebUrl, names};

/// The Secret that has the webhook's address.
const SECRET: &str = "smartup-notify";
/// The key that it is in.
const URL: &str = "url";
/// Pauses before the second and later tries.
const PAUSES: [Duration; 3] = [Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(60)];

/// What somebody is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) what: Notice,
    pub(super) node: String,
    pub(super) message: String,
    pub(super) transaction: String,
}

/// The body of the request.
fn body(notify: &Notify, told: &Told) -> Result<String, String> {
    let Told { what, node, message, transaction } = told;
    let Some(template) = &notify.template else {
        return Ok(json!({ "text": format!("smart updates: {node}: {message}") }).to_string());
    };
    let event = what.to_string();
    let notification = Notification { node, event: &event, message, transaction };
    notification.render(template).map_err(|e| format!("spec.notify.template: {}", node::Error::failed(e.to_string()).because(e).chain()))
}

/// Why it was not delivered. The address holds a secret, so no error names it.
#[derive(Debug, PartialEq)]
enum Failed {
    /// It may work later.
    Now(String),
    /// It does not.
    ForGood(String),
}

async fn address(client: &Client) -> Result<WebUrl, Failed> {
    let secret = Api::<Secret>::namespaced(client.clone(), names::NAMESPACE).get_opt(SECRET).await;
    let secret = secret.map_err(|e| Failed::Now(format!("cannot read the secret {SECRET}: {}", k3s::in_words(&e))))?;
    let value =
        secret.and_then(|s| s.data?.remove(URL)).ok_or_else(|| Failed::ForGood(format!("there is no secret {SECRET} with a key {URL}")))?;
    let text = String::from_utf8(value.0).ok();
    text.and_then(|t| t.trim().parse().ok())
        .ok_or_else(|| Failed::ForGood(format!("the key {URL} of the secret {SECRET} is no address of HTTP or HTTPS")))
}

async fn send(client: &Client, http: &reqwest::Client, body: String) -> Result<(), Failed> {
    let url = address(client).await?;
    let request = http.post(url.as_str()).header(http::header::CONTENT_TYPE, "application/json").body(body);
    let failed = |e: reqwest::Error| Failed::Now(format!("the webhook cannot be reached: {}", cause(&e.without_url())));
    let answer = request.send().await.map_err(failed)?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status if status.is_server_error() || status.as_u16() == 429 => Err(Failed::Now(format!("the webhook answers {status}"))),
        status => Err(Failed::ForGood(format!("the webhook answers {status}"))),
    }
}

/// The deepest cause: those above may name the address.
fn cause(error: &reqwest::Error) -> String {
    let mut deepest: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Tells it, if somebody wants to hear it.
pub(super) async fn tell(client: Client, http: reqwest::Client, notify: Notify, told: Told) {
    if !notify.wants(told.what) {
        return;
    }
    let unheard = |why: String| tracing::warn!(node = told.node, "nobody was notified: {why}");
    let body = match body(&notify, &told) {
        Ok(body) => body,
        Err(why) => return unheard(why),
    };
    let mut pauses = PAUSES.into_iter();
    loop {
        match (send(&client, &http, body.clone()).await, pauses.next()) {
            (Ok(()), _) => return,
            (Err(Failed::Now(_)), Some(pause)) => tokio::time::sleep(pause).await,
            (Err(Failed::Now(why) | Failed::ForGood(why)), _) => return unheard(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::web::tests::{served, web};
    use super::*;
    use crate::fake_api::FakeApi;

    fn told() -> Told {
        Told { what: Notice::Failed, node: "h1".into(), message: "\"web\" is kept".into(), transaction: "00".into() }
    }

    fn notify(template: Option<&str>) -> Notify {
        Notify { template: template.map(str::to_owned), events: vec![] }
    }

    #[test]
    fn slacks_form_or_ones_own() {
        assert_eq!(body(&notify(None), &told()).unwrap(), r#"{"text":"smart updates: h1: \"web\" is kept"}"#);
        let own = r#"{"event": "{{ event }}", "text": "{{ node }}: {{ message }} ({{ transaction }})"}"#;
        assert_eq!(body(&notify(Some(own)), &told()).unwrap(), r#"{"event": "failed", "text": "h1: \"web\" is kept (00)"}"#);
        let why = body(&notify(Some("{{ nodes }}")), &told()).unwrap_err();
        assert!(why.starts_with("spec.notify.template: ") && why.contains("nodes"), "{why}");
    }

    #[tokio::test]
    async fn the_address_comes_from_the_secret_and_is_in_no_error() {
        let (url, asked) = served(vec![(200, "ok".into()), (500, String::new()), (404, String::new())]).await;
        let (api, web) = (FakeApi::default(), web());
        let secret = format!("/api/v1/namespaces/{}/secrets/{SECRET}", names::NAMESPACE);
        let send = async || send(&api.client(), &web, "{}".into()).await;
        assert_eq!(send().await, Err(Failed::ForGood("there is no secret smartup-notify with a key url".into())));
        let put = |url: &str| {
            let value = serde_json::to_value(k8s_openapi::ByteString(url.as_bytes().to_vec())).unwrap();
            api.put(&secret, json!({ "data": { "url": value } }));
        };
        put("nonsense s3cret");
        let why = format!("{:?}", send().await);
        assert!(why.starts_with("Err(ForGood") && !why.contains("s3cret"), "{why}");
        put(&format!("{url}/hooks/s3cret\n"));
        assert_eq!(send().await, Ok(()));
        let request = asked.lock().unwrap()[0].clone();
        assert!(request.starts_with("POST /hooks/s3cret ") && request.contains("content-type: application/json"), "{request}");
        assert_eq!(send().await, Err(Failed::Now("the webhook answers 500 Internal Server Error".into())));
        assert_eq!(send().await, Err(Failed::ForGood("the webhook answers 404 Not Found".into())));
        let why = format!("{:?}", send().await);
        assert!(why.starts_with("Err(Now") && !why.contains("s3cret"), "{why}");
    }
}
