//! What crashes have taught is written down: bans into the spec, as an edit like anybody's, and suspects into the status.

use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use node::{Context as _, Error, Result};
use serde_json::json;
use updates::api::UpdateManager;
use updates::decide::{Attribution, bans};
use updates::names::{CONTROLLER_MANAGER, INSTANCE, NAMESPACE};

/// How often an edit is made anew because somebody else was faster.
const TRIES: usize = 10;

/// Writes it. All of it is there already when it was written before.
///
/// # Errors
/// When the API does not answer or refuses, or others are faster each time.
pub(super) async fn write(client: &Client, attribution: &Attribution, now: Timestamp) -> Result<()> {
    // as it is: an entry that is not understood, or a field of a later version, is nothing to be lost
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), NAMESPACE, &ApiResource::erase::<UpdateManager>(&()));
    let how = PatchParams::apply(CONTROLLER_MANAGER);
    let cannot =
        |e: kube::Error| Error::failed(format!("cannot write what the crash of {} has taught: {}", attribution.node, k3s::in_words(&e)));
    for _ in 0..TRIES {
        let manager = serde_json::to_value(api.get(INSTANCE).await.map_err(cannot)?).context("cannot write JSON")?;
        let patch = bans(&manager, attribution, now).map_err(|e| Error::failed(e.to_string()))?;
        if let Some(patch) = patch {
            match api.patch(INSTANCE, &how, &Patch::Merge(patch)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => continue,
                Err(e) => return Err(cannot(e)),
            }
        }
        let suspects = json!({ "status": { "suspects": attribution.suspects } });
        return api.patch_status(INSTANCE, &how, &Patch::Merge(suspects)).await.map(drop).map_err(cannot);
    }
    Err(Error::failed(format!("the UpdateManager was changed by others {TRIES} times while a crash was written down")))
}

#[cfg(test)]
mod tests {
    use updates::Item;

    use super::*;
    use crate::fake_api::FakeApi;

    const MANAGER: &str = "/apis/maintenance.virtuozzo.io/v1/namespaces/vz-maintenance-operator/updatemanagers/default";

    fn attribution() -> Attribution {
        let bans = ["bash-5-1.noarch", "123-4-r5"].map(|i| i.parse::<Item>().unwrap()).to_vec();
        Attribution { bans, suspects: Vec::new(), node: "h1".into(), because: "the host rebooted".into() }
    }

    #[tokio::test]
    async fn an_edit_of_the_users_in_between_is_kept() {
        let api = FakeApi::default();
        api.put(MANAGER, json!({ "spec": { "bannedPackages": ["old-1-1.noarch"], "suspend": false } }));
        let mut edits = 0;
        api.on(move |objects, asked| {
            if asked.method == "PATCH" && asked.path == MANAGER && edits < 3 {
                edits += 1;
                objects.change(MANAGER, |m| {
                    m["spec"]["suspend"] = json!(true);
                    m["spec"]["bannedPackages"].as_array_mut().unwrap().push(json!(format!("users{edits}-1-1.noarch")));
                });
            }
            (asked.path == format!("{MANAGER}/status")).then(|| (200, objects.get(MANAGER).cloned().unwrap()))
        });
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        write(&api.client(), &attribution(), now).await.unwrap();
        let manager = api.get(MANAGER).unwrap();
        let banned = json!(["old-1-1.noarch", "users1-1-1.noarch", "users2-1-1.noarch", "users3-1-1.noarch", "bash-5-1.noarch"]);
        assert_eq!((&manager["spec"]["bannedPackages"], &manager["spec"]["suspend"]), (&banned, &json!(true)));
        assert_eq!(manager["spec"]["bannedPatches"], json!(["123-4-r5"]));
        let note = manager["metadata"]["annotations"][updates::names::BANS_ANNOTATION].as_str().unwrap();
        let words = ["bash-5-1.noarch", "123-4-r5", "h1", "the host rebooted", "2026-11-21T12:00:00Z"];
        assert!(words.iter().all(|word| note.contains(word)), "who, when and why: {note}");
        // written a second time, as after a crash of the controller, nothing changes
        let before = api.changes().iter().filter(|c| c.ends_with("/default")).count();
        write(&api.client(), &attribution(), now).await.unwrap();
        assert_eq!(api.changes().iter().filter(|c| c.ends_with("/default")).count(), before);
    }

    #[tokio::test]
    async fn who_is_never_fast_enough_gives_up() {
        let api = FakeApi::default();
        api.put(MANAGER, json!({ "spec": {} }));
        api.fail("PATCH", MANAGER, 409);
        let e = write(&api.client(), &attribution(), Timestamp::UNIX_EPOCH).await.unwrap_err();
        assert!(e.what.contains("10 times"), "{}", e.what);
    }
}
