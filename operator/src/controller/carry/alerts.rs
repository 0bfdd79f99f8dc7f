//! Which alerts are firing, as Prometheus says.

use std::collections::BTreeSet;

use reqwest::Client;
use serde::Deserialize;
use updates::api::BlockingAlerts;
use updates::decide::Alerts;

/// What Prometheus, and all that speak its query API, answer (Prometheus, "HTTP API", instant queries).
#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: Labels,
}

#[derive(Deserialize)]
struct Labels {
    alertname: String,
}

/// `count by (alertname) (ALERTS{alertstate="firing"})`: pending ones do not count, and of each name one series is enough.
const FIRING: &str = "/api/v1/query?query=count%20by%20(alertname)%20(ALERTS%7Balertstate%3D%22firing%22%7D)";
/// Who answers with more than so many bytes is no Prometheus; a name of an alert takes a hundred of them.
const MOST: usize = 4 * 1024 * 1024;

/// Whether alerts are firing that block. One that cannot be asked is no quiet one.
pub(super) async fn firing(http: &Client, rules: &BlockingAlerts) -> Alerts {
    match ask(http, rules).await {
        Ok(names) if names.is_empty() => Alerts::Quiet,
        Ok(names) => Alerts::Firing(names.into_iter().collect()),
        Err(why) => Alerts::Unknown(why),
    }
}

async fn ask(http: &Client, rules: &BlockingAlerts) -> Result<BTreeSet<String>, String> {
    let url = format!("{}{FIRING}", rules.prometheus_url.as_str().trim_end_matches('/'));
    let sent = http.get(url).send().await.and_then(reqwest::Response::error_for_status);
    let mut answer = sent.map_err(causes)?;
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(causes)? {
        body.extend_from_slice(&part);
        if body.len() > MOST {
            return Err(format!("the answer is longer than {MOST} bytes"));
        }
    }
    let Answer { data } = serde_json::from_slice(&body).map_err(|e| format!("the answer is not understood: {e}"))?;
    Ok(data.result.into_iter().map(|series| series.metric.alertname).filter(|name| rules.block(name)).collect())
}

/// An error and what lies under it, which reqwest's own text does not say; without the address, which may hold a token.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::web::tests::{served, web};
    use super::*;

    fn rules(url: &str) -> BlockingAlerts {
        serde_json::from_value(json!({ "prometheusUrl": url, "matching": "^Kube", "ignoring": "Quiet$" })).unwrap()
    }

    #[tokio::test]
    async fn only_firing_alerts_that_match_block() {
        let series = |names: &[&str]| {
            let all: Vec<_> =
                names.iter().map(|n| json!({ "metric": { "alertname": n, "alertstate": "firing" }, "value": [0, "1"] })).collect();
            json!({ "status": "success", "data": { "resultType": "vector", "result": all } }).to_string()
        };
        let (url, asked) = served(vec![
            (200, series(&["KubeDown", "Watchdog", "KubeDown", "KubeQuiet", "KubeApi"])),
            (200, series(&["Watchdog"])),
            (503, String::new()),
            (200, "no json".into()),
            (200, " ".repeat(MOST + 1)),
        ])
        .await;
        let (web, rules) = (web(), rules(&format!("{url}/prom/t0ken/")));
        assert_eq!(firing(&web, &rules).await, Alerts::Firing(vec!["KubeApi".into(), "KubeDown".into()]));
        assert_eq!(firing(&web, &rules).await, Alerts::Quiet);
        let Alerts::Unknown(why) = firing(&web, &rules).await else { panic!("it is not known") };
        assert!(why.contains("503") && !why.contains("t0ken"), "{why}");
        let why = [firing(&web, &rules).await, firing(&web, &rules).await, firing(&web, &rules).await].map(|a| format!("{a:?}"));
        assert!(why[0].contains("the answer is not understood: expected"), "{why:?}");
        assert!(why[1].contains("the answer is longer than 4194304 bytes"), "{why:?}");
        assert!(why[2].contains("onnect") && !why[2].contains("t0ken"), "nobody is there any more: {why:?}");
        let first = asked.lock().unwrap().first().cloned().unwrap();
        assert!(
            first.starts_with("GET /prom/t0ken/api/v1/query?query=count%20by%20(alertname)%20(ALERTS%7Balertstate%3D%22firing%22%7D) "),
            "{first}"
        );
    }
}
