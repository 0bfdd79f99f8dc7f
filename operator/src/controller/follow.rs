//! What the controller knows of the cluster: kept by watches, and small, so that thousands of nodes are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt as _};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt as _};
use tokio::sync::Notify;

/// Objects by their names, as the watch that fills it saw them last; clones are the same one.
pub(super) struct Known<T>(Arc<Mutex<Inner<T>>>);

struct Inner<T> {
    objects: BTreeMap<String, Arc<T>>,
    /// What a new list has brought so far.
    list: BTreeMap<String, Arc<T>>,
    whole: bool,
}

impl<T> Clone for Known<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: PartialEq> Known<T> {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner { objects: BTreeMap::new(), list: BTreeMap::new(), whole: false })))
    }

    /// All that there is; None before the first list has come to its end.
    pub(super) fn all(&self) -> Option<BTreeMap<String, Arc<T>>> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.whole.then(|| inner.objects.clone())
    }

    /// Takes what a watch says; answers whether anything is different now.
    fn take<K: Resource>(&self, event: Event<K>, mut keep: impl FnMut(&K) -> T) -> bool {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(object) => {
                let (name, now) = (object.name_any(), Arc::new(keep(&object)));
                inner.objects.insert(name, Arc::clone(&now)).is_none_or(|before| before != now)
            }
            Event::Delete(object) => inner.objects.remove(&object.name_any()).is_some(),
            Event::Init => {
                inner.list.clear();
                false
            }
            Event::InitApply(object) => {
                let now = Arc::new(keep(&object));
                inner.list.insert(object.name_any(), now);
                false
            }
            Event::InitDone => {
                let list = std::mem::take(&mut inner.list);
                let different = !inner.whole || inner.objects != list;
                inner.objects = list;
                inner.whole = true;
                different
            }
        }
    }

    /// Takes what the watch says, as long as this process lives.
    pub(super) fn follow<K>(
        &self,
        what: &'static str,
        watch: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
        mut keep: impl FnMut(&K) -> T + Send + 'static,
        changed: &Arc<Notify>,
    ) where
        K: Resource + Send + 'static,
        T: Send + Sync + 'static,
    {
        let (known, changed) = (self.clone(), Arc::clone(changed));
        tokio::spawn(async move {
            let mut watch = std::pin::pin!(watch);
            while let Some(event) = watch.next().await {
                match event {
                    Ok(event) => {
                        if known.take(event, &mut keep) {
                            changed.notify_one();
                        }
                    }
                    Err(e) => tracing::warn!("cannot watch {what}: {e}"),
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use kube::api::ObjectMeta;

    use super::*;

    fn node(name: &str, version: &str) -> Node {
        let labels = [("a".to_owned(), version.to_owned())].into();
        Node { metadata: ObjectMeta { name: Some(name.into()), labels: Some(labels), ..ObjectMeta::default() }, ..Node::default() }
    }

    #[test]
    fn says_only_what_is_different() {
        let known = Known::new();
        let keep = |node: &Node| node.labels().clone();
        let say = |event| known.take(event, keep);
        assert!(!say(Event::Init) && !say(Event::InitApply(node("a", "1"))));
        assert!(known.all().is_none(), "half a list is none");
        assert!(say(Event::InitDone));
        assert_eq!(known.all().unwrap().len(), 1);
        assert!(!say(Event::Apply(node("a", "1"))), "a heartbeat");
        assert!(say(Event::Apply(node("a", "2"))) && say(Event::Apply(node("b", "1"))));
        // the watch was interrupted: what is the same is the same, what is gone is gone
        assert!(!say(Event::Init) && !say(Event::InitApply(node("b", "1"))) && !say(Event::InitApply(node("a", "2"))));
        assert_eq!(known.all().unwrap().len(), 2, "until the list is whole");
        assert!(!say(Event::InitDone));
        assert!(!say(Event::Init) && !say(Event::InitApply(node("a", "2"))) && say(Event::InitDone));
        assert_eq!(known.all().unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
        assert!(say(Event::Delete(node("a", "2"))) && !say(Event::Delete(node("a", "2"))));
    }
}
