//! Which blocks the retained releases need.

use std::collections::HashSet;

use distd_core::manifest::{CatalogItem, Content, EntryKind, File};
use distd_core::store::OriginLog;
use distd_core::unit::{BlockRange, ByteRange};

use crate::history::{HistoryError, Met, merge, read_extents, read_release, walk};

/// Blocks that stay, sorted and apart.
#[derive(Debug, Default)]
pub(crate) struct Live(Vec<BlockRange>);

impl Live {
    /// All blocks that releases need, with `more`. `progress` is told releases done.
    pub(crate) fn of_releases(
        log: &OriginLog,
        items: &[&CatalogItem],
        more: Vec<BlockRange>,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, HistoryError> {
        let mut ranges = more;
        let mut seen: HashSet<ByteRange> = HashSet::new();
        for (done, item) in items.iter().enumerate() {
            let release = read_release(log, item.release)?;
            ranges.push(item.release.blocks());
            ranges.extend(release.profile.map(ByteRange::blocks));
            ranges.extend(release.image.map(|image| image.blocks));
            walk(log, release.root_directory().node, |met| {
                match met {
                    Met::Node(node) => {
                        ranges.push(node.blocks());
                        return Ok(seen.insert(node));
                    }
                    Met::Entry(_, entry) => {
                        if let EntryKind::File(file) = &entry.kind {
                            ranges.extend(read_extents(log, file)?.data());
                            ranges.extend(list_of(file).map(ByteRange::blocks));
                        }
                    }
                }
                Ok::<_, HistoryError>(true)
            })?;
            // Releases share most of what they hold.
            ranges = merge(ranges);
            progress(done as u64 + 1);
        }
        Ok(Self::new(ranges))
    }

    /// From ranges in any order.
    pub(super) fn new(ranges: Vec<BlockRange>) -> Self {
        Self(merge(ranges))
    }

    /// Blocks of `range` that stay.
    pub(super) fn count_in(&self, range: BlockRange) -> u64 {
        let from = self.0.partition_point(|live| live.end() <= range.start);
        let meeting = self.0[from..].iter().take_while(|live| live.start < range.end());
        meeting.map(|live| live.intersection(range).count).sum()
    }

    /// Whether a block of `range` stays.
    pub(crate) fn meets(&self, range: BlockRange) -> bool {
        let from = self.0.partition_point(|live| live.end() <= range.start);
        self.0.get(from).is_some_and(|live| !live.intersection(range).is_empty())
    }
}

/// Where a file's list of extents lies, if it has one.
fn list_of(file: &File) -> Option<ByteRange> {
    match &file.content {
        Content::List(range) => Some(*range),
        Content::Extents(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distd_core::unit::BlockIndex;

    #[test]
    fn it_counts_what_lies_in_a_range() {
        let range = |start, count| BlockRange::new(BlockIndex(start), count);
        let live = Live::new(vec![range(20, 5), range(3, 2), range(22, 8)]);
        for (at, count, expected) in
            [(0, 3, 0), (0, 4, 1), (3, 2, 2), (4, 100, 11), (5, 15, 0), (29, 5, 1), (30, 5, 0)]
        {
            assert_eq!(live.count_in(range(at, count)), expected, "{at} {count}");
            assert_eq!(live.meets(range(at, count)), expected > 0, "{at} {count}");
        }
    }
}
