//! A manifest's objects, and the order in which they come and go. Pure.

use std::collections::BTreeSet;
use std::fmt;

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use node::{Context as _, Error, Result};
use serde_json::Value;
use updates::names;

/// An object that says what it is and how it is called.
#[derive(Debug, Clone)]
pub struct Object {
    /// What it is.
    pub gvk: GroupVersionKind,
    /// Its name.
    pub name: String,
    /// The namespace that it names.
    pub namespace: Option<String>,
    /// All of it.
    pub value: DynamicObject,
}

impl Object {
    fn parse(value: Value) -> Result<Self> {
        let no_object = "it is no object of Kubernetes";
        if !value.is_object() {
            return Err(Error::invalid(no_object));
        }
        let value: DynamicObject = serde_json::from_value(value).context(no_object)?;
        let types = value.types.as_ref().filter(|t| !t.api_version.is_empty() && !t.kind.is_empty());
        let gvk = types.map(GroupVersionKind::try_from).transpose().context("its apiVersion cannot be")?;
        let gvk = gvk.ok_or_else(|| Error::invalid("it has no apiVersion or no kind"))?;
        let name = value.metadata.name.clone().filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| Error::invalid(format!("the {} has no metadata.name", gvk.kind)))?;
        Ok(Self { gvk, name, namespace: value.metadata.namespace.clone(), value })
    }

    /// The Job of this name.
    pub fn job(name: String, namespace: &str) -> Self {
        let gvk = GroupVersionKind::gvk("batch", "v1", "Job");
        let value = DynamicObject::new(&name, &ApiResource::from_gvk(&gvk)).within(namespace);
        Self { gvk, name, namespace: Some(namespace.to_owned()), value }
    }

    /// Whether it is of this kind, whatever its version.
    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.gvk.group == group && self.gvk.kind == kind
    }

    /// Whether it defines others.
    pub fn is_definition(&self) -> bool {
        self.is("apiextensions.k8s.io", "CustomResourceDefinition")
    }

    /// Whether others are in it.
    pub fn is_namespace(&self) -> bool {
        self.is("", "Namespace")
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.gvk.kind, self.name)
    }
}

/// The objects of a manifest, in its order.
#[derive(Debug, Clone)]
pub struct Manifest(Vec<Object>);

impl Manifest {
    /// Reads YAML documents; empty ones are left out.
    ///
    /// # Errors
    /// Which document cannot be, and why; or that there is none.
    pub fn parse(text: &str) -> Result<Self> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| Error::invalid("the manifest is no YAML").because(e))?;
        let mut objects = Vec::new();
        for (n, document) in documents.into_iter().enumerate().filter(|(_, d)| !d.is_null()) {
            let object =
                Object::parse(document).map_err(|e| Error::invalid(format!("the manifest's document {}: {}", n + 1, e.chain())))?;
            objects.push(object);
        }
        if objects.is_empty() {
            return Err(Error::invalid("the manifest holds no object"));
        }
        Ok(Self(objects))
    }

    /// As they come: what others are in or are made of first, the rest as the manifest has it.
    pub fn in_order(&self) -> Vec<&Object> {
        let mut all: Vec<&Object> = self.0.iter().collect();
        all.sort_by_key(|o| !(o.is_namespace() || o.is_definition()));
        all
    }

    /// The definitions of kinds.
    pub fn definitions(&self) -> impl Iterator<Item = &Object> {
        self.0.iter().filter(|o| o.is_definition())
    }

    /// Those that are neither definitions nor namespaces, the last one first: as they go.
    pub fn things_backwards(&self) -> impl Iterator<Item = &Object> {
        self.0.iter().rev().filter(|o| !o.is_definition() && !o.is_namespace())
    }

    /// The namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = &Object> {
        self.0.iter().filter(|o| o.is_namespace())
    }

    /// The Job that says that the operator is ready.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn job(&self) -> Result<&Object> {
        let mut jobs = self.0.iter().filter(|o| o.is("batch", "Job") && o.name.starts_with(names::JOB_PREFIX));
        match (jobs.next(), jobs.next()) {
            (Some(job), None) => Ok(job),
            (None, _) => Err(Error::invalid(format!(
                "the manifest has no Job {}…, so nothing would say that the operator is ready",
                names::JOB_PREFIX
            ))),
            (Some(a), Some(b)) => Err(Error::invalid(format!("the manifest has two Jobs {} and {}: one is awaited", a.name, b.name))),
        }
    }

    /// The `UpdateManager` in it.
    ///
    /// # Errors
    /// When there is none.
    pub fn update_manager(&self) -> Result<&Object> {
        let found = self.0.iter().find(|o| o.is(names::GROUP, "UpdateManager"));
        found.ok_or_else(|| Error::invalid(format!("the manifest has no UpdateManager of {}", names::GROUP)))
    }

    /// The images that its pods are made of.
    pub fn images(&self) -> BTreeSet<String> {
        let pods = self.0.iter().map(|o| &o.value.data["spec"]["template"]["spec"]);
        let containers = pods.flat_map(|p| ["initContainers", "containers"].map(|c| p[c].as_array()).into_iter().flatten().flatten());
        containers.filter_map(|c| c["image"].as_str()).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Manifest {
        let image = "registry.example.com/operator:1".parse().unwrap();
        Manifest::parse(&operator::manifest(&image, false).unwrap()).unwrap()
    }

    #[test]
    fn namespaces_and_definitions_come_first_and_go_last() {
        let ours = ours();
        let names: Vec<String> = ours.in_order().iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(names[..4].join("\n"), @"
        Namespace vz-maintenance-operator
        CustomResourceDefinition updatemanagers.maintenance.virtuozzo.io
        CustomResourceDefinition nodeupdates.maintenance.virtuozzo.io
        ServiceAccount smartup-controller
        ");
        let gone: Vec<String> = ours.things_backwards().map(ToString::to_string).collect();
        insta::assert_snapshot!(gone[..3].join("\n"), @"
        Job vz-maintenance-deployment-job-v0.1.0
        DaemonSet smartup-agent
        Deployment smartup-controller
        ");
        assert_eq!(gone.len() + 3, names.len(), "each comes, and each goes");
        // also where a vendor has them in another order
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\n---\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n";
        let vendors = Manifest::parse(text).unwrap();
        assert_eq!(vendors.in_order().iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    }

    #[test]
    fn the_job_and_the_images_are_found() {
        let ours = ours();
        assert_eq!(ours.job().unwrap().name, operator::job_name());
        assert_eq!(ours.images().into_iter().collect::<Vec<_>>(), ["registry.example.com/operator:1"]);
        assert!(ours.update_manager().is_err());
    }

    #[test]
    fn what_cannot_be_is_named() {
        let said = ["", "a: [", "kind: Job", "apiVersion: v1\nkind: Namespace", "- 1"]
            .map(|t| Manifest::parse(t).map_or_else(|e| e.to_string(), |m| format!("{} objects", m.0.len())));
        insta::assert_snapshot!(said.join("\n"), @"
        the manifest holds no object
        the manifest is no YAML
        the manifest's document 1: it has no apiVersion or no kind
        the manifest's document 1: the Namespace has no metadata.name
        the manifest's document 1: it is no object of Kubernetes
        ");
        let other = Manifest::parse("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}").unwrap();
        insta::assert_snapshot!(other.job().unwrap_err(), @"the manifest has no Job vz-maintenance-deployment-job-v…, so nothing would say that the operator is ready");
    }
}
