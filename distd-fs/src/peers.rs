//! `peers`: the node's peers as a table, once or every second.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::Path;
use std::time::Duration;

use distd_core::unit::HumanBytes;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::control::Request;
use crate::exit::Complaint;
use crate::report::{bytes, list, text};

/// How often the table is drawn anew.
const EVERY: Duration = Duration::from_secs(1);

/// Begins a line's place on a terminal; ends a line, and the screen, without what stood there before.
const HOME: &str = "\x1b[H";
const END_LINE: &str = "\x1b[K\n";
const END_SCREEN: &str = "\x1b[J";

/// Columns of the table; numbers stand to the right.
const COLUMNS: [(&str, bool); 9] = [
    ("PEER", false),
    ("WHO", false),
    ("NEAR", false),
    ("RTT", true),
    ("HAS", true),
    ("DOWN/S", true),
    ("UP/S", true),
    ("RECEIVED", true),
    ("SENT", true),
];

/// Draws the table every second, until it is interrupted or nobody reads it any more. As JSON: one line
/// each time.
pub(crate) fn watch(cache: &Path, json: bool) -> Result<(), Complaint> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Complaint::failure)?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Complaint::failure)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(Complaint::failure)?;
        loop {
            let answer = crate::cli::ask(cache, &Request::Peers)?;
            if draw(&answer, json).is_err() {
                return Ok(());
            }
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    })
}

fn draw(answer: &Value, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{answer}")?;
    } else if out.is_terminal() {
        let lines = words(answer).replace('\n', END_LINE);
        write!(out, "{HOME}{lines}{END_SCREEN}")?;
    } else {
        writeln!(out, "{}", words(answer))?;
    }
    out.flush()
}

/// The table.
pub(crate) fn words(answer: &Value) -> String {
    let mut lines = String::new();
    for swarm in list(&answer["swarms"]) {
        let releases: Vec<&str> = list(&swarm["releases"]).map(text).collect();
        let wanted = match swarm["wanted_bytes"].as_u64() {
            Some(bytes) => format!(": {}, {}", releases.join(", "), HumanBytes(bytes)),
            None if releases.is_empty() => String::new(),
            None => format!(": {}", releases.join(", ")),
        };
        let _ = writeln!(lines, "origin {}{wanted}", text(&swarm["origin"]));
        let _ = writeln!(lines, "{}", sources(&swarm["sources"]));
        let mut peers: Vec<&Value> = list(&swarm["peers"]).collect();
        let place = |peer: &Value| {
            let address = text(&peer["address"]).parse::<std::net::SocketAddr>().ok();
            (peer["level"].as_u64().unwrap_or(u64::MAX), address)
        };
        peers.sort_by_key(|peer| place(peer));
        table(&mut lines, &peers, swarm["wanted_bytes"].as_u64());
    }
    if lines.is_empty() { "no swarm is joined\n".to_owned() } else { lines }
}

/// What came from where, in one line.
pub(crate) fn sources(sources: &Value) -> String {
    format!(
        "received from the LAN {}, relays {}, the origin {}, elsewhere {}; answered from the cache {}",
        bytes(&sources["lan_bytes"]),
        bytes(&sources["relay_bytes"]),
        bytes(&sources["origin_bytes"]),
        bytes(&sources["other_bytes"]),
        bytes(&sources["cache_bytes"])
    )
}

