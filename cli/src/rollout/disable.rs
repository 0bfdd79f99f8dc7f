//! The operator goes, with all that came with it.

use std::path::Path;

use cluster::Role;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use node::{Error, Host, Result};
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

/// Takes the operator out of the cluster, from a server. `named` is the text of the manifest that brought it, if the user has another
/// than the one on this host or ours.
///
/// # Errors
/// Refused when another operation is under way; failed when something does not go, with what holds it.
pub async fn disable(host: &Host, named: Option<&str>) -> Result<Disabled> {
    let client = depart::admin(None).await?;
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
        unlabel(&objects, &mut done).await?;
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

/// Takes from the nodes the labels that smartup has set.
async fn unlabel(objects: &Objects<'_>, done: &mut Disabled) -> Result<()> {
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
