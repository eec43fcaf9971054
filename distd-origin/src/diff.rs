//! `diff`: which entries differ between two releases, and what it costs to go from one to the other.
//!
//! Two directories with one node range are equal to the last bit of everything below them: they are
//! skipped without being read.

use std::cmp::Ordering;
use std::fmt::Write as _;

use distd_core::limits::{BLOCK_BYTES, TREE_DEPTH_MAX};
use distd_core::manifest::{DirectoryNode, Entry, EntryKind};
use distd_core::store::OriginLog;
use distd_core::unit::{BlockRange, ByteRange, HumanBytes};
use serde::Serialize;

use crate::cost::{Cost, cost};
use crate::history::{
    History, HistoryError, file_blocks, join, merge, missing_blocks, read_directory, read_extents,
    read_release,
};
use crate::scan::TreePath;

/// How an entry differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only in the second.
    Added,
    /// Only in the first.
    Removed,
    /// Another kind, content, target or device number (metadata may differ too).
    Content,
    /// The same content with another mode, owner, time, link or extended attribute.
    Metadata,
}

/// One entry that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Path below the root; what is not UTF-8 is escaped.
    pub path: String,
    /// How it differs.
    pub change: Change,
    /// `file`, `directory`, `symlink` ... of the newer of the two.
    pub kind: &'static str,
    /// Size in the first, for files.
    pub old_size: Option<u64>,
    /// Size in the second, for files.
    pub new_size: Option<u64>,
    /// Bytes of blocks of the file in the second that are not in the first release.
    pub new_bytes: u64,
}

/// All that `diff` tells.
#[derive(Debug, Serialize)]
pub struct DiffReport {
    /// The first release, `TRACK@VERSION`.
    pub from: String,
    /// The second.
    pub to: String,
    /// What differs, by path.
    pub changes: Vec<Difference>,
    /// Bytes of blocks that a machine with all of the first must fetch for all of the second, file
    /// content and metadata.
    pub fetch_bytes: u64,
    /// What is fetched by frames, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// Compares two releases, named as [`History::find`] takes them.
pub fn diff(
    log: &OriginLog,
    from: &str,
    to: &str,
    with_cost: bool,
) -> Result<DiffReport, HistoryError> {
    let history = History::read(log)?;
    let (old, new) = (history.find(from)?, history.find(to)?);
    let (old, new) = (read_release(log, old.release)?, read_release(log, new.release)?);
    let old_blocks = file_blocks(log, &old)?;
    let mut comparison = Comparison { log, old_blocks: &old_blocks, changes: Vec::new() };
    comparison.roots(&old.root, &new.root)?;
    let mut changes = comparison.changes;
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    let with_metadata = |blocks: Vec<BlockRange>, metadata: &[BlockRange]| {
        merge(blocks.into_iter().chain(metadata.iter().copied()).collect())
    };
    let wanted = with_metadata(file_blocks(log, &new)?, &new.metadata);
    let held = with_metadata(old_blocks.clone(), &old.metadata);
    Ok(DiffReport {
        from: format!("{}@{}", old.track, old.version),
        to: format!("{}@{}", new.track, new.version),
        changes,
        fetch_bytes: missing_blocks(&wanted, &held) * BLOCK_BYTES,
        cost: with_cost.then(|| cost(log, Some(&old), &new)).transpose()?,
    })
}

struct Comparison<'a> {
    log: &'a OriginLog,
    old_blocks: &'a [BlockRange],
    changes: Vec<Difference>,
}

/// Two directories of one path, one of which may be missing.
struct Pair {
    path: Vec<u8>,
    old: Option<ByteRange>,
    new: Option<ByteRange>,
    depth: usize,
}

