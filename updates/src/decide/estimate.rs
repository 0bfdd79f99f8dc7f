//! How long an update takes, by what updates took so far.

use jiff::SignedDuration;

use super::Node;
use crate::Window;
use crate::api::Run;

/// As long as nobody has been updated.
const AT_FIRST: SignedDuration = SignedDuration::from_hours(1);

/// So many updates say how long one takes, though one of them was out of the ordinary.
const SEVERAL: usize = 3;

/// The longest of a node's updates that came to a good end; of several the longest but one. None before the first.
pub fn estimate(history: &[Run]) -> Option<SignedDuration> {
    let good = history.iter().filter(|run| run.failure.is_none());
    let took = good.map(|run| run.finished_at.0.duration_since(run.started_at.0)).filter(|took| !took.is_negative());
    let mut took: Vec<_> = took.collect();
    took.sort_unstable();
    if took.len() >= SEVERAL {
        took.pop();
    }
    took.pop()
}

fn own(node: &Node<'_>) -> Option<SignedDuration> {
    estimate(&node.status()?.history)
}

/// What nine of ten nodes need at most: for those that have no history of their own.
pub(super) fn of_fleet(nodes: &[Node<'_>]) -> SignedDuration {
    let mut all: Vec<_> = nodes.iter().filter_map(own).collect();
    all.sort_unstable();
    all.get((all.len() * 9).div_ceil(10).saturating_sub(1)).copied().unwrap_or(AT_FIRST)
}

/// How long the node's next update probably takes.
pub(super) fn of_node(node: &Node<'_>, fleet: SignedDuration) -> SignedDuration {
    own(node).unwrap_or(fleet)
}

/// Whether what takes so long may start where windows are open for so long yet. What is longer than any window may start in the
/// first quarter of the longest: otherwise it never could.
pub(super) fn fits(takes: SignedDuration, left: SignedDuration, windows: &[Window]) -> bool {
    let longest = windows.iter().map(|w| w.duration.get()).max().unwrap_or(SignedDuration::MAX);
    let needs = if takes > longest { longest * 3 / 4 } else { takes };
    needs <= left
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    const fn minutes(n: i64) -> SignedDuration {
        SignedDuration::from_mins(n)
    }

    #[test]
    fn one_that_was_out_of_the_ordinary_does_not_count() {
        let of = |took: &[i64]| {
            let run = |took: &i64| Run {
                transaction: "0123456789abcdef".parse().unwrap(),
                started_at: Time(Timestamp::UNIX_EPOCH),
                finished_at: Time(Timestamp::UNIX_EPOCH + minutes(*took)),
                packages: 1,
                patches: 0,
                rebooted: false,
                failure: None,
            };
            estimate(&took.iter().map(run).collect::<Vec<_>>()).map(|took| took.as_mins())
        };
        assert_eq!([of(&[]), of(&[20]), of(&[20, 30])], [None, Some(20), Some(30)]);
        assert_eq!([of(&[20, 600, 30]), of(&[-60, 20, 30])], [Some(30), Some(30)]);
    }

    #[test]
    fn what_is_longer_than_any_window_starts_at_the_beginning_of_the_longest() {
        let windows: Vec<Window> =
            serde_json::from_str(r#"[{"schedule":"0 1 * * *","duration":"1h"},{"schedule":"0 1 * * 6","duration":"2h"}]"#).unwrap();
        let fits = |takes, left| fits(minutes(takes), minutes(left), &windows);
        assert_eq!([fits(60, 60), fits(60, 59), fits(120, 119)], [true, false, false]);
        assert_eq!([fits(121, 60), fits(121, 89), fits(121, 90), fits(9999, 120)], [false, false, true, true]);
    }
}