fn table(lines: &mut String, peers: &[&Value], wanted: Option<u64>) {
    let rows: Vec<([String; 9], String)> =
        peers.iter().map(|peer| (cells(peer, wanted), state(peer))).collect();
    let width = |at: usize| {
        let widest = rows.iter().map(|(cells, _)| cells[at].len()).max().unwrap_or(0);
        widest.max(COLUMNS[at].0.len())
    };
    let widths: [usize; 9] = std::array::from_fn(width);
    let line = |cells: [&str; 9], last: &str| {
        let mut line = String::new();
        for ((cell, width), (_, right)) in cells.iter().zip(widths).zip(COLUMNS) {
            let _ = if right {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        line + last
    };
    let _ = writeln!(lines, "{}", line(COLUMNS.map(|(name, _)| name), "STATE"));
    for (cells, state) in &rows {
        let _ = writeln!(lines, "{}", line(cells.each_ref().map(String::as_str), state));
    }
}

fn cells(peer: &Value, wanted: Option<u64>) -> [String; 9] {
    let rtt = peer["rtt_us"].as_u64().map(|us| format!("{:.1} ms", us as f64 / 1000.0));
    // Rounded down: 100 % is all of it.
    let percent = |has: u64, all: u64| format!("{} %", u128::from(has) * 100 / u128::from(all));
    let has = peer["has_bytes"].as_u64().zip(wanted).map(|(has, all)| percent(has, all));
    let none = || "-".to_owned();
    [
        text(&peer["address"]).to_owned(),
        who(peer),
        if peer["near"] == true { "lan" } else { "far" }.to_owned(),
        rtt.unwrap_or_else(none),
        has.unwrap_or_else(none),
        bytes(&peer["received_bytes_per_s"]).to_string(),
        bytes(&peer["sent_bytes_per_s"]).to_string(),
        bytes(&peer["received_bytes"]).to_string(),
        bytes(&peer["sent_bytes"]).to_string(),
    ]
}

fn who(peer: &Value) -> String {
    match peer["level"].as_u64() {
        None => "?".to_owned(),
        Some(0) => "origin".to_owned(),
        Some(255) => "node".to_owned(),
        Some(level) => format!("relay {level}"),
    }
}

/// What a peer does, or why it does nothing.
fn state(peer: &Value) -> String {
    let again = peer["again_s"].as_u64().map(|seconds| format!(" for {seconds} s"));
    let again = again.unwrap_or_default();
    let state = match peer["idle"].as_str() {
        Some("no_answer") => format!("no answer for {} s", peer["age_s"]),
        Some("choked") => "chokes us".to_owned(),
        Some("silent") => "leaves requests unanswered".to_owned(),
        Some("passed_over") => format!("let us wait: passed over{again}"),
        Some("nothing_wanted") => "idle: nothing is wanted".to_owned(),
        Some("nothing_to_give") => "idle: has nothing that is wanted".to_owned(),
        Some("closed") => match peer["reason"].as_str() {
            Some(reason) => format!("not connected{again}: {reason}"),
            None => format!("not connected{again}"),
        },
        Some("banned") => format!("banned{again}: it lied"),
        _ if peer["outstanding_bytes"].as_u64().is_some_and(|bytes| bytes > 0) => {
            "sends".to_owned()
        }
        _ => "open".to_owned(),
    };
    let up = match (&peer["served"], &peer["choked"]) {
        (Value::Bool(false), _) => ", not served",
        (_, Value::Bool(true)) => ", choked by us: it asks for too much",
        _ => "",
    };
    state + up
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_says_who_is_where_and_why_nothing_comes() {
        let answer = json!({ "swarms": [{
            "origin": "ab12", "releases": ["stable@1"], "wanted_bytes": 1000,
            "sources": { "lan_bytes": 2048, "relay_bytes": 0, "origin_bytes": 1 << 20,
                         "other_bytes": 0, "cache_bytes": 5 },
            "peers": [
                { "address": "192.0.2.9:7574", "level": 255, "near": false, "state": "banned",
                  "idle": "banned", "again_s": 590 },
                { "address": "10.0.0.10:7574", "level": 0, "near": true, "state": "open",
                  "rtt_us": 1500, "has_bytes": 1000, "received_bytes_per_s": 1 << 20,
                  "outstanding_bytes": 4096 },
                { "address": "10.0.0.9:7574", "level": 1, "near": true, "has_bytes": 999,
                  "state": "open", "idle": "choked", "choked": true },
                { "address": "10.0.0.8:7574", "near": true, "state": "closed", "idle": "closed",
                  "reason": "closed by the peer", "again_s": 3 },
            ],
        }]});
        let words = words(&answer);
        let lines: Vec<&str> = words.lines().collect();
        assert!(lines[0].contains("ab12") && lines[0].contains("stable@1, 1000 B"), "{words}");
        assert!(lines[1].contains("LAN 2.0 KiB") && lines[1].contains("cache 5 B"), "{words}");
        // The origin first, then relays, then nodes.
        for (line, parts) in [
            (3, ["10.0.0.10:7574", "origin", "lan", "1.5 ms", "100 %", "1.0 MiB", "sends"]),
            (4, ["10.0.0.9:7574", "relay 1", "lan", "-", "99 %", "chokes us", "choked by us"]),
            (5, ["192.0.2.9:7574", "node", "far", "-", "-", "banned for 590 s", "it lied"]),
            (6, ["10.0.0.8:7574", "?", "lan", "-", "-", "for 3 s", "closed by the peer"]),
        ] {
            assert!(parts.iter().all(|part| lines[line].contains(part)), "{}", lines[line]);
        }
        assert_eq!(super::words(&json!({ "swarms": [] })), "no swarm is joined\n");
    }
}
