//! The maintenance operator: all that is to be applied to the cluster.

use serde::Serialize;

use crate::{RenderError, render};

/// The operator's manifest: several YAML documents, in the order in which they are to be applied.
#[derive(Debug, Serialize)]
pub struct Manifest<'a> {
    /// smartup's version.
    pub version: &'a str,
    /// Where all of it is.
    pub namespace: &'a str,
    /// The API group of the custom resources.
    pub group: &'a str,
    /// The definitions of the custom resources, each as YAML without a line break at its end.
    pub crds: &'a [String],
    /// Their names.
    pub crd_names: &'a [String],
    /// The deployment job's name.
    pub job: &'a str,
    /// The lease that the leading controller holds.
    pub lease: &'a str,
    /// The port of probes and metrics.
    pub port: u16,
    /// The image.
    pub image: &'a str,
    /// `Never` or `IfNotPresent`.
    pub pull_policy: &'a str,
    /// Whether the cluster has `ValidatingAdmissionPolicy` (Kubernetes 1.30).
    pub admission_policy: bool,
}

impl Manifest<'_> {
    /// The documents.
    pub fn render(&self) -> Result<String, RenderError> {
        render("operator/manifest.yaml", include_str!("../operator/manifest.yaml.tera"), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it() {
        let crds = ["kind: CustomResourceDefinition\nmetadata:\n  name: as.b.c".to_owned(), "kind: CustomResourceDefinition".to_owned()];
        let manifest = Manifest {
            version: "1.2.3",
            namespace: "space",
            group: "b.c",
            crds: &crds,
            crd_names: &["as.b.c".to_owned(), "ds.b.c".to_owned()],
            job: "job-v1.2.3",
            lease: "lease",
            port: 8080,
            image: "registry.example.com/operator:1.2.3",
            pull_policy: "IfNotPresent",
            admission_policy: true,
        };
        insta::assert_snapshot!("manifest", manifest.render().unwrap());
        let without = Manifest { admission_policy: false, ..manifest }.render().unwrap();
        assert!(!without.contains("admissionregistration") && !without.contains("\n---\n---"), "{without}");
    }
}
