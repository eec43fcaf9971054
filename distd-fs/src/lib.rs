//! The node with a mount: a release of an origin's log as a read-only file system.
//!
//! `fuse` and `fs` answer the kernel from the node's blocks; `mount`, `daemon`, `launch` and `control`
//! run the one node process that a cache has; `cli` and `helper` are what people and mount(8) call.

pub mod blocks;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod doctor;
mod erofs;
pub mod errno;
pub mod exit;
pub mod fs;
pub mod fuse;
mod helper;
pub mod inode;
pub mod journal;
pub mod launch;
pub mod mount;
pub mod mountinfo;
pub mod options;
mod peers;
mod progress;
pub mod relay;
mod report;
mod static_swarm;
mod swarm;
pub mod target;
