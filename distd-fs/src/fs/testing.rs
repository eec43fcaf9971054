//! A log in memory, and a builder of releases in it, for tests.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::keys::OriginId;
use distd_core::limits::{BLOCK_BYTES, INLINE_EXTENTS_MAX};
use distd_core::manifest::{
    Content, Directory, DirectoryNode, Entry, EntryKind, Extent, ExtentList, Extents, File, Name,
    Release, Timestamp, Totals,
};
use distd_core::unit::{BlockIndex, BlockRange, ByteRange};

use crate::blocks::{Blocks, Done, Purpose, Unavailable};
use crate::fs::View;

/// A log whose blocks are local or have to be fetched; fetching takes a thread and no time, or fails.
#[derive(Default)]
pub(crate) struct Memory {
    bytes: Mutex<Vec<u8>>,
    held: Mutex<BTreeSet<u64>>,
    pub(crate) offline: AtomicBool,
    /// Nothing comes, and no error either.
    pub(crate) silent: AtomicBool,
    pub(crate) fetched: AtomicU64,
    pub(crate) asked: AtomicU64,
    pub(crate) prefetched: Mutex<Vec<BlockRange>>,
    pub(crate) requests: Mutex<Vec<BlockRange>>,
}

impl Memory {
    /// Appends bytes from a block's start; where they lie.
    pub(crate) fn append(&self, content: &[u8]) -> ByteRange {
        let mut bytes = self.bytes.lock().expect("not poisoned");
        let offset = bytes.len() as u64;
        bytes.extend(content);
        let padded = (bytes.len() as u64).next_multiple_of(BLOCK_BYTES);
        bytes.resize(padded as usize, 0);
        ByteRange { offset, len: content.len() as u64 }
    }

    fn copy(&self, blocks: BlockRange) -> Option<Bytes> {
        let bytes = self.bytes.lock().expect("not poisoned");
        let start = blocks.byte_offset() as usize;
        bytes.get(start..start + blocks.byte_len() as usize).map(Bytes::copy_from_slice)
    }

    fn fetch(&self, blocks: BlockRange) -> Result<Bytes, Unavailable> {
        if self.held_blocks(blocks) < blocks.count {
            if self.offline.load(Ordering::Relaxed) {
                return Err(Unavailable("nobody answered by the deadline".into()));
            }
            self.fetched.fetch_add(blocks.count, Ordering::Relaxed);
            self.held.lock().expect("not poisoned").extend(blocks.iter().map(|block| block.0));
        }
        self.copy(blocks).ok_or_else(|| Unavailable("beyond the log".into()))
    }
}

impl Blocks for Memory {
    fn read_now(&self, blocks: BlockRange, out: &mut [u8]) -> Result<bool, Unavailable> {
        self.requests.lock().expect("not poisoned").push(blocks);
        if self.held_blocks(blocks) < blocks.count {
            return Ok(false);
        }
        let bytes = self.copy(blocks).ok_or_else(|| Unavailable("beyond the log".into()))?;
        out.copy_from_slice(&bytes);
        Ok(true)
    }

    fn read(&self, blocks: BlockRange, _: Purpose, _: Instant, done: Done) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.silent.load(Ordering::Relaxed) {
            return;
        }
        let result = self.fetch(blocks);
        std::thread::spawn(move || done(result));
    }

    fn prefetch(&self, ranges: Vec<BlockRange>, _: Purpose) {
        self.prefetched.lock().expect("not poisoned").extend(&ranges);
        for range in ranges {
            let _ = self.fetch(range);
        }
    }

    fn held_blocks(&self, blocks: BlockRange) -> u64 {
        let held = self.held.lock().expect("not poisoned");
        held.range(blocks.start.0..blocks.end().0).count() as u64
    }

    fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    fn end(&self) -> BlockIndex {
        BlockIndex(self.bytes.lock().expect("not poisoned").len() as u64 / BLOCK_BYTES)
    }
}

/// Builds the release's nodes in a [`Memory`].
pub(crate) struct Builder(pub(crate) Arc<Memory>);

impl Builder {
    /// A file of these contents, with whole blocks of zeros as holes.
    pub(crate) fn file(&self, content: &[u8]) -> EntryKind {
        let mut extents = Extents::default();
        for block in content.chunks(BLOCK_BYTES as usize) {
            if block.iter().all(|byte| *byte == 0) {
                extents.push(Extent::Hole(1));
            } else {
                let place = self.0.append(block);
                let start = BlockIndex(place.offset / BLOCK_BYTES);
                extents.push(Extent::Data(BlockRange::new(start, 1)));
            }
        }
        let blake3 = *blake3_of(content);
        let size = content.len() as u64;
        let content = if extents.len() <= INLINE_EXTENTS_MAX {
            Content::Extents(extents)
        } else {
            Content::List(self.0.append(&ExtentList::encode(&extents)))
        };
        EntryKind::File(File { size, blake3, content })
    }

    /// A directory of these entries.
    pub(crate) fn directory(&self, entries: Vec<Entry>) -> EntryKind {
        let node = DirectoryNode::new(entries).expect("names are unique");
        let subdirectories = node.subdirectories();
        EntryKind::Directory(Directory { node: self.0.append(&node.encode()), subdirectories })
    }

    /// The release with this root.
    pub(crate) fn view(root: EntryKind) -> Arc<View> {
        Arc::new(Self::plain_view(root))
    }

    /// The same, to be changed.
    pub(crate) fn plain_view(root: EntryKind) -> View {
        let release = Release {
            track: "stable".into(),
            version: "1".into(),
            created_s: 0,
            message: String::new(),
            root: Entry { mode: 0o755, ..entry("root", root) },
            totals: Totals { files: 3, directories: 1, others: 2, bytes: 8193, new_bytes: 0 },
            metadata: Vec::new(),
            profile: None,
            image: None,
        };
        let record = ByteRange { offset: 0, len: 1 };
        View { generation: 0, origin: OriginId([7; 32]), record, release }
    }
}

fn blake3_of(_: &[u8]) -> &'static [u8; 32] {
    &[0xab; 32]
}

/// An entry with everyday attributes.
pub(crate) fn entry(name: &str, kind: EntryKind) -> Entry {
    Entry {
        name: Name::new(name.as_bytes()).expect("safe"),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 },
        xattrs: Vec::new(),
        link: None,
        kind,
    }
}

/// Waits for the outcome of an operation.
pub(crate) fn outcome<T: Send + 'static>(
    operation: impl FnOnce(Box<dyn FnOnce(Result<T, crate::errno::Failure>) + Send>),
) -> Result<T, crate::errno::Failure> {
    let (sender, receiver) = std::sync::mpsc::channel();
    operation(Box::new(move |result| sender.send(result).expect("waited for")));
    receiver.recv_timeout(Duration::from_secs(10)).expect("answered in time")
}
