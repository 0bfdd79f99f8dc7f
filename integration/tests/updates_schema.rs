//! A real API server takes the definitions of smart updates, and refuses what they do not allow.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::{Host, Lab, LabSpec, until};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(180);

fn server(lab: &Lab) -> Result<&Host> {
    let host = lab.host("h1")?;
    let flags = "server --cluster-init --https-listen-port 9443 --node-ip 10.79.0.11 --flannel-iface eth0 --token a-lab-secret";
    let unit = format!("[Service]\nType=notify\nKillMode=process\nDelegate=yes\nTimeoutStartSec=0\nExecStart=/usr/local/bin/k3s {flags}\n");
    host.write("/etc/systemd/system/k3s-server.service", 0o644, unit)?;
    host.sh("systemctl daemon-reload; timeout 120 systemctl start k3s-server")?;
    until("/readyz is ok", LONG, || Ok((host.sh("k3s kubectl get --raw /readyz")? == "ok").then_some(())))?;
    Ok(host)
}

/// What kubectl says on standard output, or where it fails, on standard error.
fn kubectl(host: &Host, args: &[&str], input: &Value) -> Result<std::result::Result<String, String>> {
    let outcome = host.exec_with([&["k3s", "kubectl"], args].concat(), input.to_string().as_bytes())?;
    Ok(if outcome.ok() { Ok(outcome.stdout) } else { Err(outcome.stderr) })
}

fn manager(spec: &Value) -> Value {
    json!({
        "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "UpdateManager", "spec": spec,
        "metadata": { "name": "default", "namespace": "vz-maintenance-operator" },
    })
}

fn window(schedule: &str, duration: &str) -> Value {
    json!({ "maintenanceWindows": [{ "schedule": schedule, "duration": duration }] })
}

