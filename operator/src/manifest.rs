//! What is to be applied to the cluster.

use node::{Context as _, Error, Result};
use updates::{api, names};

use crate::image::Reference;
use crate::{LEASE, PORT, VERSION};

/// The deployment job's name: the reference's, with our version.
pub fn job_name() -> String {
    format!("{}{VERSION}", names::JOB_PREFIX)
}

/// All of it, as YAML documents in their order. `admission_policy` says whether the cluster has `ValidatingAdmissionPolicy` of
/// admissionregistration.k8s.io/v1, as it has from Kubernetes 1.30 on: an older one would refuse the document.
///
/// # Errors
/// Only by a mistake of smartup's own.
pub fn manifest(image: &Reference, admission_policy: bool) -> Result<String> {
    let internal = "the operator's manifest cannot be made; please report this";
    let crds = api::crds();
    let text = crds.iter().map(|crd| Ok(serde_saphyr::to_string(crd).context(internal)?.trim_end().to_owned()));
    let manifest = templates::operator::Manifest {
        version: VERSION,
        namespace: names::NAMESPACE,
        group: names::GROUP,
        crds: &text.collect::<Result<Vec<_>>>()?,
        crd_names: &crds.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>(),
        job: &job_name(),
        lease: LEASE,
        port: PORT,
        image: &image.to_string(),
        pull_policy: image.pull_policy(),
        admission_policy,
    };
    manifest.render().map_err(|e| Error::failed(internal).because(e))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    fn documents(admission_policy: bool) -> Vec<Value> {
        let image = "smartup.local/operator:1.2.3-0123456789ab".parse().unwrap();
        serde_saphyr::from_multiple(&manifest(&image, admission_policy).unwrap()).unwrap()
    }

    /// The rules of a role as lines of `resources: verbs`.
    fn rules(role: &Value) -> Vec<String> {
        let words = |v: &Value| v.as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect::<Vec<_>>().join(",");
        role["rules"].as_array().unwrap().iter().map(|r| format!("{}: {}", words(&r["resources"]), words(&r["verbs"]))).collect()
    }

    fn roles(documents: &[Value]) -> impl Iterator<Item = &Value> {
        documents.iter().filter(|d| ["Role", "ClusterRole"].iter().any(|k| d["kind"] == *k))
    }

    #[test]
    fn the_controller_has_what_it_needs_and_no_more() {
        let documents = documents(false);
        let of = roles(&documents).filter(|d| d["metadata"]["name"] == "smartup-controller").map(|role| {
            let only = role["rules"].as_array().unwrap().iter().map(|r| r["resourceNames"][0].as_str());
            let lines =
                rules(role).into_iter().zip(only).map(|(rule, only)| only.map_or(rule.clone(), |only| format!("{rule} ({only} only)")));
            let place = role["metadata"]["namespace"].as_str().unwrap_or("everywhere");
            format!("{place}:\n  {}", lines.collect::<Vec<_>>().join("\n  "))
        });
        insta::assert_snapshot!(of.collect::<Vec<_>>().join("\n"), @r"
        vz-maintenance-operator:
          updatemanagers: get,list,watch,patch
          updatemanagers/status: patch
          nodeupdates: get,list,watch,create,patch
          leases: get,list,watch,create,update,delete
          events: create
          secrets: get (smartup-notify only)
        everywhere:
          nodes: get,list,watch,patch
          pods: list,delete
          pods/eviction: create
          poddisruptionbudgets: list
        default:
          events: create
          endpoints: get (kubernetes only)
        ");
    }

    #[test]
    fn an_agent_can_read_and_report_and_nothing_else() {
        let documents = documents(true);
        let bound = |kind: &str| {
            let of = |d: &&Value| d["kind"] == kind && d["subjects"][0]["name"] == "smartup-agent";
            documents.iter().filter(of).map(|d| d["roleRef"]["name"].as_str().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!((bound("RoleBinding"), bound("ClusterRoleBinding")), (vec!["smartup-agent"], vec![]));
        let role = documents.iter().find(|d| d["kind"] == "Role" && d["metadata"]["name"] == "smartup-agent").unwrap();
        assert_eq!(rules(role), ["nodeupdates: get,list,watch", "nodeupdates/status: patch", "daemonsets: get"]);
        for role in roles(&documents).filter(|d| d["metadata"]["name"] != "smartup-controller") {
            assert!(!rules(role).iter().any(|r| r.contains('*') || r.contains("secrets") || r.contains("pods")), "{role:#}");
        }
    }

    #[test]
    fn all_pods_are_of_the_image_and_nobody_asks_a_registry_for_it() {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for document in documents(false) {
            *kinds.entry(document["kind"].as_str().unwrap().to_owned()).or_default() += 1;
            let Some(container) = document["spec"]["template"]["spec"]["containers"].get(0) else { continue };
            assert_eq!(
                (&container["image"], &container["imagePullPolicy"]),
                (&"smartup.local/operator:1.2.3-0123456789ab".into(), &"Never".into())
            );
            assert_eq!(document["metadata"]["namespace"], names::NAMESPACE);
        }
        assert_eq!((kinds["CustomResourceDefinition"], kinds["Job"], kinds["Deployment"], kinds["DaemonSet"]), (2, 1, 1, 1));
        assert!(!kinds.contains_key("ValidatingAdmissionPolicy"), "Kubernetes before 1.30 would refuse it");
        assert!(documents(true).iter().any(|d| d["kind"] == "ValidatingAdmissionPolicyBinding"));
        assert_eq!(job_name(), format!("vz-maintenance-deployment-job-v{VERSION}"));
    }

    /// What the admission policy says of a request, by Kubernetes' own language; None = it is not asked.
    fn admitted(request: &Value) -> Option<bool> {
        let documents = documents(true);
        let policy = documents.iter().find(|d| d["kind"] == "ValidatingAdmissionPolicy").unwrap();
        let hold = |list: &str| {
            let hold = |rule: &Value| {
                let mut context = cel::Context::default();
                context.add_variable("request", request).unwrap();
                match cel::Program::compile(rule["expression"].as_str().unwrap()).unwrap().execute(&context).unwrap() {
                    cel::Value::Bool(holds) => holds,
                    other => panic!("{other:?} of {rule}"),
                }
            };
            policy["spec"][list].as_array().unwrap().iter().all(hold)
        };
        hold("matchConditions").then(|| hold("validations"))
    }

    #[test]
    fn an_agent_is_admitted_to_its_own_nodes_update() {
        let of = |account: &str, extra: Value| {
            let name = format!("system:serviceaccount:{}:{account}", names::NAMESPACE);
            json!({ "name": "n1", "operation": "UPDATE", "userInfo": { "username": name, "extra": extra } })
        };
        let on = |node: &str| json!({ "authentication.kubernetes.io/node-name": [node], "authentication.kubernetes.io/pod-name": ["p"] });
        assert_eq!(admitted(&of("smartup-agent", on("n1"))), Some(true));
        for no in [on("n2"), json!({}), json!({ "authentication.kubernetes.io/pod-name": ["n1"] }), on("")] {
            assert_eq!(admitted(&of("smartup-agent", no.clone())), Some(false), "{no}");
        }
        // a token of a Kubernetes that does not say where the pod is
        let mut without = of("smartup-agent", Value::Null);
        without["userInfo"].as_object_mut().unwrap().remove("extra");
        assert_eq!(admitted(&without), Some(false));
        assert_eq!(admitted(&of("smartup-controller", json!({}))), None, "others have roles of their own");
    }
}
