//! Writing an image that was planned, from front to back.

use crate::chunks::{self, Mapping};
use crate::dirents::{self, Dirent};
use crate::format::{
    BLOCK, CHUNK_BASED, CHUNK_INDEXES, Device, EXTENDED, FLAT_INLINE, FLAT_PLAIN, INODE, Record,
    SLOT, Superblock, TYPE_BLOCK, TYPE_CHAR, TYPE_DIRECTORY, TYPE_FIFO, TYPE_FILE, TYPE_SOCKET,
    TYPE_SYMLINK, device_number,
};
use crate::plan::{Content, Plan, Planned, Shape, directory_shape};
use crate::tree::{Entry, File, Inode, Kind, Tree};
use crate::xattrs;

const BLOCK_U64: u64 = BLOCK as u64;
/// Bytes that are handed over at once.
const BUFFER_BYTES: usize = 1 << 20;

impl<'t, T: Tree> Plan<'t, T> {
    /// Writes the image without content: whole blocks, in order.
    pub fn write<E: From<T::Error>>(
        &self,
        sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let root = self.tree.root();
        let mut out = Out { buffer: Vec::new(), written: 0, sink };
        out.push(&self.superblock(root.attributes.mtime_s))?;
        let mut pending = vec![root];
        let mut mapped = Vec::new();
        for planned in &self.directories {
            // There are as many directories as were planned, in the same order.
            let Some(inode) = pending.pop() else { break };
            let entries = self.tree.entries(&planned.directory)?;
            self.write_directory(planned, &inode, &entries, &mut out)?;
            let first_child = pending.len();
            for (entry, nid) in entries.into_iter().zip(&self.nids[planned.first_entry..]) {
                match entry.inode.kind {
                    Kind::Directory(_) => pending.push(entry.inode),
                    _ if u64::from(*nid) * SLOT >= self.map_start => {
                        mapped.push((*nid, entry.inode));
                    }
                    _ => self.write_entry(&entry.inode, *nid, &mut out)?,
                }
            }
            pending[first_child..].reverse();
        }
        mapped.sort_by_key(|(nid, _)| *nid);
        mapped.dedup_by_key(|(nid, _)| *nid);
        for (nid, inode) in &mapped {
            self.write_entry(inode, *nid, &mut out)?;
        }
        out.pad_to(self.xattr_block() * BLOCK_U64)?;
        for xattr in self.shared.encode() {
            out.push(&xattr)?;
        }
        out.pad_to(self.blocks() * BLOCK_U64)?;
        out.finish()
    }

    fn superblock(&self, time_s: i64) -> Vec<u8> {
        let slot = self.content.blocks_a_device();
        let device = |index: u64| Device {
            blocks: self.content_end.saturating_sub(index * slot).clamp(1, slot) as u32,
            address: if index == 0 { self.content.first() as u32 } else { 0 },
        };
        let devices: Vec<Device> = (0..u64::from(self.devices())).map(device).collect();
        let blocks = match self.content {
            Content::Devices { .. } => self.blocks(),
            Content::Inside { first, count } => first + count,
        };
        Superblock {
            root_nid: self.directories.first().map_or(0, |root| root.nid as u16),
            inodes: self.inodes,
            time_s: time_s.max(0) as u64,
            time_ns: 0,
            blocks: blocks.min(u64::from(u32::MAX)) as u32,
            xattr_block: self.xattr_block() as u32,
            devices: &devices,
        }
        .encode()
    }

    /// Writes a directory's inode and its entries.
    fn write_directory<E>(
        &self,
        planned: &Planned<T::Directory>,
        inode: &Inode<'t, T::Directory>,
        entries: &[Entry<'t, T::Directory>],
        out: &mut Out<impl FnMut(&[u8]) -> Result<(), E>>,
    ) -> Result<(), E> {
        let shape = Shape { xattrs: self.xattrs_len(inode), ..Shape::default() };
        let shape = directory_shape(shape, entries);
        let parent = self.directories[planned.parent as usize].nid;
        let dirents = entries.iter().zip(&self.nids[planned.first_entry..]);
        let dirents = dirents.map(|(entry, nid)| Dirent {
            name: &entry.name,
            nid: u64::from(*nid),
            file_type: file_type(&entry.inode.kind),
        });
        let own = u64::from(planned.nid);
        let content = dirents::encode(&dirents::with_dots(dirents.collect(), own, parent.into()));
        let subdirectories = entries.iter().filter(|e| matches!(e.inode.kind, Kind::Directory(_)));
        let at = own * SLOT;
        let body = Body {
            layout: if shape.inline > 0 { FLAT_INLINE } else { FLAT_PLAIN },
            size: content.len() as u64,
            union: if shape.blocks > 0 { (shape.blocks_at(at) / BLOCK_U64) as u32 } else { 0 },
            links: 2 + subdirectories.count() as u32,
        };
        self.write_inode(inode, at, &body, out)?;
        let (whole, tail) = content.split_at(content.len() - shape.inline as usize);
        out.push(tail)?;
        if shape.blocks > 0 {
            out.pad_to(shape.blocks_at(at))?;
            out.push(whole)?;
            out.pad_to(shape.blocks_at(at) + shape.blocks * BLOCK_U64)?;
        }
        Ok(())
    }

    /// Writes the inode of an entry that is no directory; of several names, with the first.
    fn write_entry<E>(
        &self,
        inode: &Inode<'t, T::Directory>,
        nid: u32,
        out: &mut Out<impl FnMut(&[u8]) -> Result<(), E>>,
    ) -> Result<(), E> {
        let at = u64::from(nid) * SLOT;
        if at < out.at() {
            return Ok(());
        }
        let links = inode.link.map_or(1, |link| link.count);
        let special = |union| Body { layout: FLAT_PLAIN, size: 0, union, links };
        match &inode.kind {
            Kind::File(file) => self.write_file(inode, at, file, links, out),
            Kind::Symlink(target) => self.write_symlink(inode, at, target, links, out),
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                let number = device_number(*major, *minor).unwrap_or_default();
                self.write_inode(inode, at, &special(number), out)
            }
            Kind::Fifo | Kind::Socket | Kind::Directory(_) => {
                self.write_inode(inode, at, &special(0), out)
            }
        }
    }

