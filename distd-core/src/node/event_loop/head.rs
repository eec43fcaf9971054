//! The log's head: what peers offer, how it is followed, what becomes of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::node::clock::unix_now_s;
use crate::node::follow::{HeadRefused, Step};
use crate::node::reading::{Purpose, Work};
use crate::ppspp::engine::{Class, SwarmKey};
use crate::tree::{SignedMunro, VerifiedMunro};
use crate::unit::BlockRange;

use super::{EventLoop, Joined};

/// How long a head's block may take; the next signed munro starts the walk again.
const HEAD_DEADLINE: Duration = Duration::from_secs(20);
/// A fresh signature of the same head is written to the cache when the kept one is this much older.
const RESAVE_AFTER_S: u64 = 600;

impl EventLoop {
    pub(super) fn on_newest(&mut self, now: Instant, key: SwarmKey, munro: VerifiedMunro) {
        let Some(joined) = self.swarms.get_mut(&key).filter(|joined| !joined.forked) else {
            return;
        };
        let step = joined.follower.offer(munro, unix_now_s());
        self.on_step(now, key, step);
    }

    pub(super) fn on_step(&mut self, now: Instant, key: SwarmKey, step: Step) {
        let Some(joined) = self.swarms.get_mut(&key) else { return };
        match step {
            Step::Rest => {}
            Step::Trusted => joined.trust(),
            Step::Refused(refused) => joined.refuse(&refused),
            Step::Fetch(block) => {
                match joined.shared.log.read_run(block.bin()) {
                    Ok(Some(run)) => {
                        let step = joined.follower.on_run(&run);
                        return self.on_step(now, key, step);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "the cache cannot be read"),
                }
                let blocks = BlockRange::new(block, 1);
                let deadline = now + HEAD_DEADLINE;
                let fetch = self.driver.engine.fetch(now, key, blocks, Class::Waited, deadline);
                let fetch = Work::Fetch(fetch);
                joined.head_fetch = Some(fetch);
                joined.reading.fetch_started(fetch, blocks, Purpose::Metadata, None);
            }
        }
    }

    pub(super) fn on_fork(
        &mut self,
        key: SwarmKey,
        known: &SignedMunro,
        claimed: &SignedMunro,
        from: SocketAddr,
    ) {
        let Some(joined) = self.swarms.get_mut(&key) else { return };
        let munro = known.munro;
        tracing::error!(
            origin = %joined.shared.origin, %munro, %from,
            "FORK: the origin's key signed two contents for one munro; no new head is accepted, the \
             evidence is kept in the cache; ask the origin's administrator"
        );
        joined.forked = true;
        joined.shared.save_fork(known, claimed);
        joined.shared.tell_fork(munro);
    }
}

impl Joined {
    fn trust(&mut self) {
        let Some(trusted) = self.follower.trusted().cloned() else { return };
        // Every new head is kept; a fresh signature of the same one only from time to time.
        let position = trusted.munro.munro();
        let signed_s = trusted.munro.time().unix_seconds();
        let due =
            self.saved.is_none_or(|(munro, s)| munro != position || s + RESAVE_AFTER_S <= signed_s);
        if due {
            self.saved = Some((position, signed_s));
            self.shared.save_head(&trusted);
        }
        self.shared.update_news(|news| {
            news.trusted = Some(trusted);
            news.heard = true;
            news.problem = None;
        });
    }

    fn refuse(&mut self, refused: &HeadRefused) {
        let problem = refused.to_string();
        tracing::warn!(origin = %self.shared.origin, %problem, "an offered head is refused");
        self.shared.update_news(|news| {
            news.heard = true;
            news.problem = Some(problem);
        });
    }
}
