//! How fast one thread decodes the frames of a repository's last release, hashing what they make.
//!
//! ```text
//! cargo bench -p distd-origin --bench decode -- REPOSITORY
//! ```
//!
//! What frames and bases are read from the log is not counted: a node has them in memory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use distd_core::frame::{FrameDecoder, MunroFrames, Part};
use distd_core::store::OriginLog;
use distd_core::tree::MunroTree;
use distd_core::unit::MunroIndex;

type Failure = Box<dyn std::error::Error>;

/// What decoding frames of one kind took.
#[derive(Default)]
struct Spent {
    frames: u64,
    packed: u64,
    plain: u64,
    decoding: Duration,
    verifying: Duration,
    slowest: Duration,
}

impl Spent {
    fn measure(
        &mut self,
        log: &OriginLog,
        decoder: &mut FrameDecoder,
        record: &MunroFrames,
    ) -> Result<(), Failure> {
        let mut tree = MunroTree::new(*record.munro());
        for frame in record.frames() {
            let packed = log.read_bytes(frame.range)?;
            let mut bases = Vec::new();
            for base in &frame.bases {
                let at = bases.len();
                bases.resize(at + base.byte_len() as usize, 0);
                log.read_blocks(*base, &mut bases[at..])?;
            }
            let begin = Instant::now();
            let plain = decoder.decode(frame, &packed, &bases)?;
            let decoded = begin.elapsed();
            record.verify(&mut tree, frame.bin, plain.into())?;
            self.verifying += begin.elapsed().saturating_sub(decoded);
            self.decoding += decoded;
            self.slowest = self.slowest.max(decoded);
            self.frames += 1;
            self.packed += frame.range.len;
            self.plain += frame.bin.byte_len();
        }
        Ok(())
    }

    fn print(&self, kind: &str) {
        let spent = (self.decoding + self.verifying).as_secs_f64();
        println!(
            "{kind}: {} frames, {:.1} MB make {:.1} MB; decoded in {:.2} s, verified in {:.2} s: {:.0} MB/s, {:.2} Gbit/s; slowest {:.2} ms",
            self.frames,
            self.packed as f64 / 1e6,
            self.plain as f64 / 1e6,
            self.decoding.as_secs_f64(),
            self.verifying.as_secs_f64(),
            self.plain as f64 / 1e6 / spent,
            self.plain as f64 * 8.0 / 1e9 / spent,
            self.slowest.as_secs_f64() * 1e3,
        );
    }
}

fn main() -> Result<(), Failure> {
    // cargo adds a word of its own.
    let repository = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    let repository =
        repository.ok_or("which repository? cargo bench --bench decode -- REPOSITORY")?;
    let log = OriginLog::open(&PathBuf::from(repository).join("log"))?;
    let epochs = log.epochs()?;
    let item = epochs.items.last().ok_or("no release of this repository has frames")?;
    let mut decoder = FrameDecoder::new();
    for (part, kind) in [(Part::Update, "delta frames"), (Part::Full, "full frames")] {
        let mut spent = Spent::default();
        for munro in item.munro..item.munro + item.munros {
            if let Some(record) = log.frames(MunroIndex(munro), part)? {
                spent.measure(&log, &mut decoder, &record)?;
            }
        }
        spent.print(kind);
    }
    Ok(())
}
