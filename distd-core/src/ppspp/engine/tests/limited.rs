//! Limits of bytes a second.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::ppspp::engine::limits::BURST_BYTES_MIN;
use crate::ppspp::engine::{Class, Rates};
use crate::sim::{FINE, Log, Net};
use crate::unit::BlockRange;

const RATE: NonZeroU64 = NonZeroU64::new(1 << 20).expect("positive");
const UPLOAD: Rates = Rates { upload: Some(RATE), download: None };
const DOWNLOAD: Rates = Rates { upload: None, download: Some(RATE) };

/// An origin and so many nodes of it that want all of its log.
fn fetching(nodes: usize, limit: impl Fn(&mut Net, usize, &[usize])) -> (Net, Vec<Duration>) {
    let log = Log::new(2);
    let mut net = Net::new(7, FINE);
    let origin = net.add_origin(&log);
    let nodes: Vec<usize> = (0..nodes).map(|_| net.add(&log, None)).collect();
    limit(&mut net, origin, &nodes);
    for node in &nodes {
        net.connect(*node, origin);
    }
    net.run_for(Duration::from_millis(200));
    let begin = net.now;
    let fetches: Vec<_> = nodes
        .iter()
        .map(|node| net.nodes[*node].fetch(net.now, log.blocks(), Class::Background))
        .collect();
    let ends = nodes.iter().zip(fetches).map(|(node, fetch)| {
        net.run_until_fetched(*node, fetch);
        net.now - begin
    });
    let ends = ends.collect();
    (net, ends)
}

/// The time that so many bytes take at the limit.
fn at_limit(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes.saturating_sub(BURST_BYTES_MIN) as f64 / RATE.get() as f64)
}

#[test]
fn an_upload_limit_is_kept_used_and_shared() {
    let bytes = Log::new(2).blocks().byte_len();
    let (_, free) = fetching(2, |_, _, _| {});
    assert!(free[1] < at_limit(bytes) / 2, "a limit would not be felt: {free:?}");
    let (_, ends) = fetching(2, |net, origin, _| {
        net.nodes[origin].engine.set_rates(net.now, UPLOAD);
    });
    let whole = at_limit(2 * bytes);
    let last = *ends.iter().max().expect("two");
    // Datagrams have headers, which count.
    assert!(last > whole && last < whole.mul_f64(1.1), "{last:?} of {whole:?}");
}

#[test]
fn a_download_limit_is_kept_and_used() {
    let bytes = Log::new(2).blocks().byte_len();
    let (_, ends) = fetching(1, |net, _, nodes| {
        net.nodes[nodes[0]].engine.set_rates(net.now, DOWNLOAD);
    });
    let whole = at_limit(bytes);
    assert!(ends[0] > whole && ends[0] < whole.mul_f64(1.1), "{ends:?} of {whole:?}");
}

#[test]
fn a_reader_goes_first_within_the_limit() {
    let log = Log::new(2);
    for rates in [UPLOAD, DOWNLOAD] {
        let mut net = Net::new(8, FINE);
        let (origin, node) = (net.add_origin(&log), net.add(&log, None));
        let limited = if rates.upload.is_some() { origin } else { node };
        net.nodes[limited].engine.set_rates(net.now, rates);
        net.connect(node, origin);
        net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
        net.run_for(Duration::from_millis(700));
        let wanted = BlockRange::new(crate::unit::BlockIndex(log.blocks().end().0 - 4), 4);
        let fetch = net.nodes[node].fetch(net.now, wanted, Class::Waited);
        let begin = net.now;
        net.run_until_fetched(node, fetch);
        let waited = net.now - begin;
        assert!(waited < Duration::from_millis(150), "{rates:?}: {waited:?}");
    }
}
