//! What a cache promises, whatever happens to its disk: right bytes or none.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use rustix::io::Errno;

use crate::keys::{NtpTime, OriginKey};
use crate::limits::GRANULE_LAYER;
use crate::tree::{MunroTree, VerifiedMunro};
use crate::unit::{Bin, BlockIndex, BlockRange, GranuleIndex, MunroIndex};

use super::fixture::{blocks, content, key, munro, origin, run};
use super::nodes::aligned_bins;
use super::segment::{
    CONTENT_OFFSET, content_offset, map_offset, record_offset, table_offset, ticks_offset,
};
use super::{Cache, CacheOptions, CachedLog, OpenError, PutError};

struct Fixture {
    temp: tempfile::TempDir,
    options: CacheOptions,
}

impl Fixture {
    fn new() -> Self {
        let temp = tempfile::tempdir().expect("tempdir");
        Self { temp, options: CacheOptions::default() }
    }

    fn with_quota(quota_bytes: u64) -> Self {
        let options = CacheOptions { quota_bytes: Some(quota_bytes), reserve_bytes: 0 };
        Self { options, ..Self::new() }
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().join("cache")
    }

    fn open(&self) -> (Cache, Arc<CachedLog>) {
        let cache = Cache::open(&self.dir(), self.options).expect("opened");
        let log = cache.log(origin()).expect("opened");
        (cache, log)
    }

    fn log_dir(&self) -> PathBuf {
        self.dir().join(origin().to_string())
    }

    fn segment(&self, number: u64) -> File {
        let path = self.log_dir().join(format!("{number:08x}.segment"));
        OpenOptions::new().read(true).write(true).open(path).expect("opened")
    }
}

/// Reads `range` and checks every byte that is given; the blocks that are missing.
fn read(log: &CachedLog, range: BlockRange) -> BTreeSet<u64> {
    let mut out = vec![0xee; range.byte_len() as usize];
    let missing = log.read_blocks(range, &mut out).expect("readable");
    let missing: BTreeSet<u64> =
        missing.iter().flat_map(|part| part.iter()).map(|block| block.0).collect();
    for (block, bytes) in range.iter().zip(out.chunks_exact(4096)) {
        if !missing.contains(&block.0) {
            assert!(bytes == content(BlockRange::new(block, 1)), "block {block} is wrong");
        }
    }
    missing
}

/// Puts what is missing of `range`, as a reader that fetches it again.
fn refetch(log: &CachedLog, range: BlockRange) {
    for part in log.missing(range) {
        for bin in aligned_bins(part, GRANULE_LAYER) {
            log.put(&run(bin)).expect("put");
        }
    }
    assert_eq!(read(log, range), BTreeSet::new(), "what is fetched again is there");
}

fn flip(file: &File, bit: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).expect("read");
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).expect("written");
}

#[derive(Clone, Debug)]
enum Op {
    Put(Bin),
    Read(BlockRange),
    ReadRun(Bin),
    Evict(BlockRange),
    Pin(BlockRange),
    Unpin,
    Flush,
    Kill,
}

/// Blocks of three munros, two of them on either side of a segment's boundary.
fn position() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..256, 1023u64 * 256..1025 * 256]
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (position(), 1u64..100).prop_map(|(start, count)| blocks(start, count));
    let bin = || {
        (position(), prop_oneof![Just(2u32), Just(4u32), 2u32..=10])
            .prop_map(|(block, layer)| BlockIndex(block).bin().ancestor(layer))
    };
    prop_oneof![
        8 => bin().prop_map(Op::Put),
        4 => range().prop_map(Op::Read),
        2 => bin().prop_map(Op::ReadRun),
        2 => range().prop_map(Op::Evict),
        1 => range().prop_map(Op::Pin),
        1 => Just(Op::Unpin),
        2 => Just(Op::Flush),
        1 => Just(Op::Kill),
    ]
}

