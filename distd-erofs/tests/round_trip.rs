//! What was written is read again, and nothing that is read makes a reader fall.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;

use distd_erofs::{
    Attributes, Content, Entry, Extent, File, Image, ImageInode, Inode, Kind, Layout, Link,
    Physical, Plan, PlanError, ReadError, Tree, Unfit, Xattr,
};
use proptest::prelude::*;

const LOG: Content = Content::Devices { device_block: 1 << 20 };

/// A tree in memory: directories by number, the root is 0.
#[derive(Clone, Debug, Default)]
struct Memory {
    root: Attributes,
    directories: Vec<BTreeMap<Vec<u8>, Inode<'static, usize>>>,
}

impl Tree for Memory {
    type Directory = usize;
    type Error = Infallible;

    fn root(&self) -> Inode<'_, usize> {
        inode(Kind::Directory(0), self.root)
    }

    fn entries(&self, directory: &usize) -> Result<Vec<Entry<'_, usize>>, Infallible> {
        let entry = |(name, inode): (&Vec<u8>, &Inode<'static, usize>)| Entry {
            name: Cow::Owned(name.clone()),
            inode: inode.clone(),
        };
        Ok(self.directories[*directory].iter().map(entry).collect())
    }
}

fn inode(kind: Kind<'static, usize>, attributes: Attributes) -> Inode<'static, usize> {
    Inode { attributes, xattrs: Vec::new(), link: None, kind }
}

fn written(tree: &Memory, content: Content) -> Vec<u8> {
    let plan = Plan::new(tree, content, 1 << 20).expect("fits");
    let mut bytes = Vec::new();
    let written = plan.write::<Infallible>(|blocks| {
        assert!(blocks.len().is_multiple_of(4096));
        bytes.extend_from_slice(blocks);
        Ok(())
    });
    let Ok(()) = written;
    assert_eq!(bytes.len() as u64, plan.blocks() * 4096);
    bytes
}

/// Everything that an image shows, by path.
fn shown(bytes: &[u8]) -> BTreeMap<Vec<u8>, (ImageInode, Vec<Xattr<'static>>)> {
    let image = Image::open(bytes).expect("opens");
    let mut shown = BTreeMap::new();
    image
        .walk::<ReadError>(|path, inode| {
            shown.insert(path.to_vec(), (*inode, image.xattrs(inode)?));
            Ok(())
        })
        .expect("walked");
    shown
}

fn attributes() -> impl Strategy<Value = Attributes> {
    (0u16..0o10000, any::<(u32, u32)>(), any::<i64>(), 0u32..1_000_000_000).prop_map(
        |(mode, (uid, gid), mtime_s, mtime_ns)| Attributes { mode, uid, gid, mtime_s, mtime_ns },
    )
}

fn xattrs() -> impl Strategy<Value = Vec<Xattr<'static>>> {
    let names = ["security.capability", "system.posix_acl_access", "trusted.t", "user.a", "user.b"];
    let values = proptest::sample::select(vec![vec![], vec![7; 3], vec![9; 300], vec![1; 5000]]);
    proptest::collection::btree_map(proptest::sample::select(names.to_vec()), values, 0..4)
        .prop_map(|map| {
            let xattr = |(name, value): (&str, Vec<u8>)| Xattr {
                name: Cow::Owned(name.as_bytes().to_vec()),
                value: Cow::Owned(value),
            };
            map.into_iter().map(xattr).collect()
        })
}

fn file() -> impl Strategy<Value = File> {
    let extent = prop_oneof![
        (0u64..1 << 33, 1u64..20).prop_map(|(start, count)| Extent::Data { start, count }),
        (1u64..20).prop_map(Extent::Hole),
    ];
    (proptest::collection::vec(extent, 0..6), 0u64..4096).prop_map(|(list, short)| {
        let mut extents: Vec<Extent> = Vec::new();
        for extent in list {
            match (extents.last_mut(), extent) {
                (Some(Extent::Hole(count)), Extent::Hole(more)) => *count += more,
                _ => extents.push(extent),
            }
        }
        let blocks: u64 = extents.iter().map(|extent| extent.blocks()).sum();
        File { size: (blocks * 4096).saturating_sub(short), extents }
    })
}

fn kinds() -> impl Strategy<Value = Kind<'static, usize>> {
    let target = (1usize..4095).prop_map(|len| Kind::Symlink(Cow::Owned(vec![b't'; len])));
    prop_oneof![
        4 => file().prop_map(Kind::File),
        2 => Just(Kind::Directory(usize::MAX)),
        1 => target,
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ]
}

