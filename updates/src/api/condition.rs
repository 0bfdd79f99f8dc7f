use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Whether the spec can be understood; where it is not, nothing is started.
pub const SPEC_VALID: &str = "SpecValid";
/// Whether the agents of all nodes have reported of late.
pub const AGENTS_REPORTING: &str = "AgentsReporting";
/// Whether the status names each node. It is there only where it does not: where a cluster is too large for one object.
pub const ALL_LISTED: &str = "AllListed";

/// Whether updates start as they become due: neither did somebody halt them, nor do failures of an earlier stage.
pub const NOT_HALTED: &str = "NotHalted";

/// A condition that says `holds`; it keeps its time from `before` as long as its status stays the same.
pub fn condition(
    before: &[Condition],
    (type_, holds): (&str, bool),
    (reason, message): (&str, String),
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let same = before.iter().find(|c| c.type_ == type_ && c.status == status);
    Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: same.map_or(Time(now), |c| c.last_transition_time.clone()),
    }
}
