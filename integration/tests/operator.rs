//! The maintenance operator's frame in a cluster that `smartup apply` made: its image, its pods, what they write and may not.

mod common;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use common::{Control, LONG, Updater, done, is_one_cluster, yaml};
use integration::{Host, Lab, LabSpec, until};
use serde_json::Value;

const NAMESPACE: &str = "vz-maintenance-operator";

const UPDATE_MANAGER: &str = "
apiVersion: maintenance.virtuozzo.io/v1
kind: UpdateManager
metadata: {name: default, namespace: vz-maintenance-operator}
spec: {}
";

fn kubectl(host: &Host, args: &str) -> Result<String> {
    host.sh(&format!("k3s kubectl -n {NAMESPACE} {args}"))
}

fn get(host: &Host, what: &str) -> Result<Value> {
    Ok(serde_json::from_str(&kubectl(host, &format!("get {what} -o json"))?)?)
}

fn items(host: &Host, what: &str) -> Result<Vec<Value>> {
    Ok(get(host, what)?["items"].as_array().cloned().unwrap_or_default())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The pod that leads.
fn leader(host: &Host) -> Result<String> {
    Ok(text(&get(host, "lease smartup-controller")?["spec"]["holderIdentity"]).to_owned())
}

/// How a node stands, as the `UpdateManager` has it.
fn standing(host: &Host, node: &str) -> Result<Value> {
    let manager = get(host, "updatemanager default")?;
    let nodes = manager["status"]["nodes"].as_array().cloned().unwrap_or_default();
    Ok(nodes.into_iter().find(|n| n["id"] == node).unwrap_or_default())
}

#[test]
fn its_pods_run_from_its_own_image_on_every_node_and_outlive_the_leader() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are five hosts"));
    let all = [h1, h2, h3, h4];
    let listed = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"];
    let control = Control::on(&lab, "h5", &yaml("", &listed))?;
    let linked = control.host.exec(["smartup", "image", "save", "/root/operator.tar"])?;
    ensure!(linked.code == 0, "{}\nhint: make build, which links smartup statically", linked.stderr);
    control.applied(&[])?;
    is_one_cluster(&[h1, h2, h3], &[h4])?;

    the_image_is_everywhere(&control, &all)?;
    let updater = Updater::on(h4)?;
    // 7.4.1, steps 3 and 4, as the reference has them
    h1.sh("printf '#!/bin/sh\\nexec k3s kubectl \"$@\"\\n' > /usr/local/bin/kubectl; chmod 755 /usr/local/bin/kubectl")?;
    h1.sh("mkdir -p /usr/share/smart-updates; smartup operator manifest > /usr/share/smart-updates/maintenance-operator.yaml")?;
    h1.write("/usr/share/smart-updates/update-manager.yaml", 0o644, UPDATE_MANAGER)?;
    h1.sh("kubectl apply -f /usr/share/smart-updates/maintenance-operator.yaml")?;
    let job = h1.sh(r#"grep "vz-maintenance-deployment-job-v" /usr/share/smart-updates/maintenance-operator.yaml"#)?;
    let job = job.trim().strip_prefix("name: ").context(job.clone())?;
    let waited = h1.sh(&format!("kubectl wait --namespace=vz-maintenance-operator --for=condition=Complete job {job} --timeout=1h"));
    if waited.is_err() {
        let seen = h1.sh(&format!("k3s kubectl -n {NAMESPACE} get pods,nodeupdates -o wide; k3s kubectl -n {NAMESPACE} describe pods; for p in $(k3s kubectl -n {NAMESPACE} get pods -o name); do k3s kubectl -n {NAMESPACE} logs --tail 30 $p; done 2>&1"))?;
        waited.context(seen)?;
    }
    pods_are_where_they_belong(h1, &all)?;
    nodes_are_reported(h1, &all)?;
    as_the_reference_says(h1)?;
    let held = updater.held()?;
    let again = h1.sh("kubectl apply -f /usr/share/smart-updates/maintenance-operator.yaml")?;
    ensure!(again.lines().all(|l| l.ends_with("unchanged")), "applied twice: {again}");
    an_agent_may_not(h1)?;
    the_next_leads_at_once(h1, &all)?;
    another_leads_when_it_is_killed(h1, &all)?;
    an_outage_is_outlived(&[h1, h2, h3])?;

    // the holder of the lead loses its power: another server's controller goes on
    let was = leader(h1)?;
    let node = text(&get(h1, &format!("pod {was}"))?["spec"]["nodeName"]).to_owned();
    shows_metrics(h1, &was)?;
    let left = all.into_iter().find(|h| h.name() != node).context("all hosts are one")?;
    lab.host(&node)?.power_cut()?;
    until("another leads", LONG, || Ok(leader(left).is_ok_and(|now| !now.is_empty() && now != was).then_some(())))?;
    kubectl(left, "label node h4 maintenance.virtuozzo.io/suspend-")?;
    let resumed = || Ok(standing(left, "h4").is_ok_and(|n| n["rpmPackages"]["status"] != "Suspended").then_some(()));
    until("the new leader sees a label", LONG, resumed)?;
    updater.still_held(held)?;
    // a host that is given back updates itself again
    if node != "h4" {
        done(h4, &["reset", "--yes"])?;
        updater.as_before()?;
    }
    lab.down()
}

/// Put there by `apply`, and taken by containerd; a second run has nothing to do.
fn the_image_is_everywhere(control: &Control<'_>, all: &[&Host]) -> Result<()> {
    let name = |host: &Host| -> Result<String> { Ok(host.sh("ls /var/lib/rancher/k3s/agent/images/")?.trim().to_owned()) };
    let file = name(all[0])?;
    let tag = file.strip_prefix("smartup-operator-").and_then(|f| f.strip_suffix(".tar")).with_context(|| format!("no archive: {file}"))?;
    for host in all {
        ensure!(name(host)? == file, "{}: {}", host.name(), name(host)?);
        let images = host.run(["k3s", "ctr", "images", "ls", "-q"])?;
        ensure!(images.lines().any(|i| i == format!("smartup.local/operator:{tag}")), "{}: {images}", host.name());
    }
    // the archives are the same bytes everywhere, also where a user has one written
    let mut sums = BTreeSet::new();
    for (host, file) in all.iter().map(|h| (*h, format!("/var/lib/rancher/k3s/agent/images/{file}"))) {
        sums.insert(host.sh(&format!("sha256sum < {file}"))?);
    }
    sums.insert(control.host.sh("sha256sum < /root/operator.tar")?);
    ensure!(sums.len() == 1, "{sums:?}");
    control.is_settled()?;
    // one that somebody removed comes back while k3s runs
    all[3].run(["k3s", "ctr", "images", "rm", &format!("smartup.local/operator:{tag}")])?;
    ensure!(control.plan(&[])?.code == 3, "its absence is seen");
    control.applied(&[])?;
    control.is_settled()
}

fn pods_are_where_they_belong(h1: &Host, all: &[&Host]) -> Result<()> {
    let on = |component: &str| -> Result<Vec<String>> {
        let pods = items(h1, &format!("pods -l app.kubernetes.io/component={component}"))?;
        ensure!(pods.iter().all(|p| text(&p["spec"]["containers"][0]["image"]).starts_with("smartup.local/operator:")));
        Ok(pods.iter().map(|p| text(&p["spec"]["nodeName"]).to_owned()).collect())
    };
    let agents: BTreeSet<String> = on("agent")?.into_iter().collect();
    ensure!(agents == all.iter().map(|h| h.name().to_owned()).collect(), "{agents:?}");
    let controllers: BTreeSet<String> = on("controller")?.into_iter().collect();
    ensure!(controllers.len() == 2 && !controllers.contains("h4"), "two controllers on two servers: {controllers:?}");
    Ok(())
}

/// A `NodeUpdate` for each node, with what its agent says; and in the `UpdateManager`, once there is one, all of them.
fn nodes_are_reported(h1: &Host, all: &[&Host]) -> Result<()> {
    let kernel = h1.run(["uname", "-r"])?;
    let updates = items(h1, "nodeupdates")?;
    ensure!(updates.len() == all.len(), "{updates:?}");
    for update in &updates {
        ensure!(update["status"]["kernel"] == kernel.trim(), "{update:#}");
        ensure!(update["metadata"]["ownerReferences"][0]["kind"] == "Node", "{update:#}");
    }
    h1.sh("kubectl apply -f /usr/share/smart-updates/update-manager.yaml")?;
    until("all nodes are in the status", LONG, || {
        let nodes = get(h1, "updatemanager default")?["status"]["nodes"].as_array().map(Vec::len);
        Ok((nodes == Some(all.len())).then_some(()))
    })?;
    for update in &updates {
        let node = standing(h1, text(&update["metadata"]["name"]))?;
        ensure!(node["stageName"] == update["spec"]["stage"] && node["kernel"] == kernel.trim(), "{node:#} {update:#}");
    }
    let manager = get(h1, "updatemanager default")?;
    let conditions = manager["status"]["conditions"].as_array().cloned().unwrap_or_default();
    ensure!(!conditions.is_empty() && conditions.iter().all(|c| c["status"] == "True"), "{manager:#}");
    Ok(())
}

/// `kubectl edit`, whose editor is this script of sed's.
fn edited(h1: &Host, script: &str) -> Result<()> {
    h1.write("/root/script", 0o644, script)?;
    h1.write("/root/editor", 0o755, "#!/bin/sh\nexec sed -i -f /root/script \"$1\"\n")?;
    let said = h1.sh("EDITOR=/root/editor kubectl -n vz-maintenance-operator edit updatemanagers default")?;
    ensure!(said.trim() == "updatemanager.maintenance.virtuozzo.io/default edited", "{said}");
    Ok(())
}

/// The lines of 7.4.2 to 7.4.6 word for word, and our own commands beside them: what one says, the other sees.
fn as_the_reference_says(h1: &Host) -> Result<()> {
    let ours = |args: &[&str]| done(h1, &[&["updates"], args].concat());
    // 7.4.2
    let yaml = h1.sh("kubectl -n vz-maintenance-operator get updatemanager -o yaml")?;
    let json: Value = serde_json::from_str(&h1.sh("kubectl -n vz-maintenance-operator get updatemanager -o json")?)?;
    let own: Value = serde_json::from_str(&ours(&["status", "-o", "json"])?)?;
    let ids = |nodes: &Value| nodes.as_array().map(|n| n.iter().map(|n| text(&n["id"]).to_owned()).collect::<Vec<_>>());
    let theirs = &json["items"][0]["status"]["nodes"];
    ensure!(ids(theirs) == ids(&own["status"]["nodes"]) && ids(theirs).is_some_and(|n| n.len() == 4), "{json:#}");
    ensure!(yaml.contains("stageName: stable") && yaml.contains("- id: h4"), "{yaml}");

    // 7.4.3
    edited(h1, r"s/^  maintenanceWindows: \[\]/  maintenanceWindows:\n  - duration: 1h30m\n    schedule: 0 1 * * 1-5/")?;
    let said = ours(&["window", "add", "0 1 * * mon-fri", "90m"])?;
    ensure!(said == "window '0 1 * * mon-fri' 1h30m UTC was already there\n", "{said}");
    ours(&["window", "remove", "0 1 * * 1-5"])?;

    // 7.4.4
    edited(
        h1,
        r"s/^  bannedPackages: \[\]/  bannedPackages:\n  - bash-4.2.46-34.vl7.x86_64/; s/^  bannedPatches: \[\]/  bannedPatches:\n  - 123-4-r5/",
    )?;
    let said = ours(&["unban", "bash-4.2.46-34.vl7.x86_64", "123-4-r5"])?;
    ensure!(said == "bash-4.2.46-34.vl7.x86_64 is no longer banned\n123-4-r5 is no longer banned\n", "{said}");

    // 7.4.5
    h1.sh("kubectl label node h4 maintenance.virtuozzo.io/auto-updates-policy=fast --overwrite")?;
    ensure!(ours(&["policy", "h4", "fast"])? == "h4 had that policy already\n");
    until("h4 is of another stage", LONG, || Ok((standing(h1, "h4")?["stageName"] == "fast").then_some(())))?;

    // 7.4.6
    let suspended = |reason: Option<&str>| {
        until(&format!("h4 is suspended: {reason:?}"), LONG, || {
            let node = standing(h1, "h4")?;
            let of = |item: &Value| match reason {
                Some(reason) => item["status"] == "Suspended" && item["reason"] == reason,
                None => item["status"] != "Suspended",
            };
            Ok((of(&node["rpmPackages"]) && of(&node["readyKernel"])).then_some(()))
        })
    };
    edited(h1, "s/^  suspend: false/  suspend: true/")?;
    suspended(Some("ClusterSuspended"))?;
    ensure!(ours(&["resume"])? == "updates resumed\n");
    suspended(None)?;
    h1.sh(r#"kubectl label nodes h4 maintenance.virtuozzo.io/suspend="""#)?;
    suspended(Some("ManuallySuspended"))?;
    h1.sh("kubectl label nodes h4 maintenance.virtuozzo.io/suspend-")?;
    suspended(None)?;
    ensure!(ours(&["suspend", "h4"])? == "h4 suspended\n");
    suspended(Some("ManuallySuspended"))?;
    until("an event says so", LONG, || Ok(h1.sh("kubectl describe node h4")?.contains("UpdatesSuspended").then_some(())))
}

/// As `enable-updates -f` has it done on a host of docker's: it is given the image, and asked to forget it by a reset.
#[test]
fn docker_is_given_the_image() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    let docker = "#!/bin/sh
echo \"$*\" >> /root/asked
case \"$1 $2\" in
'image inspect') test -e /root/loaded ;;
'load --input') cp \"$3\" /root/loaded ;;
'image rm') rm /root/loaded ;;
*) exit 1 ;;
esac
";
    h1.write("/usr/local/bin/docker", 0o755, docker)?;
    let put = || {
        let job = r#"{"say":"job","job":"image","runtime":"docker"}"#;
        let said = h1.sh(&format!(
            "rm -f /run/over; (echo '{job}'; until [ -e /run/over ]; do sleep 0.1; done) | (smartup node; touch /run/over)"
        ))?;
        Ok::<_, anyhow::Error>((said, h1.sh("cat /root/asked; rm /root/asked")?))
    };
    let image = h1.sh("smartup image save - 2>/root/called | sha256sum")?;
    let called = h1.sh("cut -d' ' -f1 /root/called")?.trim().to_owned();
    let (said, asked) = put()?;
    let inspected = format!("image inspect --format {{{{.Id}}}} {called}\n");
    ensure!(asked == format!("{inspected}load --input /var/lib/smartup/operator.tar\n{inspected}"), "{asked}\n{said}");
    ensure!(said.contains(r#"{"say":"done","result":true}"#) && h1.sh("sha256sum < /root/loaded")? == image, "{said}");
    ensure!(!h1.exec(["test", "-e", "/var/lib/smartup/operator.tar"])?.ok(), "what was loaded is not kept");
    let (said, asked) = put()?;
    ensure!(asked == inspected && said.contains(r#"{"say":"done","result":false}"#), "{asked}\n{said}");
    let said = done(h1, &["reset", "--yes"])?;
    ensure!(said.contains(&format!("image {called} removed")) && h1.sh("cat /root/asked")? == format!("image rm {called}\n"), "{said}");
    lab.down()
}

/// What the agent's token is refused, request by request; and the two things that it is for.
fn an_agent_may_not(h1: &Host) -> Result<()> {
    let secret = kubectl(h1, "get serviceaccount smartup-agent -o jsonpath='{.secrets[0].name}'")?;
    let token = kubectl(h1, &format!("get secret {secret} -o jsonpath='{{.data.token}}' | base64 -d"))?;
    let ask = |args: &str| {
        let login = format!("--kubeconfig=/dev/null --server=https://127.0.0.1:9443 --insecure-skip-tls-verify --token={token}");
        h1.exec(["sh", "-c", &format!("k3s kubectl {login} -n {NAMESPACE} {args}")])
    };
    let listed = ask("get nodeupdates -o name")?.checked()?;
    ensure!(listed.lines().count() == 4, "{listed}");
    ensure!(ask("auth can-i patch nodeupdates --subresource=status")?.stdout.trim() == "yes");
    for request in [
        r#"patch nodeupdate h1 --type merge -p '{"spec":{"stage":"fast"}}'"#,
        "delete nodeupdate h1",
        "create -f /usr/share/smart-updates/update-manager.yaml",
        "get updatemanager default",
        r#"patch updatemanager default --type merge -p '{"spec":{"suspend":true}}'"#,
        "get secrets",
        "get pods",
        "get pods -n kube-system",
        "delete lease smartup-controller",
        "get nodes",
        "label node h1 maintenance.virtuozzo.io/suspend=",
        "cordon h1",
        "get crd",
        "create namespace mine",
        "run mine --image=docker.io/library/pause:test",
    ] {
        let outcome = ask(request)?;
        ensure!(outcome.code != 0 && outcome.stderr.contains("orbidden"), "{request}: {outcome:?}");
    }
    // nor may the controller do what is not its own
    let able = kubectl(h1, &format!("auth can-i --list --as=system:serviceaccount:{NAMESPACE}:smartup-controller --no-headers"))?;
    let of = |kind: &str| able.lines().filter(|l| l.split_whitespace().next() == Some(kind)).map(str::to_owned).collect::<Vec<_>>();
    ensure!(of("secrets").iter().all(|l| l.contains("[smartup-notify]") && l.ends_with("[get]")), "{able}");
    ensure!(of("pods").iter().all(|l| !l.contains("create") && !l.contains("get")) && of("pods/exec").is_empty(), "{able}");
    ensure!(!able.contains("*.*"), "{able}");
    Ok(())
}

/// What Prometheus and the kubelet ask, and structured logs.
fn shows_metrics(h1: &Host, pod: &str) -> Result<()> {
    let address = text(&get(h1, &format!("pod {pod}"))?["status"]["podIP"]).to_owned();
    let metrics = h1.sh(&format!("curl -sf --max-time 5 http://{address}:8080/metrics"))?;
    for line in ["smartup_controller_leads 1", r#"smartup_nodes{stage="fast"}"#, "smartup_controller_writes_total ", "# EOF"] {
        ensure!(metrics.contains(line), "no '{line}' in {metrics}");
    }
    let log = kubectl(h1, &format!("logs {pod}"))?;
    let lines: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>().with_context(|| log.clone())?;
    ensure!(lines.iter().any(|l| text(&l["fields"]["message"]) == "this controller leads"), "{log}");
    Ok(())
}

/// The host of the pod that leads, and its process there.
fn leading_process<'a>(h1: &Host, all: &[&'a Host]) -> Result<(&'a Host, String)> {
    let node = text(&get(h1, &format!("pod {}", leader(h1)?))?["spec"]["nodeName"]).to_owned();
    let host = *all.iter().find(|h| h.name() == node).with_context(|| format!("no host {node}"))?;
    let processes = host.sh("pgrep -f '[o]perator controller'")?;
    let mut processes = processes.split_whitespace();
    match (processes.next(), processes.next()) {
        (Some(one), None) => Ok((host, one.to_owned())),
        more => anyhow::bail!("{node}: one controller is wanted: {more:?}"),
    }
}

/// Waits until another process holds the lead than the one that acquired it then; answers how long after `since`, seconds of
/// 1970, that was, and how often the lease has changed hands without being given back.
fn next_leader(h1: &Host, acquired: &Value, since: f64) -> Result<(f64, i64)> {
    let lease = until("another leads", LONG, || {
        let spec = get(h1, "lease smartup-controller").unwrap_or_default()["spec"].clone();
        Ok((spec["acquireTime"].is_string() && spec["acquireTime"] != *acquired).then_some(spec))
    })?;
    let at: jiff::Timestamp = text(&lease["acquireTime"]).parse()?;
    Ok((at.as_duration().as_secs_f64() - since, lease["leaseTransitions"].as_i64().unwrap_or_default()))
}

/// Whoever is told to stop gives the lead back, and the other does not wait for it to expire.
fn the_next_leads_at_once(h1: &Host, all: &[&Host]) -> Result<()> {
    let acquired = get(h1, "lease smartup-controller")?["spec"]["acquireTime"].clone();
    let (host, process) = leading_process(h1, all)?;
    let since: f64 = host.sh(&format!("date +%s.%N; kill -TERM {process}"))?.trim().parse()?;
    let (took, _) = next_leader(h1, &acquired, since)?;
    ensure!((0.0..2.0).contains(&took), "the next one leads after {took} s");
    Ok(())
}

/// kill -9: the other leads when the lease has expired, and what was changed meanwhile is seen.
fn another_leads_when_it_is_killed(h1: &Host, all: &[&Host]) -> Result<()> {
    until("two controllers are ready", LONG, || {
        let ready = get(h1, "deployment smartup-controller")?["status"]["readyReplicas"].clone();
        Ok((ready == 2).then_some(()))
    })?;
    let (was, before) = (leader(h1)?, get(h1, "lease smartup-controller")?["spec"].clone());
    let (host, process) = leading_process(h1, all)?;
    let since: f64 = host.sh(&format!("date +%s.%N; kill -9 {process}"))?.trim().parse()?;
    kubectl(h1, "label node h3 maintenance.virtuozzo.io/auto-updates-policy=slow --overwrite")?;
    let (took, transitions) = next_leader(h1, &before["acquireTime"], since)?;
    ensure!(took < 20.0 && leader(h1)? != was, "after {took} s, {was} no more: {}", leader(h1)?);
    ensure!(Some(transitions - 1) == before["leaseTransitions"].as_i64(), "{transitions}: {before}");
    until("the label is seen", LONG, || Ok((standing(h1, "h3")?["stageName"] == "slow").then_some(())))
}

/// No server is there for longer than the lead lasts: controller and agents go on when one is.
fn an_outage_is_outlived(servers: &[&Host]) -> Result<()> {
    let h1 = servers[0];
    let restarts = || -> Result<Vec<(String, Value)>> {
        let pods = items(h1, "pods -l app.kubernetes.io/component=agent")?;
        Ok(pods
            .iter()
            .map(|p| (text(&p["metadata"]["name"]).to_owned(), p["status"]["containerStatuses"][0]["restartCount"].clone()))
            .collect())
    };
    let before = restarts()?;
    let check = get(h1, "nodeupdate h1")?["spec"]["check"].clone();
    let (host, process) = leading_process(h1, servers)?;
    for server in servers {
        server.run(["systemctl", "stop", "--no-block", "k3s-server"])?;
    }
    until("the leader gives up", LONG, || Ok((!host.exec(["test", "-e", &format!("/proc/{process}")])?.ok()).then_some(())))?;
    for server in servers {
        server.run(["systemctl", "start", "--no-block", "k3s-server"])?;
    }
    let ban = r#"patch updatemanager default --type merge -p '{"spec":{"bannedPatches":["1-2-r3"]}}'"#;
    until("the API is back", LONG, || Ok(kubectl(h1, ban).ok()))?;
    until("all agents have done what is asked of them", LONG, || {
        let Ok(updates) = items(h1, "nodeupdates") else { return Ok(None) };
        let done = updates.iter().all(|u| u["spec"]["check"] != check && u["status"]["check"] == u["spec"]["check"]);
        Ok((done && updates.len() == 4).then_some(()))
    })?;
    ensure!(restarts()? == before, "agents were started anew: {before:?}, {:?}", restarts()?);
    Ok(())
}
