use clap::Args;
use jiff::Zoned;
use jiff::tz::TimeZone;
use node::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use updates::api::Run;

use super::access::{QUESTION, Reach};
use super::change::no_such_node;
use super::when;
use crate::commands::Format;
use crate::output;

#[derive(Debug, Args)]
pub struct History {
    /// Only of these nodes
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// How it is printed
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// An update of a node that came to an end.
#[derive(Debug, Serialize)]
struct Past {
    node: String,
    #[serde(flatten)]
    run: Run,
}

impl History {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        let objects = reach.open(QUESTION).await?;
        objects.manager().await?;
        if objects.node_updates.is_none() {
            return Err(Error::failed("this cluster's operator is not smartup's: it keeps no history"));
        }
        let mut updates: Vec<Remembers> = objects.read_node_updates().await?;
        let names: Vec<_> = updates.iter().map(|u| u.metadata.name.as_str()).collect();
        if let Some(unknown) = self.nodes.iter().find(|n| !names.contains(&n.as_str())) {
            return Err(no_such_node(unknown, &names));
        }
        updates.retain(|update| self.nodes.is_empty() || self.nodes.contains(&update.metadata.name));
        let zone = Zoned::now().time_zone().clone();
        output::print(&past(updates), self.output, |all| in_words(all, &self.nodes, &zone))
    }
}

/// Of a `NodeUpdate`, what is remembered.
#[derive(Debug, Clone, Deserialize)]
struct Remembers {
    metadata: Named,
    status: Option<Runs>,
}

#[derive(Debug, Clone, Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Runs {
    #[serde(default)]
    history: Vec<Value>,
}

/// All that is remembered, the newest first. An entry of a later version that is not understood is left out.
fn past(updates: Vec<Remembers>) -> Vec<Past> {
    let runs = |Remembers { metadata, status }: Remembers| {
        let read = move |run: Value| Some(Past { node: metadata.name.clone(), run: Run::deserialize(run).ok()? });
        status.unwrap_or_default().history.into_iter().filter_map(read)
    };
    let mut all: Vec<Past> = updates.into_iter().flat_map(runs).collect();
    all.sort_by(|a, b| b.run.finished_at.0.cmp(&a.run.finished_at.0).then_with(|| a.node.cmp(&b.node)));
    all
}

/// `only` of these nodes; none = of all.
fn in_words(all: &[Past], only: &[String], zone: &TimeZone) -> String {
    match only {
        _ if !all.is_empty() => {}
        [] => return "No node has been updated yet.".into(),
        [node] => return format!("{node} has not been updated yet."),
        nodes => return format!("None of {} has been updated yet.", nodes.join(", ")),
    }
    let row = |Past { node, run }: &Past| {
        let took = run.finished_at.0.duration_since(run.started_at.0);
        let outcome = match &run.failure {
            Some(failure) => format!("{}: {}", failure.reason, failure.message),
            None => "done".into(),
        };
        let rebooted = if run.rebooted { "yes" } else { "no" };
        let numbers = [run.packages.to_string(), run.patches.to_string(), rebooted.to_owned()];
        [vec![when::both(run.finished_at.0, zone), node.clone(), when::took(took)], numbers.to_vec(), vec![outcome]].concat()
    };
    output::table(&["ended", "node", "took", "packages", "live patches", "rebooted", "outcome"], all.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_first() {
        let run = |from: &str, to: &str, more: serde_json::Value| {
            let mut run = json!({
                "transaction": "0123456789abcdef", "startedAt": from, "finishedAt": to, "packages": 3, "patches": 0, "rebooted": true,
            });
            run.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            run
        };
        let update = |name: &str, runs: serde_json::Value| {
            serde_json::from_value::<Remembers>(json!({ "metadata": { "name": name }, "status": { "history": runs } })).unwrap()
        };
        let failure = json!({ "failure": { "reason": "InstallFailed", "message": "postinst: exit code 1", "at": "2026-11-21T01:10:00Z" }, "rebooted": false });
        let all = [
            update("h1", json!([run("2026-11-21T01:00:00Z", "2026-11-21T01:10:30Z", json!({})), { "later": 1 }])),
            update(
                "h2",
                json!([
                    run("2026-11-21T01:11:00Z", "2026-11-21T03:12:00Z", failure),
                    run("2026-11-01T01:00:00Z", "2026-11-01T01:00:40Z", json!({}))
                ]),
            ),
            update("h3", json!([])),
        ];
        insta::assert_snapshot!(in_words(&past(all.to_vec()), &[], &TimeZone::UTC), @r#"
        ENDED                      NODE   TOOK        PACKAGES   LIVE PATCHES   REBOOTED   OUTCOME
        Sat 2026-11-21 03:12 UTC   h2     2 h 1 min   3          0              no         InstallFailed: postinst: exit code 1
        Sat 2026-11-21 01:10 UTC   h1     10 min      3          0              yes        done
        Sun 2026-11-01 01:00 UTC   h2     40 s        3          0              yes        done
        "#);
        let none = |only: &[&str]| in_words(&[], &only.iter().map(ToString::to_string).collect::<Vec<_>>(), &TimeZone::UTC);
        assert_eq!(
            [none(&[]), none(&["h3"]), none(&["h3", "h4"])],
            ["No node has been updated yet.", "h3 has not been updated yet.", "None of h3, h4 has been updated yet."]
        );
    }
}
