//! What people type: `distd-fs`.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use distd_core::manifest::DEFAULT_PORT;
use distd_core::node::{Audience, Rates};
use distd_core::size::{parse_rate, parse_size};
use distd_core::unit::HumanBytes;

use crate::control::{self, Answer, CallError, GetRequest, MountRequest, Request};
use crate::daemon::{Daemon, DaemonOptions, Doorkeeper};
use crate::doctor;
use crate::erofs::{attach, record};
use crate::exit::{Complaint, Exit};
use crate::launch;
use crate::mount::{self, Site};
use crate::mountinfo::{FILE_SYSTEM_TYPE, mounted_on};
use crate::options::{Options, parse_audience};
use crate::peers;
use crate::progress;
use crate::relay::{self, RelayOptions};
use crate::report;
use crate::static_swarm::{self, SwarmCommand};
use crate::target::Target;

/// What the node may take beyond a mount's own timeout: starting, opening a large cache.
const MOUNT_SLACK: Duration = Duration::from_secs(90);
/// How long other commands wait for the node's answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(300);

#[derive(Parser)]
#[command(
    name = "distd-fs",
    version,
    about = "Mount releases of distd origins",
    max_term_width = 100
)]
struct Cli {
    /// Directory of the cache (default: /var/cache/distd, for users ~/.cache/distd).
    #[arg(long, global = true, value_name = "DIR", env = "DISTD_CACHE")]
    cache: Option<PathBuf>,
    /// Answer in JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Say nothing but errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more.
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show a release on a directory, read-only; returns when it is visible.
    Mount {
        /// distd://ID@HOST:PORT[,HOST:PORT...]/TRACK[@RELEASE] or FILE.distd[#TRACK[@RELEASE]].
        source: String,
        /// An empty directory.
        directory: PathBuf,
        /// Options: cache=DIR, timeout=SECONDS, quota=BYTES, allow_other, suid, dev, ...
        #[arg(short, value_name = "OPT,...")]
        options: Vec<String>,
        /// Stay in the foreground until unmounted.
        #[arg(short, long)]
        foreground: bool,
    },
    /// Take a mount away.
    Umount {
        /// Where it is mounted.
        directory: PathBuf,
        /// Also if it is in use: open files go on.
        #[arg(short, long)]
        lazy: bool,
        /// Also if the node is stuck: everything that waits gets an error.
        #[arg(short, long)]
        force: bool,
    },
    /// How the node of the cache stands: mounts, cache, swarms.
    Status,
    /// The peers of the node: who, how near, what they have, how fast, and why nothing comes from them.
    Peers {
        /// Draw them anew each second, until interrupted.
        #[arg(short, long)]
        watch: bool,
    },
    /// Find out what keeps distd from working here, and what to do; touches no mount.
    Doctor,
    /// Have a mount stay at the release that it shows.
    Hold {
        /// A mount point or a path below one.
        path: PathBuf,
    },
    /// Have a mount take the newest release and follow its track again.
    Release {
        /// A mount point or a path below one.
        path: PathBuf,
        /// Take the newest release and stay there.
        #[arg(long)]
        once: bool,
    },
    /// Bring a release, or a part of one that is mounted, into the cache.
    Prefetch {
        /// A path on a mount, or a source.
        what: String,
        /// Wait until everything is local.
        #[arg(short, long)]
        wait: bool,
    },
    /// Print what a mount was first used for, for 'distd-origin publish --profile'.
    Trace {
        /// A mount point or a path below one.
        path: PathBuf,
        /// Where to write it (default: standard output).
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// What distd knows of a file on a mount: its release, BLAKE3, place in the log, how much is local.
    Attributes {
        /// A mount point or a path below one.
        path: PathBuf,
    },
    /// Make a plain directory a release; what it holds already is used.
    Get {
        /// distd://ID@HOST:PORT[,HOST:PORT...]/TRACK[@RELEASE] or FILE.distd[#TRACK[@RELEASE]].
        source: String,
        /// The directory; made if it is not there.
        directory: PathBuf,
        /// Remove what the release does not have.
        #[arg(long)]
        delete: bool,
        /// How long each step waits for the network.
        #[arg(long, value_name = "SECONDS", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(1..=86_400))]
        timeout: u64,
    },
    /// Keep a release, or a part of it, from eviction.
    Pin {
        /// A mount point or a path below one.
        path: PathBuf,
    },
    /// Let go of what was pinned.
    Unpin {
        /// A path that was pinned.
        path: PathBuf,
    },
    /// Serve what this cache holds, and holds from now on, to every node, without a mount.
    Relay {
        /// Whose swarms to join: sources as mount takes them.
        #[arg(required = true)]
        sources: Vec<String>,
        /// UDP address and port that nodes reach.
        #[arg(long, value_name = "ADDR:PORT", default_value_t = relay_listen())]
        listen: SocketAddr,
        /// Bound of the cache, such as 500M or 20G (default: what the disk's reserve leaves).
        #[arg(long, value_name = "BYTES", value_parser = parse_limit)]
        quota: Option<Limit>,
        /// Fetch the releases that the sources name whole, and keep them; a track's next ones too.
        #[arg(long)]
        pin: bool,
        /// Do not look for peers on the local network, nor be found there.
        #[arg(long)]
        nolan: bool,
        /// Whom to serve: 'all', or 'local': those of private networks and of this machine's own.
        #[arg(long, value_name = "WHOM", default_value = "all", value_parser = parse_relay_serve)]
        serve: Audience,
        /// Whom to ask for other peers, and to tell of them: none, local or all.
        #[arg(long, value_name = "WHOM", default_value = "local", value_parser = parse_serve)]
        pex: Audience,
        /// Send at most so many bytes of data a second, such as 10M.
        #[arg(long, value_name = "RATE", value_parser = parse_rate)]
        upload: Option<NonZeroU64>,
        /// Ask for at most so many bytes a second, such as 10M.
        #[arg(long, value_name = "RATE", value_parser = parse_rate)]
        download: Option<NonZeroU64>,
    },
    /// Single files as static swarms of RFC 7574, with other implementations too; needs no node, no cache.
    #[command(subcommand)]
    Swarm(SwarmCommand),
    /// The cache: size, limit, eviction.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Print shell completions.
    Completions {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
    /// Mount EROFS over a node's files (started by the node).
    #[command(hide = true, name = attach::COMMAND)]
    Attach {
        /// What to do.
        order: String,
    },
    /// Run the node process of a cache (started by mount).
    #[command(hide = true)]
    Node {
        /// Bound of the cache, in bytes.
        #[arg(long)]
        quota: Option<u64>,
        /// UDP address.
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// Do not look for peers on the local network, nor be found there.
        #[arg(long)]
        nolan: bool,
        /// Whom to serve: none, local or all.
        #[arg(long, default_value = "local", value_parser = parse_serve)]
        serve: Audience,
        /// Whom to ask for other peers, and to tell of them: none, local or all.
        #[arg(long, default_value = "local", value_parser = parse_serve)]
        pex: Audience,
        /// Send at most so many bytes of data a second, such as 10M.
        #[arg(long, value_name = "RATE", value_parser = parse_rate)]
        upload: Option<NonZeroU64>,
        /// Ask for at most so many bytes a second, such as 10M.
        #[arg(long, value_name = "RATE", value_parser = parse_rate)]
        download: Option<NonZeroU64>,
    },
}

#[derive(Subcommand)]
enum CacheCommand {
    /// What the cache holds, and its bounds.
    Size,
    /// Set the bound of the cache.
    Limit {
        /// Bytes, such as 20G; 'none': what the disk's reserve leaves.
        #[arg(value_parser = parse_limit)]
        bytes: Limit,
    },
    /// Give up the content of a path (fetched again when it is read).
    Evict {
        /// A path on a mount.
        path: PathBuf,
    },
    /// Give up everything that is not pinned.
    Clean,
    /// Make everything fetched durable now.
    Flush,
}

#[derive(Clone, Copy)]
struct Limit(Option<u64>);

fn parse_limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    let expected = || format!("'{text}': expected bytes, such as 500M or 20G, or 'none'");
    parse_size(text).map(|bytes| Limit(Some(bytes))).ok_or_else(expected)
}

fn parse_serve(word: &str) -> Result<Audience, String> {
    parse_audience(word).ok_or_else(|| format!("'{word}': expected none, local or all"))
}

/// A relay is there to serve.
fn parse_relay_serve(word: &str) -> Result<Audience, String> {
    let audience = parse_audience(word).filter(|audience| *audience != Audience::None);
    audience.ok_or_else(|| format!("'{word}': expected local or all"))
}

/// All addresses, on the default port.
fn relay_listen() -> SocketAddr {
    (std::net::Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into()
}

/// Runs the program: `distd-fs`, or the mount helper where it is called by that name.
pub fn run() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let name = words.first().and_then(|word| Path::new(word).file_name()?.to_str());
    if name.is_some_and(|name| name.starts_with("mount.")) {
        report::start(false, false);
        return crate::helper::run(&words[1..]);
    }
    let cli = Cli::parse();
    report::start(cli.quiet, cli.verbose);
    match execute(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            report::complain("distd-fs", &complaint, cli.json);
            ExitCode::from(complaint.exit.code())
        }
    }
}

