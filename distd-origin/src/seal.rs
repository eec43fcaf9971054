//! The end of an epoch: the new head, and the log's one commit.

use std::time::{SystemTime, UNIX_EPOCH};

use distd_core::head::{Head, HeadError, Previous, Section, Sections, Track};
use distd_core::keys::NtpTime;
use distd_core::limits::{MUNRO_BYTES, TRACKS_MAX};
use distd_core::store::{AppendError, Appender, Commit, ReadError, Sealing};
use distd_core::tree::prove_consistency;
use distd_core::unit::ByteRange;

use crate::history::History;
use crate::repo::{Repo, RepoError};

/// Why an epoch cannot be committed. The old head stands.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The log.
    #[error("{0}; nothing was published, the log is as it was")]
    Append(#[from] AppendError),
    /// The log's older part.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The head does not fit.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The key.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// One track too many.
    #[error(
        "there are {TRACKS_MAX} tracks already, '{track}' would be one too many: publish to one of them"
    )]
    Tracks {
        /// The new one.
        track: String,
    },
}

/// What an epoch says.
pub struct Statement {
    /// Section P.
    pub plain: Section,
    /// Section F, if there is one.
    pub frames: Option<Section>,
    /// The list of epochs with frames.
    pub epochs: ByteRange,
    /// When the munros are signed.
    pub time: NtpTime,
    /// The track that moves, and where to.
    pub track: Track,
    /// The list of releases.
    pub catalog: ByteRange,
}

/// Seals the epoch with a head that says so.
pub fn seal(
    mut appender: Appender,
    repo: &Repo,
    history: &History,
    statement: Statement,
) -> Result<Commit, SealError> {
    let key = repo.key()?;
    let Statement { plain, frames, epochs, time, track, catalog } = statement;
    let tracks = moved(history, &track)?;
    appender.begin_section()?;
    appender.seal(&key, time, |sealing| {
        let last = sealing.munros - 1;
        let previous = previous(history, sealing)?;
        let head = Head {
            munros: sealing.munros,
            sections: Sections {
                plain,
                frames: frames.unwrap_or(Section { munro: last, bytes: 0 }),
                head: Section { munro: last, bytes: MUNRO_BYTES },
            },
            peaks: sealing.frontier.peaks().to_vec(),
            previous,
            tracks,
            catalog,
            epochs,
            validity_s: repo.validity_s(),
            recovery_key: repo.recovery_key(),
        };
        let block = head.encode()?;
        block.try_into().map_err(|block: Vec<u8>| HeadError::TooLarge { found: block.len() }.into())
    })
}

/// What a head says of its predecessor.
fn previous(history: &History, sealing: &Sealing<'_>) -> Result<Option<Previous>, SealError> {
    let Some(placed) = &history.head else { return Ok(None) };
    let (old, new) = (placed.head.munros, sealing.munros - 1);
    let consistency = prove_consistency(old, new, |munro| sealing.munro_hash(munro))?;
    Ok(Some(Previous { munros: old, block: placed.block.0, consistency }))
}

/// Checks that the track can be moved; the track table with it.
pub fn moved(history: &History, track: &Track) -> Result<Vec<Track>, SealError> {
    let mut tracks = history.head.as_ref().map_or(Vec::new(), |placed| placed.head.tracks.clone());
    match tracks.binary_search_by(|known| known.name.cmp(&track.name)) {
        Ok(at) => tracks[at] = track.clone(),
        Err(_) if tracks.len() >= TRACKS_MAX => {
            return Err(SealError::Tracks { track: track.name.clone() });
        }
        Err(at) => tracks.insert(at, track.clone()),
    }
    Ok(tracks)
}

/// The time to sign with.
pub fn signing_time() -> NtpTime {
    let (seconds, nanoseconds) = now();
    NtpTime::from_unix(seconds, nanoseconds)
}

/// Seconds and nanoseconds since the Unix epoch.
pub fn now() -> (u64, u32) {
    // A clock before 1970 counts as 1970: the time is a statement about freshness, not about order.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs(), since.subsec_nanos())
}
