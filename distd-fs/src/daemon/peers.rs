//! The peers of the node, and how much of what is wanted each of them has.

use std::sync::Arc;

use distd_core::limits::BLOCK_BYTES;
use distd_core::node::{Swarm, SwarmPeers};
use distd_core::unit::BlockRange;
use serde_json::{Value, json};

use crate::control::Answer;
use crate::exit::Complaint;
use crate::fs::{blocks_of, merged, shared};

use super::Daemon;
use super::mounted::Mounted;

/// What the node shows or holds of a log.
struct Wanted {
    /// `stable@1.0`.
    releases: Vec<String>,
    /// Empty as long as the metadata is not local.
    ranges: Vec<BlockRange>,
}

impl Daemon {
    /// The peers of each swarm.
    pub fn peers(&self) -> Answer {
        let mounts: Vec<Arc<Mounted>> = self.state().mounts.values().cloned().collect();
        let mut swarms = Vec::new();
        for SwarmPeers { swarm, sources, peers } in self.node.peers()? {
            let wanted = wanted(&swarm, &mounts);
            let wanted_bytes = blocks_of(&wanted.ranges) * BLOCK_BYTES;
            let mut list = Vec::new();
            for (peer, available) in peers {
                let mut value = serde_json::to_value(peer).map_err(Complaint::failure)?;
                if wanted_bytes > 0 {
                    value["has_bytes"] = json!(shared(&wanted.ranges, &available) * BLOCK_BYTES);
                }
                list.push(value);
            }
            swarms.push(json!({
                "origin": swarm.origin().to_string(),
                "releases": wanted.releases,
                "wanted_bytes": (wanted_bytes > 0).then_some(wanted_bytes),
                "sources": sources,
                "peers": list,
            }));
        }
        Ok(json!({ "swarms": swarms }))
    }
}

/// What is mounted of a log, and what a relay holds of it.
fn wanted(swarm: &Swarm, mounts: &[Arc<Mounted>]) -> Wanted {
    let (mut releases, mut ranges) = (Vec::new(), Vec::new());
    for mounted in mounts.iter().filter(|mounted| mounted.swarm.origin() == swarm.origin()) {
        let view = mounted.view();
        let label = format!("{}@{}", view.release.track, view.release.version);
        if !releases.contains(&label) {
            releases.push(label);
            ranges.extend(mounted.ranges(&view).into_iter().flatten());
        }
    }
    for (name, pinned) in swarm.cached().pins() {
        if let Some(name) = name.strip_prefix(crate::relay::PIN_PREFIX) {
            releases.push(name.to_owned());
            ranges.extend(pinned);
        }
    }
    Wanted { releases, ranges: merged(ranges) }
}

/// Bytes by source, of all swarms together.
pub(super) fn sources<'a>(
    swarms: impl Iterator<Item = &'a distd_core::node::SwarmStatus>,
) -> Value {
    let mut sum = distd_core::node::SourceStatus::default();
    for swarm in swarms {
        sum.origin_bytes += swarm.sources.origin_bytes;
        sum.relay_bytes += swarm.sources.relay_bytes;
        sum.lan_bytes += swarm.sources.lan_bytes;
        sum.other_bytes += swarm.sources.other_bytes;
        sum.cache_bytes += swarm.sources.cache_bytes;
    }
    json!(sum)
}