fn execute(cli: &Cli) -> Result<(), Complaint> {
    let cache = || cache_directory(cli.cache.as_deref());
    let ask = |request: &Request| ask(&cache()?, request);
    match &cli.command {
        Command::Mount { source, directory, options, foreground } => {
            let privileged = rustix::process::geteuid().is_root();
            let lists = options.iter().map(String::as_str);
            let mut options = Options::parse(lists, privileged, false).map_err(Complaint::usage)?;
            options.cache = options.cache.or_else(|| cli.cache.clone());
            let mounted = mount_command(source, directory, &options, *foreground)?;
            report::print(cli.json, cli.quiet, &mounted, report::mounted);
        }
        Command::Umount { directory, lazy, force } => umount(directory, *lazy, *force)?,
        Command::Status => report::print(cli.json, false, &ask(&Request::Status)?, report::status),
        Command::Doctor => {
            let findings = doctor::examine(&cache()?);
            let answer = serde_json::to_value(&findings).map_err(Complaint::failure)?;
            report::print(cli.json, false, &answer, |_| doctor::lines(&findings));
            let wrong = findings.iter().filter(|finding| !finding.ok).count();
            if wrong > 0 {
                return Err(Complaint::failure(format_args!("{wrong} things are wrong")));
            }
        }
        Command::Peers { watch: true } => peers::watch(&cache()?, cli.json)?,
        Command::Peers { watch: false } => {
            report::print(cli.json, false, &ask(&Request::Peers)?, peers::words);
        }
        Command::Hold { path } => {
            let request = Request::Hold { path: (&*named(path)?).into() };
            report::print(cli.json, cli.quiet, &ask(&request)?, report::held);
        }
        Command::Release { path, once } => {
            let request = Request::Release { path: (&*named(path)?).into(), once: *once };
            report::print(cli.json, cli.quiet, &ask(&request)?, report::held);
        }
        Command::Trace { path, output } => {
            let traced = ask(&Request::Trace { path: (&*named(path)?).into() })?;
            let profile = traced["profile"].as_str().unwrap_or_default();
            match output {
                Some(file) => std::fs::write(file, profile).map_err(|error| {
                    Complaint::failure(format_args!("cannot write {}: {error}", file.display()))
                })?,
                None => report::print(cli.json, false, &traced, |_| profile.to_owned()),
            }
        }
        Command::Attributes { path } => {
            let request = Request::Attributes { path: (&*named(path)?).into() };
            report::print(cli.json, false, &ask(&request)?, report::attributes);
        }
        Command::Get { source, directory, delete, timeout } => {
            let wanted = (&Target::resolve(source)?).into();
            let directory = (&*resting(directory)?).into();
            let request = GetRequest { wanted, directory, delete: *delete, timeout_s: *timeout };
            let result = watched(cli, &cache()?, &Request::Get(request))?;
            report::print(cli.json, cli.quiet, &result, report::got);
        }
        Command::Prefetch { what, wait } => prefetch(cli, &cache()?, what, *wait)?,
        Command::Pin { path } => {
            let request = Request::Pin { path: (&*named(path)?).into() };
            report::print(cli.json, cli.quiet, &ask(&request)?, report::pinned);
        }
        Command::Unpin { path } => {
            let request = Request::Unpin { path: (&*named(path)?).into() };
            report::print(cli.json, cli.quiet, &ask(&request)?, report::unpinned);
        }
        Command::Relay { sources, listen, quota, pin, nolan, serve, pex, upload, download } => {
            let (cache, quota_bytes) = (cache()?, quota.and_then(|limit| limit.0));
            make_parent(&cache)?;
            let daemon = DaemonOptions {
                cache,
                quota_bytes,
                listen: Some(*listen),
                relay: true,
                lan: !*nolan,
                serve: *serve,
                pex: *pex,
                rates: Rates { upload: *upload, download: *download },
            };
            let targets = sources.iter().map(|source| Target::resolve(source));
            let targets = targets.collect::<Result<_, _>>()?;
            relay::run(RelayOptions { daemon, targets, pin: *pin })?;
        }
        Command::Swarm(command) => static_swarm::run(command, cli.json, cli.quiet)?,
        Command::Cache(command) => cache_command(cli, &cache()?, command)?,
        Command::Completions { shell } => {
            clap_complete::generate(
                *shell,
                &mut Cli::command(),
                "distd-fs",
                &mut std::io::stdout(),
            );
        }
        Command::Attach { order } => attach::main(order).map_err(Complaint::failure)?,
        Command::Node { quota, listen, nolan, serve, pex, upload, download } => {
            let (quota_bytes, listen) = (*quota, *listen);
            launch::run_node(&DaemonOptions {
                cache: cache()?,
                quota_bytes,
                listen,
                relay: false,
                lan: !*nolan,
                serve: *serve,
                pex: *pex,
                rates: Rates { upload: *upload, download: *download },
            })?;
        }
    }
    Ok(())
}

