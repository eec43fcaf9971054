//! Where everything of an image goes.
//!
//! Directories follow each other as a walk meets them that goes into each subdirectory in turn. A directory's
//! inode has the last part of its entries behind it, then come the whole blocks of entries, if any, then
//! the inodes of what it holds, other directories excepted: looking up a path touches one place for each
//! of its names.
//!
//! Inodes with maps of several chunks lie behind all directories, and leave room where they would be with
//! one: whether a file is one run in the log often changes, and nothing should move for that.
//!
//! Inodes are known by their place, so that all that follow move if a directory grows. A directory whose
//! path says so (one of sixteen) begins a block: what is left of the block before it is room for the
//! directories there to grow, and what moves, moves by whole blocks.

use std::collections::HashMap;
use std::fmt;

use crate::chunks::Mapping;
use crate::dirents;
use crate::format::{
    ADDRESS_BITS, BLOCK, CHUNK_INDEX, INODE, INODE_BLOCKS_MAX, SLOT, crc32c, device_number,
};
use crate::tree::{Entry, Inode, Kind, Tree};
use crate::xattrs::{Counting, Shared};

const BLOCK_U64: u64 = BLOCK as u64;
/// Of so many directories one begins a block, by its path.
const GROUP: u32 = 16;
/// Bytes of chunk maps that any image may have; beyond that, as many as the files have blocks for.
const MAP_BYTES_MIN: u64 = 64 << 20;

/// Where the files' content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// On extra devices, which show the content's address space one after the other. The first one
    /// begins at this block in the image's own address space; the others are as long as it at most.
    Devices {
        /// Not less than the image has blocks.
        device_block: u64,
    },
    /// In the image.
    Inside {
        /// Where the content's block 0 is: [`Plan::blocks`] of a plan made with 0 here.
        first: u64,
        /// How many blocks of content there are.
        count: u64,
    },
}

/// Why a tree cannot be an EROFS image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// An extended attribute whose name has no place in EROFS.
    Xattr {
        /// Its name.
        name: Vec<u8>,
    },
    /// Extended attributes that are too long together.
    XattrBytes {
        /// Their length.
        len: u64,
    },
    /// A device number with too many bits.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A size that the extents do not cover, or that no file can have.
    Size {
        /// Bytes.
        size: u64,
        /// Blocks of the extents.
        blocks: u64,
    },
    /// Content that lies too far behind.
    TooFar {
        /// The block.
        block: u64,
    },
    /// Too many changes between data and holes.
    Maps {
        /// Bytes of the maps of all files.
        len: u64,
        /// Bytes that they may have.
        max: u64,
    },
    /// The image would be too long.
    TooLong {
        /// Blocks that it may have.
        max: u64,
    },
    /// The root is no directory.
    Root,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xattr { name } => {
                write!(f, "EROFS has no place for the extended attribute {}", name.escape_ascii())
            }
            Self::XattrBytes { len } => {
                write!(f, "its extended attributes have {len} bytes, more than EROFS keeps")
            }
            Self::Device { major, minor } => {
                write!(f, "EROFS cannot keep the device number {major}:{minor}")
            }
            Self::Size { size, blocks } => {
                write!(f, "its size of {size} bytes does not go with {blocks} blocks")
            }
            Self::TooFar { block } => write!(f, "block {block} lies beyond what EROFS can address"),
            Self::Maps { len, max } => {
                write!(f, "the maps of files with holes have {len} bytes, at most {max} are made")
            }
            Self::TooLong { max } => {
                write!(f, "the image has more than {max} blocks, the most that is made")
            }
            Self::Root => f.write_str("the root is no directory"),
        }
    }
}

/// Why an image cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError<E> {
    /// The tree cannot be read.
    #[error(transparent)]
    Tree(E),
    /// The tree cannot be an image.
    #[error("'{}': {why}", if path.is_empty() { ".".into() } else { path.escape_ascii().to_string() })]
    Unfit {
        /// Of which entry, below the root.
        path: Vec<u8>,
        /// Why.
        why: Unfit,
    },
}

