//! The node's swarm as the blocks of a file system.

use std::time::Instant;

use distd_core::node::{Purpose as NodePurpose, Swarm};
use distd_core::unit::BlockRange;

use crate::blocks::{Blocks, Done, Purpose, Unavailable, contained};

impl From<Purpose> for NodePurpose {
    fn from(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Metadata => Self::Metadata,
            Purpose::Data => Self::Data,
        }
    }
}

impl Blocks for Swarm {
    fn read_now(&self, blocks: BlockRange, out: &mut [u8]) -> Result<bool, Unavailable> {
        self.read_now(blocks, out).map_err(|error| Unavailable(error.into()))
    }

    fn read(&self, blocks: BlockRange, purpose: Purpose, deadline: Instant, done: Done) {
        self.read(blocks, purpose.into(), deadline, move |result| {
            // The thread is the node's: a panic in what follows must not end it.
            contained("a read", || done(result.map_err(|error| Unavailable(error.into()))));
        });
    }

    fn prefetch(&self, ranges: Vec<BlockRange>, purpose: Purpose) {
        self.prefetch(ranges, purpose.into());
    }

    fn held_blocks(&self, blocks: BlockRange) -> u64 {
        self.held_blocks(blocks)
    }
}
