//! `doctor`: what keeps distd from working on this machine, and what to do about it.
//!
//! Looks at devices, the mount table, the cache's directory and its node's control socket; never at a
//! mount itself, which may wait for a network that is gone.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distd_core::node::unix_now_s;
use distd_core::unit::HumanBytes;
use serde::Serialize;
use serde_json::Value;

use crate::control::{self, CallError, Request};
use crate::erofs::{probe, record};
use crate::mount;
use crate::mountinfo::{FILE_SYSTEM_TYPE, mounts};

/// How long the node may take to say how it stands.
const PATIENCE: Duration = Duration::from_secs(10);
/// Below this much free space a cache keeps nothing new, in bytes.
const FREE_BYTES_MIN: u64 = 512 << 20;
/// Where mount(8) looks for what mounts `fuse.distd`.
const HELPER: &str = "/sbin/mount.fuse.distd";

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub what: String,
    /// What to do; empty where there is nothing to do.
    pub advice: String,
}

fn fine(what: impl Into<String>) -> Finding {
    Finding { ok: true, what: what.into(), advice: String::new() }
}

fn wrong(what: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { ok: false, what: what.into(), advice: advice.into() }
}

/// Looks at everything that a mount with this cache needs.
pub fn examine(cache: &Path) -> Vec<Finding> {
    let mut findings = vec![device(), helper(), clock()];
    findings.extend(fusermount());
    findings.extend(erofs());
    findings.extend(kernel_deadline());
    findings.extend(directory(cache));
    let status = node(cache, &mut findings);
    findings.extend(mounts_without_node(status.is_some()));
    for swarm in status.iter().flat_map(|status| list(&status["swarms"])) {
        findings.extend(of_swarm(swarm));
    }
    findings
}

fn device() -> Finding {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => fine("/dev/fuse can be opened"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => wrong(
            format!("/dev/fuse: {error}"),
            "mount as root, or let this user open it: chmod 0666 /dev/fuse",
        ),
        Err(error) => wrong(
            format!("/dev/fuse: {error}"),
            "modprobe fuse; a container needs the device given to it (--device /dev/fuse)",
        ),
    }
}

fn helper() -> Finding {
    let Ok(program) = fs::canonicalize(HELPER) else {
        let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("distd-fs"));
        return wrong(
            format!("there is no {HELPER}: 'mount -t fuse.distd' and fstab do not work"),
            format!("ln -s {} {HELPER}", own.display()),
        );
    };
    fine(format!("{HELPER} is {}", program.display()))
}

fn clock() -> Finding {
    if unix_now_s() == 0 {
        return wrong(
            "the clock was never set: how fresh a release is cannot be told",
            "set it, or start NTP",
        );
    }
    fine("the clock is set")
}

/// Users mount and unmount by the set-uid helper.
fn fusermount() -> Option<Finding> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    let path = std::env::var_os("PATH")?;
    let found =
        std::env::split_paths(&path).map(|dir| dir.join("fusermount3")).find(|p| p.exists());
    Some(match found {
        Some(program) => fine(format!("{} mounts for users", program.display())),
        None => wrong("there is no fusermount3: users cannot mount", "install the package fuse3"),
    })
}

/// Whether mounts can be the kernel's own affair. Nothing is wrong where they cannot.
fn erofs() -> Option<Finding> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    Some(fine(match probe::verdict() {
        Ok(()) => "the kernel can show releases by EROFS (view=erofs)".to_owned(),
        Err(refusal) => format!("releases are shown by the node (view=tree) only: {refusal}"),
    }))
}

fn kernel_deadline() -> Option<Finding> {
    let seconds = mount::kernel_timeout_s()?;
    Some(fine(format!(
        "the kernel ends a mount that leaves a request unanswered for {seconds} s: timeouts stay below"
    )))
}

fn directory(cache: &Path) -> Vec<Finding> {
    let shown = cache.display();
    let metadata = match fs::symlink_metadata(cache) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return vec![fine(format!("the cache {shown} is not there yet: a mount makes it"))];
        }
        Err(error) => {
            return vec![wrong(format!("the cache {shown}: {error}"), "name another: --cache DIR")];
        }
    };
    let mut findings = Vec::new();
    if !metadata.is_dir() {
        findings.push(wrong(
            format!("the cache {shown} is no directory"),
            "remove it, or name another: --cache DIR",
        ));
    } else if metadata.uid() != rustix::process::geteuid().as_raw() {
        let owner = metadata.uid();
        findings.push(wrong(
            format!("the cache {shown} belongs to user {owner}"),
            "run as that user, chown it, or name another: --cache DIR",
        ));
    } else if metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o7777;
        findings.push(wrong(
            format!("the cache {shown} has mode {mode:04o}: others can reach into it"),
            format!("chmod 700 {shown}"),
        ));
    } else {
        findings.push(fine(format!("the cache {shown} is this user's alone")));
    }
    if let Ok(disk) = rustix::fs::statvfs(cache) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        findings.push(if free < FREE_BYTES_MIN {
            wrong(
                format!(
                    "the disk of {shown} has only {} free: nothing more is cached",
                    HumanBytes(free)
                ),
                "make room, or 'distd-fs cache limit BYTES'",
            )
        } else {
            fine(format!("the disk of {shown} has {} free", HumanBytes(free)))
        });
    }
    findings
}

