//! How a command ends: exit codes, and the one error that all commands have.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use distd_core::manifest::ProfileError;
use distd_core::node::NodeError;
use distd_core::store::{AppendError, OpenError, ReadError};

use crate::export::ExportError;
use crate::history::HistoryError;
use crate::prune::PruneError;
use crate::publish::PublishError;
use crate::repo::RepoError;
use crate::rollback::RollbackError;
use crate::seal::SealError;
use crate::serve::ServeError;

/// Exit codes, the same for all of distd's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Success = 0,
    Failure = 1,
    Usage = 2,
    VerificationFailed = 4,
    NoSuchThing = 7,
    Busy = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error(transparent)]
    Repo(#[from] RepoError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Rollback(#[from] RollbackError),
    #[error(transparent)]
    Prune(#[from] PruneError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("cannot read '{}': {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("'{}': {source}", path.display())]
    Profile { path: PathBuf, source: ProfileError },
    #[error("cannot write '{}': {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write to the standard output: {0}")]
    Output(io::Error),
}

impl From<ReadError> for CommandError {
    fn from(error: ReadError) -> Self {
        Self::History(error.into())
    }
}

impl CommandError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Repo(error) => of_repo(error),
            Self::History(error) => of_history(error),
            Self::Publish(error) => of_publish(error),
            Self::Rollback(error) => match error {
                RollbackError::History(error) => of_history(error),
                RollbackError::Seal(error) => of_seal(error),
                RollbackError::Repo(error) => of_repo(error),
            },
            Self::Prune(error) => match error {
                PruneError::History(error) => of_history(error),
                PruneError::Seal(error) => of_seal(error),
                PruneError::Repo(error) => of_repo(error),
                PruneError::Index(_) | PruneError::Free(_) => Exit::Failure,
            },
            Self::Export(error) => match error {
                ExportError::History(error) => of_history(error),
                ExportError::Unfit { .. } | ExportError::Write { .. } => Exit::Failure,
            },
            Self::Serve(error) => match error {
                ServeError::Repo(error) => of_repo(error),
                ServeError::History(error) => of_history(error),
                ServeError::Node(NodeError::Bind { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse =>
                {
                    Exit::Busy
                }
                ServeError::Node(_) | ServeError::Signals(_) => Exit::Failure,
            },
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Exit::NoSuchThing
            }
            Self::Profile { .. } => Exit::Usage,
            Self::Read { .. } | Self::Write { .. } | Self::Output(_) => Exit::Failure,
        }
    }
}

fn of_publish(error: &PublishError) -> Exit {
    match error {
        PublishError::NoSource { .. } => Exit::NoSuchThing,
        PublishError::Label(_) | PublishError::Message { .. } => Exit::Usage,
        PublishError::Append(error) => of_append(error),
        PublishError::History(error) => of_history(error),
        PublishError::Repo(error) => of_repo(error),
        PublishError::Seal(error) => of_seal(error),
        _ => Exit::Failure,
    }
}

fn of_repo(error: &RepoError) -> Exit {
    match error {
        RepoError::NotARepo { .. } => Exit::NoSuchThing,
        RepoError::Busy { .. } => Exit::Busy,
        RepoError::Behind { .. } => Exit::VerificationFailed,
        RepoError::Log(error) => of_open(error),
        _ => Exit::Failure,
    }
}

fn of_history(error: &HistoryError) -> Exit {
    match error {
        HistoryError::NoSuchRelease { .. }
        | HistoryError::NoSuchTrack { .. }
        | HistoryError::Pruned { .. }
        | HistoryError::Read(ReadError::Gone { .. }) => Exit::NoSuchThing,
        HistoryError::Ambiguous { .. } => Exit::Usage,
        HistoryError::Read(ReadError::Damaged { .. } | ReadError::Signature(_))
        | HistoryError::Head(_)
        | HistoryError::Node { .. }
        | HistoryError::Depth { .. } => Exit::VerificationFailed,
        HistoryError::Read(ReadError::Open(error)) => of_open(error),
        HistoryError::Read(_) => Exit::Failure,
    }
}

fn of_seal(error: &SealError) -> Exit {
    match error {
        SealError::Append(error) => of_append(error),
        SealError::Repo(error) => of_repo(error),
        _ => Exit::Failure,
    }
}

fn of_append(error: &AppendError) -> Exit {
    match error {
        AppendError::Open(error) => of_open(error),
        _ => Exit::Failure,
    }
}

fn of_open(error: &OpenError) -> Exit {
    match error {
        OpenError::Busy { .. } => Exit::Busy,
        OpenError::NoLog { .. } => Exit::NoSuchThing,
        _ => Exit::Failure,
    }
}
