//! Objects of any kind in the API, as a manifest names them.

use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{self, ApiGroup, Scope, pinned_kind, verbs};
use kube::error::DiscoveryError;
use kube::{Client, ResourceExt as _};
use node::{Awaited, Error, Host, Result};
use serde_json::Value;
use updates::names;

use super::foreign::is_somebodys;
use super::manifest::Object;

/// How long a kind may take to be served once its definition is established.
const SERVED: Duration = Duration::from_secs(30);

/// The API, asked until it can answer.
pub struct Objects<'a> {
    /// The host that asks.
    pub host: &'a Host,
    /// The API.
    pub client: Client,
}

/// What applying an object did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was not there, or not so.
    Changed,
    /// It was so already.
    Unchanged,
}

impl Objects<'_> {
    /// Asks the API, again while it cannot answer.
    ///
    /// # Errors
    /// What the API refuses; or, at the deadline, that it does not answer.
    pub async fn ask<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> kube::Result<T>) -> Result<T> {
        self.host
            .wait_for("API", &format!("the API ({what})"), async || match ask().await {
                Ok(answer) => Ok(Awaited::Done(answer)),
                Err(e) if k3s::transient(&e) => Ok(Awaited::missing(format!("{what}: {}", k3s::in_words(&e)))),
                Err(e) => Err(Error::failed(format!("{what}: {}", k3s::in_words(&e)))),
            })
            .await
    }

    /// How the API serves a kind, and whether its objects are in namespaces; None = it does not.
    ///
    /// # Errors
    /// When the API does not say.
    pub async fn kind(&self, gvk: &GroupVersionKind) -> Result<Option<(ApiResource, Scope)>> {
        let what = format!("looking for {} of {}", gvk.kind, gvk.api_version());
        self.ask(&what, async || served_as(&self.client, gvk).await).await
    }

    /// Where an object is, or would be. An object that names no namespace is in `default`, as kubectl has it.
    ///
    /// # Errors
    /// When the API does not say.
    pub async fn of(&self, object: &Object) -> Result<Option<Api<DynamicObject>>> {
        Ok(self.kind(&object.gvk).await?.map(|(resource, scope)| match scope {
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), object.namespace.as_deref().unwrap_or("default"), &resource),
        }))
    }

    /// The same, of a kind that must be there, or be so soon.
    ///
    /// # Errors
    /// When it is not.
    pub async fn served(&self, object: &Object) -> Result<Api<DynamicObject>> {
        let began = Instant::now();
        self.host
            .wait_for("API", &format!("the API to serve {object}"), async || match self.of(object).await? {
                Some(api) => Ok(Awaited::Done(api)),
                None if began.elapsed() < SERVED => Ok(Awaited::missing(format!("the API does not serve {} yet", object.gvk.kind))),
                None => Err(Error::failed(format!("the API has no {} of {}", object.gvk.kind, object.gvk.api_version()))
                    .hint("the manifest is for another version of Kubernetes, or lacks a definition")),
            })
            .await
    }

    /// Applies an object by the server's own means, so that fields of others stay theirs.
    ///
    /// # Errors
    /// What the API has against it.
    pub async fn apply(&self, object: &Object) -> Result<Applied> {
        let api = self.served(object).await?;
        let before = self.ask(&format!("looking at {object}"), async || api.get_opt(&object.name).await).await?;
        let how = PatchParams::apply(names::FIELD_MANAGER).force();
        let patch = async || match api.patch(&object.name, &how, &Patch::Apply(&object.value)).await {
            Ok(now) => Ok(Some(now)),
            // a Job's pods cannot be changed
            Err(kube::Error::Api(status)) if status.code == 422 && object.is("batch", "Job") && before.is_some() => Ok(None),
            Err(e) => Err(e),
        };
        let what = format!("applying {object}");
        let now = if let Some(now) = self.ask(&what, patch).await? {
            now
        } else {
            self.delete(object).await?;
            self.gone(object).await?;
            self.ask(&what, async || api.patch(&object.name, &how, &Patch::Apply(&object.value)).await).await?
        };
        Ok(if before.is_some_and(|before| same(&before, &now)) { Applied::Unchanged } else { Applied::Changed })
    }

    /// Deletes an object, and with it what it has made; answers whether it was there.
    ///
    /// # Errors
    /// What the API has against it.
    pub async fn delete(&self, object: &Object) -> Result<bool> {
        let Some(api) = self.of(object).await? else { return Ok(false) };
        self.ask(&format!("deleting {object}"), async || match api.delete(&object.name, &DeleteParams::foreground()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(e) => Err(e),
        })
        .await
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    /// At the deadline, with the finalizers that hold it.
    pub async fn gone(&self, object: &Object) -> Result<()> {
        let Some(api) = self.of(object).await? else { return Ok(()) };
        let what = format!("{object} to be gone");
        self.host
            .wait_for("gone", &what, async || {
                let found = self.ask(&format!("looking at {object}"), async || api.get_opt(&object.name).await).await?;
                Ok(match found {
                    None => Awaited::Done(()),
                    Some(found) if found.finalizers().is_empty() => Awaited::missing(what.clone()),
                    Some(found) => Awaited::missing(format!("{what}; it is held by {}", found.finalizers().join(", "))),
                })
            })
            .await
    }

    /// The deployment Jobs in a namespace, but the one that is called so: those of other versions.
    ///
    /// # Errors
    /// When the API does not say.
    pub async fn other_jobs(&self, namespace: &str, but: Option<&str>) -> Result<Vec<Object>> {
        let api = Api::<Job>::namespaced(self.client.clone(), namespace);
        let list = async || api.list_metadata(&ListParams::default()).await.map(|l| l.items);
        let all = self.ask(&format!("listing the Jobs in {namespace}"), list).await?;
        let others =
            all.iter().map(kube::ResourceExt::name_any).filter(|name| name.starts_with(names::JOB_PREFIX) && Some(name.as_str()) != but);
        Ok(others.map(|name| Object::job(name, namespace)).collect())
    }

    /// What somebody keeps in a namespace, in words.
    ///
    /// # Errors
    /// When the API does not say.
    pub async fn somebodys(&self, namespace: &str) -> Result<Vec<String>> {
        let what = format!("looking into the namespace {namespace}");
        let mut groups = vec![self.ask(&what, async || discovery::group(&self.client, ApiGroup::CORE_GROUP).await).await?];
        let listed = self.ask(&what, async || self.client.list_api_groups().await).await?;
        for version in listed.groups.iter().filter_map(|g| g.preferred_version.as_ref().or(g.versions.first())) {
            // a group that is just going, or whose server is down, cannot be looked into
            if let Ok(version) = version.group_version.parse()
                && let Ok(group) = discovery::pinned_group(&self.client, &version).await
            {
                groups.push(group);
            }
        }
        let mut found = Vec::new();
        for (resource, abilities) in groups.iter().flat_map(ApiGroup::recommended_resources) {
            // what cannot be deleted is not kept by anybody: metrics, reviews
            let kept = [verbs::LIST, verbs::DELETE].iter().all(|v| abilities.supports_operation(v));
            if abilities.scope == Scope::Cluster || !kept {
                continue;
            }
            let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &resource);
            let list = async || match api.list_metadata(&ListParams::default()).await {
                Ok(all) => Ok(all.items),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
                Err(e) => Err(e),
            };
            let all = self.ask(&what, list).await?;
            let theirs = all.iter().filter(|o| is_somebodys(&resource.kind, &o.metadata));
            found.extend(theirs.map(|o| format!("{} {}", resource.kind, o.name_any())));
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Deletes all objects of a kind, in whatever namespace, and waits until those that there were are gone; answers how many.
    ///
    /// # Errors
    /// At the deadline, with the finalizers that hold one.
    pub async fn delete_all(&self, gvk: &GroupVersionKind) -> Result<usize> {
        let Some((resource, scope)) = self.kind(gvk).await? else { return Ok(0) };
        let all = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let what = format!("listing all {}", gvk.kind);
        let list = async || all.list(&ListParams::default()).await.map(|l| l.items);
        let found = self.ask(&what, list).await?;
        for object in &found {
            let api = match (&scope, object.namespace()) {
                (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(self.client.clone(), &namespace, &resource),
                _ => all.clone(),
            };
            let name = object.name_any();
            self.ask(&format!("deleting {} {name}", gvk.kind), async || match api.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            })
            .await?;
        }
        let what = format!("all {} to be gone", gvk.kind);
        self.host
            .wait_for("gone", &what, async || {
                let now = self.ask(&what, list).await?;
                let left = now.iter().find(|o| found.iter().any(|f| f.uid() == o.uid()));
                Ok(match left {
                    None => Awaited::Done(()),
                    Some(left) => Awaited::missing(format!("{what}: {}, {}", left.name_any(), left.finalizers().join(", "))),
                })
            })
            .await?;
        Ok(found.len())
    }
}

/// Whether two states of an object are the same but for what the server writes down about it.
fn same(before: &DynamicObject, now: &DynamicObject) -> bool {
    let wish = |object: &DynamicObject| {
        let mut value = serde_json::to_value(object).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.remove("status");
        }
        if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion");
        }
        value
    };
    wish(before) == wish(now)
}

