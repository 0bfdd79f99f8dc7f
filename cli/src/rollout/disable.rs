//! The operator goes, with all that came with it.

use std::path::Path;
use std::time::{Duration, Instant};

use cluster::Role;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use node::{Awaited, Error, Host, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use updates::names;

use super::api::Objects;
use super::labels::{Labels, labels};
use super::manifest::Object;
use super::{has_admission_policies, manifest};
use crate::depart;

/// What disabling did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Disabled {
    /// What is gone.
    pub gone: Vec<String>,
    /// What is left because it is somebody else's, and whose.
    pub kept: Vec<String>,
}

/// How long all that belongs to the operator may take to go.
pub const TIMEOUT: Duration = Duration::from_secs(600);
/// How long nodes that are being updated may take to be done.
const UPDATES: Duration = Duration::from_secs(3600);

/// Takes the operator out of the cluster, from a server. `named` is the text of the manifest that brought it, if the user has another
/// than the one on this host or ours. Nodes in the middle of an update are let finish, unless it is to be `now`.
///
/// # Errors
/// Refused when another operation is under way; failed when an update is not over within an hour, or when something does not go, with
/// what holds it.
pub async fn disable(host: &mut Host, named: Option<&str>, now: bool) -> Result<Disabled> {
    let client = depart::admin(None).await?;
    if !now {
        host.deadline = Instant::now() + UPDATES;
        let_finish(&Objects { host, client: client.clone() }).await?;
    }
    host.deadline = Instant::now() + TIMEOUT;
    let host = &*host;
    let objects = Objects { host, client: client.clone() };
    // which image it was does not matter for what is to go
    let any = || "smartup.local/operator:any".parse().map_err(|e: cluster::Invalid| Error::failed(e.to_string()));
    let manifest = manifest(named, has_admission_policies(&objects).await?, any)?;
    let lease = depart::take(host, &client, "disabling smart updates").await?;
    let done = async {
        let mut done = Disabled::default();
        // while their controller lives: what it has put finalizers on, it takes off again
        for definition in manifest.definitions() {
            let api = objects.served(definition).await?;
            let found = objects.ask(&format!("looking at {definition}"), async || api.get_opt(&definition.name).await).await?;
            let Some(gvk) = found.and_then(|d| defined(&d.data)) else { continue };
            match objects.delete_all(&gvk).await? {
                0 => {}
                n => done.gone.push(format!("{n} × {}", gvk.kind)),
            }
        }
        // an agent that ends asks whether all do, and has to be allowed to
        let (at_work, others) = manifest.things_backwards().partition(|o| matches!(o.gvk.group.as_str(), "apps" | "batch"));
        take(&objects, at_work, &mut done).await?;
        take(&objects, others, &mut done).await?;
        let old = objects.other_jobs(names::NAMESPACE, None).await?;
        take(&objects, old.iter().collect(), &mut done).await?;
        take(&objects, manifest.definitions().collect(), &mut done).await?;
        for namespace in manifest.namespaces() {
            match objects.somebodys(&namespace.name).await? {
                theirs if theirs.is_empty() => take(&objects, vec![namespace], &mut done).await?,
                theirs => done.kept.push(format!("{namespace}, which holds {}", theirs.join(", "))),
            }
        }
        leave_nodes(&objects, &mut done).await?;
        Ok(done)
    };
    let done = done.await;
    lease.end().await;
    done
}

/// Deletes objects, then waits until they are gone.
async fn take(objects: &Objects<'_>, some: Vec<&Object>, done: &mut Disabled) -> Result<()> {
    let mut going = Vec::new();
    for object in some {
        if objects.delete(object).await? {
            going.push(object);
        }
    }
    for object in going {
        objects.gone(object).await?;
        done.gone.push(object.to_string());
    }
    Ok(())
}

/// The kind that a definition defines, in a version that is served.
fn defined(definition: &Value) -> Option<GroupVersionKind> {
    let spec = &definition["spec"];
    let version = spec["versions"].as_array()?.iter().find(|v| v["served"] == true)?;
    Some(GroupVersionKind::gvk(spec["group"].as_str()?, version["name"].as_str()?, spec["names"]["kind"].as_str()?))
}