/// An image that can be written.
pub struct Plan<'t, T: Tree> {
    pub(crate) tree: &'t T,
    pub(crate) content: Content,
    pub(crate) shared: Shared,
    pub(crate) directories: Vec<Planned<T::Directory>>,
    /// Of each entry, in the order of the walk, the inode's number.
    pub(crate) nids: Vec<u32>,
    pub(crate) inodes: u64,
    /// One past the inodes, in bytes.
    pub(crate) inode_end: u64,
    /// Where the inodes with maps of several chunks begin, in bytes.
    pub(crate) map_start: u64,
    /// Entries whose inodes have maps, and what these take.
    mapped: Vec<(usize, Shape)>,
    /// Further names of inodes: an entry, and that of the first name.
    aliases: Vec<(usize, usize)>,
    /// One past the last block of content.
    pub(crate) content_end: u64,
    map_bytes: u64,
    data_blocks: u64,
    blocks_max: u64,
}

/// A directory that has its place.
#[derive(Clone, Debug)]
pub(crate) struct Planned<D> {
    pub(crate) directory: D,
    pub(crate) parent: u32,
    pub(crate) nid: u32,
    /// Its first entry among all.
    pub(crate) first_entry: usize,
}

/// What one inode takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of extended attributes.
    pub(crate) xattrs: u64,
    /// Bytes of content that must be in the inode's block.
    pub(crate) inline: u64,
    /// Bytes of its map of chunks.
    pub(crate) map: u64,
    /// Whole blocks of content behind it.
    pub(crate) blocks: u64,
}

/// A directory that the walk will come to.
struct Pending<D> {
    directory: D,
    inode: Shape,
    parent: u32,
    /// Its entry among all; `None` for the root.
    entry: Option<usize>,
    path: Vec<u8>,
}

impl<'t, T: Tree> Plan<'t, T> {
    /// Gives everything its place. The image has at most `blocks_max` blocks before its content.
    pub fn new(
        tree: &'t T,
        content: Content,
        blocks_max: u64,
    ) -> Result<Self, PlanError<T::Error>> {
        let mut plan = Self {
            tree,
            content,
            shared: count_xattrs(tree)?,
            directories: Vec::new(),
            nids: Vec::new(),
            inodes: 0,
            inode_end: BLOCK_U64,
            map_start: 0,
            mapped: Vec::new(),
            aliases: Vec::new(),
            content_end: 0,
            map_bytes: 0,
            data_blocks: 0,
            blocks_max: blocks_max.min(INODE_BLOCKS_MAX),
        };
        plan.walk()?;
        let unfit = |why| PlanError::Unfit { path: Vec::new(), why };
        plan.place_mapped().map_err(unfit)?;
        let max = MAP_BYTES_MIN.max(plan.data_blocks * 8);
        if plan.map_bytes > max {
            return Err(unfit(Unfit::Maps { len: plan.map_bytes, max }));
        }
        if let Content::Inside { first, count } = content
            && first + count > 1 << ADDRESS_BITS
        {
            return Err(unfit(Unfit::TooFar { block: first + count }));
        }
        plan.check_length().map_err(unfit)?;
        Ok(plan)
    }

    /// Blocks of the image, without content.
    pub fn blocks(&self) -> u64 {
        self.xattr_block() + self.shared.len().div_ceil(BLOCK_U64)
    }

    /// How many extra devices the image expects.
    pub fn devices(&self) -> u16 {
        match self.content {
            Content::Devices { .. } => {
                self.content_end.div_ceil(self.content.blocks_a_device()).max(1) as u16
            }
            Content::Inside { .. } => 0,
        }
    }

    /// Where the shared extended attributes begin.
    pub(crate) fn xattr_block(&self) -> u64 {
        self.inode_end.div_ceil(BLOCK_U64)
    }

    fn check_length(&self) -> Result<(), Unfit> {
        let max = self.blocks_max;
        if self.blocks() > max { Err(Unfit::TooLong { max }) } else { Ok(()) }
    }

