//! The Merkle hash tree of static content (RFC 7574 §5.1): its root is the content's name.
//!
//! ```text
//!                        7 = root            7 chunks: peaks are 3, 9 and 12 (one for each 1 of 0b111)
//!                 /            \
//!            3*                    11        incomplete: 7, 11, 13; their hashes follow from the peaks
//!          /    \                /    \
//!        1        5            9*      13
//!       / \      / \          / \      / \
//!      0   2    4   6        8  10   12*  E  empty: all zeros, never hashed
//! ```
//!
//! Beside the log's tree: another hash (SHA-1 or SHA-256), and a chunk is verified by itself. Bytes
//! of strangers become a [`VerifiedChunk`] by [`MerkleTree::verify`] and by nothing else. Above
//! [`crate::limits::BRANCH_LAYER`] hashes are kept; those below are made of the bytes when they are needed.

mod branch;
mod content_tree;
mod hash;
mod shape;

pub use branch::BranchHashes;
pub use content_tree::{MerkleTree, UnprovedError, VerifiedChunk, find_shape, verify_last};
pub use hash::{ContentId, ContentIdError, MerkleFunction, MerkleHash};
pub use shape::{BranchIndex, ContentShape};

#[cfg(test)]
mod promises;