/// Mounts; in the foreground it returns when the mount is gone.
pub(crate) fn mount_command(
    source: &str,
    directory: &Path,
    options: &Options,
    foreground: bool,
) -> Answer {
    let target = Target::resolve(source)?;
    let cache = cache_directory(options.cache.as_deref())?;
    let wrong =
        |error| mount::MountError::Directory { directory: directory.to_owned(), source: error };
    let directory = mount::canonical(directory).map_err(wrong)?;
    match mount::survey(&directory, source, &cache, options.nonempty)? {
        Site::Same => {
            let track = &target.track;
            return Ok(
                serde_json::json!({ "directory": directory, "source": source, "track": track }),
            );
        }
        Site::Free | Site::Left => {}
    }
    let request = MountRequest {
        source: source.to_owned(),
        wanted: (&target).into(),
        directory: (&*directory).into(),
        options: options.mount.clone(),
    };
    let daemon = DaemonOptions {
        cache: cache.clone(),
        quota_bytes: options.quota_bytes,
        listen: options.listen,
        relay: false,
        lan: options.lan,
        serve: options.serve,
        pex: options.pex,
        rates: options.rates,
    };
    make_parent(&cache)?;
    if foreground {
        return mount_in_foreground(&daemon, &request);
    }
    let patience = Duration::from_secs(options.mount.timeout_s) + MOUNT_SLACK;
    launch::call_or_start(&daemon, &Request::Mount(request), patience)
}

