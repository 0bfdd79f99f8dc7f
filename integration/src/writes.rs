//! A client that asks and writes through the VIP all the time, and remembers what was answered and acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::api::{Api, PATIENCE, save_credentials};
use crate::clock::now;
use crate::outage::{Get, is_fine_for};
use crate::{Host, Probe};

/// From one question, and one write, to the next.
pub const GAP: Duration = Duration::from_millis(100);
/// Where the objects are.
const NAMESPACE: &str = "writes";

/// One write.
#[derive(Debug, Clone)]
pub struct Write {
    /// The object's name.
    pub name: String,
    /// When, and whether it was acknowledged.
    pub get: Get,
    /// Why not.
    pub why: Option<String>,
}

/// A stream of writes, each of a new `ConfigMap`, and of questions that need no etcd, whatever became of those before. It ends with
/// this value.
#[derive(Debug)]
pub struct Writes {
    over: Arc<AtomicBool>,
    all: Arc<Mutex<Vec<Write>>>,
    questions: Arc<Mutex<Vec<Get>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writes {
    /// Begins to write, from a place that is none of the hosts, with the credentials of a server's administrator.
    pub fn start(probe: &Probe, server: &Host, api: SocketAddr) -> Result<Self> {
        server.run(["k3s", "kubectl", "create", "namespace", NAMESPACE])?;
        let folder = tempfile::tempdir()?;
        save_credentials(server, folder.path())?;
        let api = Api::new(api, folder.path())?;
        let (over, all, questions) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::default());
        let client = Client { probe: probe.clone(), api, over: over.clone(), all: Arc::clone(&all), questions: Arc::clone(&questions) };
        let thread = std::thread::spawn(move || {
            if let Err(error) = client.run() {
                eprintln!("the client ended: {error:#}");
            }
        });
        Ok(Self { over, all, questions, thread: Some(thread) })
    }

    /// What the API server was asked that it answers by itself.
    pub fn questions(&self) -> Vec<Get> {
        self.questions.lock().map(|questions| questions.clone()).unwrap_or_default()
    }

    /// All that have come to an end.
    pub fn all(&self) -> Vec<Write> {
        self.all.lock().map(|all| all.clone()).unwrap_or_default()
    }

    /// The same as questions and answers.
    pub fn gets(&self) -> Vec<Get> {
        self.all().into_iter().map(|write| write.get).collect()
    }

    /// Why writes since then were not acknowledged, and how many.
    pub fn why_not(&self, since: Duration) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for why in self.all().into_iter().filter(|write| write.get.asked >= since).filter_map(|write| write.why) {
            *reasons.entry(why).or_default() += 1;
        }
        reasons
    }

    /// Fails unless every write that was acknowledged is there, asked on this server.
    pub fn are_kept(&self, server: &Host) -> Result<()> {
        // before the list: what is acknowledged later need not be in it
        let written = self.all();
        let listed = server.run(["k3s", "kubectl", "-n", NAMESPACE, "get", "configmaps", "-o", "name"])?;
        let there: BTreeSet<&str> = listed.lines().filter_map(|line| line.strip_prefix("configmap/")).collect();
        let lost: Vec<&str> = written.iter().filter(|w| w.get.answered && !there.contains(&*w.name)).map(|w| &*w.name).collect();
        ensure!(lost.is_empty(), "{} acknowledged writes are lost: {}", lost.len(), lost.join(" "));
        Ok(())
    }

    /// Whether all writes of a while were acknowledged, and none of them is from before `since`.
    pub fn go_well_for(&self, time: Duration, since: Duration) -> bool {
        now() >= since + time + PATIENCE && is_fine_for(&self.gets(), time, PATIENCE, now())
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The same in a thread of its own: only there the network is the probe's.
struct Client {
    probe: Probe,
    api: Api,
    over: Arc<AtomicBool>,
    all: Arc<Mutex<Vec<Write>>>,
    questions: Arc<Mutex<Vec<Get>>>,
}

impl Client {
    fn run(&self) -> Result<()> {
        self.probe.enter_network()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
        runtime.block_on(async {
            let mut tick = tokio::time::interval(GAP);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            for n in 0_u64.. {
                tick.tick().await;
                if self.over.load(Ordering::Relaxed) {
                    break;
                }
                tokio::spawn(ask(self.api.clone(), self.questions.clone()));
                tokio::spawn(write(self.api.clone(), n, self.all.clone()));
            }
        });
        Ok(())
    }
}

async fn ask(api: Api, questions: Arc<Mutex<Vec<Get>>>) {
    let asked = now();
    let answered = api.ask("GET", "/version", "").await.is_ok();
    if let Ok(mut questions) = questions.lock() {
        questions.push(Get { asked, answered });
    }
}

async fn write(api: Api, n: u64, all: Arc<Mutex<Vec<Write>>>) {
    let (asked, name) = (now(), format!("write-{n:07}"));
    let body = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"n":"{n}"}}}}"#);
    let answer = api.ask("POST", &format!("/api/v1/namespaces/{NAMESPACE}/configmaps"), &body).await;
    if let Ok(mut all) = all.lock() {
        let why = answer.err().map(|error| error.root_cause().to_string());
        all.push(Write { name, get: Get { asked, answered: why.is_none() }, why });
    }
}
