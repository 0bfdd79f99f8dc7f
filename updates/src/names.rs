//! Every name that others see: in the API, in manifests, on the host.

/// The API group, known from the labels of the reference (7.4.5, 7.4.6).
pub const GROUP: &str = "maintenance.virtuozzo.io";
/// The version of the group that our operator serves. The reference prints none: discover it where a vendor's may run.
pub const VERSION: &str = "v1";
/// The namespace of all that belongs to smart updates (7.4.1, step 4).
pub const NAMESPACE: &str = "vz-maintenance-operator";
/// The one `UpdateManager` (7.4.3).
pub const INSTANCE: &str = "default";

/// The label of a node that holds its policy: fast, slow, stable or auto (7.4.5).
pub const POLICY_LABEL: &str = "maintenance.virtuozzo.io/auto-updates-policy";
/// The label that suspends a node, whatever its value; the reference's is empty (7.4.6).
pub const SUSPEND_LABEL: &str = "maintenance.virtuozzo.io/suspend";
/// The annotation of the `UpdateManager` whose change makes every node look for updates at once: a time, RFC 3339.
pub const CHECK_ANNOTATION: &str = "maintenance.virtuozzo.io/check-requested-at";

/// The annotation of a Node that asks for its update now, first of all and outside of windows: a time, RFC 3339. It is good for
/// an hour, and for one attempt.
pub const RUN_ANNOTATION: &str = "maintenance.virtuozzo.io/run-requested-at";
/// The annotation of the `UpdateManager` that says who banned what, when and why: JSON, by item.
pub const BANS_ANNOTATION: &str = "maintenance.virtuozzo.io/bans";
/// A node that is being updated holds the Lease of this name and a slot's number, in the operator's namespace.
pub const LOCK_PREFIX: &str = "smartup-update-";

/// The Job that completes when the operator is ready; the operator's version follows (7.4.1, step 4).
pub const JOB_PREFIX: &str = "vz-maintenance-deployment-job-v";
/// A vendor's own operator, applied instead of ours where it is there (7.4.1, step 3).
pub const OPERATOR_MANIFEST: &str = "/usr/share/smart-updates/maintenance-operator.yaml";
/// A vendor's own `UpdateManager` (7.4.1, step 5).
pub const UPDATE_MANAGER_MANIFEST: &str = "/usr/share/smart-updates/update-manager.yaml";

/// Who applies manifests and edits specs, in `managedFields`.
pub const FIELD_MANAGER: &str = "smartup";
/// Who writes status and `NodeUpdate` specs.
pub const CONTROLLER_MANAGER: &str = "smartup-controller";
/// Who writes a `NodeUpdate`'s status.
pub const AGENT_MANAGER: &str = "smartup-agent";
