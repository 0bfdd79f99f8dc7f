//! One at a time on a cluster: a Lease of coordination.k8s.io/v1. Operations have one, `smartup` in kube-system, and are refused
//! while another has it; whoever wants to lead waits for its own.
//!
//! Every write names the version that it is based on, so of two that write at once one fails. That a holder is dead is judged
//! by its lease not changing while this process looks on, on its own monotonic clock; the times in it are for people only.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::runtime::watcher::watch_object;
use node::{Error, Result};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::ready::{in_words, transient};

/// How long a lease lasts after it was seen to change. client-go's default for its leader election, and more than an API behind
/// a VIP is away when the VIP moves.
const LASTS: Duration = Duration::from_secs(15);
/// How often it is renewed.
const RENEWED: Duration = Duration::from_secs(5);
/// How often another's lease is looked at, and a failed request repeated.
const LOOK: Duration = Duration::from_secs(1);

/// Who holds the lease; shown to whomever is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The host it runs on.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// What it does: `remove h3`.
    pub doing: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} (pid {})", self.doing, self.host, self.pid)
    }
}

/// Where a lease is.
#[derive(Debug, Clone)]
struct Place {
    namespace: String,
    name: String,
}

impl Place {
    /// The one for operations on the cluster.
    fn operations() -> Self {
        Self { namespace: "kube-system".into(), name: "smartup".into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is to be thought of another's lease.
#[derive(Debug, PartialEq)]
enum Judgement {
    /// Nobody has it.
    Free,
    /// It changed under our eyes: this one is alive.
    Alive(String),
    /// Too early to say of this one.
    Unsure(String),
    /// It has not changed for as long as it lasts.
    Expired,
}

/// What was seen of another's lease. Pure: the time comes in.
#[derive(Default)]
struct Watched(Option<(LeaseSpec, Instant)>);

impl Watched {
    fn judge(&mut self, lease: Option<&Object>, now: Instant) -> Judgement {
        let spec = lease.and_then(|l| l.spec.as_ref());
        let Some((spec, by)) = spec.and_then(|s| Some((s, s.holder_identity.clone().filter(|h| !h.is_empty())?))) else {
            self.0 = None;
            return Judgement::Free;
        };
        match &self.0 {
            Some((seen, since)) if seen == spec => {
                if now.saturating_duration_since(*since) >= lasts(spec) {
                    Judgement::Expired
                } else {
                    Judgement::Unsure(by)
                }
            }
            other => {
                let judgement = if other.is_some() { Judgement::Alive(by) } else { Judgement::Unsure(by) };
                self.0 = Some((spec.clone(), now));
                judgement
            }
        }
    }

    /// When what was seen last expires.
    fn expires(&self) -> Option<Instant> {
        self.0.as_ref().map(|(seen, since)| *since + lasts(seen))
    }
}

/// How long a lease lasts: what its holder says, or else what we would.
fn lasts(spec: &LeaseSpec) -> Duration {
    let said = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    said.map_or(LASTS, Duration::from_secs)
}

/// The lease as we take it; `over` is what there was. `now` is for people, and tells this holding of it from any other.
fn taken(over: Option<Object>, place: &Place, holder: &str, now: Timestamp) -> Object {
    let mut object = over.unwrap_or_else(|| Object {
        metadata: ObjectMeta { name: Some(place.name.clone()), namespace: Some(place.namespace.clone()), ..ObjectMeta::default() },
        spec: None,
    });
    let before = object.spec.take().and_then(|s| s.lease_transitions);
    object.spec = Some(LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(before.map_or(0, |n| n.saturating_add(1))),
        ..LeaseSpec::default()
    });
    object
}

/// Whether both are the same holding, whatever happened to the rest.
fn same_holding(a: &Object, b: &Object) -> bool {
    let of = |o: &Object| o.spec.as_ref().map(|s| (s.holder_identity.clone(), s.acquire_time.clone()));
    of(a) == of(b)
}

fn holder_of(object: &Object) -> String {
    object.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_else(|| "nobody".into())
}

/// The right to change the cluster, as long as [`still_ours`](Self::still_ours) says so. Renewed in the background; given back
/// by [`end`](Self::end), or in the background when it is dropped, or by itself after 15 s when the process ends.
#[derive(Debug)]
pub struct Lease {
    held: Arc<Held>,
    renewing: JoinHandle<()>,
    lost: CancellationToken,
    ended: bool,
}

struct Held {
    api: Api<Object>,
    place: Place,
    /// As it was written last.
    object: Mutex<Object>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

/// A lease that somebody wants.
struct Seat {
    api: Api<Object>,
    place: Place,
    holder: String,
}

/// What came of a look at it.
enum Look {
    /// It was taken.
    Ours(Lease),
    /// Somebody was faster, and is looked at next.
    Missed,
    /// This one has it, and is alive.
    Alive(String),
    /// This one has it; it is too early to say more.
    Unsure(String),
}

impl Seat {
    fn of(client: &Client, place: Place, holder: String) -> Self {
        Self { api: Api::namespaced(client.clone(), &place.namespace), place, holder }
    }

    /// Takes it if it is free or its holder is dead.
    async fn look(&self, watched: &mut Watched) -> Result<Look, kube::Error> {
        let Self { api, place, holder } = self;
        let found = api.get_opt(&place.name).await?;
        match watched.judge(found.as_ref(), Instant::now()) {
            Judgement::Free | Judgement::Expired => {}
            Judgement::Alive(by) => return Ok(Look::Alive(by)),
            Judgement::Unsure(by) => return Ok(Look::Unsure(by)),
        }
        let there = found.is_some();
        let object = taken(found, place, holder, Timestamp::now());
        let written = if there {
            api.replace(&place.name, &PostParams::default(), &object).await
        } else {
            api.create(&PostParams::default(), &object).await
        };
        match written {
            Ok(object) => Ok(Look::Ours(Lease::held(Held { api: api.clone(), place: place.clone(), object: Mutex::new(object) }))),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Look::Missed),
            Err(e) => Err(e),
        }
    }

    /// Waits for a reason to look again: it is free, or has not changed for as long as it lasts. One that cannot be watched is
    /// looked at as often as its holder renews it.
    async fn rest(&self, watching: &Api<Object>, watched: &mut Watched) {
        let mut changes = std::pin::pin!(watch_object(watching.clone(), &self.place.name));
        while let Some(expires) = watched.expires() {
            match timeout_at(expires, changes.next()).await {
                Ok(Some(Ok(lease))) => drop(watched.judge(lease.as_ref(), Instant::now())),
                Ok(Some(Err(_)) | None) => return sleep(RENEWED).await,
                Err(_) => return,
            }
        }
    }
}

/// Why a renewal did not work.
enum NotRenewed {
    /// It is somebody else's, or was taken away: for ever.
    Lost(String),
    /// The API could not be asked.
    Unknown(kube::Error),
}

impl Lease {
    /// Takes the lease for operations, or says who has it. An API that is away is waited for as long as a lease lasts (15 s).
    /// One that its holder left behind is watched for as long and then taken over; `report` is told so.
    ///
    /// # Errors
    /// Refused when another operation is under way; failed when the API does not answer.
    pub async fn take(client: &Client, holder: &Holder, report: impl Fn(&str)) -> Result<Self> {
        let seat = Seat::of(client, Place::operations(), holder.to_string());
        let mut watched = Watched::default();
        let cannot = |e: kube::Error| Error::failed(format!("cannot take the lease {}: {}", seat.place, in_words(&e)));
        let began = Instant::now();
        loop {
            let look = match seat.look(&mut watched).await {
                // the VIP may be on its way from one server to another
                Err(e) if transient(&e) && began.elapsed() < LASTS => {
                    sleep(LOOK).await;
                    continue;
                }
                look => look.map_err(cannot)?,
            };
            match look {
                Look::Ours(lease) => return Ok(lease),
                Look::Missed => {}
                Look::Alive(by) => {
                    return Err(Error::refused(format!("another operation is under way on this cluster: {by}"))
                        .hint(format!("wait until it has ended, and run again; the lease {} says who holds it", seat.place)));
                }
                Look::Unsure(by) => {
                    report(&format!("looking whether another operation is still under way: {by}"));
                    sleep(LOOK).await;
                }
            }
        }
    }

    /// Waits until this lease is ours, however long another has it, and whether or not the API answers now; `watching` is a client
    /// that bears a minute's silence. One that is given back is taken at once. Whoever leads must stop when [`lost`](Self::lost)
    /// says so.
    pub async fn lead(client: &Client, watching: &Client, namespace: &str, name: &str, holder: &str) -> Self {
        let seat = Seat::of(client, Place { namespace: namespace.into(), name: name.into() }, holder.into());
        let watching = Api::namespaced(watching.clone(), namespace);
        let mut watched = Watched::default();
        loop {
            match seat.look(&mut watched).await {
                Ok(Look::Ours(lease)) => return lease,
                Ok(Look::Missed) => {}
                Ok(Look::Alive(_) | Look::Unsure(_)) => seat.rest(&watching, &mut watched).await,
                Err(e) => {
                    tracing::warn!("cannot look at the lease {}: {}", seat.place, in_words(&e));
                    sleep(RENEWED).await;
                }
            }
        }
    }

    fn held(held: Held) -> Self {
        let held = Arc::new(held);
        let renewed = Arc::clone(&held);
        let lost = CancellationToken::new();
        let say = lost.clone();
        let renewing = tokio::spawn(async move {
            let (mut pause, mut renewed_at) = (RENEWED, Instant::now());
            loop {
                sleep(pause).await;
                pause = match renewed.renew().await {
                    Ok(()) => {
                        renewed_at = Instant::now();
                        RENEWED
                    }
                    Err(NotRenewed::Unknown(_)) => {
                        // before anybody else can have it
                        if renewed_at.elapsed() + RENEWED >= LASTS {
                            say.cancel();
                        }
                        LOOK
                    }
                    Err(NotRenewed::Lost(_)) => {
                        say.cancel();
                        return;
                    }
                };
            }
        });
        Self { held, renewing, lost, ended: false }
    }

    /// Ends when the lease is somebody else's, or may soon be: it has not been renewed for 10 of its 15 s.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Makes sure, by renewing it, that the lease is still ours: to be asked before each step that takes something away. An API
    /// that is away is waited for as long as the lease lasts.
    ///
    /// # Errors
    /// Refused when somebody else has taken it; failed when the API cannot be asked.
    pub async fn still_ours(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.held.renew().await {
                Ok(()) => return Ok(()),
                Err(NotRenewed::Unknown(e)) if transient(&e) && began.elapsed() < LASTS => sleep(LOOK).await,
                Err(NotRenewed::Unknown(e)) => {
                    return Err(Error::failed(format!(
                        "cannot tell whether the lease {} is still ours: {}",
                        self.held.place,
                        in_words(&e)
                    ))
                    .hint("run the same command again when the API answers; what is done stays done"));
                }
                Err(NotRenewed::Lost(to)) => {
                    return Err(Error::refused(format!("the lease {} was lost: {to}", self.held.place))
                        .hint("another operation may be under way; look at smartup status, and run the same command again to go on"));
                }
            }
        }
    }

    /// Gives it back.
    pub async fn end(mut self) {
        self.ended = true;
        self.renewing.abort();
        self.held.release().await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
        if self.ended {
            return;
        }
        // without a runtime it ends by itself, some seconds later
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let held = Arc::clone(&self.held);
            runtime.spawn(async move { held.release().await });
        }
    }
}

