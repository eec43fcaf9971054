//! Mounting and unmounting: what must hold before, the FUSE session, what is tuned after.

mod device;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::blocks::Blocks;
use crate::erofs::{record, site};
use crate::exit::{Complaint, Exit};
use crate::fs::Fs;
use crate::fuse::Adapter;
use crate::mountinfo::{FILE_SYSTEM_TYPE, mounted_on};
use crate::options::{Access, MountOptions};
use device::Terms;

/// The kernel's read-ahead for a mount, in KiB.
///
/// Measured on Linux 6.18, everything local: what arrives for one read of 4 KiB at the beginning of a
/// file, one of 4 KiB in the middle, one page fault in the middle of a mapped file, and the speed of
/// reading 256 MiB in order with 128 KiB per call:
///
/// | read-ahead | beginning | middle | page fault | in order, MB/s |
/// |---|---|---|---|---|
/// | 128 KiB | 16 KiB | 4 KiB | 128 KiB | 813 |
/// | 256 KiB | 16 KiB | 4 KiB | 256 KiB | 1040 |
/// | 512 KiB | 16 KiB | 4 KiB | 512 KiB | 1055 |
/// | 1 MiB | 16 KiB | 4 KiB | 1 MiB | 445 |
/// | 16 MiB | 16 KiB | 4 KiB | 16 MiB | 376 |
///
/// A large value makes starting a program read megabytes for one page and gains nothing for a reader
/// in order. What such a reader needs to hide the network's latency, the node fetches ahead by itself
/// (see `fs/readahead.rs`).
const READ_AHEAD_KIB: u32 = 128;
/// Threads that answer the kernel; none of them waits for the network.
const THREADS_MAX: usize = 4;

/// Why a directory cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It is not there, or not a directory, or not accessible.
    #[error("cannot mount on {}: {source}", .directory.display())]
    Directory {
        /// Where.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds something.
    #[error("{} is not empty: mount on an empty directory, or with -o nonempty", .directory.display())]
    NotEmpty {
        /// Where.
        directory: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{} is mounted on {} already", .other.display(), .directory.display())]
    Mounted {
        /// Where.
        directory: PathBuf,
        /// What.
        other: PathBuf,
    },
    /// The node would read its own files through its own mount.
    #[error("the cache {} lies below the mount point {}: the node would wait for itself", .cache.display(), .directory.display())]
    CacheBelow {
        /// Where.
        directory: PathBuf,
        /// The cache.
        cache: PathBuf,
    },
    /// The kernel or fusermount3 refused.
    #[error(
        "cannot mount on {}: {source}; mounting needs /dev/fuse, open to this user (mode 0666), and \
         for users the set-uid program fusermount3",
        .directory.display()
    )]
    Refused {
        /// Where.
        directory: PathBuf,
        /// What was said.
        source: io::Error,
    },
}

impl From<MountError> for Complaint {
    fn from(error: MountError) -> Self {
        let exit = match &error {
            MountError::Directory { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Exit::NoSuch
            }
            MountError::Directory { .. }
            | MountError::NotEmpty { .. }
            | MountError::Refused { .. } => Exit::Failure,
            MountError::Mounted { .. } => Exit::Busy,
            MountError::CacheBelow { .. } => Exit::Usage,
        };
        Self::new(exit, error)
    }
}

/// What stands on a directory that is to be mounted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Nothing: it can be mounted on.
    Free,
    /// The same source already.
    Same,
    /// A view of the kernel's whose node is gone or cannot serve it: the next node replaces it.
    Left,
}

/// The directory's canonical path, also where a dead mount lies on it.
pub fn canonical(directory: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(directory) {
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
            let absolute = std::path::absolute(directory)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                _ => Err(error),
            }
        }
        outcome => outcome,
    }
}

