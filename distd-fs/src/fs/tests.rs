//! The file system against plain references, with a log in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use distd_core::manifest::{Device, EntryKind, HardLink, Xattr};
use distd_core::unit::BlockRange;
use proptest::prelude::*;

use super::testing::{Builder, Memory, entry, outcome};
use super::*;

fn fs(memory: &Arc<Memory>, root: EntryKind) -> Arc<Fs<Memory>> {
    let view = Builder::view(root);
    Fs::new(Arc::clone(memory), view, Duration::from_secs(5))
}

fn lookup(fs: &Arc<Fs<Memory>>, parent: u64, name: &str) -> Option<Attributes> {
    outcome(|then| fs.lookup(parent, name.as_bytes(), then)).expect("available")
}

fn read(fs: &Arc<Fs<Memory>>, number: u64, offset: u64, len: u64) -> Result<Vec<u8>, Failure> {
    outcome(|then| fs.read(number, offset, len, then))
}

/// Content in which each block is either zeros or tells its place.
fn content(blocks: &[bool], tail: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, data) in blocks.iter().enumerate() {
        let block = (0..4096).map(|i| if *data { (index * 7 + i) as u8 | 1 } else { 0 });
        bytes.extend(block);
    }
    bytes.truncate(bytes.len().saturating_sub(4096 - tail));
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_read_equals_the_slice_of_the_content(
        blocks in proptest::collection::vec(any::<bool>(), 0..40), tail in 1usize..=4096,
        reads in proptest::collection::vec((0u64..170_000, 0u64..170_000), 1..12),
    ) {
        let content = content(&blocks, tail);
        let memory = Arc::new(Memory::default());
        let builder = Builder(Arc::clone(&memory));
        let fs = fs(&memory, builder.directory(vec![entry("f", builder.file(&content))]));
        let file = lookup(&fs, ROOT, "f").expect("is there");
        prop_assert_eq!(file.size, content.len() as u64);
        let data = content.chunks(4096).filter(|block| block.iter().any(|b| *b != 0)).count();
        prop_assert_eq!(file.sectors, data as u64 * 8);
        for (offset, len) in reads {
            let plain: Vec<u8> =
                content.iter().copied().skip(offset as usize).take(len as usize).collect();
            prop_assert_eq!(read(&fs, file.number, offset, len), Ok(plain));
        }
    }
}

#[test]
fn attributes_are_those_of_the_entry() {
    let memory = Arc::new(Memory::default());
    let builder = Builder(Arc::clone(&memory));
    let below = builder.directory(vec![entry("x", EntryKind::Fifo)]);
    let link = Some(HardLink { id: 99, count: 2 });
    let file = builder.file(b"hello");
    let root = builder.directory(vec![
        entry("a", file.clone()),
        Entry { link, ..entry("b", file.clone()) },
        Entry { link, ..entry("c", file) },
        entry("d", below),
        entry("null", EntryKind::CharDevice(Device { major: 1, minor: 3 })),
        entry("s", EntryKind::Symlink(b"a/b".to_vec())),
    ]);
    let fs = fs(&memory, root);
    let find = |name| lookup(&fs, ROOT, name).expect("is there");
    assert_eq!((find("a").links, find("a").size, find("a").sectors), (1, 5, 8));
    assert_eq!((find("b").number, find("b").links), (find("c").number, 2));
    assert_ne!(find("a").number, find("b").number);
    assert_eq!(find("d").links, 2);
    assert_eq!(find("null").device, 0x103);
    assert_eq!(find("s").size, 3);
    assert_eq!(outcome(|then| fs.target(find("s").number, then)), Ok(b"a/b".to_vec()));
    assert_eq!(outcome(|then| fs.target(find("a").number, then)), Err(Failure::WrongKind));
    assert_eq!(lookup(&fs, ROOT, "nope"), None);
    let not_a_directory = outcome(|then| fs.lookup(find("a").number, b"x", then));
    assert_eq!(not_a_directory, Err(Failure::NotADirectory));
    let root = outcome(|then| fs.attributes(ROOT, then)).expect("available");
    assert_eq!((root.number, root.links, root.mode), (1, 3, 0o755));
    let a = find("a");
    assert_eq!(outcome(|then| fs.attributes(a.number, then)), Ok(a));
}