async fn served_as(client: &Client, gvk: &GroupVersionKind) -> kube::Result<Option<(ApiResource, Scope)>> {
    match pinned_kind(client, gvk).await {
        Ok((resource, capabilities)) => Ok(Some((resource, capabilities.scope))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(kube::Error::Discovery(
            DiscoveryError::MissingKind(_) | DiscoveryError::MissingResource(_) | DiscoveryError::EmptyApiGroup(_),
        )) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::super::ADMISSION_POLICY;
    use super::*;

    /// What an API says of admissionregistration.k8s.io/v1.
    async fn asked(code: u16, says: Value) -> kube::Result<Option<(ApiResource, Scope)>> {
        let service = tower::service_fn(move |request: Request<Body>| {
            assert_eq!(request.uri().path(), "/apis/admissionregistration.k8s.io/v1");
            let answer = Response::builder().status(code).body(Body::from(says.to_string().into_bytes()));
            std::future::ready(Ok::<_, Infallible>(answer.unwrap()))
        });
        let [group, version, kind] = ADMISSION_POLICY;
        served_as(&Client::new(service, "default"), &GroupVersionKind::gvk(group, version, kind)).await
    }

    #[tokio::test]
    async fn the_cluster_itself_says_whether_it_has_admission_policies() {
        let resource =
            |plural: &str, kind: &str| json!({ "name": plural, "singularName": "", "namespaced": false, "kind": kind, "verbs": ["get"] });
        let list = |more: &[Value]| {
            let hooks = [resource("validatingwebhookconfigurations", "ValidatingWebhookConfiguration")];
            let all: Vec<_> = hooks.iter().chain(more).collect();
            json!({ "kind": "APIResourceList", "groupVersion": "admissionregistration.k8s.io/v1", "resources": all })
        };
        let policies = resource("validatingadmissionpolicies", "ValidatingAdmissionPolicy");
        let (found, scope) = asked(200, list(&[policies])).await.unwrap().unwrap();
        assert_eq!((found.plural.as_str(), scope), ("validatingadmissionpolicies", Scope::Cluster));
        assert!(asked(200, list(&[])).await.unwrap().is_none(), "Kubernetes 1.20 has the group, but not this");
        let no = |code: u16| json!({ "kind": "Status", "metadata": {}, "status": "Failure", "message": "no", "reason": "", "code": code });
        assert!(asked(404, no(404)).await.unwrap().is_none());
        assert!(asked(503, no(503)).await.is_err(), "who does not answer has not said no");
    }
}