/// Looks at the directory (canonical) before a mount of `source`; clears a dead mount away.
pub fn survey(
    directory: &Path,
    source: &str,
    cache: &Path,
    nonempty: bool,
) -> Result<Site, MountError> {
    let wrong = |source| MountError::Directory { directory: directory.to_owned(), source };
    if let Some(mount) = mounted_on(directory).map_err(wrong)? {
        let (tree, view) = (mount.kind == FILE_SYSTEM_TYPE, record::is_view(&mount));
        let dead =
            if view { !record::is_alive(directory, cache) } else { is_disconnected(directory) };
        if dead && view {
            return Ok(Site::Left);
        }
        if dead {
            detach(directory).map_err(wrong)?;
        } else if (tree || view) && mount.source == source {
            return Ok(Site::Same);
        } else if tree || view {
            let other = mount.source.into();
            return Err(MountError::Mounted { directory: directory.to_owned(), other });
        }
    }
    let metadata = fs::metadata(directory).map_err(wrong)?;
    if !metadata.is_dir() {
        return Err(wrong(io::ErrorKind::NotADirectory.into()));
    }
    if lies_below(cache, &metadata) {
        let (directory, cache) = (directory.to_owned(), cache.to_owned());
        return Err(MountError::CacheBelow { directory, cache });
    }
    if !nonempty && fs::read_dir(directory).map_err(wrong)?.next().is_some() {
        return Err(MountError::NotEmpty { directory: directory.to_owned() });
    }
    Ok(Site::Free)
}

/// Whether a dead mount of FUSE lies on the directory.
pub(crate) fn is_disconnected(directory: &Path) -> bool {
    let disconnected = Some(Errno::NOTCONN.raw_os_error());
    fs::metadata(directory).is_err_and(|error| error.raw_os_error() == disconnected)
}

/// Whether `path`, or the part of it that exists, lies in the directory, through whatever links and
/// bind mounts: compared by device and inode.
fn lies_below(path: &Path, directory: &fs::Metadata) -> bool {
    let existing = path.ancestors().find_map(|part| fs::canonicalize(part).ok());
    existing.is_some_and(|existing| {
        existing
            .ancestors()
            .filter_map(|part| fs::metadata(part).ok())
            .any(|part| (part.dev(), part.ino()) == (directory.dev(), directory.ino()))
    })
}

/// Mounts `fs` on the directory; the session's loop has to be run then.
pub fn mount<B: Blocks>(
    fs: Arc<Fs<B>>,
    directory: &Path,
    source: &str,
    options: &MountOptions,
) -> Result<Session<Adapter<B>>, MountError> {
    let refused = |source| MountError::Refused { directory: directory.to_owned(), source };
    let device = device::open(directory, &terms(source, options)).map_err(refused)?;
    let session = session(fs, device, options).map_err(|error| {
        // Nobody answers it.
        let _ = detach(directory);
        refused(error)
    })?;
    tune(directory);
    Ok(session)
}

/// The same, in the place of the mount of another device number that lies there. Only root may.
pub(crate) fn mount_instead<B: Blocks>(
    fs: Arc<Fs<B>>,
    directory: &Path,
    source: &str,
    options: &MountOptions,
    replaced: &str,
) -> Result<Session<Adapter<B>>, MountError> {
    let refused = |source| MountError::Refused { directory: directory.to_owned(), source };
    let site = site::Site::open(directory, Some(replaced));
    let site = site.map_err(|error| refused(io::Error::other(error)))?;
    let (device, mount) = device::open_apart(&terms(source, options)).map_err(refused)?;
    let session = session(fs, device, options).map_err(refused)?;
    site.take(mount.as_fd()).map_err(|error| refused(io::Error::other(error)))?;
    tune(directory);
    Ok(session)
}

fn checks_modes(options: &MountOptions) -> bool {
    options.check_modes || options.access != Access::Owner
}

fn terms<'a>(source: &'a str, options: &MountOptions) -> Terms<'a> {
    Terms {
        source,
        suid: options.suid,
        dev: options.dev,
        exec: options.exec,
        check_modes: checks_modes(options),
        others: options.access != Access::Owner,
    }
}

