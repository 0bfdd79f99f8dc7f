//! What the spec of the `UpdateManager` says about how a node is updated: groups of fields, all with defaults.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::choice::choice;
use crate::{AlertPattern, HostPath, LabelValue, MarkName, PodSelector, ServiceName, Span, Stage, WebUrl};

choice! {
    /// Who lets updates be installed.
    Approval, "approval", "automatic: all that is due is installed, manual: only what is approved." {
        /// All that is due is installed.
        #[default]
        Automatic = "automatic",
        /// Only what is approved is.
        Manual = "manual",
    }
}

choice! {
    /// When a node is rebooted.
    Reboots, "reboot", "never, when-needed: when the host says that it needs one, always: after each update that installed packages." {
        /// Not even when it needs one.
        Never = "never",
        /// When the host says that it needs one; not when that is unknown.
        #[default]
        WhenNeeded = "when-needed",
        /// After each update that installed packages, and when the host says that it needs one.
        Always = "always",
    }
}

choice! {
    /// What somebody is notified of.
    Notice, "notice", "started, done: an update of a node; failed: one that did not come to a good end." {
        /// The update of a node has started.
        #[default]
        Started = "started",
        /// It is done.
        Done = "done",
        /// It did not come to a good end.
        Failed = "failed",
    }
}

/// How many days after its publication an update is due, for each stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StageDelays {
    /// Days of 24 hours. Default: 0.
    #[schemars(range(max = 3650))]
    pub fast: u16,
    /// Days of 24 hours. Default: 14.
    #[schemars(range(max = 3650))]
    pub slow: u16,
    /// Days of 24 hours. Default: 42.
    #[schemars(range(max = 3650))]
    pub stable: u16,
}

impl Default for StageDelays {
    /// At once, two weeks and six weeks (7.4).
    fn default() -> Self {
        Self { fast: 0, slow: 14, stable: 42 }
    }
}

impl StageDelays {
    /// How long after its publication an update is due.
    pub fn of(&self, stage: Stage) -> SignedDuration {
        let days = match stage {
            Stage::Fast => self.fast,
            Stage::Slow => self.slow,
            Stage::Stable => self.stable,
        };
        SignedDuration::from_hours(24 * i64::from(days))
    }
}

/// A program and its arguments. No shell is asked: what has to be quoted in one is written as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
#[schemars(inline)]
pub struct Command(#[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 4096)))] Vec<String>);

impl Command {
    /// The program and its arguments.
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

impl TryFrom<Vec<String>> for Command {
    type Error = cluster::Invalid;
    fn try_from(words: Vec<String>) -> Result<Self, cluster::Invalid> {
        let whole = !words.is_empty() && words.iter().all(|w| !w.is_empty() && !w.contains('\0'));
        if whole {
            Ok(Self(words))
        } else {
            Err(cluster::Invalid::new("command", words.join(" "), "is a program and its arguments, none of them empty"))
        }
    }
}

impl From<Command> for Vec<String> {
    fn from(command: Command) -> Self {
        command.0
    }
}

/// What agents do on their hosts; given to each of them as it is here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HostRules {
    /// How the host is rebooted. Default: systemctl reboot.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Command")]
    pub reboot_command: Option<Command>,
    /// A file whose presence says that the host needs a reboot, beside what its package manager says: other tools may make it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HostPath")]
    pub sentinel_file: Option<HostPath>,
    /// A command that says whether the host needs a reboot, in the place of sentinelFile: exit code 0 yes, 1 no, all else unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Command")]
    pub sentinel_command: Option<Command>,
    /// A command that has to end well after an update before the node takes pods again; it is repeated until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Command")]
    pub gate_command: Option<Command>,
    /// Services that have to run after an update if they ran before it, beside those of k3s, containers, the floating address,
    /// SSH, the firewall and the clock.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub critical_services: Vec<ServiceName>,
}

impl HostRules {
    /// Whether they say nothing.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How pods are taken off a node, with the names and meanings of kubectl drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "they are kubectl's")]
pub struct Drain {
    /// Seconds that pods have to end; absent: what each pod says itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<u32>,
    /// false: pods with data in an emptyDir block the node. Default: true.
    pub delete_empty_dir_data: bool,
    /// false: pods of `DaemonSets` block the node. Default: true; they stay where they are.
    pub ignore_daemon_sets: bool,
    /// true: pods without a controller go too, and nothing makes them anew. Default: false, they block the node.
    pub force: bool,
    /// true: pods are deleted, past their disruption budgets. Default: false.
    pub disable_eviction: bool,
    /// Pods that have been ending for more than so many seconds are not waited for. Absent: all are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_wait_for_delete_timeout_seconds: Option<u32>,
    /// Only these pods are taken off. Absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PodSelector")]
    pub pod_selector: Option<PodSelector>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            grace_period_seconds: None,
            delete_empty_dir_data: true,
            ignore_daemon_sets: true,
            force: false,
            disable_eviction: false,
            skip_wait_for_delete_timeout_seconds: None,
            pod_selector: None,
        }
    }
}

