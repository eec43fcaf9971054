//! The mount helper: what mount(8) runs for `mount -t fuse.distd SOURCE DIR`.
//!
//! `mount.fuse.distd SOURCE DIR [-s] [-f] [-n] [-v] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`; exit codes
//! are those of mount(8): 0, 1 for a wrong command line, 32 for a mount that failed.

use std::path::Path;
use std::process::ExitCode;

use crate::cli::mount_command;
use crate::exit::Complaint;
use crate::options::Options;
use crate::report;

/// What mount(8) passed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    source: String,
    directory: String,
    options: Vec<String>,
    sloppy: bool,
    fake: bool,
    verbose: bool,
    version: bool,
}

/// Runs the helper with the words after its name.
pub(crate) fn run(words: &[String]) -> ExitCode {
    match parse(words).and_then(|call| execute(&call)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            report::complain("mount.fuse.distd", &complaint, false);
            ExitCode::from(complaint.exit.helper_code())
        }
    }
}

fn execute(call: &Call) -> Result<(), Complaint> {
    if call.version {
        println!("mount.fuse.distd (distd {})", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    let privileged = rustix::process::geteuid().is_root();
    let lists = call.options.iter().map(String::as_str);
    let options = Options::parse(lists, privileged, call.sloppy).map_err(Complaint::usage)?;
    if call.fake {
        crate::target::Target::resolve(&call.source)?;
        return Ok(());
    }
    let mounted = mount_command(&call.source, Path::new(&call.directory), &options, false)?;
    if call.verbose {
        println!("{}", report::mounted(&mounted));
    }
    Ok(())
}

fn parse(words: &[String]) -> Result<Call, Complaint> {
    let usage = "usage: mount.fuse.distd SOURCE DIR [-sfnv] [-o OPTIONS]";
    let mut call = Call::default();
    let mut places = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(flags) = word.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            places.push(word.clone());
            continue;
        };
        let mut letters = flags.chars();
        while let Some(letter) = letters.next() {
            match letter {
                's' => call.sloppy = true,
                'f' => call.fake = true,
                'n' => {}
                'v' => call.verbose = true,
                'V' => call.version = true,
                'o' | 't' | 'N' => {
                    let attached: String = letters.by_ref().collect();
                    let value =
                        if attached.is_empty() { words.next().cloned() } else { Some(attached) };
                    let value = value.ok_or_else(|| {
                        Complaint::usage(format_args!("-{letter} needs a value; {usage}"))
                    })?;
                    if letter == 'o' {
                        call.options.push(value);
                    }
                }
                _ => return Err(Complaint::usage(format_args!("unknown flag -{letter}; {usage}"))),
            }
        }
    }
    if call.version {
        return Ok(call);
    }
    let [source, directory] = places.try_into().map_err(|_| Complaint::usage(usage))?;
    Ok(Call { source, directory, ..call })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Call, Complaint> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_mount8_passes_is_understood() {
        let call = parsed("src /mnt -sn -v -o ro,nofail -t fuse.distd -ocache=/c").expect("known");
        let expected = Call {
            source: "src".into(),
            directory: "/mnt".into(),
            options: vec!["ro,nofail".into(), "cache=/c".into()],
            sloppy: true,
            verbose: true,
            ..Call::default()
        };
        assert_eq!(call, expected);
        assert!(parsed("-V").expect("known").version);
        assert!(parsed("src /mnt -f").expect("known").fake);
    }

    #[test]
    fn a_wrong_command_line_is_usage() {
        for line in ["", "src", "src /mnt more", "src /mnt -o", "src /mnt -x"] {
            assert_eq!(parsed(line).expect_err("refused").exit.helper_code(), 1, "{line}");
        }
    }
}
