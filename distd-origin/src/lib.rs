//! The origin's side: a tree of files becomes a release in the log.
//!
//! ```text
//! SRC -> scan -> stat_cache -> content -> dedup -> metadata -> publish -> log (store)
//!                                  \________ index ________/
//! ```

pub mod announced;
pub mod behind;
pub mod catch_up;
pub mod cli;
pub mod content;
pub mod cost;
pub mod dedup;
pub mod diff;
pub mod export;
pub mod frames;
pub mod history;
mod image;
pub mod index;
pub mod metadata;
mod partial;
pub mod prune;
pub mod publish;
pub mod repo;
pub mod rollback;
pub mod scan;
pub mod seal;
pub mod serve;
pub mod show;
pub mod stat_cache;
pub mod time;
pub mod verify;