/// Trees of up to 60 entries, of which each lies in some directory that came before it.
fn trees() -> impl Strategy<Value = Memory> {
    let name = prop_oneof![
        proptest::collection::vec(1u8..255, 1..8),
        proptest::collection::vec(1u8..255, 250..256),
    ];
    let entry = (any::<proptest::sample::Index>(), name, attributes(), xattrs(), kinds());
    (attributes(), proptest::collection::vec(entry, 0..60)).prop_map(|(root, entries)| {
        let mut tree = Memory { root, directories: vec![BTreeMap::new()] };
        for (at, mut name, attributes, xattrs, mut kind) in entries {
            let at = at.index(tree.directories.len());
            name.iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = b'_');
            if name == b"." || name == b".." || tree.directories[at].contains_key(&name) {
                continue;
            }
            if let Kind::Directory(number) = &mut kind {
                *number = tree.directories.len();
                tree.directories.push(BTreeMap::new());
            }
            let inode = Inode { attributes, xattrs, link: None, kind };
            tree.directories[at].insert(name, inode);
        }
        tree
    })
}

/// The runs that a file's extents come to, on devices as images of logs have them.
fn expected(file: &File) -> Vec<Physical> {
    let slot = (1u64 << 32) - (1 << 20);
    let mut runs: Vec<Physical> = Vec::new();
    let mut rest = file.size;
    for extent in &file.extents {
        for step in 0..extent.blocks() {
            let len = rest.min(4096);
            rest -= len;
            let next = match extent {
                Extent::Hole(_) => Physical::Hole { len },
                Extent::Data { start, .. } => {
                    let block = start + step;
                    let device = (block / slot + 1) as u16;
                    Physical::Device { device, offset: block % slot * 4096, len }
                }
            };
            match (runs.last_mut(), next) {
                (Some(Physical::Hole { len }), Physical::Hole { len: more }) => *len += more,
                (
                    Some(Physical::Device { device, offset, len }),
                    Physical::Device { device: other, offset: at, len: more },
                ) if *device == other && *offset + *len == at => *len += more,
                _ => runs.push(next),
            }
        }
    }
    runs
}

/// As `st_mode` has them.
fn kind_bits(kind: &Kind<'_, usize>) -> u16 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::Directory(_) => 0o040_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::Socket => 0o140_000,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn what_was_written_is_read_again(tree in trees()) {
        let bytes = written(&tree, LOG);
        prop_assert_eq!(&bytes, &written(&tree, LOG));
        let image = Image::open(&bytes[..]).expect("opens");
        let plan = Plan::new(&tree, LOG, 1 << 20).expect("fits");
        image.check_metadata(plan.blocks(), 1 << 20, plan.devices()).expect("as it was made");
        let shown = shown(&bytes);
        let mut found = 0;
        let mut pending = vec![(0, Vec::new())];
        while let Some((number, path)) = pending.pop() {
            for (name, inode) in &tree.directories[number] {
                let path = if path.is_empty() { name.clone() } else { [&path[..], b"/", name].concat() };
                let (read, xattrs) = &shown[&path];
                found += 1;
                prop_assert_eq!(&read.attributes, &inode.attributes);
                prop_assert_eq!(xattrs, &inode.xattrs);
                match &inode.kind {
                    Kind::File(file) => {
                        prop_assert!(read.is_file() && read.size == file.size);
                        let runs = image.extents(read).expect("reads").expect("not compressed");
                        prop_assert_eq!(runs, expected(file));
                    }
                    Kind::Directory(child) => {
                        let inside = &tree.directories[*child];
                        let below = inside.values().filter(|i| matches!(i.kind, Kind::Directory(_)));
                        prop_assert_eq!(read.links as usize, 2 + below.count());
                        pending.push((*child, path));
                    }
                    Kind::Symlink(target) => {
                        prop_assert_eq!(&image.content(read).expect("reads"), &target.to_vec());
                    }
                    Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                        // As Linux splits them: new_encode_dev().
                        let number = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
                        prop_assert_eq!(read.device, number);
                    }
                    Kind::Fifo | Kind::Socket => prop_assert_eq!(read.links, 1),
                }
                prop_assert_eq!(read.mode & 0o170_000, kind_bits(&inode.kind));
            }
        }
        prop_assert_eq!(found, shown.len());
        prop_assert_eq!(image.superblock.inodes as usize, found + 1);
    }

    #[test]
    fn a_damaged_image_never_makes_the_reader_fall(
        tree in trees(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..60),
        len: proptest::sample::Index,
    ) {
        let mut bytes = written(&tree, LOG);
        // The superblock has a checksum: what is behind it is what nobody has checked.
        for (at, value) in damage {
            let at = 4096 + at.index(bytes.len() - 4096);
            bytes[at] = value;
        }
        bytes.truncate(4096 + len.index(bytes.len()));
        read_all(&bytes);
    }

    #[test]
    fn a_damaged_superblock_is_told(tree in trees(), at in 1024usize..4096, value in 1u8..) {
        let mut bytes = written(&tree, LOG);
        bytes[at] ^= value;
        prop_assert!(Image::open(&bytes[..]).is_err() || (1024 + 8..1024 + 12).contains(&at));
    }
}