#[test]
fn inodes_are_forgotten_with_their_last_lookup_and_numbers_never_return() {
    let memory = Arc::new(Memory::default());
    let builder = Builder(Arc::clone(&memory));
    let below = builder.directory(vec![entry("x", EntryKind::Fifo)]);
    let fs = fs(&memory, builder.directory(vec![entry("d", below)]));
    let directory = lookup(&fs, ROOT, "d").expect("is there").number;
    let first = lookup(&fs, directory, "x").expect("is there").number;
    assert_eq!(lookup(&fs, directory, "x").map(|a| a.number), Some(first));
    assert_eq!(fs.remembered(), 2);
    fs.forget(first, 1);
    assert_eq!(fs.remembered(), 2);
    fs.forget(first, 1);
    fs.forget(directory, 1);
    assert_eq!(fs.remembered(), 0);
    assert_eq!(outcome(|then| fs.attributes(first, then)), Err(Failure::Stale));
    let directory = lookup(&fs, ROOT, "d").expect("is there").number;
    let second = lookup(&fs, directory, "x").expect("is there").number;
    assert_ne!(first, second);
}

#[test]
fn a_hard_link_keeps_its_number_when_it_is_forgotten_in_between() {
    let memory = Arc::new(Memory::default());
    let builder = Builder(Arc::clone(&memory));
    let link = Some(HardLink { id: 5, count: 2 });
    let named = |name| Entry { link, ..entry(name, EntryKind::Fifo) };
    let fs = fs(&memory, builder.directory(vec![named("a"), named("b")]));
    let first = lookup(&fs, ROOT, "a").expect("is there").number;
    fs.forget(first, 1);
    assert_eq!(fs.remembered(), 0);
    assert_eq!(lookup(&fs, ROOT, "b").expect("is there").number, first);
}

#[test]
fn two_directories_that_share_a_node_have_inodes_of_their_own() {
    let memory = Arc::new(Memory::default());
    let builder = Builder(Arc::clone(&memory));
    let shared = builder.directory(vec![entry("x", EntryKind::Fifo)]);
    let root = builder.directory(vec![entry("a", shared.clone()), entry("b", shared)]);
    let fs = fs(&memory, root);
    let numbers: Vec<u64> = ["a", "b"]
        .into_iter()
        .flat_map(|name| {
            let directory = lookup(&fs, ROOT, name).expect("is there").number;
            [directory, lookup(&fs, directory, "x").expect("is there").number]
        })
        .collect();
    let unique: std::collections::BTreeSet<_> = numbers.iter().collect();
    assert_eq!(unique.len(), 4);
}

#[test]
fn what_is_local_is_read_offline_and_what_is_not_fails_by_the_deadline() {
    let memory = Arc::new(Memory::default());
    let builder = Builder(Arc::clone(&memory));
    let (known, unknown) = (builder.file(&[1; 5000]), builder.file(&[2; 5000]));
    let below = builder.directory(vec![entry("x", EntryKind::Fifo)]);
    let root =
        builder.directory(vec![entry("d", below), entry("known", known), entry("other", unknown)]);
    let fs = fs(&memory, root);
    let known = lookup(&fs, ROOT, "known").expect("is there").number;
    assert_eq!(read(&fs, known, 0, 9999), Ok(vec![1; 5000]));
    memory.offline.store(true, Ordering::Relaxed);
    let fetched = memory.fetched.load(Ordering::Relaxed);
    assert_eq!(read(&fs, known, 4000, 1000), Ok(vec![1; 1000]));
    let other = lookup(&fs, ROOT, "other").expect("metadata is local").number;
    assert_eq!(read(&fs, other, 0, 10), Err(Failure::Unavailable));
    let directory = lookup(&fs, ROOT, "d").expect("metadata is local").number;
    assert_eq!(outcome(|then| fs.lookup(directory, b"x", then)), Err(Failure::Unavailable));
    assert_eq!(memory.fetched.load(Ordering::Relaxed), fetched);
}

#[test]
fn a_read_that_failed_fails_at_once_when_the_kernel_repeats_it() {
    let memory = Arc::new(Memory::default());
    let builder = Builder(Arc::clone(&memory));
    let fs = fs(&memory, builder.directory(vec![entry("f", builder.file(&[1; 200_000]))]));
    let file = lookup(&fs, ROOT, "f").expect("is there").number;
    memory.offline.store(true, Ordering::Relaxed);
    assert_eq!(read(&fs, file, 0, 131_072), Err(Failure::Unavailable));
    let asked = memory.asked.load(Ordering::Relaxed);
    assert_eq!(read(&fs, file, 0, 4096), Err(Failure::Unavailable));
    assert_eq!(memory.asked.load(Ordering::Relaxed), asked, "nobody was asked again");
    assert_eq!(read(&fs, file, 131_072, 4096), Err(Failure::Unavailable));
    assert_eq!(memory.asked.load(Ordering::Relaxed), asked + 1, "other blocks are asked for");
    memory.offline.store(false, Ordering::Relaxed);
    std::thread::sleep(super::failed::REPEAT);
    assert_eq!(read(&fs, file, 0, 4096), Ok(vec![1; 4096]), "and later these too");
}

