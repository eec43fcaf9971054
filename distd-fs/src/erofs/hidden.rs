//! What the hidden superblock holds.
//!
//! ```text
//! /
//! ├── 3/                            a mount's own root: what the helper is confined to
//! │   ├── .distd-log0               the log: block b at offset 4096 b; one inode throughout
//! │   ├── .distd-log1               where the log is longer than a device, its next part; ...
//! │   └── distd:/ID@HOST/stable     the metadata image, under SOURCE as a path: mount tables show the name by
//! │                                 which the kernel opened the image
//! └── 5/ ...
//! ```
//!
//! The log's file is as long as the longest device that EROFS can address, so that it never grows under
//! the kernel's eyes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use distd_core::manifest::ReleaseImage;
use distd_core::unit::{BlockIndex, BlockRange};

use crate::blocks::{Blocks, Purpose};
use crate::fs::{Accessed, Failed};
use crate::journal::Journal;

use super::mixed::Mixed;
use super::streams::Streams;

/// FUSE's number of the root.
pub(super) const ROOT: u64 = 1;
/// Names of the devices that show the log: this, and their number.
const DEVICE_NAME: &str = ".distd-log";
/// Blocks that EROFS can address on a device: 32 bits.
const DEVICE_BLOCKS_MAX: u64 = 1 << 32;
/// Longest name that FUSE takes.
const NAME_BYTES_MAX: usize = 1024;

/// The content of a hidden superblock over the blocks `B` of one log.
pub(crate) struct Hidden<B> {
    pub(super) blocks: Arc<B>,
    /// How long a read waits for the network.
    pub(super) timeout: Duration,
    /// What log lines call it.
    pub(super) label: String,
    /// Reads that failed, by munro, and by the process that read.
    pub(super) failed: Failed,
    pub(super) failed_by: Failed,
    /// What was read first.
    pub(crate) accessed: Accessed,
    /// None where reads are to fail.
    pub(super) journal: Option<Journal>,
    pub(super) streams: Streams,
    pub(super) mixed: Mixed,
    tree: Mutex<Tree>,
}

/// Why there is no room for an image: mount tables could not show its source.
#[derive(Debug, thiserror::Error)]
#[error("the source '{0}' cannot be the name of a file")]
pub(crate) struct NoRoom(String);

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory.
    Directory,
    /// A regular file of so many bytes.
    File(u64),
}

/// A mount's own root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Its name in the root.
    pub(super) name: String,
    /// Its number.
    pub(super) number: u64,
    /// The image's number.
    pub(super) image: u64,
    nodes: Vec<u64>,
}

struct Tree {
    next: u64,
    nodes: BTreeMap<u64, Node>,
    /// The devices, by the block of the log that they begin with.
    devices: BTreeMap<BlockIndex, u64>,
}

enum Node {
    Directory(BTreeMap<Vec<u8>, u64>),
    Device(BlockRange),
    Image(Image),
}

struct Image {
    blocks: BlockRange,
    opens: u64,
    /// Whose room is gone: it goes with the last that has it open.
    left: bool,
    on_close: Option<Box<dyn FnOnce() + Send>>,
}

impl<B: Blocks> Hidden<B> {
    /// An empty one; reads of it end after `timeout`. An error where there is no thread for it.
    pub(crate) fn new(blocks: Arc<B>, timeout: Duration, label: String) -> io::Result<Self> {
        let nodes = [(ROOT, Node::Directory(BTreeMap::new()))];
        let mixed = Mixed::new(Arc::clone(&blocks))?;
        Ok(Self {
            blocks,
            timeout,
            label,
            failed: Failed::default(),
            failed_by: Failed::default(),
            accessed: Accessed::default(),
            journal: Some(Journal::default()),
            streams: Streams::default(),
            mixed,
            tree: Mutex::new(Tree {
                next: ROOT + 1,
                nodes: nodes.into(),
                devices: BTreeMap::new(),
            }),
        })
    }

