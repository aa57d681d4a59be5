//! `bypassctl run`: a program with libbypass.so.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::Failure;

/// Start a program with libbypass.so.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  bypassctl run --profile latency -- redis-server --port 6379")]
pub struct Run {
    /// latency, throughput or safe.
    #[arg(long, value_parser = ["latency", "throughput", "safe"])]
    profile: Option<String>,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// libbypass.so beside this program, in ../lib, or where packages put it.
pub fn library() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let folder = own.parent()?;
    ["libbypass.so", "../lib/libbypass.so", "../lib/bypass/libbypass.so"]
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.exists())
}

impl Run {
    /// Replaces this process by the program.
    pub fn execute(&self) -> Result<(), Failure> {
        let library = library().ok_or_else(|| {
            Failure::new("libbypass.so is not beside bypassctl nor in ../lib; build or install it")
        })?;
        let mut preload = library.into_os_string();
        if let Some(given) = std::env::var_os("LD_PRELOAD") {
            preload.push(":");
            preload.push(given);
        }
        let (program, arguments) =
            self.command.split_first().ok_or_else(|| Failure::new("no program given"))?;
        let mut command = Command::new(program);
        command.args(arguments).env("LD_PRELOAD", preload);
        if let Some(profile) = &self.profile {
            command.env("BYPASS_PROFILE", profile);
        }
        let error = command.exec();
        Err(Failure::new(format!("cannot run {}: {error}", program.display())))
    }
}
