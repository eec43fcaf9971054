//! Keys and signatures: Ed25519 (DNSSEC algorithm 15, RFC 8080), verified strictly.
//!
//! No I/O: key files are read and written by the origin's repository.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// DNSSEC algorithm number of Ed25519, the first byte of a live swarm's id (RFC 7574 §6.1).
pub const ED25519_ALGORITHM: u8 = 15;

/// Seconds from the NTP epoch (1900) to the Unix epoch.
const NTP_UNIX_OFFSET_S: u64 = 2_208_988_800;
/// First second of the NTP era pivot: 32-bit second counts below it belong to the era after 2036.
/// Signatures are made after 2020, so that a count that would lie before is one of the next era.
const NTP_PIVOT_S: u64 = NTP_UNIX_OFFSET_S + 1_577_836_800;

/// An origin's public key: the name of its log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OriginId(#[serde(with = "serde_bytes")] pub [u8; 32]);

/// Why text or bytes are no origin id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OriginIdError {
    /// Not 64 hexadecimal digits.
    #[error("an origin id has 64 hexadecimal digits, found {found} characters or other digits")]
    NotHex {
        /// Characters found.
        found: usize,
    },
}

impl OriginId {
    /// Checks `signature` over `message` strictly: small-order keys and malleable or non-canonical
    /// signatures are refused.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }

    /// The swarm id of the origin's log.
    pub fn swarm_id(&self) -> SwarmId {
        let mut id = [ED25519_ALGORITHM; 33];
        id[1..].copy_from_slice(&self.0);
        SwarmId(id)
    }
}

impl fmt::Display for OriginId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for OriginId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OriginId({self})")
    }
}

impl FromStr for OriginId {
    type Err = OriginIdError;

    fn from_str(text: &str) -> Result<Self, OriginIdError> {
        parse_hex(text).map(Self).ok_or(OriginIdError::NotHex { found: text.chars().count() })
    }
}

/// A live swarm's id (RFC 7574 §6.1): the algorithm number and the 32-byte public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwarmId(pub [u8; 33]);

impl SwarmId {
    /// The origin whose log the swarm distributes; `None` for another algorithm.
    pub fn origin(&self) -> Option<OriginId> {
        let (algorithm, key) = self.0.split_first()?;
        (*algorithm == ED25519_ALGORITHM).then(|| key.try_into().map(OriginId).ok()).flatten()
    }
}

impl fmt::Debug for SwarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmId(")?;
        write_hex(f, &self.0)?;
        f.write_str(")")
    }
}

/// An Ed25519 signing key: the origin's, or its offline recovery key. Wiped when dropped, never
/// printed.
pub struct OriginKey(SigningKey);

impl OriginKey {
    /// The key with this seed (32 bytes from a cryptographic source).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }
    /// The seed, for the key file.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }
    /// The public half.
    pub fn id(&self) -> OriginId {
        OriginId(self.0.verifying_key().to_bytes())
    }
    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for OriginKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<key>")
    }
}

/// An NTP timestamp, 32.32 fixed point, UTC at the injector (RFC 7574 §8.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NtpTime(pub u64);

impl NtpTime {
    /// From seconds and nanoseconds since the Unix epoch.
    pub const fn from_unix(seconds: u64, nanoseconds: u32) -> Self {
        let fraction = ((nanoseconds as u64) << 32) / 1_000_000_000;
        Self(((seconds + NTP_UNIX_OFFSET_S) << 32) | fraction)
    }

    /// Seconds since the Unix epoch. NTP's era wraps in 2036; counts are read as the first time at
    /// or after 2020 that they can mean.
    pub const fn unix_seconds(self) -> u64 {
        let seconds = self.0 >> 32;
        let era = if seconds < NTP_PIVOT_S { seconds + (1 << 32) } else { seconds };
        era - NTP_UNIX_OFFSET_S
    }
}

/// Writes bytes as lower-case hexadecimal.
pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Parses exactly 32 bytes of hexadecimal.
pub(crate) fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> OriginKey {
        OriginKey::from_seed(&[7; 32])
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", key()), "<key>");
    }

    #[test]
    fn every_flipped_bit_breaks_a_signature() {
        let (key, message) = (key(), b"munro".to_vec());
        let signature = key.sign(&message);
        assert!(key.id().verify(&message, &signature));
        for bit in 0..512 {
            let mut forged = signature;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.id().verify(&message, &forged), "bit {bit}");
        }
        for bit in 0..message.len() * 8 {
            let mut forged = message.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.id().verify(&forged, &signature), "bit {bit}");
        }
    }

    #[test]
    fn small_order_keys_verify_nothing() {
        // The neutral element: s = 0, R = identity satisfies the lax equation for every message.
        let mut id = [0; 32];
        id[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!OriginId(id).verify(b"anything", &signature));
    }

    // Shows C44 (RFC 7574 6.1).
    #[test]
    fn an_origin_id_is_64_hex_digits() {
        let id = key().id();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "00", &"g".repeat(64), &"0".repeat(63), &"é".repeat(32)] {
            assert!(bad.parse::<OriginId>().is_err(), "{bad}");
        }
        assert_eq!(id.swarm_id().origin(), Some(id));
    }

    proptest! {
        #[test]
        fn ntp_time_keeps_seconds_across_the_era_of_2036(seconds in 1_577_836_800u64..5_000_000_000) {
            prop_assert_eq!(NtpTime::from_unix(seconds, 999_999_999).unix_seconds(), seconds);
        }
    }
}
