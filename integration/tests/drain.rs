//! Draining, the operation lease and forgetting a node, against a real API server and real kubelets.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use common::{LONG, init, join, ticket};
use integration::{Host, Lab, LabSpec, until};
use k3s::{Cordon, DrainOptions, DrainRules, Drained, Holder, Lease};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio_util::sync::CancellationToken;

/// Two pods that have to run on h2 and one budget that wants both; a `DaemonSet`; all of the machine's busybox.
const WORKLOAD: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeSelector: {kubernetes.io/hostname: h2}
      terminationGracePeriodSeconds: 1
      volumes: [{name: scratch, emptyDir: {}}]
      containers:
      - {name: web, image: 'docker.io/library/busybox:test', imagePullPolicy: Never, command: [sleep, '36000'], volumeMounts: [{name: scratch, mountPath: /scratch}]}
---
apiVersion: policy/v1beta1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: net}
spec:
  selector: {matchLabels: {app: net}}
  template:
    metadata: {labels: {app: net}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: net, image: 'docker.io/library/busybox:test', imagePullPolicy: Never, command: [sleep, '36000']}
";

/// Runs `work` in the host's network, with a client of the API there.
fn within<T: Send>(host: &Host, work: impl AsyncFnOnce(kube::Client) -> Result<T> + Send) -> Result<T> {
    let pid = host.leader().context("the host is down")?;
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("kubeconfig");
    std::fs::write(&config, host.read("/etc/rancher/k3s/k3s.yaml")?)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(format!("/proc/{pid}/ns/net"))?;
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            // already there when another of the closures came before
            let _ = rustls::crypto::ring::default_provider().install_default();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { work(k3s::client(&config, None).await?).await })
        });
        thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })
}

fn kubectl(host: &Host, line: &str) -> Result<String> {
    host.sh(&format!("k3s kubectl {line}"))
}

/// Drains h2 from h1; answers also what was reported. `on` hears each report.
fn drain(h1: &Host, seconds: u64, on: impl Fn(&str) + Send) -> Result<(node::Result<Drained>, Vec<String>)> {
    let timeout = Duration::from_secs(seconds);
    let options = DrainOptions { timeout, rules: DrainRules::default(), why: "test".into(), stop: CancellationToken::new() };
    let said = RefCell::new(Vec::new());
    within(h1, async move |client| {
        let report = |text: &str| {
            on(text);
            said.borrow_mut().push(text.to_owned());
        };
        let outcome = k3s::drain(&client, "h2", &options, report).await;
        Ok((outcome, said.into_inner()))
    })
}

/// Whether h2 is cordoned, and what for by us.
fn cordoned(h1: &Host) -> Result<(bool, String)> {
    let text = kubectl(h1, r"get node h2 -o jsonpath='{.spec.unschedulable},{.metadata.annotations.smartup/cordoned}'")?;
    let (on, why) = text.split_once(',').context("no comma")?;
    Ok((on == "true", why.to_owned()))
}

/// Pods on h2 that run, by app.
fn running(h1: &Host) -> Result<BTreeMap<String, usize>> {
    let text = kubectl(
        h1,
        r#"get pods -n default --field-selector spec.nodeName=h2,status.phase=Running -o jsonpath='{range .items[*]}{.metadata.labels.app}{"\n"}{end}'"#,
    )?;
    let mut found = BTreeMap::new();
    for app in text.lines() {
        *found.entry(app.to_owned()).or_default() += 1;
    }
    Ok(found)
}

