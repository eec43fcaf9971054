//! The wire format of PPSPP (RFC 7574 §7 and §8): datagrams to messages and back, for every
//! message, option and chunk addressing of the RFC and the extension messages 14 to 18.
//!
//! ```text
//! datagram = destination channel (4) message*        a keep-alive has no message (RFC 7574 8.14)
//! message  = type (1) body                           no length: the swarm's profile implies it
//! ```
//!
//! [`decode`] checks a whole datagram before it hands out the first message, allocates nothing and
//! never panics. What a message means, and whether it is allowed now, is the engine's business.

// Every byte that is read here comes from a stranger: what may panic or wrap does not compile.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

mod addressing;
mod circle;
mod datagram;
mod error;
mod message;
mod option;
mod profile;
mod reader;

pub use addressing::Addressing;
pub use circle::{SEATS_MAX, Seat, SeatList, Seats};
pub use datagram::{ChannelId, Encoder, LoneData, Messages, decode, destination, lone_data};
pub use error::{DecodeError, EncodeError, Fault};
pub use message::{Message, MessageSet, MessageType, WireClass};
pub use option::{
    DiscardWindow, Handshake, HashFunction, IntegrityMethod, Options, SignatureAlgorithm,
};
pub use profile::WireProfile;

#[cfg(test)]
mod tests;
