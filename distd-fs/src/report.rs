//! What commands say: JSON for programs, lines for people, errors for both.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use distd_core::unit::HumanBytes;
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;

use crate::exit::Complaint;

/// Begins to log to standard error; `DISTD_LOG` says what, in the words of tracing's filters.
pub(crate) fn start(quiet: bool, verbose: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, false) => "info",
        (false, true) => "debug",
    };
    let filter = EnvFilter::try_from_env("DISTD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let ansi = std::io::IsTerminal::is_terminal(&io::stderr());
    // A second start changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(ansi)
        .with_target(false)
        .try_init();
}

/// Prints an answer, as JSON or in words.
pub(crate) fn print(json: bool, quiet: bool, answer: &Value, words: impl Fn(&Value) -> String) {
    let text = if json { format!("{answer:#}") } else { words(answer) };
    if json || (!quiet && !text.is_empty()) {
        // Whoever closed the pipe wants no more.
        let _ = writeln!(io::stdout(), "{}", text.trim_end());
    }
}

/// Prints why a command failed.
pub(crate) fn complain(program: &str, complaint: &Complaint, json: bool) {
    let _ = writeln!(io::stderr(), "{program}: {}", complaint.message);
    if json {
        let error = json!({ "error": complaint.message, "exit": complaint.exit.code() });
        let _ = writeln!(io::stdout(), "{error:#}");
    }
}

pub(crate) fn mounted(answer: &Value) -> String {
    let mut line = place(answer);
    if answer["view"] == "erofs" {
        line.push_str(", by EROFS");
    }
    if let Some(why) = answer["view_why"].as_str() {
        let _ = write!(line, "\nit is shown by the node, not by EROFS: {why}");
    }
    line
}

fn place(answer: &Value) -> String {
    let release = answer["release"].as_str().map(|release| format!(" ({release})"));
    let (source, directory) = (text(&answer["source"]), text(&answer["directory"]));
    format!("{source}{} is mounted on {directory}", release.unwrap_or_default())
}

pub(crate) fn attributes(answer: &Value) -> String {
    let all = answer["attributes"].as_object().into_iter().flatten();
    let lines: Vec<String> = all.map(|(name, value)| format!("{name}: {}", text(value))).collect();
    lines.join("\n")
}

pub(crate) fn held(answer: &Value) -> String {
    let stays = if answer["held"] == true { "stays at" } else { "follows its track, now at" };
    format!("{} {stays} {}", text(&answer["directory"]), text(&answer["release"]))
}

pub(crate) fn prefetched(answer: &Value) -> String {
    let (track, release) = (text(&answer["track"]), text(&answer["release"]));
    let (local, brought) = (bytes(&answer["local_bytes"]), bytes(&answer["brought_bytes"]));
    format!("{track}@{release}: {local} are local, {brought} of them new")
}

pub(crate) fn got(answer: &Value) -> String {
    let (track, release) = (text(&answer["track"]), text(&answer["release"]));
    let mut line = format!(
        "{track}@{release}: {} entries written, {} touched, {} right already, {} removed; {} of \
         content read, {} reused",
        answer["written"],
        answer["touched"],
        answer["unchanged"],
        answer["deleted"],
        bytes(&answer["read_bytes"]),
        bytes(&answer["reused_bytes"]),
    );
    for (name, what) in [
        ("skipped_devices", "device nodes are for root and were left out"),
        ("skipped_attributes", "extended attributes could not be set"),
    ] {
        if answer[name].as_u64().is_some_and(|count| count > 0) {
            let _ = write!(line, "; {} {what}", answer[name]);
        }
    }
    line
}

pub(crate) fn pinned(answer: &Value) -> String {
    let share = local_of(&answer["local_bytes"], &answer["total_bytes"]);
    format!("pinned {} ({share} local)", text(&answer["pin"]))
}

pub(crate) fn unpinned(answer: &Value) -> String {
    format!("unpinned {}", text(&answer["pin"]))
}

pub(crate) fn usage(usage: &Value) -> String {
    let bound = usage["quota_bytes"].as_u64().map(|bytes| format!(" of {}", HumanBytes(bytes)));
    format!(
        "{}{} in use, {} left free of {} free on the disk",
        bytes(&usage["allocated_bytes"]),
        bound.unwrap_or_default(),
        bytes(&usage["reserve_bytes"]),
        bytes(&usage["disk_free_bytes"]),
    )
}

