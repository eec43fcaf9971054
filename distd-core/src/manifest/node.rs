//! The one way in and out of msgpack for everything that lies in the log.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::NODE_BYTES_MAX;

/// Why bytes are not the metadata node that they should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    /// Longer than any node may be.
    #[error("a {what} of {found} bytes is longer than the limit of {NODE_BYTES_MAX}")]
    TooLong {
        /// Kind of node.
        what: &'static str,
        /// Its length.
        found: u64,
    },
    /// Not the msgpack of this kind of node.
    #[error("no {what}: the bytes are not its msgpack form")]
    Malformed {
        /// Kind of node.
        what: &'static str,
    },
    /// Right values, wrong encoding: two encodings of one value would have two hashes.
    #[error("no {what}: not in canonical form")]
    NotCanonical {
        /// Kind of node.
        what: &'static str,
    },
    /// A value that breaks a rule of the format.
    #[error("no {what}: {rule} (entry {index})")]
    Invalid {
        /// Kind of node.
        what: &'static str,
        /// The rule broken.
        rule: &'static str,
        /// Which entry, from 0.
        index: usize,
    },
}

/// Encodes a wire form: integers, strings, byte strings and arrays of them, which always encode.
pub(super) fn encode<T: Serialize>(wire: &T) -> Vec<u8> {
    rmp_serde::to_vec(wire).unwrap_or_default()
}

/// Decodes a wire form, canonical encodings only.
pub(super) fn decode<T: Serialize + DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, NodeError> {
    if bytes.len() as u64 > NODE_BYTES_MAX {
        return Err(NodeError::TooLong { what, found: bytes.len() as u64 });
    }
    let wire: T = rmp_serde::from_slice(bytes).map_err(|_| NodeError::Malformed { what })?;
    if encode(&wire) != bytes {
        return Err(NodeError::NotCanonical { what });
    }
    Ok(wire)
}
