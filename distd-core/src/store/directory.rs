//! A directory that nobody else may have prepared: descriptors below it, never symlinks, and locks.
//!
//! Every file of the store is opened relative to a directory descriptor with O_NOFOLLOW and must be
//! a regular file with one name; the cache's must be ours too. So a planted symlink, hard link, fifo
//! or device is refused by name, not followed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// A call to the disk failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct DiskError {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl DiskError {
    pub(super) fn new(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { action, path: path.to_owned(), source: source.into() }
    }

    /// Whether the disk or the user's quota on it has no room left.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }
}

/// Why a directory or a file of the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Another user owns it.
    #[error("{} belongs to user {found}, expected {expected}: use a directory of your own", path.display())]
    Owner {
        /// The directory or file.
        path: PathBuf,
        /// Its owner.
        found: u32,
        /// This process's effective user.
        expected: u32,
    },
    /// Others can write into it.
    #[error("{} has mode {mode:04o}, others may write there: chmod go-w it", path.display())]
    Mode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A symlink, a fifo, a device, a directory or a file with a second name stands there.
    #[error("{} is not a regular file with one name: remove it", path.display())]
    Planted {
        /// What was found.
        path: PathBuf,
    },
    /// The directory's own path is a symlink or no directory.
    #[error("{} is not a directory (symlinks are not followed)", path.display())]
    NotADirectory {
        /// What was found.
        path: PathBuf,
    },
    /// Another process works in it.
    #[error("{} is in use by process {holder}", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
        /// What the holder wrote into its lock file: its process id.
        holder: String,
    },
    /// Written by another version of distd, or not by distd.
    #[error("{} is of format {found:?}, expected {expected:?}: remove it or use another directory", path.display())]
    Format {
        /// The file that names the format.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this version writes.
        expected: &'static str,
    },
    /// There is no log.
    #[error("{} holds no log: create it with `distd-origin init`", path.display())]
    NoLog {
        /// The directory.
        path: PathBuf,
    },
    /// There is a log already.
    #[error("{} holds a log already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A state file that everything rests on is damaged.
    #[error(transparent)]
    State(#[from] super::StateError),
    /// A signature that everything rests on does not hold.
    #[error(transparent)]
    Signature(#[from] crate::tree::SignatureError),
}

/// An open directory of the store.
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    /// A cache's: its files must be ours and are for nobody else.
    private: bool,
    fault: Fault,
}

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Create,
}

