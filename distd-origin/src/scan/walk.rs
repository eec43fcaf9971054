//! The walk over the source tree.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use distd_core::limits::{TARGET_BYTES_MAX, TREE_DEPTH_MAX};
use distd_core::manifest::{Device, Name, Timestamp};
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat, fstat, major, minor, readlinkat, statat};
use rustix::io::Errno;

use super::xattr::XattrReader;
use super::{
    Attributes, DirectoryIndex, FileIndex, Root, Scan, ScanError, ScannedDirectory, ScannedEntry,
    ScannedFile, ScannedKind, TreePath, join, links,
};

/// Scans the tree below `root`. `only` takes just the entry of that name in the root and makes up
/// the root's attributes: a release of one file. `found` is told the number of entries from time to
/// time.
pub fn scan(root: &Root, only: Option<&OsStr>, found: impl Fn(u64)) -> Result<Scan, ScanError> {
    if !Path::new("/proc/self/fd").exists() {
        return Err(ScanError::NoProc);
    }
    let mut walk = Walk {
        root,
        xattrs: XattrReader::new(),
        inodes: HashMap::new(),
        directories: Vec::new(),
        files: Vec::new(),
        entries: 0,
    };
    let top = walk.root_entry(only.is_some())?;
    let mut pending = vec![Pending {
        index: DirectoryIndex(0),
        parent: DirectoryIndex(0),
        name: Box::default(),
        path: TreePath(Vec::new()),
        depth: 0,
        seen: top.attributes,
    }];
    let mut only = only.map(std::os::unix::ffi::OsStrExt::as_bytes);
    walk.reserve()?;
    while let Some(next) = pending.pop() {
        let first_child = pending.len();
        walk.visit(&next, only.take(), &mut pending)?;
        // The stack is popped from its end: the first child comes next.
        pending[first_child..].reverse();
        found(walk.entries);
    }
    let mut scan = Scan { root: top, directories: walk.directories, files: walk.files };
    if let (MADE_UP_INO, Some(entry)) =
        (scan.root.attributes.ino, scan.directories.first().and_then(|root| root.entries.first()))
    {
        let Attributes { uid, gid, mtime, .. } = entry.attributes;
        scan.root.attributes = Attributes { mode: 0o755, uid, gid, mtime, ..NOTHING };
    }
    links::mark(&mut scan);
    Ok(scan)
}

/// Inode number of a root that is no inode (inode numbers start at 1).
const MADE_UP_INO: u64 = 0;

/// A directory that was seen and not visited yet.
struct Pending {
    index: DirectoryIndex,
    parent: DirectoryIndex,
    name: Box<[u8]>,
    path: TreePath,
    depth: usize,
    seen: Attributes,
}

struct Walk<'a> {
    root: &'a Root,
    xattrs: XattrReader,
    /// Content of files with several names.
    inodes: HashMap<(u64, u64), FileIndex>,
    directories: Vec<ScannedDirectory>,
    files: Vec<ScannedFile>,
    entries: u64,
}