#[test]
fn published_attributes_are_listed_and_distds_own_only_answer() {
    let memory = Arc::new(Memory::default());
    let builder = Builder(Arc::clone(&memory));
    let xattr = |name: &str, value: &[u8]| Xattr { name: name.into(), value: value.into() };
    let xattrs = vec![xattr("system.posix_acl_access", b"acl"), xattr("trusted.t", b"1")];
    let file = Entry { xattrs, ..entry("f", builder.file(&[9; 8192])) };
    let fs = fs(&memory, builder.directory(vec![file]));
    let file = lookup(&fs, ROOT, "f").expect("is there").number;
    let get = |number, name: &str| outcome(|then| fs.xattr(number, name.as_bytes(), then));
    let names = |privileged| outcome(|then| fs.xattr_names(file, privileged, then));
    assert_eq!(names(true), Ok(b"system.posix_acl_access\0trusted.t\0".to_vec()));
    assert_eq!(names(false), Ok(b"system.posix_acl_access\0".to_vec()));
    assert_eq!(get(file, "system.posix_acl_access"), Ok(b"acl".to_vec()));
    assert_eq!(get(file, "user.none"), Err(Failure::NoAttribute));
    assert_eq!(get(file, "user.distd.release"), Ok(b"stable@1".to_vec()));
    assert_eq!(get(ROOT, "user.distd.version"), Ok(b"1".to_vec()));
    assert_eq!(get(ROOT, "user.distd.track"), Ok(b"stable".to_vec()));
    assert_eq!(get(file, "user.distd.blake3"), Ok("ab".repeat(32).into_bytes()));
    assert_eq!(get(file, "user.distd.uids"), Ok(b"3-11".to_vec()));
    assert_eq!(get(file, "user.distd.local"), Ok(b"0/8192".to_vec()));
    read(&fs, file, 0, 1).expect("available");
    assert_eq!(get(file, "user.distd.local"), Ok(b"4096/8192".to_vec()));
    assert_eq!(get(file, "user.distd.nonsense"), Err(Failure::NoAttribute));
}

#[test]
fn a_walk_names_every_block_below_a_path() {
    let memory = Arc::new(Memory::default());
    let builder = Builder(Arc::clone(&memory));
    let scattered: Vec<bool> = (0..40).map(|i| i % 2 == 0).collect();
    let below = builder.directory(vec![
        entry("big", builder.file(&content(&scattered, 4096))),
        entry("small", builder.file(b"x")),
    ]);
    let view =
        Builder::view(builder.directory(vec![entry("d", below), entry("e", EntryKind::Fifo)]));
    let count = |path: &str| {
        walk(&*memory, &view.release, path.as_ref(), Duration::from_secs(5)).map(|place| {
            let count = |ranges: &[BlockRange]| ranges.iter().map(|range| range.count).sum::<u64>();
            (count(&place.content), count(&place.metadata))
        })
    };
    assert_eq!(count("/d/small").expect("is there"), (1, 0));
    assert_eq!(count("d/big").expect("is there"), (20, 1));
    assert_eq!(count("/d").expect("is there"), (21, 2));
    assert_eq!(count("").expect("is there"), (21, 3));
    assert_eq!(count("e").expect("is there"), (0, 0));
    assert!(matches!(count("d/none"), Err(WalkError::NoEntry { .. })));
    assert!(matches!(count("e/none"), Err(WalkError::NoEntry { .. })));
}

#[test]
fn a_release_without_a_list_of_its_metadata_is_swept_level_by_level() {
    let memory = Arc::new(Memory::default());
    let builder = Builder(Arc::clone(&memory));
    let mut directory = builder.directory(Vec::new());
    for _ in 0..20 {
        directory = builder.directory(vec![entry("d", directory)]);
    }
    let fs = fs(&memory, directory);
    fs.sweep_metadata();
    let patience = std::time::Instant::now() + Duration::from_secs(10);
    while memory.fetched.load(Ordering::Relaxed) < 21 {
        assert!(std::time::Instant::now() < patience, "the sweep does not end");
        std::thread::yield_now();
    }
}