fn mount_in_foreground(options: &DaemonOptions, request: &MountRequest) -> Answer {
    let daemon = launch::open(options)?;
    let answer = daemon.mount(request).unwrap_or_else(|| Err(Complaint::failure("interrupted")));
    if answer.is_ok() {
        // Nobody to tell where no service manager runs.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }
    daemon.wait_end();
    launch::leave(&daemon, &options.cache);
    answer
}

fn umount(directory: &Path, lazy: bool, force: bool) -> Result<(), Complaint> {
    let shown = directory.display();
    let no_mount = || Complaint::new(Exit::NoSuch, format_args!("{shown} is not a mount of distd"));
    let canonical = mount::canonical(directory)
        .map_err(|error| Complaint::new(Exit::NoSuch, format_args!("{shown}: {error}")))?;
    let mounted = mounted_on(&canonical).map_err(Complaint::failure)?;
    let Some(mounted) = mounted else { return Err(no_mount()) };
    let by_erofs = record::is_view(&mounted);
    if mounted.kind != FILE_SYSTEM_TYPE && !by_erofs {
        return Err(no_mount());
    }
    if force {
        let broken = if by_erofs { record::abort(&canonical) } else { mount::abort(&canonical) };
        broken.map_err(|error| {
            Complaint::failure(format_args!("cannot break off the mount on {shown}: {error}"))
        })?;
    }
    let outcome =
        if lazy || force { mount::detach(&canonical) } else { mount::unmount_idle(&canonical) };
    outcome.map_err(|error| {
        let busy =
            error.kind() == std::io::ErrorKind::ResourceBusy || error.to_string().contains("busy");
        if busy {
            let text = format!("{shown} is in use: end what uses it, or add --lazy");
            Complaint::new(Exit::Busy, text)
        } else {
            Complaint::failure(format_args!("cannot unmount {shown}: {error}"))
        }
    })
}

fn prefetch(cli: &Cli, cache: &Path, what: &str, wait: bool) -> Result<(), Complaint> {
    let started = if is_source(what) {
        let wanted = (&Target::resolve(what)?).into();
        let timeout_s = Options::default().mount.timeout_s;
        let request = Request::PrefetchSource { wanted, timeout_s, watched: wait };
        start_if_needed(cache, &request)?
    } else {
        let path = (&*named(Path::new(what))?).into();
        ask(cache, &Request::Prefetch { path, watched: wait })?
    };
    if !wait {
        report::print(cli.json, cli.quiet, &started, |_| "fetching in the background".to_owned());
        return Ok(());
    }
    let job = started["job"].as_u64().unwrap_or_default();
    let result = progress::watch(cache, job, cli.json || cli.quiet)?;
    report::print(cli.json, cli.quiet, &result, report::prefetched);
    Ok(())
}

/// Has the node of a cache, started if none runs, do a job, and watches it.
fn watched(cli: &Cli, cache: &Path, request: &Request) -> Answer {
    let started = start_if_needed(cache, request)?;
    let job = started["job"].as_u64().unwrap_or_default();
    progress::watch(cache, job, cli.json || cli.quiet)
}

fn start_if_needed(cache: &Path, request: &Request) -> Answer {
    make_parent(cache)?;
    let options = DaemonOptions::new(cache.to_owned());
    launch::call_or_start(&options, request, MOUNT_SLACK)
}

/// A directory that may not be there yet, by its lasting path.
fn resting(directory: &Path) -> Result<PathBuf, Complaint> {
    match directory.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => named(directory),
        Err(error) => Err(Complaint::failure(format_args!("{}: {error}", directory.display()))),
    }
}