impl Walk<'_> {
    fn root_entry(&mut self, made_up: bool) -> Result<ScannedEntry, ScanError> {
        let path = TreePath(Vec::new());
        let stat = fstat(self.root.fd()).map_err(|errno| ScanError::io("stat", &path, errno))?;
        let mut attributes = attributes(&stat);
        let mut xattrs = Vec::new();
        if made_up {
            attributes.ino = MADE_UP_INO;
        } else {
            xattrs = self.xattrs.read(self.root.fd(), b"", &path)?;
        }
        let name = Name::new(b"root").map_err(|_| ScanError::Name { path })?;
        let kind = ScannedKind::Directory(DirectoryIndex(0));
        Ok(ScannedEntry { name, attributes, xattrs, link: None, kind })
    }

    /// Takes the number of the next directory.
    fn reserve(&mut self) -> Result<DirectoryIndex, ScanError> {
        let index = u32::try_from(self.directories.len()).map_err(|_| ScanError::TooMany)?;
        self.directories.push(ScannedDirectory {
            parent: DirectoryIndex(0),
            name: Box::default(),
            attributes: NOTHING,
            entries: Vec::new(),
        });
        Ok(DirectoryIndex(index))
    }

    fn visit(
        &mut self,
        at: &Pending,
        only: Option<&[u8]>,
        pending: &mut Vec<Pending>,
    ) -> Result<(), ScanError> {
        if at.depth > TREE_DEPTH_MAX {
            return Err(ScanError::TooDeep { path: at.path.clone() });
        }
        let fd = open_directory(self.root, &at.path)?;
        let before = stat_open(&fd, &at.path)?;
        if at.seen.ino != MADE_UP_INO && !before.same_state(&at.seen) {
            return Err(ScanError::Changed { path: at.path.clone() });
        }
        let names = match only {
            Some(name) => {
                vec![Name::new(name).map_err(|_| ScanError::Name { path: at.path.clone() })?]
            }
            None => list(&fd, &at.path)?,
        };
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let entry = self.entry(fd.as_fd(), at, name, entries.len(), pending)?;
            entries.push(entry);
        }
        // With `only`, what happens to other entries of the directory is not our business.
        if only.is_none() && !stat_open(&fd, &at.path)?.same_state(&before) {
            return Err(ScanError::Changed { path: at.path.clone() });
        }
        self.entries += entries.len() as u64;
        self.directories[at.index.0 as usize] = ScannedDirectory {
            parent: at.parent,
            name: at.name.clone(),
            attributes: if only.is_some() { NOTHING } else { before },
            entries,
        };
        Ok(())
    }

    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        at: &Pending,
        name: Name,
        position: usize,
        pending: &mut Vec<Pending>,
    ) -> Result<ScannedEntry, ScanError> {
        let path = join(&at.path, &name);
        let stat = stat_name(directory, &name, &path)?;
        let seen = attributes(&stat);
        let xattrs = self.xattrs.read(directory, name.as_bytes(), &path)?;
        let device = || Device { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => ScannedKind::File(self.file(at.index, position, &seen)?),
            FileType::Directory => {
                let index = self.reserve()?;
                pending.push(Pending {
                    index,
                    parent: at.index,
                    name: name.as_bytes().into(),
                    path: path.clone(),
                    depth: at.depth + 1,
                    seen,
                });
                ScannedKind::Directory(index)
            }
            FileType::Symlink => ScannedKind::Symlink(read_link(directory, &name, &path)?),
            FileType::CharacterDevice => ScannedKind::CharDevice(device()),
            FileType::BlockDevice => ScannedKind::BlockDevice(device()),
            FileType::Fifo => ScannedKind::Fifo,
            FileType::Socket => ScannedKind::Socket,
            FileType::Unknown => return Err(ScanError::io("stat", &path, Errno::NOTSUP)),
        };
        // A regular file is compared again when it is read, a directory when it is visited; what
        // was taken by name only is compared here.
        let by_name = !matches!(kind, ScannedKind::File(_) | ScannedKind::Directory(_));
        if by_name || !xattrs.is_empty() {
            let again = attributes(&stat_name(directory, &name, &path)?);
            if !again.same_state(&seen) {
                return Err(ScanError::Changed { path });
            }
        }
        Ok(ScannedEntry { name, attributes: seen, xattrs, link: None, kind })
    }

    fn file(
        &mut self,
        directory: DirectoryIndex,
        entry: usize,
        seen: &Attributes,
    ) -> Result<FileIndex, ScanError> {
        let inode = (seen.dev, seen.ino);
        if seen.nlink > 1
            && let Some(known) = self.inodes.get(&inode)
        {
            return Ok(*known);
        }
        let index = FileIndex(u32::try_from(self.files.len()).map_err(|_| ScanError::TooMany)?);
        let entry = u32::try_from(entry).map_err(|_| ScanError::TooMany)?;
        self.files.push(ScannedFile { directory, entry });
        if seen.nlink > 1 {
            self.inodes.insert(inode, index);
        }
        Ok(index)
    }
}

