//! Making frames: what a run of new blocks has in common with older ones, and the bytes of both kinds
//! of frames.

pub mod anchors;
pub mod candidates;
pub mod changes;
pub mod delta;
pub mod maker;
pub mod matching;
pub mod older;
pub mod tables;

/// Bytes that nothing compresses, for tests.
#[cfg(test)]
fn noise(salt: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&salt.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
