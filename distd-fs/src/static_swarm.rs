//! `swarm`: one file as a static swarm of RFC 7574, seeded or fetched by this process alone.

use std::fmt::Write;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Subcommand;
use distd_core::limits::{ADDRESSES_MAX, CONTENT_BYTES_MAX};
use distd_core::manifest::{DEFAULT_PORT, PeerAddress};
use distd_core::node::{Fetched, GetError, GetOptions, NodeError, StaticNode};
use distd_core::ppspp::engine::DownReason;
use distd_core::ppspp::engine::static_swarm::{StaticCounters, StaticPeer};
use distd_core::store::{ContentFile, ContentFileError, create_empty};
use distd_core::tree::merkle::{ContentId, MerkleFunction, MerkleHash};
use distd_core::unit::HumanBytes;
use serde_json::{Value, json};

use crate::exit::{Complaint, Exit};
use crate::progress::Meter;
use crate::report;

/// What can be done with a static swarm.
#[derive(Subcommand)]
pub(crate) enum SwarmCommand {
    /// Serve a file, which must stay as it is, until interrupted; prints the swarm's id when ready.
    Seed {
        /// The file.
        file: PathBuf,
        /// UDP address and port that peers reach.
        #[arg(long, value_name = "ADDR:PORT", default_value_t = listen(DEFAULT_PORT))]
        listen: SocketAddr,
        /// Hash function of the tree: sha256, or sha1, which is weak.
        #[arg(long, value_name = "NAME", default_value = "sha256", value_parser = parse_function)]
        hash: MerkleFunction,
    },
    /// Fetch a file, verified, and serve what is here of it meanwhile; goes on where it was interrupted.
    Get {
        /// ID@HOST:PORT[,HOST:PORT...].
        source: String,
        /// The file to make; there must be none, or this one.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// The file's length, as told by whom the id came from; else it is found and proved.
        #[arg(long, value_name = "BYTES")]
        length: Option<u64>,
        /// UDP address and port that peers reach; port 0: any.
        #[arg(long, value_name = "ADDR:PORT", default_value_t = listen(0))]
        listen: SocketAddr,
        /// How long nothing may arrive.
        #[arg(long, value_name = "SECONDS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(1..=86_400))]
        timeout: u64,
    },
}