/// Whether a word is a source and not a path on a mount.
fn is_source(word: &str) -> bool {
    let file = word.split('#').next().unwrap_or(word);
    word.contains("://")
        || (Path::new(file).extension().is_some_and(|end| end == "distd")
            && Path::new(file).is_file())
}

fn cache_command(cli: &Cli, cache: &Path, command: &CacheCommand) -> Result<(), Complaint> {
    let request = match command {
        CacheCommand::Size => Request::Status,
        CacheCommand::Limit { bytes } => Request::Limit { quota_bytes: bytes.0 },
        CacheCommand::Evict { path } => Request::Evict { path: (&*named(path)?).into() },
        CacheCommand::Clean => Request::Clean,
        CacheCommand::Flush => Request::Flush,
    };
    let answer = match control::call(cache, &request, ANSWER_PATIENCE) {
        Ok(answer) => answer?,
        // The cache's files are there without a node too.
        Err(CallError::NoNode { .. }) if cache.is_dir() => alone(cache, request)?,
        Err(error) => return Err(no_answer(&error)),
    };
    match command {
        CacheCommand::Size => {
            report::print(cli.json, false, &answer["cache"]["usage"], report::usage);
        }
        CacheCommand::Limit { .. } | CacheCommand::Flush => {
            report::print(cli.json, cli.quiet, &answer, report::usage);
        }
        CacheCommand::Evict { .. } | CacheCommand::Clean => {
            report::print(cli.json, cli.quiet, &answer, |answer| {
                format!("freed {}", HumanBytes(answer["freed_bytes"].as_u64().unwrap_or(0)))
            });
        }
    }
    Ok(())
}

