//! The file system without FUSE: what lookups, attributes, directories and reads answer.
//!
//! Every operation hands its answer to a continuation. Where everything is local it is called on the
//! spot; where something is missing it travels with the request and is called from the node's
//! thread, so that no FUSE thread ever waits for the network. An operation ends by its deadline.

mod accessed;
mod attributes;
mod extent_map;
mod failed;
mod nodes;
mod ranges;
mod read;
mod readahead;
mod sweep;
mod switch;
mod trace;
mod view;
mod walk;
mod warm;
mod xattr;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use distd_core::limits::{BLOCK_BYTES, TREE_DEPTH_MAX};
use distd_core::manifest::{Access, Content, DirectoryNode, Entry, EntryKind, File};
use distd_core::unit::ByteRange;

pub(crate) use accessed::Accessed;
pub use attributes::{Attributes, Kind};
pub use extent_map::ExtentMap;
pub(crate) use failed::Failed;
pub use nodes::{Decoded, FetchError, Form, Nodes, Outcome};
pub use ranges::{blocks_of, merged, shared, without};
pub use read::Seek;
pub use switch::Stale;
pub use view::View;
pub use walk::{Place as ReleasePlace, WalkError, walk};
pub use warm::warm;
pub use xattr::Local;

use crate::blocks::Blocks;
use crate::errno::Failure;
use crate::inode::{Inode, Inodes, Place, ROOT};
use crate::journal::Journal;
use readahead::ReadAhead;

/// A continuation that takes the outcome of an operation.
pub trait Then<T>: FnOnce(Result<T, Failure>) + Send + 'static {}
impl<T, F: FnOnce(Result<T, Failure>) + Send + 'static> Then<T> for F {}

/// A mounted release.
pub struct Fs<B> {
    pub(crate) blocks: Arc<B>,
    pub(crate) nodes: Arc<Nodes<B>>,
    pub(crate) inodes: Inodes,
    pub(crate) readahead: ReadAhead,
    pub(crate) failed: failed::Failed,
    pub(crate) trace: trace::Trace,
    pub(crate) journal: Journal,
    timeout: Duration,
    /// A switch is going on: what is found is not to be remembered.
    switching: AtomicBool,
}

/// Sizes of the file system, for `statfs(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// 4 KiB blocks of all files.
    pub blocks: u64,
    /// Inodes.
    pub files: u64,
}

/// An inode together with its entry.
pub struct Found {
    /// The inode.
    pub inode: Inode,
    source: Source,
}

enum Source {
    Root,
    Entry(Arc<DirectoryNode>, usize),
}

impl Found {
    /// The entry.
    pub fn entry(&self) -> &Entry {
        match &self.source {
            Source::Root => self.inode.view.root(),
            Source::Entry(node, index) => &node.entries()[*index],
        }
    }
}

/// A directory's entries, for `readdir(2)`.
pub struct Listing {
    /// The directory.
    pub inode: Inode,
    directory: ByteRange,
    node: Arc<DirectoryNode>,
    /// Of a release that the directory no longer shows: begun before a switch.
    former: bool,
}

