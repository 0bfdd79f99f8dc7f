//! One pass: from what is known to what is to be written. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use updates::api::{ALL_LISTED, NOT_HALTED, NodeStatus, NodeUpdate, NodeUpdateSpec, Reason, State, UpdateManagerStatus, condition};
use updates::decide::FailedStage;
use updates::judge::{self, conditions, statuses, summary, wanted};
use updates::names;

use super::carry::{Decided, explain};
use super::pace::{fit, size};
use super::view::{ManagerView, NodeView};

/// All that is known, by name.
pub(super) struct Cluster {
    /// The one `UpdateManager`, once somebody made it.
    pub(super) manager: Option<Arc<ManagerView>>,
    pub(super) nodes: BTreeMap<String, Arc<NodeView>>,
    pub(super) updates: BTreeMap<String, Arc<NodeUpdate>>,
}

/// What is to be written, and said.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Nodes that have no `NodeUpdate` yet.
    pub(super) create: Vec<NodeUpdate>,
    /// Those whose spec is another now.
    pub(super) change: Vec<Change>,
    /// How all nodes stand; None when the `UpdateManager` says so already, or there is none.
    pub(super) standing: Option<Standing>,
}

/// A `NodeUpdate` that is to be another.
#[derive(Debug, PartialEq)]
pub(super) struct Change {
    pub(super) node: String,
    pub(super) spec: NodeUpdateSpec,
    pub(super) news: Option<News>,
}

/// How all nodes stand.
#[derive(Debug, PartialEq)]
pub(super) struct Standing {
    pub(super) status: UpdateManagerStatus,
    /// Whether somebody has changed the spec, and waits for what comes of it.
    pub(super) awaited: bool,
    /// What people should know.
    pub(super) news: Vec<News>,
}

/// Something that happened to a node (or, without one, to the `UpdateManager`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    pub(super) node: Option<String>,
    /// In one word, as Events have it.
    pub(super) reason: String,
    pub(super) warns: bool,
    pub(super) note: String,
}

impl Plan {
    /// Whether nothing is to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.change.is_empty() && self.standing.is_none()
    }
}

/// What is to be written now; `decided` says what comes next for the nodes.
pub(super) fn plan(cluster: &Cluster, decided: Option<&Decided>, now: Timestamp) -> Plan {
    // one of a node of this name that is gone goes with it; until then there is none of the new node
    let update_of = |name: &str, node: &NodeView| {
        let update = cluster.updates.get(name)?;
        let owners = update.metadata.owner_references.as_ref();
        owners.is_none_or(|all| all.iter().all(|o| o.uid == node.uid)).then_some(update.as_ref())
    };
    let nodes: Vec<_> =
        cluster.nodes.iter().map(|(name, node)| judge::Node { name, labels: &node.labels, update: update_of(name, node) }).collect();
    let manager = cluster.manager.as_deref();
    let spec = manager.and_then(|m| m.spec.as_ref().ok());
    let wanted = wanted(spec, manager.and_then(|m| m.check_requested.as_deref()), &nodes);

    let mut plan = Plan::default();
    for (name, spec) in &wanted {
        match cluster.updates.get(*name) {
            None => plan.create.extend(cluster.nodes.get(*name).map(|node| made(name, node, spec))),
            Some(update) if update.spec == *spec => {}
            Some(update) => {
                let news = (update.spec.stage != spec.stage).then(|| News {
                    node: Some((*name).to_owned()),
                    reason: "StageChanged".into(),
                    warns: false,
                    note: format!("the node's stage is {} now, not {} any more", spec.stage, update.spec.stage),
                });
                plan.change.push(Change { node: (*name).to_owned(), spec: spec.clone(), news });
            }
        }
    }
    if let Some(manager) = manager {
        let before = &manager.status;
        let mut standing = statuses(spec, &nodes, &wanted, now);
        for status in &mut standing {
            let next = decided.and_then(|d| d.nodes.get(&status.id));
            let transaction = cluster.updates.get(&status.id).and_then(|u| u.spec.transaction.as_ref());
            if let Some(next) = next {
                explain(status, next, transaction);
            }
        }
        let status = status(manager, decided, &nodes, standing, now);
        if status != *before {
            let awaited = status.observed_generation != before.observed_generation;
            plan.standing = Some(Standing { awaited, news: news(before, &status), status });
        }
    }
    plan
}