/// Does what is asked in a node that lives just for that.
fn alone(cache: &Path, request: Request) -> Answer {
    use crate::control::Responder;
    let options = DaemonOptions::new(cache.to_owned());
    let daemon = Daemon::start(&options)?;
    let answer = Doorkeeper(std::sync::Arc::clone(&daemon)).respond(request);
    daemon.end();
    answer.unwrap_or_else(|| Err(Complaint::failure("the node is leaving")))
}

/// Asks the node of a cache.
pub(crate) fn ask(cache: &Path, request: &Request) -> Answer {
    control::call(cache, request, ANSWER_PATIENCE).map_err(|error| no_answer(&error))?
}

fn no_answer(error: &CallError) -> Complaint {
    match error {
        CallError::NoNode { .. } => {
            Complaint::new(Exit::NoSuch, format_args!("{error}; a mount starts one"))
        }
        CallError::Broken { .. } => Complaint::failure(error),
    }
}

/// A path as the node knows it: absolute, its directory resolved, its last part not followed.
fn named(path: &Path) -> Result<PathBuf, Complaint> {
    let wrong = |error| Complaint::new(Exit::NoSuch, format_args!("{}: {error}", path.display()));
    let absolute = std::path::absolute(path).map_err(wrong)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().map_err(wrong)?.join(name)),
        _ => Ok(absolute),
    }
}

/// The cache's directory, as an absolute path.
fn cache_directory(given: Option<&Path>) -> Result<PathBuf, Complaint> {
    let chosen = match given {
        Some(cache) => cache.to_owned(),
        None if rustix::process::geteuid().is_root() => "/var/cache/distd".into(),
        None => {
            let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
            let base = home("XDG_CACHE_HOME").map(PathBuf::from);
            let base = base.or_else(|| Some(Path::new(&home("HOME")?).join(".cache")));
            let unknown =
                || Complaint::usage("neither XDG_CACHE_HOME nor HOME is set: give -o cache=DIR");
            base.ok_or_else(unknown)?.join("distd")
        }
    };
    std::path::absolute(&chosen).map_err(Complaint::failure)
}

/// Makes the directories above the cache's own, which the store makes private.
fn make_parent(cache: &Path) -> Result<(), Complaint> {
    let Some(parent) = cache.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(|error| {
        Complaint::failure(format_args!("cannot make {}: {error}", parent.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_line_without_what_it_needs_is_refused() {
        for words in [
            &["mount"][..],
            &["mount", "x"],
            &["umount"],
            &[],
            &["cache"],
            &["cache", "limit", "x"],
            &["swarm"],
            &["swarm", "seed"],
            &["swarm", "seed", "f", "--hash", "md5"],
            &["swarm", "get", "x@y"],
        ] {
            assert!(Cli::try_parse_from(["distd-fs"].iter().chain(words)).is_err(), "{words:?}");
        }
    }
}
