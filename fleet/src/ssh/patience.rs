//! How long a host may take to let us in, while the time in which a human types does not count.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A time limit that can be stopped.
pub(super) struct Patience {
    /// What is left, and since when it runs; None while it is stopped.
    state: watch::Sender<(Duration, Option<Instant>)>,
}

/// While it lives, the time does not count.
pub(super) struct Pause<'a>(&'a Patience);

impl Patience {
    /// Starts now.
    pub(super) fn new(limit: Duration) -> Self {
        Self { state: watch::Sender::new((limit, Some(Instant::now()))) }
    }

    /// Does `work`; None when the time is over before it is done.
    pub(super) async fn with<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.over() => None,
        }
    }

    /// Stops the time.
    pub(super) fn pause(&self) -> Pause<'_> {
        self.state.send_modify(|(left, since)| {
            if let Some(since) = since.take() {
                *left = left.saturating_sub(since.elapsed());
            }
        });
        Pause(self)
    }

    async fn over(&self) {
        let mut state = self.state.subscribe();
        loop {
            let (left, since) = *state.borrow_and_update();
            let limit = async {
                match since {
                    Some(since) => tokio::time::sleep_until(since + left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = limit => return,
                // The sender is in self: it outlives this.
                _ = state.changed() => {}
            }
        }
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        self.0.state.send_modify(|(_, since)| *since = Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_a_human_types_does_not_count() {
        let patience = Patience::new(Duration::from_secs(10));
        let typing = async {
            tokio::time::sleep(Duration::from_secs(6)).await;
            let pause = patience.pause();
            tokio::time::sleep(Duration::from_secs(1000)).await;
            drop(pause);
            tokio::time::sleep(Duration::from_secs(3)).await;
        };
        assert_eq!(patience.with(typing).await, Some(()));
        let begun = Instant::now();
        assert_eq!(patience.with(std::future::pending::<()>()).await, None);
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }
}
