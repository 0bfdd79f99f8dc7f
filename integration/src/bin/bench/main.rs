//! `bench`: what smartup costs, and how long the API is away when its holder fails, beside Kubernetes' own sample for
//! keepalived on the same hosts. See `docs/development/performance.md`.

mod ask;
mod clock;
mod cluster;
mod failover;
mod fault;
mod outage;
mod program;
mod report;
mod side;
mod watch;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use ask::{Ask, Asked};
use cluster::{Timing, Timings, api, vip};
use failover::{Calm, Failover, Scene, Seen};
use fault::Fault;
use program::Program;
use report::{Table, gap, spread, verdict};
use side::{Side, Written};
use watch::Watch;

/// How long nothing happens, to see whether the VIP stays where it is.
const QUIET: Duration = Duration::from_secs(20);
/// Threads that keep the machine busy meanwhile: two for each core of the machine that the aims are for.
const BUSY: usize = 4;

/// Measures smartup on lab hosts.
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = "Example:\n  bench --runs 1")]
struct Cli {
    /// How often everything is measured, each time on new hosts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Print Markdown
    #[arg(long)]
    markdown: bool,
    #[command(subcommand)]
    command: Option<Cmd>,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    #[command(hide = true)]
    Ask(Ask),
}

/// All that was measured on one side.
#[derive(Debug, Default)]
struct Results {
    failovers: BTreeMap<Fault, Vec<Failover>>,
    quiet: Vec<Calm>,
    busy: Vec<Calm>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Some(Cmd::Ask(ask)) => ask.run(),
        None => bench(cli.runs, cli.markdown),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(runs: usize, markdown: bool) -> Result<()> {
    let program = Program::find()?;
    let (mut timings, mut results) = (Vec::new(), [Results::default(), Results::default()]);
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        // What the runs before have shown is not lost with this one.
        if let Err(error) = once(&program, &mut timings, &mut results) {
            print_tables(&program, &timings, &results, markdown)?;
            return Err(error.context(format!("run {run} of {runs}")));
        }
    }
    print_tables(&program, &timings, &results, markdown)
}

fn once(program: &Program, timings: &mut Vec<Timings>, results: &mut [Results; 2]) -> Result<()> {
    let (lab, timing) = cluster::make(program)?;
    eprintln!("three hosts are a cluster: {timing:.2?}");
    timings.push(timing);
    let asked = Asked::start(&lab, lab.host("h1")?, api())?;
    let watch = Watch::start(lab.hosts(), IpAddr::V4(vip()));
    let written = Written::of(&lab)?;
    for (side, results) in Side::ALL.into_iter().zip(results) {
        written.put(&lab, side)?;
        measure(&Scene { lab: &lab, asked: &asked, watch: &watch, side }, results)?;
    }
    Ok(())
}

fn print_tables(program: &Program, timings: &[Timings], results: &[Results; 2], markdown: bool) -> Result<()> {
    let tables = [program_table(program, timings)?, time_table(timings), outage_table(results), calm_table(results)];
    let texts: Vec<String> = tables.iter().map(|table| table.text(markdown)).collect();
    print!("{}", texts.join("\n"));
    Ok(())
}

fn measure(scene: &Scene<'_>, results: &mut Results) -> Result<()> {
    let side = scene.side.name();
    results.quiet.push(scene.wait(QUIET, 0)?);
    results.busy.push(scene.wait(QUIET, BUSY)?);
    for fault in Fault::ALL {
        let seen = scene.fail(fault)?;
        eprintln!("{side}: {}: {}; {}: {}", fault.name(), seen.fault, fault.end(), seen.end);
        results.failovers.entry(fault).or_default().push(seen);
    }
    Ok(())
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn program_table(program: &Program, timings: &[Timings]) -> Result<Table> {
    let megabytes = |bytes: usize| format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10);
    let starts: Vec<f64> = program.starts()?;
    let mut sorted = starts;
    sorted.sort_by(f64::total_cmp);
    let start = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let memory = timings.iter().map(|timing| timing.memory).max().unwrap_or_default();
    Ok(Table {
        title: "The program",
        head: row(["what", "measured"]),
        rows: vec![
            row(["size of the static binary", &megabytes(program.content.len())]),
            row(["the same as xz", &megabytes(program.compressed()?)]),
            row(["start to end of `smartup --version`", &format!("{:.1} ms", start * 1000.0)]),
            row(["most memory resident in `init`", &format!("{}.{} MiB", memory / 1024, memory % 1024 * 10 / 1024)]),
        ],
    })
}