/// Asks the node; what it says.
fn node(cache: &Path, findings: &mut Vec<Finding>) -> Option<Value> {
    match control::call(cache, &Request::Status, PATIENCE) {
        Ok(Ok(status)) => {
            let count = list(&status["mounts"]).count();
            findings
                .push(fine(format!("the node {} answers: {count} mounts", status["node"]["pid"])));
            Some(status)
        }
        Ok(Err(complaint)) => {
            findings.push(wrong(
                format!("the node of {}: {complaint}", cache.display()),
                "see its node.log",
            ));
            None
        }
        Err(CallError::NoNode { .. }) => {
            findings.push(fine(format!("no node runs for {}", cache.display())));
            None
        }
        Err(error) => {
            findings.push(wrong(
                error.to_string(),
                format!(
                    "see {}/node.log; 'distd-fs umount --force DIR' frees who waits",
                    cache.display()
                ),
            ));
            None
        }
    }
}

/// Mounts that nobody can serve, because no process is left that could.
fn mounts_without_node(node_runs: bool) -> Vec<Finding> {
    let lines = mounts().unwrap_or_default();
    let points: Vec<PathBuf> = lines
        .into_iter()
        .filter(|line| line.kind == FILE_SYSTEM_TYPE || record::is_view(line))
        .map(|line| line.point)
        .collect();
    if points.is_empty() || node_runs || other_nodes_run() {
        return Vec::new();
    }
    let dead = |point: PathBuf| {
        let shown = point.display();
        wrong(
            format!("the mount on {shown} is dead: its node is gone"),
            format!("distd-fs umount --lazy {shown}, and mount again (its cache is still good)"),
        )
    };
    points.into_iter().map(dead).collect()
}

/// Whether any process of this program runs besides this one.
fn other_nodes_run() -> bool {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| *id != own).any(|id| {
        let read = |name: &str| fs::read(format!("/proc/{id}/{name}")).unwrap_or_default();
        // One that has ended and that nobody has waited for has a name, and no words any more.
        read("comm").trim_ascii() == b"distd-fs" && !read("cmdline").is_empty()
    })
}

fn of_swarm(swarm: &Value) -> Vec<Finding> {
    let origin = swarm["origin"].as_str().unwrap_or_default();
    let origin = origin.get(..12).unwrap_or(origin);
    let mut findings = Vec::new();
    let peers: Vec<&Value> = list(&swarm["peers"]).collect();
    let open = peers.iter().filter(|peer| peer["state"] == "open").count();
    if open > 0 {
        findings.push(fine(format!("origin {origin}: {open} peers are connected")));
    } else {
        let addresses = peers.iter().filter_map(|peer| peer["address"].as_str());
        let addresses: Vec<&str> = addresses.take(4).collect();
        findings.push(wrong(
            format!("origin {origin}: no peer answers; asked {}", addresses.join(", ")),
            "does serve run there, and does every firewall between let UDP through, both ways?",
        ));
    }
    if swarm["stale"] == true {
        findings.push(wrong(
            format!("origin {origin}: its newest statement ran out; newer releases may be hidden"),
            "does the origin's serve run, and is the clock right, here and there?",
        ));
    }
    if let Some(problem) = swarm["problem"].as_str() {
        findings
            .push(wrong(format!("origin {origin}: {problem}"), "ask the origin's administrator"));
    }
    if swarm["uncached_runs"].as_u64().is_some_and(|runs| runs > 0) {
        findings.push(wrong(
            format!("origin {origin}: what is fetched is not kept"),
            "the disk is full or the cache's limit too low: make room, or 'distd-fs cache limit BYTES'",
        ));
    }
    findings
}

/// The findings as lines for people.
pub fn lines(findings: &[Finding]) -> String {
    let line = |finding: &Finding| match (finding.ok, finding.advice.is_empty()) {
        (true, _) => format!("ok     {}\n", finding.what),
        (false, true) => format!("WRONG  {}\n", finding.what),
        (false, false) => format!("WRONG  {}\n       do: {}\n", finding.what, finding.advice),
    };
    findings.iter().map(line).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn complaints(swarm: &Value) -> Vec<String> {
        of_swarm(swarm).into_iter().filter(|f| !f.ok).map(|f| f.what).collect()
    }

    #[test]
    fn a_swarm_is_well_with_an_open_peer_and_a_fresh_head() {
        let peer = |state| json!({ "address": "10.0.0.1:7574", "state": state });
        let well = json!({ "origin": "00".repeat(32), "peers": [peer("open")], "stale": false });
        assert_eq!(complaints(&well), [""; 0]);
        let ill = json!({
            "origin": "00".repeat(32), "peers": [peer("opening")], "stale": true,
            "problem": "fork", "uncached_runs": 3,
        });
        let found = complaints(&ill);
        assert_eq!(found.len(), 4);
        assert!(found[0].contains("10.0.0.1:7574"), "{found:?}");
    }

    #[test]
    fn a_cache_that_others_reach_is_found() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = tempfile::tempdir().expect("a directory");
        let cache = scratch.path().join("cache");
        assert!(directory(&cache)[0].ok, "not there yet");
        fs::create_dir(&cache).expect("made");
        for (mode, ok) in [(0o700, true), (0o755, false)] {
            fs::set_permissions(&cache, fs::Permissions::from_mode(mode)).expect("changed");
            assert_eq!(directory(&cache)[0].ok, ok, "{mode:o}");
        }
        let file = scratch.path().join("file");
        fs::write(&file, "x").expect("written");
        assert!(!directory(&file)[0].ok);
    }
}