/// A plain model: sets of block numbers.
#[derive(Default)]
struct Model {
    held: BTreeSet<u64>,
    durable: BTreeSet<u64>,
    pinned: BTreeSet<u64>,
}

fn set(range: BlockRange) -> BTreeSet<u64> {
    range.iter().map(|block| block.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_agrees_with_a_set_of_blocks(ops in proptest::collection::vec(op(), 1..60)) {
        let fixture = Fixture::new();
        let (mut cache, mut log) = fixture.open();
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Put(bin) => {
                    log.put(&run(bin)).expect("put");
                    model.held.extend(bin.blocks().expect("blocks").iter().map(|block| block.0));
                }
                Op::Read(range) => {
                    let missing: BTreeSet<_> = set(range).difference(&model.held).copied().collect();
                    prop_assert_eq!(read(&log, range), missing);
                    prop_assert_eq!(log.held_blocks(range), set(range).intersection(&model.held).count() as u64);
                }
                Op::ReadRun(bin) => {
                    let held = set(bin.blocks().expect("blocks")).is_subset(&model.held);
                    let found = log.read_run(bin).expect("readable");
                    prop_assert_eq!(found.is_some(), held);
                    if let Some(found) = found {
                        let expected = run(bin);
                        prop_assert_eq!(found.bytes(), expected.bytes());
                        prop_assert_eq!(found.uncles(), expected.uncles());
                    }
                }
                Op::Evict(range) => {
                    log.take_evicted();
                    log.evict(&[range]);
                    let gone: BTreeSet<_> = set(range).difference(&model.pinned).copied()
                        .filter(|block| model.held.contains(block)).collect();
                    let reported: BTreeSet<_> =
                        log.take_evicted().into_iter().flat_map(set).collect();
                    prop_assert_eq!(&reported, &gone);
                    model.held.retain(|block| !gone.contains(block));
                    model.durable.retain(|block| !gone.contains(block));
                }
                Op::Pin(range) => {
                    log.pin("release", &[range, blocks(3, 2)]).expect("pinned");
                    model.pinned = set(range).union(&set(blocks(3, 2))).copied().collect();
                }
                Op::Unpin => {
                    log.unpin("release").expect("unpinned");
                    model.pinned.clear();
                }
                Op::Flush => {
                    cache.flush().expect("flushed");
                    model.durable.clone_from(&model.held);
                }
                Op::Kill => {
                    drop((cache, log));
                    (cache, log) = fixture.open();
                    model.held.clone_from(&model.durable);
                }
            }
            let held: BTreeSet<u64> = log.held().into_iter().flat_map(set).collect();
            prop_assert_eq!(&held, &model.held);
        }
        prop_assert_eq!(cache.usage().drops.damaged_blocks, 0);
    }
}

/// What the tests of damage keep: parts of two munros, with holes in between.
const KEPT: [(u64, u64); 3] = [(0, 12), (37, 3), (256, 40)];

fn keep_some(fixture: &Fixture) {
    let (cache, log) = fixture.open();
    for (start, count) in KEPT {
        refetch(&log, blocks(start, count));
    }
    cache.flush().expect("flushed");
}

/// Opens a cache whose disk was tampered with: no wrong byte, and it heals. The blocks dropped.
fn survives(fixture: &Fixture) -> u64 {
    let (cache, log) = fixture.open();
    let whole = blocks(0, 512);
    read(&log, whole);
    for granule in 0..128 {
        let bin = GranuleIndex(granule).bin();
        if let Some(found) = log.read_run(bin).expect("readable") {
            assert_eq!(found.bytes(), run(bin).bytes());
        }
    }
    let dropped = cache.usage().drops.damaged_blocks;
    let gone: BTreeSet<u64> = log.take_evicted().into_iter().flat_map(set).collect();
    assert_eq!(gone.len() as u64, dropped, "what is dropped is reported once");
    for (start, count) in KEPT {
        refetch(&log, blocks(start, count));
    }
    cache.flush().expect("flushed");
    dropped
}

