//! The node with a mount: a release of an origin's log as a read-only file system.
//!
//! `fuse` and `fs` answer the kernel from the node's blocks; `mount`, `daemon` and `control` run the
//! one node process that a cache has; `cli` is what people type.

pub mod blocks;
pub mod control;
pub mod errno;
pub mod exit;
pub mod fs;
pub mod fuse;
pub mod inode;
pub mod journal;
pub mod mountinfo;
pub mod options;
pub mod size;
