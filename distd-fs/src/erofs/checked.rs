//! What must hold of a release's image before the kernel is given it.
//!
//! The origin signed its bytes; this catches an origin that published nonsense, and one whose format this
//! node does not know: the kernel's own checks are for images that were made in good faith.

use distd_core::manifest::ReleaseImage;
use distd_erofs::{Image, ReadError};

/// Why an image is not mounted.
#[derive(Debug, thiserror::Error)]
#[error("the release's metadata image is not sound: {0}")]
pub(crate) struct Unsound(#[from] ReadError);

/// Checks an image by its first blocks.
pub(super) fn check(first: &[u8], image: &ReleaseImage) -> Result<(), Unsound> {
    let ReleaseImage { blocks, device_block, devices } = *image;
    Ok(Image::open(first)?.check_metadata(blocks.count, device_block, devices)?)
}
