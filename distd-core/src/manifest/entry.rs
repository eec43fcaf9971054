//! One entry of a directory: a name and all that `stat`, `getxattr` and `readlink` show of it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::limits::{
    BLOCK_BYTES, INLINE_EXTENTS_MAX, LOG_MUNROS_MAX, MUNRO_BYTES, NAME_BYTES_MAX, NODE_BYTES_MAX,
    TARGET_BYTES_MAX, XATTR_BYTES_MAX,
};
use crate::unit::ByteRange;

use super::extent::{Extents, WireExtent};

/// Largest file, in bytes: what `lseek` can address.
const SIZE_MAX: u64 = i64::MAX as u64 / BLOCK_BYTES * BLOCK_BYTES;
const NANOSECONDS_MAX: u32 = 999_999_999;
const PERMISSIONS: u16 = 0o7777;

/// A file name: 1 to 255 bytes without `/` and NUL, and neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Bytes that cannot name a directory entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{} is no file name: expected 1 to 255 bytes without '/' and NUL, not '.' or '..'", .bytes.escape_ascii())]
pub struct NameError {
    /// The bytes refused.
    pub bytes: Vec<u8>,
}

impl Name {
    /// Checks and takes a name.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        let safe = (1..=NAME_BYTES_MAX).contains(&bytes.len())
            && !bytes.iter().any(|b| matches!(b, b'/' | 0))
            && bytes != b"."
            && bytes != b"..";
        if safe { Ok(Self(bytes.into())) } else { Err(NameError { bytes: bytes.to_vec() }) }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A point in time as file systems keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the Unix epoch, negative before it.
    pub seconds: i64,
    /// Nanoseconds after that second, below 10^9.
    pub nanoseconds: u32,
}

/// An extended attribute: its full name (`user.x`, `security.capability`, ...) and its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Xattr {
    /// Name with its namespace.
    pub name: Vec<u8>,
    /// Value as `getxattr(2)` gives it.
    pub value: Vec<u8>,
}

/// Several names of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardLink {
    /// The same for all names of the inode, different for others in the release.
    pub id: u64,
    /// How many names the inode has within the release (`st_nlink`), at least 2.
    pub count: u32,
}

/// Where a file's bytes lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A few extents, inline.
    Extents(Extents),
    /// An extent list in the log.
    List(ByteRange),
}

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Length in bytes.
    pub size: u64,
    /// `blake3::hash` of the whole content: what `b3sum` prints.
    pub blake3: [u8; 32],
    /// Where its blocks lie.
    pub content: Content,
}

/// A directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Its node in the log.
    pub node: ByteRange,
    /// Directories in it: `st_nlink` is 2 more.
    pub subdirectories: u32,
}

/// A device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file.
    File(File),
    /// Directory.
    Directory(Directory),
    /// Symbolic link, with its target (1 to 4095 bytes without NUL).
    Symlink(Vec<u8>),
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// Permission bits, set-id and sticky bits: `st_mode & 07777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Sorted by name, without duplicates.
    pub xattrs: Vec<Xattr>,
    /// Set where the inode has several names; never for directories.
    pub link: Option<HardLink>,
    /// Kind and content.
    pub kind: EntryKind,
}

const KIND_FILE: u8 = 0;
const KIND_FILE_LISTED: u8 = 1;
const KIND_DIRECTORY: u8 = 2;
const KIND_SYMLINK: u8 = 3;
const KIND_CHAR_DEVICE: u8 = 4;
const KIND_BLOCK_DEVICE: u8 = 5;
const KIND_FIFO: u8 = 6;
const KIND_SOCKET: u8 = 7;

/// Wire form. `numbers` and `bytes` depend on the kind: file `[size]`, blake3, extents; listed file
/// `[size, offset, len]`, blake3; directory `[offset, len, subdirectories]`; symlink target in
/// `bytes`; devices `[major, minor]`.
#[derive(Serialize, Deserialize)]
pub(super) struct WireEntry {
    name: ByteBuf,
    kind: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    seconds: i64,
    nanoseconds: u32,
    numbers: Vec<u64>,
    bytes: ByteBuf,
    extents: Vec<WireExtent>,
    xattrs: Vec<(ByteBuf, ByteBuf)>,
    link: Option<HardLink>,
}

impl Entry {
    pub(super) fn to_wire(&self) -> WireEntry {
        let (kind, numbers, bytes, extents) = self.kind.to_wire();
        let xattr = |x: &Xattr| (ByteBuf::from(x.name.clone()), ByteBuf::from(x.value.clone()));
        WireEntry {
            name: ByteBuf::from(self.name.as_bytes()),
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            seconds: self.mtime.seconds,
            nanoseconds: self.mtime.nanoseconds,
            numbers,
            bytes: ByteBuf::from(bytes),
            extents,
            xattrs: self.xattrs.iter().map(xattr).collect(),
            link: self.link,
        }
    }

    /// Checks everything that a hostile origin could send; the error is the rule that is broken.
    pub(super) fn from_wire(wire: WireEntry) -> Result<Self, &'static str> {
        let name = Name::new(&wire.name).map_err(|_| "a name is not a safe file name")?;
        let kind =
            EntryKind::from_wire(wire.kind, &wire.numbers, wire.bytes.into_vec(), &wire.extents)?;
        if wire.mode & !PERMISSIONS != 0 {
            return Err("a mode has bits beyond 07777");
        }
        if wire.nanoseconds > NANOSECONDS_MAX {
            return Err("a time has a second or more of nanoseconds");
        }
        let is_directory = matches!(kind, EntryKind::Directory(_));
        if wire.link.is_some_and(|link| link.count < 2 || is_directory) {
            return Err("a hard link has fewer than two names or is a directory");
        }
        Ok(Self {
            name,
            mode: wire.mode,
            uid: wire.uid,
            gid: wire.gid,
            mtime: Timestamp { seconds: wire.seconds, nanoseconds: wire.nanoseconds },
            xattrs: xattrs_from_wire(wire.xattrs)?,
            link: wire.link,
            kind,
        })
    }
}

