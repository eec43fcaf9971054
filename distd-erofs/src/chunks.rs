//! How an inode says where its file's blocks lie: as one run, or by a map of equal chunks.
//!
//! A map has one address for each chunk of 2^n blocks; the chunks are as large as the file's extents
//! allow, so that a file of a few runs with round lengths has a short map.
//!
//! One run on a device has a map of one chunk, unless it is one block. Without a map its address is one in
//! the image's own address space, and Linux (6.18), which compares such addresses with those on the
//! device, then reads the run page by page: each small file costs several requests, of which the first one
//! brings one block and the others more than the file has.

use crate::format::{ADDRESS_BITS, CHUNK_BITS_MAX, CHUNK_INDEX, NOWHERE, Record};
use crate::plan::{Content, Unfit};
use crate::tree::{Extent, File};

/// How a file's blocks are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// One run from this address on.
    Flat(u32),
    /// A map of so many chunks of 2^bits blocks.
    Map { bits: u32, chunks: u64 },
}

impl Mapping {
    pub(crate) fn new(file: &File, content: Content) -> Result<Self, Unfit> {
        let blocks: u64 = file.extents.iter().map(|extent| extent.blocks()).sum();
        if blocks != file.size.div_ceil(crate::BLOCK_BYTES) || i64::try_from(file.size).is_err() {
            return Err(Unfit::Size { size: file.size, blocks });
        }
        let mut boundaries = 0;
        let mut at = 0;
        let mut flat = None;
        for piece in content.pieces(&file.extents) {
            boundaries |= at;
            at += piece.blocks();
            flat = match piece {
                Extent::Data { start, .. } => {
                    let address = content.address(start)?;
                    address.flat
                }
                Extent::Hole(_) => None,
            };
        }
        if blocks == 0 {
            return Ok(Self::Flat(0));
        }
        if boundaries == 0 {
            if let Some(address) = flat.filter(|_| blocks == 1 || content.is_inside()) {
                return Ok(Self::Flat(address));
            }
            boundaries = blocks.next_power_of_two();
        }
        let bits = boundaries.trailing_zeros().min(CHUNK_BITS_MAX);
        Ok(Self::Map { bits, chunks: blocks.div_ceil(1 << bits) })
    }

    /// Bytes of the map.
    pub(crate) const fn len(self) -> u64 {
        match self {
            Self::Flat(_) => 0,
            Self::Map { chunks, .. } => chunks * CHUNK_INDEX,
        }
    }
}

/// Gives the map's entries one after the other, of which each is `CHUNK_INDEX` bytes.
pub(crate) fn entries(file: &File, bits: u32, content: Content) -> impl Iterator<Item = [u8; 8]> {
    let pieces: Vec<Extent> = content.pieces(&file.extents).collect();
    pieces.into_iter().flat_map(move |piece| {
        (0..piece.blocks()).step_by(1 << bits).map(move |step| entry(piece, step, content))
    })
}

fn entry(piece: Extent, step: u64, content: Content) -> [u8; 8] {
    let (device, address) = match piece {
        // Every address was looked at when the map was planned.
        Extent::Data { start, .. } => {
            content.address(start + step).map_or((0, NOWHERE), |a| (a.device, a.block))
        }
        Extent::Hole(_) => (0, NOWHERE),
    };
    let mut record = Record::default();
    record.u16(0).u16(device).u32(address);
    record.0.try_into().unwrap_or_default()
}

/// Where a block of the content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// By device (0: the image's own) and block on it.
    pub(crate) device: u16,
    pub(crate) block: u32,
    /// In the image's own address space, if it is there.
    pub(crate) flat: Option<u32>,
}

impl Content {
    /// Blocks of content that one device shows.
    pub(crate) const fn blocks_a_device(self) -> u64 {
        (1 << ADDRESS_BITS) - self.first()
    }

    /// Whether it is in the image.
    pub(crate) const fn is_inside(self) -> bool {
        matches!(self, Self::Inside { .. })
    }

    /// The address of the content's block 0.
    pub(crate) const fn first(self) -> u64 {
        match self {
            Self::Devices { device_block } => device_block,
            Self::Inside { first, .. } => first,
        }
    }

