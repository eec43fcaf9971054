//! A node reads an origin's log over real sockets on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use distd_core::head::{Head, Previous, Section, Sections};
use distd_core::keys::{NtpTime, OriginKey};
use distd_core::limits::{BLOCK_BYTES, MUNRO_BYTES};
use distd_core::manifest::PeerAddress;
use distd_core::node::{Node, NodeOptions, OriginServer, Purpose, ReadError, ServeOptions, Swarm};
use distd_core::store::{AppendError, OriginLog, Sealing};
use distd_core::tree::{BlockHash, prove_consistency};
use distd_core::unit::{BlockIndex, BlockRange, ByteRange};
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
    let mut appender = OriginLog::append(dir).expect("the log is free");
    let previous = appender.log().committed().map(|commit| {
        let block = Head::block(commit.munros);
        let range = ByteRange { offset: block.byte_offset(), len: BLOCK_BYTES };
        let bytes = appender.log().read_bytes(range).expect("readable");
        (commit.munros, BlockHash::of(&bytes).0)
    });
    let start = appender.write(bytes).expect("written");
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
                frames: section(munro, 0),
                head: section(munro, MUNRO_BYTES),
            },
            peaks: sealing.frontier.peaks().to_vec(),
            previous,
            tracks: Vec::new(),
            catalog: ByteRange { offset: 0, len: 0 },
            epochs: ByteRange { offset: 0, len: 0 },
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
        let options = ServeOptions { listen, heartbeat: Duration::from_secs(1) };
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
