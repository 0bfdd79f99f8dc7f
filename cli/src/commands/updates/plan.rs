use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use jiff::{Timestamp, Zoned};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::ListParams;
use node::{Error, Result};
use serde::{Deserialize as _, Serialize};
use sha2::{Digest as _, Sha256};
use updates::api::{Approval, NodeUpdate, UpdateManagerSpec, UpdateManagerStatus};
use updates::decide::Cordon;
use updates::edit::Edit;
use updates::{BootId, Builds, Item, names};

use super::access::{Objects, QUESTION, Reach, api_error};
use super::forecast::{Forecast, NodeNow, Planned, Reboot, Taken, forecast};
use super::{change, when};
use crate::commands::Format;
use crate::output;

#[derive(Debug, Args)]
pub struct Plan {
    /// How it is printed: json and yaml have all packages
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
pub struct Approve {
    /// The plan's name, as `smartup updates plan` prints it
    plan: String,
}

impl Plan {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        let shown = Shown::of(&World::read(&reach.open(QUESTION).await?).await?, Timestamp::now());
        let now = Zoned::now();
        output::print(&shown, self.output, |shown| in_words(shown, &now))
    }
}

impl Approve {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        let objects = reach.open(QUESTION).await?;
        let world = World::read(&objects).await?;
        let shown = Shown::of(&world, Timestamp::now());
        if shown.plan != self.plan {
            return Err(Error::refused(format!("the plan is {} now, not {}: nothing was approved", shown.plan, self.plan))
                .hint("smartup updates plan shows what is different"));
        }
        let edits: Vec<_> =
            shown.items().into_iter().map(Edit::Approve).chain(shown.boots().into_iter().map(Edit::ApproveReboot)).collect();
        if edits.is_empty() {
            anstream::println!("there is nothing to be approved");
            return Ok(());
        }
        change::apply(&objects, &edits).await
    }
}

/// All that a plan is made from.
struct World {
    spec: UpdateManagerSpec,
    status: UpdateManagerStatus,
    nodes: Vec<NodeNow>,
    locks: Vec<Taken>,
}

impl World {
    async fn read(objects: &Objects) -> Result<Self> {
        let manager = change::raw(&objects.manager().await?)?;
        if objects.node_updates.is_none() {
            return Err(Error::failed("this cluster's operator is not smartup's: it tells nobody its plans"));
        }
        let part = |name: &str| manager.get(name).filter(|part| !part.is_null());
        let spec = part("spec").map_or_else(|| Ok(UpdateManagerSpec::default()), UpdateManagerSpec::deserialize);
        let spec = spec.map_err(|e| Error::failed("the UpdateManager's spec is not understood, so nothing starts").because(e))?;
        let status = part("status").and_then(|s| UpdateManagerStatus::deserialize(s).ok()).unwrap_or_default();
        let mut updates: Vec<NodeUpdate> = objects.read_node_updates().await?;
        let mut builds = Builds::default();
        // the second time all know what the last one has said
        for _ in 0..2 {
            for NodeUpdate { metadata, status, .. } in &mut updates {
                let since = metadata.creation_timestamp.as_ref().map(|t| t.0);
                if let Some(status) = status {
                    builds.settle(status, since);
                }
            }
        }
        let nodes = objects.nodes.list(&ListParams::default()).await.map_err(|e| api_error("cannot read the nodes", e))?;
        let leases = objects.leases.list(&ListParams::default()).await.map_err(|e| api_error("cannot read the leases", e))?;
        let mut updates: BTreeMap<String, NodeUpdate> = updates.into_iter().map(|u| (u.name_any(), u)).collect();
        let nodes = nodes.items.iter().map(|node| now(node, updates.remove(&node.name_any()))).collect();
        Ok(Self { spec, status, nodes, locks: leases.items.iter().filter_map(taken).collect() })
    }
}

/// A node, with its `NodeUpdate` unless that is a namesake's.
fn now(node: &Node, update: Option<NodeUpdate>) -> NodeNow {
    let uid = node.uid().unwrap_or_default();
    let mut conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let unschedulable = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    let roles = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master", "node-role.kubernetes.io/etcd"];
    NodeNow {
        ready: conditions.any(|c| c.type_ == "Ready" && c.status == "True"),
        server: roles.iter().any(|role| node.labels().contains_key(*role)),
        cordon: if unschedulable { Cordon::Theirs } else { Cordon::No },
        run_requested: node.annotations().get(names::RUN_ANNOTATION).and_then(|at| at.parse().ok()),
        labels: node.labels().clone(),
        name: node.name_any(),
        update: update.filter(|u| u.owner_references().iter().any(|o| o.uid == uid)),
        uid,
    }
}

