//! BLAKE3's own tree over the log: what a hash means, and what has been proved.
//!
//! ```text
//!              peaks of 6 munros        root = blake3::hash(log)
//!                ____7___                 = the peaks folded from the right
//!               /        \
//!              3         11        13   layer 1 (counted in munros here)
//!             / \       /  \      /  \
//!            0   2     4    6    8   10     munros: signed, layer 10 of the chunk tree
//!           /|\
//!        256 blocks: the smallest runs that are verified and answered
//! ```
//!
//! `hash` is the only place that uses [`blake3::hazmat`]. A [`VerifiedRun`] is made only by
//! [`MunroTree::prove`], a [`VerifiedMunro`] only by a valid signature: a store that takes
//! nothing else cannot be poisoned.

mod frontier;
mod hash;
pub mod merkle;
mod munro;
mod signed;

pub use frontier::{ConsistencyError, Frontier, prove_consistency};
pub use hash::{BlockHash, NodeHash};
pub use munro::{HashedRun, MunroTree, StoredRun, VerifiedRun, VerifyError};
pub use signed::{SignatureError, SignedMunro, VerifiedMunro};