#[test]
fn no_flipped_bit_reaches_a_reader_and_all_heal() {
    let fixture = Fixture::new();
    keep_some(&fixture);
    let areas = [
        (0, 104, 17),
        (map_offset(MunroIndex(0)), 64, 5),
        (ticks_offset(MunroIndex(0)), 256, 41),
        (record_offset(MunroIndex(0)), 256, 17),
        (table_offset(MunroIndex(0)), 2 * 16384, 2501),
        (CONTENT_OFFSET, 52 * 4096, 16001),
        (content_offset(BlockIndex(256)), 40 * 4096, 18001),
    ];
    for (offset, len, step) in areas {
        for bit in (0..len * 8).step_by(step) {
            flip(&fixture.segment(0), offset * 8 + bit);
            survives(&fixture);
        }
    }
}

#[test]
fn a_flipped_bit_costs_one_granule_at_most() {
    let fixture = Fixture::new();
    keep_some(&fixture);
    for block in [0, 5, 38, 256, 295] {
        flip(&fixture.segment(0), (content_offset(BlockIndex(block)) + 77) * 8);
        assert!((1..=4).contains(&survives(&fixture)), "block {block}");
    }
}

#[test]
fn swapped_blocks_tables_and_records_are_found() {
    let fixture = Fixture::new();
    keep_some(&fixture);
    let pairs = [
        (content_offset(BlockIndex(1)), content_offset(BlockIndex(2)), 4096),
        (content_offset(BlockIndex(0)), content_offset(BlockIndex(256)), 16384),
        (table_offset(MunroIndex(0)), table_offset(MunroIndex(1)), 16384),
        (record_offset(MunroIndex(0)), record_offset(MunroIndex(1)), 128),
        (map_offset(MunroIndex(0)), map_offset(MunroIndex(1)), 32),
    ];
    for (one, other, len) in pairs {
        let file = fixture.segment(0);
        let mut bytes = [vec![0; len], vec![0; len]];
        file.read_exact_at(&mut bytes[0], one).expect("read");
        file.read_exact_at(&mut bytes[1], other).expect("read");
        file.write_all_at(&bytes[1], one).expect("written");
        file.write_all_at(&bytes[0], other).expect("written");
        assert!(survives(&fixture) > 0, "offset {one}");
    }
}

#[test]
fn overwritten_indexes_and_cut_files_are_survived() {
    let fixture = Fixture::new();
    keep_some(&fixture);
    let areas = [
        (0, 4096),
        (map_offset(MunroIndex(0)), 32768),
        (ticks_offset(MunroIndex(0)), 131_072),
        (record_offset(MunroIndex(0)), 131_072),
        (table_offset(MunroIndex(0)), 2 * 16384),
        (CONTENT_OFFSET, 1 << 21),
    ];
    for (offset, len) in areas {
        for byte in [0, 0xff, 0x5a] {
            fixture.segment(0).write_all_at(&vec![byte; len], offset).expect("written");
            survives(&fixture);
        }
    }
    let lengths = [0, 1, 4096, 5000, 262_144, 300_000, 16 << 20, (16 << 20) + 5000, 32 << 20];
    for len in lengths.into_iter().chain([1, 4097, 50_000, 1 << 20].map(|len| len + (32 << 20))) {
        fixture.segment(0).set_len(len).expect("cut");
        survives(&fixture);
    }
}