/// Lets no update start any more, and those that have touched their nodes come to their end. Broken ones do not by themselves.
async fn let_finish(objects: &Objects<'_>) -> Result<()> {
    let ours = async |kind: &str| {
        let found = objects.kind(&GroupVersionKind::gvk(names::GROUP, names::VERSION, kind)).await?;
        Ok::<_, Error>(
            found.map(|(resource, _)| Api::<DynamicObject>::namespaced_with(objects.client.clone(), names::NAMESPACE, &resource)),
        )
    };
    // a vendor's operator does not say what is under way
    let (Some(managers), Some(updates)) = (ours("UpdateManager").await?, ours("NodeUpdate").await?) else { return Ok(()) };
    let (how, halt) = (PatchParams::default(), Patch::Merge(json!({ "spec": { "halted": true } })));
    let halted = objects.ask("halting updates", async || match managers.patch(names::INSTANCE, &how, &halt).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop),
    });
    halted.await?;
    // each node that is being updated has one: they are few, and small
    let leases = Api::<Lease>::namespaced(objects.client.clone(), names::NAMESPACE);
    let under_way = async || {
        let all = leases.list(&ListParams::default()).await?.items;
        let mut busy = Vec::new();
        for lease in all.iter().filter(|l| l.name_any().starts_with(names::LOCK_PREFIX)) {
            let Some(node) = lease.spec.as_ref().and_then(|s| s.holder_identity.as_ref()) else { continue };
            let update = updates.get_opt(node).await?;
            busy.extend(update.and_then(|u| Some(format!("{node} is being updated ({})", phase(&u.data)?))));
        }
        Ok::<_, kube::Error>(busy)
    };
    objects
        .host
        .wait_for("updates", "the updates that have begun to come to their end (disable --now does not)", async || {
            let busy = objects.ask("looking at the nodes' updates", &under_way).await?;
            Ok(if busy.is_empty() { Awaited::Done(()) } else { Awaited::missing(busy.join(", ")) })
        })
        .await
}

/// The phase that a `NodeUpdate` is in, if it goes on by itself.
fn phase(update: &Value) -> Option<&str> {
    update.pointer("/spec/transaction/phase")?.as_str().filter(|phase| *phase != "Broken")
}

/// Takes from the nodes the labels that smartup has set, and the cordons of updates that do not go on any more.
async fn leave_nodes(objects: &Objects<'_>, done: &mut Disabled) -> Result<()> {
    let api = Api::<Node>::all(objects.client.clone());
    let nodes = objects.ask("listing the nodes", async || api.list_metadata(&ListParams::default()).await).await?;
    for node in &nodes.items {
        let name = node.name_any();
        let Labels { ours, others } = labels(&node.metadata);
        if !ours.is_empty() {
            let none: Map<String, Value> = ours.iter().map(|l| (l.clone(), Value::Null)).collect();
            let patch = Patch::Merge(json!({ "metadata": { "labels": none } }));
            let how = PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
            objects.ask(&format!("taking labels from node {name}"), async || api.patch_metadata(&name, &how, &patch).await).await?;
        }
        if node.annotations().get(k3s::CORDON).is_some_and(|why| why == operator::CORDONED_FOR) {
            k3s::uncordon_for(&objects.client, &name, node.metadata.uid.as_deref(), operator::CORDONED_FOR).await?;
            done.gone.push(format!("cordon of node {name}"));
        }
        done.gone.extend(ours.iter().map(|l| format!("label {l} of node {name}")));
        done.kept.extend(others.iter().map(|(l, who)| format!("label {l} of node {name}, set by {who}")));
    }
    Ok(())
}

/// Lets this host update itself again, where its agent could not see to it any more; with `k3s`, stops k3s here and disables it at
/// boot. Answers what was done, nothing when it was so already.
///
/// # Errors
/// When systemd refuses.
pub async fn put_back(host: &Host, k3s: bool) -> Result<Vec<String>> {
    if !host.facts.root {
        return Err(Error::failed("smartup does not run as root").hint("run it with sudo"));
    }
    let released = operator::updaters::release(Path::new("/")).await?;
    let mut done: Vec<String> = released.iter().map(|service| format!("hold on {service}")).collect();
    if !k3s {
        return Ok(done);
    }
    for unit in [Role::Server, Role::Agent].map(k3s::paths::unit) {
        let state = host.systemd.unit(&unit).await?;
        if state.running() {
            host.systemd.stop(&unit).await?;
            done.push(format!("{unit} stopped"));
        }
        if state.enabled() {
            host.systemd.disable(&unit).await?;
            done.push(format!("{unit} disabled"));
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_waited_for() {
        let of = |phase: &str| json!({ "spec": { "transaction": { "phase": phase } } });
        assert_eq!(phase(&of("Installing")), Some("Installing"));
        assert_eq!(phase(&of("Broken")), None, "it may take for ever");
        assert_eq!(phase(&json!({ "spec": {} })), None);
    }
}