fn listen(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn parse_function(word: &str) -> Result<MerkleFunction, String> {
    let known = MerkleFunction::ALL.into_iter().find(|function| function.as_str() == word);
    known.ok_or_else(|| format!("'{word}': expected sha256 or sha1"))
}

/// Runs the command to its end.
pub(crate) fn run(command: &SwarmCommand, json: bool, quiet: bool) -> Result<(), Complaint> {
    match command {
        SwarmCommand::Seed { file, listen, hash } => seed(file, *listen, *hash, json, quiet),
        SwarmCommand::Get { source, output, length, listen, timeout } => {
            let (id, addresses) = parse_source(source)?;
            let result = get(
                &Wanted { id, addresses, output, length: *length },
                *listen,
                *timeout,
                json || quiet,
            )?;
            report::print(json, quiet, &result, words);
            Ok(())
        }
    }
}

fn seed(
    path: &Path,
    listen: SocketAddr,
    function: MerkleFunction,
    json: bool,
    quiet: bool,
) -> Result<(), Complaint> {
    let file = ContentFile::open(path).map_err(of_file)?;
    let bytes = file.bytes();
    let tree = {
        let mut meter = Meter::new(json || quiet);
        let phase = format!("hashing {}", path.display());
        file.tree(function, |done| {
            meter.set(&json!({ "phase": phase, "done_bytes": done, "total_bytes": bytes }));
        })
        .map_err(of_file)?
    };
    let root = tree.as_ref().map_or(MerkleHash::EMPTY, |tree| tree.id().root);
    let id = ContentId { function, root };
    let described = |address: Option<SocketAddr>| {
        json!({
            "id": id.to_string(), "hash": function.as_str(), "bytes": bytes, "file": path,
            "address": address.map(|address| address.to_string()),
            "port": address.map(|address| address.port()),
        })
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(tree) = tree else {
        report::print(json, false, &described(None), |_| {
            format!("{id}\nan empty file is known by its id: nobody has to serve it")
        });
        return Ok(());
    };
    let node = StaticNode::open(listen, id, Some(bytes), Some(tree)).map_err(of_node)?;
    let address = node.address();
    report::print(json, false, &described(Some(address)), |_| {
        let port = address.port();
        format!("{id}\ndistd-fs swarm get {id}@HOST:{port} --length {bytes} -o {name}")
    });
    let counters = node.seed(&file).map_err(of_node)?;
    tracing::info!("served {} of chunks", HumanBytes(counters.data_sent_bytes));
    Ok(())
}

struct Wanted<'a> {
    id: ContentId,
    addresses: Vec<PeerAddress>,
    output: &'a Path,
    length: Option<u64>,
}

fn get(
    wanted: &Wanted<'_>,
    listen: SocketAddr,
    timeout_s: u64,
    silent: bool,
) -> Result<Value, Complaint> {
    let Wanted { id, output, length, .. } = wanted;
    let described = |fetched: &Fetched, seconds: f64| {
        let sources: Vec<Value> = fetched.peers.iter().map(describe).collect();
        json!({
            "id": id.to_string(), "file": output, "bytes": fetched.bytes,
            "resumed_bytes": fetched.resumed_bytes, "seconds": seconds, "peers": sources,
            "received_bytes": fetched.counters.received_bytes,
            "duplicate_bytes": fetched.counters.duplicate_bytes,
            "served_bytes": fetched.counters.data_sent_bytes,
        })
    };
    let nothing = Fetched {
        bytes: 0,
        resumed_bytes: 0,
        peers: Vec::new(),
        counters: StaticCounters::default(),
    };
    let fits = match (id.is_of_nothing(), length) {
        (true, Some(length)) => *length == 0,
        (false, Some(length)) => *length > 0,
        (_, None) => true,
    };
    if !fits {
        return Err(Complaint::usage(format_args!(
            "--length {} and the id {id} do not fit: the id of 0 bytes, and of nothing else, is all zeros",
            length.unwrap_or(0)
        )));
    }
    if length.is_some_and(|length| length > CONTENT_BYTES_MAX) {
        return Err(Complaint::usage(format_args!("--length: at most {CONTENT_BYTES_MAX} bytes")));
    }
    if let Some(bytes) = already_there(id, output)? {
        return Ok(described(&Fetched { bytes, resumed_bytes: bytes, ..nothing }, 0.0));
    }
    if id.is_of_nothing() {
        create_empty(output).map_err(of_file)?;
        return Ok(described(&nothing, 0.0));
    }
    let sources = resolve(&wanted.addresses)?;
    let node = StaticNode::open(listen, *id, *length, None).map_err(of_node)?;
    let patience = Duration::from_secs(timeout_s);
    let options = GetOptions { target: output.to_path_buf(), sources, patience };
    let begin = Instant::now();
    let mut meter = Meter::new(silent);
    let phase = format!("fetching {}", output.display());
    let fetched = node.get(&options, |sought| {
        meter.set(&json!({
            "phase": phase,
            "done_bytes": sought.here_bytes,
            "total_bytes": sought.total_bytes.unwrap_or(0),
        }));
    });
    drop(meter);
    let fetched = fetched.map_err(|error| not_fetched(error, wanted))?;
    Ok(described(&fetched, begin.elapsed().as_secs_f64()))
}

/// The length of the file, if it is the content wanted; another one is not touched.
fn already_there(id: &ContentId, output: &Path) -> Result<Option<u64>, Complaint> {
    if output.symlink_metadata().is_err() {
        return Ok(None);
    }
    let file = ContentFile::open(output).map_err(of_file)?;
    let tree = file.tree(id.function, |_| ()).map_err(of_file)?;
    let root = tree.map_or(MerkleHash::EMPTY, |tree| tree.id().root);
    if root == id.root {
        return Ok(Some(file.bytes()));
    }
    Err(of_file(ContentFileError::Exists { path: output.to_owned() }))
}

fn parse_source(text: &str) -> Result<(ContentId, Vec<PeerAddress>), Complaint> {
    let form = || {
        Complaint::usage(format_args!(
            "'{text}' is no source of a static swarm: expected ID@HOST:PORT[,HOST:PORT...]"
        ))
    };
    let (id, addresses) = text.split_once('@').ok_or_else(form)?;
    let id: ContentId = id.parse().map_err(Complaint::usage)?;
    let addresses: Result<Vec<PeerAddress>, _> = addresses.split(',').map(str::parse).collect();
    let addresses = addresses.map_err(Complaint::usage)?;
    if addresses.len() > ADDRESSES_MAX {
        let found = addresses.len();
        return Err(Complaint::usage(format_args!(
            "{found} sources, at most {ADDRESSES_MAX} are taken"
        )));
    }
    Ok((id, addresses))
}

/// The addresses of the hosts; hosts that have none are left out where others have.
fn resolve(hosts: &[PeerAddress]) -> Result<Vec<SocketAddr>, Complaint> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for host in hosts {
        match (host.host.as_str(), host.port).to_socket_addrs() {
            Ok(addresses) => found.extend(addresses),
            Err(error) => failed.push(format!("{host}: {error}")),
        }
    }
    for host in &failed {
        tracing::warn!("cannot find {host}");
    }
    if found.is_empty() {
        let text = format!("no source has an address: {}", failed.join("; "));
        return Err(Complaint::new(Exit::Unreachable, text));
    }
    found.dedup();
    Ok(found)
}