#[test]
fn an_api_server_takes_them_and_refuses_what_they_do_not_allow() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1).without_smartup())?;
    let host = server(&lab)?;
    for crd in updates::api::crds() {
        let crd = serde_json::to_value(crd)?;
        kubectl(host, &["apply", "-f", "-"], &crd)?.map_err(anyhow::Error::msg)?;
        kubectl(host, &["apply", "--server-side", "--force-conflicts", "-f", "-"], &crd)?.map_err(anyhow::Error::msg)?;
    }
    host.sh("k3s kubectl wait --for=condition=Established --timeout=60s crd/updatemanagers.maintenance.virtuozzo.io crd/nodeupdates.maintenance.virtuozzo.io")?;
    let conditions =
        host.sh("k3s kubectl get crd -o jsonpath='{.items[?(@.spec.group==\"maintenance.virtuozzo.io\")].status.conditions[*].type}'")?;
    ensure!(!conditions.contains("NonStructuralSchema"), "{conditions}");
    host.sh("k3s kubectl create namespace vz-maintenance-operator")?;

    // the reference's own spec, and all that is ours
    let full = json!({
        "maintenanceWindows": [
            { "duration": "1h30m", "schedule": "0 1 * * 1-5" },
            { "duration": "8h", "schedule": "*/30 22-23 1,15 jan-Mar sun", "timeZone": "America/Argentina/Buenos_Aires" },
        ],
        "bannedPackages": ["bash-4.2.46-34.vl7.x86_64", "vim-minimal-2:8.0.1763-19.el8_6.4.x86_64", "libc6:amd64=2.36-9+deb12u10"],
        "bannedPatches": ["123-4-r5"],
        "suspend": true,
        "suspendStorageNodes": false,
        "storageNodeSelector": { "storage": "yes" },
    });
    for spec in [&json!({}), &full] {
        kubectl(host, &["apply", "-f", "-"], &manager(spec))?.map_err(anyhow::Error::msg)?;
    }
    let stored = host.sh("k3s kubectl -n vz-maintenance-operator get updatemanager default -o json")?;
    let stored: updates::api::UpdateManager = serde_json::from_str(&stored)?;
    assert_eq!(serde_json::to_value(&stored.spec)?["bannedPackages"], full["bannedPackages"]);
    assert!(stored.spec.suspend && !stored.spec.suspend_storage_nodes);
    let columns = host.sh("k3s kubectl -n vz-maintenance-operator get updatemanagers | head -n 1")?;
    assert_eq!(columns.split_whitespace().collect::<Vec<_>>().join(" "), "NAME SUSPENDED NODES UP-TO-DATE PENDING HELD UNKNOWN AGE");

    let said = refusals(host)?;
    let version = host.sh("k3s kubectl get --raw /version")?;
    // later servers put it in other words
    if version.contains("\"minor\": \"20\"") {
        insta::assert_snapshot!(said, @r#"
        {"maintenanceWindows":[{"duration":"1h","schedule":"0 24 * * *"}]}
            The UpdateManager "default" is invalid:
            * spec.maintenanceWindows.schedule: Invalid value: "0 24 * * *": spec.maintenanceWindows.schedule in body should match '^\s*(\S+\s+){1}(?P<hour>\*|(([01]?[0-9]|2[0-3])(-([01]?[0-9]|2[0-3])(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,(([01]?[0-9]|2[0-3])(-([01]?[0-9]|2[0-3])(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)(\s|$)'
            * <nil>: Invalid value: "": "spec.maintenanceWindows.schedule" must validate all the schemas (allOf)
        {"maintenanceWindows":[{"duration":"1h","schedule":"61 1 * * *"}]}
            The UpdateManager "default" is invalid:
            * spec.maintenanceWindows.schedule: Invalid value: "61 1 * * *": spec.maintenanceWindows.schedule in body should match '^\s*(?P<minute>\*|([0-5]?[0-9](-[0-5]?[0-9](/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,([0-5]?[0-9](-[0-5]?[0-9](/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)(\s|$)'
            * <nil>: Invalid value: "": "spec.maintenanceWindows.schedule" must validate all the schemas (allOf)
        {"maintenanceWindows":[{"duration":"1h","schedule":"0 1 32 * *"}]}
            The UpdateManager "default" is invalid:
            * spec.maintenanceWindows.schedule: Invalid value: "0 1 32 * *": spec.maintenanceWindows.schedule in body should match '^\s*(\S+\s+){2}(?P<dayOfMonth>\*|((0?[1-9]|[12][0-9]|3[01])(-(0?[1-9]|[12][0-9]|3[01])(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,((0?[1-9]|[12][0-9]|3[01])(-(0?[1-9]|[12][0-9]|3[01])(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)(\s|$)'
            * <nil>: Invalid value: "": "spec.maintenanceWindows.schedule" must validate all the schemas (allOf)
        {"maintenanceWindows":[{"duration":"1h","schedule":"0 1 * foo *"}]}
            The UpdateManager "default" is invalid:
            * spec.maintenanceWindows.schedule: Invalid value: "0 1 * foo *": spec.maintenanceWindows.schedule in body should match '^\s*(\S+\s+){3}(?P<month>\*|((0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))(-(0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,((0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))(-(0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)(\s|$)'
            * <nil>: Invalid value: "": "spec.maintenanceWindows.schedule" must validate all the schemas (allOf)
        {"maintenanceWindows":[{"duration":"1h","schedule":"0 1 * *"}]}
            The UpdateManager "default" is invalid:
            * spec.maintenanceWindows.schedule: Invalid value: "0 1 * *": spec.maintenanceWindows.schedule in body should match '^\s*(\S+\s+){4}(?P<dayOfWeek>\*|((0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(-(0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,((0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(-(0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)\s*$'
            * <nil>: Invalid value: "": "spec.maintenanceWindows.schedule" must validate all the schemas (allOf)
        {"maintenanceWindows":[{"duration":"1h","schedule":"0 1 * * 1-5 2027"}]}
            The UpdateManager "default" is invalid:
            * spec.maintenanceWindows.schedule: Invalid value: "0 1 * * 1-5 2027": spec.maintenanceWindows.schedule in body should match '^\s*(\S+\s+){4}(?P<dayOfWeek>\*|((0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(-(0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,((0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(-(0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)\s*$'
            * <nil>: Invalid value: "": "spec.maintenanceWindows.schedule" must validate all the schemas (allOf)
        {"maintenanceWindows":[{"duration":"1h","schedule":"@daily"}]}
            The UpdateManager "default" is invalid:
            * spec.maintenanceWindows.schedule: Invalid value: "@daily": spec.maintenanceWindows.schedule in body should match '^\s*(?P<minute>\*|([0-5]?[0-9](-[0-5]?[0-9](/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,([0-5]?[0-9](-[0-5]?[0-9](/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)(\s|$)'
            * spec.maintenanceWindows.schedule: Invalid value: "@daily": spec.maintenanceWindows.schedule in body should match '^\s*(\S+\s+){1}(?P<hour>\*|(([01]?[0-9]|2[0-3])(-([01]?[0-9]|2[0-3])(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,(([01]?[0-9]|2[0-3])(-([01]?[0-9]|2[0-3])(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)(\s|$)'
            * spec.maintenanceWindows.schedule: Invalid value: "@daily": spec.maintenanceWindows.schedule in body should match '^\s*(\S+\s+){2}(?P<dayOfMonth>\*|((0?[1-9]|[12][0-9]|3[01])(-(0?[1-9]|[12][0-9]|3[01])(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,((0?[1-9]|[12][0-9]|3[01])(-(0?[1-9]|[12][0-9]|3[01])(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)(\s|$)'
            * spec.maintenanceWindows.schedule: Invalid value: "@daily": spec.maintenanceWindows.schedule in body should match '^\s*(\S+\s+){3}(?P<month>\*|((0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))(-(0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,((0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))(-(0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)(\s|$)'
            * spec.maintenanceWindows.schedule: Invalid value: "@daily": spec.maintenanceWindows.schedule in body should match '^\s*(\S+\s+){4}(?P<dayOfWeek>\*|((0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(-(0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?)(,((0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(-(0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))(/[1-9][0-9]?)?)?|\*/[1-9][0-9]?))*)\s*$'
            * <nil>: Invalid value: "": "spec.maintenanceWindows.schedule" must validate all the schemas (allOf). None validated
        {"maintenanceWindows":[{"duration":"0h00m","schedule":"0 1 * * *"}]}
            The UpdateManager "default" is invalid: spec.maintenanceWindows.duration: Invalid value: "0h00m": spec.maintenanceWindows.duration in body should match '^(([1-9][0-9]?|1[0-5][0-9]|16[0-7])h([0-5]?[0-9]m)?|0h([1-5][0-9]|0?[1-9])m|168h(00?m)?|[1-9][0-9]{0,3}m)$'
        {"maintenanceWindows":[{"duration":"-1h","schedule":"0 1 * * *"}]}
            The UpdateManager "default" is invalid: spec.maintenanceWindows.duration: Invalid value: "-1h": spec.maintenanceWindows.duration in body should match '^(([1-9][0-9]?|1[0-5][0-9]|16[0-7])h([0-5]?[0-9]m)?|0h([1-5][0-9]|0?[1-9])m|168h(00?m)?|[1-9][0-9]{0,3}m)$'
        {"maintenanceWindows":[{"duration":"90","schedule":"0 1 * * *"}]}
            The UpdateManager "default" is invalid: spec.maintenanceWindows.duration: Invalid value: "90": spec.maintenanceWindows.duration in body should match '^(([1-9][0-9]?|1[0-5][0-9]|16[0-7])h([0-5]?[0-9]m)?|0h([1-5][0-9]|0?[1-9])m|168h(00?m)?|[1-9][0-9]{0,3}m)$'
        {"maintenanceWindows":[{"duration":"169h","schedule":"0 1 * * *"}]}
            The UpdateManager "default" is invalid: spec.maintenanceWindows.duration: Invalid value: "169h": spec.maintenanceWindows.duration in body should match '^(([1-9][0-9]?|1[0-5][0-9]|16[0-7])h([0-5]?[0-9]m)?|0h([1-5][0-9]|0?[1-9])m|168h(00?m)?|[1-9][0-9]{0,3}m)$'
        {"maintenanceWindows":[{"schedule":"0 1 * * *"}]}
            error: error validating "STDIN": error validating data: ValidationError(UpdateManager.spec.maintenanceWindows[0]): missing required field "duration" in io.virtuozzo.maintenance.v1.UpdateManager.spec.maintenanceWindows; if you choose to ignore these errors, turn validation off with --validate=false
        {"maintenanceWindows":[{"duration":"1h","schedule":"0 1 * * *","timeZone":"CET/"}]}
            The UpdateManager "default" is invalid: spec.maintenanceWindows.timeZone: Invalid value: "CET/": spec.maintenanceWindows.timeZone in body should match '^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$'
        {"bannedPackages":["bash"]}
            The UpdateManager "default" is invalid: spec.bannedPackages: Invalid value: "bash": spec.bannedPackages in body should match '^((?P<name>[A-Za-z0-9_][A-Za-z0-9._+-]*)-(?P<version>((0|[1-9][0-9]{0,8}):)?[A-Za-z0-9._+~^]+)-(?P<release>[A-Za-z0-9._+~^]+)\.(?P<arch>noarch|any|x86_64(_v[234])?|amd64|ia32e|i[3456]86|athlon|aarch64|armv6hl|armv7h?l|ppc64(le)?|s390x|riscv64|loongarch64)|(?P<debian>[a-z0-9][a-z0-9+.-]+(:[a-z0-9][a-z0-9-]*)?)=((0|[1-9][0-9]{0,8}):)?[0-9]([A-Za-z0-9.+~-]*[A-Za-z0-9.+~])?)$'
        {"bannedPackages":["bash-4.2.46-34.vl7"]}
            The UpdateManager "default" is invalid: spec.bannedPackages: Invalid value: "bash-4.2.46-34.vl7": spec.bannedPackages in body should match '^((?P<name>[A-Za-z0-9_][A-Za-z0-9._+-]*)-(?P<version>((0|[1-9][0-9]{0,8}):)?[A-Za-z0-9._+~^]+)-(?P<release>[A-Za-z0-9._+~^]+)\.(?P<arch>noarch|any|x86_64(_v[234])?|amd64|ia32e|i[3456]86|athlon|aarch64|armv6hl|armv7h?l|ppc64(le)?|s390x|riscv64|loongarch64)|(?P<debian>[a-z0-9][a-z0-9+.-]+(:[a-z0-9][a-z0-9-]*)?)=((0|[1-9][0-9]{0,8}):)?[0-9]([A-Za-z0-9.+~-]*[A-Za-z0-9.+~])?)$'
        {"bannedPackages":["bash=5.2.15-2+b8","bash=5.2.15-2+b8"]}
            The UpdateManager "default" is invalid: spec.bannedPackages[1]: Duplicate value: "bash=5.2.15-2+b8"
        {"bannedPatches":["123-4-5"]}
            The UpdateManager "default" is invalid: spec.bannedPatches: Invalid value: "123-4-5": spec.bannedPatches in body should match '^(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8})-r(0|[1-9][0-9]{0,8})$'
        {"suspend":"yes"}
            error: error validating "STDIN": error validating data: ValidationError(UpdateManager.spec.suspend): invalid type for io.virtuozzo.maintenance.v1.UpdateManager.spec.suspend: got "string", expected "boolean"; if you choose to ignore these errors, turn validation off with --validate=false
        {"marksBefore":{"labels":{"state":"not this!"}}}
            The UpdateManager "default" is invalid: spec.marksBefore.labels.state: Invalid value: "not this!": spec.marksBefore.labels.state in body should match '^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$'
        "#);
    }
    lab.down()
}

