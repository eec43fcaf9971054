//! From a recorded profile to the blocks of the release that is being published.

use std::collections::HashMap;

use distd_core::manifest::{Access, Extent};
use distd_core::unit::BlockRange;

use crate::metadata::Tree;
use crate::scan::FileIndex;

/// The blocks that the accesses name, in their order; what the tree does not have is left out.
pub(super) fn ranges(tree: &Tree<'_>, accesses: &[Access]) -> Vec<BlockRange> {
    let files = 0..tree.scan.files.len() as u32;
    let by_path: HashMap<Vec<u8>, u32> =
        files.map(|file| (tree.scan.file_path(FileIndex(file)).0, file)).collect();
    let mut ranges = Vec::new();
    for Access { path, first, count } in accesses {
        let Some(file) = by_path.get(path) else { continue };
        let part = tree.contents[*file as usize].extents.slice(*first, *count);
        ranges.extend(part.iter().filter_map(|extent| match extent {
            Extent::Data(range) => Some(range),
            Extent::Hole(_) => None,
        }));
    }
    ranges
}
