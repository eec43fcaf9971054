//! How long a member that fetches for others is waited for.

use std::time::{Duration, Instant};

use crate::limits::{CHUNK_BYTES, GRANULE_LAYER};
use crate::ppspp::engine::channel::Channels;
use crate::ppspp::engine::climb::{Asked, Climb, STRETCH_LAYER};
use crate::ppspp::engine::event::Class;

use crate::ppspp::engine::limits::{
    HOLD_BACKGROUND, HOLD_BACKGROUND_MAX, HOLD_WAITED, LOOK_AHEAD_STRETCHES,
    PATIENCE_BACKGROUND_MAX, PATIENCE_BACKGROUND_MIN, PATIENCE_WAITED_MAX, PATIENCE_WAITED_MIN,
};

use super::Turns;

/// Granules that the owner may take the time of before it lets others wait in vain.
const PATIENCE_GRANULES: f64 = 16.0;
/// The same before anything has come from above.
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(1);

impl Turns {
    /// Until when whoever was asked may take; `None` if it is gone.
    pub(super) fn patience_until(
        &self,
        now: Instant,
        climb: &Climb,
        asked: Asked,
        class: Class,
        channels: &Channels,
    ) -> Option<Instant> {
        let channel = channels.get(asked.index)?;
        let source = &channel.source;
        let gone =
            if asked.is_above() { channel.is_out_of_reach(now, class) } else { source.is_silent() };
        if source.is_idle(asked.at, class) || gone {
            return None;
        }
        let hold = self.hold(class, channels);
        let until = source.progress_at().max(asked.at) + self.patience(asked, class, channels);
        Some(until.min(climb.since + hold))
    }

    /// How long others' fetches are waited for at the most, whatever progress they make. An owner
    /// works off its share in order: what is far ahead comes late on a thin line.
    pub(super) fn hold(&self, class: Class, channels: &Channels) -> Duration {
        if class == Class::Waited {
            return HOLD_WAITED;
        }
        let ahead = (LOOK_AHEAD_STRETCHES as u64 * (CHUNK_BYTES << STRETCH_LAYER)) as f64;
        let share = ahead / self.circle.seats().max(1) as f64;
        let rate = self.rate_above(channels);
        if rate < 1.0 {
            return HOLD_BACKGROUND;
        }
        let seconds = (2.0 * share / rate).min(3600.0);
        Duration::from_secs_f64(seconds).clamp(HOLD_BACKGROUND, HOLD_BACKGROUND_MAX)
    }

    /// Bytes a second that come from above at best.
    pub(super) fn rate_above(&self, channels: &Channels) -> f64 {
        let members = self.tiers.iter().flat_map(|(_, members)| members);
        let rates = members.filter_map(|(_, index)| Some(channels.get(*index)?.source.rate()));
        rates.sum()
    }

    /// How long whoever fetches for others may be without progress. Scaled by what comes from above:
    /// who shares a thin line with us is as slow as we are.
    pub(super) fn patience(&self, asked: Asked, class: Class, channels: &Channels) -> Duration {
        if asked.is_above() {
            return match class {
                Class::Waited => PATIENCE_WAITED_MAX,
                Class::Background => PATIENCE_BACKGROUND_MAX,
            };
        }
        if class == Class::Waited {
            let members = self.tiers.iter().flat_map(|(_, members)| members);
            let above = members.filter_map(|(_, index)| channels.get(*index));
            let expected = above.map(|channel| channel.source.expected(class, &channel.rtt));
            let expected = expected.min().unwrap_or_default() * 4;
            return expected.clamp(PATIENCE_WAITED_MIN, PATIENCE_WAITED_MAX);
        }
        let rate = self.rate_above(channels);
        let hops = u32::from(asked.hops);
        if rate < 1.0 {
            return PATIENCE_UNKNOWN * hops;
        }
        let granules = PATIENCE_GRANULES * (CHUNK_BYTES << GRANULE_LAYER) as f64;
        Duration::from_secs_f64((granules / rate).min(60.0))
            .clamp(PATIENCE_BACKGROUND_MIN, PATIENCE_BACKGROUND_MAX)
            * hops
    }
}
