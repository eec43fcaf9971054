//! A directory node: the entries of one directory, sorted by name.

use super::entry::WireEntry;
use super::node::{decode, encode};
use super::{Entry, EntryKind, NodeError};

const WHAT: &str = "directory node";

/// The entries of one directory, sorted by name and unique.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectoryNode {
    entries: Vec<Entry>,
}

impl DirectoryNode {
    /// Sorts entries into a node; of two with one name it is an error.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, NodeError> {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let node = Self { entries };
        node.check_order()?;
        Ok(node)
    }

    /// Encodes the node for the log.
    pub fn encode(&self) -> Vec<u8> {
        let wire: Vec<WireEntry> = self.entries.iter().map(Entry::to_wire).collect();
        encode(&wire)
    }

    /// Decodes verified bytes of the log; what a hostile origin may have signed is checked here.
    pub fn decode(bytes: &[u8]) -> Result<Self, NodeError> {
        let wire: Vec<WireEntry> = decode(WHAT, bytes)?;
        let entry = |(index, wire)| {
            Entry::from_wire(wire).map_err(|rule| NodeError::Invalid { what: WHAT, rule, index })
        };
        let entries = wire.into_iter().enumerate().map(entry).collect::<Result<_, _>>()?;
        let node = Self { entries };
        node.check_order()?;
        Ok(node)
    }

    fn check_order(&self) -> Result<(), NodeError> {
        let rule = "the names are not sorted and unique";
        match self.entries.windows(2).position(|pair| pair[0].name >= pair[1].name) {
            Some(index) => Err(NodeError::Invalid { what: WHAT, rule, index: index + 1 }),
            None => Ok(()),
        }
    }

    /// The entries, sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The position of the entry of that name.
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|entry| entry.name.as_bytes().cmp(name)).ok()
    }

    /// Number of directories in it.
    pub fn subdirectories(&self) -> u32 {
        let is_directory = |e: &&Entry| matches!(e.kind, EntryKind::Directory(_));
        self.entries.iter().filter(is_directory).count() as u32
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::manifest::{
        Content, Device, Directory, Extent, Extents, File, HardLink, Name, Timestamp, Xattr,
    };
    use crate::unit::{BlockIndex, BlockRange, ByteRange};
    use proptest::prelude::*;

    pub(in crate::manifest) fn entry(name: &[u8], kind: EntryKind) -> Entry {
        Entry {
            name: Name::new(name).expect("safe"),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp { seconds: -1, nanoseconds: 999_999_999 },
            xattrs: Vec::new(),
            link: None,
            kind,
        }
    }

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let node = ByteRange { offset: 77, len: 1000 };
        let data = Extent::Data(BlockRange::new(BlockIndex(9), 3));
        let extents: Extents = [data, Extent::Hole(4), data].into_iter().collect();
        let file = |size, content| EntryKind::File(File { size, blake3: [7; 32], content });
        proptest::sample::select(vec![
            file(0, Content::Extents(Extents::default())),
            file(10 * 4096 - 1, Content::Extents(extents)),
            file(1 << 40, Content::List(node)),
            EntryKind::Directory(Directory { node, subdirectories: 3 }),
            EntryKind::Symlink(b"../\xff".to_vec()),
            EntryKind::CharDevice(Device { major: 1, minor: 3 }),
            EntryKind::BlockDevice(Device { major: u32::MAX, minor: 0 }),
            EntryKind::Fifo,
            EntryKind::Socket,
        ])
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let name = proptest::collection::vec(any::<u8>(), 1..12)
            .prop_filter_map("safe", |b| Name::new(&b).ok());
        let times = (any::<i64>(), 0u32..1_000_000_000);
        (name, 0u16..0o10000, any::<(u32, u32)>(), times, kinds(), any::<Option<u64>>()).prop_map(
            |(name, mode, (uid, gid), (seconds, nanoseconds), kind, id)| {
                let is_directory = matches!(kind, EntryKind::Directory(_));
                let xattr = |name: &[u8]| Xattr { name: name.to_vec(), value: vec![0, 255] };
                Entry {
                    name,
                    mode,
                    uid,
                    gid,
                    mtime: Timestamp { seconds, nanoseconds },
                    xattrs: vec![xattr(b"security.capability"), xattr(b"user.a")],
                    link: id.filter(|_| !is_directory).map(|id| HardLink { id, count: 2 }),
                    kind,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_node_decodes_to_what_was_encoded(entries in proptest::collection::vec(entries(), 0..20)) {
            if let Ok(node) = DirectoryNode::new(entries) {
                let bytes = node.encode();
                prop_assert_eq!(DirectoryNode::decode(&bytes), Ok(node.clone()));
                for (index, entry) in node.entries().iter().enumerate() {
                    prop_assert_eq!(node.position(entry.name.as_bytes()), Some(index));
                }
            }
        }

        #[test]
        fn a_mutated_node_is_refused_or_canonical(
            entries in proptest::collection::vec(entries(), 1..4), at: proptest::sample::Index, value: u8,
        ) {
            if let Ok(node) = DirectoryNode::new(entries) {
                let mut bytes = node.encode();
                let at = at.index(bytes.len());
                bytes[at] = value;
                if let Ok(other) = DirectoryNode::decode(&bytes) {
                    prop_assert_eq!(other.encode(), bytes);
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = DirectoryNode::decode(&bytes);
        }
    }

    #[test]
    fn bombs_are_refused_before_memory_is_taken() {
        // array32 of 2^32 - 1 entries, nested arrays, ext types, a map in place of an array.
        let deep = [0x91u8].repeat(4000);
        for bomb in
            [&[0xdd, 0xff, 0xff, 0xff, 0xff][..], &deep, &[0xc9, 0, 0, 1, 0, 5], &[0x81, 0, 0]]
        {
            assert!(DirectoryNode::decode(bomb).is_err());
        }
    }

    #[test]
    fn hostile_names_and_order_are_refused() {
        let fifo = |name: &[u8]| entry(name, EntryKind::Fifo).to_wire();
        assert!(DirectoryNode::decode(&encode(&vec![fifo(b"b"), fifo(b"a")])).is_err());
        assert!(DirectoryNode::decode(&encode(&vec![fifo(b"a"), fifo(b"a")])).is_err());
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'a'; 256]] {
            assert!(Name::new(bad).is_err());
        }
    }
}