fn of_file(error: ContentFileError) -> Complaint {
    let exit = match &error {
        ContentFileError::Busy { .. } => Exit::Busy,
        ContentFileError::Disk(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
            Exit::NoSuch
        }
        _ => Exit::Failure,
    };
    Complaint::new(exit, error)
}

fn of_node(error: NodeError) -> Complaint {
    let exit = match &error {
        NodeError::Bind { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            Exit::Busy
        }
        _ => Exit::Failure,
    };
    Complaint::new(exit, error)
}

fn not_fetched(error: GetError, wanted: &Wanted<'_>) -> Complaint {
    let part = format!("{}.part", wanted.output.display());
    let goes_on = format!("what is here stays in {part}: the same command goes on with it");
    match error {
        GetError::File(error) => of_file(error),
        GetError::Node(error) => of_node(error),
        GetError::Interrupted => Complaint::failure(format_args!("interrupted; {goes_on}")),
        GetError::Stalled { patience, here_bytes, peers } => {
            let here = HumanBytes(here_bytes);
            let mut text = format!(
                "cannot fetch {}: nothing arrived for {} s, {here} are here",
                wanted.id,
                patience.as_secs()
            );
            for peer in peers.iter().filter(|peer| peer.is_source || peer.is_open) {
                let _ = write!(text, "\n  {}: {}", peer.address, stand(peer, wanted, here_bytes));
            }
            if here_bytes > 0 {
                let _ = write!(text, "\n{goes_on}");
            }
            let unproved = |peer: &StaticPeer| {
                matches!(peer.down, Some(DownReason::Lied { .. }))
                    || peer.ambiguous.is_some()
                    || (here_bytes == 0 && peer.unproved_chunks > 0)
            };
            let exit =
                if peers.iter().any(unproved) { Exit::Unverified } else { Exit::Unreachable };
            Complaint::new(exit, text)
        }
    }
}

