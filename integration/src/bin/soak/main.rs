//! `soak`: random faults, one after the other, at a cluster that is written to all the time. See `docs/development/reliability.md`.

mod fault;
mod site;
mod tally;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum as _};
use integration::clock::now;
use integration::outage::{longest, shared};
use integration::writes::GAP;
use integration::{Dice, until};

use fault::{Case, Fault};
use site::Site;
use tally::{Round, Tally};

/// How long writes may fail while a fault lasts, and after it.
const AWAY_LIMIT: Duration = Duration::from_secs(60);
/// How long two hosts, or none, may have the VIP when all can hear each other.
const HOLDER_LIMIT: Duration = Duration::from_secs(10);
/// A holder that is cut off lets go when the check of everything has failed 16 times, a second apart; twice that on a busy machine.
const CUT_OFF_LIMIT: Duration = Duration::from_secs(32);
/// From a fault's end until the cluster is whole.
const WHOLE_LIMIT: Duration = Duration::from_secs(240);
/// How long writes must have gone well to be said to go well.
const CALM: Duration = Duration::from_secs(2);
/// A write that was under way when the fault began may be lost in it.
const MARGIN: Duration = Duration::from_millis(200);

/// Throws random faults at a cluster of three servers and an agent, and checks after each that nothing is lost
#[derive(Debug, Parser)]
#[command(name = "soak", after_help = "Examples:\n  soak --minutes 2\n  soak --seed 42 --faults power,freeze --least 20 --most 60")]
struct Cli {
    /// For so long new faults begin
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Which faults, in which order, on which hosts, for how long: the same seed, the same faults [default: a random one]
    #[arg(long)]
    seed: Option<u64>,
    /// These faults only
    #[arg(long, value_name = "FAULT", value_delimiter = ',', default_values_t = Fault::value_variants().to_vec())]
    faults: Vec<Fault>,
    /// A fault that must be ended lasts so many seconds at least
    #[arg(long, value_name = "SECONDS", default_value_t = 4)]
    least: u64,
    /// And so many at most
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    most: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let seed = cli.seed.unwrap_or_else(|| now().subsec_nanos().into());
    eprintln!("soak --seed {seed}");
    match soak(&cli, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}\nhint: the same faults again: soak --seed {seed}");
            ExitCode::FAILURE
        }
    }
}

fn soak(cli: &Cli, seed: u64) -> Result<()> {
    ensure!(cli.least <= cli.most, "--least {} is more than --most {}", cli.least, cli.most);
    let site = Site::make()?;
    let (begun, mut tally) = (now(), Tally::new(seed));
    let (mut dice, mut bag) = (Dice::new(seed), Vec::new());
    let mut ended = Ok(());
    while ended.is_ok() && now() < begun + Duration::from_secs(60 * cli.minutes) {
        if bag.is_empty() {
            // each kind comes before one comes again
            bag.clone_from(&cli.faults);
        }
        let fault = dice.take(&mut bag).context("there is no fault to throw")?;
        let case = Case::draw(fault, site.cluster(), &mut dice);
        let lasts = Duration::from_secs(cli.least + dice.below(1 + cli.most - cli.least));
        eprintln!("{:>5.0} s  {case}", now().saturating_sub(begun).as_secs_f64());
        let from = now();
        let thrown = round(&site, &case, lasts);
        site.tell_what_was_seen(from);
        ended = thrown.with_context(|| format!("{case}")).map(|round| {
            eprintln!("         {round}");
            tally.add(fault, round);
        });
    }
    ended = ended.and_then(|()| site.is_as_it_was());
    tally.wrote(&site.writes.all());
    // what was measured is not lost with what went wrong
    print!("{}", tally.text(now().saturating_sub(begun)));
    ended.inspect_err(|_| site.tell_logs())
}

/// One fault, its end, and all that must hold then.
fn round(site: &Site, case: &Case<'_>, lasts: Duration) -> Result<Round> {
    let begun = now();
    case.begin()?;
    until("writes go through the VIP while it lasts", AWAY_LIMIT, || Ok(site.writes.go_well_for(CALM, begun).then_some(())))?;
    if case.fault.stays() {
        if case.fault.lets_go() {
            site.has_one_holder(CUT_OFF_LIMIT)?;
        }
        std::thread::sleep((begun + lasts).saturating_sub(now()));
    }
    case.end()?;
    let ended = now();
    site.has_one_holder(HOLDER_LIMIT)?;
    until("writes go through the VIP afterwards", AWAY_LIMIT, || Ok(site.writes.go_well_for(CALM, ended).then_some(())))?;
    site.is_whole(WHOLE_LIMIT)?;
    let whole = now();
    site.keeps_what_it_acknowledged()?;
    site.is_settled()?;
    // nothing between two faults is left out
    let (from, to) = (begun.saturating_sub(MARGIN), now());
    Ok(Round {
        away: longest(&site.writes.questions(), GAP, from, to),
        no_writes: longest(&site.writes.gets(), GAP, from, to),
        shared: shared(&site.watch.changes(), begun, to),
        whole: whole.saturating_sub(ended),
    })
}
