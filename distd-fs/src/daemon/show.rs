//! How a mount is shown: by the node itself, or by the kernel's EROFS where that can be.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use distd_core::node::Swarm;
use rustix::process::geteuid;

use crate::erofs::record::{self, Record};
use crate::erofs::{ErofsView, Exchange, Flags, Hidden, Refusal, Showing, Superblock, probe};
use crate::exit::Complaint;
use crate::fs::{Fs, View};
use crate::fuse::Adapter;
use crate::mount;
use crate::mountinfo::{FILE_SYSTEM_TYPE, MountLine, mounted_on};
use crate::options::{Access, MountOptions, Show};

use super::Daemon;
use super::follow::{self, SwitchError};
use super::mounted::{Mounted, Point, Shown};

/// A FUSE session that has to be run.
type Session = fuser::Session<Adapter<Swarm>>;

/// Pauses between attempts to replace what a dead node left: the first, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What is to be shown, and where.
pub(super) struct Wish<'a> {
    pub(super) fs: &'a Arc<Fs<Swarm>>,
    pub(super) directory: &'a Path,
    pub(super) source: &'a str,
    pub(super) options: &'a MountOptions,
    /// How long a read waits for the network.
    pub(super) timeout: Duration,
    /// Device number of a dead mount there, which is replaced.
    pub(super) left: Option<&'a str>,
}

impl Daemon {
    /// Mounts on the directory, in the view that is asked for or, if that is left to the node, in the
    /// erofs view where it can be had.
    pub(super) fn show(&self, wish: &Wish<'_>) -> Result<(Shown, Option<Session>), Complaint> {
        let Wish { fs, directory, source, options, .. } = *wish;
        let why = match options.view {
            Show::Tree => None,
            Show::Erofs => return Ok((Shown::Erofs(self.show_by_erofs(wish)?), None)),
            Show::Auto => match self.show_by_erofs(wish) {
                Ok(view) => return Ok((Shown::Erofs(view), None)),
                Err(refusal) => Some(refusal.to_string()),
            },
        };
        if let Some(why) = &why {
            tracing::info!("{} is shown by the node, not by EROFS: {why}", directory.display());
        }
        let fs = Arc::clone(fs);
        let session = match wish.left {
            None => mount::mount(fs, directory, source, options)?,
            Some(left) => mount::mount_instead(fs, directory, source, options, left)?,
        };
        Ok((shown_by_node(&session, directory, why), Some(session)))
    }

    fn show_by_erofs(&self, wish: &Wish<'_>) -> Result<ErofsView<Swarm>, Refusal> {
        let Wish { fs, directory, source, options, timeout, left } = *wish;
        if !geteuid().is_root() {
            return Err(Refusal::NotRoot);
        }
        // Who asks for EROFS by name asks for what it does.
        if options.view == Show::Auto && options.access != Access::All {
            return Err(Refusal::Access);
        }
        let view = fs.view();
        let image = view.release.image.as_ref().ok_or(Refusal::NoImage)?;
        probe::verdict()?;
        let superblock = self.superblock(fs.blocks(), timeout)?;
        let flags = Flags { suid: options.suid, dev: options.dev, exec: options.exec };
        ErofsView::mount(&superblock, &Showing { directory, source, flags, left }, image)
    }

    /// The hidden superblock of a log: one for all mounts of it that wait equally long, so that what they
    /// have in common is in the kernel's cache once.
    fn superblock(
        &self,
        swarm: &Arc<Swarm>,
        timeout: Duration,
    ) -> Result<Arc<Superblock<Swarm>>, Refusal> {
        {
            let state = self.state();
            let mut mounts = state.mounts.values().chain(&state.detached);
            let known = mounts.find_map(|mounted| match &mounted.shown {
                Shown::Erofs(view) if mounted.swarm.origin() == swarm.origin() => {
                    let serves = |superblock: &Arc<Superblock<Swarm>>| {
                        superblock.is_alive() && superblock.timeout() == timeout
                    };
                    Some(view.superblock()).filter(serves)
                }
                _ => None,
            });
            if let Some(superblock) = known {
                return Ok(superblock);
            }
        }
        let label = format!("the log of {}", swarm.origin());
        let hidden = Hidden::new(Arc::clone(swarm), timeout, label);
        let hidden = hidden.map_err(Refusal::Superblock)?;
        Ok(Arc::new(Superblock::open(Arc::new(hidden)).map_err(Refusal::Superblock)?))
    }

    /// Shows a mount's release over a new superblock if the one that it lies on has ended: all that is not
    /// in the kernel's caches would be an error for good.
    pub(super) fn mend(&self, mounted: &Mounted) -> Result<(), Refusal> {
        let Shown::Erofs(erofs) = &mounted.shown else { return Ok(()) };
        if erofs.superblock().is_alive() {
            return Ok(());
        }
        // Of several that lie on one, the first makes the new one for all.
        let _one_at_a_time = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        let _no_switch = mounted.switching.lock().unwrap_or_else(PoisonError::into_inner);
        if erofs.superblock().is_alive() {
            return Ok(());
        }
        if erofs.look()? == Exchange::Waits {
            return Err(Refusal::Covered(erofs.waits_for()));
        }
        let view = mounted.view();
        let image = view.release.image.as_ref().ok_or(Refusal::NoImage)?;
        let superblock = self.superblock(mounted.fs.blocks(), mounted.timeout)?;
        if erofs.renew(&superblock, image)? == Exchange::Done {
            Self::note(mounted, &self.cache);
            let directory = mounted.directory.display();
            tracing::warn!("{directory} was mounted anew: its files had broken");
        }
        Ok(())
    }

