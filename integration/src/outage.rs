//! What a list of questions and a list of holders say about a failure. Times are those of [`crate::clock`].

use std::time::Duration;

/// One question to the API through the VIP, or something that was to be written.
#[derive(Debug, Clone, Copy)]
pub struct Get {
    /// When it was asked.
    pub asked: Duration,
    /// Whether it was answered, rightly and in time.
    pub answered: bool,
}

/// A host took the VIP, or gave it away.
#[derive(Debug, Clone)]
pub struct Change {
    /// The host's name.
    pub host: String,
    /// When it was seen.
    pub at: Duration,
    /// Whether it holds the VIP from now on.
    pub holds: bool,
}

/// The longest time that the API was away: from the first question that got no answer until the next that got one was
/// asked, so that an answer that hangs counts from the moment of its question. One is asked each `gap`. Only gaps that begin in
/// `from..until` /// count; one that does not end is counted as far as it was seen.
pub fn longest(gets: &[Get], gap: Duration, from: Duration, until: Duration) -> Duration {
    let mut gets = gets.to_vec();
    gets.sort_by_key(|get| get.asked);
    let mut longest = Duration::ZERO;
    let mut away = None;
    for get in gets {
        if get.answered {
            away = None;
            continue;
        }
        if away.is_none() && get.asked >= from && get.asked < until {
            away = Some(get.asked);
        }
        if let Some(since) = away {
            longest = longest.max((get.asked + gap).saturating_sub(since));
        }
    }
    longest
}

/// Whether all questions of a while were answered, as far as one can know now: one that was asked within `patience` may still be.
pub fn is_fine_for(gets: &[Get], time: Duration, patience: Duration, now: Duration) -> bool {
    let known = now.saturating_sub(patience);
    let recent = || gets.iter().filter(|get| get.asked >= known.saturating_sub(time));
    recent().any(|get| get.asked < known) && recent().all(|get| get.answered)
}

/// How long more than one host held the VIP between `from` and `until`.
pub fn shared(changes: &[Change], from: Duration, until: Duration) -> Duration {
    let mut changes = changes.to_vec();
    changes.sort_by_key(|change| change.at);
    let mut holders = std::collections::BTreeSet::new();
    let mut total = Duration::ZERO;
    let mut since = None;
    for change in changes {
        let at = change.at.clamp(from, until);
        if let Some(since) = since.take() {
            total += at.saturating_sub(since);
        }
        if change.holds {
            holders.insert(change.host)
        } else {
            holders.remove(&change.host)
        };
        if holders.len() > 1 {
            since = Some(at);
        }
    }
    total + since.map_or(Duration::ZERO, |since| until.saturating_sub(since))
}

/// How often a host took the VIP between `from` and `until`.
pub fn taken(changes: &[Change], from: Duration, until: Duration) -> usize {
    changes.iter().filter(|change| change.holds && (from..until).contains(&change.at)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// One question each 20 ms, from 0 on: `x` stands for no answer.
    fn gets(answers: &str) -> Vec<Get> {
        (0..).zip(answers.chars()).map(|(n, answer)| Get { asked: ms(20 * n), answered: answer != 'x' }).collect()
    }

    #[test]
    fn a_gap_goes_from_its_first_question_to_the_next_answered_one() {
        assert_eq!(longest(&gets("..xxx.."), ms(20), ms(0), ms(1000)), ms(60));
        assert_eq!(longest(&gets("..x.xx.x"), ms(20), ms(0), ms(1000)), ms(40));
        assert_eq!(longest(&gets("......"), ms(20), ms(0), ms(1000)), ms(0));
    }

    #[test]
    fn the_order_in_which_answers_came_does_not_count() {
        let mut late = gets(".xx..");
        late.swap(1, 4);
        assert_eq!(longest(&late, ms(20), ms(0), ms(1000)), ms(40));
    }

    #[test]
    fn only_gaps_that_begin_in_the_window_count() {
        assert_eq!(longest(&gets("xx..xxx..x"), ms(20), ms(60), ms(160)), ms(60));
    }

    #[test]
    fn it_is_fine_when_nothing_is_missing_that_could_be_there() {
        // asked from 0 to 180 ms, and an answer may take 60 ms
        let fine = |answers: &str, now| is_fine_for(&gets(answers), ms(60), ms(60), ms(now));
        assert!(fine("..........", 200) && fine("xxx.......", 200) && !fine("....x.....", 200));
        assert!(!fine("..........", 310), "nothing was asked lately");
        assert!(!fine(".........x", 200), "that one is known already");
    }

    #[test]
    fn two_holders_count_only_together_and_in_the_window() {
        let change = |host: &str, at, holds| Change { host: host.to_owned(), at: ms(at), holds };
        let changes = [change("h1", 0, true), change("h2", 100, true), change("h1", 150, false), change("h3", 300, true)];
        assert_eq!(shared(&changes, ms(0), ms(350)), ms(50 + 50));
        assert_eq!(shared(&changes, ms(120), ms(200)), ms(30));
        assert_eq!(taken(&changes, ms(50), ms(350)), 2);
    }
}
