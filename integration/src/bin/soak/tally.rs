//! What came of it, as a report.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use integration::report::{Table, gap, spread};
use integration::writes::{GAP, Write};

use crate::fault::Fault;

/// What was seen of one fault.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// The longest time without an answer through the VIP, from the fault until the next one.
    pub away: Duration,
    /// The same without an acknowledged write.
    pub no_writes: Duration,
    /// How long two hosts held the VIP.
    pub shared: Duration,
    /// From the fault's end until the cluster was whole again.
    pub whole: Duration,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { away, no_writes, shared, whole } = self;
        write!(f, "away {away:.1?}, no writes {no_writes:.1?}, two holders {shared:.2?}, whole again {whole:.1?} after its end")
    }
}

/// All faults so far.
#[derive(Debug)]
pub struct Tally {
    seed: u64,
    rounds: BTreeMap<Fault, Vec<Round>>,
    tried: usize,
    acknowledged: usize,
}

impl Tally {
    /// None yet.
    pub fn new(seed: u64) -> Self {
        Self { seed, rounds: BTreeMap::new(), tried: 0, acknowledged: 0 }
    }

    /// One more, after which no acknowledged write was missing.
    pub fn add(&mut self, fault: Fault, round: Round) {
        self.rounds.entry(fault).or_default().push(round);
    }

    /// What the client wrote in all that time.
    pub fn wrote(&mut self, writes: &[Write]) {
        self.tried = writes.len();
        self.acknowledged = writes.iter().filter(|write| write.get.answered).count();
    }

    /// The report, in Markdown.
    pub fn text(&self, took: Duration) -> String {
        let all: Vec<Round> = self.rounds.values().flatten().copied().collect();
        let row = |title: &str, rounds: &[Round]| {
            let times = |of: fn(&Round) -> Duration| rounds.iter().map(of).collect::<Vec<_>>();
            vec![
                title.to_owned(),
                rounds.len().to_string(),
                gap(&times(|r| r.away)),
                gap(&times(|r| r.no_writes)),
                gap(&times(|r| r.shared)),
                spread(&times(|r| r.whole)),
            ]
        };
        let mut rows: Vec<Vec<String>> = self.rounds.iter().map(|(fault, rounds)| row(fault.title(), rounds)).collect();
        rows.push(row("all", &all));
        let head = ["fault", "times", "API away", "no writes", "two holders", "whole again after its end"].map(str::to_owned).to_vec();
        let minutes = took.as_secs_f64() / 60.0;
        format!(
            "{}\nSeed {}, {minutes:.0} minutes, {} faults. {} writes, one each {} ms; {} acknowledged, of which \
             none was missing after any fault above.\n",
            Table { title: "Random faults", head, rows }.text(true),
            self.seed,
            all.len(),
            self.tried,
            GAP.as_millis(),
            self.acknowledged,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use integration::outage::Get;

    #[test]
    fn a_row_for_each_kind_and_one_for_all() {
        let mut tally = Tally::new(7);
        for (fault, away) in [(Fault::Power, 400), (Fault::Cut, 0), (Fault::Power, 600)] {
            let ms = Duration::from_millis;
            tally.add(fault, Round { away: ms(away), no_writes: ms(2 * away), shared: ms(0), whole: ms(9000) });
        }
        let write = |answered| Write { name: "w".into(), get: Get { asked: Duration::ZERO, answered }, why: None };
        tally.wrote(&[write(true), write(false), write(true)]);
        assert_eq!(
            tally.text(Duration::from_secs(130)),
            "## Random faults

| fault | times | API away | no writes | two holders | whole again after its end |
|---|---|---|---|---|---|
| power cut | 2 | 0.60 (0.40-0.60) s | 1.20 (0.80-1.20) s | none | 9.00 s |
| partition between two hosts | 1 | none | none | none | 9.00 s |
| all | 3 | 0.40 (0.00-0.60) s | 0.80 (0.00-1.20) s | none | 9.00 s |

Seed 7, 2 minutes, 3 faults. 3 writes, one each 100 ms; 2 acknowledged, of which none was missing after any fault above.
"
        );
    }
}
