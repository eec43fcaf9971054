//! An old copy of a log in the place of the log: a backup was restored, or a disk went back in time.
//!
//! Nodes know better, because they hold what was signed later, and tell a running `serve` at once. It
//! keeps what it was told in the repository, and from then on nothing is published there: a second
//! content signed for one position is a fork, which every node refuses for ever.
//!
//! ```text
//! ahead.json    munros, hash and signature of the newest munro that a node holds and this log lacks
//! ```

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;

use distd_core::store::OriginLog;
use distd_core::tree::SignedMunro;
use distd_core::unit::MunroIndex;
use serde::{Deserialize, Serialize};

use crate::repo::{Repo, RepoError};

const NAME: &str = "ahead.json";

/// What a node held that the log lacks.
#[derive(Serialize, Deserialize)]
struct Evidence {
    munros: u64,
    hash: String,
    signed_s: u64,
    signature: String,
    from: String,
}

/// Keeps what a node showed. Of two, the one that reaches further.
pub fn note(repo: &Repo, munro: &SignedMunro, from: SocketAddr) -> io::Result<()> {
    let munros = munro.munro.0 + 1;
    if read(repo).is_some_and(|known| known.munros >= munros) {
        return Ok(());
    }
    let evidence = Evidence {
        munros,
        hash: blake3::Hash::from(munro.hash.0).to_string(),
        signed_s: munro.time.unix_seconds(),
        signature: hexadecimal(&munro.signature),
        from: from.to_string(),
    };
    let (path, partial) = (repo.dir().join(NAME), repo.dir().join("ahead.json.part"));
    fs::write(&partial, serde_json::to_vec_pretty(&evidence)?)?;
    fs::rename(&partial, &path)
}

/// Refuses where a node holds what this log lacks. What the log has again is forgotten.
pub fn check(repo: &Repo, log: &OriginLog) -> Result<(), RepoError> {
    let path = repo.dir().join(NAME);
    let Some(evidence) = read(repo) else {
        if path.exists() {
            return Err(RepoError::Settings { path, what: "not what serve writes; remove it" });
        }
        return Ok(());
    };
    let found = log.committed().map_or(0, |commit| commit.munros);
    let last = MunroIndex(evidence.munros.saturating_sub(1));
    let held = found >= evidence.munros
        && log
            .munro_hash(last)
            .is_ok_and(|hash| blake3::Hash::from(hash.0).to_string() == evidence.hash);
    if held {
        // If it stays, it is looked at again.
        let _ = fs::remove_file(path);
        return Ok(());
    }
    let Evidence { munros, from, .. } = evidence;
    Err(RepoError::Behind { path: repo.dir().to_owned(), found, munros, from })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn read(repo: &Repo) -> Option<Evidence> {
    serde_json::from_slice(&fs::read(repo.dir().join(NAME)).ok()?).ok()
}
