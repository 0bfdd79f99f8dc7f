//! One pass: from what is known to what is to be written. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use updates::api::{NodeStatus, NodeUpdate, NodeUpdateSpec, Reason, State, UpdateManagerStatus};
use updates::judge::{self, conditions, statuses, summary, wanted};
use updates::names;

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
    pub(super) change: Vec<(String, NodeUpdateSpec)>,
    /// How all nodes stand; None when the `UpdateManager` says so already, or there is none.
    pub(super) status: Option<UpdateManagerStatus>,
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
        self.create.is_empty() && self.change.is_empty() && self.status.is_none()
    }
}

/// What is to be done now.
pub(super) fn plan(cluster: &Cluster, now: Timestamp) -> Plan {
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
                if update.spec.stage != spec.stage {
                    let note = format!("the node's stage is {} now, not {} any more", spec.stage, update.spec.stage);
                    plan.news.push(News { node: Some((*name).to_owned()), reason: "StageChanged".into(), warns: false, note });
                }
                plan.change.push(((*name).to_owned(), spec.clone()));
            }
        }
    }
    if let Some(manager) = manager {
        let before = &manager.status;
        let standing = statuses(spec, &nodes, &wanted, now);
        let status = UpdateManagerStatus {
            observed_generation: manager.generation,
            summary: summary(&standing),
            conditions: conditions(&before.conditions, manager.spec.as_ref().err().map(String::as_str), &nodes, manager.generation, now),
            nodes: standing,
        };
        if status != *before {
            plan.news.extend(news(before, &status));
            plan.status = Some(status);
        }
    }
    plan
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
    use updates::api::{NodeUpdateStatus, UpdateManagerSpec};
    use updates::{Policy, Stage};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(1000)
    }

    fn cluster(nodes: &[&str]) -> Cluster {
        let node = |name: &&str| ((*name).to_owned(), Arc::new(NodeView { uid: format!("uid-{name}"), labels: BTreeMap::new() }));
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
        cluster.nodes.insert(node.into(), Arc::new(NodeView { uid: format!("uid-{node}"), labels }));
    }

    /// Does what the plan says, as the API would; and lets every agent report.
    fn done(cluster: &mut Cluster, plan: &Plan) {
        for update in &plan.create {
            cluster.updates.insert(update.metadata.name.clone().unwrap(), Arc::new(update.clone()));
        }
        for (name, spec) in &plan.change {
            Arc::make_mut(cluster.updates.get_mut(name).unwrap()).spec = spec.clone();
        }
        if let (Some(status), Some(manager)) = (&plan.status, &mut cluster.manager) {
            Arc::make_mut(manager).status = status.clone();
        }
        for update in cluster.updates.values_mut() {
            let check = update.spec.check.clone();
            Arc::make_mut(update).status = Some(NodeUpdateStatus {
                agent_version: "1".into(),
                reported_at: Time(now()),
                kernel: "6.1".into(),
                check,
                packages: None,
                patches: None,
                storage_services: vec![],
            });
        }
    }

    /// Plans and does until nothing is left to do; all the news on the way.
    fn settle(cluster: &mut Cluster) -> Vec<News> {
        let mut news = Vec::new();
        for _ in 0..4 {
            let plan = plan(cluster, now());
            if plan.is_empty() {
                return news;
            }
            done(cluster, &plan);
            news.extend(plan.news);
        }
        panic!("it does not come to rest");
    }

    fn words(news: &[News]) -> Vec<String> {
        news.iter().map(|n| format!("{} {}{}", n.node.as_deref().unwrap_or("-"), n.reason, if n.warns { "!" } else { "" })).collect()
    }

    #[test]
    fn a_new_cluster_comes_to_rest_and_stays_there() {
        let mut all = cluster(&["a", "b", "c", "d"]);
        let first = plan(&all, now());
        assert_eq!((first.create.len(), first.change.len()), (4, 0));
        assert_eq!(first.create[0].metadata.owner_references.as_ref().unwrap()[0].uid, "uid-a");
        assert_eq!(words(&settle(&mut all)), ["- Understood", "- SomeSilent!", "- AllReported"]);
        let manager = all.manager.clone().unwrap();
        assert_eq!((manager.status.nodes.len(), manager.status.observed_generation), (4, Some(3)));
        assert!(plan(&all, now()).is_empty(), "nothing is written twice");
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
        all.nodes.insert("a".into(), Arc::new(NodeView { uid: "another".into(), labels: BTreeMap::new() }));
        let plan = plan(&all, now());
        assert!(plan.create.is_empty(), "the old one goes with its node, and the watch says so");
        let node = &plan.status.unwrap().nodes[0];
        assert_eq!((&node.kernel, &node.rpm_packages.reason), (&None, &Some(Reason::NotReported)));
    }
}