    pub(crate) fn address(self, block: u64) -> Result<Address, Unfit> {
        let (slot, rest) = (block / self.blocks_a_device(), block % self.blocks_a_device());
        let flat = (slot == 0).then_some((self.first() + rest) as u32);
        match self {
            Self::Devices { .. } if slot < crate::format::DEVICES_MAX => {
                Ok(Address { device: slot as u16 + 1, block: rest as u32, flat })
            }
            Self::Inside { .. } if slot == 0 => {
                Ok(Address { device: 0, block: (self.first() + rest) as u32, flat })
            }
            _ => Err(Unfit::TooFar { block }),
        }
    }

    /// Extents, cut where a device ends.
    fn pieces(self, extents: &[Extent]) -> impl Iterator<Item = Extent> {
        let slot = self.blocks_a_device();
        extents.iter().flat_map(move |extent| {
            let mut rest = Some(*extent);
            std::iter::from_fn(move || match rest.take()? {
                Extent::Hole(count) => Some(Extent::Hole(count)),
                Extent::Data { start, count } => {
                    let first = count.min(slot - start % slot);
                    if first < count {
                        rest = Some(Extent::Data { start: start + first, count: count - first });
                    }
                    Some(Extent::Data { start, count: first })
                }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: Content = Content::Devices { device_block: 1 << 20 };
    const SLOT: u64 = (1 << 32) - (1 << 20);

    fn file(extents: &[Extent]) -> File {
        let blocks: u64 = extents.iter().map(|extent| extent.blocks()).sum();
        File { size: blocks * crate::BLOCK_BYTES, extents: extents.to_vec() }
    }

    fn data(start: u64, count: u64) -> Extent {
        Extent::Data { start, count }
    }

    fn map(file: &File) -> Vec<(u16, u32)> {
        let Ok(Mapping::Map { bits, chunks }) = Mapping::new(file, LOG) else { return Vec::new() };
        let entries: Vec<_> = entries(file, bits, LOG).collect();
        assert_eq!(entries.len() as u64, chunks);
        let read = |e: &[u8; 8]| {
            let device = u16::from_le_bytes([e[2], e[3]]);
            (device, u32::from_le_bytes([e[4], e[5], e[6], e[7]]))
        };
        entries.iter().map(read).collect()
    }

    #[test]
    fn one_run_needs_no_map_but_of_one_chunk_on_a_device() {
        assert_eq!(map(&file(&[data(5, 9)])), [(1, 5)]);
        let inside = Content::Inside { first: 100, count: 50 };
        assert_eq!(Mapping::new(&file(&[data(5, 9)]), inside), Ok(Mapping::Flat(105)));
        assert_eq!(Mapping::new(&file(&[data(5, 1)]), LOG), Ok(Mapping::Flat((1 << 20) + 5)));
        assert_eq!(Mapping::new(&file(&[]), LOG), Ok(Mapping::Flat(0)));
        let last = file(&[data(SLOT - 1, 1)]);
        assert_eq!(Mapping::new(&last, LOG), Ok(Mapping::Flat(u32::MAX)));
    }

    #[test]
    fn chunks_are_as_large_as_the_runs_allow() {
        assert_eq!(map(&file(&[Extent::Hole(1 << 40)])).len(), 1 << 9);
        assert_eq!(map(&file(&[Extent::Hole(3)])), [(0, NOWHERE)]);
        assert_eq!(map(&file(&[data(7, 8), data(100, 5)])), [(1, 7), (1, 100)]);
        assert_eq!(
            map(&file(&[data(7, 4), Extent::Hole(8), data(100, 1)])),
            [(1, 7), (0, NOWHERE), (0, NOWHERE), (1, 100)]
        );
        assert_eq!(map(&file(&[data(7, 1), data(100, 2)])), [(1, 7), (1, 100), (1, 101)]);
    }

    #[test]
    fn a_run_across_devices_is_found_on_both() {
        assert_eq!(map(&file(&[data(SLOT - 4, 8)])), [(1, SLOT as u32 - 4), (2, 0)]);
        assert_eq!(map(&file(&[data(SLOT, 8)])), [(2, 0)]);
        let far = file(&[data(SLOT * crate::format::DEVICES_MAX, 1)]);
        assert!(matches!(Mapping::new(&far, LOG), Err(Unfit::TooFar { .. })));
    }

    #[test]
    fn extents_that_are_not_the_files_are_refused() {
        let short = File { size: 5000, extents: vec![data(0, 1)] };
        assert!(matches!(Mapping::new(&short, LOG), Err(Unfit::Size { .. })));
    }
}
