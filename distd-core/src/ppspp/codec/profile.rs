//! What a swarm's options say about the lengths and notations of its messages.

use super::{Addressing, HashFunction, Options};

/// The part of a swarm's metadata that message lengths depend on (RFC 7574 §8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WireProfile {
    /// Notation of chunk ranges (option 6).
    pub addressing: Addressing,
    /// Bytes of a chunk (option 9); [`Self::VARIABLE`] if they differ.
    pub chunk_bytes: u32,
    /// Bytes of a hash in an INTEGRITY message (option 4).
    pub hash_bytes: usize,
    /// Bytes of a signature in a SIGNED_INTEGRITY message (option 5 and the swarm id).
    pub signature_bytes: usize,
}

impl WireProfile {
    /// Value of option 9 for chunks of different sizes (RFC 7574 §7.11).
    pub const VARIABLE: u32 = u32::MAX;

    /// A log's swarm: 64-bit chunk ranges, chunks of 1024 bytes, BLAKE3, Ed25519.
    pub const LIVE: Self = Self {
        addressing: Addressing::Chunk64,
        chunk_bytes: 1024,
        hash_bytes: 32,
        signature_bytes: 64,
    };

    /// The RFC's defaults for static content: 32-bit chunk ranges, 1024 bytes, SHA-256.
    pub const STATIC: Self = Self {
        addressing: Addressing::Chunk32,
        chunk_bytes: 1024,
        hash_bytes: 32,
        signature_bytes: 0,
    };

    /// This profile with all that a handshake's options name: how the messages that follow the
    /// HANDSHAKE in its datagram are read, before anything else is known of the swarm.
    #[must_use]
    pub fn naming(self, options: &Options<'_>) -> Self {
        Self {
            addressing: options.addressing.unwrap_or(self.addressing),
            chunk_bytes: options.chunk_bytes.unwrap_or(self.chunk_bytes),
            hash_bytes: options.hash_function.map_or(self.hash_bytes, HashFunction::hash_bytes),
            signature_bytes: options
                .signature_algorithm
                .and_then(|algorithm| algorithm.signature_bytes(options.swarm_id))
                .unwrap_or(self.signature_bytes),
        }
    }

    /// Bytes of every chunk but the last; `None` if they differ.
    pub fn fixed_chunk_bytes(&self) -> Option<usize> {
        (self.chunk_bytes != Self::VARIABLE)
            .then(|| usize::try_from(self.chunk_bytes).ok())
            .flatten()
    }
}
