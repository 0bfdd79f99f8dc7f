//! All hosts at once: conversations on one side, the conductor on the other, and who watches in between.

use std::sync::Arc;
use std::time::Duration;

use node::Event;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::order::{Conductor, End, HostId, Listed, Order};
use crate::protocol::{FromNode, Job, ToNode};
use crate::session::{Common, Input, converse};
use crate::ssh::Target;

/// How long the hosts have to take their leave when all is over: a plan still removes what it sent.
const FAREWELL: Duration = Duration::from_secs(15);

/// A host and what it is asked.
pub struct Work {
    /// What the conductor knows of it.
    pub listed: Listed,
    /// How it is reached.
    pub target: Target,
    /// What it is asked.
    pub job: Job,
}

/// What a watcher is told.
pub enum News<'a> {
    /// Something happens on a host.
    Event(&'a Event),
    /// A file is on its way there.
    Sending {
        /// What is sent.
        what: &'static str,
        /// How much of it, in percent.
        percent: u64,
    },
    /// The host has come to its end.
    Ended(&'a End),
}

/// Brings all hosts to what is wanted, or finds out what that would change.
///
/// `agree` is asked once, when it is known what would change, and may say no. `stop` ends it: what is under way on a host
/// ends its step, and nothing new begins.
pub async fn apply(
    common: Arc<Common>,
    work: Vec<Work>,
    mut conductor: Conductor,
    stop: CancellationToken,
    agree: impl AsyncFnOnce(&Conductor) -> bool,
    mut watch: impl FnMut(HostId, News<'_>),
) -> Conductor {
    let (sender, mut inputs) = unbounded_channel::<(HostId, Input)>();
    let mut talks = JoinSet::new();
    let mut speakers = Vec::new();
    for (host, Work { target, job, .. }) in work.into_iter().enumerate() {
        let (orders, heard) = unbounded_channel();
        speakers.push(orders);
        let (common, sender) = (common.clone(), sender.clone());
        talks.spawn(async move {
            // the receiver is there as long as anybody waits for what is said
            converse(&common, &target, job, heard, |input| drop(sender.send((host, input)))).await;
        });
    }
    drop(sender);
    let mut agree = Some(agree);
    let mut ended = vec![false; speakers.len()];
    let mut stopped = false;
    while !conductor.is_over() {
        let orders = tokio::select! {
            input = inputs.recv() => match input {
                None => break,
                Some((host, input)) => hear(&mut conductor, host, input, &mut watch),
            },
            () = stop.cancelled(), if !stopped => {
                stopped = true;
                conductor.stop()
            }
        };
        dispatch(orders, &speakers);
        if !stopped
            && conductor.is_surveyed()
            && !conductor.is_over()
            && let Some(agree) = agree.take()
        {
            let orders = if agree(&conductor).await { conductor.go() } else { conductor.stop() };
            dispatch(orders, &speakers);
        }
        for (host, _, end) in conductor.ends() {
            if let (Some(end), false) = (end, ended[host]) {
                ended[host] = true;
                watch(host, News::Ended(end));
            }
        }
    }
    // the end of their orders is the end for those that are still there
    speakers.clear();
    let all = async { while talks.join_next().await.is_some() {} };
    // one that hangs is dropped with its connection
    let _ = tokio::time::timeout(FAREWELL, all).await;
    conductor
}

fn hear(conductor: &mut Conductor, host: HostId, input: Input, watch: &mut impl FnMut(HostId, News<'_>)) -> Vec<Order> {
    match input {
        Input::Sending { what, percent } => {
            watch(host, News::Sending { what, percent });
            Vec::new()
        }
        Input::Said(said) => {
            if let FromNode::Event { event } = &said {
                watch(host, News::Event(event));
            }
            conductor.heard(host, &said)
        }
        Input::Lost(error) => conductor.lost(host, error),
    }
}

fn dispatch(orders: Vec<Order>, speakers: &[UnboundedSender<ToNode>]) {
    for Order { host, say } in orders {
        if let Some(speaker) = speakers.get(host) {
            // a conversation that has ended says so itself
            let _ = speaker.send(say);
        }
    }
}
