//! What the log holds, by content: blocks, metadata nodes, and files whose state is known.
//!
//! One redb file beside the log. It is a cache of the log and of the publisher's work: deleting it
//! costs time and nothing else. It changes in one transaction per publish, committed after the log's
//! own commit, so that it may be behind the log after a crash and is never ahead of it. It says up
//! to which munro it goes and what that munro's hash is; an index of another history (a log restored
//! from a backup) is known by that and made anew.
//!
//! | table | key | value |
//! |---|---|---|
//! | `blocks` | `blake3(block)`, block index (big endian) | |
//! | `nodes` | `blake3(node)` | byte range |
//! | `files` | see [`crate::stat_cache`] | |
//! | `state` | `munros`, `hash`, `publishes` | |

mod overlay;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use distd_core::tree::{BlockHash, NodeHash};
use distd_core::unit::{BlockIndex, BlockRange, ByteRange};
use redb::{
    Builder, Database, DatabaseError, ReadableTable, Table, TableDefinition, WriteTransaction,
};

/// Memory for pages of the index, however long the log is.
const CACHE_BYTES: usize = 64 << 20;

const BLOCKS: TableDefinition<'_, &[u8; 40], ()> = TableDefinition::new("blocks");
const NODES: TableDefinition<'_, &[u8; 32], (u64, u64)> = TableDefinition::new("nodes");
const FILES: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("files");
const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("state");

const MUNROS: &str = "munros";
const HASH: &str = "hash";
const PUBLISHES: &str = "publishes";

use crate::stat_cache::refers;
use overlay::Overlay;

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// A call of the embedded store failed.
    #[error(
        "the index {path} failed: {source}; it may be deleted, the next publish makes it anew from the log"
    )]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
    /// A dry run has nowhere to write.
    #[error("cannot read the index {path}, or there is no room for a temporary file: {source}")]
    Scratch {
        /// The index.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be replaced.
    #[error("cannot remove the damaged index {path}: {source}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The index file.
pub struct Index {
    database: Database,
    path: PathBuf,
}

/// Up to where the index goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Munros of the log.
    pub munros: u64,
    /// The hash of the last of them.
    pub hash: Option<NodeHash>,
    /// How many publishes there were: the clock of the stat cache.
    pub publishes: u64,
}

impl Index {
    /// Opens the index, made anew where it is missing or damaged.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let open = || Builder::new().set_cache_size(CACHE_BYTES).create(path);
        let failed = |source: DatabaseError| store_error(path, source.into());
        let database = match open() {
            Ok(database) => database,
            Err(error @ DatabaseError::DatabaseAlreadyOpen) => return Err(failed(error)),
            Err(DatabaseError::Storage(redb::StorageError::Io(error))) if !is_damage(&error) => {
                return Err(failed(DatabaseError::Storage(redb::StorageError::Io(error))));
            }
            Err(_) => {
                fs::remove_file(path)
                    .map_err(|source| IndexError::Remove { path: path.into(), source })?;
                open().map_err(failed)?
            }
        };
        Ok(Self { database, path: path.into() })
    }

    /// Opens the index for a dry run: what is written goes to a temporary file, the index
    /// itself is only read.
    pub fn open_over(path: &Path) -> Result<Self, IndexError> {
        let scratch = |source| IndexError::Scratch { path: path.into(), source };
        let over = Overlay::new(path).map_err(scratch)?;
        let open = |over| Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(over);
        let database = match open(over) {
            Ok(database) => database,
            // A damaged index counts as an empty one, as it does in `open`.
            Err(_) => open(Overlay::empty().map_err(scratch)?)
                .map_err(|error| store_error(path, error.into()))?,
        };
        Ok(Self { database, path: path.into() })
    }

    /// Begins the transaction of one publish. Dropped without [`Epoch::commit`], nothing of it
    /// remains.
    pub fn begin(&self) -> Result<Epoch, IndexError> {
        let mut transaction =
            self.database.begin_write().map_err(|error| store_error(&self.path, error.into()))?;
        // Without it a kill would be answered by a scan of the whole file at the next open.
        transaction.set_quick_repair(true);
        Ok(Epoch { transaction, path: self.path.clone() })
    }
}