fn taken(lease: &Lease) -> Option<Taken> {
    let slot = lease.name_any().strip_prefix(names::LOCK_PREFIX)?.parse().ok()?;
    let uid = lease.owner_references().first().map(|o| o.uid.clone()).unwrap_or_default();
    Some(Taken { slot, node: lease.spec.as_ref()?.holder_identity.clone()?, uid })
}

/// A plan, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    /// Its name: a digest of all that is installed.
    plan: String,
    /// Whether it has to be approved first.
    needs_approval: bool,
    updates: Vec<Planned>,
    waiting: Vec<Waiting>,
    /// Whether there are more updates than these.
    more: bool,
}

/// A node that is not updated within the time of the plan.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Waiting {
    node: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

impl Shown {
    /// What there would be if all of it were approved.
    fn of(world: &World, now: Timestamp) -> Self {
        let spec = UpdateManagerSpec { approval: Approval::Automatic, ..world.spec.clone() };
        let Forecast { planned, waiting, more } =
            forecast(&spec, world.status.suspects.clone(), world.nodes.clone(), world.locks.clone(), now);
        let waiting = waiting.into_iter().map(|(node, wait)| Waiting { node, reason: wait.reason.to_string(), until: wait.until });
        let mut shown = Self { plan: String::new(), needs_approval: false, updates: planned, waiting: waiting.collect(), more };
        let approved = |item: &Item| match item {
            Item::Package(package) => world.spec.approved_packages.contains(package),
            Item::Patch(patch) => world.spec.approved_patches.contains(patch),
        };
        let (items, boots) = (shown.items(), shown.boots());
        let all = items.iter().all(approved) && boots.iter().all(|boot| world.spec.approved_reboots.contains(boot));
        shown.needs_approval = world.spec.approval == Approval::Manual && !all;
        shown.plan = name(&items, &boots);
        shown
    }

    fn items(&self) -> BTreeSet<Item> {
        let packages = self.updates.iter().flat_map(|u| u.packages.iter().cloned().map(Item::Package));
        packages.chain(self.updates.iter().flat_map(|u| u.patches.iter().copied().map(Item::Patch))).collect()
    }

    fn boots(&self) -> BTreeSet<BootId> {
        self.updates.iter().filter_map(|u| u.boot.clone()).collect()
    }
}

