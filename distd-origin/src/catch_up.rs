//! Bringing the index up to the log: after a crash between the two commits, or when it was lost.

use distd_core::head::Section;
use distd_core::limits::{BLOCK_BYTES, MUNRO_BYTES};
use distd_core::manifest::{Content, EntryKind, File};
use distd_core::store::OriginLog;
use distd_core::tree::BlockHash;
use distd_core::unit::{BlockIndex, BlockRange, MunroIndex};
use rayon::prelude::*;

use crate::history::{History, HistoryError, Met, end_of, read_head, read_release, walk};
use crate::image;
use crate::index::{Coverage, Epoch, IndexError, Tables};

/// Why the index cannot be brought up to the log.
#[derive(Debug, thiserror::Error)]
pub enum CatchUpError {
    /// The log or what lies in it.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl From<distd_core::store::ReadError> for CatchUpError {
    fn from(error: distd_core::store::ReadError) -> Self {
        Self::History(error.into())
    }
}

/// Indexes what the log holds beyond the index, all of it if the index is of another history.
/// `progress` is told munros done and to do.
pub fn catch_up(
    epoch: &Epoch,
    log: &OriginLog,
    history: &History,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), CatchUpError> {
    let mut coverage = epoch.tables()?.coverage()?;
    let munros = log.committed().map_or(0, |commit| commit.munros);
    let same = match coverage.munros.checked_sub(1) {
        None => true,
        Some(_) if coverage.munros > munros => false,
        Some(last) => coverage.hash == Some(log.munro_hash(MunroIndex(last))?),
    };
    if !same {
        epoch.clear()?;
        coverage = Coverage { publishes: coverage.publishes, ..Coverage::default() };
    }
    if coverage.munros == munros {
        return Ok(());
    }
    let mut tables = epoch.tables()?;
    let sections = plain_sections(log, history, coverage.munros)?;
    let total = sections.iter().map(|section| section.bytes.div_ceil(MUNRO_BYTES)).sum();
    let mut done = 0;
    for section in sections {
        for munro in 0..section.bytes.div_ceil(MUNRO_BYTES) {
            index_munro(&mut tables, log, MunroIndex(section.munro + munro))?;
            done += 1;
            progress(done, total);
        }
    }
    index_nodes(&mut tables, log, history, end_of(coverage.munros))?;
    let hash = log.committed().map(|commit| commit.newest.hash());
    tables.set_coverage(&Coverage { munros, hash, publishes: coverage.publishes })?;
    Ok(())
}

/// The sections P of all epochs that begin at or after `munros`, newest first.
fn plain_sections(
    log: &OriginLog,
    history: &History,
    munros: u64,
) -> Result<Vec<Section>, HistoryError> {
    let mut sections = Vec::new();
    let mut head = history.head.clone();
    while let Some(placed) = head {
        if placed.head.munros <= munros {
            break;
        }
        sections.push(placed.head.sections.plain);
        let previous = placed.head.previous.as_ref();
        head = previous.map(|previous| read_head(log, previous.munros)).transpose()?;
    }
    Ok(sections)
}

fn index_munro(
    tables: &mut Tables<'_>,
    log: &OriginLog,
    munro: MunroIndex,
) -> Result<(), CatchUpError> {
    for blocks in log.retained(munro.blocks())? {
        index_blocks(tables, log, blocks)?;
    }
    Ok(())
}

fn index_blocks(
    tables: &mut Tables<'_>,
    log: &OriginLog,
    blocks: BlockRange,
) -> Result<(), CatchUpError> {
    let mut bytes = vec![0; blocks.byte_len() as usize];
    log.read_blocks(blocks, &mut bytes)?;
    let zeros = [0; BLOCK_BYTES as usize];
    let hashes: Vec<Option<BlockHash>> = bytes
        .par_chunks_exact(BLOCK_BYTES as usize)
        .map(|block| (block != zeros).then(|| BlockHash::of(block)))
        .collect();
    for (i, hash) in hashes.iter().enumerate() {
        if let Some(hash) = hash {
            tables.insert_block(hash, BlockIndex(blocks.start.0 + i as u64))?;
        }
    }
    Ok(())
}

/// Indexes the nodes at or beyond byte `from` of all releases.
fn index_nodes(
    tables: &mut Tables<'_>,
    log: &OriginLog,
    history: &History,
    from: u64,
) -> Result<(), CatchUpError> {
    let items = history.catalog.items.iter().filter(|item| !item.is_pruned());
    for item in items.filter(|item| item.release.offset >= from) {
        let release = read_release(log, item.release)?;
        if let Some((key, image)) = image::key_of(&release).zip(release.image)
            && image.blocks.byte_offset() >= from
        {
            tables.insert_node(&key, image::bytes_of(image.blocks))?;
        }
        walk(log, release.root_directory().node, |met| {
            let range = match met {
                Met::Node(range) => range,
                Met::Entry(_, entry) => match &entry.kind {
                    EntryKind::File(File { content: Content::List(range), .. }) => *range,
                    _ => return Ok(true),
                },
            };
            if range.offset < from {
                return Ok(false);
            }
            let bytes = log.read_bytes(range)?;
            tables.insert_node(blake3::hash(&bytes).as_bytes(), range)?;
            Ok::<_, CatchUpError>(true)
        })?;
    }
    Ok(())
}
