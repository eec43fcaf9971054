//! The metainfo file `NAME.distd`: what a .torrent is to BitTorrent.
//!
//! ```text
//! "distdMI1" | msgpack record | blake3 of all before it (32 bytes)
//! ```
//!
//! The hash finds damage, not malice: what makes a swarm trustworthy is the origin's id in the file.

use serde::{Deserialize, Serialize};

use crate::head::check_label;
use crate::keys::OriginId;
use crate::limits::{CHUNK_BYTES, METAINFO_BYTES_MAX, MUNRO_BYTES};

use super::PeerAddress;
use super::node::{decode, encode};
use super::source::parse_addresses;

const MAGIC: &[u8; 8] = b"distdMI1";
const HASH_BYTES: usize = 32;
/// The value of option 4 for BLAKE3's tree (private; RFC 7574 assigns 0 to 4).
const HASH_FUNCTION_BLAKE3: u8 = 0xb3;
const ADDRESSING_CHUNK64: u8 = 4;

/// What a node must know to join an origin's swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metainfo {
    /// Whose log.
    pub origin: OriginId,
    /// Where to find peers.
    pub addresses: Vec<PeerAddress>,
    /// The track that a mount of the file shows.
    pub track: String,
}

#[derive(Serialize, Deserialize)]
struct WireMetainfo {
    origin: OriginId,
    addresses: Vec<String>,
    track: String,
    chunk_bytes: u64,
    munro_bytes: u64,
    hash_function: u8,
    addressing: u8,
}

/// Why bytes are no metainfo file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MetainfoError {
    /// Not such a file at all.
    #[error("not a metainfo file: expected one made by 'distd-origin metainfo'")]
    NotMetainfo,
    /// Cut short or altered.
    #[error("the metainfo file is damaged: its checksum does not match; fetch it again")]
    Damaged,
    /// Whole, but made by something else.
    #[error("the metainfo file holds no valid {what}; make it again with 'distd-origin metainfo'")]
    Invalid {
        /// Which part.
        what: &'static str,
    },
    /// For a swarm with other parameters.
    #[error("the metainfo file describes a swarm of another format; a newer distd may know it")]
    Parameters,
}

impl Metainfo {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(encode(&WireMetainfo {
            origin: self.origin,
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            track: self.track.clone(),
            chunk_bytes: CHUNK_BYTES,
            munro_bytes: MUNRO_BYTES,
            hash_function: HASH_FUNCTION_BLAKE3,
            addressing: ADDRESSING_CHUNK64,
        }));
        bytes.extend(blake3::hash(&bytes).as_bytes());
        bytes
    }

    /// Decodes a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetainfoError> {
        if !bytes.starts_with(MAGIC) {
            return Err(MetainfoError::NotMetainfo);
        }
        let (content, hash) =
            bytes.split_last_chunk::<HASH_BYTES>().ok_or(MetainfoError::Damaged)?;
        if bytes.len() as u64 > METAINFO_BYTES_MAX || blake3::hash(content) != *hash {
            return Err(MetainfoError::Damaged);
        }
        let record = content.strip_prefix(MAGIC).ok_or(MetainfoError::Damaged)?;
        let invalid = |what| MetainfoError::Invalid { what };
        let wire: WireMetainfo = decode("metainfo", record).map_err(|_| invalid("record"))?;
        let parameters = (wire.chunk_bytes, wire.munro_bytes, wire.hash_function, wire.addressing);
        if parameters != (CHUNK_BYTES, MUNRO_BYTES, HASH_FUNCTION_BLAKE3, ADDRESSING_CHUNK64) {
            return Err(MetainfoError::Parameters);
        }
        check_label(&wire.track).map_err(|_| invalid("track"))?;
        let addresses = parse_addresses(wire.addresses.iter().map(String::as_str))
            .map_err(|_| invalid("address"))?;
        if addresses.is_empty() {
            return Err(invalid("address"));
        }
        Ok(Self { origin: wire.origin, addresses, track: wire.track })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metainfo() -> Metainfo {
        let address = |text: &str| text.parse().expect("well-formed");
        let addresses = vec![address("origin.example:7574"), address("[::1]:9")];
        Metainfo { origin: OriginId([3; 32]), addresses, track: "stable".into() }
    }

    #[test]
    fn a_file_decodes_to_what_was_encoded() {
        assert_eq!(Metainfo::decode(&metainfo().encode()), Ok(metainfo()));
    }

    #[test]
    fn a_file_cut_or_altered_anywhere_is_refused() {
        let bytes = metainfo().encode();
        for at in 0..bytes.len() {
            assert!(Metainfo::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(Metainfo::decode(&altered).is_err(), "altered at {at}");
        }
    }
}
