//! Dishonest, broken and silent peers.
