//! Smart updates of a whole cluster, as somebody sees them who is on none of its hosts.

use anyhow::{Context as _, Result, ensure};
use integration::{Host, until};
use serde_json::{Value, json};

use super::{Control, FILE, LONG, smartup};

/// Where the operator is.
pub const NAMESPACE: &str = "vz-maintenance-operator";
/// Where the control host has the administrator's kubeconfig, which points at the floating address.
pub const KUBECONFIG: &str = "/root/.kube/config";
/// By its name it is a kernel: pods leave before it is installed.
pub const KERNEL: &str = "linux-image-lab";
/// What its script does that wants a reboot.
pub const WANTS_REBOOT: &str = "touch /run/reboot-required; echo linux-image-lab >> /run/reboot-required.pkgs";

/// A repository on the host, and what puts packages into it. Version 1 of all is installed, and in no repository.
const REPOSITORY: &str = r#"set -e
cat > /root/release << 'END'
#!/bin/sh
set -e
folder=$(mktemp -d)
mkdir -p "$folder/DEBIAN" /srv/repo
printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: for a test\n' "$1" "$2" > "$folder/DEBIAN/control"
printf '#!/bin/sh\n[ "$1" = configure ] || exit 0\n%s\n' "$3" > "$folder/DEBIAN/postinst"
printf '#!/bin/sh\n%s\n' "${4:-true}" > "$folder/DEBIAN/preinst"
chmod 755 "$folder/DEBIAN/postinst" "$folder/DEBIAN/preinst"
cd /srv/repo
dpkg-deb --root-owner-group --build "$folder" "$1_$2.deb" >&2
for deb in *.deb; do
    dpkg-deb -f "$deb"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "$(sha256sum "$deb" | cut -d ' ' -f 1)"
