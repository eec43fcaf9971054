//! The node's swarm as the blocks of a file system.

use std::time::Instant;

use distd_core::node::{Purpose, Swarm};
use distd_core::unit::{BlockIndex, BlockRange, MunroIndex};

use crate::blocks::{Blocks, Done, Unavailable, contained};

impl Blocks for Swarm {
    fn read_now(&self, blocks: BlockRange, out: &mut [u8]) -> Result<bool, Unavailable> {
        self.read_now(blocks, out).map_err(|error| Unavailable(error.into()))
    }

    fn read(&self, blocks: BlockRange, purpose: Purpose, deadline: Instant, done: Done) {
        self.read(blocks, purpose, deadline, move |result| {
            // The thread is the node's: a panic in what follows must not end it.
            contained("a read", || done(result.map_err(|error| Unavailable(error.into()))));
        });
    }

    fn prefetch(&self, ranges: Vec<BlockRange>, purpose: Purpose) {
        self.prefetch(ranges, purpose);
    }

    fn held_blocks(&self, blocks: BlockRange) -> u64 {
        self.held_blocks(blocks)
    }

    fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes()
    }

    fn end(&self) -> BlockIndex {
        let munros = self.head_news().trusted.map_or(0, |trusted| trusted.placed.head.munros);
        MunroIndex(munros).blocks().start
    }
}
