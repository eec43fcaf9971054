//! `rollback`: a track stands at an older release again, by a new head that points at old content.

use distd_core::head::{Section, Track};
use distd_core::store::OriginLog;
use serde::Serialize;

use crate::behind;
use crate::history::{History, HistoryError};
use crate::repo::{Repo, RepoError};
use crate::seal::{SealError, Statement, seal, signing_time};

/// What a rollback came to.
#[derive(Debug, Serialize)]
pub struct RollbackReport {
    /// Whether the track moved.
    pub changed: bool,
    /// The track.
    pub track: String,
    /// Where it stood.
    pub from: String,
    /// Where it stands.
    pub to: String,
    /// Length of the log, in munros.
    pub munros: u64,
    /// Whether a running server has told the swarm; `None` if none runs.
    pub announced: Option<bool>,
}

/// Why a track was not moved.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// No such track or release, or the log.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The commit.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
}

/// Moves `track` to its release `version`.
pub fn rollback(repo: &Repo, track: &str, version: &str) -> Result<RollbackReport, RollbackError> {
    repo.key()?;
    let appender = OriginLog::append(&repo.log_dir()).map_err(SealError::from)?;
    behind::check(repo, appender.log())?;
    let history = History::read(appender.log())?;
    let Some(head) = history.head.as_ref().map(|placed| &placed.head) else {
        return Err(history.no_such_track(track).into());
    };
    let from = head.track(track).ok_or_else(|| history.no_such_track(track))?.version.clone();
    let wanted = format!("{track}@{version}");
    let item = history.find(&wanted)?;
    let mut report = RollbackReport {
        changed: from != version,
        track: track.to_owned(),
        from,
        to: version.to_owned(),
        munros: head.munros,
        announced: None,
    };
    if report.changed {
        let statement = Statement {
            plain: Section { munro: head.munros, bytes: 0 },
            frames: None,
            epochs: head.epochs,
            time: signing_time(),
            track: Track {
                name: item.track.clone(),
                version: item.version.clone(),
                release: item.release,
            },
            catalog: head.catalog,
        };
        report.munros = seal(appender, repo, &history, statement)?.munros;
    }
    Ok(report)
}