fn xattrs_from_wire(wire: Vec<(ByteBuf, ByteBuf)>) -> Result<Vec<Xattr>, &'static str> {
    let bytes: usize = wire.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > XATTR_BYTES_MAX {
        return Err("the extended attributes are longer than 64 KiB");
    }
    let named = |name: &ByteBuf| (1..=255).contains(&name.len()) && !name.contains(&0);
    if !wire.iter().all(|(name, _)| named(name)) || !wire.is_sorted_by(|a, b| a.0 < b.0) {
        return Err("the extended attributes' names are not sorted or not well-formed");
    }
    let xattr = |(name, value): (ByteBuf, ByteBuf)| Xattr {
        name: name.into_vec(),
        value: value.into_vec(),
    };
    Ok(wire.into_iter().map(xattr).collect())
}

impl EntryKind {
    fn to_wire(&self) -> (u8, Vec<u64>, Vec<u8>, Vec<WireExtent>) {
        let device = |d: &Device| vec![u64::from(d.major), u64::from(d.minor)];
        match self {
            Self::File(file) => match &file.content {
                Content::Extents(extents) => {
                    (KIND_FILE, vec![file.size], file.blake3.to_vec(), extents.to_wire())
                }
                Content::List(list) => {
                    let numbers = vec![file.size, list.offset, list.len];
                    (KIND_FILE_LISTED, numbers, file.blake3.to_vec(), Vec::new())
                }
            },
            Self::Directory(directory) => {
                let Directory { node, subdirectories } = directory;
                let numbers = vec![node.offset, node.len, u64::from(*subdirectories)];
                (KIND_DIRECTORY, numbers, Vec::new(), Vec::new())
            }
            Self::Symlink(target) => (KIND_SYMLINK, Vec::new(), target.clone(), Vec::new()),
            Self::CharDevice(number) => (KIND_CHAR_DEVICE, device(number), Vec::new(), Vec::new()),
            Self::BlockDevice(number) => {
                (KIND_BLOCK_DEVICE, device(number), Vec::new(), Vec::new())
            }
            Self::Fifo => (KIND_FIFO, Vec::new(), Vec::new(), Vec::new()),
            Self::Socket => (KIND_SOCKET, Vec::new(), Vec::new(), Vec::new()),
        }
    }

    fn from_wire(
        kind: u8,
        numbers: &[u64],
        bytes: Vec<u8>,
        extents: &[WireExtent],
    ) -> Result<Self, &'static str> {
        if kind != KIND_FILE && !extents.is_empty() {
            return Err("extents on an entry that is not a file with inline extents");
        }
        let blake3 = |bytes: &[u8]| bytes.try_into().map_err(|_| "a file's BLAKE3 is not 32 bytes");
        match (kind, numbers, bytes.len()) {
            (KIND_FILE, &[size], _) if size <= SIZE_MAX => {
                if extents.len() > INLINE_EXTENTS_MAX {
                    return Err("more inline extents than a directory entry may have");
                }
                let content = Content::Extents(Extents::from_wire(extents, size)?);
                Ok(Self::File(File { size, blake3: blake3(&bytes)?, content }))
            }
            (KIND_FILE_LISTED, &[size, offset, len], _) if size <= SIZE_MAX => {
                let content = Content::List(node_range(offset, len)?);
                Ok(Self::File(File { size, blake3: blake3(&bytes)?, content }))
            }
            (KIND_DIRECTORY, &[offset, len, subdirectories], 0) => {
                let subdirectories = subdirectories
                    .try_into()
                    .map_err(|_| "a number of subdirectories is absurd")?;
                let node = node_range(offset, len)?;
                Ok(Self::Directory(Directory { node, subdirectories }))
            }
            (KIND_SYMLINK, &[], 1..=TARGET_BYTES_MAX) if !bytes.contains(&0) => {
                Ok(Self::Symlink(bytes))
            }
            (KIND_CHAR_DEVICE, &[major, minor], 0) => Ok(Self::CharDevice(device(major, minor)?)),
            (KIND_BLOCK_DEVICE, &[major, minor], 0) => Ok(Self::BlockDevice(device(major, minor)?)),
            (KIND_FIFO, &[], 0) => Ok(Self::Fifo),
            (KIND_SOCKET, &[], 0) => Ok(Self::Socket),
            _ => Err("an unknown kind of entry, or values that do not belong to its kind"),
        }
    }
}

fn device(major: u64, minor: u64) -> Result<Device, &'static str> {
    let number = |n: u64| n.try_into().map_err(|_| "a device number has more than 32 bits");
    Ok(Device { major: number(major)?, minor: number(minor)? })
}

/// A reference to another node: not empty, within the bounds of nodes and of the longest log.
pub(super) fn node_range(offset: u64, len: u64) -> Result<ByteRange, &'static str> {
    let range = ByteRange { offset, len };
    let within = (1..=NODE_BYTES_MAX).contains(&len) && range.end().is_some();
    if within { Ok(range) } else { Err("a reference to a node lies out of bounds") }
}

const _: () = assert!(SIZE_MAX.div_ceil(BLOCK_BYTES) <= i64::MAX as u64 / BLOCK_BYTES);
const _: () = assert!(LOG_MUNROS_MAX <= u64::MAX / MUNRO_BYTES);