/// The status that says how the nodes stand; of more of them than one object has room for, it names the first.
fn status(
    manager: &ManagerView,
    decided: Option<&Decided>,
    nodes: &[judge::Node<'_>],
    mut standing: Vec<NodeStatus>,
    now: Timestamp,
) -> UpdateManagerStatus {
    let (before, generation) = (&manager.status.conditions, manager.generation);
    let summary = summary(&standing);
    let mut conditions = conditions(before, manager.spec.as_ref().err().map(String::as_str), nodes, generation, now);
    let halted = halted(manager, decided);
    let goes_on = || ("GoesOn", "updates start as they become due".to_owned());
    conditions.push(condition(before, (NOT_HALTED, halted.is_none()), halted.unwrap_or_else(goes_on), generation, now));
    let (all, listed) = (standing.len(), fit(&standing, manager.spec.as_ref().map_or(0, size)));
    if listed < all {
        standing.truncate(listed);
        let why = format!("there is room for {listed} of {all} nodes; the NodeUpdates of the others say how they stand");
        conditions.push(condition(before, (ALL_LISTED, false), ("NoRoom", why), generation, now));
    }
    UpdateManagerStatus { observed_generation: generation, summary, conditions, nodes: standing, suspects: manager.status.suspects.clone() }
}

/// Why updates are halted, by somebody or by failures of an earlier stage.
fn halted(manager: &ManagerView, decided: Option<&Decided>) -> Option<(&'static str, String)> {
    if manager.spec.as_ref().is_ok_and(|spec| spec.halted) {
        return Some(("Halted", "the spec has halted: true; smartup updates continue ends that".into()));
    }
    let failed = decided.map(|d| d.failed.as_slice()).unwrap_or_default();
    let one = |f: &FailedStage| format!("{} of {} nodes of the stage {} failed, {} are enough", f.failed, f.nodes, f.stage, f.limit);
    let all: Vec<_> = failed.iter().map(one).collect();
    (!all.is_empty()).then(|| ("StageFailed", format!("{}: nothing starts in later stages until they are mended", all.join("; "))))
}

/// A node's `NodeUpdate`, which goes when the node goes.
fn made(name: &str, node: &NodeView, spec: &NodeUpdateSpec) -> NodeUpdate {
    let mut update = NodeUpdate::new(name, spec.clone());
    update.metadata = ObjectMeta {
        namespace: Some(names::NAMESPACE.into()),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.into(),
            uid: node.uid.clone(),
            ..OwnerReference::default()
        }]),
        ..update.metadata
    };
    update
}

