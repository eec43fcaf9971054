//! A log that all nodes share: bytes, hashes and signatures are made once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::keys::{NtpTime, OriginKey};
use crate::limits::{BLOCK_LAYER, MUNRO_BYTES, MUNRO_LAYER};
use crate::tree::{MunroTree, NodeHash, VerifiedMunro, VerifiedRun};
use crate::unit::{Bin, BlockIndex, BlockRange, MunroIndex};

const MUNRO_BLOCKS: u64 = 1 << (MUNRO_LAYER - BLOCK_LAYER);

/// A log with its key. No two blocks are alike.
#[derive(Debug)]
pub struct Log {
    /// Signs it.
    pub key: OriginKey,
    munros: Vec<(Bytes, Box<[NodeHash; 512]>, VerifiedMunro)>,
    /// Runs that were asked for: disks answer with them again and again.
    runs: RefCell<BTreeMap<Bin, VerifiedRun>>,
}

impl Log {
    /// A log of so many munros (1 MiB each).
    pub fn new(munros: u64) -> Rc<Self> {
        let key = OriginKey::from_seed(&[42; 32]);
        let mut rng = SmallRng::seed_from_u64(7);
        let made = (0..munros).map(|munro| {
            let mut bytes = vec![0; MUNRO_BYTES as usize];
            rng.fill(&mut bytes[..]);
            let index = MunroIndex(munro);
            let nodes = MunroTree::hash_content(index, &bytes);
            let signed = VerifiedMunro::sign(&key, index, nodes[1], Self::time(munro));
            (Bytes::from(bytes), nodes, signed)
        });
        let munros = made.collect();
        Rc::new(Self { key, munros, runs: RefCell::default() })
    }

    /// The time of a signature: `step` seconds after an arbitrary instant.
    pub fn time(step: u64) -> NtpTime {
        NtpTime::from_unix(1_800_000_000 + step, 0)
    }

    /// A munro's signature.
    ///
    /// # Panics
    /// If the log is shorter.
    pub fn munro(&self, index: u64) -> VerifiedMunro {
        self.munros[index as usize].2
    }

    /// The rightmost munro.
    pub fn newest(&self) -> VerifiedMunro {
        self.munro(self.munros.len() as u64 - 1)
    }

    /// The newest munro signed again, `step` seconds later.
    pub fn heartbeat(&self, step: u64) -> VerifiedMunro {
        let newest = self.newest();
        let time = NtpTime::from_unix(newest.time().unix_seconds() + step, 0);
        VerifiedMunro::sign(&self.key, newest.munro(), newest.hash(), time)
    }

    /// All of it.
    pub fn blocks(&self) -> BlockRange {
        BlockRange::new(BlockIndex(0), self.munros.len() as u64 * MUNRO_BLOCKS)
    }

    /// A run of it, as a disk gives it.
    ///
    /// # Panics
    /// If the bin is larger than a munro or behind the end.
    pub fn run(&self, bin: Bin) -> VerifiedRun {
        self.runs.borrow_mut().entry(bin).or_insert_with(|| self.prove(bin)).clone()
    }

    fn prove(&self, bin: Bin) -> VerifiedRun {
        let munro = bin.munro().expect("within a munro");
        let (bytes, nodes, signed) = &self.munros[munro.0 as usize];
        let start = (bin.byte_offset() - munro.byte_offset()) as usize;
        let content = bytes.slice(start..start + bin.byte_len() as usize);
        let offered = |bin| MunroTree::slot(bin).map(|slot| nodes[slot]);
        MunroTree::new(*signed).verify_run(bin, content, offered).expect("its own log")
    }
}
