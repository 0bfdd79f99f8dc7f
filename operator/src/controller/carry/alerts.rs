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

/// `ALERTS{alertstate="firing"}`: pending ones do not count.
const FIRING: &str = "/api/v1/query?query=ALERTS%7Balertstate%3D%22firing%22%7D";

/// Whether alerts are firing that block. One that cannot be asked is no quiet one.
pub(super) async fn firing(http: &Client, rules: &BlockingAlerts) -> Alerts {
    match ask(http, rules).await {
        Ok(names) if names.is_empty() => Alerts::Quiet,
        Ok(names) => Alerts::Firing(names.into_iter().collect()),
        Err(e) => Alerts::Unknown(causes(&e)),
    }
}

async fn ask(http: &Client, rules: &BlockingAlerts) -> reqwest::Result<BTreeSet<String>> {
    let url = format!("{}{FIRING}", rules.prometheus_url.as_str().trim_end_matches('/'));
    let answer = http.get(url).send().await?.error_for_status()?;
    let Answer { data } = answer.json().await?;
    Ok(data.result.into_iter().map(|series| series.metric.alertname).filter(|name| rules.block(name)).collect())
}

/// An error and what lies under it, which reqwest's own text does not say.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
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
        ])
        .await;
        let (web, rules) = (web(), rules(&format!("{url}/prom/")));
        assert_eq!(firing(&web, &rules).await, Alerts::Firing(vec!["KubeApi".into(), "KubeDown".into()]));
        assert_eq!(firing(&web, &rules).await, Alerts::Quiet);
        let Alerts::Unknown(why) = firing(&web, &rules).await else { panic!("it is not known") };
        assert!(why.contains("503"), "{why}");
        assert!(matches!(firing(&web, &rules).await, Alerts::Unknown(_)));
        assert!(matches!(firing(&web, &rules).await, Alerts::Unknown(_)), "nobody is there any more");
        let first = asked.lock().unwrap().first().cloned().unwrap();
        assert!(first.starts_with("GET /prom/api/v1/query?query=ALERTS%7Balertstate%3D%22firing%22%7D "), "{first}");
    }
}