    /// Makes a room with an image and the devices that it expects, under `source`.
    pub(super) fn enter(&self, source: &str, image: &ReleaseImage) -> Result<Room, NoRoom> {
        let names = names(source).ok_or_else(|| NoRoom(source.to_owned()))?;
        let mut tree = self.tree();
        let mut top = BTreeMap::new();
        for device in 0..image.devices {
            let number = tree.device(image.first_block(device));
            top.insert(device_name(device).into_bytes(), number);
        }
        let node = Image { blocks: image.blocks, opens: 0, left: false, on_close: None };
        let image = tree.add(Node::Image(node));
        let (mut below, mut nodes) = (image, vec![image]);
        for (index, name) in names.iter().enumerate().rev() {
            if index == 0 {
                top.insert(name.clone(), below);
            } else {
                below = tree.add(Node::Directory(BTreeMap::from([(name.clone(), below)])));
                nodes.push(below);
            }
        }
        let room = tree.add(Node::Directory(top));
        nodes.push(room);
        let name = room.to_string();
        tree.root().insert(name.clone().into_bytes(), room);
        Ok(Room { name, number: room, image, nodes })
    }

    /// Takes a room away; its image stays for as long as somebody has it open.
    pub(super) fn leave(&self, room: &Room) {
        let mut tree = self.tree();
        tree.root().remove(room.name.as_bytes());
        for number in &room.nodes {
            match tree.nodes.get_mut(number) {
                Some(Node::Image(image)) if image.opens > 0 => image.left = true,
                _ => drop(tree.nodes.remove(number)),
            }
        }
    }

    /// Calls `then` once nobody has the image open any more.
    pub(super) fn on_close(&self, image: u64, then: impl FnOnce() + Send + 'static) {
        let mut tree = self.tree();
        match tree.nodes.get_mut(&image) {
            Some(Node::Image(image)) if image.opens > 0 => image.on_close = Some(Box::new(then)),
            _ => {
                drop(tree);
                then();
            }
        }
    }

    /// An entry of a directory.
    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Option<(u64, Kind)> {
        let tree = self.tree();
        let Node::Directory(entries) = tree.nodes.get(&parent)? else { return None };
        let number = *entries.get(name)?;
        Some((number, tree.nodes.get(&number)?.kind()))
    }

    /// The kind of an inode.
    pub(super) fn kind(&self, number: u64) -> Option<Kind> {
        self.tree().nodes.get(&number).map(Node::kind)
    }

    /// Counts one that has a file open; whether there is such a file.
    pub(super) fn open(&self, number: u64) -> bool {
        match self.tree().nodes.get_mut(&number) {
            Some(Node::Image(image)) => {
                image.opens += 1;
                true
            }
            Some(Node::Device(_)) => true,
            Some(Node::Directory(_)) | None => false,
        }
    }

    /// Takes back one [`Self::open`].
    pub(super) fn close(&self, number: u64) {
        let mut tree = self.tree();
        let Some(Node::Image(image)) = tree.nodes.get_mut(&number) else { return };
        image.opens = image.opens.saturating_sub(1);
        if image.opens > 0 {
            return;
        }
        let then = image.on_close.take();
        if image.left {
            tree.nodes.remove(&number);
        }
        drop(tree);
        if let Some(then) = then {
            then();
        }
    }

    /// Which blocks of the log a file shows, and what they are.
    pub(super) fn window(&self, number: u64) -> Option<(BlockRange, Purpose)> {
        match self.tree().nodes.get(&number)? {
            Node::Device(blocks) => Some((*blocks, Purpose::Data)),
            Node::Image(image) => Some((image.blocks, Purpose::Metadata)),
            Node::Directory(_) => None,
        }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree {
    fn add(&mut self, node: Node) -> u64 {
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, node);
        number
    }

    /// The device that shows the log from this block on.
    fn device(&mut self, start: BlockIndex) -> u64 {
        if let Some(number) = self.devices.get(&start) {
            return *number;
        }
        let number = self.add(Node::Device(BlockRange::new(start, DEVICE_BLOCKS_MAX)));
        self.devices.insert(start, number);
        number
    }

    fn root(&mut self) -> &mut BTreeMap<Vec<u8>, u64> {
        match self.nodes.get_mut(&ROOT) {
            Some(Node::Directory(entries)) => entries,
            _ => unreachable!("the root is made with the tree and never removed"),
        }
    }
}

impl Node {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory(_) => Kind::Directory,
            Self::Device(blocks) => Kind::File(blocks.byte_len()),
            Self::Image(image) => Kind::File(image.blocks.byte_len()),
        }
    }
}

/// The name of a device in each room.
pub(super) fn device_name(device: u16) -> String {
    format!("{DEVICE_NAME}{device}")
}

