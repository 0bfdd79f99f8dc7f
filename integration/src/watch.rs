//! Who holds the VIP, seen from inside each host's network: only there a socket can be bound to it.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::now;
use crate::outage::Change;
use crate::{Host, net};

const TICK: Duration = Duration::from_millis(5);
/// A host that was off gets another network.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A look at all hosts each 5 ms, until this value ends.
#[derive(Debug)]
pub struct Watch {
    over: Arc<AtomicBool>,
    changes: Arc<Mutex<Vec<Change>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch.
    pub fn start(hosts: &[Host], vip: IpAddr) -> Self {
        let (over, changes) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let look = |host: &Host| {
            let (host, over, changes) = (host.clone(), over.clone(), changes.clone());
            std::thread::spawn(move || watch(&host, vip, &over, &changes))
        };
        let threads = hosts.iter().map(look).collect();
        Self { over, changes, threads }
    }

    /// All that was seen so far.
    pub fn changes(&self) -> Vec<Change> {
        self.changes.lock().map(|changes| changes.clone()).unwrap_or_default()
    }

    /// The hosts that hold the VIP now.
    pub fn holders(&self) -> Vec<String> {
        let mut holders = Vec::new();
        for change in self.changes() {
            holders.retain(|host| *host != change.host);
            if change.holds {
                holders.push(change.host);
            }
        }
        holders
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn watch(host: &Host, vip: IpAddr, over: &AtomicBool, changes: &Mutex<Vec<Change>>) {
    let (mut inside, mut looked, mut held) = (None, Duration::ZERO, false);
    while !over.load(Ordering::Relaxed) {
        let at = now();
        if at.saturating_sub(looked) > LOOK_AGAIN {
            looked = at;
            // A host that is down keeps its last network; the lab takes its interface away, and the VIP with it.
            if let Some(leader) = host.leader().filter(|leader| inside != Some(*leader))
                && net::enter(Path::new(&format!("/proc/{leader}/ns/net"))).is_ok()
            {
                inside = Some(leader);
            }
        }
        let holds = inside.is_some() && UdpSocket::bind((vip, 0)).is_ok();
        if holds != held
            && let Ok(mut changes) = changes.lock()
        {
            held = holds;
            changes.push(Change { host: host.name().to_owned(), at, holds });
        }
        std::thread::sleep(TICK);
    }
}
