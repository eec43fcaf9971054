//! The origin's side: a tree of files becomes a release in the log.
//!
//! ```text
//! SRC -> scan -> stat_cache -> content -> dedup -> metadata -> publish -> log (store)
//!                                  \________ index ________/
//! ```

pub mod content;
pub mod dedup;
pub mod index;
pub mod metadata;
pub mod scan;
pub mod stat_cache;