impl Held {
    async fn renew(&self) -> Result<(), NotRenewed> {
        let mut object = self.object.lock().await;
        loop {
            let mut next = object.clone();
            if let Some(spec) = next.spec.as_mut() {
                spec.renew_time = Some(MicroTime(Timestamp::now()));
            }
            match self.api.replace(&self.place.name, &PostParams::default(), &next).await {
                Ok(written) => {
                    *object = written;
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(e) => return Err(NotRenewed::Unknown(e)),
            }
            // our own write whose answer was lost, somebody's annotation, or another holder
            match self.api.get_opt(&self.place.name).await.map_err(NotRenewed::Unknown)? {
                Some(found) if same_holding(&found, &object) => *object = found,
                Some(found) => return Err(NotRenewed::Lost(format!("it is held by {} now", holder_of(&found)))),
                None => return Err(NotRenewed::Lost("somebody deleted it".into())),
            }
        }
    }

    /// Deletes it, unless it is somebody else's by now. Where that does not work, it ends by itself.
    async fn release(&self) {
        let object = self.object.lock().await;
        let mut version = object.metadata.resource_version.clone();
        loop {
            let ours = Preconditions { resource_version: version, uid: object.metadata.uid.clone() };
            match self.api.delete(&self.place.name, &DeleteParams::default().preconditions(ours)).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                _ => return,
            }
            // a renewal that was given up on its way, or another holder
            match self.api.get_opt(&self.place.name).await {
                Ok(Some(found)) if same_holding(&found, &object) => version = found.metadata.resource_version,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use node::Kind;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::fake_api::{FakeApi, status};

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/smartup";

    fn holder(host: &str) -> Holder {
        Holder { host: host.into(), pid: 42, doing: "remove h3".into() }
    }

    async fn take(api: &FakeApi, host: &str) -> Result<Lease> {
        Lease::take(&api.client(), &holder(host), |_| ()).await
    }

    fn holds(api: &FakeApi) -> Value {
        api.get(PATH).map_or(Value::Null, |l| l["spec"]["holderIdentity"].clone())
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_is_refused_with_the_firsts_name_until_the_first_ends() {
        let api = FakeApi::default();
        let first = take(&api, "h1").await.unwrap();
        let began = Instant::now();
        let e = take(&api, "h2").await.unwrap_err();
        insta::assert_snapshot!(e.what, @"another operation is under way on this cluster: remove h3 on h1 (pid 42)");
        assert_eq!(e.kind, Kind::Refused);
        assert!(began.elapsed() <= RENEWED + LOOK, "{:?}", began.elapsed());
        first.still_ours().await.unwrap();
        first.end().await;
        assert!(api.paths().is_empty(), "nothing is left behind");
        let began = Instant::now();
        take(&api, "h2").await.unwrap().still_ours().await.unwrap();
        assert!(began.elapsed() < LOOK);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_is_given_back() {
        let api = FakeApi::default();
        drop(take(&api, "h1").await.unwrap());
        while !api.paths().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_holders_lease_is_taken_over_whatever_its_clock_said() {
        for renewed in ["1999-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"] {
            let api = FakeApi::default();
            let spec = json!({ "holderIdentity": "gone", "leaseDurationSeconds": 15, "renewTime": renewed, "acquireTime": renewed, "leaseTransitions": 4 });
            api.put(PATH, json!({ "spec": spec }));
            let (began, said) = (Instant::now(), RefCell::new(Vec::new()));
            let lease = Lease::take(&api.client(), &holder("h2"), |text| said.borrow_mut().push(text.to_owned())).await.unwrap();
            assert!((15..17).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
            assert_eq!(holds(&api), "remove h3 on h2 (pid 42)");
            assert_eq!(api.get(PATH).unwrap()["spec"]["leaseTransitions"], 5);
            assert_eq!(said.borrow()[0], "looking whether another operation is still under way: gone");
            lease.still_ours().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_frozen_for_too_long_finds_out_before_it_does_anything() {
        let api = FakeApi::default();
        let first = take(&api, "h1").await.unwrap();
        // frozen: it does not renew
        first.renewing.abort();
        let second = take(&api, "h2").await.unwrap();
        let e = first.still_ours().await.unwrap_err();
        insta::assert_snapshot!(e.what, @"the lease kube-system/smartup was lost: it is held by remove h3 on h2 (pid 42) now");
        assert_eq!(e.kind, Kind::Refused);
        first.end().await;
        second.still_ours().await.unwrap();
        api.remove(PATH);
        let e = second.still_ours().await.unwrap_err();
        assert_eq!(e.what, "the lease kube-system/smartup was lost: somebody deleted it");
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_that_find_it_free_at_once_one_gets_it() {
        let api = FakeApi::default();
        let (a, b) = tokio::join!(take(&api, "h1"), take(&api, "h2"));
        assert_eq!([a.is_ok(), b.is_ok()].iter().filter(|ok| **ok).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_whose_answer_was_lost_and_a_strangers_annotation_do_no_harm() {
        let api = FakeApi::default();
        let lease = take(&api, "h1").await.unwrap();
        let mut lose = true;
        api.on(move |objects, asked| {
            if asked.method == "PUT" && std::mem::take(&mut lose) {
                objects.change(PATH, |l| l["spec"] = asked.body["spec"].clone());
                return Some(status(504, "the answer is lost"));
            }
            None
        });
        lease.still_ours().await.unwrap();
        api.change(PATH, |l| l["metadata"]["annotations"] = json!({ "a": "b" }));
        lease.still_ours().await.unwrap();
        api.change(PATH, |l| l["metadata"]["annotations"] = json!({ "a": "c" }));
        lease.end().await;
        assert!(api.paths().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_is_away_is_waited_for_but_not_for_ever() {
        let api = FakeApi::default();
        let lease = take(&api, "h1").await.unwrap();
        let back = Instant::now() + Duration::from_secs(10);
        api.on(move |_, _| (Instant::now() < back).then(|| status(503, "no leader")));
        lease.still_ours().await.unwrap();
        api.fail("PUT", PATH, 503);
        let e = lease.still_ours().await.unwrap_err();
        assert_eq!(e.what, "cannot tell whether the lease kube-system/smartup is still ours: so it is told to");
        assert_eq!(e.kind, Kind::Failed);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_leads_when_the_first_ends_or_dies() {
        const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/n/leases/l";
        let api = FakeApi::default();
        let lead = |who: &'static str| {
            let client = api.client();
            async move { Lease::lead(&client, &client, "n", "l", who).await }
        };
        let first = lead("a").await;
        assert_eq!(api.get(LEASE).unwrap()["spec"]["holderIdentity"], "a");
        let (second, began) = (tokio::spawn(lead("b")), Instant::now());
        sleep(Duration::from_secs(100)).await;
        assert!(!second.is_finished(), "the first is alive");
        first.end().await;
        let second = second.await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(101), "at once: {:?}", began.elapsed());
        let (third, began) = (tokio::spawn(lead("c")), Instant::now());
        second.renewing.abort();
        let third = third.await.unwrap();
        assert!((10..=20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        // where it cannot be watched, it is looked at
        api.on(|_, asked| asked.query.contains("fieldSelector").then(|| status(403, "forbidden")));
        let (fourth, began) = (tokio::spawn(lead("d")), Instant::now());
        third.end().await;
        fourth.await.unwrap();
        assert!(began.elapsed() <= 2 * RENEWED, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_asks_seldom() {
        let api = FakeApi::default();
        let client = api.client();
        let first = Lease::lead(&client, &client, "n", "l", "a").await;
        let second = tokio::spawn(async move { Lease::lead(&client, &client, "n", "l", "b").await });
        sleep(Duration::from_secs(10)).await;
        let gets = || api.asked().iter().filter(|asked| asked.starts_with("GET ") && asked.ends_with("/l")).count();
        let before = gets();
        sleep(Duration::from_secs(600)).await;
        assert_eq!(gets(), before, "its watch says that the lease is renewed");
        assert!(!second.is_finished());
        first.end().await;
        second.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_renew_is_told_before_another_can_lead() {
        let api = FakeApi::default();
        let client = api.client();
        let lease = Lease::lead(&client, &client, "kube-system", "smartup", "a").await;
        let began = Instant::now();
        sleep(Duration::from_secs(60)).await;
        api.fail("PUT", PATH, 503);
        lease.lost().await;
        let after = began.elapsed().as_secs() - 60;
        assert!(after < LASTS.as_secs(), "{after} s");
        let client = FakeApi::default().client();
        let lease = Lease::lead(&client, &client, "kube-system", "smartup", "a").await;
        assert!(tokio::time::timeout(Duration::from_secs(60), lease.lost()).await.is_err(), "who renews it leads on");
    }

    /// What happens to three that want the lease.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        Take(usize),
        Freeze(usize),
        Check(usize),
        End(usize),
        Wait(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        let who = 0_usize..3;
        prop_oneof![
            4 => who.clone().prop_map(Act::Take),
            2 => who.clone().prop_map(Act::Freeze),
            3 => who.clone().prop_map(Act::Check),
            1 => who.prop_map(Act::End),
            1 => (0_u64..40).prop_map(Act::Wait),
        ]
    }

    /// Plays the acts against a model: who took it last has it, and only from a frozen one can it be taken.
    async fn play(acts: Vec<Act>) {
        let api = FakeApi::default();
        let mut leases: [Option<Lease>; 3] = [None, None, None];
        let mut owner: Option<(usize, bool)> = None;
        for act in acts {
            match act {
                Act::Take(who) if leases[who].is_none() => {
                    let taken = take(&api, &format!("h{who}")).await;
                    assert_eq!(taken.is_ok(), owner.is_none_or(|(_, frozen)| frozen), "{who}: {:?}", taken.err());
                    if let Ok(lease) = taken {
                        leases[who] = Some(lease);
                        owner = Some((who, false));
                    }
                }
                Act::Freeze(who) => {
                    if let Some(lease) = &leases[who] {
                        lease.renewing.abort();
                    }
                    owner = owner.map(|(by, frozen)| (by, frozen || by == who));
                }
                Act::Check(who) => {
                    if let Some(lease) = &leases[who] {
                        assert_eq!(lease.still_ours().await.is_ok(), owner.is_some_and(|(by, _)| by == who), "{who}");
                    }
                }
                Act::End(who) => {
                    if let Some(lease) = leases[who].take() {
                        lease.end().await;
                        owner = owner.filter(|(by, _)| *by != who);
                    }
                }
                Act::Wait(seconds) => sleep(Duration::from_secs(seconds)).await,
                Act::Take(_) => {}
            }
            assert_eq!(holds(&api).is_null(), owner.is_none(), "only its owner gives it back");
        }
    }

    fn object(version: u64, held: bool) -> Object {
        let spec = LeaseSpec {
            holder_identity: held.then(|| "x".into()),
            lease_duration_seconds: Some(15),
            lease_transitions: i32::try_from(version).ok(),
            ..LeaseSpec::default()
        };
        Object { spec: Some(spec), ..Object::default() }
    }

    #[test]
    fn nonsense_in_a_lease_does_not_make_it_end_at_once() {
        for said in [None, Some(0), Some(-3)] {
            assert_eq!(lasts(&LeaseSpec { lease_duration_seconds: said, ..LeaseSpec::default() }), LASTS);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nobody_holds_what_another_has_taken(acts in prop::collection::vec(act(), 1..25)) {
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(play(acts));
        }
    }

    proptest! {
        /// A lease is taken over exactly when it did not change for as long as it lasts, counted from when it was last seen to.
        #[test]
        fn only_what_stood_still_has_expired(looks in prop::collection::vec((1_u64..8, prop::bool::weighted(0.1)), 1..30)) {
            let (mut watched, start) = (Watched::default(), Instant::now());
            let (mut now, mut version, mut changed) = (0, 0, 0);
            prop_assert_eq!(watched.judge(Some(&object(0, true)), start), Judgement::Unsure("x".into()));
            for (seconds, renewed) in looks {
                now += seconds;
                version += u64::from(renewed);
                let judged = watched.judge(Some(&object(version, true)), start + Duration::from_secs(now));
                if renewed {
                    changed = now;
                }
                let expected = match (renewed, now - changed) {
                    (true, _) => Judgement::Alive("x".into()),
                    (_, 15..) => Judgement::Expired,
                    _ => Judgement::Unsure("x".into()),
                };
                prop_assert_eq!(judged, expected);
            }
            prop_assert_eq!(watched.judge(Some(&object(version, false)), start), Judgement::Free);
            prop_assert_eq!(watched.judge(None, start), Judgement::Free);
        }
    }
}
