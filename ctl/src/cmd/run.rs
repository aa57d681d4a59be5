//! `bypassctl run`: a program with libbypass.so.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use bypass_proto::options::{self, Kind};

use super::program_file;
use crate::{Failure, render};

const HELP: &str = "\
Examples:
  bypassctl run -- knotd -c knot.conf
  bypassctl run --profile latency -- redis-server --port 6379

It sets LD_PRELOAD (in front of what is there already) and BYPASS_PROFILE, then becomes the program.
Whatever cannot be accelerated runs on the kernel as before; bypassctl explain says why.";

/// The examples and the table of options.
fn long_help() -> String {
    let mut text = format!("{HELP}\n\nOptions of libbypass.so, as environment variables:\n");
    for option in options::TABLE {
        let values = match option.kind {
            Kind::Flag => "0 or 1".to_owned(),
            Kind::Number { unit, least, most } => format!("{least} to {most} {unit}"),
            Kind::Choice(words) => words.join(", "),
            Kind::Path => "a path".to_owned(),
        };
        let default = match option.default {
            "" => String::new(),
            default => format!("; default {default}"),
        };
        text += &format!(
            "  {}  ({values}{default})\n      {}\n",
            option.name, option.sentence
        );
    }
    text += "\nAll but BYPASS_CONFIG and BYPASS_DISABLE may stand in the [options] table of bypass.toml, in \
             lower case without BYPASS_; the environment wins.";
    text
}

/// Start a program with libbypass.so.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP, after_long_help = long_help())]
pub struct Run {
    /// What to tune for: latency spins long, throughput briefly, safe never.
    #[arg(long, value_parser = ["latency", "throughput", "safe"])]
    profile: Option<String>,
    /// Program and arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// libbypass.so beside this program, in ../lib, or where packages put it.
pub fn library() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let folder = own.parent()?;
    [
        "libbypass.so",
        "../lib/libbypass.so",
        "../lib/bypass/libbypass.so",
    ]
    .iter()
    .map(|name| folder.join(name))
    .find(|path| path.exists())
    .and_then(|path| path.canonicalize().ok())
}

impl Run {
    /// Replaces this process by the program.
    ///
    /// # Errors
    /// When library or program are not found.
    pub fn execute(&self) -> Result<(), Failure> {
        let library = library().ok_or_else(|| {
            Failure::new(
                "libbypass.so is neither beside bypassctl nor in ../lib: build or install it",
            )
        })?;
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| Failure::usage("no program given"))?;
        if let Some(problem) =
            program_file::find(program).and_then(|path| program_file::problem(&path))
        {
            render::complain(&format!("warning: {}: {problem}", program.display()));
        }
        let mut command = Command::new(program);
        command.args(arguments);
        command.env(
            "LD_PRELOAD",
            preload(library, std::env::var_os("LD_PRELOAD")),
        );
        if let Some(profile) = &self.profile {
            command.env("BYPASS_PROFILE", profile);
        }
        let error = command.exec();
        Err(Failure::new(format!(
            "cannot run {}: {error}",
            program.display()
        )))
    }
}

/// The library in front of what was preloaded already.
fn preload(library: PathBuf, given: Option<OsString>) -> OsString {
    let mut value = library.into_os_string();
    if let Some(given) = given.filter(|given| !given.is_empty() && given != OsStr::new(":")) {
        value.push(":");
        value.push(given);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_preloaded_stays() {
        let library = || PathBuf::from("/lib/libbypass.so");
        assert_eq!(preload(library(), None), "/lib/libbypass.so");
        assert_eq!(preload(library(), Some("".into())), "/lib/libbypass.so");
        assert_eq!(
            preload(library(), Some("/x.so".into())),
            "/lib/libbypass.so:/x.so"
        );
    }
}
