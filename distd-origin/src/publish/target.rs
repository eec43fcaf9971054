//! Where a publish writes to: new blocks, then metadata.

use std::fs::File;
use std::os::unix::fs::FileExt;

use distd_core::limits::{BLOCK_BYTES, MUNRO_BYTES};
use distd_core::store::{Appender, OriginLog};
use distd_core::tree::BlockHash;
use distd_core::unit::{BlockIndex, BlockRange, ByteRange, MunroIndex};

use crate::dedup::Blocks;
use crate::index::Tables;
use crate::repo::Repo;

use super::PublishError;

/// Blocks of a munro.
const MUNRO_BLOCKS: u64 = MUNRO_BYTES / BLOCK_BYTES;
/// Buffered bytes before they go to the log.
const BUFFER_BYTES: usize = 1 << 20;

/// Where new blocks go.
pub(super) enum Target {
    /// To the log.
    Append(Appender),
    /// To a temporary file, as far as they are read again: a dry run touches nothing else.
    Count(Counted),
}

/// An epoch that is only imagined.
pub(super) struct Counted {
    log: OriginLog,
    /// Section P.
    scratch: File,
    start: BlockIndex,
    next: BlockIndex,
    in_plain: bool,
}

impl Target {
    pub(super) fn open(repo: &Repo, dry_run: bool) -> Result<Self, PublishError> {
        if !dry_run {
            return Ok(Self::Append(OriginLog::append(&repo.log_dir())?));
        }
        let log = repo.log()?;
        let start = MunroIndex(log.committed().map_or(0, |commit| commit.munros)).blocks().start;
        let scratch = tempfile::tempfile().map_err(PublishError::Scratch)?;
        Ok(Self::Count(Counted { log, scratch, start, next: start, in_plain: true }))
    }

    pub(super) fn log(&self) -> &OriginLog {
        match self {
            Self::Append(appender) => appender.log(),
            Self::Count(counted) => &counted.log,
        }
    }

    pub(super) fn next_block(&self) -> BlockIndex {
        match self {
            Self::Append(appender) => appender.next_block(),
            Self::Count(counted) => counted.next,
        }
    }

    /// Appends whole blocks.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<BlockIndex, PublishError> {
        match self {
            Self::Append(appender) => Ok(appender.write(bytes)?),
            Self::Count(counted) => counted.write(bytes),
        }
    }

    /// Goes to the next munro boundary.
    pub(super) fn begin_section(&mut self) -> Result<(), PublishError> {
        match self {
            Self::Append(appender) => appender.begin_section()?,
            Self::Count(counted) => {
                counted.in_plain = false;
                let munros = counted.next.0.div_ceil(MUNRO_BLOCKS);
                counted.next = MunroIndex(munros).blocks().start;
            }
        }
        Ok(())
    }

    /// Reads blocks of section P of this epoch back.
    pub(super) fn read_back(&self, blocks: BlockRange) -> Result<Vec<u8>, PublishError> {
        match self {
            Self::Append(appender) => Ok(appender.read_back(blocks)?),
            Self::Count(counted) => counted.read_back(blocks),
        }
    }

    /// Says which blocks of a munro full frames hold.
    pub(super) fn keep_as_frames(&mut self, munro: MunroIndex, blocks: Vec<BlockRange>) {
        if let Self::Append(appender) = self {
            appender.keep_as_frames(munro, blocks.into_iter());
        }
    }
}

impl Counted {
    fn write(&mut self, bytes: &[u8]) -> Result<BlockIndex, PublishError> {
        let at = self.next;
        if self.in_plain {
            let offset = at.byte_offset() - self.start.byte_offset();
            self.scratch.write_all_at(bytes, offset).map_err(PublishError::Scratch)?;
        }
        self.next = BlockIndex(at.0 + bytes.len() as u64 / BLOCK_BYTES);
        Ok(at)
    }

    fn read_back(&self, blocks: BlockRange) -> Result<Vec<u8>, PublishError> {
        let mut bytes = vec![0; blocks.byte_len() as usize];
        let offset = blocks.byte_offset() - self.start.byte_offset();
        let len = self.scratch.metadata().map_err(PublishError::Scratch)?.len();
        // What lies behind the last block is padding.
        let there = len.saturating_sub(offset).min(blocks.byte_len()) as usize;
        self.scratch.read_exact_at(&mut bytes[..there], offset).map_err(PublishError::Scratch)?;
        Ok(bytes)
    }
}

/// The log as deduplication sees it: the index, and the epoch that is being written.
pub(super) struct LogBlocks<'a, 't> {
    pub(super) tables: &'a mut Tables<'t>,
    target: &'a mut Target,
    /// Where the next new block goes.
    pub(super) next: BlockIndex,
    /// New blocks so far.
    pub(super) stored: u64,
}

impl<'a, 't> LogBlocks<'a, 't> {
    pub(super) fn new(tables: &'a mut Tables<'t>, target: &'a mut Target) -> Self {
        let next = target.next_block();
        Self { tables, target, next, stored: 0 }
    }
}

impl Blocks for LogBlocks<'_, '_> {
    type Error = PublishError;

    fn lies_at(&mut self, hash: &BlockHash, block: BlockIndex) -> Result<bool, PublishError> {
        Ok(self.tables.lies_at(hash, block)?)
    }

    fn places(&mut self, hash: &BlockHash, max: usize) -> Result<Vec<BlockIndex>, PublishError> {
        Ok(self.tables.places(hash, max)?)
    }

    fn store(&mut self, hash: BlockHash, block: &[u8]) -> Result<BlockIndex, PublishError> {
        let at = self.next;
        let written = self.target.write(block)?;
        assert_eq!(written, at, "blocks are appended one after the other");
        self.tables.insert_block(&hash, at)?;
        self.next = BlockIndex(at.0 + 1);
        self.stored += 1;
        Ok(at)
    }
}

/// A part of the log that is filled byte by byte.
pub(super) struct ByteArea<'a> {
    target: &'a mut Target,
    start: u64,
    written: u64,
    buffer: Vec<u8>,
}

impl<'a> ByteArea<'a> {
    pub(super) fn new(target: &'a mut Target) -> Self {
        let start = target.next_block().byte_offset();
        Self { target, start, written: 0, buffer: Vec::new() }
    }

    /// Where it goes.
    pub(super) fn target(&self) -> &Target {
        self.target
    }

    /// Where the next byte goes.
    pub(super) fn at(&self) -> u64 {
        self.start + self.written + self.buffer.len() as u64
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<ByteRange, PublishError> {
        let range = ByteRange { offset: self.at(), len: bytes.len() as u64 };
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_BYTES {
            let whole = self.buffer.len() / BLOCK_BYTES as usize * BLOCK_BYTES as usize;
            self.target.write(&self.buffer[..whole])?;
            self.buffer.drain(..whole);
            self.written += whole as u64;
        }
        Ok(range)
    }

    /// Pads to a block; one past the last block.
    pub(super) fn finish(mut self) -> Result<BlockIndex, PublishError> {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        self.target.write(&self.buffer)?;
        Ok(self.target.next_block())
    }
}