/// How long a node may stay in each of its phases: hours and minutes, as in 1h30m.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// To find out whether pods, budgets and alerts let it start. Default: 0h05m.
    pub check: Span,
    /// To download what is installed. Default: 1h00m.
    pub download: Span,
    /// To take the pods off the node. Default: 0h30m.
    pub drain: Span,
    /// To move the floating address to another server. Default: 0h05m.
    pub hand_over: Span,
    /// To install without any sign of progress; one that hangs for longer counts as a crash. Default: 0h30m.
    pub install: Span,
    /// To come back from a reboot. Default: 0h20m.
    pub reboot: Span,
    /// To be as well as before. Default: 0h20m.
    pub verify: Span,
    /// Before a failed update is tried again for the first time; doubled each time, up to a week. At least 4h. Default: 4h00m.
    pub retry: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            check: Span::minutes::<5>(),
            download: Span::minutes::<60>(),
            drain: Span::minutes::<30>(),
            hand_over: Span::minutes::<5>(),
            install: Span::minutes::<30>(),
            reboot: Span::minutes::<20>(),
            verify: Span::minutes::<20>(),
            retry: Span::minutes::<240>(),
        }
    }
}

/// Alerts of Prometheus that keep updates from starting, and a node from taking pods again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockingAlerts {
    /// Where Prometheus is, as in `http://prometheus.monitoring:9090`. One that cannot be asked blocks.
    pub prometheus_url: WebUrl,
    /// Only alerts block whose names this regular expression is found in. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AlertPattern")]
    pub matching: Option<AlertPattern>,
    /// But not those whose names this one is found in, as in ^Watchdog$. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AlertPattern")]
    pub ignoring: Option<AlertPattern>,
}

impl BlockingAlerts {
    /// Whether a firing alert of this name blocks.
    pub fn block(&self, alert: &str) -> bool {
        self.matching.as_ref().is_none_or(|p| p.is_in(alert)) && !self.ignoring.as_ref().is_some_and(|p| p.is_in(alert))
    }
}

/// Who is told what. The address of the webhook is in the Secret smartup-notify, key url, in the operator's namespace: such
/// addresses often hold a token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Notify {
    /// The body of the request, with {{ node }}, {{ event }}, {{ message }} and {{ transaction }}. Absent: JSON with a text, as
    /// Slack takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192))]
    pub template: Option<String>,
    /// What is told. None: all of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub events: Vec<Notice>,
}

impl Notify {
    /// Whether this is told.
    pub fn wants(&self, notice: Notice) -> bool {
        self.events.is_empty() || self.events.contains(&notice)
    }
}

/// What is put on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Marks {
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, LabelValue>")]
    pub labels: BTreeMap<MarkName, LabelValue>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, String>")]
    pub annotations: BTreeMap<MarkName, String>,
}

impl Marks {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}
