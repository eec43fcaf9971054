//! A tree of files, as an image is made of it.

use std::borrow::Cow;

/// What every inode has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, set-id and sticky bits: `st_mode & 07777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, seconds since the Unix epoch.
    pub mtime_s: i64,
    /// Nanoseconds after that second.
    pub mtime_ns: u32,
}

/// An extended attribute: full name and value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xattr<'a> {
    /// Name with its namespace.
    pub name: Cow<'a, [u8]>,
    /// Value as `getxattr(2)` gives it.
    pub value: Cow<'a, [u8]>,
}

/// A run of a file's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// So many blocks of the content's address space from `start` on.
    Data {
        /// First block.
        start: u64,
        /// How many.
        count: u64,
    },
    /// So many blocks of zeros that lie nowhere.
    Hole(u64),
}

impl Extent {
    /// Number of blocks.
    pub const fn blocks(self) -> u64 {
        match self {
            Self::Data { count, .. } | Self::Hole(count) => count,
        }
    }
}

/// A regular file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Length in bytes.
    pub size: u64,
    /// Where its blocks lie: all of them, in order, neighbours that could be one as one.
    pub extents: Vec<Extent>,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<'a, D> {
    /// Regular file.
    File(File),
    /// Directory.
    Directory(D),
    /// Symbolic link, with its target.
    Symlink(Cow<'a, [u8]>),
    /// Character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

/// Several names of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The same for all names of the inode, different for others.
    pub id: u64,
    /// How many names it has.
    pub count: u32,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode<'a, D> {
    /// Owner, permissions, time.
    pub attributes: Attributes,
    /// Sorted by name, without duplicates.
    pub xattrs: Vec<Xattr<'a>>,
    /// Set where it has several names; never for directories.
    pub link: Option<Link>,
    /// Kind and content.
    pub kind: Kind<'a, D>,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a, D> {
    /// Its name: 1 to 255 bytes without `/` and NUL, not `.` or `..`.
    pub name: Cow<'a, [u8]>,
    /// What it names.
    pub inode: Inode<'a, D>,
}

/// A tree of files. It is walked several times, always in the same order, and must give the same answers.
pub trait Tree {
    /// By what a directory is found again.
    type Directory: Clone;
    /// Why it cannot be read.
    type Error;

    /// The root, a directory.
    fn root(&self) -> Inode<'_, Self::Directory>;

    /// The entries of a directory, sorted by name as bytes, without duplicates.
    fn entries(
        &self,
        directory: &Self::Directory,
    ) -> Result<Vec<Entry<'_, Self::Directory>>, Self::Error>;
}