#[test]
fn a_quota_is_held_and_the_least_recently_used_go() {
    let fixture = Fixture::with_quota(12 << 20);
    let (cache, log) = fixture.open();
    let mib = |munro: u64| MunroIndex(munro).bin();
    for munro in 0..8 {
        log.put(&run(mib(munro))).expect("put");
    }
    log.pin("keep", &[MunroIndex(1).blocks()]).expect("pinned");
    read(&log, MunroIndex(0).blocks());
    for munro in 8..16 {
        log.put(&run(mib(munro))).expect("put");
        assert!(cache.usage().allocated_bytes <= 12 << 20);
    }
    assert_eq!(read(&log, MunroIndex(0).blocks()).len(), 0, "used again");
    assert_eq!(read(&log, MunroIndex(1).blocks()).len(), 0, "pinned");
    assert_eq!(read(&log, MunroIndex(15).blocks()).len(), 0, "newest");
    assert!(!read(&log, MunroIndex(2).blocks()).is_empty(), "oldest");
    cache.flush().expect("flushed");
    assert!(cache.usage().allocated_bytes <= 12 << 20);
    let gone = log.take_evicted();
    assert_eq!(
        gone.iter().map(|range| range.count).sum::<u64>() + log.held_blocks_total(),
        16 * 256
    );
    cache.set_quota(Some(3 << 20));
    assert!(cache.usage().allocated_bytes <= 3 << 20);
    assert_eq!(read(&log, MunroIndex(1).blocks()).len(), 0, "pinned");
    cache.set_quota(Some(0));
    let refused = log.put(&run(mib(40)));
    assert!(matches!(refused, Err(PutError::Full { .. })), "{refused:?}");
    log.unpin("keep").expect("unpinned");
    cache.set_quota(Some(0));
    assert_eq!(cache.usage().allocated_bytes, 0);
    assert_eq!(cache.usage().drops.damaged_blocks, 0);
}

#[test]
fn what_has_served_its_purpose_goes_before_what_is_older() {
    let fixture = Fixture::with_quota(12 << 20);
    let (_cache, log) = fixture.open();
    for munro in 0..8 {
        log.put(&run(MunroIndex(munro).bin())).expect("put");
    }
    read(&log, MunroIndex(0).blocks());
    // As frames are that were decoded: the newest, and yet first to go.
    let half = BlockRange::new(MunroIndex(7).blocks().start, 128);
    log.retire(half);
    let mut munro = 8;
    while log.take_evicted().is_empty() {
        log.put(&run(MunroIndex(munro).bin())).expect("put");
        munro += 1;
    }
    assert_eq!(read(&log, half).len(), 128);
    let rest = BlockRange::new(half.end(), 128);
    assert_eq!(read(&log, rest).len() + read(&log, MunroIndex(6).blocks()).len(), 0);
}

#[test]
fn a_cache_of_a_few_blocks_is_right_and_slow() {
    for quota in (4..=256).step_by(12) {
        let fixture = Fixture::with_quota(quota << 10);
        let (cache, log) = fixture.open();
        for i in 0..200u64 {
            let granule = GranuleIndex(i * 37 % 96);
            match log.put(&run(granule.bin())) {
                Ok(()) => assert!(cache.usage().allocated_bytes <= quota << 10),
                Err(PutError::Full { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            read(&log, granule.blocks());
            if i % 20 == 19 {
                cache.flush().expect("flushed");
                assert!(cache.usage().allocated_bytes <= quota << 10);
            }
        }
        assert_eq!(cache.usage().drops.damaged_blocks, 0);
    }
}

#[test]
fn readers_and_writers_race_with_eviction_and_nothing_tears() {
    let fixture = Fixture::with_quota(1 << 20);
    let (cache, log) = fixture.open();
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            let (cache, log) = (&cache, &log);
            scope.spawn(move || {
                for i in 0..600u64 {
                    let granule = GranuleIndex((i * 7 + seed * 13) % 256);
                    match i % 5 {
                        0 | 1 => match log.put(&run(granule.bin())) {
                            Ok(()) | Err(PutError::Full { .. }) => {}
                            Err(error) => panic!("{error}"),
                        },
                        4 if i % 50 == 4 => cache.flush().expect("flushed"),
                        4 if i % 35 == 4 => {
                            log.evict(&[blocks(granule.0 * 4, 64)]);
                        }
                        _ => {
                            read(log, blocks(granule.0 * 4, 32));
                        }
                    }
                }
            });
        }
    });
    assert_eq!(cache.usage().drops.damaged_blocks, 0);
    cache.flush().expect("flushed");
    let held = log.held();
    drop((cache, log));
    let (cache, log) = fixture.open();
    assert_eq!(log.held(), held);
    for range in held {
        assert!(read(&log, range).is_empty());
    }
    assert_eq!(cache.usage().drops.damaged_blocks, 0);
}

