//! Which blocks a cache claims to hold, and when each granule was last used. Memory only.

use std::collections::BTreeMap;

use crate::unit::{BlockIndex, BlockRange, MunroIndex};

/// Coarse time of an access: counts megabytes moved, not seconds.
pub(super) type Tick = u16;

/// One munro's 256 blocks as bits.
pub(super) type Bits = [u64; 4];

/// The claims of one log, by munro. About 200 bytes per munro held.
#[derive(Default)]
pub(super) struct PresenceMap {
    munros: BTreeMap<u64, Presence>,
    blocks: u64,
}

/// The claims of one munro.
#[derive(Clone)]
pub(super) struct Presence {
    /// Blocks held.
    pub(super) bits: Bits,
    /// Blocks whose bit the disk's map may have: their content was synced before.
    pub(super) durable: Bits,
    /// Last use of each granule.
    pub(super) ticks: [Tick; 64],
}

impl PresenceMap {
    /// The claims of a munro; `None` if nothing of it is held.
    pub(super) fn munro(&self, munro: MunroIndex) -> Option<&Presence> {
        self.munros.get(&munro.0)
    }

    /// The same, to change ticks and `durable` only: the count of blocks is kept here.
    pub(super) fn munro_mut(&mut self, munro: MunroIndex) -> Option<&mut Presence> {
        self.munros.get_mut(&munro.0)
    }

    /// All munros of which something is held, ascending.
    pub(super) fn munros(&self) -> impl Iterator<Item = (MunroIndex, &Presence)> {
        self.munros.iter().map(|(munro, presence)| (MunroIndex(*munro), presence))
    }

    /// Halves all ticks, when the clock is about to overflow.
    pub(super) fn halve_ticks(&mut self) {
        for presence in self.munros.values_mut() {
            presence.ticks.iter_mut().for_each(|tick| *tick /= 2);
        }
    }

    /// Blocks held.
    pub(super) fn count(&self) -> u64 {
        self.blocks
    }

    /// Adds blocks of one munro; gives the number of new ones.
    pub(super) fn insert(&mut self, munro: MunroIndex, blocks: Bits) -> u64 {
        let presence = self.munros.entry(munro.0).or_insert(Presence {
            bits: [0; 4],
            durable: [0; 4],
            ticks: [0; 64],
        });
        let mut added = 0;
        for (bits, new) in presence.bits.iter_mut().zip(blocks) {
            added += u64::from((new & !*bits).count_ones());
            *bits |= new;
        }
        self.blocks += added;
        added
    }

    /// Removes blocks of one munro; gives those that were held.
    pub(super) fn remove(&mut self, munro: MunroIndex, blocks: Bits) -> Bits {
        let Some(presence) = self.munros.get_mut(&munro.0) else { return [0; 4] };
        let removed = and(presence.bits, blocks);
        presence.bits = and_not(presence.bits, blocks);
        presence.durable = and_not(presence.durable, blocks);
        self.blocks -= count(removed);
        if presence.bits == [0; 4] {
            self.munros.remove(&munro.0);
        }
        removed
    }

    /// Notes a use of blocks.
    pub(super) fn touch(&mut self, munro: MunroIndex, blocks: BlockRange, tick: Tick) {
        if blocks.is_empty() {
            return;
        }
        if let Some(presence) = self.munros.get_mut(&munro.0) {
            let first = blocks.start.granule().0;
            let last = BlockIndex(blocks.end().0 - 1).granule().0;
            for granule in first..=last {
                if let Some(used) = presence.ticks.get_mut((granule % 64) as usize) {
                    *used = tick;
                }
            }
        }
    }

    /// Whether all of a range within one munro is held.
    pub(super) fn holds(&self, munro: MunroIndex, blocks: BlockRange) -> bool {
        let wanted = bits_of(blocks);
        self.munro(munro).is_some_and(|presence| and(presence.bits, wanted) == wanted)
    }

    /// The parts of `range` that are not held.
    pub(super) fn parts_missing(&self, range: BlockRange) -> Vec<BlockRange> {
        let mut missing = Vec::new();
        let mut next = range.start;
        for held in self.parts_held(range) {
            push_joined(&mut missing, BlockRange::new(next, held.start.0 - next.0));
            next = held.end();
        }
        push_joined(&mut missing, BlockRange::new(next, range.end().0 - next.0));
        missing
    }

    /// The parts of `range` that are held, found without walking what is not: a range may span the
    /// whole log.
    pub(super) fn parts_held(&self, range: BlockRange) -> Vec<BlockRange> {
        let mut parts = Vec::new();
        if range.is_empty() {
            return parts;
        }
        for (munro, presence) in self.munros.range(range.start.munro().0..=range.end().munro().0) {
            let munro = MunroIndex(*munro);
            let part = range.intersection(munro.blocks());
            for run in runs(munro, and(presence.bits, bits_of(part))) {
                push_joined(&mut parts, run);
            }
        }
        parts
    }

    /// Whether nothing of these munros is held.
    pub(super) fn is_empty_in(&self, munros: std::ops::Range<u64>) -> bool {
        self.munros.range(munros).next().is_none()
    }

    /// Everything held, joined.
    pub(super) fn held(&self) -> Vec<BlockRange> {
        let mut held = Vec::new();
        for (munro, presence) in self.munros() {
            for run in runs(munro, presence.bits) {
                push_joined(&mut held, run);
            }
        }
        held
    }

