//! `bench`: what smartup costs, and how long the API is away when its holder fails, beside Kubernetes' own sample for
//! keepalived on the same hosts. See `docs/development/performance.md`.

mod ansible;
mod apply;
mod ask;
mod by_hand;
mod cluster;
mod control;
mod course;
mod crowd;
mod failover;
mod fault;
mod maintenance;
mod memory;
mod program;
mod side;
mod simulate;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use integration::report::{Table, gap, middle, spread, verdict, yes};
use integration::watch::Watch;

use ansible::Playbook;
use apply::{Applied, Runs};
use ask::{Ask, Asked};
use cluster::{Timing, Timings, api, vip};
use course::Course;
use crowd::Crowd;
use failover::{Calm, Failover, Scene, Seen};
use fault::Fault;
use maintenance::Updates;
use program::Program;
use side::{Side, Written};
use simulate::Simulate;

/// How long nothing happens, to see whether the VIP stays where it is.
const QUIET: Duration = Duration::from_secs(20);
/// Threads that keep the machine busy meanwhile: two for each core of the machine that the aims are for.
const BUSY: usize = 4;

/// Measures smartup on lab hosts.
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = "Examples:\n  bench --runs 1\n  bench --only apply,crowd --markdown")]
struct Cli {
    /// How often everything is measured, each time on new hosts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Measure these parts only
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
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
    #[command(hide = true)]
    Simulate(Simulate),
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// `init`, `join`, and how long the API is away when its holder fails
    Failover,
    /// `apply` for four hosts, beside k3s by hand and Ansible
    Apply,
    /// `apply` for a hundred hosts
    Crowd,
    /// The maintenance operator's controller, and `updates status`, with five thousand nodes
    Updates,
}

