//! A file's extents, arranged for finding the ones that a range of the file lies in.

use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::{Extent, Extents};
use distd_core::unit::{BlockIndex, BlockRange};

/// The extents with the file block that each one begins at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentMap {
    starts: Vec<u64>,
    extents: Vec<Extent>,
    data_blocks: u64,
}

impl ExtentMap {
    /// Arranges the extents.
    pub fn new(extents: &Extents) -> Self {
        let mut map = Self { data_blocks: extents.data_blocks(), ..Self::default() };
        let mut at = 0;
        for extent in extents.iter() {
            map.starts.push(at);
            map.extents.push(extent);
            at += extent.blocks();
        }
        map
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether the file has no block.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Blocks that lie in the log.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// All that lies in the log, in file order.
    pub fn data(&self) -> impl Iterator<Item = BlockRange> {
        self.extents.iter().filter_map(|extent| match extent {
            Extent::Data(range) => Some(*range),
            Extent::Hole(_) => None,
        })
    }

    /// The parts of the file's blocks `first..first + count`, clipped to the file's end.
    pub fn slice(&self, first: u64, count: u64) -> impl Iterator<Item = Extent> {
        let end = first.saturating_add(count);
        let index = self.index(first);
        let parts = self.starts.iter().zip(&self.extents).skip(index);
        parts.take_while(move |(start, _)| **start < end).filter_map(move |(start, extent)| {
            let from = first.max(*start);
            let to = end.min(start + extent.blocks());
            if from >= to {
                return None;
            }
            Some(match extent {
                Extent::Data(range) => {
                    let begin = BlockIndex(range.start.0 + (from - start));
                    Extent::Data(BlockRange::new(begin, to - from))
                }
                Extent::Hole(_) => Extent::Hole(to - from),
            })
        })
    }

    /// What of the file's blocks `first..first + count` lies in the log.
    pub fn slice_data(&self, first: u64, count: u64) -> impl Iterator<Item = BlockRange> {
        self.slice(first, count).filter_map(|extent| match extent {
            Extent::Data(range) => Some(range),
            Extent::Hole(_) => None,
        })
    }

    /// Number of blocks, holes included.
    pub fn blocks(&self) -> u64 {
        match (self.starts.last(), self.extents.last()) {
            (Some(start), Some(extent)) => start + extent.blocks(),
            _ => 0,
        }
    }

    /// First byte of data at or after `offset` (`lseek(2)`'s SEEK_DATA), before the end of the file.
    pub fn seek_data(&self, offset: u64, size: u64) -> Option<u64> {
        self.seek(offset, size, |extent| matches!(extent, Extent::Data(_)))
    }

    /// First byte of a hole at or after `offset` (SEEK_HOLE); the end of the file counts as one.
    pub fn seek_hole(&self, offset: u64, size: u64) -> Option<u64> {
        let hole = self.seek(offset, size, |extent| matches!(extent, Extent::Hole(_)));
        if offset < size { Some(hole.unwrap_or(size)) } else { None }
    }

    fn seek(&self, offset: u64, size: u64, wanted: impl Fn(&Extent) -> bool) -> Option<u64> {
        if offset >= size {
            return None;
        }
        let index = self.index(offset / BLOCK_BYTES);
        let found = (index..self.len()).find(|index| wanted(&self.extents[*index]))?;
        Some(offset.max(self.starts[found] * BLOCK_BYTES)).filter(|at| *at < size)
    }

    /// The extent that holds a block, or where it would be.
    fn index(&self, block: u64) -> usize {
        self.starts.partition_point(|start| *start <= block).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extents() -> impl Strategy<Value = Extents> {
        let one = (any::<bool>(), 0u64..50, 1u64..20).prop_map(|(hole, start, count)| {
            if hole {
                Extent::Hole(count)
            } else {
                Extent::Data(BlockRange::new(BlockIndex(start), count))
            }
        });
        proptest::collection::vec(one, 0..12).prop_map(|list| list.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_slice_equals_the_plain_one(list in extents(), first in 0u64..200, count in 0u64..80) {
            let map = ExtentMap::new(&list);
            let slice: Extents = map.slice(first, count).collect();
            prop_assert_eq!(slice, list.slice(first, count));
        }

        #[test]
        fn seeking_equals_asking_each_byte(list in extents(), tail in 1u64..4096, at in 0u64..900_000) {
            let size = (list.blocks() * BLOCK_BYTES).saturating_sub(BLOCK_BYTES - tail);
            let map = ExtentMap::new(&list);
            let blocks: Vec<bool> = list
                .iter()
                .flat_map(|e| std::iter::repeat_n(matches!(e, Extent::Data(_)), e.blocks() as usize))
                .collect();
            let plain = |data: bool| {
                let first = (at / BLOCK_BYTES) as usize;
                let found = (first..blocks.len()).find(|b| blocks[*b] == data)?;
                Some(at.max(found as u64 * BLOCK_BYTES)).filter(|at| *at < size)
            };
            let beyond = at >= size;
            prop_assert_eq!(map.seek_data(at, size), if beyond { None } else { plain(true) });
            let hole = if beyond { None } else { Some(plain(false).unwrap_or(size)) };
            prop_assert_eq!(map.seek_hole(at, size), hole);
        }
    }
}
