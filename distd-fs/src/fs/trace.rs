//! What a mount is first used for: which blocks of which files were read first, in order.
//!
//! Always recorded, because it is wanted when the use is over; bounded, because the beginning is what
//! matters. The kernel's page cache answers what is read again, so that hardly more than first accesses
//! come here.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use distd_core::limits::PROFILE_RANGES_MAX;
use distd_core::manifest::Access;
use distd_core::unit::ByteRange;

/// Bytes of paths that are kept.
const PATH_BYTES_MAX: usize = 4 << 20;

/// The record of a mount.
#[derive(Debug, Default)]
pub(crate) struct Trace(Mutex<Record>);

#[derive(Debug, Default)]
struct Record {
    /// By the directory node and the position in it.
    files: HashMap<(ByteRange, u32), usize>,
    paths: Vec<Vec<u8>>,
    path_bytes: usize,
    /// Blocks seen of each file, as ends by starts.
    seen: Vec<BTreeMap<u64, u64>>,
    /// File, first block, number of blocks.
    order: Vec<(usize, u64, u64)>,
}

impl Trace {
    /// Takes note of a read of the blocks `first..end` of the entry at `place`; `path` is asked for once
    /// per file.
    pub(crate) fn on_read(
        &self,
        place: (ByteRange, u32),
        first: u64,
        end: u64,
        path: impl FnOnce() -> Option<Vec<u8>>,
    ) {
        let mut record = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let record = &mut *record;
        if record.order.len() >= PROFILE_RANGES_MAX {
            return;
        }
        let file = match record.files.get(&place) {
            Some(file) => *file,
            None if record.path_bytes >= PATH_BYTES_MAX => return,
            None => {
                let Some(path) = path() else { return };
                record.path_bytes += path.len();
                record.paths.push(path);
                record.seen.push(BTreeMap::new());
                record.files.insert(place, record.paths.len() - 1);
                record.paths.len() - 1
            }
        };
        let (order, seen) = (&mut record.order, &mut record.seen[file]);
        for (start, end) in unseen(seen, first, end) {
            match order.last_mut() {
                Some((last, begin, count)) if *last == file && *begin + *count == start => {
                    *count += end - start;
                }
                _ => order.push((file, start, end - start)),
            }
        }
    }

    /// What was recorded.
    pub(crate) fn accesses(&self) -> Vec<Access> {
        let record = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let access = |(file, first, count): &(usize, u64, u64)| Access {
            path: record.paths[*file].clone(),
            first: *first,
            count: *count,
        };
        record.order.iter().map(access).collect()
    }
}

/// The parts of `first..end` that are new, which then count as seen.
pub(super) fn unseen(seen: &mut BTreeMap<u64, u64>, first: u64, end: u64) -> Vec<(u64, u64)> {
    let (mut parts, mut at) = (Vec::new(), first);
    let (mut begin, mut last) = (first, end);
    // What touches the range or overlaps it, from the one that begins before it on.
    let from = seen.range(..=first).next_back().map_or(first, |(start, _)| *start);
    let touched: Vec<(u64, u64)> = seen
        .range(from..=end)
        .map(|(start, stop)| (*start, *stop))
        .filter(|(_, stop)| *stop >= first)
        .collect();
    for (start, stop) in touched {
        if start > at {
            parts.push((at, start));
        }
        at = at.max(stop);
        (begin, last) = (begin.min(start), last.max(stop));
        seen.remove(&start);
    }
    if at < end {
        parts.push((at, end));
    }
    if begin < last {
        seen.insert(begin, last);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn only_first_accesses_are_recorded(reads in proptest::collection::vec((0u64..60, 1u64..12), 0..40)) {
            let (mut seen, mut plain) = (BTreeMap::new(), BTreeSet::new());
            for (first, count) in reads {
                let expected: Vec<u64> =
                    (first..first + count).filter(|block| plain.insert(*block)).collect();
                let parts = unseen(&mut seen, first, first + count);
                let blocks: Vec<u64> = parts.into_iter().flat_map(|(start, end)| start..end).collect();
                prop_assert_eq!(blocks, expected);
            }
        }
    }

    #[test]
    fn a_trace_is_in_order_and_bounded() {
        let trace = Trace::default();
        let place = |index| (ByteRange { offset: 0, len: 1 }, index);
        let path = |name: &str| Some(name.as_bytes().to_vec());
        trace.on_read(place(0), 0, 4, || path("a"));
        trace.on_read(place(0), 4, 8, || unreachable!("known"));
        trace.on_read(place(1), 9, 10, || path("b"));
        trace.on_read(place(0), 6, 9, || None);
        trace.on_read(place(2), 0, 1, || None);
        let access = |path: &str, first, count| Access { path: path.into(), first, count };
        assert_eq!(trace.accesses(), [access("a", 0, 8), access("b", 9, 1), access("a", 8, 1)]);
        for block in 0..3 * PROFILE_RANGES_MAX as u64 {
            trace.on_read(place(1), 2 * block, 2 * block + 1, || None);
        }
        assert_eq!(trace.accesses().len(), PROFILE_RANGES_MAX);
    }
}
