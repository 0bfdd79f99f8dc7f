//! Nodes whose agents are driven by a test: the controller is away, and the test writes transactions as it would, and reads the answers.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::{Host, until};
use serde_json::{Value, json};

use super::LONG;
use super::updating::NAMESPACE;

pub fn kubectl(host: &Host, args: &str) -> Result<String> {
    host.sh(&format!("k3s kubectl -n {NAMESPACE} {args}"))
}

/// From now on, nobody but the test says what the agents are to do.
pub fn controller_goes(server: &Host) -> Result<()> {
    kubectl(server, "scale deployment smartup-controller --replicas=0")?;
    kubectl(server, "wait --for=delete pod -l app.kubernetes.io/component=controller --timeout=120s").map(drop)
}

/// A node whose agent is driven from another host.
pub struct Node<'a> {
    pub host: &'a Host,
    /// Where it is asked from.
    pub from: &'a Host,
    /// The builds that are installed on a host, as its package manager names them.
    pub installed: fn(&Host) -> Result<Vec<String>>,
    /// The number of the next transaction.
    pub transaction: u32,
}

impl<'a> Node<'a> {
    pub fn of(host: &'a Host, from: &'a Host, installed: fn(&Host) -> Result<Vec<String>>) -> Self {
        Self { host, from, installed, transaction: 1 }
    }

    pub fn status(&self) -> Result<Value> {
        let object: Value = serde_json::from_str(&kubectl(self.from, &format!("get nodeupdate {} -o json", self.host.name()))?)?;
        Ok(object["status"].clone())
    }

    pub fn patch(&self, spec: &Value) -> Result<()> {
        let patch = json!({ "spec": spec }).to_string();
        self.from.run(["k3s", "kubectl", "-n", NAMESPACE, "patch", "nodeupdate", self.host.name(), "--type=merge", "-p", &patch]).map(drop)
    }

    fn id(&self) -> String {
        format!("{:016x}", self.transaction)
    }

    /// A transaction with these packages comes into this phase, which may be silent for so many seconds.
    pub fn enters(&self, phase: &str, packages: &[&str], patience: u32) -> Result<()> {
        let date = |seconds: u32| -> Result<String> {
            Ok(self.host.run(["date", "-u", "-d", &format!("+{seconds} seconds"), "+%Y-%m-%dT%H:%M:%SZ"])?.trim().to_owned())
        };
        let (now, touched) = (date(0)?, !packages.is_empty() && ["Installing", "Verifying", "Releasing"].contains(&phase));
        self.patch(&json!({ "transaction": {
            "id": self.id(), "packages": packages, "reboot": "when-needed", "startedAt": now, "phase": phase, "since": now,
            "deadline": date(patience)?, "bootId": self.host.boot_id()?, "touched": touched,
        }}))
    }

    /// What the agent says of the phase, once it is not at work any more.
    pub fn answer(&self, phase: &str) -> Result<Value> {
        let mut last = Value::Null;
        let answered = until(&format!("{} is done with {phase}", self.host.name()), LONG, || {
            let Ok(status) = self.status() else { return Ok(None) };
            let progress = status["progress"].clone();
            last = status;
            let ours = progress["transaction"] == self.id() && progress["phase"] == phase && progress["outcome"] != "Running";
            Ok(ours.then_some(progress))
        });
        answered.with_context(|| {
            let log = self.host.sh("journalctl -o cat --no-pager -n 40 -u smartup-update -u smartup-look").unwrap_or_default();
            let agent = kubectl(self.from, "logs -l app.kubernetes.io/component=agent --tail 20 --prefix").unwrap_or_default();
            format!("{last:#}\n{log}\n{agent}")
        })
    }

    /// A phase from its beginning to its end, which has this outcome.
    pub fn phase(&self, phase: &str, packages: &[&str], patience: u32, outcome: &str) -> Result<Value> {
        self.enters(phase, packages, patience)?;
        let answer = self.answer(phase)?;
        ensure!(answer["outcome"] == outcome, "{phase}: {answer:#}");
        Ok(answer)
    }

    /// The rest of the way, to the node that is free for another update.
    pub fn ends(&mut self, packages: &[&str]) -> Result<Value> {
        let verified = self.phase("Verifying", packages, 600, "Done")?;
        self.phase("Releasing", packages, 600, "Done")?;
        let status = self.status()?;
        ensure!(status["history"][0]["transaction"] == self.id(), "{status:#}");
        let (there, available) = ((self.installed)(self.host)?, status["packages"]["available"].as_array().cloned().unwrap_or_default());
        for package in packages {
            let installed = there.iter().any(|name| name == package);
            ensure!(!installed || available.iter().all(|a| a["name"] != *package), "{package} is installed already: {status:#}");
        }
        self.patch(&json!({ "transaction": null }))?;
        until("nothing is under way", LONG, || Ok(self.status()?["progress"].is_null().then_some(())))?;
        self.transaction += 1;
        Ok(verified)
    }

    /// Waits until these, and no others, are listed.
    pub fn available(&self, wanted: &[&str]) -> Result<()> {
        let wanted: BTreeSet<_> = wanted.iter().map(ToString::to_string).collect();
        let mut last = Value::Null;
        until(&format!("{wanted:?} are available"), LONG, || {
            last = self.status()?["packages"].clone();
            let names =
                last["available"].as_array().map(|all| all.iter().map(|a| a["name"].as_str().unwrap_or_default().to_owned()).collect());
            Ok((names == Some(wanted.clone())).then_some(()))
        })
        .with_context(|| format!("{last:#}"))
    }
}
