//! PPSPP (RFC 7574) without I/O. `docs/protocol.md` is the profile and lists every deviation.

pub mod codec;
pub mod engine;
