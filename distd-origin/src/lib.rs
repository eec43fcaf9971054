//! The origin's side: a tree of files becomes a release in the log.
//!
//! ```text
//! SRC -> scan -> stat_cache -> content -> dedup -> metadata -> publish -> log (store)
//!                                  \________ index ________/
//! ```

pub mod catch_up;
pub mod content;
pub mod dedup;
pub mod history;
pub mod index;
pub mod metadata;
pub mod publish;
pub mod repo;
pub mod scan;
pub mod seal;
pub mod stat_cache;
