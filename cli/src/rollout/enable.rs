//! The operator is brought into the cluster, and works when this ends.

use std::collections::BTreeSet;
use std::time::Instant;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, LogParams};
use kube::{Client, ResourceExt as _};
use node::{Awaited, Context as _, Error, Host, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use updates::names;

use super::api::{Applied, Objects};
use super::course::{self, Course};
use super::manifest::{Manifest, Object};
use super::{has_admission_policies, manifest, named_or_vendors};
use crate::commands::image;
use crate::depart;

/// How many of a pod's last lines are shown when it has failed.
const LINES: i64 = 10;

/// What enabling did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Enabled {
    /// The objects that were made or changed.
    pub changed: Vec<String>,
    /// The Jobs of other versions, which have done their work.
    pub gone: Vec<String>,
    /// How many were so already.
    pub unchanged: usize,
    /// The deployment Job, which is Complete.
    pub job: String,
    /// The nodes, each of which has a status.
    pub nodes: Vec<String>,
}

impl Enabled {
    fn note(&mut self, object: &Object, applied: Applied) {
        match applied {
            Applied::Changed => self.changed.push(object.to_string()),
            Applied::Unchanged => self.unchanged += 1,
        }
    }
}

/// Enables smart updates, from a server: applies the manifest and waits until the operator works and each node has a status.
/// `named` and `named_manager` are the texts of the user's own files. `goes_on`: another server has begun with it, and was lost; then it
/// is waited for until the cluster is well.
///
/// # Errors
/// Refused when the cluster is not well, or another operation is under way; failed as soon as the operator cannot come up, with the
/// reason.
pub async fn enable(host: &Host, named: Option<&str>, named_manager: Option<&str>, goes_on: bool) -> Result<Enabled> {
    let client = depart::admin(None).await?;
    well(host, &client, goes_on).await?;
    let objects = Objects { host, client: client.clone() };
    let manifest = manifest(named, has_admission_policies(&objects).await?, || image::own().map(|own| own.reference().clone()))?;
    let manager = named_or_vendors(named_manager, names::UPDATE_MANAGER_MANIFEST)?.map(|text| Manifest::parse(&text)).transpose()?;
    if let Some(manager) = &manager {
        manager.update_manager()?;
    }
    let job = manifest.job()?.clone();
    let lease = depart::take(host, &client, "enabling smart updates").await?;
    let done = async {
        let mut enabled = Enabled { job: job.name.clone(), ..Enabled::default() };
        let pods = Pods { client, namespace: job.namespace.clone().unwrap_or_else(|| "default".into()), images: manifest.images() };
        apply(&objects, &manifest, &pods, &mut enabled).await?;
        complete(&objects, &job, &pods).await?;
        for old in objects.other_jobs(&pods.namespace, Some(&job.name)).await? {
            objects.delete(&old).await?;
            enabled.gone.push(old.to_string());
        }
        let manager = update_manager(&objects, manager.as_ref(), named_manager.is_some(), &mut enabled).await?;
        enabled.nodes = reported(&objects, &manager).await?;
        Ok(enabled)
    };
    let done = done.await;
    lease.end().await;
    done
}

/// Whether the cluster is well; with `waits`, that it becomes so.
async fn well(host: &Host, client: &Client, waits: bool) -> Result<()> {
    let ailments = async || Ok::<_, Error>(course::ailments(&k3s::nodes(client).await?, &k3s::members().await?));
    if waits {
        let becomes = async || {
            Ok(match ailments().await {
                Ok(found) if found.is_empty() => Awaited::Done(()),
                Ok(found) => Awaited::Missing(found.join("; ")),
                Err(e) => Awaited::Missing(e.chain()),
            })
        };
        return host.wait_for("cluster", "the cluster to be well", becomes).await;
    }
    let found = ailments().await?;
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::refused(format!("the cluster is not well:\n  {}", found.join("\n  ")))
        .hint("smartup doctor says more; enable smart updates when all nodes are Ready and all members of etcd healthy"))
}

/// Where the operator's pods are, and what they are made of.
struct Pods {
    client: Client,
    namespace: String,
    images: BTreeSet<String>,
}

impl Pods {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn list(&self, objects: &Objects<'_>) -> Result<Vec<Pod>> {
        objects.ask("listing the operator's pods", async || self.api().list(&ListParams::default()).await.map(|l| l.items)).await
    }
}

/// Applies all objects. What waits for an image in vain from an earlier attempt is made anew: the kubelet looks again only after
/// minutes.
async fn apply(objects: &Objects<'_>, manifest: &Manifest, pods: &Pods, enabled: &mut Enabled) -> Result<()> {
    let before = pods.list(objects).await?;
    let job = manifest.job()?;
    let old = objects.ask(&format!("looking at {job}"), async || pods.jobs().get_opt(&job.name).await).await?;
    if old.is_some_and(|old| course::is_stuck(&old, &before)) {
        objects.delete(job).await?;
        objects.gone(job).await?;
    }
    for object in manifest.in_order() {
        enabled.note(object, objects.apply(object).await?);
        if object.is_definition() {
            established(objects, object).await?;
        }
    }
    for pod in course::lacking(&before, &pods.images) {
        let name = pod.name_any();
        objects
            .ask(&format!("deleting pod {name}"), async || match pods.api().delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            })
            .await?;
    }
    Ok(())
}

