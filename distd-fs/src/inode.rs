//! The inode table: which number names which entry, for as long as the kernel remembers it.
//!
//! Inode 1 is the root for ever. Other numbers are given out once and never again, so that a number
//! cannot come to mean another file. A slot is small: it points at an entry of a directory node
//! instead of holding it, so that a million remembered inodes fit beside a bounded node cache.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use distd_core::manifest::{Entry, EntryKind};
use distd_core::unit::ByteRange;

use crate::fs::View;

/// The number of the root directory.
pub const ROOT: u64 = 1;

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

    /// The release at the root.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.table().root.view)
    }

    /// Gives the entry at `index` of the directory `parent`, whose node is `directory`, its number,
    /// and counts one lookup.
    pub fn enter(&self, parent: &Inode, directory: ByteRange, index: u32, entry: &Entry) -> u64 {
        let generation = parent.view.generation;
        let identity = match entry.link {
            Some(link) => Identity::Link { generation, id: link.id },
            None => Identity::Name { generation, parent: parent.number, index },
        };
        let mut table = self.table();
        let table = &mut *table;
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
        number
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

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        // Each change is complete when the lock is given back, also by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
                    let number = inodes.enter(&root, directory, index, &file);
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
