//! What the engine costs per datagram, without sockets and disks: moves a log between two engines
//! in memory and prints nanoseconds per DATA datagram for each side.
//!
//! `cargo run --release -p distd-core --example engine_transfer [MIB]`

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::keys::{NtpTime, OriginKey};
use distd_core::limits::MUNRO_BYTES;
use distd_core::ppspp::engine::{
    Class, Engine, EngineConfig, Event, HashRequest, Role, SwarmKey, SwarmOptions, Transmit,
};
use distd_core::tree::{HashedRun, MunroTree, NodeHash, VerifiedMunro, VerifiedRun};
use distd_core::unit::{Bin, BlockIndex, BlockRange, MunroIndex};

struct Munro {
    bytes: Bytes,
    nodes: Box<[NodeHash; 512]>,
    signed: VerifiedMunro,
}

fn log(key: &OriginKey, munros: u64) -> Vec<Munro> {
    let munro = |index: u64| {
        let bytes: Vec<u8> = (0..MUNRO_BYTES / 8)
            .flat_map(|i| (i ^ (index << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        let nodes = MunroTree::hash_content(MunroIndex(index), &bytes);
        let time = NtpTime::from_unix(1_800_000_000, 0);
        let signed = VerifiedMunro::sign(key, MunroIndex(index), nodes[1], time);
        Munro { bytes: bytes.into(), nodes, signed }
    };
    (0..munros).map(munro).collect()
}

fn read(log: &[Munro], bin: Bin) -> Option<VerifiedRun> {
    let munro = log.get(bin.munro()?.0 as usize)?;
    let start = (bin.byte_offset() % MUNRO_BYTES) as usize;
    let content = munro.bytes.slice(start..start + bin.byte_len() as usize);
    let offered = |bin| MunroTree::slot(bin).map(|slot| munro.nodes[slot]);
    MunroTree::new(munro.signed).verify_run(bin, content, offered).ok()
}

struct Side {
    engine: Engine,
    swarm: SwarmKey,
    address: SocketAddr,
    spent: Duration,
}

impl Side {
    fn new(id: u8, options: SwarmOptions) -> Option<Self> {
        let mut engine = Engine::new(EngineConfig::new([id; 32]), Instant::now());
        let swarm = engine.add_swarm(options)?;
        let address = SocketAddr::from(([10, 0, 0, id], 7574));
        Some(Self { engine, swarm, address, spent: Duration::ZERO })
    }

    /// Takes what came, and gives what is to be sent.
    fn turn(&mut self, from: SocketAddr, arrived: &[Transmit], log: &[Munro]) -> Vec<Transmit> {
        let begin = Instant::now();
        for transmit in arrived {
            for datagram in transmit.datagrams() {
                self.engine.handle_datagram(begin, from, datagram);
            }
        }
        if self.engine.poll_timeout().is_some_and(|at| at <= begin) {
            self.engine.handle_timeout(begin);
        }
        while let Some(HashRequest { id, bin, bytes }) = self.engine.poll_hash() {
            if let Some(run) = HashedRun::new(bin, bytes) {
                self.engine.handle_hashed(begin, id, run);
            }
        }
        self.spent += begin.elapsed();
        let mut out = Vec::new();
        loop {
            while let Some(request) = self.engine.poll_disk() {
                let run = read(log, request.bin);
                let begin = Instant::now();
                self.engine.handle_disk(begin, request.id, run.map(Into::into));
                self.spent += begin.elapsed();
            }
            let begin = Instant::now();
            let transmit = self.engine.poll_transmit(begin);
            self.spent += begin.elapsed();
            match transmit {
                // A socket buffer's worth.
                Some(transmit) if out.len() < 16 => out.push(transmit),
                Some(transmit) => {
                    out.push(transmit);
                    return out;
                }
                None => return out,
            }
        }
    }
}

fn main() {
    let mib: u64 = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(256);
    let key = OriginKey::from_seed(&[1; 32]);
    let log = log(&key, mib);
    let all = BlockRange::new(BlockIndex(0), mib * 256);
    let id = key.id().swarm_id();
    let newest = log.last().map(|munro| munro.signed);
    let origin = SwarmOptions { id, newest, held: vec![all], serve: true, role: Role::Injector };
    let node = SwarmOptions { id, newest: None, held: Vec::new(), serve: false, role: Role::Node };
    let (Some(mut origin), Some(mut node)) = (Side::new(1, origin), Side::new(2, node)) else {
        return;
    };
    let begin = Instant::now();
    node.engine.connect(begin, node.swarm, origin.address);
    node.engine.fetch(begin, node.swarm, all, Class::Background, begin + Duration::from_secs(600));
    let mut to_node = Vec::new();
    let mut done = false;
    while !done {
        let to_origin = node.turn(origin.address, &to_node, &log);
        to_node = origin.turn(node.address, &to_origin, &log);
        let begin = Instant::now();
        while let Some(event) = node.engine.poll_event() {
            done |= matches!(event, Event::Fetched { .. } | Event::Failed { .. });
        }
        node.spent += begin.elapsed();
    }
    let elapsed = begin.elapsed();
    let counters = node.engine.counters(node.swarm);
    let datagrams = mib << 10;
    println!(
        "{mib} MiB in {elapsed:?}; per DATA: sender {} ns, receiver {} ns; {} of {} bytes verified",
        origin.spent.as_nanos() / u128::from(datagrams),
        node.spent.as_nanos() / u128::from(datagrams),
        counters.verified_bytes,
        all.byte_len(),
    );
    println!("sender   {:?}", origin.engine.counters(origin.swarm));
    println!("receiver {counters:?}");
}