async fn established(objects: &Objects<'_>, definition: &Object) -> Result<()> {
    let api = objects.served(definition).await?;
    objects
        .host
        .wait_for("definitions", &format!("{definition} to be established"), async || {
            let what = format!("looking at {definition}");
            let found = objects.ask(&what, async || api.get(&definition.name).await).await?;
            let conditions = found.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is = conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True");
            Ok(if is { Awaited::Done(()) } else { Awaited::missing(format!("{} is not established", definition.name)) })
        })
        .await
}

/// Waits for the deployment Job.
async fn complete(objects: &Objects<'_>, job: &Object, pods: &Pods) -> Result<()> {
    let host = objects.host;
    host.wait_for("operator", &format!("the Job {} to be Complete", job.name), async || {
        let found = objects.ask(&format!("looking at {job}"), async || pods.jobs().get_opt(&job.name).await).await?;
        let found =
            found.ok_or_else(|| Error::failed(format!("somebody has deleted the Job {}", job.name)).hint("run the same command again"))?;
        match course::course(&found, &pods.list(objects).await?, &pods.images) {
            Course::Complete => Ok(Awaited::Done(())),
            Course::Going(text) => {
                let left = course::left(host.deadline.saturating_duration_since(Instant::now()));
                Ok(Awaited::Missing(format!("{text} ({left})")))
            }
            Course::Failed { why, pod, no_image } => {
                let log = match pod {
                    Some(pod) => last_lines(pods, &pod).await,
                    None => String::new(),
                };
                let hint = if no_image {
                    "smartup enable-updates -f FILE puts smartup's own image on every host; so do init and join, run again there".into()
                } else {
                    format!("k3s kubectl -n {} describe pods says more; run the same command again when it is mended", pods.namespace)
                };
                Err(Error::failed(format!("the Job {} will not be Complete: {why}{log}", job.name)).hint(hint))
            }
        }
    })
    .await
}

/// Empty where there are none: a pod that never started has no log.
async fn last_lines(pods: &Pods, pod: &str) -> String {
    let log = pods.api().logs(pod, &LogParams { tail_lines: Some(LINES), ..LogParams::default() }).await.unwrap_or_default();
    let lines: Vec<String> = log.lines().map(|l| format!("\n  {l}")).collect();
    if lines.is_empty() { String::new() } else { format!("\nthe last lines of {pod}:{}", lines.concat()) }
}

/// The `UpdateManager`. One that is there holds what somebody wants, so only a file that the user names now changes it.
async fn update_manager(objects: &Objects<'_>, file: Option<&Manifest>, named: bool, enabled: &mut Enabled) -> Result<Object> {
    let ours;
    let file = if let Some(file) = file {
        file
    } else {
        ours = nothing_special(objects).await?;
        &ours
    };
    for object in file.in_order() {
        let api = objects.served(object).await?;
        let there = objects.ask(&format!("looking at {object}"), async || api.get_opt(&object.name).await).await?;
        let applied = if named || there.is_none() { objects.apply(object).await? } else { Applied::Unchanged };
        enabled.note(object, applied);
    }
    file.update_manager().cloned()
}

/// An empty `UpdateManager`, in the version that the operator serves.
async fn nothing_special(objects: &Objects<'_>) -> Result<Manifest> {
    let group = objects.ask("looking for UpdateManager", async || kube::discovery::group(&objects.client, names::GROUP).await).await?;
    let (resource, _) = group
        .recommended_kind("UpdateManager")
        .ok_or_else(|| Error::failed(format!("the operator's API {} has no UpdateManager", names::GROUP)))?;
    let value = DynamicObject::new(names::INSTANCE, &resource).within(names::NAMESPACE).data(json!({ "spec": {} }));
    Manifest::parse(&serde_json::to_string(&value).context("cannot write JSON")?)
}

/// Waits until each node has a status; answers their names.
async fn reported(objects: &Objects<'_>, manager: &Object) -> Result<Vec<String>> {
    let api = objects.served(manager).await?;
    objects
        .host
        .wait_for("status", "the first status of every node", async || {
            let what = format!("looking at {manager}");
            let found = objects.ask(&what, async || api.get(&manager.name).await).await?;
            let nodes: Vec<String> = match k3s::nodes(&objects.client).await {
                Ok(nodes) => nodes.into_iter().map(|n| n.name).collect(),
                Err(e) => return Ok(Awaited::Missing(e.chain())),
            };
            Ok(match course::unreported(&found.data, &nodes) {
                None => Awaited::Done(nodes),
                Some(missing) => Awaited::Missing(missing),
            })
        })
        .await
}