impl Comparison<'_> {
    fn roots(&mut self, old: &Entry, new: &Entry) -> Result<(), HistoryError> {
        let mut pending = Vec::new();
        self.entry(&[], b"", Some(old), Some(new), 0, &mut pending)?;
        while let Some(pair) = pending.pop() {
            if pair.depth > TREE_DEPTH_MAX {
                let node = pair.new.or(pair.old).unwrap_or(ByteRange { offset: 0, len: 0 });
                return Err(HistoryError::Depth { node });
            }
            self.directories(&pair, &mut pending)?;
        }
        Ok(())
    }

    fn directories(&mut self, pair: &Pair, pending: &mut Vec<Pair>) -> Result<(), HistoryError> {
        let read = |range: Option<ByteRange>| {
            range.map_or(Ok(DirectoryNode::default()), |range| read_directory(self.log, range))
        };
        let (old, new) = (read(pair.old)?, read(pair.new)?);
        let (mut old, mut new) = (old.entries().iter().peekable(), new.entries().iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.name.cmp(&b.name),
            };
            let a = if order.is_le() { old.next() } else { None };
            let b = if order.is_ge() { new.next() } else { None };
            let name = a.or(b).map_or(&b""[..], |entry| entry.name.as_bytes());
            self.entry(&pair.path, name, a, b, pair.depth + 1, pending)?;
        }
    }

    fn entry(
        &mut self,
        directory: &[u8],
        name: &[u8],
        old: Option<&Entry>,
        new: Option<&Entry>,
        depth: usize,
        pending: &mut Vec<Pair>,
    ) -> Result<(), HistoryError> {
        let path = join(directory, name);
        let (old_node, new_node) = (old.and_then(node), new.and_then(node));
        if let Some(change) = change(old, new) {
            let size = |entry: Option<&Entry>| entry.and_then(size);
            self.changes.push(Difference {
                path: TreePath(path.clone()).to_string(),
                change,
                kind: new.or(old).map_or("", kind),
                old_size: size(old),
                new_size: size(new),
                new_bytes: self.new_bytes(new, change)?,
            });
        }
        if old_node != new_node {
            pending.push(Pair { path, old: old_node, new: new_node, depth });
        }
        Ok(())
    }

    fn new_bytes(&self, new: Option<&Entry>, change: Change) -> Result<u64, HistoryError> {
        match new.map(|entry| &entry.kind) {
            Some(EntryKind::File(file)) if change != Change::Metadata => {
                let blocks = merge(read_extents(self.log, file)?.data().collect());
                Ok(missing_blocks(&blocks, self.old_blocks) * BLOCK_BYTES)
            }
            _ => Ok(0),
        }
    }
}

fn change(old: Option<&Entry>, new: Option<&Entry>) -> Option<Change> {
    let (Some(old), Some(new)) = (old, new) else {
        return match (old, new) {
            (None, Some(_)) => Some(Change::Added),
            (Some(_), None) => Some(Change::Removed),
            _ => None,
        };
    };
    let same_content = match (&old.kind, &new.kind) {
        // Where the blocks lie is not what a file is.
        (EntryKind::File(a), EntryKind::File(b)) => a.size == b.size && a.blake3 == b.blake3,
        // What lies in a directory is told entry by entry.
        (EntryKind::Directory(_), EntryKind::Directory(_)) => true,
        (a, b) => a == b,
    };
    let metadata = |entry: &Entry| (entry.mode, entry.uid, entry.gid, entry.mtime, entry.link);
    if !same_content {
        Some(Change::Content)
    } else if metadata(old) != metadata(new) || old.xattrs != new.xattrs {
        Some(Change::Metadata)
    } else {
        None
    }
}

fn node(entry: &Entry) -> Option<ByteRange> {
    match &entry.kind {
        EntryKind::Directory(directory) => Some(directory.node),
        _ => None,
    }
}

fn size(entry: &Entry) -> Option<u64> {
    match &entry.kind {
        EntryKind::File(file) => Some(file.size),
        _ => None,
    }
}

fn kind(entry: &Entry) -> &'static str {
    match entry.kind {
        EntryKind::File(_) => "file",
        EntryKind::Directory(_) => "directory",
        EntryKind::Symlink(_) => "symlink",
        EntryKind::CharDevice(_) => "character device",
        EntryKind::BlockDevice(_) => "block device",
        EntryKind::Fifo => "fifo",
        EntryKind::Socket => "socket",
    }
}

impl DiffReport {
    /// One line an entry, and a summary.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut counts = [0u64; 4];
        for difference in &self.changes {
            let (index, word) = match difference.change {
                Change::Added => (0, "added   "),
                Change::Removed => (1, "removed "),
                Change::Content => (2, "content "),
                Change::Metadata => (3, "metadata"),
            };
            counts[index] += 1;
            let sizes = match (difference.old_size, difference.new_size) {
                (_, Some(_)) if difference.change == Change::Metadata => String::new(),
                (Some(old), Some(new)) => {
                    format!("  {old} -> {new} bytes, {} new", difference.new_bytes)
                }
                (None, Some(new)) => format!("  {new} bytes, {} new", difference.new_bytes),
                (Some(old), None) => format!("  {old} bytes"),
                (None, None) => String::new(),
            };
            let slash = if difference.kind == "directory" { "/" } else { "" };
            let _ = writeln!(text, "{word}  {}{slash}{sizes}", difference.path);
        }
        let [added, removed, content, metadata] = counts;
        let _ = writeln!(
            text,
            "{} -> {}: {added} added, {removed} removed, {content} with other content, {metadata} with other metadata; to fetch: {} bytes ({})",
            self.from,
            self.to,
            self.fetch_bytes,
            HumanBytes(self.fetch_bytes)
        );
        if let Some(cost) = &self.cost {
            let _ = writeln!(text, "a machine on {} fetches {}", self.from, cost.text());
        }
        text
    }
}
