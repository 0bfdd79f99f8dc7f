//! The places for nodes that are being updated: Leases with numbers. Two that take the same one at once get in each other's way.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions};
use kube::{Client, ResourceExt as _};
use updates::decide::Lock;
use updates::names;

/// The label of such leases: the one for which the controllers compete is renewed all the time, and nobody wants to hear of it.
pub(in super::super) const LABEL: &str = "maintenance.virtuozzo.io/update-lock";

/// A lease as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Slot {
    pub(in super::super) number: u32,
    pub(in super::super) node: String,
    /// The node's.
    pub(in super::super) uid: String,
}

impl Slot {
    /// None: it is another kind of lease.
    pub(in super::super) fn of(lease: &Lease) -> Option<Self> {
        let number = lease.name_any().strip_prefix(names::LOCK_PREFIX)?.parse().ok()?;
        let node = lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default();
        let uid = lease.owner_references().first().map(|o| o.uid.clone()).unwrap_or_default();
        Some(Self { number, node, uid })
    }

    pub(in super::super) fn lock(&self) -> Lock<'_> {
        Lock { slot: self.number, node: &self.node, uid: &self.uid }
    }
}

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), names::NAMESPACE)
}

fn name(number: u32) -> String {
    format!("{}{number}", names::LOCK_PREFIX)
}

/// All that are taken, by their numbers.
pub(super) async fn taken(client: &Client) -> kube::Result<Vec<Slot>> {
    let all = leases(client).list(&ListParams::default().labels(LABEL)).await?;
    let mut slots: Vec<_> = all.items.iter().filter_map(Slot::of).collect();
    slots.sort();
    Ok(slots)
}

/// Takes one for a node, whose end is the lease's end too.
///
/// # Errors
/// 409 when it is taken.
pub(super) async fn take(client: &Client, slot: &Slot, now: Timestamp) -> kube::Result<()> {
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: slot.node.clone(),
        uid: slot.uid.clone(),
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(name(slot.number)),
        namespace: Some(names::NAMESPACE.into()),
        labels: Some([(LABEL.to_owned(), "true".to_owned())].into()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    let spec = LeaseSpec { holder_identity: Some(slot.node.clone()), acquire_time: Some(MicroTime(now)), ..LeaseSpec::default() };
    leases(client).create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await.map(drop)
}

/// Frees one, if `is_free` still holds for what is there now. One that changes meanwhile stays.
///
/// # Errors
/// When the API does not answer or refuses.
pub(super) async fn free(client: &Client, number: u32, is_free: impl AsyncFn(&Slot) -> kube::Result<bool>) -> kube::Result<bool> {
    let (api, name) = (leases(client), name(number));
    let Some(lease) = api.get_opt(&name).await? else { return Ok(false) };
    let Some(slot) = Slot::of(&lease) else { return Ok(false) };
    if !is_free(&slot).await? {
        return Ok(false);
    }
    let preconditions = Preconditions { uid: lease.uid(), resource_version: lease.resource_version() };
    match api.delete(&name, &DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake_api::FakeApi;

    fn slot(number: u32, node: &str) -> Slot {
        Slot { number, node: node.into(), uid: format!("uid-{node}") }
    }

    #[tokio::test]
    async fn of_two_that_take_the_same_slot_one_gets_it() {
        let api = FakeApi::default();
        let client = api.client();
        take(&client, &slot(0, "h1"), Timestamp::UNIX_EPOCH).await.unwrap();
        let Err(kube::Error::Api(status)) = take(&client, &slot(0, "h2"), Timestamp::UNIX_EPOCH).await else { panic!("taken twice") };
        assert_eq!(status.code, 409);
        take(&client, &slot(1, "h2"), Timestamp::UNIX_EPOCH).await.unwrap();
        let lease = api.get("/apis/coordination.k8s.io/v1/namespaces/vz-maintenance-operator/leases/smartup-update-0").unwrap();
        assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "uid-h1");
        let lease: Lease = serde_json::from_value(lease).unwrap();
        assert_eq!(Slot::of(&lease).unwrap(), slot(0, "h1"));
    }

    #[tokio::test]
    async fn only_what_is_still_free_is_freed() {
        let api = FakeApi::default();
        let client = api.client();
        take(&client, &slot(0, "h1"), Timestamp::UNIX_EPOCH).await.unwrap();
        assert!(!free(&client, 0, async |_| Ok(false)).await.unwrap());
        // another one takes it over between the look and the deletion
        let path = "/apis/coordination.k8s.io/v1/namespaces/vz-maintenance-operator/leases/smartup-update-0";
        let raced = free(&client, 0, async |_| {
            api.change(path, |lease| lease["spec"]["holderIdentity"] = json!("h3"));
            Ok(true)
        });
        assert!(!raced.await.unwrap() && api.get(path).is_some());
        assert!(free(&client, 0, async |slot| Ok(slot.node == "h3")).await.unwrap());
        assert!(api.get(path).is_none() && !free(&client, 0, async |_| Ok(true)).await.unwrap());
    }
}