/// An exclusive lock on a directory, held until dropped (or until the process dies).
pub(super) struct Lock(#[expect(dead_code, reason = "held for its Drop")] File);

impl Directory {
    /// Opens a cache's directory, made with mode 0700 where it is missing. It must belong to this
    /// user and be closed to others' writes.
    pub(super) fn private(path: &Path) -> Result<Self, OpenError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| Self::no_directory("create", path, source))?;
        Self::open(path, true)
    }

    /// Opens an origin's directory, made where it is missing.
    pub(super) fn public_created(path: &Path) -> Result<Self, OpenError> {
        std::fs::create_dir_all(path)
            .map_err(|source| Self::no_directory("create", path, source))?;
        Self::open(path, false)
    }

    /// Opens an origin's directory.
    pub(super) fn public(path: &Path) -> Result<Self, OpenError> {
        Self::open(path, false)
    }

    fn open(path: &Path, private: bool) -> Result<Self, OpenError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|source| Self::no_directory("open", path, source.into()))?;
        Self { fd, path: path.to_owned(), private, fault: Fault::default() }.checked()
    }

    /// Opens or makes a directory below.
    pub(super) fn subdirectory(&self, name: &str) -> Result<Self, OpenError> {
        let path = self.path.join(name);
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => return Err(DiskError::new("create", &path, source).into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())
            .map_err(|source| Self::no_directory("open", &path, source.into()))?;
        Self { fd, path, private: self.private, fault: self.fault.clone() }.checked()
    }

    fn no_directory(action: &'static str, path: &Path, source: io::Error) -> OpenError {
        match Errno::from_io_error(&source) {
            Some(Errno::NOTDIR | Errno::LOOP | Errno::EXIST) => {
                OpenError::NotADirectory { path: path.to_owned() }
            }
            _ => DiskError::new(action, path, source).into(),
        }
    }

    fn checked(self) -> Result<Self, OpenError> {
        if !self.private {
            return Ok(self);
        }
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|source| DiskError::new("examine", &self.path, source))?;
        let expected = rustix::process::geteuid().as_raw();
        if stat.st_uid != expected {
            return Err(OpenError::Owner { path: self.path, found: stat.st_uid, expected });
        }
        let mode = stat.st_mode & 0o7777;
        if mode & 0o022 != 0 {
            return Err(OpenError::Mode { path: self.path, mode });
        }
        Ok(self)
    }

    /// Its path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it, for messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file; `None` if it is not there (and not to be created).
    pub(super) fn file(&self, name: &str, access: Access) -> Result<Option<File>, OpenError> {
        let mut flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        flags |= match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
            Access::Create => OFlags::RDWR | OFlags::CREATE,
        };
        let mode = Mode::from_raw_mode(if self.private { 0o600 } else { 0o644 });
        let path = || self.path_of(name);
        let file = match rustix::fs::openat(&self.fd, name, flags, mode) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) if access != Access::Create => return Ok(None),
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::NODEV) => {
                return Err(OpenError::Planted { path: path() });
            }
            Err(source) => return Err(DiskError::new("open", &path(), source).into()),
        };
        let metadata =
            file.metadata().map_err(|source| DiskError::new("examine", &path(), source))?;
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(OpenError::Planted { path: path() });
        }
        let expected = rustix::process::geteuid().as_raw();
        if self.private && metadata.uid() != expected {
            return Err(OpenError::Owner { path: path(), found: metadata.uid(), expected });
        }
        Ok(Some(file))
    }

    /// Opens a file that is made if it is missing.
    pub(super) fn created(&self, name: &str) -> Result<File, OpenError> {
        match self.file(name, Access::Create)? {
            Some(file) => Ok(file),
            None => Err(DiskError::new("create", &self.path_of(name), Errno::NOENT).into()),
        }
    }

    /// Replaces `name` by a file of these bytes: written aside, made durable, renamed, and the
    /// rename made durable. A crash leaves the old file or the new one.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), OpenError> {
        let aside = format!("{name}.new");
        let path = self.path_of(&aside);
        self.remove(&aside)?;
        let mut file = self.created(&aside)?;
        self.strike("write", &path)?;
        file.write_all(bytes).map_err(|source| DiskError::new("write", &path, source))?;
        self.strike("sync", &path)?;
        file.sync_all().map_err(|source| DiskError::new("sync", &path, source))?;
        self.fault.synced(&path);
        self.strike("rename", &path)?;
        rustix::fs::renameat(&self.fd, &aside, &self.fd, name)
            .map_err(|source| DiskError::new("rename", &path, source))?;
        Ok(self.sync()?)
    }

    /// The whole of a small file, at most `max` bytes and one more; `None` if it is not there.
    pub(super) fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, OpenError> {
        let Some(file) = self.file(name, Access::Read)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|source| DiskError::new("read", &self.path_of(name), source))?;
        Ok(Some(bytes))
    }

    /// Removes a file; one that is not there is no error.
    pub(super) fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.strike("remove", &self.path_of(name))?;
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(source) => Err(DiskError::new("remove", &self.path_of(name), source)),
        }
    }

    /// Makes the directory's names durable.
    pub(super) fn sync(&self) -> Result<(), DiskError> {
        self.strike("sync", &self.path)?;
        rustix::fs::fsync(&self.fd).map_err(|source| DiskError::new("sync", &self.path, source))?;
        self.fault.synced(&self.path);
        Ok(())
    }

    /// Names in it, UTF-8 ones only: all of ours are.
    pub(super) fn names(&self) -> Result<Vec<String>, DiskError> {
        let failed = |source: Errno| DiskError::new("list", &self.path, source);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(failed)? {
            if let Ok(name) = entry.map_err(failed)?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Room left for this user on the disk, in bytes.
    pub(super) fn disk_free_bytes(&self) -> Result<u64, DiskError> {
        let stat = rustix::fs::fstatvfs(&self.fd)
            .map_err(|source| DiskError::new("examine", &self.path, source))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Takes the directory for this process alone. The lock file keeps the holder's process id.
    pub(super) fn lock(&self, name: &str) -> Result<Lock, OpenError> {
        let path = self.path_of(name);
        let file = self.created(name)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut bytes = [0; 20];
                // The holder may not have written its id yet; the refusal does not depend on it.
                let len = file.read_at(&mut bytes, 0).unwrap_or(0);
                let text = String::from_utf8_lossy(bytes.get(..len).unwrap_or(&[])).into_owned();
                let holder = text.trim().to_owned();
                return Err(OpenError::Busy { path: self.path.clone(), holder });
            }
            Err(source) => return Err(DiskError::new("lock", &path, source).into()),
        }
        // A full disk must not keep a reader out: the id is for messages only.
        let id = format!("{}\n", std::process::id());
        let _ = file.set_len(0).and_then(|()| file.write_all_at(id.as_bytes(), 0));
        Ok(Lock(file))
    }

    /// Where tests make the disk fail.
    pub(super) fn fault(&self) -> &Fault {
        &self.fault
    }

    fn strike(&self, action: &'static str, path: &Path) -> Result<(), DiskError> {
        self.fault.strike().map_err(|source| DiskError::new(action, path, source))
    }
}

/// Lets a test stop the disk before its n-th change, as a crash would, and learn what was synced;
/// nothing outside tests.
#[derive(Clone, Default)]
pub(super) struct Fault {
    #[cfg(test)]
    inner: std::sync::Arc<std::sync::Mutex<FaultInner>>,
}

#[cfg(test)]
type OnSync = Box<dyn FnMut(&Path) + Send>;

#[cfg(test)]
#[derive(Default)]
struct FaultInner {
    /// Changes that still succeed, and how the later ones fail.
    left: Option<(u64, i32)>,
    on_sync: Option<OnSync>,
}

#[cfg(not(test))]
#[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the tests' twin does more")]
impl Fault {
    /// Called before every change of the disk.
    pub(super) fn strike(&self) -> io::Result<()> {
        Ok(())
    }

    /// Called when a file or directory was synced.
    pub(super) fn synced(&self, _path: &Path) {}
}

#[cfg(test)]
impl Fault {
    pub(super) fn strike(&self) -> io::Result<()> {
        match self.lock().left.as_mut() {
            Some((0, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            Some((count, _)) => {
                *count -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn synced(&self, path: &Path) {
        if let Some(on_sync) = self.lock().on_sync.as_mut() {
            on_sync(path);
        }
    }

    /// Every change after the next `changes` fails with `errno`.
    pub(super) fn after(&self, changes: u64, errno: Errno) {
        self.lock().left = Some((changes, errno.raw_os_error()));
    }

    /// No change fails.
    pub(super) fn heal(&self) {
        self.lock().left = None;
    }

    /// Tells `on_sync` of every path that is synced.
    pub(super) fn watch(&self, on_sync: impl FnMut(&Path) + Send + 'static) {
        self.lock().on_sync = Some(Box::new(on_sync));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FaultInner> {
        self.inner.lock().expect("no panic holds it")
    }
}
