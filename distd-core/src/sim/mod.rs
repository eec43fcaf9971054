//! The simulator: the real engine, many peers, virtual time.
//!
//! ```text
//!  Node: Engine, disk, lines  <---->  Net: the wire, by arrival  <---->  Node ...
//! ```
//!
//! Nothing here is in a program that users run: it is built for tests and for `distd-sim`. One seed
//! gives one sequence of datagrams ([`Net::keep_digest`]).

mod content;
mod net;
mod node;

pub use content::Log;
pub use net::{FINE, Net, Weather};
pub use node::{Line, Node, Nodes, Tamper};
