//! Reading images that anybody may have made: every length and place is checked before it is used, and
//! what is read is bounded by the image's own length.
//!
//! Content is not read here: [`Image::extents`] says where in the image it lies.

mod content;
mod inode;

use std::collections::HashSet;
use std::io;

use crate::format::{
    ADDRESS_BITS, BLOCK, COMPAT_CHECKSUM, DEVICE_SLOT, DEVICE_TABLE, INCOMPAT_CHUNKED,
    INCOMPAT_DEVICES, MAGIC, SLOT, SUPER_BYTES, SUPER_OFFSET, checksum,
};

pub use content::{DirEntry, Physical};
pub use inode::{ImageInode, Layout};

/// Features that change nothing of what is read here: compression, chunks, devices, and what goes with them.
const KNOWN_FEATURES: u32 = 0x7f;
/// Directories within each other.
const DEPTH_MAX: usize = 4096;

/// Where an image's bytes come from.
pub trait Source {
    /// Fills `out` from byte `offset` on; that it lies within [`Self::len`] was checked.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there is nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Source for [u8] {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let part = self.get(offset as usize..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source failed.
    #[error("cannot read the image: {0}")]
    Io(#[from] io::Error),
    /// No image of this kind.
    #[error("no EROFS image: expected its mark at byte 1024")]
    NotErofs,
    /// The superblock was changed, or not written whole.
    #[error("the superblock's checksum is wrong: expected {expected:#010x}, found {found:#010x}")]
    Checksum {
        /// What its bytes give.
        expected: u32,
        /// What it says.
        found: u32,
    },
    /// Blocks of another size.
    #[error("blocks of 2^{bits} bytes: only those of 4 KiB are read")]
    BlockSize {
        /// As a power of two.
        bits: u8,
    },
    /// Features that are not known.
    #[error("unknown features {features:#x}")]
    Features {
        /// All that it has.
        features: u32,
    },
    /// Something that lies outside.
    #[error("{what} at byte {offset} does not lie within the image")]
    Outside {
        /// What.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// A rule is broken.
    #[error("inode {nid}: {rule}")]
    Inode {
        /// Which.
        nid: u64,
        /// The rule.
        rule: &'static str,
    },
    /// Not what [`Image::check_metadata`] asks for.
    #[error("it is no image of a release: {rule}")]
    Metadata {
        /// What must hold.
        rule: &'static str,
    },
    /// The tree is no tree, or deeper than any.
    #[error(
        "the directories hold more than the image has room for, or lie deeper than {DEPTH_MAX}"
    )]
    Endless,
}

/// An image that is open.
#[derive(Debug)]
pub struct Image<'s, S: Source + ?Sized> {
    source: &'s S,
    /// What the superblock says.
    pub superblock: ImageSuper,
}

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSuper {
    /// The root's number.
    pub root_nid: u64,
    /// Inodes.
    pub inodes: u64,
    /// Time of all compact inodes, seconds since the Unix epoch.
    pub time_s: u64,
    /// Nanoseconds after that.
    pub time_ns: u32,
    /// Blocks of the image itself.
    pub blocks: u32,
    /// Incompatible features.
    pub features: u32,
    /// Extra devices.
    pub devices: u16,
    /// The first device's address in the image's own address space; 0 for none.
    pub device_block: u32,
    meta_block: u32,
    xattr_block: u32,
    /// Whether it has a checksum.
    has_checksum: bool,
    /// Where the device table begins, in units of an entry.
    device_slot: u16,
}

impl<'s, S: Source + ?Sized> Image<'s, S> {
    /// Reads the superblock.
    pub fn open(source: &'s S) -> Result<Self, ReadError> {
        if source.len() < BLOCK as u64 {
            return Err(ReadError::NotErofs);
        }
        let mut block = vec![0; BLOCK];
        source.read(0, &mut block)?;
        let bytes = Bytes(&block[SUPER_OFFSET..SUPER_OFFSET + SUPER_BYTES]);
        if bytes.u32(0) != MAGIC {
            return Err(ReadError::NotErofs);
        }
        let (expected, found) = (checksum(&block), bytes.u32(4));
        let has_checksum = bytes.u32(8) & COMPAT_CHECKSUM != 0;
        if has_checksum && expected != found {
            return Err(ReadError::Checksum { expected, found });
        }
        let bits = bytes.0[12];
        if 1usize.checked_shl(bits.into()) != Some(BLOCK) {
            return Err(ReadError::BlockSize { bits });
        }
        let features = bytes.u32(80);
        if features & !KNOWN_FEATURES != 0 {
            return Err(ReadError::Features { features });
        }
        let devices = if features & INCOMPAT_DEVICES == 0 { 0 } else { bytes.u16(86) };
        let mut superblock = ImageSuper {
            root_nid: bytes.u16(14).into(),
            inodes: bytes.u64(16),
            time_s: bytes.u64(24),
            time_ns: bytes.u32(32),
            blocks: bytes.u32(36),
            features,
            devices,
            device_block: 0,
            meta_block: bytes.u32(40),
            xattr_block: bytes.u32(44),
            has_checksum,
            device_slot: bytes.u16(88),
        };
        let image = Self { source, superblock };
        if devices > 0 {
            (_, superblock.device_block) = image.device(0)?;
        }
        Ok(Self { source, superblock })
    }

