//! What of a log was read first, in order, where only blocks are known and no files; and whose they are.
//!
//! For the erofs view, as `trace` is for the tree view: bounded likewise.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use distd_core::limits::PROFILE_RANGES_MAX;
use distd_core::manifest::{Access, Extent, Release};
use distd_core::unit::BlockRange;

use crate::blocks::Blocks;

use super::trace::unseen;
use super::walk::{WalkError, files};

/// The record of a log's readers.
#[derive(Debug, Default)]
pub(crate) struct Accessed(Mutex<Record>);

#[derive(Debug, Default)]
struct Record {
    /// Blocks seen, as ends by starts.
    seen: BTreeMap<u64, u64>,
    /// First block, and one past the last.
    order: Vec<(u64, u64)>,
}

/// A part of what was read, and whose it is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hit {
    /// Which of the parts in order, and where in the log.
    part: usize,
    start: u64,
    path: Vec<u8>,
    first: u64,
    count: u64,
}

impl Accessed {
    /// Takes note of a read.
    pub(crate) fn on_read(&self, blocks: BlockRange) {
        let mut record = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if record.order.len() >= PROFILE_RANGES_MAX {
            return;
        }
        for (start, end) in unseen(&mut record.seen, blocks.start.0, blocks.end().0) {
            match record.order.last_mut() {
                Some((_, last)) if *last == start => *last = end,
                _ => record.order.push((start, end)),
            }
        }
    }

    /// What was read of a release's files. Where files share blocks, the first of them is named. Reads the
    /// release's directories, each of which is waited for up to `timeout`.
    pub(crate) fn of<B: Blocks + ?Sized>(
        &self,
        blocks: &B,
        release: &Release,
        timeout: Duration,
    ) -> Result<Vec<Access>, WalkError> {
        let order = self.0.lock().unwrap_or_else(PoisonError::into_inner).order.clone();
        let mut parts: Vec<(u64, u64, usize)> =
            order.iter().enumerate().map(|(part, (start, end))| (*start, *end, part)).collect();
        parts.sort_unstable();
        let mut hits = Vec::new();
        files(blocks, release, timeout, |path, extents| {
            let mut first = 0;
            for extent in extents {
                if let Extent::Data(range) = extent {
                    push_hits(&parts, range, first, path, &mut hits);
                }
                first += extent.blocks();
            }
        })?;
        hits.sort_unstable();
        Ok(accesses(hits))
    }
}

/// Adds what of the parts, which lie apart and in order, lies in an extent that begins at a file's block.
fn push_hits(
    parts: &[(u64, u64, usize)],
    extent: BlockRange,
    first: u64,
    path: &[u8],
    hits: &mut Vec<Hit>,
) {
    let (begin, stop) = (extent.start.0, extent.end().0);
    let from = parts.partition_point(|(_, end, _)| *end <= begin);
    for (start, end, part) in parts[from..].iter().take_while(|(start, _, _)| *start < stop) {
        let (start, end) = ((*start).max(begin), (*end).min(stop));
        let (first, count) = (first + (start - begin), end - start);
        hits.push(Hit { part: *part, start, path: path.to_vec(), first, count });
    }
}

/// Each block once, and runs of a file as one.
fn accesses(hits: Vec<Hit>) -> Vec<Access> {
    let mut accesses: Vec<Access> = Vec::new();
    let mut done = (usize::MAX, 0);
    for mut hit in hits {
        let end = hit.start + hit.count;
        if done.0 == hit.part && done.1 > hit.start {
            let known = (done.1 - hit.start).min(hit.count);
            (hit.first, hit.count) = (hit.first + known, hit.count - known);
        }
        let known = if done.0 == hit.part { done.1 } else { 0 };
        done = (hit.part, end.max(known));
        match accesses.last_mut() {
            _ if hit.count == 0 => {}
            Some(last) if last.path == hit.path && last.first + last.count == hit.first => {
                last.count += hit.count;
            }
            _ => accesses.push(Access { path: hit.path, first: hit.first, count: hit.count }),
        }
    }
    accesses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::{Builder, Memory, entry};
    use distd_core::manifest::EntryKind;
    use distd_core::unit::BlockIndex;
    use std::sync::Arc;

    const BLOCK: usize = 4096;

    #[test]
    fn what_was_read_is_told_by_files_in_order() {
        let builder = Builder(Arc::new(Memory::default()));
        // Block 0 to 3: a; 4 to 6: dir/b with a hole in it.
        let whole = builder.file(&[1; 4 * BLOCK]);
        let mut content = vec![2; 4 * BLOCK];
        content[BLOCK..2 * BLOCK].fill(0);
        let holed = builder.file(&content);
        let shared = whole.clone();
        let inside = builder.directory(vec![entry("b", holed), entry("c", shared)]);
        let root = builder.directory(vec![entry("a", whole), entry("dir", inside)]);
        let EntryKind::Directory(_) = root else { panic!("a directory") };
        let view = Builder::view(root);
        let accessed = Accessed::default();
        let range = |start, count| BlockRange::new(BlockIndex(start), count);
        for (start, count) in [(5, 2), (1, 2), (1, 1), (3, 2), (100, 9)] {
            accessed.on_read(range(start, count));
        }
        let found = accessed.of(&*builder.0, &view.release, Duration::from_secs(5)).expect("read");
        let access = |path: &str, first, count| Access { path: path.into(), first, count };
        let expected = [access("dir/b", 2, 2), access("a", 1, 3), access("dir/b", 0, 1)];
        assert_eq!(found, expected);
        for block in 0..3 * PROFILE_RANGES_MAX as u64 {
            accessed.on_read(range(1000 + 2 * block, 1));
        }
        let record = accessed.0.lock().expect("not poisoned");
        assert_eq!(record.order.len(), PROFILE_RANGES_MAX);
    }
}
