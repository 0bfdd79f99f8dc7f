//! How the maintenance operator comes into a cluster, and how it goes out again.

mod api;
mod course;
mod disable;
mod enable;
mod foreign;
mod labels;
mod manifest;

pub use disable::{Disabled, TIMEOUT, disable, put_back};
pub use enable::{Enabled, enable};
pub use manifest::Manifest;

use std::path::Path;

use kube::core::GroupVersionKind;
use node::{Context as _, Result, read_optional};
use updates::names;

/// The manifest's text: what the user named, else a vendor's that is on this host. None = ours.
fn named_or_vendors(named: Option<&str>, vendors: &str) -> Result<Option<String>> {
    if let Some(text) = named {
        return Ok(Some(text.to_owned()));
    }
    let file = read_optional(Path::new(vendors))?;
    file.map(|f| String::from_utf8(f.content).context(format!("{vendors} is no text"))).transpose()
}

/// The manifest that holds: the named one, else the vendor's, else ours with this image.
fn manifest(named: Option<&str>, admission_policy: bool, image: impl FnOnce() -> Result<operator::image::Reference>) -> Result<Manifest> {
    match named_or_vendors(named, names::OPERATOR_MANIFEST)? {
        Some(text) => Manifest::parse(&text),
        None => Manifest::parse(&operator::manifest(&image()?, admission_policy)?),
    }
}

/// The kind with which the API can say that an agent writes of its own node only: from Kubernetes 1.30 on.
const ADMISSION_POLICY: [&str; 3] = ["admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy"];

/// Whether the API has it.
async fn has_admission_policies(objects: &api::Objects<'_>) -> Result<bool> {
    let [group, version, kind] = ADMISSION_POLICY;
    Ok(objects.kind(&GroupVersionKind::gvk(group, version, kind)).await?.is_some())
}
