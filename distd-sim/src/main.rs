//! `distd-sim`: answers questions of scale that no two cores and no laboratory can: the real engine,
//! thousands of peers, virtual time.

mod chart;
mod hostile;
mod swarm;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use hostile::Case;
use swarm::Shape;

/// The engine in virtual time.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// What a release costs its origin, and how long it takes, by number of nodes and of layers
    Scale(Scale),
    /// Whether reads end right among hostile peers, for many seeds
    Hostile(Hostile),
}

#[derive(Debug, clap::Args)]
struct Scale {
    /// Numbers of nodes
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    nodes: Vec<usize>,
    /// Numbers of layers: 1 the origin alone, 2 relays below it, 3 relays below relays
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    layers: Vec<usize>,
    /// Size of the release in MiB
    #[arg(long, default_value_t = 16)]
    mib: u64,
    /// The origin's line in Mbit/s; all others have ten times that
    #[arg(long, default_value_t = 100)]
    mbit: u64,
    /// Seed of all chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run each swarm twice and compare every datagram
    #[arg(long)]
    twice: bool,
    /// Draw the curves into this file (SVG)
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// JSON, a line for each swarm
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Hostile {
    /// Who the reader has to do with
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Case::ALL)]
    cases: Vec<Case>,
    /// Seeds of each case
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// JSON, a line for each case
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let outcome = match Options::parse().question {
        Question::Scale(options) => scale(&options),
        Question::Hostile(options) => hostile(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("distd-sim: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn scale(options: &Scale) -> Result<(), String> {
    let mut rows = Vec::new();
    if !options.json {
        println!("{}", table::HEAD);
    }
    for layers in &options.layers {
        for nodes in &options.nodes {
            let Scale { mib, mbit, seed, .. } = *options;
            let shape = Shape { nodes: *nodes, layers: *layers, mib, mbit, seed };
            let row = swarm::measure(shape, options.twice)?;
            if options.twice && swarm::measure(shape, true)?.digest != row.digest {
                return Err(format!("{shape:?} ran twice with one seed, and not alike"));
            }
            let line = if options.json { table::json(&row)? } else { table::line(&row) };
            println!("{line}");
            let _ = std::io::stdout().flush();
            rows.push(row);
        }
    }
    if let Some(file) = &options.chart {
        std::fs::write(file, chart::draw(&rows))
            .map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    }
    Ok(())
}

fn hostile(options: &Hostile) -> Result<(), String> {
    for case in &options.cases {
        let mut slowest = Duration::ZERO;
        for seed in 0..options.seeds {
            let took = hostile::run(*case, seed)
                .map_err(|problem| format!("{case:?}, seed {seed}: {problem}"))?;
            slowest = slowest.max(took);
        }
        let (seeds, slowest) = (options.seeds, slowest.as_secs_f64());
        if options.json {
            println!(
                "{}",
                serde_json::json!({"case": format!("{case:?}"), "seeds": seeds, "slowest_s": slowest})
            );
        } else {
            println!(
                "{case:?}: {seeds} seeds, every read right, the slowest in {slowest:.3} s of virtual time"
            );
        }
    }
    Ok(())
}
