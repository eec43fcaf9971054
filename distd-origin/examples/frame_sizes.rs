//! How large the frames of an update are: `frame_sizes OLD NEW [LEVEL]`, two directories.
//!
//! Files are laid out as a publish lays them out, block-aligned; what the old tree holds block by
//! block is left out of the new one.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Instant;

use distd_core::frame::{FrameDecoder, FrameEntry, encode_full};
use distd_core::limits::BLOCK_BYTES;
use distd_core::tree::BlockHash;
use distd_core::unit::{Bin, BlockIndex, BlockRange, ByteRange};
use distd_origin::frames::delta;
use distd_origin::frames::matching::Seeds;
use distd_origin::frames::older::{Hint, Older, OlderBlocks};
use rayon::prelude::*;
use zstd::zstd_safe::CCtx;

const BLOCK: usize = BLOCK_BYTES as usize;

struct Memory(Vec<u8>);

impl OlderBlocks for Memory {
    type Error = Infallible;
    fn read(&self, blocks: BlockRange, out: &mut [u8]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0[blocks.byte_offset() as usize..][..out.len()]);
        Ok(())
    }
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(dir).expect("dir").map(|e| e.expect("entry").path()).collect();
    entries.sort();
    for path in entries {
        let kind = path.symlink_metadata().expect("stat").file_type();
        if kind.is_dir() {
            files(&path, out);
        } else if kind.is_file() {
            out.push(path);
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let level: i32 = args.get(3).map_or(3, |level| level.parse().expect("a level"));
    let full_level: i32 = args.get(4).map_or(3, |level| level.parse().expect("a level"));
    let mut old_files = Vec::new();
    files(Path::new(&args[1]), &mut old_files);
    let mut new_files = Vec::new();
    files(Path::new(&args[2]), &mut new_files);
    let mut memory = Vec::new();
    let mut known = HashSet::new();
    let mut by_name: HashMap<String, Vec<(String, BlockRange)>> = HashMap::new();
    for path in &old_files {
        let start = memory.len();
        memory.extend(std::fs::read(path).expect("read"));
        memory.resize(memory.len().next_multiple_of(BLOCK), 0);
        for block in memory[start..].chunks_exact(BLOCK) {
            known.insert(BlockHash::of(block));
        }
        let range = BlockRange::covering(start as u64, (memory.len() - start) as u64);
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        let relative = path.strip_prefix(&args[1]).expect("below").to_string_lossy().into_owned();
        by_name.entry(name).or_default().push((relative, range));
    }
    memory.resize(memory.len().next_multiple_of(1 << 20), 0);
    let old_blocks = memory.len() as u64 / BLOCK_BYTES;
    let mut new = Vec::new();
    let mut hints = Vec::new();
    for path in &new_files {
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        let relative = path.strip_prefix(&args[2]).expect("below").to_string_lossy().into_owned();
        let old = by_name.get(&name).and_then(|list| {
            list.iter().max_by_key(|(other, _)| {
                let common = other
                    .bytes()
                    .rev()
                    .zip(relative.bytes().rev())
                    .take_while(|(a, b)| a == b)
                    .count();
                (*other == relative, common)
            })
        });
        let mut bytes = std::fs::read(path).expect("read");
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        for (i, block) in bytes.chunks_exact(BLOCK).enumerate() {
            if block.iter().all(|b| *b == 0) || !known.insert(BlockHash::of(block)) {
                continue;
            }
            let at = BlockIndex(old_blocks + (new.len() / BLOCK) as u64);
            new.extend_from_slice(block);
            if let Some((_, range)) = old {
                let from = (i as u64).saturating_sub(12).min(range.count);
                let to = (i as u64 + 13).min(range.count);
                hints.push(Hint {
                    new: BlockRange::new(at, 1),
                    older: BlockRange::new(BlockIndex(range.start.0 + from), to - from),
                });
            }
        }
    }
    println!("old {} MB, new blocks {} MB", memory.len() / 1_000_000, new.len() / 1_000_000);
    new.resize(new.len().next_multiple_of(1 << 18), 0);
    let memory = Memory(memory);
    let begun = Instant::now();
    let ranges = [BlockRange::new(BlockIndex(0), old_blocks)];
    let older = Older::new(&memory, &ranges, hints).unwrap_or_else(|never| match never {});
    println!("anchors {:?}", begun.elapsed());
    let begun = Instant::now();
    let first = (old_blocks * BLOCK_BYTES) >> 18;
    let sums: Vec<[usize; 6]> = new
        .par_chunks_exact(1 << 18)
        .enumerate()
        .map_init(
            || (Seeds::default(), CCtx::create(), FrameDecoder::new()),
            |(seeds, context, decoder), (i, run)| {
                let bin = Bin::new(8, first + i as u64);
                let full: usize = run
                    .chunks_exact(1 << 16)
                    .enumerate()
                    .map(|(j, part)| {
                        let bin = Bin::new(6, bin.offset() * 4 + j as u64);
                        encode_full(context, bin, part, full_level).map_or(part.len(), |f| f.len())
                    })
                    .sum();
                let delta = delta::encode(seeds, context, bin, run, &older, level)
                    .unwrap_or_else(|never| match never {});
                let Some(delta) = delta else { return [full, full, 0, 0, 0, 1] };
                let base: usize = delta.bases.iter().map(|b| b.byte_len() as usize).sum();
                let mut bytes = Vec::new();
                for range in &delta.bases {
                    bytes.extend_from_slice(
                        &memory.0[range.byte_offset() as usize..][..range.byte_len() as usize],
                    );
                }
                let entry = FrameEntry {
                    bin,
                    range: ByteRange { offset: 1 << 40, len: delta.frame.len() as u64 },
                    bases: delta.bases.clone(),
                };
                assert!(decoder.decode(&entry, &delta.frame, &bytes).expect("sound") == run);
                if std::env::var("EACH").is_ok() {
                    println!(
                        "{i} full {full} delta {} base {base} in {}",
                        delta.frame.len(),
                        delta.bases.len()
                    );
                }
                [
                    full,
                    delta.frame.len().min(full),
                    base,
                    delta.bases.len(),
                    usize::from(delta.frame[0] & 4 != 0),
                    usize::from(delta.frame.len() >= full),
                ]
            },
        )
        .collect();
    let total = |i: usize| sums.iter().map(|s| s[i]).sum::<usize>();
    println!(
        "frames {:?}: runs {}, full {:.2} MB, update {:.3} MB, bases {} MB in {} extents, carry {}, full kept {}",
        begun.elapsed(),
        sums.len(),
        total(0) as f64 / 1e6,
        total(1) as f64 / 1e6,
        total(2) / 1_000_000,
        total(3),
        total(4),
        total(5)
    );
}