fn name(items: &BTreeSet<Item>, boots: &BTreeSet<BootId>) -> String {
    let mut digest = Sha256::new();
    for text in items.iter().map(ToString::to_string).chain(boots.iter().map(ToString::to_string)) {
        digest.update(text);
        digest.update([0]);
    }
    digest.finalize().iter().take(6).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn in_words(shown: &Shown, now: &Zoned) -> String {
    let mut text = Vec::new();
    if shown.updates.is_empty() {
        text.push("No node would be updated within the next seven days.".to_owned());
    } else {
        let rows = shown.updates.iter().map(|planned| row(planned, now)).collect();
        text.push(output::table(&["starts", "node", "stage", "takes about", "packages", "live patches", "pods leave", "reboot"], rows));
        let last = shown.updates.iter().map(|u| u.ends).max();
        text.extend(last.map(|at| format!("\nAll of it would be done by {}.", when::both(at, now.time_zone()))));
        text.extend(shown.more.then(|| "There are more: this looks at the first hundred updates.".to_owned()));
    }
    if !shown.waiting.is_empty() {
        let row = |w: &Waiting| vec![w.node.clone(), w.reason.clone(), w.until.map_or("-".into(), |at| when::both(at, now.time_zone()))];
        text.push(format!("\n{}", output::table(&["not among them", "reason", "until"], shown.waiting.iter().map(row).collect())));
    }
    let items: Vec<_> = shown.items().iter().map(|item| format!("  {item}")).collect();
    if !items.is_empty() {
        text.push(format!("\nThis is installed:\n{}", items.join("\n")));
    }
    if shown.needs_approval {
        text.push(format!("\nIt has to be approved: smartup updates approve {}", shown.plan));
    } else if !shown.updates.is_empty() {
        text.push(format!("\nThis is the plan {}.", shown.plan));
    }
    text.join("\n")
}

fn row(planned: &Planned, now: &Zoned) -> Vec<String> {
    let pods = match (planned.drain_first, planned.reboot) {
        (true, _) | (_, Reboot::Yes) => "yes",
        (false, Reboot::IfNeeded) => "for a reboot",
        (false, Reboot::No) => "no",
    };
    let reboot = match planned.reboot {
        Reboot::No => "no",
        Reboot::IfNeeded => "if needed",
        Reboot::Yes => "yes",
    };
    let starts = planned.starts.to_zoned(now.time_zone().clone()).strftime("%a %Y-%m-%d %H:%M %Z").to_string();
    let starts = if planned.starts <= now.timestamp() { "now".into() } else { starts };
    let numbers = [planned.packages.len().to_string(), planned.patches.len().to_string()];
    let takes = when::took(planned.ends.duration_since(planned.starts));
    [vec![starts, planned.node.clone(), planned.stage.to_string(), takes], numbers.to_vec(), vec![pods.into(), reboot.into()]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn shown(updates: &Value, needs_approval: bool) -> Shown {
        let one = |v: &Value| Planned {
            node: v["node"].as_str().unwrap().into(),
            stage: serde_json::from_value(v["stage"].clone()).unwrap(),
            starts: v["starts"].as_str().unwrap().parse().unwrap(),
            ends: v["ends"].as_str().unwrap().parse().unwrap(),
            packages: serde_json::from_value(v["packages"].clone()).unwrap(),
            patches: serde_json::from_value(v["patches"].clone()).unwrap(),
            drain_first: v["drainFirst"] == true,
            reboot: if v["reboot"] == true { Reboot::Yes } else { Reboot::IfNeeded },
            boot: serde_json::from_value(v["boot"].clone()).unwrap(),
        };
        let updates = updates.as_array().unwrap().iter().map(one).collect();
        let waiting = vec![Waiting { node: "h9".into(), reason: "TooYoung".into(), until: "2026-12-24T00:00:00Z".parse().ok() }];
        let mut shown = Shown { plan: String::new(), needs_approval, updates, waiting, more: false };
        shown.plan = name(&shown.items(), &shown.boots());
        shown
    }

    #[test]
    fn who_when_and_what() {
        let updates = json!([
            { "node": "h1", "stage": "fast", "starts": "2026-11-21T12:00:00Z", "ends": "2026-11-21T12:20:00Z", "packages": ["bash-5-1.noarch", "kernel-6-1.noarch"], "patches": ["1-2-r3"], "drainFirst": true },
            { "node": "h2", "stage": "slow", "starts": "2026-11-22T01:00:00Z", "ends": "2026-11-22T03:20:00Z", "packages": ["bash-5-1.noarch"], "patches": [] },
            { "node": "h3", "stage": "slow", "starts": "2026-11-22T03:20:00Z", "ends": "2026-11-22T03:30:00Z", "packages": [], "patches": [], "reboot": true, "boot": "6a8e1b6c-0b0e-4b0e-9d3b-0123456789ab" },
        ]);
        let now: Zoned = "2026-11-21T13:00:00+01:00[Europe/Berlin]".parse().unwrap();
        insta::assert_snapshot!(in_words(&shown(&updates, true), &now), @r#"
        STARTS                     NODE   STAGE   TAKES ABOUT   PACKAGES   LIVE PATCHES   PODS LEAVE     REBOOT
        now                        h1     fast    20 min        2          1              yes            if needed
        Sun 2026-11-22 02:00 CET   h2     slow    2 h 20 min    1          0              for a reboot   if needed
        Sun 2026-11-22 04:20 CET   h3     slow    10 min        0          0              yes            yes

        All of it would be done by Sun 2026-11-22 04:30 CET (Sun 2026-11-22 03:30 UTC).

        NOT AMONG THEM   REASON     UNTIL
        h9               TooYoung   Thu 2026-12-24 01:00 CET (Thu 2026-12-24 00:00 UTC)

        This is installed:
          bash-5-1.noarch
          kernel-6-1.noarch
          1-2-r3

        It has to be approved: smartup updates approve 6a09c95b9d92
        "#);
        let (one, other) = (shown(&updates, false), shown(&json!([updates[0]]), false));
        assert!(one.plan.len() == 12 && one.plan != other.plan, "{} {}", one.plan, other.plan);
        let mut later = updates.clone();
        later[1]["starts"] = json!("2026-11-22T02:00:00Z");
        assert_eq!(shown(&later, false).plan, one.plan, "the same, at another time");
        assert!(in_words(&shown(&json!([]), false), &now).starts_with("No node would be updated"));
    }
}
