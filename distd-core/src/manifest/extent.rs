//! Extents: where a file's blocks lie in the log.

use serde::{Deserialize, Serialize};

use crate::limits::{BLOCK_BYTES, LOG_MUNROS_MAX, MUNRO_BYTES};
use crate::unit::{BlockIndex, BlockRange};

use super::NodeError;
use super::node::{decode, encode};

const BLOCKS_MAX: u64 = LOG_MUNROS_MAX * (MUNRO_BYTES / BLOCK_BYTES);

/// A run of a file's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Blocks that lie in the log.
    Data(BlockRange),
    /// So many blocks of zeros that lie nowhere.
    Hole(u64),
}

impl Extent {
    /// Number of blocks.
    pub const fn blocks(self) -> u64 {
        match self {
            Self::Data(range) => range.count,
            Self::Hole(count) => count,
        }
    }
}

/// A file's extents in order, as few as possible: neighbours that could be one are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(Vec<Extent>);

/// Wire form: `[start + 1, count]`, with 0 in place of the start for a hole.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct WireExtent(u64, u64);

impl Extents {
    /// Appends blocks, merged with the last extent where they continue it. Empty ones are left out.
    pub fn push(&mut self, extent: Extent) {
        match (self.0.last_mut(), extent) {
            (_, extent) if extent.blocks() == 0 => {}
            (Some(Extent::Data(last)), Extent::Data(next)) if last.end() == next.start => {
                last.count += next.count;
            }
            (Some(Extent::Hole(last)), Extent::Hole(next)) => *last += next,
            (_, extent) => {
                // Most files are one extent, and there are millions of them in memory.
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.push(extent);
            }
        }
    }

    /// The extents, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Extent> {
        self.0.iter().copied()
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none (a file of no bytes).
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of blocks, holes included.
    pub fn blocks(&self) -> u64 {
        self.0.iter().map(|extent| extent.blocks()).sum()
    }

    /// Number of blocks that lie in the log.
    pub fn data_blocks(&self) -> u64 {
        self.data().map(|range| range.count).sum()
    }

    /// The ranges that lie in the log, in file order.
    pub fn data(&self) -> impl Iterator<Item = BlockRange> {
        self.0.iter().filter_map(|extent| match extent {
            Extent::Data(range) => Some(*range),
            Extent::Hole(_) => None,
        })
    }

    /// The part that covers the file's blocks `first..first + count`, clipped to the file's end.
    pub fn slice(&self, first: u64, count: u64) -> Self {
        let mut part = Self::default();
        let mut at = 0;
        let end = first.saturating_add(count);
        for extent in self.iter() {
            let (from, to) = (at.max(first), (at + extent.blocks()).min(end));
            if from < to {
                part.push(match extent {
                    Extent::Data(range) => {
                        let start = BlockIndex(range.start.0 + (from - at));
                        Extent::Data(BlockRange::new(start, to - from))
                    }
                    Extent::Hole(_) => Extent::Hole(to - from),
                });
            }
            at += extent.blocks();
            if at >= end {
                break;
            }
        }
        part
    }

    pub(super) fn to_wire(&self) -> Vec<WireExtent> {
        let wire = |extent| match extent {
            Extent::Data(range) => WireExtent(range.start.0 + 1, range.count),
            Extent::Hole(count) => WireExtent(0, count),
        };
        self.iter().map(wire).collect()
    }

    /// Checks that the extents are within the longest log, as few as possible, and cover a file of
    /// `size` bytes exactly.
    pub(super) fn from_wire(wire: &[WireExtent], size: u64) -> Result<Self, &'static str> {
        let extents = Self::unsized_from_wire(wire)?;
        if extents.blocks() != size.div_ceil(BLOCK_BYTES) {
            return Err("the extents do not cover the file's size");
        }
        Ok(extents)
    }

    /// Checks that the extents are within the longest log and as few as possible.
    pub(super) fn unsized_from_wire(wire: &[WireExtent]) -> Result<Self, &'static str> {
        let mut extents = Self::default();
        let mut blocks: u64 = 0;
        for WireExtent(start, count) in wire {
            let end = start.checked_add(*count).filter(|end| *end <= BLOCKS_MAX);
            if *count == 0 || end.is_none() {
                return Err("an extent is empty or lies beyond the longest log");
            }
            blocks += count;
            if blocks > BLOCKS_MAX {
                return Err("the extents are longer than the longest log");
            }
            extents.push(match start.checked_sub(1) {
                Some(start) => Extent::Data(BlockRange::new(BlockIndex(start), *count)),
                None => Extent::Hole(*count),
            });
        }
        if extents.len() != wire.len() {
            return Err("two extents that continue each other are not one");
        }
        Ok(extents)
    }
}

impl FromIterator<Extent> for Extents {
    fn from_iter<I: IntoIterator<Item = Extent>>(iter: I) -> Self {
        let mut extents = Self::default();
        iter.into_iter().for_each(|extent| extents.push(extent));
        extents
    }
}

/// A node that holds the extents of one file that has too many for its directory entry.
pub struct ExtentList;

impl ExtentList {
    /// Encodes a file's extents.
    pub fn encode(extents: &Extents) -> Vec<u8> {
        encode(&extents.to_wire())
    }

    /// Decodes the extents of a file of `size` bytes.
    pub fn decode(bytes: &[u8], size: u64) -> Result<Extents, NodeError> {
        let what = "extent list";
        let wire: Vec<WireExtent> = decode(what, bytes)?;
        Extents::from_wire(&wire, size).map_err(|rule| NodeError::Invalid { what, rule, index: 0 })
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

    /// Every block in turn: its place in the log, or `None` for a hole.
    fn plain(extents: &Extents) -> Vec<Option<u64>> {
        let blocks = |extent| match extent {
            Extent::Data(range) => range.iter().map(|block| Some(block.0)).collect::<Vec<_>>(),
            Extent::Hole(count) => vec![None; count as usize],
        };
        extents.iter().flat_map(blocks).collect()
    }

    proptest! {
        #[test]
        fn a_list_decodes_to_what_was_encoded(extents in extents()) {
            let size = extents.blocks() * BLOCK_BYTES;
            prop_assert_eq!(ExtentList::decode(&ExtentList::encode(&extents), size), Ok(extents.clone()));
            prop_assert!(ExtentList::decode(&ExtentList::encode(&extents), size + 1).is_err());
        }

        #[test]
        fn a_slice_equals_the_slice_of_single_blocks(extents in extents(), first in 0u64..80, count in 0u64..80) {
            let expected: Vec<_> =
                plain(&extents).into_iter().skip(first as usize).take(count as usize).collect();
            prop_assert_eq!(plain(&extents.slice(first, count)), expected);
        }
    }

    #[test]
    fn extents_out_of_bounds_are_refused() {
        for wire in [
            vec![WireExtent(1, 0)],
            vec![WireExtent(u64::MAX, 2)],
            vec![WireExtent(1, BLOCKS_MAX + 1)],
            vec![WireExtent(0, BLOCKS_MAX), WireExtent(5, 1)],
            vec![WireExtent(1, 1), WireExtent(2, 1)],
            vec![WireExtent(0, 1), WireExtent(0, 1)],
        ] {
            let blocks: u64 = wire.iter().fold(0, |sum, w| sum.saturating_add(w.1));
            assert!(Extents::from_wire(&wire, blocks.saturating_mul(BLOCK_BYTES)).is_err());
        }
    }
}