/// redb's word for a file that is not its own.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn store_error(path: &Path, source: redb::Error) -> IndexError {
    IndexError::Store { path: path.into(), source: Box::new(source) }
}

/// One publish's transaction.
pub struct Epoch {
    transaction: WriteTransaction,
    path: PathBuf,
}

impl Epoch {
    /// Opens the tables; close them again (drop) before [`Self::commit`].
    pub fn tables(&self) -> Result<Tables<'_>, IndexError> {
        let failed = |error: redb::TableError| store_error(&self.path, error.into());
        Ok(Tables {
            blocks: self.transaction.open_table(BLOCKS).map_err(failed)?,
            nodes: self.transaction.open_table(NODES).map_err(failed)?,
            files: self.transaction.open_table(FILES).map_err(failed)?,
            state: self.transaction.open_table(STATE).map_err(failed)?,
            path: &self.path,
        })
    }

    /// Forgets everything: the index belongs to another history.
    pub fn clear(&self) -> Result<(), IndexError> {
        let failed = |error: redb::TableError| store_error(&self.path, error.into());
        self.transaction.delete_table(BLOCKS).map_err(failed)?;
        self.transaction.delete_table(NODES).map_err(failed)?;
        self.transaction.delete_table(FILES).map_err(failed)?;
        self.transaction.delete_table(STATE).map_err(failed)?;
        Ok(())
    }

    /// Makes it durable.
    pub fn commit(self) -> Result<(), IndexError> {
        let path = self.path;
        self.transaction.commit().map_err(|error| store_error(&path, error.into()))
    }
}

/// The tables of an open transaction.
pub struct Tables<'t> {
    blocks: Table<'t, &'static [u8; 40], ()>,
    nodes: Table<'t, &'static [u8; 32], (u64, u64)>,
    files: Table<'t, &'static [u8; 16], &'static [u8]>,
    state: Table<'t, &'static str, &'static [u8]>,
    path: &'t Path,
}

fn block_key(hash: &BlockHash, block: BlockIndex) -> [u8; 40] {
    let mut key = [0; 40];
    key[..32].copy_from_slice(&hash.0);
    key[32..].copy_from_slice(&block.0.to_be_bytes());
    key
}

