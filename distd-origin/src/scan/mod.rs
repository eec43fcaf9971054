//! The source tree as it was found: every directory, entry and attribute, but no file content.
//!
//! Nothing outside the root is ever opened: `beneath` resolves every path with `openat2` below the
//! root's descriptor, without following symlinks. Depth and sizes are bounded, there is no
//! recursion. Content is read later, by [`crate::content`], which compares each file with what was
//! seen here.

mod beneath;
mod links;
mod walk;
mod xattr;

use std::fmt;
use std::io;

use distd_core::limits::{TARGET_BYTES_MAX, TREE_DEPTH_MAX, XATTR_BYTES_MAX};
use distd_core::manifest::{Device, HardLink, Name, Timestamp, Xattr};

pub use beneath::Root;
pub use walk::scan;
pub(crate) use walk::{attributes, check_directories, split_file};

/// A path below the root, for people: bytes that do not print are escaped.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreePath(pub Vec<u8>);

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(".");
        }
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.contains(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What `stat` said of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Device that it lies on.
    pub dev: u64,
    /// Its number there.
    pub ino: u64,
    /// `st_mode & 07777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that the inode has, in the tree or elsewhere.
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
    /// Whether the file system holds less for it than its length asks for: only then has it holes.
    pub sparse: bool,
    /// Last modification of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

impl Attributes {
    /// Whether both describe the same inode in the same state.
    pub fn same_state(&self, other: &Self) -> bool {
        let state = |a: &Self| (a.dev, a.ino, a.size, a.mtime, a.ctime);
        state(self) == state(other)
    }
}

/// Number of a file's content in [`Scan::files`]; names of one inode share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileIndex(pub u32);

/// Number of a directory in [`Scan::directories`]; the root is 0, parents come before children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirectoryIndex(pub u32);

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScannedKind {
    /// Regular file.
    File(FileIndex),
    /// Directory.
    Directory(DirectoryIndex),
    /// Symbolic link and its target.
    Symlink(Box<[u8]>),
    /// Character device.
    CharDevice(Device),
    /// Block device.
    BlockDevice(Device),
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct ScannedEntry {
    /// Its name.
    pub name: Name,
    /// Its attributes; a directory's are those of the opened directory.
    pub attributes: Attributes,
    /// Sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Set where several names within the tree are one inode.
    pub link: Option<HardLink>,
    /// Kind.
    pub kind: ScannedKind,
}

/// One directory, its entries sorted by name.
#[derive(Clone, Debug)]
pub struct ScannedDirectory {
    /// The directory that it lies in; the root's is itself.
    pub parent: DirectoryIndex,
    /// Its name; empty for the root.
    pub name: Box<[u8]>,
    /// Its attributes, for the check that it stayed the same.
    pub attributes: Attributes,
    /// Its entries.
    pub entries: Vec<ScannedEntry>,
}

/// Where a file's content is to be read: its first name in the tree's order.
#[derive(Clone, Copy, Debug)]
pub struct ScannedFile {
    /// The directory.
    pub directory: DirectoryIndex,
    /// Position of the entry in the directory.
    pub entry: u32,
}

/// The tree.
#[derive(Debug)]
pub struct Scan {
    /// The root's attributes and extended attributes (its name means nothing).
    pub root: ScannedEntry,
    /// All directories, parents before children.
    pub directories: Vec<ScannedDirectory>,
    /// All regular files by content, in the order in which they go into the log.
    pub files: Vec<ScannedFile>,
}

impl Scan {
    /// A directory.
    pub fn directory(&self, index: DirectoryIndex) -> &ScannedDirectory {
        &self.directories[index.0 as usize]
    }

    /// The entry by which a file is read.
    pub fn file(&self, index: FileIndex) -> &ScannedEntry {
        let file = &self.files[index.0 as usize];
        &self.directory(file.directory).entries[file.entry as usize]
    }

    /// A directory's path below the root; empty for the root.
    pub fn directory_path(&self, mut index: DirectoryIndex) -> TreePath {
        let mut names: Vec<&[u8]> = Vec::new();
        while index.0 != 0 {
            let directory = self.directory(index);
            names.push(&directory.name);
            index = directory.parent;
        }
        names.reverse();
        TreePath(names.join(&b'/'))
    }

    /// An entry's path below the root.
    pub fn entry_path(&self, directory: DirectoryIndex, entry: u32) -> TreePath {
        let name = &self.directory(directory).entries[entry as usize].name;
        join(&self.directory_path(directory), name)
    }

    /// The path by which a file is read.
    pub fn file_path(&self, index: FileIndex) -> TreePath {
        let file = &self.files[index.0 as usize];
        self.entry_path(file.directory, file.entry)
    }
}

/// `directory/name`.
fn join(directory: &TreePath, name: &Name) -> TreePath {
    let mut path = directory.0.clone();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend(name.as_bytes());
    TreePath(path)
}

/// Why a tree cannot be scanned or read.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A call failed.
    #[error("cannot {verb} '{path}': {source}; nothing was published")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: TreePath,
        /// Why not.
        source: io::Error,
    },
    /// Extended attributes cannot be read without it.
    #[error("/proc is not mounted here: expected it to read extended attributes through; mount it")]
    NoProc,
    /// The tree is being written to.
    #[error(
        "'{path}' changed while it was published; nothing was published: publish a tree that nobody writes to, such as a snapshot or a copy"
    )]
    Changed {
        /// What changed.
        path: TreePath,
    },
    /// Deeper than a release may be.
    #[error("'{path}' lies deeper than {TREE_DEPTH_MAX} directories; nothing was published")]
    TooDeep {
        /// The directory that is too deep.
        path: TreePath,
    },
    /// A name that no release may hold.
    #[error("'{path}' has a name that no release may hold; nothing was published")]
    Name {
        /// The entry.
        path: TreePath,
    },
    /// A symlink whose target cannot be kept.
    #[error(
        "the symlink '{path}' has a target of {found} bytes, expected 1 to {TARGET_BYTES_MAX}; nothing was published"
    )]
    Target {
        /// The symlink.
        path: TreePath,
        /// Length of its target.
        found: usize,
    },
    /// Too many extended attributes.
    #[error(
        "the extended attributes of '{path}' have {found} bytes, at most {XATTR_BYTES_MAX} are kept; nothing was published"
    )]
    Xattrs {
        /// The entry.
        path: TreePath,
        /// Bytes found, names and values.
        found: usize,
    },
    /// More entries than the scan's numbers can name.
    #[error("the tree has more than {} directories or files; publish it in parts", u32::MAX)]
    TooMany,
}

impl ScanError {
    pub(crate) fn io(verb: &'static str, path: &TreePath, errno: rustix::io::Errno) -> Self {
        Self::Io { verb, path: path.clone(), source: errno.into() }
    }
}
