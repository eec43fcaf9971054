//! Directories by descriptor: nothing here follows a symbolic link or leaves the directory.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, fchmod, flock,
    fstat, mkdirat, openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;

/// The kernel asks for another try when a rename somewhere raced the lookup (openat2(2)).
const TRIES: usize = 64;

/// An open directory.
#[derive(Debug)]
pub(super) struct Place(OwnedFd);

impl Place {
    /// Opens a directory that the user named, made if it is not there; here links are followed.
    pub(super) fn open(path: &Path) -> Result<Self, Errno> {
        match mkdirat(CWD, path, Mode::from(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        openat(CWD, path, DIRECTORY, Mode::empty()).map(Self)
    }

    /// Keeps others of our kind out as long as it is open.
    pub(super) fn lock(&self) -> Result<(), Errno> {
        flock(&self.0, FlockOperation::NonBlockingLockExclusive)
    }

    /// A directory in this one.
    pub(super) fn directory(&self, name: &[u8]) -> Result<Self, Errno> {
        self.open_beneath(name, DIRECTORY).map(Self)
    }

    /// Opens what is there under a name, or under a path; not a symbolic link, not through one, and
    /// without waiting for a fifo or a device.
    pub(super) fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(path, flags, ResolveFlags::empty())
    }

    fn resolve(&self, path: &[u8], flags: OFlags, more: ResolveFlags) -> Result<OwnedFd, Errno> {
        let beneath =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | more;
        let mut flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if !flags.contains(OFlags::PATH) {
            flags |= OFlags::NONBLOCK | OFlags::NOCTTY;
        }
        for _ in 1..TRIES {
            match openat2(&self.0, path, flags, Mode::empty(), beneath) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                answer => return answer,
            }
        }
        openat2(&self.0, path, flags, Mode::empty(), beneath)
    }

    /// Opens a regular file to read it.
    pub(super) fn open_file(&self, path: &[u8]) -> Result<File, Errno> {
        let file = self.open_beneath(path, OFlags::RDONLY)?;
        // What was a file a moment ago may be a device now.
        match file_type(&fstat(&file)?) {
            FileType::RegularFile => Ok(file.into()),
            _ => Err(Errno::INVAL),
        }
    }

    /// What is there under a name; `None`: nothing.
    pub(super) fn stat(&self, name: &[u8]) -> Result<Option<Stat>, Errno> {
        match statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names in it.
    pub(super) fn names(&self) -> Result<Vec<Vec<u8>>, Errno> {
        // A descriptor of its own, because reading moves the position.
        let own = openat(&self.0, c".", DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::new(own)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes what is there under a name, with everything below it.
    pub(super) fn remove(&self, name: &[u8]) -> Result<u64, Errno> {
        self.remove_at(name, 0)
    }

    fn remove_at(&self, name: &[u8], depth: usize) -> Result<u64, Errno> {
        match unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) => return Ok(1),
            Err(Errno::NOENT) => return Ok(0),
            // The kernels' two ways to say that it is a directory.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
        if unlinkat(&self.0, name, AtFlags::REMOVEDIR).is_ok() {
            return Ok(1);
        }
        if depth >= REMOVE_DEPTH_MAX {
            return Err(Errno::LOOP);
        }
        // What is mounted there is not ours to empty.
        let below = self.resolve(name, DIRECTORY, ResolveFlags::NO_XDEV).map(Self)?;
        // Its owner may have taken away from himself what this needs; if so, the next call says why.
        let _ = fchmod(&below.0, Mode::RWXU);
        let mut removed = 0;
        for name in below.names()? {
            removed += below.remove_at(&name, depth + 1)?;
        }
        unlinkat(&self.0, name, AtFlags::REMOVEDIR)?;
        Ok(removed + 1)
    }

    /// Removes an empty directory; whether that could be done.
    pub(super) fn remove_empty(&self, name: &[u8]) -> bool {
        unlinkat(&self.0, name, AtFlags::REMOVEDIR).is_ok()
    }

    /// A path that leads to a name in it, whatever became of the directory's own path. For calls that
    /// know no descriptors; they must not follow the last part.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}/", self.0.as_raw_fd()).into_bytes();
        path.extend(name);
        path
    }
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The kind of what a `stat` found.
pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// Depth of a tree that is removed: each level holds a descriptor.
const REMOVE_DEPTH_MAX: usize = 900;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_nowhere_and_are_removed_themselves() {
        let scratch = tempfile::tempdir().expect("a directory");
        let outside = scratch.path().join("outside");
        fs::create_dir_all(outside.join("deep")).expect("made");
        fs::write(outside.join("precious"), "x").expect("written");
        let inside = scratch.path().join("inside");
        let place = Place::open(&inside).expect("made");
        fs::create_dir_all(inside.join("tree/below")).expect("made");
        symlink(&outside, inside.join("tree/link")).expect("made");
        symlink(outside.join("precious"), inside.join("tree/below/file")).expect("made");
        let below = place.directory(b"tree").expect("a directory");
        assert!(below.directory(b"link").is_err() && below.directory(b"..").is_err());
        for path in [&b"tree/link/precious"[..], b"tree/below/file", b"../outside/precious"] {
            assert!(place.open_beneath(path, OFlags::RDONLY).is_err());
        }
        fs::write(inside.join("tree/plain"), "x").expect("written");
        assert!(place.open_beneath(b"tree/plain", OFlags::PATH).is_ok());
        assert!(place.open_beneath(b"tree/plain", OFlags::RDONLY).is_ok());
        assert_eq!(place.remove(b"tree"), Ok(5));
        assert!(outside.join("precious").exists() && outside.join("deep").exists());
        assert_eq!(place.names(), Ok(Vec::new()));
        assert_eq!(place.remove(b"none"), Ok(0));
    }

    #[test]
    fn one_at_a_time_holds_a_place() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (first, second) = (Place::open(scratch.path()), Place::open(scratch.path()));
        let (first, second) = (first.expect("open"), second.expect("open"));
        assert_eq!(first.lock(), Ok(()));
        assert_eq!(second.lock(), Err(Errno::WOULDBLOCK));
    }
}