/// Reads all that an image offers, whatever it is.
fn read_all(bytes: &[u8]) {
    let Ok(image) = Image::open(bytes) else { return };
    let _ = image.walk::<ReadError>(|_, inode| {
        let _ = image.xattrs(inode);
        // A map is as long as its file, and lies in the image.
        let runs = image.extents(inode).unwrap_or_default().unwrap_or_default();
        assert!(runs.len() <= bytes.len());
        Ok(())
    });
}

#[test]
fn an_image_that_is_not_as_its_release_says_is_told() {
    let tree = Memory { directories: vec![BTreeMap::new()], ..Memory::default() };
    let bytes = written(&tree, LOG);
    let blocks = bytes.len() as u64 / 4096;
    let check = |bytes: &[u8], blocks, first, devices| {
        Image::open(bytes)?.check_metadata(blocks, first, devices)
    };
    check(&bytes, blocks, 1 << 20, 1).expect("as it is");
    for (blocks, first, devices) in
        [(blocks + 1, 1 << 20, 1), (blocks, 1 << 19, 1), (blocks, 1 << 20, 2)]
    {
        check(&bytes, blocks, first, devices).expect_err("it says otherwise");
    }
    let inside = written(&tree, Content::Inside { first: 9, count: 1 });
    check(&inside, blocks, 1 << 20, 1).expect_err("its content is in it");
    // Fields of the superblock, and of the device's entry behind it, with a right checksum again.
    for (at, value) in
        [(14, 1), (36, 9), (40, 1), (44, 99), (80, 0x10), (86, 3), (88, 1), (192, 0), (196, 5)]
    {
        let mut forged = bytes.clone();
        let at = 1024 + at;
        // Only the low byte: that of the count of the device's blocks is all it has.
        assert_ne!(forged[at], value, "at {at}");
        forged[at] = value;
        forged[1032] &= !1;
        check(&forged, blocks, 1 << 20, 1).expect_err("it has no checksum");
        forged[1032] |= 1;
        forged[1028..1032].fill(0);
        let sum = crc32c(&forged[1024..4096]);
        forged[1028..1032].copy_from_slice(&sum.to_le_bytes());
        check(&forged, blocks, 1 << 20, 1).expect_err(&format!("changed at {at}"));
    }
}

/// Bit by bit, without the last inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[test]
fn an_image_with_more_inodes_than_numbers_is_refused() {
    let mut tree = Memory { directories: vec![BTreeMap::new()], ..Memory::default() };
    // A map of 128 GiB: what comes behind it lies beyond the last number.
    let (first, count) = (Extent::Data { start: 0, count: 1 }, 1 << 34);
    let extents = vec![first, Extent::Data { start: 5, count }];
    let file = Kind::File(File { size: (1 + count) * 4096, extents });
    tree.directories[0].insert(b"huge".to_vec(), inode(file, Attributes::default()));
    let Err(PlanError::Unfit { why, .. }) = Plan::new(&tree, LOG, u64::MAX) else {
        panic!("it fits");
    };
    assert_eq!(why, Unfit::TooLong { max: 1 << 25 });
}

