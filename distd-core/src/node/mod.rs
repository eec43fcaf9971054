//! The node: engine, socket, cache and clock joined into one thing that reads the log.
//!
//! ```text
//!   fs threads ── Swarm::read ──> commands ─┐                 ┌─> answers (a thread of its own)
//!                                           v                 │
//!   UDP socket <─────────────────────> EventLoop (one thread, tokio) <──> Hasher (a thread of its own)
//!                        unpack (threads) <─┤ engine decides
//!                                           v
//!                                    Keeper (a thread of its own)
//!                                           │ cache keeps
//!                                           v
//!                                    store::Cache  <── flush (a thread of its own)
//! ```

mod clock;
mod commit_watch;
mod driver;
mod event_loop;
mod follow;
mod hasher;
mod keeper;
mod lan;
mod networks;
mod prefetch;
mod reading;
mod seeds;
mod server;
mod service;
mod socket;
mod static_swarm;
mod status;
mod swarm;
mod unpack;

pub use crate::ppspp::engine::{Audience, Rates};
pub use clock::unix_now_s;
pub use follow::TrustedHead;
pub use reading::{Purpose, ReadError};
pub use seeds::{SeedFiles, Seeds};
pub use server::{OriginServer, ServeOptions, ServerNews};
pub use service::{Node, NodeError, NodeOptions};
pub use static_swarm::{Fetched, GetError, GetOptions, Sought, StaticNode};
pub use status::{NodeStatus, PeerStatus, SourceStatus, SwarmPeers, SwarmStatus};
pub use swarm::{HeadNews, Lent, Swarm, checked_blocks, cut};
pub use unpack::choice::{Account, Choice, Chosen, View, choose};