/// What changed from one status to the next that somebody should hear of.
fn news(before: &UpdateManagerStatus, after: &UpdateManagerStatus) -> Vec<News> {
    let held = |node: &NodeStatus| (node.rpm_packages.status == State::Suspended).then(|| node.rpm_packages.reason.clone()).flatten();
    let was: BTreeMap<&str, &NodeStatus> = before.nodes.iter().map(|n| (n.id.as_str(), n)).collect();
    let mut news = Vec::new();
    for node in &after.nodes {
        let Some(was) = was.get(node.id.as_str()) else { continue };
        // of a whole cluster that is suspended, the UpdateManager says so
        let own = |reason: Option<Reason>| reason.filter(|r| !matches!(r, Reason::ClusterSuspended | Reason::InvalidSpec));
        match (own(held(was)), own(held(node))) {
            (before, after) if before == after => {}
            (_, Some(why)) => news.push(News {
                node: Some(node.id.clone()),
                reason: "UpdatesSuspended".into(),
                warns: false,
                note: format!("no update starts on this node: {}", why.meaning()),
            }),
            (Some(_), None) => news.push(News {
                node: Some(node.id.clone()),
                reason: "UpdatesResumed".into(),
                warns: false,
                note: "updates may start on this node again".into(),
            }),
            (None, None) => {}
        }
    }
    for condition in &after.conditions {
        let was = before.conditions.iter().find(|c| c.type_ == condition.type_);
        if was.is_none_or(|was| was.status != condition.status) {
            news.push(News {
                node: None,
                reason: condition.reason.clone(),
                warns: condition.status != "True",
                note: condition.message.clone(),
            });
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use updates::api::{Available, Listing, NodeUpdateStatus, UpdateManagerSpec};
    use updates::decide::Cordon;
    use updates::{Policy, Stage};

    use super::*;

    fn view(name: &str, labels: BTreeMap<String, String>) -> NodeView {
        let uid = format!("uid-{name}");
        NodeView { uid, labels, ready: true, server: false, etcd: false, address: None, cordon: Cordon::No, run_requested: None }
    }

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(1000)
    }

    fn cluster(nodes: &[&str]) -> Cluster {
        let node = |name: &&str| ((*name).to_owned(), Arc::new(view(name, BTreeMap::new())));
        let manager = ManagerView {
            uid: Some("uid".into()),
            generation: Some(3),
            spec: Ok(UpdateManagerSpec::default()),
            check_requested: None,
            status: UpdateManagerStatus::default(),
        };
        Cluster { manager: Some(Arc::new(manager)), nodes: nodes.iter().map(node).collect(), updates: BTreeMap::new() }
    }

    fn relabel(cluster: &mut Cluster, node: &str, labels: &[(&str, &str)]) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        cluster.nodes.insert(node.into(), Arc::new(view(node, labels)));
    }

    /// Does what the plan says, as the API would; and lets every agent report.
    fn done(cluster: &mut Cluster, plan: &Plan) {
        for update in &plan.create {
            cluster.updates.insert(update.metadata.name.clone().unwrap(), Arc::new(update.clone()));
        }
        for change in &plan.change {
            Arc::make_mut(cluster.updates.get_mut(&change.node).unwrap()).spec = change.spec.clone();
        }
        if let (Some(standing), Some(manager)) = (&plan.standing, &mut cluster.manager) {
            Arc::make_mut(manager).status = standing.status.clone();
        }
        for update in cluster.updates.values_mut() {
            let check = update.spec.check.clone();
            let status = NodeUpdateStatus { kernel: "6.1".into(), check, ..NodeUpdateStatus::new(Time(now())) };
            Arc::make_mut(update).status = Some(status);
        }
    }

    /// Plans and does until nothing is left to do; all the news on the way.
    fn settle(cluster: &mut Cluster) -> Vec<News> {
        let mut news = Vec::new();
        for _ in 0..4 {
            let plan = plan(cluster, None, now());
            if plan.is_empty() {
                return news;
            }
            done(cluster, &plan);
            news.extend(plan.change.into_iter().filter_map(|c| c.news).chain(plan.standing.into_iter().flat_map(|s| s.news)));
        }
        panic!("it does not come to rest");
    }

    fn words(news: &[News]) -> Vec<String> {
        news.iter().map(|n| format!("{} {}{}", n.node.as_deref().unwrap_or("-"), n.reason, if n.warns { "!" } else { "" })).collect()
    }

    #[test]
    fn a_new_cluster_comes_to_rest_and_stays_there() {
        let mut all = cluster(&["a", "b", "c", "d"]);
        let first = plan(&all, None, now());
        assert_eq!((first.create.len(), first.change.len()), (4, 0));
        assert_eq!(first.create[0].metadata.owner_references.as_ref().unwrap()[0].uid, "uid-a");
        assert_eq!(words(&settle(&mut all)), ["- Understood", "- SomeSilent!", "- GoesOn", "- AllReported"]);
        let manager = all.manager.clone().unwrap();
        assert_eq!((manager.status.nodes.len(), manager.status.observed_generation), (4, Some(3)));
        assert!(plan(&all, None, now()).is_empty(), "nothing is written twice");
    }

    #[test]
    fn without_an_update_manager_the_nodes_get_theirs_all_the_same() {
        let mut all = cluster(&["a"]);
        all.manager = None;
        settle(&mut all);
        assert_eq!(all.updates.len(), 1, "the deployment job waits for the agents before there is one");
    }

    #[test]
    fn labels_are_followed_and_told() {
        let mut all = cluster(&["a", "b"]);
        settle(&mut all);
        relabel(&mut all, "b", &[(names::POLICY_LABEL, "fast"), (names::SUSPEND_LABEL, "")]);
        assert_eq!(words(&settle(&mut all)), ["b StageChanged", "b UpdatesSuspended"]);
        assert_eq!(all.updates["b"].spec.stage, Stage::Fast);
        assert_eq!(all.updates["b"].spec.policy, Policy::Stage(Stage::Fast));
        relabel(&mut all, "b", &[(names::POLICY_LABEL, "fast")]);
        assert_eq!(words(&settle(&mut all)), ["b UpdatesResumed"]);
    }

    #[test]
    fn a_namesake_of_a_node_that_is_gone_inherits_nothing() {
        let mut all = cluster(&["a"]);
        settle(&mut all);
        all.nodes.insert("a".into(), Arc::new(NodeView { uid: "another".into(), ..view("a", BTreeMap::new()) }));
        let plan = plan(&all, None, now());
        assert!(plan.create.is_empty(), "the old one goes with its node, and the watch says so");
        let node = &plan.standing.unwrap().status.nodes[0];
        assert_eq!((&node.kernel, &node.rpm_packages.reason), (&None, &Some(Reason::NotReported)));
    }

    #[test]
    fn what_somebody_has_asked_for_does_not_wait() {
        let mut all = cluster(&["a"]);
        assert!(plan(&all, None, now()).standing.unwrap().awaited, "nothing was answered yet");
        settle(&mut all);
        relabel(&mut all, "a", &[(names::SUSPEND_LABEL, "")]);
        assert!(!plan(&all, None, now()).standing.unwrap().awaited);
        Arc::make_mut(all.manager.as_mut().unwrap()).generation = Some(4);
        assert!(plan(&all, None, now()).standing.unwrap().awaited);
    }

    /// A cluster of so many nodes whose names are as long as a label allows, and of whom the most is to be said.
    fn crowd(nodes: usize) -> UpdateManagerStatus {
        let names: Vec<String> = (0..nodes).map(|n| format!("{n:05}{}", "x".repeat(58))).collect();
        let mut all = cluster(&names.iter().map(String::as_str).collect::<Vec<_>>());
        settle(&mut all);
        for (name, update) in &mut all.updates {
            let status = Arc::make_mut(update).status.as_mut().unwrap();
            status.kernel = "5.14.0-503.40.1.el9_5.x86_64".into();
            let available = (0..100).map(|n| Available { name: format!("bash={n}").parse().unwrap(), since: Time(now()) });
            let checked_at = Some(Time(now()));
            status.packages = Some(Listing { checked_at: checked_at.clone(), error: None, available: available.collect() });
            status.patches = Some(Listing { checked_at, error: None, available: vec![] });
            let node = view(name, [(names::SUSPEND_LABEL.to_owned(), String::new())].into());
            all.nodes.insert(name.clone(), Arc::new(node));
        }
        plan(&all, None, now()).standing.unwrap().status
    }

    #[test]
    fn five_thousand_nodes_are_one_object_and_of_more_it_says_so() {
        let status = crowd(5000);
        assert_eq!((status.nodes.len(), status.conditions.len()), (5000, 3));
        assert!(size(&status) < 1536 * 1024 - 32 * 1024, "{}", size(&status));
        let status = crowd(6000);
        assert!((5000..6000).contains(&status.nodes.len()) && status.summary.nodes == 6000, "{}", status.nodes.len());
        let condition = status.conditions.last().unwrap();
        assert_eq!((condition.type_.as_str(), condition.status.as_str()), (ALL_LISTED, "False"));
        assert!(condition.message.starts_with(&format!("there is room for {} of 6000 nodes", status.nodes.len())), "{}", condition.message);
    }
}
