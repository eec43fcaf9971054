//! `distd-sim`: answers questions of scale that no two cores and no laboratory can: the real engine,
//! thousands of peers, virtual time.

mod chart;
mod swarm;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use swarm::Shape;

/// What a release costs its origin, and how long it takes, by number of nodes and of layers.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
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

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("distd-sim: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let mut rows = Vec::new();
    if !options.json {
        println!("{}", table::HEAD);
    }
    for layers in &options.layers {
        for nodes in &options.nodes {
            let Options { mib, mbit, seed, .. } = *options;
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
