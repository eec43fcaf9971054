//! One mount of the node: where it is, what it shows, how that stands.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use distd_core::manifest::Access;
use distd_core::node::{HeadNews, Swarm};
use distd_core::unit::BlockRange;
use serde_json::{Value, json};

use crate::control::MountRequest;
use crate::erofs::ErofsView;
use crate::exit::{Complaint, Exit};
use crate::fs::{Fs, Local, ReleasePlace, View, WalkError, merged, walk};
use crate::mountinfo::{FILE_SYSTEM_TYPE, mounts};
use crate::options::Prefetch;

use super::jobs::Progress;

/// Files of a release above which `status` does not work out how much of it is local.
const LOCAL_FILES_MAX: u64 = 500_000;

/// Where a mount is, and the way to the kernel's side of it.
pub(super) struct Point {
    pub(super) directory: PathBuf,
    pub(super) source: String,
    pub(super) shown: Shown,
}

/// Who answers the kernel.
pub(super) enum Shown {
    /// The node.
    Tree {
        notifier: fuser::Notifier,
        /// Device number as mount tables have it.
        device: Option<String>,
        /// Why it is not the kernel itself, where that was asked for.
        why: Option<String>,
    },
    /// The kernel, by EROFS.
    Erofs(ErofsView<Swarm>),
}

/// One mount.
pub(super) struct Mounted {
    pub(super) directory: PathBuf,
    pub(super) source: String,
    /// How it was asked for.
    pub(super) request: MountRequest,
    pub(super) swarm: Swarm,
    pub(super) fs: Arc<Fs<Swarm>>,
    /// The track, and whether the source names one release of it for good.
    pub(super) track: String,
    pub(super) pinned: bool,
    /// Stays at its release until it is let go.
    pub(super) held: AtomicBool,
    /// The kernel is done with it.
    pub(super) ended: AtomicBool,
    pub(super) shown: Shown,
    /// Held during a switch.
    pub(super) switching: Mutex<()>,
    pub(super) timeout: Duration,
    pub(super) prefetch: Prefetch,
    /// Why it does not take the newest release, where that failed.
    trouble: Mutex<Option<String>>,
    /// What is fetched for it in the background now.
    background: Mutex<Arc<Progress>>,
    /// Where the content of the release of this generation lies, once somebody asked.
    content: Mutex<Option<(u32, Vec<BlockRange>)>>,
}

impl Mounted {
    pub(super) fn new(
        point: Point,
        swarm: Swarm,
        fs: Arc<Fs<Swarm>>,
        request: &MountRequest,
    ) -> Self {
        let Point { directory, source, shown } = point;
        let timeout = fs.timeout();
        Self {
            directory,
            source,
            request: request.clone(),
            swarm,
            fs,
            track: request.wanted.track.clone(),
            pinned: request.wanted.release.is_some(),
            held: AtomicBool::new(request.options.hold),
            ended: AtomicBool::new(false),
            shown,
            switching: Mutex::default(),
            timeout,
            prefetch: request.options.prefetch,
            trouble: Mutex::default(),
            background: Mutex::default(),
            content: Mutex::default(),
        }
    }

    /// Takes note of why it does not take the newest release; `None` if nothing is wrong.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Stops what is fetched in the background, and says how what comes next stands.
    pub(super) fn restart_background(&self) -> Arc<Progress> {
        let next = Arc::new(Progress::default());
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        background.stop();
        background.clone_from(&next);
        next
    }

