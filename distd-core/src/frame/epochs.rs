//! The list of epochs that have frames: what the head refers to.

use serde::{Deserialize, Serialize};

use crate::keys::NtpTime;
use crate::limits::{EPOCHS_MAX, LOG_MUNROS_MAX, MUNRO_BYTES};
use crate::unit::{BlockIndex, BlockRange, ByteRange, MunroIndex};

use super::IndexError;
use super::index::ENTRY_BYTES;

/// Bytes of a block in an epoch's list of block hashes: the first ones of its `blake3::hash`, wherever it
/// lies. Zeros for a block of zeros.
pub const BLOCK_HASH_BYTES: u64 = 8;

/// One epoch with frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochItem {
    /// First munro of its section P.
    pub munro: u64,
    /// Munros of its section P.
    pub munros: u64,
    /// First byte of its index, in the log: a table of one entry a munro.
    pub index: u64,
    /// When its munros were signed (the signatures in the index are of this time).
    pub time: u64,
    /// First byte of the hashes of its section P's blocks, in the log; [`BLOCK_HASH_BYTES`] for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<u64>,
}

impl EpochItem {
    /// The bytes of a munro's entry in the index; `None` for a munro of another epoch.
    pub fn entry_range(&self, munro: MunroIndex) -> Option<ByteRange> {
        let position = munro.0.checked_sub(self.munro).filter(|at| *at < self.munros)?;
        Some(ByteRange { offset: self.index + position * ENTRY_BYTES, len: ENTRY_BYTES })
    }

    /// The bytes of the whole table.
    pub const fn table_range(&self) -> ByteRange {
        ByteRange { offset: self.index, len: self.munros * ENTRY_BYTES }
    }

    /// The bytes of the hashes of those of `blocks` that lie in the epoch.
    pub fn hashes_range(&self, blocks: BlockRange) -> Option<(BlockRange, ByteRange)> {
        let first = MunroIndex(self.munro).blocks().start;
        let own = BlockRange::new(first, self.munros * MunroIndex(0).blocks().count);
        let part = own.intersection(blocks);
        let offset = self.hashes? + part.start.0.saturating_sub(first.0) * BLOCK_HASH_BYTES;
        let range = ByteRange { offset, len: part.count * BLOCK_HASH_BYTES };
        (!part.is_empty()).then_some((part, range))
    }

    /// The signatures' time.
    pub const fn signed_at(&self) -> NtpTime {
        NtpTime(self.time)
    }

    fn is_sound(&self) -> bool {
        let end = self.munro.checked_add(self.munros).filter(|end| *end <= LOG_MUNROS_MAX);
        // Frames lie behind what they are frames of.
        end.is_some_and(|end| self.munros > 0 && self.index >= end * MUNRO_BYTES)
            && self.index <= (LOG_MUNROS_MAX - self.munros) * MUNRO_BYTES
            && self.hashes.is_none_or(|hashes| {
                hashes >= (self.munro + self.munros) * MUNRO_BYTES
                    && hashes <= (LOG_MUNROS_MAX - self.munros) * MUNRO_BYTES
            })
    }
}

/// All epochs with frames, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EpochList {
    /// The epochs, by position.
    pub items: Vec<EpochItem>,
}

impl EpochList {
    /// The epoch whose section P holds the block.
    pub fn covering(&self, block: BlockIndex) -> Option<&EpochItem> {
        let munro = block.munro().0;
        let after = self.items.partition_point(|item| item.munro <= munro);
        let item = self.items.get(after.checked_sub(1)?)?;
        (munro - item.munro < item.munros).then_some(item)
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Plain integers always encode into memory.
        rmp_serde::to_vec(self).unwrap_or_default()
    }

    /// From bytes, canonical form only.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let list: Self = rmp_serde::from_slice(bytes).map_err(|_| IndexError::Epochs)?;
        let ordered = list.items.windows(2).all(|pair| {
            let [a, b] = pair else { return false };
            a.munro.checked_add(a.munros).is_some_and(|end| end <= b.munro)
        });
        let sound = list.items.len() <= EPOCHS_MAX && list.items.iter().all(EpochItem::is_sound);
        if !ordered || !sound || list.encode() != bytes {
            return Err(IndexError::Epochs);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(munro: u64, munros: u64) -> EpochItem {
        EpochItem { munro, munros, index: (munro + munros) * MUNRO_BYTES, time: 7, hashes: None }
    }

    #[test]
    fn a_list_finds_the_epoch_of_a_block() {
        let list = EpochList { items: vec![item(0, 3), item(5, 1), item(9, 2)] };
        assert_eq!(EpochList::decode(&list.encode()), Ok(list.clone()));
        let found =
            |munro: u64| list.covering(MunroIndex(munro).blocks().start).map(|item| item.munro);
        let expected = [Some(0), Some(0), Some(0), None, None, Some(5), None, None, None, Some(9)];
        for (munro, expected) in expected.into_iter().enumerate() {
            assert_eq!(found(munro as u64), expected, "{munro}");
        }
        assert_eq!(found(11), None);
        assert_eq!(list.items[2].entry_range(MunroIndex(10)).map(|range| range.len), Some(120));
        assert_eq!(list.items[2].entry_range(MunroIndex(11)), None);
    }

    #[test]
    fn a_list_finds_the_hashes_of_blocks() {
        let hashes = Some(9 * MUNRO_BYTES);
        let list = EpochList { items: vec![item(0, 3), EpochItem { hashes, ..item(5, 2) }] };
        assert_eq!(EpochList::decode(&list.encode()), Ok(list.clone()));
        let blocks = |start, count| BlockRange::new(BlockIndex(start), count);
        assert_eq!(list.items[0].hashes_range(blocks(0, 5)), None);
        let range = |offset, len| ByteRange { offset: 9 * MUNRO_BYTES + offset, len };
        let of = |start, count| list.items[1].hashes_range(blocks(start, count));
        assert_eq!(of(0, 5 * 256), None);
        assert_eq!(of(5 * 256 + 3, 2), Some((blocks(5 * 256 + 3, 2), range(24, 16))));
        assert_eq!(of(7 * 256 - 1, 9), Some((blocks(7 * 256 - 1, 1), range(511 * 8, 8))));
        assert_eq!(of(0, 1 << 30), Some((blocks(5 * 256, 512), range(0, 4096))));
    }

    #[test]
    fn epochs_out_of_order_or_place_are_refused() {
        let mut early = item(5, 1);
        early.index -= 1;
        let far = EpochItem { munro: u64::MAX, munros: 2, index: 0, time: 0, hashes: None };
        let mut within = item(5, 1);
        within.hashes = Some(6 * MUNRO_BYTES - 1);
        for items in [
            vec![item(5, 1), item(0, 3)],
            vec![item(0, 6), item(5, 1)],
            vec![early],
            vec![within],
            vec![far],
            vec![item(3, 0)],
        ] {
            let list = EpochList { items };
            assert_eq!(EpochList::decode(&list.encode()), Err(IndexError::Epochs), "{list:?}");
        }
    }
}
