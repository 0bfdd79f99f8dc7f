use std::time::{Duration, Instant};

use async_trait::async_trait;
use cluster::Role;
use node::{Awaited, Host, Result, State, Step};

use crate::etcd::{self, EtcdError, Vote};
use crate::watch::Watch;

/// A joining server's etcd member has a vote.
///
/// k3s promotes learners on a 15 s tick; here it is done as soon as etcd says that the learner has caught up, which takes
/// 9 s off each join (measured). etcd itself refuses it before.
pub struct ServerJoined;

#[async_trait(?Send)]
impl Step for ServerJoined {
    fn name(&self) -> String {
        "etcd member".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        Ok(match etcd::votes_here().await {
            Ok(true) => State::Right,
            Ok(false) => State::differs("give this server its vote in etcd"),
            Err(e) => State::differs(format!("wait for etcd: {e}")),
        })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let watch = Watch::new(host, Role::Server);
        watch
            .wait(&self.name(), "this server's vote in etcd", async || match etcd::promote_here().await {
                Ok(Vote::Has | Vote::Given) => Ok(Awaited::Done(())),
                Ok(Vote::CatchingUp) => Ok(Awaited::missing("its copy of the data catches up with the leader's")),
                Err(EtcdError::NoCertificate { .. }) => Ok(Awaited::missing("k3s has not been let in by the cluster yet")),
                Err(EtcdError::Unreachable { .. }) => Ok(Awaited::missing("etcd on this host does not answer yet")),
                Err(e) => Ok(Awaited::missing(e.to_string())),
            })
            .await
    }
}

/// etcd refuses a new member unless all voters have been connected for this long (`HealthInterval` in
/// etcd's server/etcdserver/server.go).
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// Waits until every member of etcd has had a vote and been healthy, without a gap, for as long as etcd asks before it takes
/// another one. A server that starts to join earlier ends with "unhealthy cluster", and loses more time than it won.
///
/// Has no limit of its own: whoever waits stops waiting.
pub async fn settled() {
    let mut since: Option<Instant> = None;
    loop {
        let healthy = match etcd::members().await {
            Ok(members) => members.iter().all(|m| m.is_healthy() && !m.learner),
            Err(_) => false,
        };
        since = if healthy { since.or_else(|| Some(Instant::now())) } else { None };
        if since.is_some_and(|s| s.elapsed() >= HEALTH_INTERVAL) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
