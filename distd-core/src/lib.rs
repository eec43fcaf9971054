//! The parts that an origin and a node share: the log and its tree, the formats, the protocol, the
//! store and the node that joins them. `docs/architecture.md` is the floor plan.

pub mod congestion;
pub mod frame;
pub mod head;
pub mod keys;
pub mod limits;
pub mod manifest;
pub mod node;
pub mod ppspp;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod size;
pub mod store;
pub mod tree;
pub mod unit;
