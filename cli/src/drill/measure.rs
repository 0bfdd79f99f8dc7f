//! What questions to the API and looks at the VIP say about a failure. Pure; all times are microseconds on one clock.

use std::collections::BTreeSet;

use serde::Serialize;

/// A question to the API through the VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// When it was asked.
    pub asked: i64,
    /// When it was answered; None = it was not, or not in time.
    pub answered: Option<i64>,
}

/// A host took the VIP, or let it go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Which host.
    pub host: usize,
    /// When that was seen.
    pub at: i64,
    /// Whether it has the VIP from then on.
    pub holds: bool,
}

/// How long something was away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Away {
    /// The longest time without an answer, in milliseconds.
    pub longest_ms: i64,
    /// By how much that may be wrong, in milliseconds; what is shorter may not have been seen at all.
    pub error_ms: i64,
    /// All such times together, in milliseconds.
    pub total_ms: i64,
    /// How many there were.
    pub times: usize,
    /// Whether it was back in the end.
    pub back: bool,
}

/// A question that was asked so long before the failure may be lost in it.
const MARGIN: i64 = 200_000;

/// A time without an answer.
struct Gap {
    start: i64,
    end: i64,
    error: i64,
    back: bool,
}

/// How long there was no answer between `from`, when the failure began, and `until`.
///
/// It lasts from the first question that is not answered until an answer to a later one arrives. The truth begins somewhere after
/// the last question before that one was asked, and ends somewhere after the last question that would have been answered sooner.
pub fn away(questions: &[Question], from: i64, until: i64) -> Away {
    let mut all: Vec<Question> = questions.iter().copied().filter(|q| q.asked < until).collect();
    all.sort_by_key(|q| q.asked);
    let latency = usual_latency(&all);
    // the first answer to this question or to any later one
    let mut next = vec![None; all.len() + 1];
    for (n, q) in all.iter().enumerate().rev() {
        next[n] = [q.answered, next[n + 1]].into_iter().flatten().min();
    }
    let mut gaps: Vec<Gap> = Vec::new();
    for (n, q) in all.iter().enumerate() {
        let known = gaps.last().is_some_and(|g| q.asked < g.end);
        if q.answered.is_some() || q.asked < from - MARGIN || known {
            continue;
        }
        let before = all[..n].iter().rev().find(|b| b.answered.is_some()).map_or(q.asked, |b| b.asked);
        let sooner = (q.asked - before).max(latency);
        let gap = match next[n] {
            Some(end) => {
                let last = all.iter().rev().find(|l| l.asked < end - latency).map_or(q.asked, |l| l.asked);
                Gap { start: q.asked.max(from), end, error: sooner.max(end - last), back: true }
            }
            None => Gap { start: q.asked.max(from), end: until, error: sooner, back: false },
        };
        if gap.end > gap.start {
            gaps.push(gap);
        }
    }
    let Some(longest) = gaps.iter().max_by_key(|g| g.end - g.start) else {
        return Away { error_ms: ms(unseen(&all, from)), back: true, ..Away::default() };
    };
    Away {
        longest_ms: ms(longest.end - longest.start),
        error_ms: ms(longest.error),
        total_ms: ms(gaps.iter().map(|g| g.end - g.start).sum()),
        times: gaps.len(),
        back: gaps.iter().all(|g| g.back),
    }
}

/// The longest time after `from` between a question and the next one's answer: something that short may have been away unnoticed.
fn unseen(questions: &[Question], from: i64) -> i64 {
    let pairs = questions.iter().zip(questions.iter().skip(1));
    pairs.filter(|(_, next)| next.asked >= from).filter_map(|(one, next)| Some(next.answered? - one.asked)).max().unwrap_or(0)
}

/// The middle one of all.
fn usual_latency(questions: &[Question]) -> i64 {
    let mut latencies: Vec<i64> = questions.iter().filter_map(|q| Some(q.answered? - q.asked)).collect();
    latencies.sort_unstable();
    latencies.get(latencies.len() / 2).copied().unwrap_or(0)
}