fn session<B: Blocks>(
    fs: Arc<Fs<B>>,
    device: OwnedFd,
    options: &MountOptions,
) -> io::Result<Session<Adapter<B>>> {
    let mut config = Config::default();
    config.acl = match options.access {
        Access::Owner => SessionACL::Owner,
        Access::Root => SessionACL::RootAndOwner,
        Access::All => SessionACL::All,
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    config.n_threads = Some(threads.clamp(2, THREADS_MAX));
    config.clone_fd = true;
    Session::from_fd(Adapter::new(fs, checks_modes(options)), device, config.acl, config)
}

/// Sets the mount's read-ahead. Best effort: only root may, and a container may not see sysfs.
fn tune(directory: &Path) {
    let Ok(Some(mount)) = mounted_on(directory) else { return };
    let file = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    if let Err(error) = fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, file, "the read-ahead stays at the kernel's default");
    }
}

/// The longest that an operation may take before the kernel ends the whole mount, if the administrator
/// set such a bound (`fs.fuse.default_request_timeout`, `fs.fuse.max_request_timeout`), in seconds.
pub fn kernel_timeout_s() -> Option<u64> {
    // fuser asks for no timeout: the default counts, cut down to the maximum; without a default, that.
    let set = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(Path::new("/proc/sys/fs/fuse").join(name)).ok()?;
        text.trim().parse().ok().filter(|seconds| *seconds > 0)
    };
    ["default_request_timeout", "max_request_timeout"].into_iter().filter_map(set).min()
}

/// Takes a mount away from the tree; open files go on as long as the node lives.
pub fn detach(directory: &Path) -> io::Result<()> {
    take_away(directory, UnmountFlags::DETACH, &["-u", "-z", "-q"])
}

/// Unmounts; an error where it is in use.
pub fn unmount_idle(directory: &Path) -> io::Result<()> {
    take_away(directory, UnmountFlags::empty(), &["-u"])
}

fn take_away(directory: &Path, flags: UnmountFlags, words: &[&str]) -> io::Result<()> {
    match unmount(directory, flags) {
        Ok(()) => return Ok(()),
        // Users unmount through the set-uid helper.
        Err(Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let output = Command::new("fusermount3")
        .args(words)
        .arg("--")
        .arg(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Ends the kernel's connection to a mount: everything that waits in it gets an error at once, even
/// where the node is gone or stuck.
pub fn abort(directory: &Path) -> io::Result<()> {
    let mount = mounted_on(directory)?.ok_or(io::ErrorKind::NotFound)?;
    let minor = mount.device.split(':').nth(1).unwrap_or_default();
    fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_surveyed_before_it_is_mounted_on() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path().canonicalize().expect("is there");
        let directory = root.join("mnt");
        fs::create_dir(&directory).expect("made");
        let cache = root.join("cache");
        let look = |directory: &Path, cache: &Path| survey(directory, "s", cache, false);
        assert!(matches!(look(&directory, &cache), Ok(Site::Free)));
        assert!(matches!(look(&root.join("none"), &cache), Err(MountError::Directory { .. })));
        assert!(matches!(look(&root, &cache), Err(MountError::CacheBelow { .. })));
        let below = directory.join("a/b/cache");
        assert!(matches!(look(&directory, &below), Err(MountError::CacheBelow { .. })));
        let link = root.join("link");
        std::os::unix::fs::symlink(&directory, &link).expect("made");
        assert!(matches!(look(&directory, &link.join("c")), Err(MountError::CacheBelow { .. })));
        fs::write(directory.join("precious"), "x").expect("written");
        assert!(matches!(look(&directory, &cache), Err(MountError::NotEmpty { .. })));
        assert!(matches!(survey(&directory, "s", &cache, true), Ok(Site::Free)));
        let file = directory.join("precious");
        assert!(matches!(look(&file, &cache), Err(MountError::Directory { .. })));
    }
}