    fn write_file<E>(
        &self,
        inode: &Inode<'t, T::Directory>,
        at: u64,
        file: &File,
        links: u32,
        out: &mut Out<impl FnMut(&[u8]) -> Result<(), E>>,
    ) -> Result<(), E> {
        // What does not fit was found when it was planned.
        let mapping = Mapping::new(file, self.content).unwrap_or(Mapping::Flat(0));
        let size = file.size;
        let bits = match mapping {
            Mapping::Flat(union) => {
                let body = Body { layout: FLAT_PLAIN, size, union, links };
                return self.write_inode(inode, at, &body, out);
            }
            Mapping::Map { bits, .. } => bits,
        };
        let union = u32::from(CHUNK_INDEXES | bits as u16);
        self.write_inode(inode, at, &Body { layout: CHUNK_BASED, size, union, links }, out)?;
        let shape = Shape { xattrs: self.xattrs_len(inode), ..Shape::default() };
        out.pad_to(shape.map_at(at))?;
        for entry in chunks::entries(file, bits, self.content) {
            out.push(&entry)?;
        }
        Ok(())
    }

    fn write_symlink<E>(
        &self,
        inode: &Inode<'t, T::Directory>,
        at: u64,
        target: &[u8],
        links: u32,
        out: &mut Out<impl FnMut(&[u8]) -> Result<(), E>>,
    ) -> Result<(), E> {
        let size = target.len() as u64;
        let shape = Shape { xattrs: self.xattrs_len(inode), ..Shape::default() };
        let shape = shape.with_tail(0, size);
        let block = shape.blocks_at(at);
        if shape.blocks == 0 {
            self.write_inode(inode, at, &Body { layout: FLAT_INLINE, size, union: 0, links }, out)?;
            return out.push(target);
        }
        let union = (block / BLOCK_U64) as u32;
        self.write_inode(inode, at, &Body { layout: FLAT_PLAIN, size, union, links }, out)?;
        out.pad_to(block)?;
        out.push(target)?;
        out.pad_to(block + shape.blocks * BLOCK_U64)
    }

    fn write_inode<E>(
        &self,
        inode: &Inode<'t, T::Directory>,
        at: u64,
        body: &Body,
        out: &mut Out<impl FnMut(&[u8]) -> Result<(), E>>,
    ) -> Result<(), E> {
        out.pad_to(at)?;
        let xattrs = self.shared.encode_inode(&inode.xattrs);
        let attributes = &inode.attributes;
        let mut record = Record::default();
        record.u16(EXTENDED | (body.layout << 1)).u16(xattrs::count(xattrs.len() as u64) as u16);
        record.u16(mode_of(&inode.kind) | attributes.mode).u16(0).u64(body.size).u32(body.union);
        // The inode's number for 32-bit machines, which nothing reads.
        record.u32(0).u32(attributes.uid).u32(attributes.gid);
        record.u64(attributes.mtime_s as u64).u32(attributes.mtime_ns).u32(body.links);
        record.pad_to(INODE as usize).bytes(&xattrs);
        out.push(&record.0)
    }

    fn xattrs_len(&self, inode: &Inode<'t, T::Directory>) -> u64 {
        self.shared.inode_len(&inode.xattrs).unwrap_or_default()
    }
}

/// What an inode says of its content.
struct Body {
    layout: u16,
    size: u64,
    /// The field that depends on the layout: an address, a device number, a chunk format.
    union: u32,
    links: u32,
}

fn file_type<D>(kind: &Kind<'_, D>) -> u8 {
    match kind {
        Kind::File(_) => TYPE_FILE,
        Kind::Directory(_) => TYPE_DIRECTORY,
        Kind::Symlink(_) => TYPE_SYMLINK,
        Kind::CharDevice { .. } => TYPE_CHAR,
        Kind::BlockDevice { .. } => TYPE_BLOCK,
        Kind::Fifo => TYPE_FIFO,
        Kind::Socket => TYPE_SOCKET,
    }
}

/// The kind's bits of `st_mode`.
fn mode_of<D>(kind: &Kind<'_, D>) -> u16 {
    match kind {
        Kind::File(_) => 0o100_000,
        Kind::Directory(_) => 0o040_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::Fifo => 0o010_000,
        Kind::Socket => 0o140_000,
    }
}

/// Bytes on their way out, in whole blocks.
struct Out<S> {
    buffer: Vec<u8>,
    written: u64,
    sink: S,
}

impl<E, S: FnMut(&[u8]) -> Result<(), E>> Out<S> {
    fn at(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < BUFFER_BYTES {
            return Ok(());
        }
        let whole = self.buffer.len() / BLOCK * BLOCK;
        (self.sink)(&self.buffer[..whole])?;
        self.buffer.drain(..whole);
        self.written += whole as u64;
        Ok(())
    }

    /// Zeros up to byte `at`; never many, as nothing is placed far behind the end.
    fn pad_to(&mut self, at: u64) -> Result<(), E> {
        let missing = at.saturating_sub(self.at());
        self.push(&vec![0; missing as usize])
    }

    fn finish(mut self) -> Result<(), E> {
        if self.buffer.is_empty() { Ok(()) } else { (self.sink)(&std::mem::take(&mut self.buffer)) }
    }
}