    fn walk(&mut self) -> Result<(), PlanError<T::Error>> {
        let root = self.tree.root();
        let unfit = |why| PlanError::Unfit { path: Vec::new(), why };
        let inode = self.shape(&root).map_err(unfit)?;
        let Kind::Directory(directory) = root.kind else { return Err(unfit(Unfit::Root)) };
        let mut pending =
            vec![Pending { directory, inode, parent: 0, entry: None, path: Vec::new() }];
        let mut links = HashMap::new();
        while let Some(next) = pending.pop() {
            let first_child = pending.len();
            self.visit(next, &mut links, &mut pending)?;
            pending[first_child..].reverse();
        }
        Ok(())
    }

    fn visit(
        &mut self,
        at: Pending<T::Directory>,
        links: &mut HashMap<u64, usize>,
        pending: &mut Vec<Pending<T::Directory>>,
    ) -> Result<(), PlanError<T::Error>> {
        let entries = self.tree.entries(&at.directory).map_err(PlanError::Tree)?;
        let unfit = |name: &[u8], why| PlanError::Unfit { path: join(&at.path, name), why };
        if crc32c(0, &at.path).is_multiple_of(GROUP) {
            self.inode_end = self.inode_end.next_multiple_of(BLOCK_U64);
        }
        let nid = self.place(directory_shape(at.inode, &entries)).map_err(|why| unfit(b"", why))?;
        if let Some(entry) = at.entry {
            self.nids[entry] = nid;
        }
        let index = self.directories.len() as u32;
        let first_entry = self.nids.len();
        let Pending { directory, parent, .. } = at;
        self.directories.push(Planned { directory, parent, nid, first_entry });
        for Entry { name, inode } in entries {
            let shape = self.shape(&inode).map_err(|why| unfit(&name, why))?;
            let place = |plan: &mut Self| plan.place(shape).map_err(|why| unfit(&name, why));
            let entry = self.nids.len();
            let first = inode.link.map_or(entry, |link| *links.entry(link.id).or_insert(entry));
            let nid = if let Kind::Directory(directory) = inode.kind {
                let path = join(&at.path, &name);
                let entry = Some(entry);
                pending.push(Pending { directory, inode: shape, parent: index, entry, path });
                0
            } else if first != entry {
                self.aliases.push((entry, first));
                0
            } else {
                place(self)?
            };
            self.nids.push(nid);
        }
        Ok(())
    }

    /// Gives the inodes with maps of several chunks their numbers, and further names those of the first.
    fn place_mapped(&mut self) -> Result<(), Unfit> {
        self.inode_end = self.inode_end.next_multiple_of(BLOCK_U64);
        self.map_start = self.inode_end;
        for (entry, shape) in std::mem::take(&mut self.mapped) {
            self.nids[entry] = self.place_here(shape)?;
        }
        for (entry, first) in std::mem::take(&mut self.aliases) {
            self.nids[entry] = self.nids[first];
        }
        Ok(())
    }

    /// Gives the inode of the next entry its number, or leaves the place that it would have as one run.
    fn place(&mut self, shape: Shape) -> Result<u32, Unfit> {
        if shape.map <= CHUNK_INDEX {
            return self.place_here(shape);
        }
        self.mapped.push((self.nids.len(), shape));
        self.inodes -= 1;
        let one_run = if self.content.is_inside() { 0 } else { CHUNK_INDEX };
        self.place_here(Shape { map: one_run, ..shape })
    }

    fn place_here(&mut self, shape: Shape) -> Result<u32, Unfit> {
        let at = place(self.inode_end, shape);
        self.inode_end = shape.end(at);
        self.inodes += 1;
        self.check_length()?;
        // Within the length there are fewer than 2^32 places.
        Ok((at / SLOT) as u32)
    }