    /// Has the node show a release itself in the place of a mount in the erofs view, for good; whether it does.
    pub(super) fn show_by_node(
        self: &Arc<Self>,
        old: &Arc<Mounted>,
        view: Arc<View>,
        why: &Refusal,
    ) -> Result<bool, SwitchError> {
        let Shown::Erofs(erofs) = &old.shown else { return Ok(false) };
        if erofs.look()? != Exchange::Done {
            return Ok(false);
        }
        // Where nothing uses the old mount, it ends before the new one is known.
        self.stay();
        let outcome = self.exchange(old, &erofs.device(), view, why);
        self.unstay();
        outcome.map(|()| true)
    }

    fn exchange(
        self: &Arc<Self>,
        old: &Arc<Mounted>,
        device: &str,
        view: Arc<View>,
        why: &Refusal,
    ) -> Result<(), SwitchError> {
        let before = old.view();
        let (directory, source) = (old.directory.clone(), old.source.clone());
        let fs = Fs::new(Arc::clone(old.fs.blocks()), view, old.timeout);
        let options = &old.request.options;
        let session = mount::mount_instead(Arc::clone(&fs), &directory, &source, options, device)?;
        tracing::info!("{} is shown by the node from now on: {why}", directory.display());
        let shown = shown_by_node(&session, &directory, Some(why.to_string()));
        let point = Point { directory, source, shown };
        let next = Arc::new(Mounted::new(point, old.swarm.clone(), fs, &old.request));
        next.held.store(old.held.load(Ordering::Relaxed), Ordering::Relaxed);
        old.end();
        {
            let mut state = self.state();
            let known = state.sessions_of(old);
            let former = state.mounts.insert(next.directory.clone(), Arc::clone(&next));
            state.detached.extend(former.filter(|_| known));
        }
        Self::note(&next, &self.cache);
        self.run_session(session, &next)?;
        follow::start(self, &next)?;
        next.start_prefetch(Some(before));
        Ok(())
    }

    /// Has a mount in the erofs view end with the kernel's use of it.
    pub(super) fn watch_view(self: &Arc<Self>, mounted: &Arc<Mounted>) {
        let Shown::Erofs(view) = &mounted.shown else { return };
        let (daemon, gone) = (Arc::clone(self), Arc::clone(mounted));
        view.on_end(move || daemon.on_unmounted(&gone));
    }

    /// Has others know of a mount, and what to do should the node be killed.
    pub(super) fn note(mounted: &Mounted, cache: &Path) {
        let connection = match &mounted.shown {
            Shown::Erofs(view) => view.superblock().connection(),
            Shown::Tree { .. } if geteuid().is_root() => 0,
            Shown::Tree { .. } => return,
        };
        let record = Record { cache: cache.into(), request: mounted.request.clone(), connection };
        if let Err(error) = record.write() {
            tracing::warn!(%error, "no record of the mount: after a crash it has to be unmounted by hand");
        }
    }

    /// A dead mount that a node left on a directory on which this one has none.
    pub(super) fn left_on(&self, directory: &Path) -> Option<MountLine> {
        let line = mounted_on(directory).ok().flatten()?;
        let record = Record::of(directory);
        let ours = record.is_none_or(|record| PathBuf::from(record.cache) == self.cache);
        let dead = if record::is_view(&line) {
            ours || !record::is_alive(directory, &self.cache)
        } else {
            line.kind == FILE_SYSTEM_TYPE && ours && mount::is_disconnected(directory)
        };
        dead.then_some(line)
    }

    /// Puts right what a node of this cache left mounted when it was killed: the kernel goes on to show it,
    /// with errors for all that it has not in its caches.
    pub fn revive(self: &Arc<Self>) {
        for record in Record::of_cache(&self.cache) {
            let directory = record.directory();
            let left = self.left_on(&directory);
            if left.is_none_or(|line| line.source != record.request.source.as_str()) {
                Record::remove(&directory);
                continue;
            }
            let daemon = Arc::clone(self);
            // Counted before the thread runs: else the node may leave for lack of mounts.
            daemon.stay();
            let again = move || {
                daemon.replace_left(&record);
                daemon.state().left.remove(&directory);
                daemon.unstay();
            };
            if let Err(error) = std::thread::Builder::new().name("revive".into()).spawn(again) {
                tracing::warn!(%error, "no thread to mount again");
                self.unstay();
            }
        }
    }

    /// Tries until it is done, or nothing is left to replace.
    fn replace_left(self: &Arc<Self>, record: &Record) {
        let (directory, mut pause) = (record.directory(), PAUSE_MIN);
        let shown = directory.display().to_string();
        while !self.is_leaving() && self.left_on(&directory).is_some() {
            let error = match self.mount(&record.request) {
                Some(Err(error)) => error.to_string(),
                Some(Ok(_)) => return tracing::info!("mounted again on {shown}, after a crash"),
                None => return,
            };
            let said = self.state().left.insert(directory.clone(), error.clone());
            if said.as_ref() != Some(&error) {
                tracing::warn!("cannot mount on {shown} again yet: {error}");
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn shown_by_node(session: &Session, directory: &Path, why: Option<String>) -> Shown {
    let device = mounted_on(directory).ok().flatten().map(|mount| mount.device);
    Shown::Tree { notifier: session.notifier(), device, why }
}