#[test]
fn a_full_or_failing_disk_at_any_change_breaks_nothing() {
    for errno in [Errno::NOSPC, Errno::IO] {
        for changes in 0..24 {
            let fixture = Fixture::new();
            let (cache, log) = fixture.open();
            refetch(&log, blocks(0, 8));
            log.directory().fault().after(changes, errno);
            let put = [2, 3, 64 * 1024].map(|granule| log.put(&run(GranuleIndex(granule).bin())));
            for result in put {
                let full = matches!(result, Err(PutError::Full { .. }));
                assert!(result.is_ok() || full == (errno == Errno::NOSPC), "{changes} {result:?}");
            }
            let _ = cache.flush();
            log.evict(&[blocks(4, 2)]);
            read(&log, blocks(0, 20));
            log.directory().fault().heal();
            refetch(&log, blocks(0, 16));
            refetch(&log, blocks(256 * 1024, 4));
            cache.flush().expect("flushed");
            drop((cache, log));
            let (_cache, log) = fixture.open();
            assert!(read(&log, blocks(0, 16)).is_empty(), "{errno} after {changes}");
        }
    }
}

#[test]
fn a_kill_between_any_two_changes_loses_only_what_was_not_flushed() {
    for changes in 0..40 {
        let fixture = Fixture::new();
        let (cache, log) = fixture.open();
        refetch(&log, blocks(0, 8));
        cache.flush().expect("flushed");
        log.directory().fault().after(changes, Errno::IO);
        let _ = log.put(&run(GranuleIndex(2).bin()));
        let _ = cache.flush();
        log.evict(&[blocks(4, 2), blocks(9, 1)]);
        let _ = cache.flush();
        drop((cache, log));
        let (cache, log) = fixture.open();
        let lost = read(&log, blocks(0, 8));
        assert!(lost.is_subset(&set(blocks(4, 2))), "{changes}: {lost:?}");
        refetch(&log, blocks(0, 12));
        // At most the bits that eviction could not clear any more.
        assert!(cache.usage().drops.damaged_blocks <= 3, "{changes}");
    }
}

#[test]
fn a_cache_is_for_one_process_and_one_user() {
    let fixture = Fixture::new();
    let (cache, log) = fixture.open();
    match Cache::open(&fixture.dir(), fixture.options).map(|_| ()) {
        Err(OpenError::Busy { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
    drop((cache, log));
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode(&fixture.dir()), 0o700);
    assert_eq!(mode(&fixture.log_dir()), 0o700);
    for path in [fixture.dir(), fixture.log_dir()] {
        for open in [0o720, 0o702, 0o777] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(open)).expect("set");
            let refused = Cache::open(&fixture.dir(), fixture.options).map(|_| ());
            assert!(matches!(refused, Err(OpenError::Mode { .. })), "{refused:?}");
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).expect("set");
        // Only root can give a directory away.
        if std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
            let refused = Cache::open(&fixture.dir(), fixture.options).map(|_| ());
            assert!(matches!(refused, Err(OpenError::Owner { found: 12345, .. })), "{refused:?}");
            std::os::unix::fs::chown(&path, Some(0), None).expect("given back");
        }
    }
    fixture.open();
}

