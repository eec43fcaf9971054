//! Where an inode's content lies, and the content of directories and symlinks.

use crate::format::{ADDRESS_BITS, BLOCK, DIRENT, NOWHERE};

use super::inode::{ImageInode, Layout};
use super::{Bytes, Image, ReadError, Source};

const BLOCK_U64: u64 = BLOCK as u64;
/// Longest content that is read as a whole: a symlink's target, a directory.
const CONTENT_BYTES_MAX: u64 = 1 << 30;

/// A run of an inode's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Physical {
    /// In the image, from byte `offset` on.
    Data {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// On an extra device (from 1), from its byte `offset` on.
    Device {
        /// Which.
        device: u16,
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// So many zeros.
    Hole {
        /// How many.
        len: u64,
    },
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// The number of its inode.
    pub nid: u64,
}

impl<S: Source + ?Sized> Image<'_, S> {
    /// Where an inode's content lies, in order; `None` if it is compressed.
    pub fn extents(&self, inode: &ImageInode) -> Result<Option<Vec<Physical>>, ReadError> {
        let mut runs = Vec::new();
        if !inode.has_content() || inode.size == 0 {
            return Ok(Some(runs));
        }
        match inode.layout {
            Layout::Plain { block } => self.push_run(&mut runs, u64::from(block), inode.size)?,
            Layout::Inline { block } => {
                let tail = inode.size % BLOCK_U64;
                let tail = if tail == 0 { BLOCK_U64 } else { tail };
                self.push_run(&mut runs, u64::from(block), inode.size - tail)?;
                let offset = inode.end();
                self.check("content behind an inode", offset, tail)?;
                runs.push(Physical::Data { offset, len: tail });
            }
            Layout::Chunks { bits, indexes } => {
                self.push_chunks(&mut runs, inode, bits, indexes)?;
            }
            Layout::Compressed { .. } => return Ok(None),
        }
        Ok(Some(runs))
    }

    fn push_chunks(
        &self,
        runs: &mut Vec<Physical>,
        inode: &ImageInode,
        bits: u32,
        indexes: bool,
    ) -> Result<(), ReadError> {
        let unit = if indexes { 8 } else { 4 };
        let chunk = BLOCK_U64 << bits;
        let at = inode.end().next_multiple_of(unit);
        let map = inode.size.div_ceil(chunk) * unit;
        let map = self.read("a map of chunks", at, map)?;
        let mut rest = inode.size;
        for entry in map.chunks_exact(unit as usize) {
            let len = rest.min(chunk);
            rest -= len;
            let entry = Bytes(entry);
            let (device, block) =
                if indexes { (entry.u16(2), entry.u32(4)) } else { (0, entry.u32(0)) };
            if block == NOWHERE {
                push(runs, Physical::Hole { len });
            } else if device == 0 {
                self.push_run(runs, block.into(), len)?;
            } else {
                let offset = u64::from(block) * BLOCK_U64;
                push(runs, Physical::Device { device, offset, len });
            }
        }
        Ok(())
    }

    /// Adds a run by its address in the image's own address space.
    fn push_run(&self, runs: &mut Vec<Physical>, block: u64, len: u64) -> Result<(), ReadError> {
        if len == 0 {
            return Ok(());
        }
        let first = u64::from(self.superblock.device_block);
        let offset = block * BLOCK_U64;
        if first > 0 && block >= first {
            let offset = offset - first * BLOCK_U64;
            if offset.saturating_add(len) > BLOCK_U64 << ADDRESS_BITS {
                return Err(ReadError::Outside { what: "content", offset });
            }
            push(runs, Physical::Device { device: 1, offset, len });
            return Ok(());
        }
        self.check("content", offset, len)?;
        push(runs, Physical::Data { offset, len });
        Ok(())
    }

    /// The whole content of a directory or a symlink.
    pub fn content(&self, inode: &ImageInode) -> Result<Vec<u8>, ReadError> {
        let wrong = |rule| ReadError::Inode { nid: inode.nid, rule };
        if inode.size > CONTENT_BYTES_MAX.min(self.source.len()) {
            return Err(wrong("its content is longer than the image"));
        }
        let runs = self.extents(inode)?.ok_or_else(|| wrong("its content is compressed"))?;
        let mut content = Vec::new();
        for run in runs {
            match run {
                Physical::Data { offset, len } => {
                    content.extend(self.read("content", offset, len)?);
                }
                Physical::Hole { len } => content.resize(content.len() + len as usize, 0),
                Physical::Device { .. } => return Err(wrong("its content is on another device")),
            }
        }
        Ok(content)
    }

    /// A directory's entries without `.` and `..`, in their order.
    pub fn entries(&self, inode: &ImageInode) -> Result<Vec<DirEntry>, ReadError> {
        let wrong = |rule| ReadError::Inode { nid: inode.nid, rule };
        if !inode.is_directory() {
            return Err(wrong("it is no directory"));
        }
        let content = self.content(inode)?;
        let mut entries = Vec::new();
        for block in content.chunks(BLOCK) {
            let bytes = Bytes(block);
            let first = usize::from(bytes.u16(8));
            if first < DIRENT || !first.is_multiple_of(DIRENT) || first > block.len() {
                return Err(wrong("its entries do not begin as they should"));
            }
            for at in (0..first).step_by(DIRENT) {
                let begin = usize::from(bytes.u16(at + 8));
                let last = at + DIRENT == first;
                let end = if last { block.len() } else { bytes.u16(at + DIRENT + 8).into() };
                let name = block.get(begin..end).filter(|_| begin >= first);
                let name = name.ok_or_else(|| wrong("an entry's name lies outside"))?;
                // The block's last name may be followed by zeros.
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if name.is_empty() || name.len() > 255 || name.contains(&b'/') {
                    return Err(wrong("an entry's name is none"));
                }
                if name != b"." && name != b".." {
                    entries.push(DirEntry { name: name.to_vec(), nid: bytes.u64(at) });
                }
            }
        }
        Ok(entries)
    }
}

/// Adds a run, as one with the last where it goes on.
fn push(runs: &mut Vec<Physical>, run: Physical) {
    match (runs.last_mut(), run) {
        (Some(Physical::Data { offset, len }), Physical::Data { offset: next, len: more })
            if *offset + *len == next =>
        {
            *len += more;
        }
        (
            Some(Physical::Device { device, offset, len }),
            Physical::Device { device: other, offset: next, len: more },
        ) if *device == other && *offset + *len == next => *len += more,
        (Some(Physical::Hole { len }), Physical::Hole { len: more }) => *len += more,
        _ => runs.push(run),
    }
}
