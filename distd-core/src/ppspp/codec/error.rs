//! Why bytes are no datagram, and why a message cannot be written.

use crate::unit::ChunkRange;

use super::Addressing;

/// A received datagram that is dropped whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid datagram: at byte {offset}: {fault}")]
pub struct DecodeError {
    /// Where the offending message begins, in bytes from the start of the datagram.
    pub offset: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The datagram ends inside the message.
    #[error("cut short: {needed} bytes expected, {found} left")]
    Truncated {
        /// Bytes that the field takes.
        needed: usize,
        /// Bytes left.
        found: usize,
    },
    /// No message has this type; it cannot be skipped, as no length is sent.
    #[error("message type {0} is not known")]
    UnknownMessage(u8),
    /// RFC 7574 3.1: a HANDSHAKE is the first message of its datagram.
    #[error("a HANDSHAKE that is not the first message")]
    HandshakeNotFirst,
    /// Channel 0 takes nothing but handshakes.
    #[error("channel 0 without a HANDSHAKE")]
    HandshakeMissing,
    /// A range whose first chunk or byte lies behind its last.
    #[error("the range {first}..={last} is empty")]
    EmptyRange {
        /// First chunk or byte.
        first: u64,
        /// Last chunk or byte.
        last: u64,
    },
    /// The bin that stands for no chunk at all.
    #[error("the empty bin")]
    EmptyBin,
    /// Chunks that no log can have (above 2^50).
    #[error("{0} lies beyond the longest log")]
    BeyondLog(u64),
    /// A byte range that does not consist of whole chunks of a fixed size.
    #[error("the byte range {first}..={last} is not of whole chunks")]
    UnalignedBytes {
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
    },
    /// A hash or signature for chunks that are not the leaves of one node.
    #[error("{count} chunks from {first} are no node of the tree")]
    NotANode {
        /// First chunk.
        first: u64,
        /// Number of chunks.
        count: u64,
    },
    /// RFC 7574 8.6: a DATA message carries one chunk.
    #[error("a DATA message of {count} chunks")]
    DataOfSeveralChunks {
        /// Number of chunks.
        count: u64,
    },
    /// A DATA message without a chunk.
    #[error("a DATA message without bytes")]
    DataEmpty,
    /// RFC 7574 8.6: the only DATA message of a datagram stands last.
    #[error("the only DATA message is not the last message")]
    DataNotLast,
    /// RFC 7574 8.6: several DATA messages only of whole chunks.
    #[error("a short chunk of {found} bytes among several DATA messages")]
    DataShort {
        /// Bytes of the short chunk.
        found: usize,
    },
    /// A CIRCLE of more members than take turns.
    #[error("a CIRCLE of {count} seats")]
    TooManySeats {
        /// Seats.
        count: usize,
    },
    /// A WANT of a class that is not known.
    #[error("class {0} of a WANT is not known")]
    UnknownClass(u8),
    /// No option has this code; it cannot be skipped, as no length is sent.
    #[error("option {0} is not known")]
    UnknownOption(u8),
    /// RFC 7574 7: options are sorted by code, each at most once.
    #[error("option {found} after option {previous}")]
    OptionOrder {
        /// The option before.
        previous: u8,
        /// The option that must not follow it.
        found: u8,
    },
    /// An option whose value is unassigned, reserved or impossible.
    #[error("option {option} with the value {value}")]
    OptionValue {
        /// Its code.
        option: u8,
        /// Its value, or its length.
        value: u64,
    },
    /// RFC 7574 7.9: the discard window stands behind the chunk addressing that gives its width.
    #[error("a discard window without a chunk addressing method")]
    WindowWithoutAddressing,
    /// RFC 7574 7.2: a handshake that opens a channel names its version first.
    #[error("a HANDSHAKE without a version")]
    VersionMissing,
    /// RFC 7574 8.4: a closing handshake has no option but the version.
    #[error("a closing HANDSHAKE with options")]
    ClosingOptions,
}

/// A message that the swarm's profile cannot express; nothing of it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The range has no form in this addressing, or is empty.
    #[error("chunks {}..{} have no form in {addressing:?} addressing", chunks.start, chunks.end)]
    Range {
        /// The chunks.
        chunks: ChunkRange,
        /// The swarm's addressing.
        addressing: Addressing,
    },
    /// A hash, signature, chunk, certificate or swarm id of the wrong length.
    #[error("{field} of {found} bytes, expected {expected}")]
    Length {
        /// Which field.
        field: &'static str,
        /// Its (largest) length in this profile, in bytes.
        expected: usize,
        /// The length that was given, in bytes.
        found: usize,
    },
    /// The message is one that [`super::decode`] refuses.
    #[error(transparent)]
    Refused(#[from] Fault),
    /// The datagram has no room for the message.
    #[error("a message of {needed} bytes, {left} left in the datagram")]
    Full {
        /// Bytes of the message.
        needed: usize,
        /// Bytes left.
        left: usize,
    },
}