/// All that was measured.
#[derive(Debug, Default)]
struct Measured {
    timings: Vec<Timings>,
    results: [Results; 2],
    applied: Vec<Applied>,
    crowds: Vec<Crowd>,
    updates: Vec<Updates>,
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
        Some(Cmd::Simulate(simulate)) => simulate.run(),
        None => bench(cli.runs, &cli.only, cli.markdown),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(runs: usize, only: &[Part], markdown: bool) -> Result<()> {
    let program = Program::find()?;
    let playbook = Playbook::find().inspect_err(|error| eprintln!("no Ansible: {error:#}")).ok();
    let mut measured = Measured::default();
    for run in 1..=runs {
        eprintln!("run {run} of {runs}");
        for part in Part::value_variants().iter().filter(|part| only.is_empty() || only.contains(part)) {
            let ended = match part {
                Part::Failover => fail_over(&program, &mut measured),
                Part::Apply => apply::measure(&program, playbook.as_ref()).map(|applied| measured.applied.push(applied)),
                Part::Crowd => crowd::measure(&program).map(|crowd| measured.crowds.push(crowd)),
                Part::Updates => maintenance::measure(&program).map(|updates| measured.updates.push(updates)),
            };
            // What was measured before is not lost with this one.
            if let Err(error) = ended {
                print_tables(&program, &measured, markdown)?;
                return Err(error.context(format!("run {run} of {runs}")));
            }
        }
    }
    print_tables(&program, &measured, markdown)
}

fn fail_over(program: &Program, measured: &mut Measured) -> Result<()> {
    let (lab, timing) = cluster::make(program)?;
    eprintln!("three hosts are a cluster: {timing:.2?}");
    measured.timings.push(timing);
    let asked = Asked::start(&lab, lab.host("h1")?, api())?;
    let watch = Watch::start(lab.hosts(), IpAddr::V4(vip()));
    let written = Written::of(&lab)?;
    for (side, results) in Side::ALL.into_iter().zip(&mut measured.results) {
        written.put(&lab, side)?;
        measure(&Scene { lab: &lab, asked: &asked, watch: &watch, side }, results)?;
    }
    Ok(())
}

fn print_tables(program: &Program, measured: &Measured, markdown: bool) -> Result<()> {
    let Measured { timings, results, applied, crowds, updates } = measured;
    let mut tables = Vec::new();
    if !timings.is_empty() {
        tables.extend([program_table(program, timings)?, time_table(timings), outage_table(results), calm_table(results)]);
    }
    if !applied.is_empty() {
        tables.push(apply_table(applied));
    }
    if !crowds.is_empty() {
        tables.push(crowd_table(crowds));
    }
    if !updates.is_empty() {
        tables.push(updates_table(updates));
    }
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
    let start = middle(&program.starts()?);
    let memory = timings.iter().map(|timing| timing.memory).max().unwrap_or_default();
    Ok(Table {
        title: "The program",
        head: row(["what", "measured"]),
        rows: vec![
            row(["size of the static binary", &megabytes(program.content.len())]),
            row(["the same as xz", &megabytes(program.compressed()?)]),
            row(["start to end of `smartup --version`", &format!("{:.1} ms", start * 1000.0)]),
            row(["most memory resident in `init`", &mebibytes(memory)]),
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

fn apply_table(applied: &[Applied]) -> Table {
    let ours: Vec<&Runs> = applied.iter().map(|a| &a.ours).collect();
    let ansible: Vec<&Runs> = applied.iter().filter_map(|a| a.ansible.as_ref()).collect();
    let courses = |of: fn(&Course) -> Duration| {
        let floor: Vec<_> = applied.iter().map(|a| of(&a.floor)).collect();
        [floor, ansible.iter().map(|r| of(&r.first)).collect(), ours.iter().map(|r| of(&r.first)).collect()]
    };
    let line = |what: &str, of: fn(&Course) -> Duration, aim: Option<u64>| {
        let [floor, ansible, ours] = courses(of);
        row([what, &spread(&floor), &measured(&ansible), &spread(&ours), &verdict(&ours, aim.map(Duration::from_millis))])
    };
    let ratios: Vec<f64> = applied.iter().map(|a| a.ours.first.api.as_secs_f64() / a.floor.api.as_secs_f64()).collect();
    let ratio = middle(&ratios);
    let again = |runs: &[&Runs]| runs.iter().map(|r| r.again).collect::<Vec<_>>();
    let memory = |runs: &[&Runs], of: fn(&Runs) -> u64| runs.iter().map(|r| of(r)).max().map_or_else(not_measured, mebibytes);
    Table {
        title: "Three servers and an agent from one place",
        head: row(["what", "k3s by hand", "Ansible", "`smartup apply`", "aim"]),
        rows: vec![
            line("until the API of all three servers is ready", |c| c.api, None),
            row(["… compared with k3s by hand", "1", "", &format!("{ratio:.2}"), &format!("≤ 0.65: {}", yes(ratio <= 0.65))]),
            line("until all four nodes are Ready", |c| c.nodes, None),
            line("until the command's end", |c| c.end, None),
            line("… of that, no unit of k3s was starting", |c| c.beside_units, Some(1500)),
            line("… nor was a node on its way to Ready", |c| c.own, None),
            row([
                "again, nothing to change",
                "",
                &measured(&again(&ansible)),
                &spread(&again(&ours)),
                &verdict(&again(&ours), Some(Duration::from_millis(600))),
            ]),
            row([
                "memory of the control side, largest process",
                "",
                &memory(&ansible, |r| r.memory.largest),
                &memory(&ours, |r| r.memory.largest),
                "",
            ]),
            row([
                "… of all its processes together",
                "",
                &memory(&ansible, |r| r.memory.together),
                &memory(&ours, |r| r.memory.together),
                "",
            ]),
        ],
    }
}

fn crowd_table(crowds: &[Crowd]) -> Table {
    let times = |of: fn(&Crowd) -> Duration| crowds.iter().map(of).collect::<Vec<_>>();
    let memory = crowds.iter().map(|c| c.memory).max().unwrap_or_default();
    let small = yes(memory * 1024 <= 100_000_000);
    let again = times(|c| c.again);
    Table {
        title: "A hundred hosts",
        head: row(["what", "measured", "aim"]),
        rows: vec![
            row(["again, nothing to change", &spread(&again), &verdict(&again, Some(Duration::from_secs(5)))]),
            row(["most memory resident on the control side", &mebibytes(memory), &format!("≤ 100 MB: {small}")]),
        ],
    }
}

fn updates_table(updates: &[Updates]) -> Table {
    let line = |what: &str, of: fn(&Updates) -> Duration, aim: Option<u64>| {
        let times: Vec<_> = updates.iter().map(of).collect();
        row([what, &spread(&times), &verdict(&times, aim.map(Duration::from_secs))])
    };
    let most = |of: fn(&Updates) -> usize| updates.iter().map(of).max().unwrap_or_default();
    let memory = updates.iter().map(|u| u.memory).max().unwrap_or_default();
    let bytes = most(|u| u.simulated.bytes);
    let requests: Vec<f64> = updates.iter().map(|u| u.requests).collect();
    Table {
        title: "Smart updates of five thousand nodes",
        head: row(["what", "measured", "aim"]),
        rows: vec![
            line("from the last node until each has its NodeUpdate", |u| u.simulated.made, None),
            line("all agents report at once: until the API has taken all", |u| u.simulated.reported, None),
            line("… from there until the UpdateManager has it", |u| u.simulated.settled, Some(10)),
            row(["… writes of the UpdateManager in both", &most(|u| u.simulated.writes).to_string(), ""]),
            row([
                "the UpdateManager's size",
                &format!("{} KiB", bytes / 1024),
                &format!("≤ 1536 KiB (etcd): {}", yes(bytes <= 1536 * 1024)),
            ]),
            line("a changed window: until the status of all nodes has it", |u| u.simulated.window, Some(10)),
            line("a ban: until all nodes are told to look for updates", |u| u.simulated.ban, None),
            line("a node's label: until the status has it", |u| u.simulated.suspended, Some(10)),
            line("`updates status`", |u| u.status, Some(2)),
            row(["most memory resident in a controller", &mebibytes(memory), &format!("≤ 150 MB: {}", yes(memory * 1024 <= 150_000_000))]),
            row(["requests of both controllers in an idle minute", &format!("{:.0}", middle(&requests)), ""]),
        ],
    }
}

fn measured(times: &[Duration]) -> String {
    if times.is_empty() { not_measured() } else { spread(times) }
}

fn not_measured() -> String {
    "not measured".to_owned()
}

fn mebibytes(kibibytes: u64) -> String {
    format!("{}.{} MiB", kibibytes / 1024, kibibytes % 1024 * 10 / 1024)
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
