//! How often the `UpdateManager`'s status is written: all nodes are one object, of which etcd keeps every version for minutes.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Bytes in a millisecond, on the average. So much of 5,000 nodes is written each 6 s at most, and of ten as soon as it changes.
const RATE: usize = 200;
/// etcd's limit for a request (`--max-request-bytes`), less what the API server adds: names, times, and who wrote which field.
const MOST: usize = 1536 * 1024 - 64 * 1024;

/// When the next status may be written.
#[derive(Debug, Default)]
pub(super) struct Pace(Option<Instant>);

impl Pace {
    /// So much was written.
    pub(super) fn wrote(&mut self, bytes: usize, now: Instant) {
        let rest = Duration::from_millis(u64::try_from(bytes / RATE).unwrap_or(u64::MAX));
        self.0 = now.checked_add(rest);
    }

    /// How long the next is to wait. Zero = not at all.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.0.map_or(Duration::ZERO, |free| free.saturating_duration_since(now))
    }
}

/// How large it is as JSON, bytes.
pub(super) fn size(value: &impl Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |json| json.len())
}

/// How many of these there is room for in an object whose spec is so large. A spec counts three times: kubectl keeps a copy of it
/// in an annotation, and the API server names each item of its lists in `managedFields`.
pub(super) fn fit<T: Serialize>(items: &[T], spec: usize) -> usize {
    let room = MOST.saturating_sub(spec.saturating_mul(3));
    let fits = |used: &mut usize, item: &T| {
        *used += size(item) + ",".len();
        (*used <= room).then_some(())
    };
    items.iter().scan(0, fits).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_the_seldomer() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert!(pace.left(now).is_zero());
        pace.wrote(2_000, now);
        assert_eq!(pace.left(now), Duration::from_millis(10));
        pace.wrote(1_200_000, now);
        assert_eq!(pace.left(now), Duration::from_secs(6));
        assert!(pace.left(now + Duration::from_secs(6)).is_zero());
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let items = vec!["x".repeat(97); 20_000];
        assert_eq!(fit(&items, 0), MOST / 100);
        assert_eq!(fit(&items, 100_000), (MOST - 300_000) / 100);
        assert_eq!((fit(&items, MOST), fit(&items[..7], 0)), (0, 7));
    }
}
