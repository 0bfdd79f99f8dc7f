use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use updates::api::{Answer, NodeStatus, NodeUpdate, UpdateManagerStatus};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Standing {
    item: &'static str,
    status: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfNode {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct What {
    event: &'static str,
}

/// What the controller shows to Prometheus.
#[derive(Clone)]
pub(super) struct Metrics {
    pub(super) leads: Gauge,
    pub(super) passes: Histogram,
    pub(super) writes: Counter,
    pub(super) failures: Counter,
    stages: Family<Stage, Gauge>,
    standing: Family<Standing, Gauge>,
    reboots: Family<OfNode, Gauge>,
    phases: Family<InPhase, Gauge>,
    updates: Family<What, Counter>,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            leads: Gauge::default(),
            passes: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            writes: Counter::default(),
            failures: Counter::default(),
            stages: Family::default(),
            standing: Family::default(),
            reboots: Family::default(),
            phases: Family::default(),
            updates: Family::default(),
        };
        registry.register("controller_leads", "1 where this controller leads", metrics.leads.clone());
        let passes = metrics.passes.clone();
        registry.register_with_unit("controller_pass_duration", "How long it takes to compare all nodes", Unit::Seconds, passes);
        registry.register("controller_writes", "Writes that the API took", metrics.writes.clone());
        registry.register("controller_write_failures", "Writes that the API did not take", metrics.failures.clone());
        registry.register("nodes", "Nodes by the stage of their updates", metrics.stages.clone());
        registry.register("node_items", "Nodes by how their packages and live patches stand", metrics.standing.clone());
        let reboots = "1 for each node whose host needs a reboot, 0 for each that does not; nothing where that is unknown";
        registry.register("reboot_required", reboots, metrics.reboots.clone());
        registry.register("updating_nodes", "Nodes that are being updated, by phase", metrics.phases.clone());
        registry.register("update_events", "Updates of nodes that started, were done, failed or were put off", metrics.updates.clone());
        metrics
    }

    /// Something happened to a node's update: in one word, as its Event has it.
    pub(super) fn happened(&self, event: &'static str) {
        self.updates.get_or_create(&What { event }).inc();
    }

    /// What the nodes need, and where those are that are being updated.
    pub(super) fn show_updates<'u>(&self, updates: impl Iterator<Item = &'u NodeUpdate>) {
        self.reboots.clear();
        self.phases.clear();
        for update in updates {
            if let Some(transaction) = &update.spec.transaction {
                self.phases.get_or_create(&InPhase { phase: transaction.phase.to_string() }).inc();
            }
            let needed = update.status.as_ref().map(|s| s.reboot.needed);
            let (Some(name), Some(needed @ (Answer::Yes | Answer::No))) = (&update.metadata.name, needed) else { continue };
            self.reboots.get_or_create(&OfNode { node: name.clone() }).set(i64::from(needed == Answer::Yes));
        }
    }

    /// How the nodes stand now.
    pub(super) fn show(&self, status: &UpdateManagerStatus) {
        self.stages.clear();
        self.standing.clear();
        for NodeStatus { stage_name, ready_kernel, rpm_packages, .. } in &status.nodes {
            let stage = stage_name.map_or_else(|| "none".into(), |s| s.to_string());
            self.stages.get_or_create(&Stage { stage }).inc();
            for (item, items) in [("packages", rpm_packages), ("patches", ready_kernel)] {
                let reason = items.reason.as_ref().map(ToString::to_string).unwrap_or_default();
                self.standing.get_or_create(&Standing { item, status: items.status.to_string(), reason }).inc();
            }
        }
    }
}
