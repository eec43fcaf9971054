//! Where a publish writes to: new blocks, then metadata.

use distd_core::limits::BLOCK_BYTES;
use distd_core::store::{AppendError, Appender, OriginLog};
use distd_core::tree::BlockHash;
use distd_core::unit::{BlockIndex, ByteRange, MunroIndex};

use crate::dedup::Blocks;
use crate::index::Tables;
use crate::repo::Repo;

use super::PublishError;

/// Buffered bytes of new metadata before they go to the log.
const METADATA_BUFFER_BYTES: usize = 1 << 20;

/// Where new blocks go.
pub(super) enum Target {
    /// To the log.
    Append(Appender),
    /// Nowhere: a dry run only counts them, and does not touch a file.
    Count(OriginLog),
}

impl Target {
    pub(super) fn open(repo: &Repo, dry_run: bool) -> Result<Self, PublishError> {
        if dry_run {
            return Ok(Self::Count(repo.log()?));
        }
        Ok(Self::Append(OriginLog::append(&repo.log_dir())?))
    }

    pub(super) fn log(&self) -> &OriginLog {
        match self {
            Self::Append(appender) => appender.log(),
            Self::Count(log) => log,
        }
    }

    pub(super) fn next_block(&self) -> BlockIndex {
        match self {
            Self::Append(appender) => appender.next_block(),
            Self::Count(log) => {
                MunroIndex(log.committed().map_or(0, |commit| commit.munros)).blocks().start
            }
        }
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
        if let Target::Append(appender) = &mut *self.target {
            let written = appender.write(block)?;
            assert_eq!(written, at, "blocks are appended one after the other");
        }
        self.tables.insert_block(&hash, at)?;
        self.next = BlockIndex(at.0 + 1);
        self.stored += 1;
        Ok(at)
    }
}

/// The end of section P, filled byte by byte.
pub(super) struct MetadataArea<'a> {
    appender: &'a mut Appender,
    start: u64,
    written: u64,
    buffer: Vec<u8>,
}

impl<'a> MetadataArea<'a> {
    pub(super) fn new(appender: &'a mut Appender) -> Self {
        let start = appender.next_block().byte_offset();
        Self { appender, start, written: 0, buffer: Vec::new() }
    }

    /// Where the next byte goes.
    pub(super) fn at(&self) -> u64 {
        self.start + self.written + self.buffer.len() as u64
    }

    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<ByteRange, AppendError> {
        let range = ByteRange { offset: self.at(), len: bytes.len() as u64 };
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= METADATA_BUFFER_BYTES {
            let whole = self.buffer.len() / BLOCK_BYTES as usize * BLOCK_BYTES as usize;
            self.appender.write(&self.buffer[..whole])?;
            self.buffer.drain(..whole);
            self.written += whole as u64;
        }
        Ok(range)
    }

    /// Pads to a block; one past the last block.
    pub(super) fn finish(mut self) -> Result<BlockIndex, AppendError> {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        self.appender.write(&self.buffer)?;
        Ok(self.appender.next_block())
    }
}
