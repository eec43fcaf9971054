//! A node reads an origin's log over real sockets on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use distd_core::frame::{
    EpochItem, EpochList, FrameEncoder, FrameEntry, IndexEntry, MunroFrames, Operation,
};
use distd_core::head::{Head, Previous, Section, Sections};
use distd_core::keys::{NtpTime, OriginKey};
use distd_core::limits::{BLOCK_BYTES, DELTA_FRAME_LAYER, MUNRO_BYTES};
use distd_core::manifest::PeerAddress;
use distd_core::node::{
    Node, NodeOptions, OriginServer, Purpose, ReadError, SeedFiles, Seeds, ServeOptions, Swarm,
};
use distd_core::store::{AppendError, Appender, OriginLog, Sealing};
use distd_core::tree::{BlockHash, MunroTree, VerifiedMunro, prove_consistency};
use distd_core::unit::{Bin, BlockIndex, BlockRange, ByteRange, MunroIndex};
use tokio::sync::oneshot;

fn key() -> OriginKey {
    OriginKey::from_seed(&[3; 32])
}

/// Bytes that no two blocks share.
fn content(blocks: u64, salt: u64) -> Vec<u8> {
    (0..blocks * BLOCK_BYTES / 8)
        .flat_map(|i| (i ^ salt << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect()
}

/// Publishes one epoch of plain content; where it lies.
fn publish(dir: &Path, bytes: &[u8]) -> BlockRange {
    publish_with(dir, bytes, |_| None)
}

/// Publishes one epoch; what `frames` writes behind the plain content is section F, and what it gives
/// the list of epochs.
fn publish_with(
    dir: &Path,
    bytes: &[u8],
    frames: impl FnOnce(&mut Appender) -> Option<ByteRange>,
) -> BlockRange {
    let mut appender = OriginLog::append(dir).expect("the log is free");
    let previous = appender.log().committed().map(|commit| {
        let block = Head::block(commit.munros);
        let range = ByteRange { offset: block.byte_offset(), len: BLOCK_BYTES };
        let bytes = appender.log().read_bytes(range).expect("readable");
        (commit.munros, BlockHash::of(&bytes).0)
    });
    let start = appender.write(bytes).expect("written");
    let epochs = frames(&mut appender).unwrap_or(ByteRange { offset: 0, len: 0 });
    let frames_end = appender.next_block().0.div_ceil(256);
    let head = |sealing: &Sealing<'_>| {
        let munro = sealing.munros - 1;
        let section = |munro, bytes| Section { munro, bytes };
        let previous = previous.map(|(munros, block)| {
            let consistency = prove_consistency(munros, munro, |m| sealing.munro_hash(m));
            Previous { munros, block, consistency: consistency.expect("readable") }
        });
        let head = Head {
            munros: sealing.munros,
            sections: Sections {
                plain: section(start.0 / 256, bytes.len() as u64),
                frames: section(frames_end.min(munro), 0),
                head: section(munro, MUNRO_BYTES),
            },
            peaks: sealing.frontier.peaks().to_vec(),
            previous,
            tracks: Vec::new(),
            catalog: ByteRange { offset: 0, len: 0 },
            epochs,
            validity_s: 3600,
            recovery_key: [0; 32],
        };
        Ok::<_, AppendError>(head.encode().expect("small").try_into().expect("one block"))
    };
    appender.seal(&key(), NtpTime::from_unix(1_790_000_000, 0), head).expect("sealed");
    BlockRange::new(start, bytes.len() as u64 / BLOCK_BYTES)
}

struct Origin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    fn serve(dir: &Path, listen: SocketAddr) -> Self {
        let log = Arc::new(OriginLog::open(dir).expect("a log"));
        let heartbeat = Duration::from_secs(1);
        let options = ServeOptions { listen, heartbeat, upload: None };
        let server = OriginServer::open(log, key(), &options).expect("binds");
        let address = server.address();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || server.run(stopped, |_| {}));
        Self { address, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("serves without panic");
        }
    }
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn join(dir: &Path, origin: &Origin) -> (Node, Swarm) {
    let options = NodeOptions { listen: loopback(), ..NodeOptions::new(dir.to_owned()) };
    let node = Node::start(&options).expect("starts");
    let peer = PeerAddress { host: "127.0.0.1".into(), port: origin.address.port() };
    let swarm = node.join(key().id(), &[peer]).expect("joins");
    (node, swarm)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn read(swarm: &Swarm, blocks: BlockRange) -> Vec<u8> {
    swarm.read_blocking(blocks, Purpose::Data, soon()).expect("arrives").to_vec()
}

#[test]
fn a_node_reads_every_block_and_keeps_it_without_the_origin() {
    let dir = tempfile::tempdir().expect("temp");
    let (log, cache) = (dir.path().join("log"), dir.path().join("cache"));
    OriginLog::create(&log, key().id()).expect("created");
    let bytes = content(1500, 1);
    let blocks = publish(&log, &bytes);
    let origin = Origin::serve(&log, loopback());
    let (node, swarm) = join(&cache, &origin);
    let news = swarm.wait_head(Duration::from_secs(10));
    assert!(news.heard && news.trusted.is_some(), "{news:?}");

    let one = BlockRange::new(BlockIndex(blocks.start.0 + 777), 1);
    assert_eq!(read(&swarm, one), bytes[777 * 4096..778 * 4096]);
    let after_one = node.status().expect("runs").swarms[0].fetched_data_bytes;
    assert_eq!(after_one, BLOCK_BYTES, "one block costs one block");
    assert_eq!(read(&swarm, blocks), bytes);
    let all = node.status().expect("runs").swarms[0].clone();
    assert_eq!(all.fetched_data_bytes, bytes.len() as u64, "nothing is fetched twice");

    drop(origin);
    assert_eq!(read(&swarm, blocks), bytes);
    node.stop();
    drop((node, swarm));

    // A later process finds all of it, head included.
    let (node, swarm) = {
        let options = NodeOptions { listen: loopback(), ..NodeOptions::new(cache) };
        let node = Node::start(&options).expect("starts");
        let swarm = node.join(key().id(), &[]).expect("joins");
        (node, swarm)
    };
    assert!(swarm.head_news().trusted.is_some());
    let mut out = vec![0; bytes.len()];
    assert!(swarm.read_now(blocks, &mut out).expect("readable"));
    assert_eq!(out, bytes);
    node.stop();
}

#[test]
fn a_publish_while_serving_reaches_a_connected_node() {
    let dir = tempfile::tempdir().expect("temp");
    let (log, cache) = (dir.path().join("log"), dir.path().join("cache"));
    OriginLog::create(&log, key().id()).expect("created");
    publish(&log, &content(10, 1));
    let origin = Origin::serve(&log, loopback());
    let (node, swarm) = join(&cache, &origin);
    let first = swarm.wait_head(Duration::from_secs(10)).trusted.expect("a head");

    let bytes = content(700, 2);
    let blocks = publish(&log, &bytes);
    publish(&log, &content(3, 3));
    let deadline = Instant::now() + Duration::from_secs(10);
    let munros = loop {
        let head = swarm.head_news().trusted.expect("a head").placed.head.clone();
        if head.munros >= blocks.end().0.div_ceil(256) + 3 || Instant::now() > deadline {
            break head.munros;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(munros > first.placed.head.munros + 3, "{munros}");
    assert_eq!(read(&swarm, blocks), bytes);
    node.stop();
}

#[test]
fn a_read_that_nobody_answers_ends_by_its_deadline() {
    let dir = tempfile::tempdir().expect("temp");
    let (log, cache) = (dir.path().join("log"), dir.path().join("cache"));
    OriginLog::create(&log, key().id()).expect("created");
    let blocks = publish(&log, &content(10, 1));
    let origin = Origin::serve(&log, loopback());
    let (node, swarm) = join(&cache, &origin);
    swarm.wait_head(Duration::from_secs(10)).trusted.expect("a head");
    drop(origin);
    let started = Instant::now();
    let deadline = started + Duration::from_millis(500);
    let failed = swarm.read_blocking(blocks, Purpose::Data, deadline);
    assert!(matches!(failed, Err(ReadError::Deadline { .. })), "{failed:?}");
    assert!(started.elapsed() < Duration::from_secs(2));
    node.stop();
}

#[test]
fn a_read_without_any_peer_ends_by_its_deadline_and_a_late_origin_is_found() {
    let dir = tempfile::tempdir().expect("temp");
    let (log, cache) = (dir.path().join("log"), dir.path().join("cache"));
    OriginLog::create(&log, key().id()).expect("created");
    let bytes = content(10, 1);
    let blocks = publish(&log, &bytes);
    let address = Origin::serve(&log, loopback()).address;
    // The origin has left again; the node knows only where it was.
    let options = NodeOptions { listen: loopback(), ..NodeOptions::new(cache) };
    let node = Node::start(&options).expect("starts");
    let peer = PeerAddress { host: "127.0.0.1".into(), port: address.port() };
    let swarm = node.join(key().id(), &[peer]).expect("joins");
    let deadline = Instant::now() + Duration::from_millis(300);
    let failed = swarm.read_blocking(blocks, Purpose::Data, deadline);
    assert!(matches!(failed, Err(ReadError::Deadline { .. })), "{failed:?}");
    let _origin = Origin::serve(&log, address);
    assert_eq!(read(&swarm, blocks), bytes);
    node.stop();
}

/// A delta frame of a quarter of a munro against its base, a byte of each block changed by
/// `change`.
fn delta(bin: Bin, change: u8) -> Vec<u8> {
    let (quarter, len) = (bin.offset() as usize % 4, bin.byte_len() as usize);
    let base = &content(256, 1)[quarter * len..][..len];
    let mut new = base.to_vec();
    new.iter_mut().step_by(BLOCK_BYTES as usize).for_each(|byte| *byte = byte.wrapping_add(change));
    let copy = Operation { copied: len, ..Operation::default() };
    FrameEncoder::new().delta(bin, &[copy], &new, base, 3).expect("sound")
}

/// Writes frames of the munro of `content` with their index; where the list of epochs lies.
fn write_frames(
    appender: &mut Appender,
    munro: MunroIndex,
    content: &[u8],
    frames: &[(Bin, Vec<u8>, BlockRange)],
) -> ByteRange {
    appender.begin_section().expect("begun");
    let begin = appender.next_block().byte_offset();
    let mut section: Vec<u8> = Vec::new();
    let mut place = |bytes: &[u8]| {
        let range = ByteRange { offset: begin + section.len() as u64, len: bytes.len() as u64 };
        section.extend(bytes);
        range
    };
    let entries = frames.iter().map(|(bin, bytes, base)| FrameEntry {
        bin: *bin,
        range: place(bytes),
        bases: vec![*base],
    });
    let entries = entries.collect();
    let nodes = MunroTree::hash_content(munro, content);
    let time = NtpTime::from_unix(1_790_000_000, 0);
    let signed = VerifiedMunro::sign(&key(), munro, nodes[1], time);
    let record = MunroFrames::new(signed, DELTA_FRAME_LAYER, nodes[4..8].to_vec(), entries);
    let record = place(&record.encode());
    let none = ByteRange { offset: 0, len: 0 };
    let table = place(&IndexEntry::new(signed, record, none).encode());
    let item =
        EpochItem { munro: munro.0, munros: 1, index: table.offset, time: time.0, hashes: None };
    let list = place(&EpochList { items: vec![item] }.encode());
    section.resize(section.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    appender.write(&section).expect("written");
    list
}

/// An origin whose second epoch is the first one with a byte of each block changed, as delta frames that
/// `frame` makes of the honest ones; the blocks of both, and the content of the second.
fn publish_update(
    log: &Path,
    frame: impl Fn(u64, Vec<u8>, &dyn Fn(u64) -> Bin) -> Vec<u8>,
) -> (BlockRange, BlockRange, Vec<u8>) {
    OriginLog::create(log, key().id()).expect("created");
    let old = content(256, 1);
    let old_blocks = publish(log, &old);
    let mut new = old;
    new.iter_mut().step_by(BLOCK_BYTES as usize).for_each(|byte| *byte = byte.wrapping_add(1));
    let new_blocks = publish_with(log, &new, |appender| {
        let munro = MunroIndex(appender.next_block().munro().0 - 1);
        let bin = |quarter| Bin::new(DELTA_FRAME_LAYER, munro.0 * 4 + quarter);
        let frames: Vec<_> = (0..4)
            .map(|quarter| {
                let base = BlockRange::new(BlockIndex(old_blocks.start.0 + quarter * 64), 64);
                (bin(quarter), frame(quarter, delta(bin(quarter), 1), &bin), base)
            })
            .collect();
        Some(write_frames(appender, munro, &new, &frames))
    });
    (old_blocks, new_blocks, new)
}

fn until_held(swarm: &Swarm, blocks: BlockRange) {
    let deadline = soon();
    while swarm.held_blocks(blocks) < blocks.count && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_frame_that_two_reads_want_is_fetched_and_decoded_once() {
    let dir = tempfile::tempdir().expect("temp");
    let (log, cache) = (dir.path().join("log"), dir.path().join("cache"));
    let (old_blocks, new_blocks, new) = publish_update(&log, |_, honest, _| honest);
    let origin = Origin::serve(&log, loopback());
    let (node, swarm) = join(&cache, &origin);
    swarm.wait_head(Duration::from_secs(10)).trusted.expect("a head");
    read(&swarm, old_blocks);
    // The last quarter, so that the index is local.
    let last = BlockRange::new(BlockIndex(new_blocks.start.0 + 192), 64);
    swarm.fetch_bulk(vec![last]);
    until_held(&swarm, last);
    let before = node.status().expect("runs").swarms[0].clone();
    std::thread::scope(|scope| {
        for part in 0..6 {
            let (swarm, new) = (&swarm, &new);
            scope.spawn(move || {
                let blocks = BlockRange::new(BlockIndex(new_blocks.start.0 + part * 10), 10);
                let from = (part * 10 * BLOCK_BYTES) as usize;
                let expected = &new[from..from + blocks.byte_len() as usize];
                assert!(read(swarm, blocks) == expected, "part {part}");
            });
        }
    });
    let status = node.status().expect("runs").swarms[0].clone();
    assert_eq!(status.delta_frames - before.delta_frames, 1);
    assert_eq!(status.fetched_data_bytes, before.fetched_data_bytes, "nothing came plain");
    node.stop();
}

#[test]
fn frames_of_a_hostile_origin_are_refused_and_their_blocks_fetched_plain() {
    let dir = tempfile::tempdir().expect("temp");
    let (log, cache) = (dir.path().join("log"), dir.path().join("cache"));
    let (old_blocks, new_blocks, new) =
        publish_update(&log, |quarter, honest, bin| match quarter {
            1 => delta(bin(0), 1),
            2 => delta(bin(2), 2),
            3 => honest[..honest.len() / 2].to_vec(),
            _ => honest,
        });
    let origin = Origin::serve(&log, loopback());
    let (node, swarm) = join(&cache, &origin);
    swarm.wait_head(Duration::from_secs(10)).trusted.expect("a head");
    read(&swarm, old_blocks);
    let before = node.status().expect("runs").swarms[0].clone();
    swarm.fetch_bulk(vec![new_blocks]);
    until_held(&swarm, new_blocks);
    let mut out = vec![0; new.len()];
    assert!(swarm.read_now(new_blocks, &mut out).expect("readable") && out == new);
    let status = node.status().expect("runs").swarms[0].clone();
    assert_eq!((status.delta_frames, status.refused_frames), (1, 3));
    let plain = status.fetched_data_bytes - before.fetched_data_bytes;
    assert_eq!(plain, 3 * 64 * BLOCK_BYTES, "what was refused, and nothing else");
    node.stop();
}

/// One file in memory.
struct InMemory(Vec<u8>);

impl SeedFiles for InMemory {
    fn read(&self, _file: u32, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        out.copy_from_slice(&self.0[offset as usize..][..out.len()]);
        Ok(())
    }
}

#[test]
fn an_update_is_made_of_files_outside_of_the_cache_and_wrong_ones_do_no_harm() {
    let dir = tempfile::tempdir().expect("temp");
    let log = dir.path().join("log");
    let (old_blocks, new_blocks, new) = publish_update(&log, |_, honest, _| honest);
    let origin = Origin::serve(&log, loopback());
    for wrong in [false, true] {
        let (node, swarm) = join(&dir.path().join(format!("cache-{wrong}")), &origin);
        swarm.wait_head(Duration::from_secs(10)).trusted.expect("a head");
        let mut old = content(256, 1);
        if wrong {
            old[70 * BLOCK_BYTES as usize + 5] ^= 1;
        }
        let seeds = Arc::new(Seeds::new(Arc::new(InMemory(old))));
        seeds.add(old_blocks, 0, 0);
        let lent = swarm.lend(&seeds);
        swarm.fetch_bulk(vec![new_blocks]);
        until_held(&swarm, new_blocks);
        let mut out = vec![0; new.len()];
        assert!(swarm.read_now(new_blocks, &mut out).expect("readable") && out == new);
        let status = node.status().expect("runs").swarms[0].clone();
        let second = BlockRange::new(BlockIndex(old_blocks.start.0 + 64), 64);
        if wrong {
            assert_eq!((status.delta_frames, status.refused_frames), (3, 1));
            assert_eq!(seeds.lacking(old_blocks), [second], "what was wrong is forgotten");
            assert_eq!(status.fetched_data_bytes, 64 * BLOCK_BYTES, "and fetched another way");
        } else {
            assert_eq!((status.delta_frames, status.refused_frames), (4, 0));
            assert_eq!(status.fetched_data_bytes, 0);
            assert_eq!(swarm.held_blocks(old_blocks), 0, "what is lent is not kept");
        }
        drop(lent);
        node.stop();
    }
}

/// A file on a disk that does not answer until the sender is dropped.
struct Hanging(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

impl SeedFiles for Hanging {
    fn read(&self, _file: u32, _offset: u64, _out: &mut [u8]) -> std::io::Result<()> {
        let _ = self.0.lock().map(|ended| ended.recv());
        Err(std::io::ErrorKind::TimedOut.into())
    }
}

#[test]
fn who_waits_does_not_wait_for_a_disk_outside_of_the_cache() {
    let dir = tempfile::tempdir().expect("temp");
    let log = dir.path().join("log");
    let (old_blocks, new_blocks, new) = publish_update(&log, |_, honest, _| honest);
    let origin = Origin::serve(&log, loopback());
    let (node, swarm) = join(&dir.path().join("cache"), &origin);
    swarm.wait_head(Duration::from_secs(10)).trusted.expect("a head");
    let (end, ended) = std::sync::mpsc::channel();
    let seeds = Arc::new(Seeds::new(Arc::new(Hanging(std::sync::Mutex::new(ended)))));
    seeds.add(old_blocks, 0, 0);
    let lent = swarm.lend(&seeds);
    // As many as there are decoders.
    swarm.fetch_bulk(vec![new_blocks]);
    std::thread::sleep(Duration::from_millis(500));
    for part in 0..4 {
        let part = BlockRange::new(BlockIndex(new_blocks.start.0 + part * 64), 64);
        let deadline = Instant::now() + Duration::from_secs(8);
        let read = swarm.read_blocking(part, Purpose::Data, deadline).expect("read");
        let from = ((part.start.0 - new_blocks.start.0) * BLOCK_BYTES) as usize;
        assert!(read[..] == new[from..from + part.byte_len() as usize]);
    }
    drop((lent, end));
    node.stop();
}
