//! The only room that touches disk: a node's cache and an origin's log, blocking and thread-safe.
//!
//! ```text
//!   Cache ── CachedLog (one per origin)          OriginLog ── Appender (one at a time)
//!      │         │  presence, eviction               │  commit file
//!      │         └────────────┬──────────────────────┘
//!      │                    nodes      a munro's signature and tree: every read is checked here
//!      │                   segment     one sparse file per GiB of the log, `docs/format.md`
//!      └──────────────────directory    O_NOFOLLOW below a descriptor, locks, state files
//! ```
//!
//! What lies on the disk is a claim. It becomes a [`crate::tree::VerifiedRun`] or bytes for a reader
//! only by folding to a munro whose signature was checked, on every read.

mod appender;
mod cache;
#[cfg(test)]
mod cache_promises;
mod cached_log;
mod content_file;
mod directory;
mod eviction;
#[cfg(test)]
mod fixture;
mod flush;
mod framed;
mod gone;
mod intake;
mod log;
#[cfg(test)]
mod log_promises;
mod nodes;
#[cfg(test)]
mod power_cut;
mod presence;
mod recent;
mod scrub;
mod segment;
mod state_file;

pub use appender::{AppendError, Appender, Sealing};
pub use cache::{Cache, CacheOptions, Usage};
pub use cached_log::{CachedLog, Drops};
pub use content_file::{ContentFile, ContentFileError, PartFile, create_empty};
pub use directory::{DiskError, OpenError};
pub use intake::PutError;
pub use log::{Commit, OriginLog, ReadError};
pub use scrub::Damage;
pub use state_file::StateError;
