//! The inode table: which number names which entry, for as long as the kernel remembers it.
//!
//! Inode 1 is the root for ever. Other numbers are given out once and never again, so that a number
//! cannot come to mean another file. A slot is small: it points at an entry of a directory node
//! instead of holding it, so that a million remembered inodes fit beside a bounded node cache.
//!
//! When the mount takes another release, the root and the directories above mount points become those
//! of the new release under their old numbers; every other number keeps the release that it belongs to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use distd_core::manifest::{Entry, EntryKind};
use distd_core::unit::ByteRange;

use crate::fs::View;

/// The number of the root directory.
pub const ROOT: u64 = 1;
/// Former releases of directories that follow, kept for listings that began before a switch.
const FORMER_MAX: usize = 64;

/// Where an inode's entry is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the release record.
    Root,
    /// In a directory node.
    Entry {
        /// The node.
        directory: ByteRange,
        /// Position in it.
        index: u32,
    },
}

/// An inode that the kernel knows.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number.
    pub number: u64,
    /// The directory by which it was found first.
    pub parent: u64,
    /// The release that it belongs to.
    pub view: Arc<View>,
    /// Where its entry is.
    pub place: Place,
    /// A directory's own node.
    pub directory: Option<ByteRange>,
}

/// What makes two names one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Identity {
    /// A name: the parent's number (which the kernel keeps as long as the child) and the position.
    Name { generation: u32, parent: u64, index: u32 },
    /// A hard link's id.
    Link { generation: u32, id: u64 },
}

impl Identity {
    fn generation(self) -> u32 {
        match self {
            Self::Name { generation, .. } | Self::Link { generation, .. } => generation,
        }
    }
}

/// A directory that keeps its number and takes the new release's content.
#[derive(Clone, Debug)]
pub struct Follower {
    /// Its number.
    pub number: u64,
    /// Its parent's number.
    pub parent: u64,
    /// Its name.
    pub name: Vec<u8>,
    /// Where the new release has it: the parent's node and the position in it.
    pub place: (ByteRange, u32),
    /// Its node in the new release.
    pub directory: ByteRange,
}

#[derive(Debug)]
struct Slot {
    inode: Inode,
    identity: Identity,
    lookups: u64,
}

#[derive(Debug)]
struct Table {
    root: Inode,
    next: u64,
    slots: HashMap<u64, Slot>,
    by_name: HashMap<Identity, u64>,
    /// Kept after the kernel forgets an inode: a tool that walks a tree under memory pressure must
    /// see the same number under the second name. Bounded by the hard links of the releases shown.
    by_link: HashMap<Identity, u64>,
    /// Remembered inodes of each release.
    remembered: BTreeMap<u32, usize>,
    /// Directories on the way to mount points as of the last switch, by parent and name: these names
    /// never mean another number, because the kernel would detach what is mounted below.
    following: BTreeMap<u64, BTreeMap<Vec<u8>, u64>>,
    /// What directories that follow were before, newest last.
    former: VecDeque<Inode>,
}

/// The table.
#[derive(Debug)]
pub struct Inodes(Mutex<Table>);

impl Inodes {
    /// A table with only the root in it.
    pub fn new(view: Arc<View>) -> Self {
        Self(Mutex::new(Table {
            root: root(view),
            next: ROOT + 1,
            slots: HashMap::new(),
            by_name: HashMap::new(),
            by_link: HashMap::new(),
            remembered: BTreeMap::new(),
            following: BTreeMap::new(),
            former: VecDeque::new(),
        }))
    }

    /// The inode of that number.
    pub fn find(&self, number: u64) -> Option<Inode> {
        let table = self.table();
        if number == ROOT {
            return Some(table.root.clone());
        }
        table.slots.get(&number).map(|slot| slot.inode.clone())
    }

    /// The root.
    pub fn root(&self) -> Inode {
        self.table().root.clone()
    }