    /// Blocks and address of an extra device, from 0.
    fn device(&self, index: u16) -> Result<(u32, u32), ReadError> {
        let slot = u64::from(self.superblock.device_slot) + u64::from(index);
        let len = DEVICE_SLOT as u64;
        let slot = self.read("the device table", slot * len, len)?;
        Ok((Bytes(&slot).u32(64), Bytes(&slot).u32(68)))
    }

    /// Whether this is an image as [`Plan`](crate::Plan) makes them for content on devices: of so many blocks,
    /// with so many devices of which the first begins at block `device_block`. The source may be cut short
    /// behind the root's inode, which all this lies before.
    pub fn check_metadata(
        &self,
        blocks: u64,
        device_block: u64,
        devices: u16,
    ) -> Result<(), ReadError> {
        let superblock = &self.superblock;
        let root = superblock.root_nid * SLOT;
        let slot_blocks = (1u64 << ADDRESS_BITS).saturating_sub(device_block);
        let table = u64::from(superblock.device_slot) * DEVICE_SLOT as u64;
        for (holds, rule) in [
            (superblock.has_checksum, "it has a checksum"),
            (superblock.features == INCOMPAT_CHUNKED | INCOMPAT_DEVICES, "it is not compressed"),
            (u64::from(superblock.blocks) == blocks, "it is as long as the release says"),
            (superblock.meta_block == 0, "its inodes are counted from its beginning"),
            (u64::from(superblock.xattr_block) <= blocks, "its attributes lie within it"),
            (superblock.devices == devices, "it has as many devices as the release says"),
            (table == DEVICE_TABLE as u64, "its devices are listed behind the superblock"),
            (root / BLOCK as u64 == 1, "its root lies in its second block"),
        ] {
            if !holds {
                return Err(ReadError::Metadata { rule });
            }
        }
        for index in 0..devices {
            let (count, address) = self.device(index)?;
            let expected = if index == 0 { device_block } else { 0 };
            if u64::from(address) != expected || !(1..=slot_blocks).contains(&u64::from(count)) {
                let rule = "its devices lie where the release says";
                return Err(ReadError::Metadata { rule });
            }
        }
        let is_directory = self.inode(superblock.root_nid)?.is_directory();
        let rule = "its root is a directory";
        if is_directory { Ok(()) } else { Err(ReadError::Metadata { rule }) }
    }

    /// Calls `visit` for each entry below the root, with its path; directories before what they hold.
    pub fn walk<E: From<ReadError>>(
        &self,
        mut visit: impl FnMut(&[u8], &ImageInode) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut seen = HashSet::new();
        let mut pending = vec![(self.superblock.root_nid, Vec::new(), 0)];
        let mut room = self.source.len();
        while let Some((nid, path, depth)) = pending.pop() {
            let directory = self.inode(nid)?;
            if depth > DEPTH_MAX || !seen.insert(nid) {
                return Err(ReadError::Endless.into());
            }
            // Directories that share content would be many in a small image.
            room = room.checked_sub(directory.size).ok_or(ReadError::Endless)?;
            let first = pending.len();
            for DirEntry { name, nid } in self.entries(&directory)? {
                let inode = self.inode(nid)?;
                let path = [&path[..], if path.is_empty() { b"" } else { b"/" }, &name].concat();
                visit(&path, &inode)?;
                if inode.is_directory() {
                    pending.push((nid, path, depth + 1));
                }
            }
            pending[first..].reverse();
        }
        Ok(())
    }

    /// Reads bytes of the image.
    fn read(&self, what: &'static str, offset: u64, len: u64) -> Result<Vec<u8>, ReadError> {
        self.check(what, offset, len)?;
        let mut bytes = vec![0; len as usize];
        self.source.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Whether bytes lie within the image.
    fn check(&self, what: &'static str, offset: u64, len: u64) -> Result<(), ReadError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.source.len() => Ok(()),
            _ => Err(ReadError::Outside { what, offset }),
        }
    }
}

/// Little-endian numbers in bytes that are long enough: their length was chosen where they were read.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let part = self.0.get(at..).and_then(|rest| rest.first_chunk::<N>());
        part.copied().unwrap_or([0; N])
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}