/// How a source stands, and what to do.
fn stand(peer: &StaticPeer, wanted: &Wanted<'_>, here_bytes: u64) -> String {
    if let Some(mismatch) = &peer.mismatch {
        return format!("it is in the swarm with other parameters: {mismatch}");
    }
    if let Some(bytes) = peer.ambiguous {
        return format!(
            "it claims {bytes} bytes, and just such a length can be forged: give --length as told by whom the id came from"
        );
    }
    if matches!(peer.down, Some(DownReason::Lied { .. })) {
        return match wanted.length.filter(|_| here_bytes == 0) {
            Some(length) => {
                format!("what it sends does not fit a length of {length} bytes: is --length right?")
            }
            None => {
                "it sent data or hashes that are not this content's, and is left alone".to_owned()
            }
        };
    }
    if here_bytes == 0 && peer.unproved_chunks > 0 {
        let length = wanted.length.map(|length| format!(" (is --length {length} right?)"));
        let length = length.unwrap_or_default();
        return format!(
            "what it sends is not this content's as far as can be told{length}: name other sources"
        );
    }
    match (peer.is_open, peer.has_chunks, peer.is_choking) {
        (true, 0, _) => "it is there and has nothing of it yet: wait, or name other sources".to_owned(),
        (true, _, true) => "it is there and answers no requests for now: try again later".to_owned(),
        (true, ..) => "it is there and sends nothing: try again later, or name other sources".to_owned(),
        (false, ..) => match peer.down {
            Some(reason) => format!("the channel was lost ({reason}) and it answers no more"),
            None => "no answer: nobody listens there, or not in this swarm (members of another one are silent): check the id, the address and the firewall".to_owned(),
        },
    }
}

fn describe(peer: &StaticPeer) -> Value {
    json!({
        "address": peer.address.to_string(), "source": peer.is_source,
        "verified_bytes": peer.verified_bytes, "served_bytes": peer.data_sent_bytes,
        "rtt_ms": peer.rtt.as_secs_f64() * 1000.0,
        "lied": matches!(peer.down, Some(DownReason::Lied { .. })),
    })
}

fn words(result: &Value) -> String {
    let number = |name: &str| result[name].as_u64().unwrap_or(0);
    let file = result["file"].as_str().unwrap_or_default();
    let (bytes, seconds) = (number("bytes"), result["seconds"].as_f64().unwrap_or(0.0));
    if number("resumed_bytes") == bytes {
        return format!("{file} is there: {}", HumanBytes(bytes));
    }
    let rate = ((bytes - number("resumed_bytes")) as f64 / seconds.max(0.001)) as u64;
    let givers = result["peers"].as_array().map_or(0, |peers| {
        peers.iter().filter(|peer| peer["verified_bytes"].as_u64() > Some(0)).count()
    });
    let (bytes, rate) = (HumanBytes(bytes), HumanBytes(rate));
    format!("{file}: {bytes} in {seconds:.1} s ({rate}/s) from {givers} peers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_an_id_and_addresses() {
        let id = "ab".repeat(32);
        let (parsed, addresses) =
            parse_source(&format!("{id}@one:1,[::1]:2,three")).expect("a source");
        assert_eq!(parsed.to_string(), id);
        let ports: Vec<u16> = addresses.iter().map(|address| address.port).collect();
        assert_eq!(ports, [1, 2, DEFAULT_PORT]);
        let (parsed, _) = parse_source(&format!("{}@h:1", "0C".repeat(20))).expect("a source");
        assert_eq!(parsed.function, MerkleFunction::Sha1);
        let many = vec!["h:1"; 17].join(",");
        for wrong in
            ["", "x@h:1", &id, &format!("{id}@"), &format!("{id}@h:x"), &format!("{id}@{many}")]
        {
            let complaint = parse_source(wrong).map(|_| ()).expect_err("no source");
            assert_eq!(complaint.exit, Exit::Usage, "{wrong}");
        }
    }
}
