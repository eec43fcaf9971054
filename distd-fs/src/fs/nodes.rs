//! Decoded metadata nodes: an LRU bounded by bytes, and the requests for what is not in it.
//!
//! A node that the cache on disk holds is read and decoded on the spot. For one that it lacks, the
//! callers' continuations wait together for one request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use distd_core::manifest::{DirectoryNode, ExtentList, NodeError};
use distd_core::node::cut;
use distd_core::unit::ByteRange;
use lru::LruCache;

use crate::blocks::{Blocks, Purpose, Unavailable};
use crate::errno::Failure;

use super::extent_map::ExtentMap;

/// Decoded nodes kept, in bytes (an estimate of what they take in memory).
const DECODED_BYTES_MAX: usize = 64 << 20;
/// An entry in memory, in bytes, names and attributes left out.
const ENTRY_BYTES: usize = 320;
/// Encoded nodes above this are decoded on a thread of their own: the thread that delivers them is
/// the node's, and it has other readers.
const INLINE_DECODE_BYTES_MAX: u64 = 256 << 10;

/// What bytes are to be decoded as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A directory node.
    Directory,
    /// The extent list of a file.
    Extents {
        /// Length of the file, in bytes.
        size: u64,
    },
}

/// A decoded node.
#[derive(Clone, Debug)]
pub enum Decoded {
    /// A directory.
    Directory(Arc<DirectoryNode>),
    /// A file's extents.
    Extents(Arc<ExtentMap>),
}

/// Why a node is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Its blocks.
    #[error("metadata at byte {} of the log ({} bytes): {source}", .range.offset, .range.len)]
    Unavailable {
        /// Which node.
        range: ByteRange,
        /// Why.
        source: Unavailable,
    },
    /// Dropped unanswered: the node is leaving.
    #[error("metadata at byte {} of the log: the node is leaving", .range.offset)]
    Dropped {
        /// Which node.
        range: ByteRange,
    },
    /// Its form.
    #[error("metadata at byte {} of the log: {source}", .range.offset)]
    Damaged {
        /// Which node.
        range: ByteRange,
        /// Why.
        source: NodeError,
    },
}

impl FetchError {
    /// What the file operation fails with.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Unavailable { .. } => Failure::Unavailable,
            Self::Damaged { .. } => Failure::Damaged,
            Self::Dropped { .. } => Failure::Interrupted,
        }
    }
}

/// The outcome, shared by all that wait for it.
pub type Outcome = Result<Decoded, Arc<FetchError>>;
type Waiter = Box<dyn FnOnce(Outcome) + Send>;

/// A node in a form: a hostile origin may name the same bytes as two things.
type Key = (ByteRange, bool, u64);

struct Inner {
    decoded: LruCache<Key, (Decoded, usize)>,
    bytes: usize,
    waiting: HashMap<Key, Vec<Waiter>>,
}

/// Sees to it that waiters hear something even where the request is dropped or decoding panics.
struct Promise<B: Blocks> {
    nodes: Arc<Nodes<B>>,
    key: Key,
}

impl<B: Blocks> Drop for Promise<B> {
    fn drop(&mut self) {
        let dropped = FetchError::Dropped { range: self.key.0 };
        self.nodes.settle(self.key, &Err(Arc::new(dropped)));
    }
}

/// The decoded nodes of one log.
pub struct Nodes<B> {
    blocks: Arc<B>,
    inner: Mutex<Inner>,
}

impl<B: Blocks> Nodes<B> {
    /// An empty cache before `blocks`.
    pub fn new(blocks: Arc<B>) -> Self {
        let inner = Inner { decoded: LruCache::unbounded(), bytes: 0, waiting: HashMap::new() };
        Self { blocks, inner: Mutex::new(inner) }
    }

    /// The node if it is decoded already.
    pub fn peek(&self, range: ByteRange, form: Form) -> Option<Decoded> {
        self.inner().decoded.get(&key(range, form)).map(|(decoded, _)| decoded.clone())
    }

    /// Hands the node to `then`: at once if it is local, else when it arrives.
    pub fn fetch(
        self: &Arc<Self>,
        range: ByteRange,
        form: Form,
        deadline: Instant,
        then: impl FnOnce(Outcome) + Send + 'static,
    ) {
        if let Some(decoded) = self.peek(range, form) {
            return then(Ok(decoded));
        }
        let mut buffer = vec![0; range.blocks().byte_len() as usize];
        match self.blocks.read_now(range.blocks(), &mut buffer) {
            Ok(true) => return then(self.decode(range, form, &buffer.into())),
            Ok(false) => drop(buffer),
            Err(source) => {
                return then(Err(Arc::new(FetchError::Unavailable { range, source })));
            }
        }
        let key = key(range, form);
        {
            let mut inner = self.inner();
            let waiters = inner.waiting.entry(key).or_default();
            waiters.push(Box::new(then));
            if waiters.len() > 1 {
                return;
            }
        }
        let promise = Promise { nodes: Arc::clone(self), key };
        let done = move |result: Result<Bytes, Unavailable>| match result {
            Ok(bytes) if range.len > INLINE_DECODE_BYTES_MAX => {
                std::thread::spawn(move || {
                    let outcome = promise.nodes.decode(range, form, &bytes);
                    promise.nodes.settle(key, &outcome);
                });
            }
            Ok(bytes) => {
                let outcome = promise.nodes.decode(range, form, &bytes);
                promise.nodes.settle(key, &outcome);
            }
            Err(source) => {
                let error = FetchError::Unavailable { range, source };
                promise.nodes.settle(key, &Err(Arc::new(error)));
            }
        };
        self.blocks.read(range.blocks(), Purpose::Metadata, deadline, Box::new(done));
    }

    fn decode(&self, range: ByteRange, form: Form, blocks: &Bytes) -> Outcome {
        let bytes = &cut(blocks, range);
        let decoded = match form {
            Form::Directory => {
                DirectoryNode::decode(bytes).map(|node| Decoded::Directory(Arc::new(node)))
            }
            Form::Extents { size } => ExtentList::decode(bytes, size)
                .map(|extents| Decoded::Extents(Arc::new(ExtentMap::new(&extents)))),
        };
        match decoded {
            Ok(decoded) => {
                self.keep(key(range, form), &decoded);
                Ok(decoded)
            }
            Err(source) => Err(Arc::new(FetchError::Damaged { range, source })),
        }
    }

    fn keep(&self, key: Key, decoded: &Decoded) {
        let cost = match decoded {
            Decoded::Directory(node) => node.entries().len() * ENTRY_BYTES + key.0.len as usize,
            Decoded::Extents(map) => map.len() * 32 + 64,
        };
        let mut inner = self.inner();
        inner.bytes += cost;
        if let Some((_, old)) = inner.decoded.put(key, (decoded.clone(), cost)) {
            inner.bytes -= old;
        }
        // The newest stays even where it alone is above the bound: it is about to be used.
        while inner.bytes > DECODED_BYTES_MAX && inner.decoded.len() > 1 {
            if let Some((_, (_, cost))) = inner.decoded.pop_lru() {
                inner.bytes -= cost;
            }
        }
    }

    fn settle(&self, key: Key, outcome: &Outcome) {
        let waiters = self.inner().waiting.remove(&key).unwrap_or_default();
        for waiter in waiters {
            waiter(outcome.clone());
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(range: ByteRange, form: Form) -> Key {
    match form {
        Form::Directory => (range, false, 0),
        Form::Extents { size } => (range, true, size),
    }
}