done > /root/Packages
mv /root/Packages /srv/repo/Packages
END
chmod 755 /root/release
for name in linux-image-lab other risky; do /root/release $name 1 true; done
dpkg -i /srv/repo/*.deb >&2
mv /srv/repo/*.deb /root/
: > /srv/repo/Packages
echo 'deb [trusted=yes] file:/srv/repo ./' > /etc/apt/sources.list
"#;

/// Pods that may go anywhere, and are everywhere.
const WORKLOAD: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
      containers:
      - {name: web, image: 'docker.io/library/busybox:test', imagePullPolicy: Never, command: [sleep, '36000']}
";

/// Gives the host a repository of its own, with nothing in it.
pub fn repository(host: &Host) -> Result<()> {
    host.sh(REPOSITORY).map(drop)
}

/// A new version of a package in the host's repository, whose script does this.
pub fn release(host: &Host, package: &str, version: u32, script: &str) -> Result<()> {
    host.run(["/root/release", package, &version.to_string(), script]).map(drop)
}

/// One that is not even unpacked as long as this does not end well; then it does nothing more.
pub fn release_that_waits_for(host: &Host, package: &str, version: u32, condition: &str) -> Result<()> {
    host.run(["/root/release", package, &version.to_string(), "true", condition]).map(drop)
}

/// A package's version and state, as in `2 installed`.
pub fn version(host: &Host, package: &str) -> Result<String> {
    host.run(["dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", package])
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The name of an object.
pub fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

pub fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// What somebody sees and does who is on none of the cluster's hosts.
pub struct Admin<'a> {
    pub control: Control<'a>,
}

impl<'a> Admin<'a> {
    /// Enables smart updates of a cluster that is there, with updates due at once, and lets pods run on all nodes.
    pub fn enables(control: Control<'a>) -> Result<Self> {
        control.run("enable-updates", &["--timeout", "5m"])?.checked()?;
        control.run("kubeconfig", &["--merge", "--kubeconfig", KUBECONFIG, "--use"])?.checked()?;
        let admin = Self { control };
        admin.spec(&json!({ "stageDelays": { "fast": 0, "slow": 0, "stable": 0 } }))?;
        admin.control.host.write("/root/workload.yaml", 0o600, WORKLOAD)?;
        admin.kubectl("apply -n default -f /root/workload.yaml")?;
        admin.kubectl("rollout status -n default deployment web --timeout=120s")?;
        Ok(admin)
    }

    pub fn kubectl(&self, args: &str) -> Result<String> {
        self.control.host.sh(&format!("KUBECONFIG={KUBECONFIG} k3s kubectl --request-timeout=10s -n {NAMESPACE} {args}"))
    }

    pub fn get(&self, what: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&format!("get -o json {what}"))?)?)
    }

    pub fn items(&self, what: &str) -> Result<Vec<Value>> {
        Ok(self.get(what)?["items"].as_array().cloned().unwrap_or_default())
    }

    /// Changes the `UpdateManager`.
    pub fn spec(&self, patch: &Value) -> Result<()> {
        self.kubectl(&format!("patch updatemanager default --type=merge -p '{}'", json!({ "spec": patch }))).map(drop)
    }

    /// `smartup updates`.
    pub fn updates(&self, args: &[&str]) -> Result<String> {
        smartup(self.control.host, &[&["updates"], args, &["-f", FILE]].concat())?.checked()
    }

    pub fn update_of(&self, host: &Host) -> Result<Value> {
        self.get(&format!("nodeupdate {}", host.name()))
    }

    /// The run of the node that ended last, or null.
    pub fn last_run(&self, host: &Host) -> Result<Value> {
        Ok(self.update_of(host)?["status"]["history"][0].clone())
    }

    /// Waits until the run that ended last is not `before` and nothing is under way any more; answers it.
    pub fn ended(&self, host: &Host, before: &Value) -> Result<Value> {
        until(&format!("an update of {} is over", host.name()), LONG * 2, || {
            let update = self.update_of(host)?;
            let run = update["status"]["history"][0].clone();
            Ok((run["transaction"] != before["transaction"] && update["spec"]["transaction"].is_null()).then_some(run))
        })
    }

    /// The same; answers the phases that were seen, too.
    pub fn course(&self, host: &Host, before: &Value) -> Result<(Vec<String>, Value)> {
        let mut phases: Vec<String> = Vec::new();
        let run = until(&format!("an update of {} is over", host.name()), LONG * 2, || {
            let update = self.update_of(host)?;
            let (phase, run) = (text(&update["spec"]["transaction"]["phase"]), update["status"]["history"][0].clone());
            if !phase.is_empty() && phases.last().is_none_or(|last| last != phase) {
                phases.push(phase.to_owned());
            }
            Ok((run["transaction"] != before["transaction"] && phase.is_empty()).then_some(run))
        });
        run.map(|run| (phases, run))
    }

    /// Waits until the node has looked for updates as it was asked to, and lists these.
    pub fn lists(&self, host: &Host, wanted: &[&str]) -> Result<()> {
        let mut last = Value::Null;
        until(&format!("{} lists {wanted:?}", host.name()), LONG, || {
            last = self.update_of(host)?;
            let available = last["status"]["packages"]["available"].as_array().map(Vec::as_slice).unwrap_or_default();
            let names: Vec<_> = available.iter().map(|a| text(&a["name"])).collect();
            Ok((names == wanted && last["status"]["check"] == last["spec"]["check"]).then_some(()))
        })
        .with_context(|| format!("{last:#}"))
    }

    pub fn locks(&self) -> Result<Vec<Value>> {
        let mut leases = self.items("leases")?;
        leases.retain(|l| name(l).starts_with("smartup-update-"));
        Ok(leases)
    }

    /// Waits until no lock is held; then there is no cordon either, and nothing is under way.
    pub fn is_free(&self) -> Result<()> {
        until("the last lock is gone", LONG, || Ok(self.locks()?.is_empty().then_some(())))?;
        for node in self.items("nodes")? {
            let marked = !node["metadata"]["annotations"]["smartup/cordoned"].is_null();
            ensure!(node["spec"]["unschedulable"] != true && !marked, "{node:#}");
        }
        for update in self.items("nodeupdates")? {
            ensure!(update["spec"]["transaction"].is_null(), "{update:#}");
        }
        Ok(())
    }

    /// The same, and nothing is put off.
    pub fn is_at_rest(&self) -> Result<()> {
        self.is_free()?;
        let put_off: Vec<_> = self.items("nodeupdates")?.into_iter().filter(|u| !u["spec"]["retry"].is_null()).collect();
        ensure!(put_off.is_empty(), "{put_off:#?}");
        Ok(())
    }

    /// For a test that failed.
    pub fn state(&self) -> String {
        let logs = |part: &str| {
            self.kubectl(&format!("logs -l app.kubernetes.io/component={part} --tail 30 --prefix")).unwrap_or_else(|e| format!("{e:#}"))
        };
        let get = |what: &str| self.kubectl(&format!("get {what}")).unwrap_or_else(|e| format!("{e:#}"));
        let mut updates = self.items("nodeupdates").unwrap_or_default();
        for update in &mut updates {
            update["metadata"] = json!({ "name": name(update) });
        }
        let parts = [format!("{updates:#?}"), get("leases"), get("nodes,pods -A -o wide"), logs("controller"), logs("agent")];
        parts.join("\n")
    }
}