/// Checks that no directory changed since it was scanned: entries that came, went or were renamed
/// meanwhile would otherwise make a mixture of two trees.
pub(crate) fn check_directories(root: &Root, scan: &Scan) -> Result<(), ScanError> {
    for (index, directory) in scan.directories.iter().enumerate() {
        if directory.attributes == NOTHING {
            continue;
        }
        let path = scan.directory_path(DirectoryIndex(index as u32));
        let changed = || ScanError::Changed { path: path.clone() };
        let fd = open_directory(root, &path)?;
        if !stat_open(&fd, &path)?.same_state(&directory.attributes) {
            return Err(changed());
        }
    }
    Ok(())
}

const NOTHING: Attributes = Attributes {
    dev: 0,
    ino: MADE_UP_INO,
    mode: 0,
    uid: 0,
    gid: 0,
    nlink: 0,
    size: 0,
    sparse: false,
    mtime: Timestamp { seconds: 0, nanoseconds: 0 },
    ctime: Timestamp { seconds: 0, nanoseconds: 0 },
};

/// Attributes from `stat`.
pub(crate) fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        dev: stat.st_dev,
        ino: stat.st_ino,
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: stat.st_nlink as u32,
        size: stat.st_size as u64,
        sparse: (stat.st_blocks as u64).saturating_mul(512) < stat.st_size as u64,
        mtime: Timestamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
        ctime: Timestamp { seconds: stat.st_ctime, nanoseconds: stat.st_ctime_nsec as u32 },
    }
}

fn open_directory(root: &Root, path: &TreePath) -> Result<OwnedFd, ScanError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    root.open_beneath(&path.0, flags).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => {
            ScanError::Changed { path: path.clone() }
        }
        errno => ScanError::io("open the directory", path, errno),
    })
}

fn stat_open(fd: &OwnedFd, path: &TreePath) -> Result<Attributes, ScanError> {
    fstat(fd).map(|stat| attributes(&stat)).map_err(|errno| ScanError::io("stat", path, errno))
}

fn stat_name(directory: BorrowedFd<'_>, name: &Name, path: &TreePath) -> Result<Stat, ScanError> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statat(directory, name.as_bytes(), flags).map_err(|errno| match errno {
        Errno::NOENT => ScanError::Changed { path: path.clone() },
        errno => ScanError::io("stat", path, errno),
    })
}

fn list(fd: &OwnedFd, path: &TreePath) -> Result<Vec<Name>, ScanError> {
    let failed = |errno| ScanError::io("list the directory", path, errno);
    let mut names = Vec::new();
    for entry in Dir::read_from(fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let refused = |_| ScanError::Name { path: TreePath(name.to_vec()) };
            names.push(Name::new(name).map_err(refused)?);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn read_link(
    directory: BorrowedFd<'_>,
    name: &Name,
    path: &TreePath,
) -> Result<Box<[u8]>, ScanError> {
    let target =
        readlinkat(directory, name.as_bytes(), Vec::new()).map_err(|errno| match errno {
            Errno::NOENT | Errno::INVAL => ScanError::Changed { path: path.clone() },
            errno => ScanError::io("read the symlink", path, errno),
        })?;
    let target = target.into_bytes();
    if (1..=TARGET_BYTES_MAX).contains(&target.len()) {
        Ok(target.into())
    } else {
        Err(ScanError::Target { path: path.clone(), found: target.len() })
    }
}

/// Splits a regular file's path into the directory to open and the name in it.
pub(crate) fn split_file(path: &Path) -> (&Path, Option<&OsStr>) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    (parent.unwrap_or(Path::new(".")), path.file_name())
}
