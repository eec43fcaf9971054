//! Making frames: what a run of new blocks has in common with older ones, and the bytes of both kinds
//! of frames.

pub mod anchors;
pub mod delta;
pub mod maker;
pub mod matching;
pub mod older;
