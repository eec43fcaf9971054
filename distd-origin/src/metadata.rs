//! From the scanned tree and its files' extents to directory nodes in the log.
//!
//! Nodes are laid out bottom-up, as a directory's node names the places of the nodes below it: the
//! tree breadth first, backwards. So the children of one directory lie side by side, and the root's
//! node comes last. A file with many extents has an extent list, just before its directory's node.
//!
//! ```text
//! tree   /  usr lib  usr/bin usr/share          area   | usr/share usr/bin | lib usr | / |
//! ```
//!
//! A node whose bytes the log holds is referenced. The layout is computed twice: first to see what
//! it comes to, then, if it is wanted, to be written.

use std::collections::HashMap;

use distd_core::limits::{INLINE_EXTENTS_MAX, METADATA_EXTENTS_MAX, NODE_BYTES_MAX};
use distd_core::manifest::{
    Content, Directory, DirectoryNode, Entry, EntryKind, ExtentList, File, NodeError, Totals,
};
use distd_core::unit::{BlockRange, ByteRange};

use crate::scan::{DirectoryIndex, Scan, ScannedEntry, ScannedKind, TreePath};
use crate::stat_cache::KnownContent;

/// A release whose nodes lie in more runs than this gets all its nodes anew, side by side, so that
/// a mount can fetch them in one sweep.
const RUNS_MAX: usize = METADATA_EXTENTS_MAX / 8;

/// Why the metadata cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Two entries of one name, or one that the format refuses.
    #[error("the directory '{path}' cannot be encoded: {source}; nothing was published")]
    Node {
        /// The directory.
        path: TreePath,
        /// Why.
        source: NodeError,
    },
    /// A directory whose node would be too long.
    #[error(
        "the metadata of '{path}' has {found} bytes, at most {NODE_BYTES_MAX} are possible; split the directory; nothing was published"
    )]
    TooLong {
        /// The directory, or the file whose extents they are.
        path: TreePath,
        /// Bytes that its node would have.
        found: u64,
    },
}

/// Where everything of a release's metadata lies.
#[derive(Debug)]
pub struct Layout {
    /// The root's entry, for the release record.
    pub root: Entry,
    /// Runs of blocks that hold the nodes, sorted.
    pub runs: Vec<BlockRange>,
    /// Nodes that are new, by `blake3(node)`.
    pub new_nodes: Vec<([u8; 32], ByteRange)>,
    /// One past the last byte written.
    pub end: u64,
}

/// The tree with the content of its files.
pub struct Tree<'a> {
    /// The tree.
    pub scan: &'a Scan,
    /// By the file's number.
    pub contents: &'a [KnownContent],
}

impl Tree<'_> {
    /// Lays the nodes out from byte `start` on. `known` says where the log holds a node already;
    /// `write` gets the bytes of the new ones, in order.
    pub fn lay_out<E: From<LayoutError>>(
        &self,
        start: u64,
        mut known: impl FnMut(&[u8; 32]) -> Result<Option<ByteRange>, E>,
        mut write: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Layout, E> {
        let mut nodes: Vec<Directory> = vec![NOWHERE; self.scan.directories.len()];
        let mut area = Area { end: start, new: HashMap::new(), ranges: Vec::new() };
        for index in breadth_first(self.scan).into_iter().rev() {
            let mut entries = Vec::new();
            for (position, entry) in self.scan.directory(index).entries.iter().enumerate() {
                let kind = match &entry.kind {
                    ScannedKind::File(file) => {
                        let known_content = &self.contents[file.0 as usize];
                        let content = if let Some(content) = inline(known_content) {
                            content
                        } else {
                            let bytes = ExtentList::encode(&known_content.extents);
                            let path = || self.scan.entry_path(index, position as u32);
                            check_len(&bytes, path)?;
                            Content::List(area.place(&bytes, &mut known, &mut write)?)
                        };
                        let size = entry.attributes.size;
                        EntryKind::File(File { size, blake3: known_content.blake3, content })
                    }
                    other => plain_kind(other, &nodes),
                };
                entries.push(to_entry(entry, kind));
            }
            let path = || self.scan.directory_path(index);
            let node = DirectoryNode::new(entries)
                .map_err(|source| LayoutError::Node { path: path(), source })?;
            let bytes = node.encode();
            check_len(&bytes, path)?;
            let range = area.place(&bytes, &mut known, &mut write)?;
            nodes[index.0 as usize] =
                Directory { node: range, subdirectories: node.subdirectories() };
        }
        let root = to_entry(&self.scan.root, EntryKind::Directory(nodes[0]));
        let mut new_nodes: Vec<_> = area.new.into_iter().collect();
        new_nodes.sort_unstable_by_key(|(_, range)| range.offset);
        Ok(Layout { root, runs: merge(area.ranges), new_nodes, end: area.end })
    }

    /// What the tree holds.
    pub fn totals(&self, new_bytes: u64) -> Totals {
        let mut totals = Totals { new_bytes, ..Totals::default() };
        totals.directories = self.scan.directories.len() as u64;
        for entry in self.scan.directories.iter().flat_map(|directory| &directory.entries) {
            match entry.kind {
                ScannedKind::File(_) => totals.files += 1,
                ScannedKind::Directory(_) => {}
                _ => totals.others += 1,
            }
        }
        for index in 0..self.scan.files.len() {
            totals.bytes += self.scan.file(crate::scan::FileIndex(index as u32)).attributes.size;
        }
        totals
    }
}

