//! A swarm in one line.

use crate::swarm::Row;

/// What the columns are.
pub(crate) const HEAD: &str = "layers   nodes  relays  origin: copies  with headers  received by a node  median  slowest  \
                               (x the time of one copy)";

pub(crate) fn line(row: &Row) -> String {
    format!(
        "{:6}  {:6}  {:6}  {:14.3}  {:12.3}  {:18.3}  {:6.2}  {:7.2}",
        row.shape.layers,
        row.shape.nodes,
        row.relays,
        row.copies,
        row.egress,
        row.received,
        row.median,
        row.slowest
    )
}

pub(crate) fn json(row: &Row) -> Result<String, String> {
    serde_json::to_string(row).map_err(|error| error.to_string())
}
