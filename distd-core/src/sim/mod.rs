//! The simulator: the real engine, many peers, virtual time.
//!
//! ```text
//!  Node: Engine, disk, lines  <---->  Net: the wire, by arrival  <---->  Node ...
//! ```
//!
//! Every run asserts that nobody sends more to an address that has not proved itself than came from
//! there. Nothing here is in a program that users run: it is built for tests and for `distd-sim`. One seed
//! gives one sequence of datagrams ([`Net::keep_digest`]).

mod amplification;
mod content;
mod net;
mod node;

pub use content::Log;
pub use net::{FINE, Net, Weather};
pub use node::{Line, Node, Nodes, Tamper};