/// Whether all is answered, as far as is known at `now`, and has been for `calm`. `pause`: what may lie between two questions and
/// their answers.
pub fn is_calm(questions: &[Question], now: i64, calm: i64, pause: i64) -> bool {
    let last = |answered: bool| questions.iter().filter(|q| q.answered.is_some() == answered).map(|q| q.asked).max();
    let enough = questions.iter().any(|q| q.answered.is_some() && q.asked <= now - calm);
    enough && last(true).is_some_and(|l| now - l <= pause) && last(false).is_none_or(|l| l < now - calm)
}

/// How long more than one host had the VIP until `until`, if `first` alone had it at the beginning.
pub fn shared(first: usize, changes: &[Change], until: i64) -> i64 {
    let mut changes = changes.to_vec();
    changes.sort_by_key(|c| c.at);
    let mut holders = BTreeSet::from([first]);
    let (mut total, mut since) = (0, None);
    for change in changes.iter().filter(|c| c.at < until) {
        total += since.take().map_or(0, |since| change.at - since);
        if change.holds {
            holders.insert(change.host);
        } else {
            holders.remove(&change.host);
        }
        if holders.len() > 1 {
            since = Some(change.at);
        }
    }
    total + since.map_or(0, |since| until - since)
}

/// What was seen by those hosts from which it counts, or None when nobody asked: a host that got the VIP itself reaches it before
/// all others do, so one that never had it counts; of several the one that waited longest.
pub fn worst(seen: &[(usize, Away)], changes: &[Change]) -> Option<(usize, Away)> {
    let had = |host: usize| changes.iter().any(|c| c.host == host && c.holds);
    let longest = |all: &mut dyn Iterator<Item = &(usize, Away)>| all.max_by_key(|(_, a)| (!a.back, a.longest_ms)).copied();
    longest(&mut seen.iter().filter(|(host, _)| !had(*host))).or_else(|| longest(&mut seen.iter()))
}