#[test]
fn planted_files_are_refused() {
    let victim = |fixture: &Fixture| {
        let path = fixture.temp.path().join("victim");
        std::fs::write(&path, b"precious").expect("written");
        path
    };
    let plants: [fn(&Path, &Path); 4] = [
        |victim, at| std::os::unix::fs::symlink(victim, at).expect("planted"),
        |victim, at| std::fs::hard_link(victim, at).expect("planted"),
        |_, at| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, at, rustix::fs::FileType::Fifo, mode, 0)
                .expect("planted");
        },
        |_, at| std::fs::create_dir(at).expect("planted"),
    ];
    for plant in plants {
        let names = ["lock", "format", "LOG/00000000.segment", "LOG/head.state", "LOG"];
        for name in names {
            let fixture = Fixture::new();
            keep_some(&fixture);
            let (cache, log) = fixture.open();
            log.save("head", b"state").expect("saved");
            drop((cache, log));
            let victim = victim(&fixture);
            let at = fixture.dir().join(name.replace("LOG", &origin().to_string()));
            if name == "LOG" {
                std::fs::remove_dir_all(&at).expect("removed");
            } else {
                std::fs::remove_file(&at).expect("removed");
            }
            plant(&victim, &at);
            let opened = Cache::open(&fixture.dir(), fixture.options)
                .and_then(|cache| Ok(cache.log(origin())?.load("head")?));
            let harmless = name == "LOG" && at.is_dir();
            assert_eq!(opened.is_err(), !harmless, "{name}: {opened:?}");
            assert_eq!(std::fs::read(&victim).expect("there"), b"precious");
        }
    }
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.temp.path().join("elsewhere")).expect("made");
    std::os::unix::fs::symlink("elsewhere", fixture.dir()).expect("planted");
    let refused = Cache::open(&fixture.dir(), fixture.options).map(|_| ());
    assert!(matches!(refused, Err(OpenError::NotADirectory { .. })), "{refused:?}");
}

#[test]
fn a_cache_of_another_format_is_refused_by_name() {
    let fixture = Fixture::new();
    keep_some(&fixture);
    std::fs::write(fixture.dir().join("format"), "distd cache 2\n").expect("written");
    match Cache::open(&fixture.dir(), fixture.options).map(|_| ()) {
        Err(OpenError::Format { found, .. }) => assert_eq!(found, "distd cache 2"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_signed_hashes_for_one_munro_are_a_fork() {
    let fixture = Fixture::new();
    let (cache, log) = fixture.open();
    log.put(&run(GranuleIndex(0).bin())).expect("put");
    let forged = vec![1; 1 << 20];
    let nodes = MunroTree::hash_content(MunroIndex(0), &forged);
    let trust = VerifiedMunro::sign(&key(), MunroIndex(0), nodes[1], NtpTime(u64::MAX));
    let fork = MunroTree::new(trust)
        .verify_run(MunroIndex(0).bin(), forged.into(), |_| None)
        .expect("true");
    for _ in 0..2 {
        assert!(matches!(log.put(&fork), Err(PutError::Fork { .. })));
        cache.flush().expect("flushed");
    }
    drop((cache, log));
    let (_cache, log) = fixture.open();
    assert!(matches!(log.put(&fork), Err(PutError::Fork { .. })));
    assert!(read(&log, blocks(0, 4)).is_empty());
}

#[test]
fn a_munro_signed_anew_keeps_the_later_time() {
    let fixture = Fixture::new();
    let (cache, log) = fixture.open();
    let original = munro(MunroIndex(0));
    log.put(&run(GranuleIndex(0).bin())).expect("put");
    let later = VerifiedMunro::sign(
        &OriginKey::from_seed(&[9; 32]),
        MunroIndex(0),
        original.trust.hash(),
        NtpTime(original.trust.time().0 + 5),
    );
    let renewed = MunroTree::new(later)
        .verify_run(MunroIndex(0).bin(), original.content.clone(), |_| None)
        .expect("true");
    log.put(&renewed).expect("put");
    log.put(&run(GranuleIndex(1).bin())).expect("put");
    cache.flush().expect("flushed");
    drop((cache, log));
    let (_cache, log) = fixture.open();
    assert_eq!(log.munro(MunroIndex(0)).expect("readable"), Some(later));
}
