//! The EROFS metadata image goes into section P, between the files' blocks and the nodes.

use distd_core::limits::{BLOCK_BYTES, IMAGE_BLOCKS_MAX};
use distd_core::manifest::{Entry, ReleaseImage};
use distd_core::unit::BlockRange;
use distd_erofs::{Plan, PlanError};

use crate::image::{DEVICE_BLOCK, LOG, boundary, key};
use crate::index::Tables;
use crate::metadata::Tree;

use super::PublishError;
use super::report::PublishReport;
use super::target::Target;

/// The image of a tree, and whether it is new.
pub(super) struct Image {
    pub(super) place: ReleaseImage,
    pub(super) new: bool,
}

/// Finds the tree's image in the log, or writes it; `None` where EROFS cannot express the tree, and the
/// report says why.
pub(super) fn write(
    tree: &Tree<'_>,
    root: &Entry,
    tables: &Tables<'_>,
    target: &mut Target,
    report: &mut PublishReport,
) -> Result<Option<Image>, PublishError> {
    let plan = match Plan::new(tree, LOG, IMAGE_BLOCKS_MAX) {
        Ok(plan) => plan,
        Err(PlanError::Tree(never)) => match never {},
        Err(unfit) => {
            report.no_image = Some(unfit.to_string());
            return Ok(None);
        }
    };
    let (count, devices) = (plan.blocks(), plan.devices());
    report.image_bytes = count * BLOCK_BYTES;
    let place = |blocks| ReleaseImage { blocks, device_block: DEVICE_BLOCK, devices };
    if let Some(range) = key(root).map(|key| tables.node(&key)).transpose()?.flatten()
        && range.blocks().byte_offset() == range.offset
        && range.len == count * BLOCK_BYTES
    {
        return Ok(Some(Image { place: place(range.blocks()), new: false }));
    }
    pad(target)?;
    let start = target.next_block();
    plan.write(|blocks| target.write(blocks).map(|_| ()))?;
    let blocks = BlockRange::new(start, count);
    assert_eq!(target.next_block(), blocks.end(), "an image is as long as it was planned");
    pad(target)?;
    Ok(Some(Image { place: place(blocks), new: true }))
}

/// Goes on where no frame holds anything of what was before.
fn pad(target: &mut Target) -> Result<(), PublishError> {
    let blocks = boundary(target.next_block()).0 - target.next_block().0;
    target.write(&vec![0; (blocks * BLOCK_BYTES) as usize])?;
    Ok(())
}