#[test]
fn a_node_is_drained_as_far_as_its_budgets_allow_and_then_forgotten() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    init(h1)?;
    join(h2, "agent", &ticket(h1, "agent")?)?.checked()?;
    h1.write("/root/workload.yaml", 0o600, WORKLOAD)?;
    kubectl(h1, "apply -f /root/workload.yaml")?;
    let both = BTreeMap::from([("net".to_owned(), 1), ("web".to_owned(), 2)]);
    until("the pods run", LONG, || Ok((running(h1)? == both).then_some(())))?;
    let healthy = "get pdb web -o jsonpath='{.status.currentHealthy}'";
    until("the budget counts them", LONG, || Ok((kubectl(h1, healthy)? == "2").then_some(())))?;

    // the budget keeps both until the time is up, and is named; nothing was changed
    let (outcome, said) = drain(h1, 5, |_| ())?;
    let e = outcome.expect_err("it is blocked");
    ensure!(e.kind == node::Kind::Refused, "{e:?}");
    ensure!(e.what.starts_with("h2 was not drained within 5 s: default/web-"), "{}", e.what);
    ensure!(e.what.contains("is kept by PodDisruptionBudget default/web (2 healthy, 2 needed, 0 may go)"), "{}", e.what);
    ensure!(said.iter().any(|s| s.contains("emptyDir goes with its pod: default/web-")), "{said:?}");
    ensure!(cordoned(h1)? == (false, String::new()) && running(h1)? == both, "{:?} {:?}", cordoned(h1)?, running(h1)?);

    // it is relaxed in the middle, and the drain goes on by itself
    let relaxed = AtomicBool::new(false);
    let (outcome, said) = drain(h1, 120, |text| {
        if text.contains("is kept by") && !relaxed.load(SeqCst) {
            relaxed.store(kubectl(h1, r#"patch pdb web --type merge -p '{"spec":{"minAvailable":0}}'"#).is_ok(), SeqCst);
        }
    })?;
    let done = outcome.with_context(|| format!("{said:?}"))?;
    ensure!(relaxed.load(SeqCst), "it was kept at first: {said:?}");
    ensure!(done.cordon == Cordon::Ours && done.evicted.len() == 2, "{done:?}");
    ensure!(done.stay.iter().any(|(pod, _)| pod.name.starts_with("net-")), "{done:?}");
    ensure!(running(h1)? == BTreeMap::from([("net".to_owned(), 1)]), "only the DaemonSet's is left: {:?}", running(h1)?);
    ensure!(cordoned(h1)? == (true, "test".into()), "{:?}", cordoned(h1)?);

    // only our own cordon is taken off
    ensure!(within(h1, async |client| Ok(k3s::uncordon(&client, "h2").await?))? == Some(Cordon::None));
    until("the pods run again", LONG, || Ok((running(h1)? == both).then_some(())))?;
    a_namesake_is_safe(h1)?;
    kubectl(h1, "cordon h2")?;
    // the budget counts the namesake as gone for two minutes, though it was refused: the other pod may have to wait for so long
    let (outcome, _) = drain(h1, 180, |_| ())?;
    ensure!(outcome?.cordon == Cordon::Theirs);
    ensure!(within(h1, async |client| Ok(k3s::uncordon(&client, "h2").await?))? == Some(Cordon::Theirs));
    ensure!(cordoned(h1)? == (true, String::new()), "{:?}", cordoned(h1)?);

    lease(h1)?;

    h2.run(["systemctl", "stop", "k3s-agent"])?;
    ensure!(kubectl(h1, "get nodes,secrets -A -o name")?.contains("secret/h2.node-password.k3s"));
    ensure!(within(h1, async |client| Ok(k3s::forget(&client, "h2").await?))?);
    ensure!(!within(h1, async |client| Ok(k3s::forget(&client, "h2").await?))?, "twice does no harm");
    // not just h2, which may be in the random end of a token's name
    let left = kubectl(h1, "get nodes,secrets -A -o name")?;
    ensure!(!left.contains("node/h2") && !left.contains("/h2."), "{left}");
    lab.down()
}

/// The API keeps to the UID that an eviction is for, as the drain relies upon.
fn a_namesake_is_safe(h1: &Host) -> Result<()> {
    let name = kubectl(h1, "get pods -n default -l app=web -o jsonpath='{.items[0].metadata.name}'")?;
    let eviction = format!(r#"{{"metadata":{{"name":"{name}"}},"deleteOptions":{{"preconditions":{{"uid":"another"}}}}}}"#);
    let url = format!("/api/v1/namespaces/default/pods/{name}/eviction");
    let outcome = h1.exec_with(["k3s", "kubectl", "create", "--raw", &url, "-f", "-"], eviction.as_bytes())?;
    ensure!(!outcome.ok() && outcome.stderr.contains("UID"), "{outcome:?}");
    Ok(())
}

/// Two operations at once: the second is refused, as long as the first is alive.
fn lease(h1: &Host) -> Result<()> {
    let holder = |host: &str| Holder { host: host.into(), pid: 42, doing: "remove h3".into() };
    within(h1, async |client| {
        let first = Lease::take(&client, &holder("h1"), |_| ()).await?;
        let Err(e) = Lease::take(&client, &holder("h2"), |_| ()).await else { bail!("it was taken twice") };
        ensure!(e.kind == node::Kind::Refused && e.what.ends_with(": remove h3 on h1 (pid 42)"), "{e:?}");
        first.still_ours().await?;
        first.end().await;
        let second = Lease::take(&client, &holder("h2"), |_| ()).await?;
        second.still_ours().await?;
        second.end().await;
        Ok(())
    })?;
    ensure!(!kubectl(h1, "get leases -n kube-system -o name")?.contains("smartup"), "nothing is left behind");
    Ok(())
}
