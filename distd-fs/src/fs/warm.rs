//! What of a new release to fetch because it was local of the old one: the same places of the same
//! paths.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use distd_core::manifest::{Content, DirectoryNode, EntryKind, ExtentList, File, Release};
use distd_core::unit::{BlockRange, ByteRange};

use crate::blocks::{Blocks, read_bytes};

use super::ranges::merged;
use super::walk::WalkError;
use super::{ExtentMap, ReleasePlace};

/// Blocks of a file that are looked at together: 64 KiB, about what one page fault brings.
const STEP_BLOCKS: u64 = 16;

/// The blocks of `new` that are not local and lie where blocks of `old` are local: in the same file, at
/// the same place; all of a file that was local as a whole. In the order of the tree. Each node is
/// waited for up to `timeout`.
pub fn warm<B: Blocks + ?Sized>(
    blocks: &B,
    old: &Release,
    new: &Release,
    timeout: Duration,
) -> Result<Vec<BlockRange>, WalkError> {
    let mut warmer = Warmer { blocks, timeout, found: ReleasePlace::default() };
    let mut pairs = VecDeque::from([(old.root_directory().node, new.root_directory().node)]);
    while let Some((old, new)) = pairs.pop_front() {
        // A directory that is shared is the same all the way down.
        if old != new {
            let (old, new) = (warmer.directory(old)?, warmer.directory(new)?);
            warmer.take(&old, &new, &mut pairs)?;
        }
    }
    Ok(merged(warmer.found.content))
}

struct Warmer<'a, B: ?Sized> {
    blocks: &'a B,
    timeout: Duration,
    found: ReleasePlace,
}

impl<B: Blocks + ?Sized> Warmer<'_, B> {
    fn take(
        &mut self,
        old: &DirectoryNode,
        new: &DirectoryNode,
        below: &mut VecDeque<(ByteRange, ByteRange)>,
    ) -> Result<(), WalkError> {
        let (mut old, mut new) = (old.entries().iter().peekable(), new.entries().iter().peekable());
        while let (Some(a), Some(b)) = (old.peek(), new.peek()) {
            match a.name.cmp(&b.name) {
                Ordering::Less => drop(old.next()),
                Ordering::Greater => drop(new.next()),
                Ordering::Equal => {
                    match (&a.kind, &b.kind) {
                        (EntryKind::Directory(a), EntryKind::Directory(b)) => {
                            below.push_back((a.node, b.node));
                        }
                        (EntryKind::File(a), EntryKind::File(b)) if a.content != b.content => {
                            self.take_file(a, b)?;
                        }
                        _ => {}
                    }
                    (_, _) = (old.next(), new.next());
                }
            }
        }
        Ok(())
    }

    fn take_file(&mut self, old: &File, new: &File) -> Result<(), WalkError> {
        let old = self.extents(old)?;
        let held: u64 = old.data().map(|range| self.blocks.held_blocks(range)).sum();
        if held == 0 {
            return Ok(());
        }
        let new = self.extents(new)?;
        if held == old.data_blocks() {
            self.found.content.extend(new.data());
            return Ok(());
        }
        let end = old.blocks();
        for first in (0..end).step_by(STEP_BLOCKS as usize) {
            let data = |map: &ExtentMap| map.slice_data(first, STEP_BLOCKS).collect::<Vec<_>>();
            if data(&old).into_iter().any(|range| self.blocks.held_blocks(range) > 0) {
                self.found.content.extend(data(&new));
            }
        }
        Ok(())
    }

    fn extents(&self, file: &File) -> Result<ExtentMap, WalkError> {
        match &file.content {
            Content::Extents(extents) => Ok(ExtentMap::new(extents)),
            Content::List(list) => {
                let bytes = read_bytes(self.blocks, *list, Instant::now() + self.timeout)?;
                let damaged = |source| WalkError::Damaged { offset: list.offset, source };
                Ok(ExtentMap::new(&ExtentList::decode(&bytes, file.size).map_err(damaged)?))
            }
        }
    }

    fn directory(&self, range: ByteRange) -> Result<DirectoryNode, WalkError> {
        let bytes = read_bytes(self.blocks, range, Instant::now() + self.timeout)?;
        let damaged = |source| WalkError::Damaged { offset: range.offset, source };
        DirectoryNode::decode(&bytes).map_err(damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::{Builder, Memory, entry};
    use distd_core::manifest::Entry;
    use std::sync::Arc;

    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Content of which each block is of `version` and its own.
    fn content(version: u8, blocks: usize) -> Vec<u8> {
        (0..blocks).flat_map(|block| [version | 1, block as u8 | 1].repeat(2048)).collect()
    }

    #[test]
    fn what_was_warm_is_fetched_and_nothing_else() {
        let memory = Arc::new(Memory::default());
        let builder = Builder(Arc::clone(&memory));
        let same = builder.directory(vec![entry("s", builder.file(&content(9, 3)))]);
        let tree = |version: u8| {
            let file = |name: &str, blocks| entry(name, builder.file(&content(version, blocks)));
            let below = builder.directory(vec![file("whole", 40 + usize::from(version))]);
            let only = if version == 0 { "old" } else { "new" };
            let files: Vec<Entry> = vec![
                entry("d", below),
                entry("same", same.clone()),
                file("cold", 5),
                file("part", 64),
                file(only, 2),
            ];
            Builder::view(builder.directory(files))
        };
        let (old, new) = (tree(0), tree(2));
        let place = |view: &crate::fs::View, path: &str| {
            super::super::walk(&*memory, &view.release, path.as_ref(), TIMEOUT)
                .expect("there")
                .content
        };
        let fetch =
            |ranges: &[BlockRange]| memory.prefetch(ranges.to_vec(), crate::blocks::Purpose::Data);
        fetch(&place(&old, "d/whole"));
        fetch(&place(&old, "old"));
        let part = place(&old, "part");
        fetch(&[BlockRange::new(part[0].start, 1)]);
        let found = warm(&*memory, &old.release, &new.release, TIMEOUT).expect("local");
        let part = place(&new, "part");
        let head = BlockRange::new(part[0].start, STEP_BLOCKS);
        let expected = merged([place(&new, "d/whole"), vec![head]].concat());
        assert_eq!(found, expected);
    }
}