    /// What an inode takes; of a directory, without its entries.
    fn shape(&mut self, inode: &Inode<'_, T::Directory>) -> Result<Shape, Unfit> {
        let mut shape = Shape { xattrs: self.shared.inode_len(&inode.xattrs)?, ..Shape::default() };
        match &inode.kind {
            Kind::File(file) => {
                shape.map = Mapping::new(file, self.content)?.len();
                self.map_bytes += shape.map;
                for extent in &file.extents {
                    if let crate::Extent::Data { start, count } = extent {
                        self.content_end = self.content_end.max(start + count);
                        self.data_blocks += count;
                    }
                }
            }
            Kind::Symlink(target) => shape = shape.with_tail(0, target.len() as u64),
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                let (major, minor) = (*major, *minor);
                device_number(major, minor).ok_or(Unfit::Device { major, minor })?;
            }
            Kind::Directory(_) | Kind::Fifo | Kind::Socket => {}
        }
        Ok(shape)
    }
}

impl Shape {
    /// With content of whole blocks and a tail, which goes with the inode if their block has room.
    pub(crate) fn with_tail(self, whole: u64, tail: u64) -> Self {
        let whole = whole / BLOCK_U64;
        if INODE + self.xattrs + tail <= BLOCK_U64 {
            Self { inline: tail, blocks: whole, ..self }
        } else {
            Self { inline: 0, blocks: whole + 1, ..self }
        }
    }

    /// Where the map begins.
    pub(crate) const fn map_at(self, at: u64) -> u64 {
        (at + INODE + self.xattrs).next_multiple_of(8)
    }

    /// Where the whole blocks begin.
    pub(crate) const fn blocks_at(self, at: u64) -> u64 {
        (at + INODE + self.xattrs + self.inline).next_multiple_of(BLOCK_U64)
    }

    /// One past all of it, for an inode at byte `at`.
    const fn end(self, at: u64) -> u64 {
        if self.blocks > 0 {
            return self.blocks_at(at) + self.blocks * BLOCK_U64;
        }
        if self.map > 0 {
            return self.map_at(at) + self.map;
        }
        at + INODE + self.xattrs + self.inline
    }
}

/// What a directory takes with its entries.
pub(crate) fn directory_shape<D>(inode: Shape, entries: &[Entry<'_, D>]) -> Shape {
    let mut names: Vec<&[u8]> = entries.iter().map(|entry| &*entry.name).collect();
    names.extend([&b"."[..], b".."]);
    names.sort_unstable();
    let (whole, tail) = dirents::lengths(names.into_iter());
    inode.with_tail(whole, tail)
}

/// Where an inode goes that comes behind byte `end`: it never lies in two blocks, nor does what must be in
/// one block with it.
fn place(end: u64, shape: Shape) -> u64 {
    let at = end.next_multiple_of(SLOT);
    let together = if shape.inline > 0 { INODE + shape.xattrs + shape.inline } else { INODE };
    if at % BLOCK_U64 + together > BLOCK_U64 { at.next_multiple_of(BLOCK_U64) } else { at }
}

/// A path with one name more; of an empty name, the path.
fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if path.is_empty() || name.is_empty() { b"" } else { b"/" };
    [path, separator, name].concat()
}

fn count_xattrs<T: Tree>(tree: &T) -> Result<Shared, PlanError<T::Error>> {
    let mut counting = Counting::default();
    let root = tree.root();
    root.xattrs.iter().for_each(|xattr| counting.meet(xattr));
    let mut pending = match root.kind {
        Kind::Directory(directory) => vec![directory],
        _ => Vec::new(),
    };
    let mut links = std::collections::HashSet::new();
    while let Some(directory) = pending.pop() {
        for Entry { inode, .. } in tree.entries(&directory).map_err(PlanError::Tree)? {
            // Several names have one inode, and that has its attributes once.
            if inode.link.is_none_or(|link| inode.xattrs.is_empty() || links.insert(link.id)) {
                inode.xattrs.iter().for_each(|xattr| counting.meet(xattr));
            }
            if let Kind::Directory(directory) = inode.kind {
                pending.push(directory);
            }
        }
    }
    Ok(counting.finish())
}