    /// The directory of that number as the release of `generation` has it; nothing where the kernel
    /// never saw it or where that is too many switches ago.
    pub fn find_former(&self, number: u64, generation: u32) -> Option<Inode> {
        let table = self.table();
        let is_it = |i: &&Inode| i.number == number && i.view.generation == generation;
        table.former.iter().rfind(is_it).cloned()
    }

    /// A directory on the way to a mount point: as it followed at the last switch, else the entry at
    /// `index` of `parent`.
    pub fn following(&self, parent: &Inode, name: &[u8], index: Option<u32>) -> Option<Inode> {
        let table = self.table();
        let (generation, parent) = (parent.view.generation, parent.number);
        let by_name = |index| table.by_name.get(&Identity::Name { generation, parent, index });
        let followed = table.following.get(&parent).and_then(|names| names.get(name));
        let number = followed
            .filter(|number| table.slots.contains_key(number))
            .or_else(|| by_name(index?))?;
        table.slots.get(number).map(|slot| slot.inode.clone())
    }

    /// Shows `view` at the root from here on, and its directories at the numbers that follow. `kept`
    /// are the directories above mount points that the new release lacks, by parent, name and number:
    /// they stay what they are.
    pub fn switch(
        &self,
        view: &Arc<View>,
        followers: Vec<Follower>,
        kept: Vec<(u64, Vec<u8>, u64)>,
    ) {
        let mut table = self.table();
        let table = &mut *table;
        let before = std::mem::replace(&mut table.root, root(Arc::clone(view)));
        table.former.push_back(before);
        table.following.clear();
        for (parent, name, number) in kept {
            table.following.entry(parent).or_default().insert(name, number);
        }
        for follower in followers {
            let Follower { number, parent, name, place: (directory, index), .. } = follower;
            // The kernel may have forgotten it meanwhile; then it is looked up anew.
            let Some(slot) = table.slots.get_mut(&number) else { continue };
            let identity = Identity::Name { generation: view.generation, parent, index };
            table.by_name.remove(&std::mem::replace(&mut slot.identity, identity));
            table.by_name.insert(identity, number);
            *table.remembered.entry(view.generation).or_default() += 1;
            forget_one(&mut table.remembered, slot.inode.view.generation);
            let inode = Inode {
                number,
                parent,
                view: Arc::clone(view),
                place: Place::Entry { directory, index },
                directory: Some(follower.directory),
            };
            table.former.push_back(std::mem::replace(&mut slot.inode, inode));
            table.following.entry(parent).or_default().insert(name, number);
        }
        while table.former.len() > FORMER_MAX {
            table.former.pop_front();
        }
        // The links of a release that nobody has anything of any more are of no use.
        let Table { by_link, remembered, .. } = table;
        by_link.retain(|identity, _| {
            let generation = identity.generation();
            generation == view.generation || remembered.contains_key(&generation)
        });
    }

