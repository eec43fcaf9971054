//! Lists of blocks.

use distd_core::unit::{BlockIndex, BlockRange};

/// Sorted, without overlaps or neighbours that could be one.
pub fn merged(mut ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    ranges.sort_unstable();
    let mut merged: Vec<BlockRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end() => {
                last.count = last.count.max(range.end().0 - last.start.0);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The parts of `ranges` that lie in none of `others`; both sorted and merged.
pub fn without(ranges: &[BlockRange], others: &[BlockRange]) -> Vec<BlockRange> {
    let mut left = Vec::new();
    for range in ranges {
        let mut at = range.start.0;
        for other in others.iter().filter(|other| !range.intersection(**other).is_empty()) {
            if other.start.0 > at {
                left.push(BlockRange::new(BlockIndex(at), other.start.0 - at));
            }
            at = at.max(other.end().0);
        }
        if at < range.end().0 {
            left.push(BlockRange::new(BlockIndex(at), range.end().0 - at));
        }
    }
    left
}

/// Blocks of a list.
pub fn blocks_of(ranges: &[BlockRange]) -> u64 {
    ranges.iter().map(|range| range.count).sum()
}

/// Blocks that lie in both lists; each is sorted and merged.
pub fn shared(some: &[BlockRange], others: &[BlockRange]) -> u64 {
    let (mut some, mut others) = (some.iter().peekable(), others.iter().peekable());
    let mut count = 0;
    while let (Some(a), Some(b)) = (some.peek(), others.peek()) {
        count += a.intersection(**b).count;
        let next = if a.end() <= b.end() { &mut some } else { &mut others };
        next.next();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn lists() -> impl Strategy<Value = Vec<BlockRange>> {
        let range = |(start, count)| BlockRange::new(BlockIndex(start), count);
        proptest::collection::vec((0u64..60, 1u64..9).prop_map(range), 0..20)
    }

    fn set(ranges: &[BlockRange]) -> BTreeSet<BlockIndex> {
        ranges.iter().flat_map(|range| range.iter()).collect()
    }

    proptest! {
        #[test]
        fn merging_keeps_each_block_once(list in lists()) {
            let plain = set(&list);
            let merged = merged(list);
            let blocks: Vec<_> = merged.iter().flat_map(|range| range.iter()).collect();
            prop_assert_eq!(blocks, plain.into_iter().collect::<Vec<_>>());
            prop_assert!(merged.windows(2).all(|pair| pair[0].end() < pair[1].start));
        }

        #[test]
        fn lists_are_taken_apart_as_sets_are(a in lists(), b in lists()) {
            let (a, b) = (merged(a), merged(b));
            let difference: BTreeSet<_> = set(&a).difference(&set(&b)).copied().collect();
            prop_assert_eq!(set(&without(&a, &b)), difference);
            prop_assert_eq!(shared(&a, &b), set(&a).intersection(&set(&b)).count() as u64);
            prop_assert_eq!(blocks_of(&a), set(&a).len() as u64);
        }
    }
}
