//! `relay`: a node without a mount. It serves what its cache holds to everybody, and holds the releases
//! that it is told to.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::Release;
use distd_core::node::{Purpose, Swarm};
use distd_core::store::StateError;
use distd_core::unit::{BlockRange, ByteRange, HumanBytes};
use sd_notify::NotifyState;
use serde_json::json;

use crate::daemon::{Daemon, DaemonOptions};
use crate::exit::Complaint;
use crate::fs::{WalkError, merged, walk};
use crate::launch;
use crate::target::Target;

/// How long a release's record, and each of its directories, is waited for in one attempt.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Without progress for so long, what is missing is asked for again.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// How the names of a relay's pins begin.
pub(crate) const PIN_PREFIX: &str = "relay ";
/// Pause after a failed attempt.
const PAUSE: Duration = Duration::from_secs(5);

/// What to relay.
#[derive(Debug)]
pub struct RelayOptions {
    /// The node.
    pub daemon: DaemonOptions,
    /// Whose swarms to join, and by which addresses.
    pub targets: Vec<Target>,
    /// Whether the releases that the targets name are fetched whole and kept, a track's next ones too.
    pub pin: bool,
}

/// Relays until told to stop by a signal.
pub fn run(options: RelayOptions) -> Result<(), Complaint> {
    let daemon = launch::open(&options.daemon)?;
    daemon.stay();
    let started = start(&daemon, options.targets, options.pin);
    if started.is_ok() {
        // Nobody to tell where no service manager runs.
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        tracing::info!("relaying at UDP {}", daemon.listen_address());
        daemon.wait_end();
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
    }
    launch::leave(&daemon, &options.daemon.cache);
    started
}

fn start(daemon: &Arc<Daemon>, targets: Vec<Target>, pin: bool) -> Result<(), Complaint> {
    for target in targets {
        let swarm = daemon.join(&target)?;
        if pin {
            let keeper = Keeper { daemon: Arc::clone(daemon), swarm, target };
            let spawned = thread::Builder::new().name("relay".into()).spawn(move || keeper.run());
            spawned.map_err(Complaint::failure)?;
        }
    }
    Ok(())
}

/// Keeps one release, or a track's newest.
struct Keeper {
    daemon: Arc<Daemon>,
    swarm: Swarm,
    target: Target,
}

/// How an attempt to hold a release ended.
#[derive(PartialEq, Eq)]
enum Held {
    Whole,
    /// The track may stand at another one.
    Outdated,
}

impl Keeper {
    fn run(&self) {
        let mut held = None;
        while !self.daemon.is_leaving() {
            let munros = self.head_munros();
            match self.target.release(&self.swarm, PATIENCE, true) {
                Ok((record, release)) if held != Some(record) => {
                    match self.hold(record, &release, munros) {
                        Ok(Held::Whole) => held = Some(record),
                        Ok(Held::Outdated) => continue,
                        Err(error) => self.complain(&error),
                    }
                }
                Ok(_) => {}
                Err(error) => self.complain(&error),
            }
            if held.is_some() {
                self.swarm.wait_newer_head(munros, PATIENCE);
            } else {
                self.swarm.wait_newer_head(munros, PAUSE);
            }
        }
    }

    fn complain(&self, error: &dyn std::fmt::Display) {
        if !self.daemon.is_leaving() {
            tracing::warn!(%error, track = self.target.track, "cannot hold the release yet; trying on");
        }
    }

    fn head_munros(&self) -> u64 {
        self.swarm.head_news().trusted.map_or(0, |trusted| trusted.placed.head.munros)
    }

    /// Fetches a release and pins it; what was pinned before stays until this one is whole.
    fn hold(&self, record: ByteRange, release: &Release, munros: u64) -> Result<Held, HoldError> {
        let ranges = self.ranges(record, release)?;
        let (log, name) = (self.swarm.cached(), self.pin_name());
        let before = log.pins().remove(&name).unwrap_or_default();
        let both = merged([before, ranges.clone()].concat());
        log.pin(&name, &both)?;
        let label = format!("{}@{}", release.track, release.version);
        let total: u64 = ranges.iter().map(|range| range.byte_len()).sum();
        let (mut local, mut moved_at, mut asked) = (0, Instant::now(), false);
        loop {
            let now: u64 = ranges.iter().map(|range| self.swarm.held_blocks(*range)).sum();
            let now = now * BLOCK_BYTES;
            if now != local {
                (local, moved_at) = (now, Instant::now());
            }
            self.daemon.note_relayed(
                &name,
                json!({ "release": label, "local_bytes": local, "total_bytes": total }),
            );
            if local == total {
                break;
            }
            let stalled = asked && moved_at.elapsed() >= STALLED_AFTER;
            if stalled {
                tracing::warn!(
                    "{label}: {} of {} are here and nothing comes; asking again",
                    HumanBytes(local),
                    HumanBytes(total)
                );
            }
            if stalled || !asked {
                (asked, moved_at) = (true, Instant::now());
                let missing = ranges.iter().flat_map(|range| log.missing(*range)).collect();
                self.swarm.prefetch(missing, Purpose::Data);
            }
            self.swarm.wait_newer_head(munros, LOOK_EVERY);
            if self.daemon.is_leaving() || self.is_outdated(munros) {
                return Ok(Held::Outdated);
            }
        }
        log.pin(&name, &ranges)?;
        tracing::info!("{label} is held whole: {}", HumanBytes(total));
        Ok(Held::Whole)
    }

    fn is_outdated(&self, munros: u64) -> bool {
        self.target.release.is_none() && self.head_munros() > munros
    }

    /// Everything without which another node could not mount the release and read it.
    fn ranges(&self, record: ByteRange, release: &Release) -> Result<Vec<BlockRange>, WalkError> {
        let place = walk(&self.swarm, release, Path::new(""), PATIENCE)?;
        let mut ranges = [place.content, place.metadata, release.metadata.clone()].concat();
        ranges.push(record.blocks());
        ranges.push(release.root_directory().node.blocks());
        if let Some(trusted) = self.swarm.head_news().trusted {
            ranges.push(trusted.placed.head.catalog.blocks());
        }
        Ok(merged(ranges))
    }

    /// A track's pin moves from release to release; that of one release stays.
    fn pin_name(&self) -> String {
        match &self.target.release {
            Some(release) => format!("{PIN_PREFIX}{}@{release}", self.target.track),
            None => format!("{PIN_PREFIX}{}@newest", self.target.track),
        }
    }
}

/// Why a release is not held yet.
#[derive(Debug, thiserror::Error)]
enum HoldError {
    /// Its directories.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The list of pins.
    #[error("the cache cannot pin it: {0}")]
    Pin(#[from] StateError),
}