    /// Blocks of `range` that are held.
    pub(super) fn count_in(&self, range: BlockRange) -> u64 {
        let (first, end) = (range.start.munro().0, range.end().munro().0 + 1);
        if range.is_empty() {
            return 0;
        }
        self.munros
            .range(first..end)
            .map(|(munro, presence)| {
                let part = range.intersection(MunroIndex(*munro).blocks());
                count(and(presence.bits, bits_of(part)))
            })
            .sum()
    }
}

/// The bits of a range within one munro.
pub(super) fn bits_of(blocks: BlockRange) -> Bits {
    let start = blocks.start.0 % 256;
    let end = start + blocks.count.min(256 - start);
    let mut bits = [0; 4];
    for (word, base) in bits.iter_mut().zip([0u64, 64, 128, 192]) {
        let below = |end: u64| match end.saturating_sub(base) {
            0 => 0,
            width @ 1..64 => (1u64 << width) - 1,
            _ => u64::MAX,
        };
        *word = below(end) & !below(start);
    }
    bits
}

/// The bits of one granule, by its number within its munro.
pub(super) fn granule_bits(granule: usize) -> Bits {
    let mut bits = [0; 4];
    if let Some(word) = bits.get_mut(granule / 16) {
        *word = 0xf << (granule % 16 * 4);
    }
    bits
}

/// The runs of set bits, ascending.
pub(super) fn runs(munro: MunroIndex, bits: Bits) -> Vec<BlockRange> {
    let first = munro.blocks().start.0;
    let mut runs = Vec::new();
    for (word, base) in bits.into_iter().zip([0, 64, 128, 192]) {
        let mut rest = word;
        while rest != 0 {
            let start = rest.trailing_zeros();
            let len = (rest >> start).trailing_ones();
            let run = BlockRange::new(BlockIndex(first + base + u64::from(start)), u64::from(len));
            push_joined(&mut runs, run);
            let taken = if len == 64 { u64::MAX } else { ((1 << len) - 1) << start };
            rest &= !taken;
        }
    }
    runs
}

/// Appends a run, or lengthens the last one that it continues.
pub(super) fn push_joined(runs: &mut Vec<BlockRange>, run: BlockRange) {
    match runs.last_mut() {
        _ if run.is_empty() => {}
        Some(last) if last.end() == run.start => last.count += run.count,
        _ => runs.push(run),
    }
}

/// Blocks in both.
pub(super) fn and(a: Bits, b: Bits) -> Bits {
    combine(a, b, |a, b| a & b)
}

/// Blocks of `a` that are not in `b`.
pub(super) fn and_not(a: Bits, b: Bits) -> Bits {
    combine(a, b, |a, b| a & !b)
}

/// Blocks in either.
pub(super) fn or(a: Bits, b: Bits) -> Bits {
    combine(a, b, |a, b| a | b)
}

/// Number of blocks.
pub(super) fn count(bits: Bits) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}

fn combine(a: Bits, b: Bits, with: impl Fn(u64, u64) -> u64) -> Bits {
    let mut combined = a;
    for (word, other) in combined.iter_mut().zip(b) {
        *word = with(*word, other);
    }
    combined
}

/// The stored form of a munro's bits: block i is bit i % 8 of byte i / 8.
pub(super) fn bits_to_bytes(bits: Bits) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, word) in bytes.chunks_exact_mut(8).zip(bits) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The inverse of [`bits_to_bytes`].
pub(super) fn bits_from_bytes(bytes: &[u8]) -> Bits {
    let mut bits = [0; 4];
    for (word, bytes) in bits.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn blocks(ranges: &[BlockRange]) -> BTreeSet<u64> {
        ranges.iter().flat_map(|range| range.iter()).map(|block| block.0).collect()
    }

    #[test]
    fn a_granule_is_four_blocks() {
        for granule in 0..64 {
            assert_eq!(
                granule_bits(granule as usize),
                bits_of(BlockRange::new(BlockIndex(granule * 4), 4))
            );
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_blocks(ops in proptest::collection::vec((any::<bool>(), 0u64..1000, 0u64..300), 1..40)) {
            let mut map = PresenceMap::default();
            let mut set = BTreeSet::new();
            for (add, start, len) in ops {
                let range = BlockRange::new(BlockIndex(start), len);
                for (munro, part) in super::super::nodes::by_munro(range) {
                    if add {
                        map.insert(munro, bits_of(part));
                    } else {
                        map.remove(munro, bits_of(part));
                    }
                }
                for block in range.iter() {
                    if add { set.insert(block.0); } else { set.remove(&block.0); }
                }
                let all = BlockRange::new(BlockIndex(0), 1400);
                let held = map.held();
                prop_assert!(held.windows(2).all(|pair| pair[0].end() < pair[1].start));
                prop_assert_eq!(&blocks(&held), &set);
                prop_assert_eq!(map.parts_held(all), held);
                let missing = blocks(&map.parts_missing(range));
                prop_assert_eq!(missing, range.iter().map(|b| b.0).filter(|b| !set.contains(b)).collect());
                prop_assert_eq!(map.count(), set.len() as u64);
                prop_assert_eq!(map.count_in(range), range.iter().filter(|b| set.contains(&b.0)).count() as u64);
            }
        }

        #[test]
        fn bits_survive_the_disk(bits: Bits) {
            prop_assert_eq!(bits_from_bytes(&bits_to_bytes(bits)), bits);
        }
    }
}