/// Milliseconds, rounded.
pub fn ms(us: i64) -> i64 {
    (us + 500).div_euclid(1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One question each 20 ms from 0 on, answered after 4 ms; `x` is not answered.
    fn questions(answers: &str) -> Vec<Question> {
        let one = |(n, c): (i64, char)| Question { asked: 20_000 * n, answered: (c != 'x').then_some(20_000 * n + 4000) };
        (0..).zip(answers.chars()).map(one).collect()
    }

    fn seen(answers: &str) -> (i64, i64, i64, usize, bool) {
        let a = away(&questions(answers), 0, 1_000_000);
        (a.longest_ms, a.error_ms, a.total_ms, a.times, a.back)
    }

    #[test]
    fn from_the_first_question_without_an_answer_to_the_next_answer() {
        assert_eq!(seen("..xxx..."), (64, 24, 64, 1, true));
        assert_eq!(seen("..x..xx."), (44, 24, 68, 2, true));
        assert_eq!(seen("........"), (0, 24, 0, 0, true), "or so short that nobody asked meanwhile");
        assert_eq!(seen("......xx"), (880, 20, 880, 1, false), "until the end of what was seen");
    }

    #[test]
    fn one_that_waits_for_its_answer_counts_until_it_has_it() {
        let mut late = questions("..x....");
        // asked while nobody was there, and answered by the one that came
        late[3].answered = Some(150_000);
        late[4].answered = Some(151_000);
        late[5].answered = Some(150_500);
        late[6].answered = Some(152_000);
        let a = away(&late, 0, 1_000_000);
        assert_eq!((a.longest_ms, a.times), (110, 1));
    }

    #[test]
    fn what_was_before_does_not_count() {
        assert_eq!(away(&questions("xx....x.."), 60_000, 1_000_000).times, 1);
        assert_eq!(away(&questions("..xx...."), 50_000, 1_000_000).longest_ms, 34, "it counts from the failure on");
    }

    #[test]
    fn calm_is_a_while_without_a_miss() {
        let of = |answers: &str, now| is_calm(&questions(answers), now, 60_000, 50_000);
        assert!(of("......", 120_000));
        assert!(of("x.....", 120_000));
        assert!(!of("...x..", 120_000) && !of("..", 40_000), "too early to say");
        assert!(!of("......", 1_000_000), "nothing is heard any more");
        assert!(!of("", 0));
    }

    #[test]
    fn who_got_the_vip_does_not_count() {
        let a = |ms| Away { longest_ms: ms, back: true, ..Away::default() };
        let change = |host, holds| Change { host, at: 0, holds };
        assert_eq!(worst(&[(1, a(90)), (2, a(70))], &[change(0, false), change(1, true)]), Some((2, a(70))));
        assert_eq!(worst(&[(1, a(90)), (2, a(70))], &[]), Some((1, a(90))));
        assert_eq!(worst(&[(1, a(90))], &[change(1, true)]), Some((1, a(90))), "better than nothing");
        assert_eq!(worst(&[], &[]), None);
    }

    proptest! {
        /// An API that is away from `a` to `b`, asked at any times: what is said is the truth within the error that is said.
        #[test]
        fn what_is_said_is_right_within_its_error(
            gaps in prop::collection::vec(1_i64..60_000, 30..200),
            a in 400_000_i64..1_000_000,
            lasts in 1_i64..1_500_000,
            latency in 1_i64..20_000,
            waits: bool,
        ) {
            let b = a + lasts;
            let mut asked = 0;
            let mut all = Vec::new();
            for gap in gaps {
                asked += gap;
                // a question at the door waits for up to 0.2 s in some networks
                let answered = if asked < a || asked >= b {
                    Some(asked + latency)
                } else {
                    (waits && b - asked < 200_000).then_some(b + latency)
                };
                all.push(Question { asked, answered });
            }
            let end = asked + 1_000_000;
            let said = away(&all, a, end);
            prop_assert!(said.times <= 1);
            if said.times == 0 && all.last().is_some_and(|q| q.asked >= b) {
                prop_assert!(lasts <= said.error_ms * 1000 + 1000, "{:?} of {} to {}", said, a, b);
            }
            if said.times == 1 && said.back {
                let wrong = said.longest_ms * 1000 - lasts;
                prop_assert!(wrong.abs() <= said.error_ms * 1000 + 1000, "{:?} of {} to {}", said, a, b);
            }
            if all.iter().any(|q| q.answered.is_none()) && all.last().is_some_and(|q| q.answered.is_some()) {
                prop_assert!(said.times == 1 && said.back);
            }
        }

        /// However hosts take the VIP and let it go, the time together is what looking at each millisecond would count.
        #[test]
        fn times_together_are_counted_once(moves in prop::collection::vec((0_usize..3, 0_i64..200, any::<bool>()), 0..20)) {
            let changes: Vec<Change> = moves.iter().map(|(host, at, holds)| Change { host: *host, at: *at, holds: *holds }).collect();
            let mut sorted = changes.clone();
            sorted.sort_by_key(|c| c.at);
            let holds = |host: usize, t: i64| sorted.iter().rfind(|c| c.host == host && c.at <= t).map_or(host == 0, |c| c.holds);
            let counted = (0..150).filter(|t| (0..3).filter(|h| holds(*h, *t)).count() > 1).count();
            prop_assert_eq!(shared(0, &changes, 150), i64::try_from(counted).unwrap());
        }

        /// No order of arrival changes anything.
        #[test]
        fn the_order_of_arrival_does_not_count(answers in "[.x]{0,60}", turn in 0_usize..60) {
            let in_order = questions(&answers);
            let mut turned = in_order.clone();
            if !turned.is_empty() {
                let n = turn % turned.len();
                turned.rotate_left(n);
            }
            prop_assert_eq!(away(&in_order, 0, 2_000_000), away(&turned, 0, 2_000_000));
        }
    }
}
