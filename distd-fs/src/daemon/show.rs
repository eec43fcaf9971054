//! How a mount is shown: by the node itself, or by the kernel's EROFS where that can be.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use distd_core::node::Swarm;
use rustix::process::geteuid;

use crate::control::MountRequest;
use crate::erofs::record::{self, Record};
use crate::erofs::{ErofsView, Flags, Hidden, Refusal, Superblock, probe};
use crate::exit::Complaint;
use crate::fs::Fs;
use crate::fuse::Adapter;
use crate::mount;
use crate::mountinfo::mounted_on;
use crate::options::{Access, MountOptions, Show};

use super::Daemon;
use super::mounted::{Mounted, Shown};

/// A FUSE session that has to be run.
type Session = fuser::Session<Adapter<Swarm>>;

impl Daemon {
    /// Mounts on the directory, in the view that is asked for or, if that is left to the node, in the
    /// erofs view where it can be had.
    pub(super) fn show(
        &self,
        fs: &Arc<Fs<Swarm>>,
        directory: &Path,
        source: &str,
        options: &MountOptions,
        timeout: Duration,
    ) -> Result<(Shown, Option<Session>), Complaint> {
        let by_erofs = || self.show_by_erofs(fs, directory, source, options, timeout);
        let why = match options.view {
            Show::Tree => None,
            Show::Erofs => return Ok((Shown::Erofs(by_erofs()?), None)),
            Show::Auto => match by_erofs() {
                Ok(view) => return Ok((Shown::Erofs(view), None)),
                Err(refusal) => Some(refusal.to_string()),
            },
        };
        if let Some(why) = &why {
            tracing::info!("{} is shown by the node, not by EROFS: {why}", directory.display());
        }
        let session = mount::mount(Arc::clone(fs), directory, source, options)?;
        let device = mounted_on(directory).ok().flatten().map(|mount| mount.device);
        Ok((Shown::Tree { notifier: session.notifier(), device, why }, Some(session)))
    }

    fn show_by_erofs(
        &self,
        fs: &Arc<Fs<Swarm>>,
        directory: &Path,
        source: &str,
        options: &MountOptions,
        timeout: Duration,
    ) -> Result<ErofsView<Swarm>, Refusal> {
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
        ErofsView::mount(&superblock, directory, source, flags, image)
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
                    let serves = |superblock: &&Arc<Superblock<Swarm>>| {
                        superblock.is_alive() && superblock.timeout() == timeout
                    };
                    Some(view.superblock()).filter(serves).cloned()
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

    /// Has a mount in the erofs view end with the kernel's use of it, and known to others until then.
    pub(super) fn watch_view(self: &Arc<Self>, request: &MountRequest, mounted: &Arc<Mounted>) {
        let Shown::Erofs(view) = &mounted.shown else { return };
        let record = Record {
            cache: self.cache.as_path().into(),
            request: request.clone(),
            connection: view.superblock().connection(),
        };
        if let Err(error) = record.write() {
            tracing::warn!(%error, "no record of the mount: after a crash it has to be unmounted by hand");
        }
        let (daemon, gone) = (Arc::clone(self), Arc::clone(mounted));
        view.on_end(move || {
            if daemon.stands(&gone) {
                Record::remove(&gone.directory);
            }
            daemon.on_unmounted(&gone);
        });
    }

    /// Puts right what a node of this cache left mounted when it was killed: the kernel goes on to show it,
    /// with errors for all that it has not in its caches.
    pub fn revive(self: &Arc<Self>) {
        for record in Record::of_cache(&self.cache) {
            let directory = record.directory();
            let left = mounted_on(&directory).ok().flatten();
            let left = left.filter(record::is_view);
            if left.is_none_or(|line| line.source != record.request.source.as_str()) {
                Record::remove(&directory);
                continue;
            }
            let daemon = Arc::clone(self);
            // Counted before the thread runs: else the node may leave for lack of mounts.
            daemon.stay();
            let again = move || {
                let shown = directory.display();
                match mount::detach(&directory) {
                    Ok(()) => match daemon.mount(&record.request) {
                        Some(Err(error)) => {
                            tracing::warn!("cannot mount on {shown} again: {error}");
                        }
                        Some(Ok(_)) => tracing::info!("mounted again on {shown}, after a crash"),
                        None => {}
                    },
                    Err(error) => tracing::warn!(%error, "cannot take the dead mount from {shown}"),
                }
                daemon.unstay();
            };
            if let Err(error) = std::thread::Builder::new().name("revive".into()).spawn(again) {
                tracing::warn!(%error, "no thread to mount again");
                self.unstay();
            }
        }
    }
}