fn refusals(host: &Host) -> Result<String> {
    let mut said = Vec::new();
    for (field, spec) in [
        ("schedule", window("0 24 * * *", "1h")),
        ("schedule", window("61 1 * * *", "1h")),
        ("schedule", window("0 1 32 * *", "1h")),
        ("schedule", window("0 1 * foo *", "1h")),
        ("schedule", window("0 1 * *", "1h")),
        ("schedule", window("0 1 * * 1-5 2027", "1h")),
        ("schedule", window("@daily", "1h")),
        ("duration", window("0 1 * * *", "0h00m")),
        ("duration", window("0 1 * * *", "-1h")),
        ("duration", window("0 1 * * *", "90")),
        ("duration", window("0 1 * * *", "169h")),
        ("duration", json!({ "maintenanceWindows": [{ "schedule": "0 1 * * *" }] })),
        ("timeZone", json!({ "maintenanceWindows": [{ "schedule": "0 1 * * *", "duration": "1h", "timeZone": "CET/" }] })),
        ("bannedPackages", json!({ "bannedPackages": ["bash"] })),
        ("bannedPackages", json!({ "bannedPackages": ["bash-4.2.46-34.vl7"] })),
        ("bannedPackages", json!({ "bannedPackages": ["bash=5.2.15-2+b8", "bash=5.2.15-2+b8"] })),
        ("bannedPatches", json!({ "bannedPatches": ["123-4-5"] })),
        ("suspend", json!({ "suspend": "yes" })),
        ("marksBefore", json!({ "marksBefore": { "labels": { "state": "not this!" } } })),
    ] {
        let answer = kubectl(host, &["apply", "--dry-run=server", "-f", "-"], &manager(&spec))?;
        let Err(why) = answer else { anyhow::bail!("{spec} was taken") };
        ensure!(why.contains(field), "{spec}: {why}");
        let lines: Vec<_> = why.trim().lines().map(str::trim_end).collect();
        said.push(format!("{spec}\n    {}", lines.join("\n    ")));
    }
    Ok(said.join("\n"))
}