    /// The release at the root.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.table().root.view)
    }

    /// Gives the entry at `index` of the directory `parent`, whose node is `directory`, its number,
    /// and counts one lookup. `None` for what cannot be shown as long as something is mounted on a
    /// directory of that name: an entry that is no directory.
    pub fn enter(
        &self,
        parent: &Inode,
        directory: ByteRange,
        index: u32,
        entry: &Entry,
    ) -> Option<u64> {
        let generation = parent.view.generation;
        let identity = match entry.link {
            Some(link) => Identity::Link { generation, id: link.id },
            None => Identity::Name { generation, parent: parent.number, index },
        };
        let mut table = self.table();
        let table = &mut *table;
        let followed = table.following.get(&parent.number);
        let followed = followed.and_then(|names| names.get(entry.name.as_bytes()));
        if let Some(number) = followed
            && let Some(slot) = table.slots.get_mut(number)
        {
            if !matches!(entry.kind, EntryKind::Directory(_)) {
                return None;
            }
            slot.lookups += 1;
            return Some(*number);
        }
        let numbers = match identity {
            Identity::Link { .. } => &mut table.by_link,
            Identity::Name { .. } => &mut table.by_name,
        };
        let number = *numbers.entry(identity).or_insert_with(|| {
            table.next += 1;
            table.next - 1
        });
        let slot = table.slots.entry(number).or_insert_with(|| {
            let own = match &entry.kind {
                EntryKind::Directory(directory) => Some(directory.node),
                _ => None,
            };
            *table.remembered.entry(generation).or_default() += 1;
            let inode = Inode {
                number,
                parent: parent.number,
                view: Arc::clone(&parent.view),
                place: Place::Entry { directory, index },
                directory: own,
            };
            Slot { inode, identity, lookups: 0 }
        });
        slot.lookups += 1;
        Some(number)
    }

    /// Takes back `count` lookups; with the last one the number is forgotten.
    pub fn forget(&self, number: u64, count: u64) {
        let mut table = self.table();
        let Some(slot) = table.slots.get_mut(&number) else { return };
        slot.lookups = slot.lookups.saturating_sub(count);
        if slot.lookups == 0 {
            let identity = slot.identity;
            table.slots.remove(&number);
            table.by_name.remove(&identity);
            forget_one(&mut table.remembered, identity.generation());
        }
    }

    /// How many inodes the kernel remembers, the root left out.
    pub fn len(&self) -> usize {
        self.table().slots.len()
    }

    /// Whether the kernel remembers none but the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that the table keeps, for tests of its bounds.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        let table = self.table();
        table.slots.len() + table.by_name.len() + table.by_link.len() + table.former.len()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        // Each change is complete when the lock is given back, also by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_one(remembered: &mut BTreeMap<u32, usize>, generation: u32) {
    if let Some(count) = remembered.get_mut(&generation) {
        *count -= 1;
        if *count == 0 {
            remembered.remove(&generation);
        }
    }
}

fn root(view: Arc<View>) -> Inode {
    let directory = Some(view.release.root_directory().node);
    Inode { number: ROOT, parent: ROOT, view, place: Place::Root, directory }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::{Builder, Memory, entry};
    use distd_core::manifest::HardLink;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn the_table_remembers_exactly_what_the_kernel_does(
            steps in proptest::collection::vec((0u32..12, any::<bool>(), 1u64..4), 0..200),
        ) {
            let builder = Builder(Arc::new(Memory::default()));
            let inodes = Inodes::new(Builder::view(builder.directory(Vec::new())));
            let root = inodes.find(ROOT).expect("always there");
            let directory = root.directory.expect("a directory");
            // Entries 8 to 11 are two pairs of hard links.
            let link = |index: u32| HardLink { id: u64::from(index / 2), count: 2 };
            let (mut held, mut seen) = (BTreeMap::new(), BTreeMap::new());
            for (index, look, count) in steps {
                let file = entry("x", EntryKind::Fifo);
                let file = Entry { link: (index >= 8).then(|| link(index)), ..file };
                let name = if index >= 8 { 8 + index / 2 } else { index };
                if look {
                    let number = inodes.enter(&root, directory, index, &file).expect("shown");
                    let (known, lookups) = held.entry(name).or_insert((number, 0));
                    prop_assert_eq!(*known, number);
                    *lookups += 1;
                    let other = seen.insert(number, name);
                    prop_assert!(other.is_none_or(|other| other == name), "a number has one meaning");
                } else if let Some((number, lookups)) = held.get_mut(&name) {
                    let number = *number;
                    inodes.forget(number, count.min(*lookups));
                    *lookups -= count.min(*lookups);
                    if *lookups == 0 {
                        held.remove(&name);
                        prop_assert!(inodes.find(number).is_none());
                    }
                }
                prop_assert_eq!(inodes.len(), held.len());
            }
        }
    }
}