fn time_table(timings: &[Timings]) -> Table {
    let collect = |of: fn(&Timings) -> Duration| timings.iter().map(of).collect::<Vec<_>>();
    let line = |what: &str, times: Vec<Duration>, aim: Option<u64>| {
        vec![what.to_owned(), spread(&times), verdict(&times, aim.map(Duration::from_millis))]
    };
    let first = |of: fn(&Timing) -> Duration| timings.iter().map(|t| of(&t.init)).collect::<Vec<_>>();
    let joins = |of: fn(&Timing) -> Duration| timings.iter().flat_map(|t| &t.joins).map(of).collect::<Vec<_>>();
    Table {
        title: "Time",
        head: row(["what", "measured", "aim"]),
        rows: vec![
            line("`init`: until k3s is started", first(|t| t.before), None),
            line("`init`: k3s's unit, start to READY", first(|t| t.k3s), None),
            line("`init`: k3s, READY to node Ready", first(|t| t.node), None),
            line("`init`: from there to the end", first(|t| t.rest), None),
            line("`init`: on top of k3s's unit", first(Timing::beside_unit), None),
            line("`init`: on top of the node being Ready", first(Timing::own), Some(2000)),
            line("`join`: until k3s is started", joins(|t| t.before), None),
            line("`join`: k3s's unit, start to READY", joins(|t| t.k3s), None),
            line("`join`: k3s, READY to node Ready", joins(|t| t.node), None),
            line("`join`: from there to the end", joins(|t| t.rest), None),
            line("`join`: on top of k3s's unit", joins(Timing::beside_unit), None),
            line("`join`: on top of the node being Ready", joins(Timing::own), None),
            line("`init` again, nothing to change", collect(|t| t.again), Some(300)),
            line("`init --dry-run`, nothing to change", collect(|t| t.dry), None),
        ],
    }
}

fn outage_table([stock, ours]: &[Results; 2]) -> Table {
    let cells = |results: &Results, fault: Fault, of: fn(&Failover) -> &Seen| {
        let seen: Vec<_> = results.failovers.get(&fault).into_iter().flatten().map(of).collect();
        let outages: Vec<Duration> = seen.iter().map(|seen| seen.outage).collect();
        let shared: Vec<Duration> = seen.iter().map(|seen| seen.shared).collect();
        (outages, gap(&shared))
    };
    let mut rows = Vec::new();
    for fault in Fault::ALL {
        let mut line = |name: String, aim, of: fn(&Failover) -> &Seen| {
            let ((stock, stock_shared), (ours, ours_shared)) = (cells(stock, fault, of), cells(ours, fault, of));
            rows.push(vec![name, gap(&stock), gap(&ours), verdict(&ours, aim), stock_shared, ours_shared]);
        };
        line(fault.name().to_owned(), fault.aim(), |seen| &seen.fault);
        line(format!("… {}", fault.end()), None, |seen| &seen.end);
    }
    Table {
        title: "The API's outage when the holder fails",
        head: row(["what happens to the holder", "stock", "smartup", "aim", "two holders, stock", "two holders, smartup"]),
        rows,
    }
}

fn calm_table(results: &[Results; 2]) -> Table {
    let line = |what: String, of: fn(&Results) -> &Vec<Calm>| {
        let cell = |results: &Results| {
            let outages: Vec<Duration> = of(results).iter().map(|calm| calm.outage).collect();
            (of(results).iter().map(|calm| calm.moves).sum::<usize>().to_string(), gap(&outages))
        };
        let ([stock, ours], mut cells) = (results.each_ref().map(cell), vec![what]);
        cells.extend([stock.0, ours.0, stock.1, ours.1]);
        cells
    };
    let seconds = QUIET.as_secs();
    Table {
        title: "False failovers",
        head: row(["while nothing happens", "moves of the VIP, stock", "smartup", "longest gap, stock", "smartup"]),
        rows: vec![
            line(format!("{seconds} s in each run, machine as it is"), |r| &r.quiet),
            line(format!("{seconds} s in each run, {BUSY} busy threads"), |r| &r.busy),
        ],
    }
}