/// The names on the way that the kernel takes to a path, from the root or a directory that is its own
/// parent; nothing where it would not get there.
fn names(path: &str) -> Option<Vec<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name.as_bytes().to_vec()),
        }
    }
    let fits = |name: &Vec<u8>| name.len() <= NAME_BYTES_MAX;
    let ends_in_a_name = !matches!(path.rsplit('/').next(), Some("" | "." | ".."));
    // A name that is walked back from would have to be there.
    let walks_back = path.split('/').skip_while(|name| matches!(*name, "" | "." | ".."));
    let walks_back = walks_back.into_iter().any(|name| name == "..");
    let shown = names.first().is_some_and(|name| !name.starts_with(DEVICE_NAME.as_bytes()));
    (shown && ends_in_a_name && !walks_back && names.iter().all(fits)).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::Memory;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn hidden() -> Arc<Hidden<Memory>> {
        let hidden = Hidden::new(Arc::default(), Duration::from_secs(1), "test".into());
        Arc::new(hidden.expect("a thread"))
    }

    fn walk(hidden: &Hidden<Memory>, path: &[&str]) -> Option<(u64, Kind)> {
        let step = |at: Option<(u64, Kind)>, name: &&str| hidden.lookup(at?.0, name.as_bytes());
        path.iter().fold(Some((ROOT, Kind::Directory)), step)
    }

    fn image(start: u64, count: u64) -> ReleaseImage {
        let blocks = BlockRange::new(BlockIndex(start), count);
        ReleaseImage { blocks, device_block: 1 << 20, devices: 1 }
    }

    #[test]
    fn a_source_is_the_path_of_its_image() {
        let hidden = hidden();
        let room = hidden.enter("distd://x@h:1,i/t@1", &image(9, 3)).expect("a path");
        let found = walk(&hidden, &[&room.name, "distd:", "x@h:1,i", "t@1"]);
        assert_eq!(found, Some((room.image, Kind::File(3 * 4096))));
        assert_eq!(hidden.window(room.image), Some((image(9, 3).blocks, Purpose::Metadata)));
        let log = walk(&hidden, &[&room.name, &device_name(0)]).expect("is there");
        assert_eq!(log.1, Kind::File(16 << 40));
        let other = hidden.enter("distd://x@h:1,i/t@1", &image(20, 1)).expect("a path");
        assert_ne!(other.image, room.image);
        hidden.leave(&room);
        assert_eq!(walk(&hidden, &[&room.name]), None);
        assert_eq!(walk(&hidden, &[&other.name, &device_name(0)]), Some(log));
    }

    #[test]
    fn a_long_log_lies_on_several_devices() {
        let (hidden, long) = (hidden(), ReleaseImage { devices: 2, ..image(9, 3) });
        let room = hidden.enter("s", &long).expect("a path");
        let (second, _) = walk(&hidden, &[&room.name, &device_name(1)]).expect("is there");
        let (window, _) = hidden.window(second).expect("a file");
        assert_eq!(window.start, BlockIndex((1 << 32) - (1 << 20)));
        assert_eq!(walk(&hidden, &[&room.name, &device_name(2)]), None);
    }

    #[test]
    fn paths_lead_where_the_kernel_goes() {
        let text = |path: &str| {
            let names = names(path)?;
            Some(String::from_utf8(names.join(&b'|')).expect("text"))
        };
        assert_eq!(text("/etc//./os.distd#t").as_deref(), Some("etc|os.distd#t"));
        assert_eq!(text("../../os.distd").as_deref(), Some("os.distd"));
        for none in ["", "/", "a/", "a/..", "a/../b", ".distd-log0", ".distd-log0/x"] {
            assert_eq!(text(none), None, "{none}");
        }
        assert_eq!(text(&"x".repeat(NAME_BYTES_MAX + 1)), None);
    }

    #[test]
    fn an_image_lives_until_its_last_reader_is_gone() {
        let (hidden, closed) = (hidden(), Arc::new(AtomicU32::new(0)));
        let room = hidden.enter("s", &image(0, 1)).expect("a path");
        assert!(hidden.open(room.image) && hidden.open(room.image) && !hidden.open(ROOT));
        let count = Arc::clone(&closed);
        hidden.on_close(room.image, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        hidden.leave(&room);
        hidden.close(room.image);
        assert_eq!((closed.load(Ordering::Relaxed), hidden.kind(room.image).is_some()), (0, true));
        hidden.close(room.image);
        assert_eq!((closed.load(Ordering::Relaxed), hidden.kind(room.image)), (1, None));
        let count = Arc::clone(&closed);
        hidden.on_close(room.image, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(closed.load(Ordering::Relaxed), 2, "what is closed already is told at once");
    }
}