impl Layout {
    /// Whether a mount would have to fetch the nodes from too many places.
    pub fn is_scattered(&self) -> bool {
        self.runs.len() > RUNS_MAX
    }

    /// The runs as a release record lists them.
    pub fn listed_runs(&self) -> Vec<BlockRange> {
        if self.runs.len() > METADATA_EXTENTS_MAX { Vec::new() } else { self.runs.clone() }
    }
}

/// Before a directory has been placed. No release ever refers to it: children come first.
const NOWHERE: Directory = Directory { node: ByteRange { offset: 0, len: 0 }, subdirectories: 0 };

/// The area of new nodes, and all nodes met so far.
struct Area {
    end: u64,
    new: HashMap<[u8; 32], ByteRange>,
    ranges: Vec<ByteRange>,
}

impl Area {
    fn place<E>(
        &mut self,
        bytes: &[u8],
        known: &mut impl FnMut(&[u8; 32]) -> Result<Option<ByteRange>, E>,
        write: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<ByteRange, E> {
        let hash = *blake3::hash(bytes).as_bytes();
        let found = match self.new.get(&hash) {
            Some(range) => Some(*range),
            None => known(&hash)?.filter(|range| range.len == bytes.len() as u64),
        };
        if let Some(range) = found {
            self.ranges.push(range);
            return Ok(range);
        }
        let range = ByteRange { offset: self.end, len: bytes.len() as u64 };
        write(bytes)?;
        self.end += range.len;
        self.new.insert(hash, range);
        self.ranges.push(range);
        Ok(range)
    }
}

fn breadth_first(scan: &Scan) -> Vec<DirectoryIndex> {
    let mut order = vec![DirectoryIndex(0)];
    let mut next = 0;
    while let Some(index) = order.get(next).copied() {
        next += 1;
        let children = scan.directory(index).entries.iter().filter_map(|entry| match entry.kind {
            ScannedKind::Directory(child) => Some(child),
            _ => None,
        });
        order.extend(children);
    }
    order
}

fn inline(known: &KnownContent) -> Option<Content> {
    (known.extents.len() <= INLINE_EXTENTS_MAX).then(|| Content::Extents(known.extents.clone()))
}

/// All kinds but files.
fn plain_kind(kind: &ScannedKind, nodes: &[Directory]) -> EntryKind {
    match kind {
        ScannedKind::Directory(child) => EntryKind::Directory(nodes[child.0 as usize]),
        ScannedKind::Symlink(target) => EntryKind::Symlink(target.to_vec()),
        ScannedKind::CharDevice(device) => EntryKind::CharDevice(*device),
        ScannedKind::BlockDevice(device) => EntryKind::BlockDevice(*device),
        ScannedKind::Fifo => EntryKind::Fifo,
        ScannedKind::Socket | ScannedKind::File(_) => EntryKind::Socket,
    }
}

fn to_entry(scanned: &ScannedEntry, kind: EntryKind) -> Entry {
    Entry {
        name: scanned.name.clone(),
        mode: scanned.attributes.mode,
        uid: scanned.attributes.uid,
        gid: scanned.attributes.gid,
        mtime: scanned.attributes.mtime,
        xattrs: scanned.xattrs.clone(),
        link: scanned.link,
        kind,
    }
}

fn check_len(bytes: &[u8], path: impl Fn() -> TreePath) -> Result<(), LayoutError> {
    let found = bytes.len() as u64;
    if found <= NODE_BYTES_MAX { Ok(()) } else { Err(LayoutError::TooLong { path: path(), found }) }
}

/// The blocks of the ranges, sorted and merged.
fn merge(mut ranges: Vec<ByteRange>) -> Vec<BlockRange> {
    ranges.sort_unstable();
    let mut runs: Vec<BlockRange> = Vec::new();
    for range in ranges {
        let blocks = range.blocks();
        match runs.last_mut() {
            Some(last) if blocks.start <= last.end() => {
                let end = last.end().max(blocks.end());
                last.count = end.0 - last.start.0;
            }
            _ => runs.push(blocks),
        }
    }
    runs
}
