//! Following a track: a newer head comes, the mount takes the release that the track then stands at.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use distd_core::node::HeadNews;
use serde_json::{Value, json};

use crate::control::Answer;
use crate::erofs::{Exchange, Refusal};
use crate::exit::{Complaint, Exit};
use crate::fs::{FetchError, Stale, View};
use crate::fuse::{forget_directories, forget_stale};
use crate::mount::MountError;
use crate::mountinfo::covered;
use crate::options::Show;
use crate::target::{TargetError, fetch_release};

use super::Daemon;
use super::mounted::{Mounted, Shown};

/// How long a follower waits for news before it looks whether its mount is still there.
const WAIT: Duration = Duration::from_secs(2);
/// Pauses after a switch that failed: the first, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often a head that ran out is complained about.
const STALE_INTERVAL: Duration = Duration::from_secs(60);

/// Why a mount could not take another release; it stays at the one that it shows.
#[derive(Debug, thiserror::Error)]
pub(super) enum SwitchError {
    /// The release.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The directories that the switch goes through.
    #[error(transparent)]
    Metadata(#[from] Arc<FetchError>),
    /// The mount of the new release.
    #[error(transparent)]
    Erofs(#[from] Refusal),
    /// The same, by the node itself.
    #[error(transparent)]
    Tree(#[from] MountError),
    /// A thread for it.
    #[error("no thread for the mount: {0}")]
    Thread(#[from] io::Error),
}

impl From<SwitchError> for Complaint {
    fn from(error: SwitchError) -> Self {
        match error {
            SwitchError::Target(error) => error.into(),
            SwitchError::Metadata(error) => Self::new(Exit::Unreachable, error),
            SwitchError::Erofs(error) => error.into(),
            SwitchError::Tree(error) => error.into(),
            SwitchError::Thread(_) => Self::failure(error),
        }
    }
}

/// Starts the thread that has a mount follow its track, and mends what it lies on; it ends with the mount.
pub(super) fn start(daemon: &Arc<Daemon>, mounted: &Arc<Mounted>) -> io::Result<()> {
    if mounted.pinned && matches!(mounted.shown, Shown::Tree { .. }) {
        return Ok(());
    }
    let (daemon, mounted) = (Arc::clone(daemon), Arc::clone(mounted));
    let follow = move || follow(&daemon, &mounted);
    std::thread::Builder::new().name("follow".into()).spawn(follow).map(drop)
}

fn follow(daemon: &Arc<Daemon>, mounted: &Arc<Mounted>) {
    let (mut known, mut pause) = (0, Duration::ZERO);
    let mut stale_said: Option<Instant> = None;
    while !mounted.ended.load(Ordering::Relaxed) {
        if mounted.pinned {
            std::thread::sleep(WAIT);
        } else if pause.is_zero() {
            let news = mounted.swarm.wait_newer_head(known, WAIT);
            complain_when_stale(mounted, &news, &mut stale_said);
            known = news.trusted.map_or(0, |trusted| trusted.placed.head.munros);
        } else {
            std::thread::sleep(pause.min(WAIT));
        }
        let mended = daemon.mend(mounted).map_err(SwitchError::from);
        let outcome = if mounted.pinned {
            mended.map(|()| false)
        } else {
            mended.and_then(|()| mounted.catch_up(daemon, false))
        };
        mounted.set_trouble(outcome.as_ref().err().map(ToString::to_string));
        pause = match outcome {
            Ok(_) => Duration::ZERO,
            Err(error) => {
                let directory = mounted.directory.display();
                tracing::warn!(%error, "{directory} cannot take the newest release yet");
                (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX)
            }
        };
    }
}

/// FAULTS H2: a head that ran out hides newer releases, or the clock is wrong; what is mounted goes on.
fn complain_when_stale(mounted: &Mounted, news: &HeadNews, said: &mut Option<Instant>) {
    if news.is_stale() && said.is_none_or(|at| at.elapsed() >= STALE_INTERVAL) {
        *said = Some(Instant::now());
        tracing::warn!(
            origin = %mounted.swarm.origin(),
            "STALE: the origin's newest statement ran out; newer releases may exist, or this \
             machine's clock is wrong"
        );
    }
}

impl Mounted {
    /// Takes the release that the track stands at, if that is another one; whether it was. A mount that
    /// is held does so only if it is `asked` to.
    fn catch_up(self: &Arc<Self>, daemon: &Arc<Daemon>, asked: bool) -> Result<bool, SwitchError> {
        let _one_at_a_time = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        if self.held.load(Ordering::Relaxed) && !asked {
            return Ok(false);
        }
        let before = self.view();
        let news = self.swarm.head_news();
        let track = news.trusted.as_ref().and_then(|head| head.placed.head.track(&self.track));
        let Some(record) = track.map(|track| track.release) else {
            // A head without the track names no other release of it: this one stays.
            return Ok(false);
        };
        if record == before.record {
            return Ok(false);
        }
        let release = fetch_release(&self.swarm, record, Instant::now() + self.timeout)?;
        let generation = before.generation + 1;
        let view = Arc::new(View { generation, origin: before.origin, record, release });
        match &self.shown {
            Shown::Tree { notifier, device, .. } => {
                self.fs.prepare(&view, self.timeout)?;
                let covered = device.as_deref().map(covered).unwrap_or_default();
                let forget = |stale: &Stale| forget_stale(notifier, stale);
                let stale = self.fs.switch(&view, &covered, self.timeout, forget)?;
                forget_directories(notifier, &stale);
            }
            Shown::Erofs(erofs) => {
                let image = view.release.image.as_ref().ok_or(Refusal::NoImage);
                match image.and_then(|image| erofs.replace(image)) {
                    Ok(Exchange::Done) => self.fs.exchange(&view),
                    Ok(Exchange::Waits | Exchange::Gone) => return Ok(false),
                    Err(refusal)
                        if refusal.is_of_release() && self.request.options.view == Show::Auto =>
                    {
                        return daemon.show_by_node(self, view, &refusal);
                    }
                    Err(refusal) => return Err(refusal.into()),
                }
            }
        }
        tracing::info!(
            "{} shows {} of {} instead of {}",
            self.directory.display(),
            view.release.version,
            self.track,
            before.release.version
        );
        self.start_prefetch(Some(before));
        Ok(true)
    }

    /// Stays at its release until it is let go.
    pub(super) fn hold(&self) -> Answer {
        self.refuse_if_pinned()?;
        self.held.store(true, Ordering::Relaxed);
        // A switch that is under way comes first, so that what is shown now is what is held.
        drop(self.switching.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(self.held_value(false))
    }

    /// Takes the newest release now; follows from then on, unless this is for `once`.
    pub(super) fn let_go(self: &Arc<Self>, daemon: &Arc<Daemon>, once: bool) -> Answer {
        self.refuse_if_pinned()?;
        let switched = self.catch_up(daemon, true)?;
        if !once {
            self.held.store(false, Ordering::Relaxed);
        }
        Ok(self.held_value(switched))
    }

    fn held_value(&self, switched: bool) -> Value {
        let mut value = self.describe();
        value["held"] = json!(self.held.load(Ordering::Relaxed));
        value["switched"] = json!(switched);
        value
    }

    fn refuse_if_pinned(&self) -> Result<(), Complaint> {
        if self.pinned {
            let text = format!(
                "{} on {} is one release for good: mount the track without '@' to follow it",
                self.source,
                self.directory.display()
            );
            return Err(Complaint::usage(text));
        }
        Ok(())
    }
}