impl<B: Blocks> Fs<B> {
    /// Shows `view` of the log `blocks`; an operation that needs the network fails after `timeout`.
    pub fn new(blocks: Arc<B>, view: Arc<View>, timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            nodes: Arc::new(Nodes::new(Arc::clone(&blocks))),
            blocks,
            inodes: Inodes::new(view),
            readahead: ReadAhead::default(),
            failed: failed::Failed::default(),
            trace: trace::Trace::default(),
            journal: Journal::default(),
            timeout,
            switching: AtomicBool::new(false),
        })
    }

    /// The release at the root.
    pub fn view(&self) -> Arc<View> {
        self.inodes.view()
    }

    /// Inodes that the kernel remembers.
    pub fn remembered(&self) -> usize {
        self.inodes.len()
    }

    /// The blocks behind it.
    pub fn blocks(&self) -> &Arc<B> {
        &self.blocks
    }

    /// How long an operation waits for the network.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// When an operation that begins now must have ended.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Finds an entry by name; counts a lookup of its inode. `None`: there is no such entry.
    pub fn lookup(self: &Arc<Self>, parent: u64, name: &[u8], then: impl Then<Option<Attributes>>) {
        let parent = match self.directory_inode(parent) {
            Ok(inode) => inode,
            Err(failure) => return then(Err(failure)),
        };
        let (fs, name) = (Arc::clone(self), name.to_vec());
        self.directory(&parent.clone(), move |node| {
            let node = match node {
                Ok(node) => node,
                Err(failure) => return then(Err(failure)),
            };
            let Some(index) = node.position(&name) else { return then(Ok(None)) };
            let Some(directory) = parent.directory else { return then(Err(Failure::Damaged)) };
            let (inner, inode, owned) = (Arc::clone(&fs), parent.clone(), Arc::clone(&node));
            fs.data_blocks(&parent, &node.entries()[index], move |blocks| {
                let entry = &owned.entries()[index];
                then(blocks.map(|blocks| {
                    let number = inner.inodes.enter(&inode, directory, index as u32, entry)?;
                    Some(Attributes::new(number, entry, blocks))
                }));
            });
        });
    }

    /// Takes back `count` lookups of an inode.
    pub fn forget(&self, number: u64, count: u64) {
        self.inodes.forget(number, count);
        if self.inodes.find(number).is_none() {
            self.readahead.forget(number);
        }
    }

    /// The attributes of an inode.
    pub fn attributes(self: &Arc<Self>, number: u64, then: impl Then<Attributes>) {
        let fs = Arc::clone(self);
        self.find(number, move |found| {
            let found = match found {
                Ok(found) => found,
                Err(failure) => return then(Err(failure)),
            };
            if let Some(blocks) = fs.data_blocks_at_hand(found.entry()) {
                return then(Ok(Attributes::new(number, found.entry(), blocks)));
            }
            // A copy, because the entry itself travels with the continuation.
            let (inode, entry) = (found.inode.clone(), found.entry().clone());
            fs.data_blocks(&inode, &entry, move |blocks| {
                then(blocks.map(|blocks| Attributes::new(number, found.entry(), blocks)));
            });
        });
    }

    /// The target of a symbolic link.
    pub fn target(self: &Arc<Self>, number: u64, then: impl Then<Vec<u8>>) {
        self.find(number, move |found| {
            then(found.and_then(|found| match &found.entry().kind {
                EntryKind::Symlink(target) => Ok(target.clone()),
                _ => Err(Failure::WrongKind),
            }));
        });
    }

    /// The entries of a directory; `generation` is that of the release in which the caller began to
    /// list it, so that a listing is of one release from its beginning to its end.
    pub fn list(self: &Arc<Self>, number: u64, generation: Option<u32>, then: impl Then<Listing>) {
        let inode = match self.directory_inode(number) {
            Ok(inode) => inode,
            Err(failure) => return then(Err(failure)),
        };
        let begun = generation.filter(|generation| *generation != inode.view.generation);
        let former = begun.and_then(|generation| self.inodes.find_former(number, generation));
        let (inode, former) = former.map_or((inode, false), |former| (former, true));
        self.directory(&inode.clone(), move |node| {
            then(node.and_then(|node| {
                let directory = inode.directory.ok_or(Failure::NotADirectory)?;
                Ok(Listing { inode, directory, node, former })
            }));
        });
    }

    /// The attributes of the entry at `index` of a listing, with one lookup counted, and whether they
    /// last. They do not where a file's blocks are not known without asking the network (all of its
    /// size counts then), nor in a listing of a former release. `None`: the entry is not shown.
    pub fn enter(&self, listing: &Listing, index: usize) -> Option<(Attributes, bool)> {
        let entry = listing.node.entries().get(index)?;
        let number = self.inodes.enter(&listing.inode, listing.directory, index as u32, entry)?;
        let known = self.data_blocks_at_hand(entry);
        let blocks = known.unwrap_or_else(|| match &entry.kind {
            EntryKind::File(file) => file.size.div_ceil(BLOCK_BYTES),
            _ => 0,
        });
        let lasts = known.is_some() && !listing.former;
        Some((Attributes::new(number, entry, blocks), lasts))
    }

    /// Sizes for `statfs(2)`.
    pub fn volume(&self) -> Volume {
        let totals = self.view().release.totals;
        Volume {
            blocks: totals.bytes.div_ceil(4096),
            files: totals.files.saturating_add(totals.directories).saturating_add(totals.others),
        }
    }

    /// An inode and its entry.
    pub(crate) fn find(self: &Arc<Self>, number: u64, then: impl Then<Found>) {
        let Some(inode) = self.inodes.find(number) else { return then(Err(Failure::Stale)) };
        let Place::Entry { directory, index } = inode.place else {
            return then(Ok(Found { inode, source: Source::Root }));
        };
        let fs = Arc::clone(self);
        self.nodes.fetch(directory, Form::Directory, self.deadline(), move |outcome| {
            let index = index as usize;
            then(match directory_of(outcome) {
                Ok(node) if index < node.entries().len() => {
                    Ok(Found { inode, source: Source::Entry(node, index) })
                }
                Ok(_) => Err(Failure::Damaged),
                Err(error) => Err(fs.report(&inode, &error)),
            });
        });
    }

    /// The map of a file's extents.
    pub(crate) fn extents(
        self: &Arc<Self>,
        inode: &Inode,
        file: &File,
        then: impl Then<Arc<ExtentMap>>,
    ) {
        let list = match &file.content {
            Content::Extents(extents) => return then(Ok(Arc::new(ExtentMap::new(extents)))),
            Content::List(list) => *list,
        };
        let (fs, inode) = (Arc::clone(self), inode.clone());
        let form = Form::Extents { size: file.size };
        self.nodes.fetch(list, form, self.deadline(), move |outcome| {
            then(match outcome {
                Ok(Decoded::Extents(map)) => Ok(map),
                Ok(Decoded::Directory(_)) => Err(Failure::Damaged),
                Err(error) => Err(fs.report(&inode, &error)),
            });
        });
    }

    fn directory_inode(&self, number: u64) -> Result<Inode, Failure> {
        let inode = self.inodes.find(number).ok_or(Failure::Stale)?;
        if inode.directory.is_some() { Ok(inode) } else { Err(Failure::NotADirectory) }
    }

    fn directory(self: &Arc<Self>, inode: &Inode, then: impl Then<Arc<DirectoryNode>>) {
        let Some(range) = inode.directory else { return then(Err(Failure::NotADirectory)) };
        let (fs, inode) = (Arc::clone(self), inode.clone());
        self.nodes.fetch(range, Form::Directory, self.deadline(), move |outcome| {
            then(directory_of(outcome).map_err(|error| fs.report(&inode, &error)));
        });
    }

    /// A regular file's blocks without its holes, 0 for other kinds.
    fn data_blocks(self: &Arc<Self>, inode: &Inode, entry: &Entry, then: impl Then<u64>) {
        match (self.data_blocks_at_hand(entry), &entry.kind) {
            (Some(blocks), _) => then(Ok(blocks)),
            (None, EntryKind::File(file)) => {
                self.extents(inode, file, move |map| then(map.map(|map| map.data_blocks())));
            }
            (None, _) => then(Err(Failure::Damaged)),
        }
    }

    fn data_blocks_at_hand(&self, entry: &Entry) -> Option<u64> {
        let EntryKind::File(file) = &entry.kind else { return Some(0) };
        match &file.content {
            Content::Extents(extents) => Some(extents.data_blocks()),
            Content::List(list) => {
                match self.nodes.peek(*list, Form::Extents { size: file.size }) {
                    Some(Decoded::Extents(map)) => Some(map.data_blocks()),
                    _ => None,
                }
            }
        }
    }

    /// Writes one line about what could not be had, and says what the caller is told.
    fn report(&self, inode: &Inode, error: &FetchError) -> Failure {
        self.journal.failed_read(&self.path(inode), None, &error);
        error.failure()
    }

    /// What the mount was first used for, in order.
    pub fn accesses(&self) -> Vec<Access> {
        self.trace.accesses()
    }

    /// The path of an inode below the mount point, as it is; nothing where a part of it is not at hand.
    pub(crate) fn whole_path(&self, inode: &Inode) -> Option<Vec<u8>> {
        let (mut parts, mut at) = (Vec::new(), inode.clone());
        while at.number != ROOT {
            let Place::Entry { directory, index } = at.place else { return None };
            let Decoded::Directory(node) = self.nodes.peek(directory, Form::Directory)? else {
                return None;
            };
            parts.push(node.entries().get(index as usize)?.name.as_bytes().to_vec());
            at = self.inodes.find(at.parent).filter(|_| parts.len() <= TREE_DEPTH_MAX)?;
        }
        parts.reverse();
        Some(parts.join(&b'/'))
    }

    /// The path of an inode below the mount point, as far as it is known without asking anybody.
    pub(crate) fn path(&self, inode: &Inode) -> String {
        let mut parts = Vec::new();
        let mut at = Some(inode.clone());
        while let Some(inode) = at.filter(|inode| inode.number != ROOT) {
            let Place::Entry { directory, index } = inode.place else { break };
            let name = match self.nodes.peek(directory, Form::Directory) {
                Some(Decoded::Directory(node)) => node
                    .entries()
                    .get(index as usize)
                    .map(|entry| entry.name.as_bytes().escape_ascii().to_string()),
                _ => None,
            };
            parts.push(name.unwrap_or_else(|| format!("<inode {}>", inode.number)));
            if parts.len() > TREE_DEPTH_MAX {
                break;
            }
            at = self.inodes.find(inode.parent);
        }
        parts.reverse();
        format!("/{}", parts.join("/"))
    }
}

impl Listing {
    /// Counts the release that it is of.
    pub fn generation(&self) -> u32 {
        self.inode.view.generation
    }

    /// Position, name and kind of each entry from `first` on.
    pub fn entries(&self, first: usize) -> impl Iterator<Item = (usize, &[u8], Kind)> {
        let entries = self.node.entries().iter().enumerate().skip(first);
        entries.map(|(index, entry)| (index, entry.name.as_bytes(), Kind::of(entry)))
    }
}

fn directory_of(outcome: Outcome) -> Result<Arc<DirectoryNode>, Arc<FetchError>> {
    match outcome {
        Ok(Decoded::Directory(node)) => Ok(node),
        Ok(Decoded::Extents(_)) => unreachable!("nodes answers in the form asked for"),
        Err(error) => Err(error),
    }
}
