//! Fetching a release's metadata in the background, so that lookups soon never wait.

use std::sync::{Arc, Weak};
use std::time::Instant;

use distd_core::limits::TREE_DEPTH_MAX;
use distd_core::manifest::{Content, DirectoryNode, EntryKind, Release};
use distd_core::unit::{BlockRange, ByteRange};

use crate::blocks::{Blocks, Purpose, read_bytes};

use super::Fs;

impl<B: Blocks> Fs<B> {
    /// Begins to fetch the metadata of the release on show. A release lists the blocks of its
    /// metadata, so that all of it is one request; one that is scattered too wide for that is walked
    /// level by level on a thread of its own, which ends with the mount.
    pub fn sweep_metadata(self: &Arc<Self>) {
        let view = self.view();
        if !view.release.metadata.is_empty() {
            self.blocks.prefetch(view.release.metadata.clone(), Purpose::Metadata);
            return;
        }
        let fs = Arc::downgrade(self);
        let spawned = std::thread::Builder::new()
            .name("metadata-sweep".into())
            .spawn(move || sweep_levels(&fs, &view.release));
        if let Err(error) = spawned {
            tracing::warn!("no background fetch of metadata: {error}");
        }
    }
}

fn sweep_levels<B: Blocks>(fs: &Weak<Fs<B>>, release: &Release) {
    let mut level: Vec<ByteRange> = vec![release.root_directory().node];
    for _ in 0..TREE_DEPTH_MAX {
        let Some(blocks) = fs.upgrade().map(|fs| Arc::clone(&fs.blocks)) else { return };
        let wanted: Vec<BlockRange> = level.iter().map(|range| range.blocks()).collect();
        blocks.prefetch(wanted, Purpose::Metadata);
        let mut below = Vec::new();
        for range in level {
            let Some(deadline) = fs.upgrade().map(|fs| fs.deadline()) else { return };
            if let Some(node) = directory(&*blocks, range, deadline) {
                let list = node.entries().iter().filter_map(|entry| match &entry.kind {
                    EntryKind::File(file) => match file.content {
                        Content::List(list) => Some(list.blocks()),
                        Content::Extents(_) => None,
                    },
                    _ => None,
                });
                blocks.prefetch(list.collect(), Purpose::Metadata);
                below.extend(node.entries().iter().filter_map(|entry| match &entry.kind {
                    EntryKind::Directory(directory) => Some(directory.node),
                    _ => None,
                }));
            }
        }
        if below.is_empty() {
            return;
        }
        level = below;
    }
}

/// A directory, or nothing where it cannot be had: a sweep is best effort, and the lookup that needs
/// it will say why.
fn directory<B: Blocks>(blocks: &B, range: ByteRange, deadline: Instant) -> Option<DirectoryNode> {
    DirectoryNode::decode(&read_bytes(blocks, range, deadline).ok()?).ok()
}
