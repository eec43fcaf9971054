//! A place in the tree of mounts, and how one mount takes the place of another there.
//!
//! The new mount is put beneath the old one, which is then detached: paths lead into the new one from one
//! moment to the next, and what is open of the old one goes on. A mount on something below the old one would
//! be lost with it; so would one that is made in the instant between the last look and the detaching.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::mountinfo::lying_on;

use super::attach::{Refused, refused};

/// A directory that is mounted on.
pub(crate) struct Site {
    path: PathBuf,
    directory: OwnedFd,
    /// Device number of the mount that is to be replaced.
    replaced: Option<String>,
}

impl Site {
    /// Of a directory, or of the mount of this device number on it.
    pub(crate) fn open(path: &Path, replaced: Option<&str>) -> Result<Self, Refused> {
        let wrong = refused("cannot open the mount point");
        let directory = open_path(path).map_err(&wrong)?;
        if let Some(device) = replaced
            && device_of(directory.as_fd()).map_err(&wrong)? != device
        {
            return Err(refused("something else is mounted there")(Errno::BUSY));
        }
        let replaced = replaced.map(str::to_owned);
        Ok(Self { path: path.to_owned(), directory, replaced })
    }

    /// Puts a mount there, in the place of the one that it replaces. An error after the mount was put beneath
    /// that one leaves both: the lower cannot be unmounted before the upper.
    pub(crate) fn take(&self, mount: BorrowedFd<'_>) -> Result<(), Refused> {
        let there =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        let put = |flags| move_mount(mount, "", &self.directory, "", flags);
        let Some(device) = &self.replaced else {
            return put(there).map_err(refused("cannot mount"));
        };
        // As late as can be.
        self.check_free(device)?;
        put(there | MoveMountFlags::MOVE_MOUNT_BENEATH)
            .map_err(refused("cannot mount beneath the old mount"))?;
        match detach(self.directory.as_fd()) {
            // Somebody else took it away: as well.
            Err(_) if matches!(lying_on(&self.path, device), Ok(None)) => Ok(()),
            outcome => outcome.map_err(refused("cannot take the old mount away")),
        }
    }

    /// Takes the mount away that was to be replaced.
    pub(crate) fn clear(&self) -> Result<(), Refused> {
        let Some(device) = &self.replaced else { return Ok(()) };
        self.check_free(device)?;
        detach(self.directory.as_fd()).map_err(refused("cannot take the old mount away"))
    }

    fn check_free(&self, device: &str) -> Result<(), Refused> {
        let lying = lying_on(&self.path, device).unwrap_or_default().unwrap_or_default();
        if lying.is_empty() {
            return Ok(());
        }
        let busy = refused("something is mounted below the old mount");
        Err(Refused { said: lying.join(", "), ..busy(Errno::BUSY) })
    }
}

/// Detaches the mount that a descriptor leads to, whatever lies on its path by now. (The kernel goes on to
/// what is mounted over the mount's own root, which is why that is looked at first.)
fn detach(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    unmount(format!("/proc/self/fd/{}", mount.as_raw_fd()), UnmountFlags::DETACH)
}

/// Opens nothing but the way. Without `O_DIRECTORY`, which would have an automount point wait for this very
/// mount.
pub(super) fn open_path(path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// The device number of what a descriptor leads to, without asking it anything.
pub(super) fn device_of(file: BorrowedFd<'_>) -> Result<String, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(file, "", flags, StatxFlags::TYPE)?;
    Ok(format!("{}:{}", found.stx_dev_major, found.stx_dev_minor))
}
