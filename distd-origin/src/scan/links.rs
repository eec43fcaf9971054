//! Hard links: which names within the tree are one inode.

use std::collections::HashMap;

use distd_core::manifest::HardLink;

use super::{DirectoryIndex, Scan, ScannedKind, TreePath};

/// Marks the entries that share an inode with another entry of the tree. Names outside the tree do
/// not count: the release has its own links.
pub(super) fn mark(scan: &mut Scan) {
    let mut groups: HashMap<(u64, u64), Vec<(DirectoryIndex, u32)>> = HashMap::new();
    for (directory, scanned) in scan.directories.iter().enumerate() {
        for (entry, found) in scanned.entries.iter().enumerate() {
            let is_directory = matches!(found.kind, ScannedKind::Directory(_));
            if found.attributes.nlink > 1 && !is_directory {
                let inode = (found.attributes.dev, found.attributes.ino);
                let at = (DirectoryIndex(directory as u32), entry as u32);
                groups.entry(inode).or_default().push(at);
            }
        }
    }
    for members in groups.into_values().filter(|members| members.len() > 1) {
        let mut paths: Vec<TreePath> =
            members.iter().map(|(directory, entry)| scan.entry_path(*directory, *entry)).collect();
        paths.sort();
        let link = Some(HardLink { id: link_id(&paths), count: members.len() as u32 });
        for (directory, entry) in members {
            scan.directories[directory.0 as usize].entries[entry as usize].link = link;
        }
    }
}

/// From the names alone, so that a directory node stays the same from release to release.
fn link_id(sorted: &[TreePath]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for path in sorted {
        hasher.update(&path.0).update(&[0]);
    }
    let hash = hasher.finalize();
    hash.as_bytes().first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
}
