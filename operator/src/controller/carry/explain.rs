//! Why a node is not updated, as its standing says.

use updates::api::{ItemsStatus, NodeStatus, Phase, Reason, State, Transaction};
use updates::decide::Next;

/// Puts the reason beside what is due. A node that needs nothing but a reboot counts as pending with its packages.
pub(in super::super) fn explain(status: &mut NodeStatus, next: &Next, transaction: Option<&Transaction>) {
    let reason = match (transaction, next) {
        (Some(t), _) if t.phase == Phase::Broken => Reason::Broken,
        (Some(_), _) | (None, Next::Act(_)) => Reason::Updating,
        (None, Next::Wait(wait)) => wait.reason.clone(),
        (None, Next::Rest) => return,
    };
    let is_pending = |items: &ItemsStatus| items.status == State::Pending;
    let only_reboot = !is_pending(&status.rpm_packages) && !is_pending(&status.ready_kernel);
    if only_reboot && status.rpm_packages.status == State::UpToDate && says_due(&reason) {
        status.rpm_packages.status = State::Pending;
    }
    for items in [&mut status.rpm_packages, &mut status.ready_kernel] {
        if items.status == State::Pending {
            items.reason = Some(reason.clone());
        }
    }
}

/// Whether a node that waits for this has something that is due.
fn says_due(reason: &Reason) -> bool {
    !matches!(
        reason,
        Reason::TooYoung
            | Reason::Banned
            | Reason::Suspected
            | Reason::NotReported
            | Reason::AgentSilent
            | Reason::CheckFailed
            | Reason::NotSupported
            | Reason::Halted
            | Reason::NodeNotReady
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use updates::decide::Wait;

    use super::*;

    #[test]
    fn what_is_due_says_what_it_waits_for() {
        let status = |packages: &str, patches: &str| -> NodeStatus {
            serde_json::from_value(json!({ "id": "h1", "rpmPackages": { "status": packages }, "readyKernel": { "status": patches } }))
                .unwrap()
        };
        let transaction = |phase: &str| -> Transaction {
            let at = "2026-11-21T12:00:00Z";
            serde_json::from_value(json!({ "id": "0123456789abcdef", "reboot": "never", "startedAt": at, "phase": phase, "since": at }))
                .unwrap()
        };
        let wait = |reason| Next::Wait(Wait { reason, until: None, place: None });
        let said = |mut status: NodeStatus, next: &Next, transaction: Option<&Transaction>| -> Vec<Value> {
            explain(&mut status, next, transaction);
            [status.rpm_packages, status.ready_kernel].iter().map(|i| json!([i.status, i.reason])).collect()
        };
        let turn = wait(Reason::WaitingForTurn);
        assert_eq!(said(status("Pending", "UpToDate"), &turn, None), [json!(["Pending", "WaitingForTurn"]), json!(["UpToDate", null])]);
        assert_eq!(said(status("UpToDate", "UpToDate"), &turn, None)[0], json!(["Pending", "WaitingForTurn"]), "a reboot is due");
        assert_eq!(said(status("UpToDate", "UpToDate"), &wait(Reason::TooYoung), None)[0], json!(["UpToDate", null]));
        assert_eq!(said(status("UpToDate", "UpToDate"), &Next::Rest, None)[0], json!(["UpToDate", null]));
        assert_eq!(said(status("Suspended", "Suspended"), &turn, None)[0], json!(["Suspended", null]), "the reason for that stays");
        let under_way = |phase| said(status("Pending", "Pending"), &turn, Some(&transaction(phase)));
        assert_eq!(under_way("Draining"), [json!(["Pending", "Updating"]), json!(["Pending", "Updating"])]);
        assert_eq!(under_way("Broken")[0], json!(["Pending", "Broken"]));
    }
}