    /// The kernel is done with it.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.background.lock().unwrap_or_else(PoisonError::into_inner).stop();
    }

    pub(super) fn view(&self) -> Arc<View> {
        self.fs.view()
    }

    pub(super) fn describe(&self) -> Value {
        let view = self.view();
        let (by, why) = match &self.shown {
            Shown::Tree { why, .. } => ("tree", why.as_deref()),
            Shown::Erofs(_) => ("erofs", None),
        };
        json!({
            "directory": self.directory.display().to_string(),
            "source": self.source,
            "track": view.release.track,
            "release": view.release.version,
            "view": by,
            "view_why": why,
        })
    }

    /// Whether it is what is to be seen on its directory; `true` where that cannot be known.
    pub(super) fn is_visible(&self) -> bool {
        let Ok(mounts) = mounts() else { return true };
        let mut there = mounts.iter().filter(|line| line.point == self.directory);
        match &self.shown {
            Shown::Tree { .. } => there.any(|line| line.kind == FILE_SYSTEM_TYPE),
            Shown::Erofs(view) => {
                let device = view.device();
                there.any(|line| line.device == device)
            }
        }
    }

    pub(super) fn status(&self) -> Value {
        let view = self.view();
        let news = self.swarm.head_news();
        let newest = newest(&news, &self.track);
        let metadata = self.fs.local(view.release.metadata.iter().copied());
        let content = self.local_content(&view, metadata);
        let mut value = self.describe();
        value["origin"] = json!(view.origin.to_string());
        value["follows"] = json!(match (self.pinned, self.held.load(Ordering::Relaxed)) {
            (true, _) => "pinned",
            (false, true) => "held",
            (false, false) => "track",
        });
        value["newest"] = json!(newest);
        value["stale"] = json!(news.is_stale());
        value["switches"] = json!(view.generation);
        value["trouble"] = json!(*self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
        if let Shown::Erofs(view) = &self.shown {
            value["waits_for"] = json!(view.waits_for());
            value["kept"] = json!(view.kept());
            value["broken"] = json!(!view.superblock().is_alive());
        }
        value["inodes"] = json!(self.fs.remembered());
        value["release_bytes"] = json!(view.release.totals.bytes);
        value["metadata"] = json!(metadata);
        value["content"] = json!(content);
        value
    }

    /// How much of the release's content is local; `None` as long as its metadata is not, because
    /// status never waits for the network.
    fn local_content(&self, view: &View, metadata: Local) -> Option<Local> {
        Some(self.fs.local(self.content(view, metadata)?.into_iter()))
    }

    /// Where a release's content and metadata lie, under the same conditions.
    pub(super) fn ranges(&self, view: &View) -> Option<Vec<BlockRange>> {
        let metadata = self.fs.local(view.release.metadata.iter().copied());
        let content = self.content(view, metadata)?;
        let image = view.release.image.iter().map(|image| image.blocks).collect();
        Some([content, view.release.metadata.clone(), image].concat())
    }

    fn content(&self, view: &View, metadata: Local) -> Option<Vec<BlockRange>> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        if content.as_ref().is_none_or(|(generation, _)| *generation != view.generation) {
            let listed = metadata.total > 0 && metadata.local == metadata.total;
            if !listed || view.release.totals.files > LOCAL_FILES_MAX {
                return None;
            }
            let place = walk(&self.swarm, &view.release, Path::new(""), Duration::ZERO).ok()?;
            *content = Some((view.generation, place.content));
        }
        content.as_ref().map(|(_, ranges)| ranges.clone())
    }

    pub(super) fn walk(&self, below: &Path) -> Result<ReleasePlace, Complaint> {
        walk(&self.swarm, &self.view().release, below, self.timeout).map_err(not_walked)
    }

    /// What it was first used for, in order.
    pub(super) fn accesses(&self) -> Result<Vec<Access>, Complaint> {
        let Shown::Erofs(erofs) = &self.shown else { return Ok(self.fs.accesses()) };
        let superblock = erofs.superblock();
        let accessed = superblock.accessed();
        accessed.of(&self.swarm, &self.view().release, self.timeout).map_err(not_walked)
    }

    pub(super) fn pin_name(&self, below: &Path) -> String {
        let view = self.view();
        format!("{}@{}/{}", view.release.track, view.release.version, below.display())
    }

    /// The blocks without which the mount could not be made again offline.
    pub(super) fn metadata(&self) -> Vec<BlockRange> {
        let view = self.view();
        let mut ranges = view.release.metadata.clone();
        ranges.push(view.record.blocks());
        ranges.push(view.release.root_directory().node.blocks());
        ranges.extend(view.release.image.iter().map(|image| image.blocks));
        merged(ranges)
    }
}

fn not_walked(error: WalkError) -> Complaint {
    let exit = match error {
        WalkError::NoEntry { .. } => Exit::NoSuch,
        WalkError::Unavailable(_) => Exit::Unreachable,
        WalkError::Damaged { .. } | WalkError::Depth => Exit::Unverified,
    };
    Complaint::new(exit, error)
}

/// The version that a track stands at by the newest head.
fn newest(news: &HeadNews, track: &str) -> Option<String> {
    let head = &news.trusted.as_ref()?.placed.head;
    head.track(track).map(|track| track.version.clone())
}