#[test]
fn a_directory_in_itself_is_refused() {
    let mut tree =
        Memory { directories: vec![BTreeMap::new(), BTreeMap::new()], ..Memory::default() };
    let directory = inode(Kind::Directory(1), Attributes::default());
    tree.directories[0].insert(b"a".to_vec(), directory);
    let mut bytes = written(&tree, LOG);
    let image = Image::open(&bytes[..]).expect("opens");
    let root = image.superblock.root_nid;
    let child = image.entries(&image.inode(root).expect("reads")).expect("reads")[0].nid;
    let entry = bytes.windows(8).rposition(|part| part == child.to_le_bytes()).expect("there");
    // The last place that names the child is its own '.': have the root's entry name the root.
    let named = bytes.windows(8).position(|part| part == child.to_le_bytes()).expect("there");
    assert!(named < entry);
    bytes[named..named + 8].copy_from_slice(&root.to_le_bytes());
    let image = Image::open(&bytes[..]).expect("opens");
    let walked = image.walk::<ReadError>(|_, _| Ok(()));
    assert!(matches!(walked, Err(ReadError::Endless)), "{walked:?}");
}

#[test]
fn names_of_one_inode_lead_to_it_wherever_it_lies() {
    let mut tree = Memory { directories: vec![BTreeMap::new()], ..Memory::default() };
    let runs = vec![Extent::Data { start: 9, count: 1 }, Extent::Data { start: 90, count: 1 }];
    for (id, extents) in [(1, runs), (2, vec![Extent::Data { start: 5, count: 2 }])] {
        let file = inode(Kind::File(File { size: 8192, extents }), Attributes::default());
        for name in ["a", "b", "c"] {
            let link = Some(Link { id, count: 3 });
            tree.directories[0]
                .insert(format!("{name}{id}").into(), Inode { link, ..file.clone() });
        }
    }
    let bytes = written(&tree, LOG);
    let shown = shown(&bytes);
    let nid = |name: &str| shown[name.as_bytes()].0.nid;
    assert!(nid("a1") == nid("b1") && nid("b1") == nid("c1"));
    assert!(nid("a2") == nid("b2") && nid("b2") == nid("c2") && nid("a1") != nid("a2"));
    assert_eq!(shown[&b"a1"[..]].0.links, 3);
    assert_eq!(Image::open(&bytes[..]).expect("opens").superblock.inodes, 3);
}

#[test]
fn what_becomes_of_several_runs_moves_no_other_inode() {
    let file = |extents: &[Extent]| {
        let file = File { size: 8192, extents: extents.to_vec() };
        inode(Kind::File(file), Attributes::default())
    };
    let tree = |extents: &[Extent]| {
        let one = file(&[Extent::Data { start: 5, count: 2 }]);
        let entries = [(b"a".to_vec(), file(extents)), (b"b".to_vec(), one)];
        Memory { directories: vec![entries.into_iter().collect()], ..Memory::default() }
    };
    let flat = written(&tree(&[Extent::Data { start: 9, count: 2 }]), LOG);
    let runs = [Extent::Data { start: 9, count: 1 }, Extent::Data { start: 50, count: 1 }];
    let mapped = written(&tree(&runs), LOG);
    let (flat, mapped) = (shown(&flat), shown(&mapped));
    assert_eq!(flat[&b"b"[..]], mapped[&b"b"[..]]);
    assert!(matches!(mapped[&b"a"[..]].0.layout, Layout::Chunks { bits: 0, indexes: true }));
}

#[test]
fn what_erofs_cannot_express_is_named() {
    let refused = |kind, xattr: Option<&'static [u8]>| {
        let mut tree = Memory { directories: vec![BTreeMap::new()], ..Memory::default() };
        let xattr = xattr.map(|name| Xattr { name: name.into(), value: b"v"[..].into() });
        let xattrs = xattr.into_iter().collect();
        let inode = Inode { xattrs, ..inode(kind, Attributes::default()) };
        tree.directories[0].insert(b"odd".to_vec(), inode);
        match Plan::new(&tree, LOG, 1 << 20).map(|plan| plan.blocks()) {
            Err(PlanError::Unfit { why, .. }) => why,
            _ => panic!("it fits"),
        }
    };
    assert!(matches!(refused(Kind::Fifo, Some(b"os2.x")), Unfit::Xattr { .. }));
    let device = Kind::CharDevice { major: 1 << 12, minor: 0 };
    assert!(matches!(refused(device, None), Unfit::Device { .. }));
    let (hole, data) = (Extent::Hole((1 << 28) - 1), Extent::Data { start: 1, count: 1 });
    let sparse = Kind::File(File { size: 1 << 40, extents: vec![hole, data] });
    assert!(matches!(refused(sparse, None), Unfit::Maps { .. }));
    let far = vec![Extent::Data { start: 1 << 40, count: 1 }];
    let far = Kind::File(File { size: 4096, extents: far });
    assert!(matches!(refused(far, None), Unfit::TooFar { .. }));
}