pub(crate) fn status(status: &Value) -> String {
    let mut lines = String::new();
    let (node, cache) = (&status["node"], &status["cache"]);
    let _ = writeln!(
        lines,
        "node {}, up {} s, on UDP {}, serves {}",
        node["pid"],
        node["uptime_s"],
        text(&node["listen"]),
        match text(&node["serve"]) {
            "none" => "nobody",
            "local" => "its local networks",
            _ => "everybody",
        }
    );
    let _ = writeln!(lines, "cache {}: {}", text(&cache["directory"]), usage(&cache["usage"]));
    let _ = writeln!(
        lines,
        "fetched {} of metadata, {} of content, {} of frames",
        bytes(&status["fetched_metadata_bytes"]),
        bytes(&status["fetched_data_bytes"]),
        bytes(&status["fetched_frame_bytes"])
    );
    let _ = writeln!(lines, "{}", crate::peers::sources(&status["sources"]));
    if status["fetched_frame_bytes"] != 0 || status["refused_frames"] != 0 {
        let _ = writeln!(
            lines,
            "frames decoded: {} delta, {} full, to {}; {} refused",
            status["delta_frames"],
            status["full_frames"],
            bytes(&status["decoded_bytes"]),
            status["refused_frames"]
        );
    }
    for mount in list(&status["mounts"]) {
        let content = &mount["content"];
        let share = match content {
            Value::Null => format!("{} in all", bytes(&mount["release_bytes"])),
            _ => format!("{} local", local_of(&content["local"], &content["total"])),
        };
        let follows = match (text(&mount["follows"]), mount["newest"].as_str()) {
            ("pinned", _) => ", pinned".to_owned(),
            ("held", Some(newest)) => format!(", held; the newest is {newest}"),
            ("held", None) => ", held".to_owned(),
            (_, Some(newest)) if mount["release"] != newest => format!(", about to take {newest}"),
            _ => String::new(),
        };
        let stale = if mount["stale"] == true { ", STALE" } else { "" };
        let view = if mount["view"] == "erofs" { ", by EROFS" } else { "" };
        let below: Vec<&str> = list(&mount["waits_for"]).map(text).collect();
        let waits = match below.as_slice() {
            [] => String::new(),
            below => format!(", waits for what is mounted on {}", below.join(", ")),
        };
        let trouble = mount["trouble"].as_str().map(|why| format!(", in trouble: {why}"));
        let trouble = trouble.unwrap_or_default();
        let kept = match mount["kept"].as_u64() {
            None | Some(0) => String::new(),
            Some(kept) => format!(", {kept} older releases are still in use"),
        };
        let place = place(mount);
        let _ =
            writeln!(lines, "mount {place}{view}, {share}{follows}{waits}{kept}{stale}{trouble}");
    }
    for (directory, why) in status["left"].as_object().into_iter().flatten() {
        let _ = writeln!(lines, "dead mount on {directory}, about to be replaced: {}", text(why));
    }
    for relayed in list(&status["relayed"]) {
        let share = local_of(&relayed["local_bytes"], &relayed["total_bytes"]);
        let _ = writeln!(lines, "holding {}, {share} local", text(&relayed["release"]));
    }
    for swarm in list(&status["swarms"]) {
        let stale = if swarm["stale"] == true { ", STALE" } else { "" };
        let _ = writeln!(
            lines,
            "origin {}: log of {} MiB, {} peers{stale}",
            text(&swarm["origin"]),
            swarm["head_munros"],
            list(&swarm["peers"]).count()
        );
        if let Some(problem) = swarm["problem"].as_str() {
            let _ = writeln!(lines, "  refused: {problem}");
        }
        let _ = write!(lines, "{}", peers(&swarm["peers"]));
    }
    for pin in list(&cache["pins"]) {
        let _ = writeln!(lines, "pinned {}", text(pin));
    }
    lines
}

fn peers(peers: &Value) -> String {
    let mut lines = String::new();
    for peer in list(peers) {
        let rtt = peer["rtt_us"].as_u64().map(|us| format!(", {:.1} ms", us as f64 / 1000.0));
        let _ = writeln!(
            lines,
            "  peer {}: {}{}, received {}, sent {}",
            text(&peer["address"]),
            text(&peer["state"]),
            rtt.unwrap_or_default(),
            bytes(&peer["received_bytes"]),
            bytes(&peer["sent_bytes"])
        );
    }
    lines
}

pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(crate) fn bytes(value: &Value) -> HumanBytes {
    HumanBytes(value.as_u64().unwrap_or(0))
}

fn local_of(local: &Value, total: &Value) -> String {
    format!("{} of {}", bytes(local), bytes(total))
}
