//! Walking a release from outside the mount: what `pin` and `cache evict` need to know.

use std::collections::HashSet;
use std::path::{Component, Path};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::limits::TREE_DEPTH_MAX;
use distd_core::manifest::{
    Content, DirectoryNode, Entry, EntryKind, Extent, ExtentList, File, NodeError, Release,
};
use distd_core::unit::{BlockRange, ByteRange};

use crate::blocks::{Blocks, Unavailable, read_bytes};

use super::ranges::merged;

/// Why a path's blocks are not known.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// No entry of that name.
    #[error("{} is not in the release", .path.escape_debug())]
    NoEntry {
        /// The path within the release.
        path: String,
    },
    /// Metadata that is not local and that nobody sends.
    #[error("metadata could not be read: {0}")]
    Unavailable(#[from] Unavailable),
    /// Metadata that is wrong.
    #[error("metadata at byte {offset} of the log: {source}")]
    Damaged {
        /// Where it lies.
        offset: u64,
        /// What is wrong.
        source: NodeError,
    },
    /// Deeper than a tree may be.
    #[error("the tree is deeper than {TREE_DEPTH_MAX} directories")]
    Depth,
}

/// Where a part of a release lies, each list sorted and merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Content of files.
    pub content: Vec<BlockRange>,
    /// Directory nodes and extent lists.
    pub metadata: Vec<BlockRange>,
}

/// The blocks of the entry at `path` of a release and of everything below it. Symbolic links are not
/// followed. Each node is waited for up to `timeout`.
pub fn walk<B: Blocks + ?Sized>(
    blocks: &B,
    release: &Release,
    path: &Path,
    timeout: Duration,
) -> Result<Place, WalkError> {
    let mut walker = Walker { blocks, timeout, found: Place::default(), seen: HashSet::new() };
    let entry = walker.resolve(release, path)?;
    let mut level = vec![entry];
    for _ in 0..=TREE_DEPTH_MAX {
        let mut below = Vec::new();
        for entry in level {
            below.extend(walker.take(&entry)?);
        }
        if below.is_empty() {
            let Place { content, metadata } = walker.found;
            return Ok(Place { content: merged(content), metadata: merged(metadata) });
        }
        level = below;
    }
    Err(WalkError::Depth)
}

/// Calls `visit` for each regular file of a release, with its path and its extents; of directories that are
/// the same, for the first. Each node is waited for up to `timeout`.
pub(super) fn files<B: Blocks + ?Sized>(
    blocks: &B,
    release: &Release,
    timeout: Duration,
    mut visit: impl FnMut(&[u8], Vec<Extent>),
) -> Result<(), WalkError> {
    let mut walker = Walker { blocks, timeout, found: Place::default(), seen: HashSet::new() };
    let mut pending = vec![(Vec::new(), release.root.clone(), 0)];
    while let Some((path, entry, depth)) = pending.pop() {
        match &entry.kind {
            EntryKind::File(file) => visit(&path, walker.extents(file)?),
            EntryKind::Directory(directory) if walker.seen.insert(directory.node) => {
                if depth >= TREE_DEPTH_MAX {
                    return Err(WalkError::Depth);
                }
                let node = walker.directory(directory.node)?;
                for entry in node.entries().iter().rev() {
                    let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    let path = [&path[..], separator, entry.name.as_bytes()].concat();
                    pending.push((path, entry.clone(), depth + 1));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

struct Walker<'a, B: ?Sized> {
    blocks: &'a B,
    timeout: Duration,
    found: Place,
    /// Directory nodes seen: one that is shared is walked once.
    seen: HashSet<ByteRange>,
}

impl<B: Blocks + ?Sized> Walker<'_, B> {
    fn resolve(&self, release: &Release, path: &Path) -> Result<Entry, WalkError> {
        use std::os::unix::ffi::OsStrExt;
        let mut entry = release.root.clone();
        let no_entry = || WalkError::NoEntry { path: path.display().to_string() };
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let EntryKind::Directory(directory) = entry.kind else { return Err(no_entry()) };
            let node = self.directory(directory.node)?;
            let index = node.position(name.as_bytes()).ok_or_else(no_entry)?;
            entry = node.entries()[index].clone();
        }
        Ok(entry)
    }

    /// Takes note of an entry's blocks and gives what is below it.
    fn take(&mut self, entry: &Entry) -> Result<Vec<Entry>, WalkError> {
        match &entry.kind {
            EntryKind::File(file) => match &file.content {
                Content::Extents(extents) => self.found.content.extend(extents.data()),
                Content::List(list) => {
                    self.found.metadata.push(list.blocks());
                    let bytes = self.read(*list)?;
                    let damaged = |source| WalkError::Damaged { offset: list.offset, source };
                    let extents = ExtentList::decode(&bytes, file.size).map_err(damaged)?;
                    self.found.content.extend(extents.data());
                }
            },
            EntryKind::Directory(directory) if self.seen.insert(directory.node) => {
                self.found.metadata.push(directory.node.blocks());
                return Ok(self.directory(directory.node)?.entries().to_vec());
            }
            _ => {}
        }
        Ok(Vec::new())
    }

    fn extents(&self, file: &File) -> Result<Vec<Extent>, WalkError> {
        match &file.content {
            Content::Extents(extents) => Ok(extents.iter().collect()),
            Content::List(list) => {
                let damaged = |source| WalkError::Damaged { offset: list.offset, source };
                let bytes = self.read(*list)?;
                let extents = ExtentList::decode(&bytes, file.size).map_err(damaged)?;
                Ok(extents.iter().collect())
            }
        }
    }

    fn directory(&self, range: ByteRange) -> Result<DirectoryNode, WalkError> {
        let damaged = |source| WalkError::Damaged { offset: range.offset, source };
        DirectoryNode::decode(&self.read(range)?).map_err(damaged)
    }

    fn read(&self, range: ByteRange) -> Result<Bytes, Unavailable> {
        read_bytes(self.blocks, range, Instant::now() + self.timeout)
    }
}
