//! One inode of an image, and its extended attributes.

use crate::format::{BLOCK, CHUNK_INDEXES, EXTENDED, INODE, SLOT, XATTR_ENTRY, XATTR_HEADER};
use crate::tree::{Attributes, Xattr};
use crate::xattrs::full_name;

use super::{Bytes, Image, ReadError, Source};

/// Compact inode.
const INODE_COMPACT: u64 = 32;
const KIND: u16 = 0o170_000;
const KIND_DIRECTORY: u16 = 0o040_000;
const KIND_FILE: u16 = 0o100_000;
const KIND_SYMLINK: u16 = 0o120_000;
const KIND_CHAR: u16 = 0o020_000;
const KIND_BLOCK: u16 = 0o060_000;

/// How an inode's content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One run of blocks.
    Plain {
        /// The first.
        block: u32,
    },
    /// One run of blocks, and the last part behind the inode.
    Inline {
        /// The first.
        block: u32,
    },
    /// Equal chunks of 2^bits blocks.
    Chunks {
        /// Size of a chunk.
        bits: u32,
        /// Whether the map names devices.
        indexes: bool,
    },
    /// Compressed.
    Compressed {
        /// Blocks that it takes, 0 if it lies with others'.
        blocks: u32,
    },
}

/// An inode as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInode {
    /// Its number.
    pub nid: u64,
    /// `st_mode` with the kind.
    pub mode: u16,
    /// Owner, permissions, time.
    pub attributes: Attributes,
    /// Names that it has.
    pub links: u32,
    /// Length in bytes.
    pub size: u64,
    /// How its content lies.
    pub layout: Layout,
    /// Of devices: the number as the format keeps it.
    pub device: u32,
    /// Where its extended attributes begin, and their length.
    pub(super) xattrs: (u64, u64),
}

impl ImageInode {
    /// Whether it is a directory.
    pub const fn is_directory(&self) -> bool {
        self.mode & KIND == KIND_DIRECTORY
    }

    /// Whether it is a regular file.
    pub const fn is_file(&self) -> bool {
        self.mode & KIND == KIND_FILE
    }

    /// Whether it has content.
    pub(super) const fn has_content(&self) -> bool {
        matches!(self.mode & KIND, KIND_DIRECTORY | KIND_FILE | KIND_SYMLINK)
    }

    /// One past the inode and its attributes.
    pub(super) const fn end(&self) -> u64 {
        self.xattrs.0 + self.xattrs.1
    }

    /// Bytes of content that lie behind the inode.
    pub const fn inline_bytes(&self) -> u64 {
        match self.layout {
            Layout::Inline { .. } => self.size % BLOCK as u64,
            _ => 0,
        }
    }
}

impl<S: Source + ?Sized> Image<'_, S> {
    /// Reads an inode.
    pub fn inode(&self, nid: u64) -> Result<ImageInode, ReadError> {
        let wrong = |rule| ReadError::Inode { nid, rule };
        let meta = u64::from(self.superblock.meta_block) * BLOCK as u64;
        let offset = nid.checked_mul(SLOT).and_then(|at| at.checked_add(meta));
        let offset = offset.ok_or_else(|| wrong("its number is absurd"))?;
        let compact = self.read("an inode", offset, INODE_COMPACT)?;
        let format = Bytes(&compact).u16(0);
        if format >> 4 != 0 {
            return Err(wrong("its format is unknown"));
        }
        let extended = format & EXTENDED != 0;
        let bytes = if extended { self.read("an inode", offset, INODE)? } else { compact };
        let bytes = Bytes(&bytes);
        let mode = bytes.u16(4);
        let (attributes, links, size) = if extended {
            let attributes = Attributes {
                mode: mode & 0o7777,
                uid: bytes.u32(24),
                gid: bytes.u32(28),
                mtime_s: bytes.u64(32) as i64,
                mtime_ns: bytes.u32(40),
            };
            (attributes, bytes.u32(44), bytes.u64(8))
        } else {
            let attributes = Attributes {
                mode: mode & 0o7777,
                uid: bytes.u16(24).into(),
                gid: bytes.u16(26).into(),
                mtime_s: self.superblock.time_s as i64,
                mtime_ns: self.superblock.time_ns,
            };
            (attributes, bytes.u16(6).into(), bytes.u32(8).into())
        };
        let union = bytes.u32(16);
        let layout = match format >> 1 {
            0 => Layout::Plain { block: union },
            2 => Layout::Inline { block: union },
            4 => Layout::Chunks { bits: union & 0x1f, indexes: union as u16 & CHUNK_INDEXES != 0 },
            1 | 3 => Layout::Compressed { blocks: union },
            _ => return Err(wrong("its layout is unknown")),
        };
        if i64::try_from(size).is_err() {
            return Err(wrong("its size is absurd"));
        }
        let count = u64::from(bytes.u16(2));
        let xattrs = if count == 0 { 0 } else { XATTR_HEADER as u64 + (count - 1) * 4 };
        let start = offset + if extended { INODE } else { INODE_COMPACT };
        self.check("extended attributes", start, xattrs)?;
        let device = if matches!(mode & KIND, KIND_CHAR | KIND_BLOCK) { union } else { 0 };
        let xattrs = (start, xattrs);
        Ok(ImageInode { nid, mode, attributes, links, size, layout, device, xattrs })
    }

    /// An inode's extended attributes, sorted by name.
    pub fn xattrs(&self, inode: &ImageInode) -> Result<Vec<Xattr<'static>>, ReadError> {
        let (start, len) = inode.xattrs;
        if len == 0 {
            return Ok(Vec::new());
        }
        let wrong = |rule| ReadError::Inode { nid: inode.nid, rule };
        let bytes = self.read("extended attributes", start, len)?;
        let header = Bytes(&bytes);
        let shared = usize::from(bytes[4]);
        let mut own = XATTR_HEADER + shared * 4;
        if own > bytes.len() {
            return Err(wrong("it has fewer extended attributes than it says"));
        }
        let mut xattrs = Vec::new();
        let base = u64::from(self.superblock.xattr_block) * BLOCK as u64;
        for index in 0..shared {
            let id = u64::from(header.u32(XATTR_HEADER + index * 4));
            let at = base + id * XATTR_ENTRY as u64;
            let entry = self.read("a shared attribute", at, XATTR_ENTRY as u64)?;
            let entry = self.read("a shared attribute", at, xattr_len(&entry) as u64)?;
            xattrs.extend(xattr(&entry));
        }
        while own + XATTR_ENTRY <= bytes.len() {
            let len = xattr_len(&bytes[own..]);
            let entry = bytes.get(own..own + len);
            let entry = entry.ok_or_else(|| wrong("an extended attribute is cut off"))?;
            xattrs.extend(xattr(entry));
            own += len.next_multiple_of(XATTR_ENTRY);
        }
        xattrs.sort_unstable();
        Ok(xattrs)
    }
}

/// Bytes of an attribute, which begin here.
fn xattr_len(bytes: &[u8]) -> usize {
    XATTR_ENTRY + usize::from(bytes[0]) + usize::from(Bytes(bytes).u16(2))
}

/// An attribute; `None` for a namespace that is not known.
fn xattr(bytes: &[u8]) -> Option<Xattr<'static>> {
    let (name, value) = bytes[XATTR_ENTRY..].split_at(usize::from(bytes[0]));
    let name = full_name(bytes[1], name)?;
    Some(Xattr { name: name.into(), value: value.to_vec().into() })
}