impl Tables<'_> {
    fn failed(&self) -> impl Fn(redb::StorageError) -> IndexError + use<'_> {
        |error| store_error(self.path, error.into())
    }

    /// Whether a block with that hash lies there.
    pub fn lies_at(&self, hash: &BlockHash, block: BlockIndex) -> Result<bool, IndexError> {
        let found = self.blocks.get(&block_key(hash, block)).map_err(self.failed())?;
        Ok(found.is_some())
    }

    /// Up to `max` blocks with that hash, in the log's order.
    pub fn places(&self, hash: &BlockHash, max: usize) -> Result<Vec<BlockIndex>, IndexError> {
        let (low, high) = (block_key(hash, BlockIndex(0)), block_key(hash, BlockIndex(u64::MAX)));
        let mut places = Vec::new();
        for entry in self.blocks.range::<&[u8; 40]>(&low..=&high).map_err(self.failed())?.take(max)
        {
            let (key, ()) = entry.map(|(key, _)| (key, ())).map_err(self.failed())?;
            if let Some(block) = key.value().last_chunk::<8>() {
                places.push(BlockIndex(u64::from_be_bytes(*block)));
            }
        }
        Ok(places)
    }

    /// Remembers a block.
    pub fn insert_block(&mut self, hash: &BlockHash, block: BlockIndex) -> Result<(), IndexError> {
        match self.blocks.insert(&block_key(hash, block), ()) {
            Ok(_) => Ok(()),
            Err(error) => Err(store_error(self.path, error.into())),
        }
    }

    /// Where a node with these bytes (by their BLAKE3) lies.
    pub fn node(&self, hash: &[u8; 32]) -> Result<Option<ByteRange>, IndexError> {
        let found = self.nodes.get(hash).map_err(self.failed())?;
        Ok(found.map(|range| {
            let (offset, len) = range.value();
            ByteRange { offset, len }
        }))
    }

    /// Remembers a node.
    pub fn insert_node(&mut self, hash: &[u8; 32], range: ByteRange) -> Result<(), IndexError> {
        match self.nodes.insert(hash, (range.offset, range.len)) {
            Ok(_) => Ok(()),
            Err(error) => Err(store_error(self.path, error.into())),
        }
    }

    /// A stat cache entry.
    pub(crate) fn file(&self, key: &[u8; 16]) -> Result<Option<Vec<u8>>, IndexError> {
        let found = self.files.get(key).map_err(self.failed())?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    /// Writes a stat cache entry.
    pub(crate) fn insert_file(&mut self, key: &[u8; 16], value: &[u8]) -> Result<(), IndexError> {
        match self.files.insert(key, value) {
            Ok(_) => Ok(()),
            Err(error) => Err(store_error(self.path, error.into())),
        }
    }

    /// Removes the stat cache entries of which `keep` does not want the value.
    pub(crate) fn retain_files(&mut self, keep: impl Fn(&[u8]) -> bool) -> Result<(), IndexError> {
        match self.files.retain(|_, value| keep(value)) {
            Ok(()) => Ok(()),
            Err(error) => Err(store_error(self.path, error.into())),
        }
    }

    /// Forgets everything that refers to blocks of which `gone` says so.
    pub fn forget(&mut self, gone: impl Fn(BlockRange) -> bool) -> Result<(), IndexError> {
        let at = |key: &[u8; 40]| {
            let block = key.last_chunk::<8>().map_or(0, |block| u64::from_be_bytes(*block));
            BlockRange::new(BlockIndex(block), 1)
        };
        let node = |(offset, len)| ByteRange { offset, len }.blocks();
        let done = self
            .blocks
            .retain(|key, ()| !gone(at(key)))
            .and_then(|()| self.nodes.retain(|_, range| !gone(node(range))))
            .and_then(|()| self.files.retain(|_, value| !refers(value, &gone)));
        done.map_err(|error| store_error(self.path, error.into()))
    }

    /// Up to where the index goes.
    pub fn coverage(&self) -> Result<Coverage, IndexError> {
        let number = |key: &str| -> Result<u64, IndexError> {
            let value = self.state.get(key).map_err(self.failed())?;
            let bytes = value.and_then(|value| value.value().first_chunk::<8>().copied());
            Ok(bytes.map_or(0, u64::from_be_bytes))
        };
        let hash = self.state.get(HASH).map_err(self.failed())?;
        let hash = hash.and_then(|value| value.value().first_chunk::<32>().copied());
        Ok(Coverage {
            munros: number(MUNROS)?,
            hash: hash.map(NodeHash),
            publishes: number(PUBLISHES)?,
        })
    }

    /// Says up to where the index goes.
    pub fn set_coverage(&mut self, coverage: &Coverage) -> Result<(), IndexError> {
        let munros = coverage.munros.to_be_bytes();
        let publishes = coverage.publishes.to_be_bytes();
        let hash = coverage.hash.map_or([0; 32], |hash| hash.0);
        let values = [(MUNROS, &munros[..]), (PUBLISHES, &publishes[..]), (HASH, &hash[..])];
        for (key, value) in values {
            if let Err(error) = self.state.insert(key, value) {
                return Err(store_error(self.path, error.into()));
            }
        }
        Ok(())
    }
}
