//! `bypassctl`: shows and controls the bypass, and runs its daemon.
//!
//! This file only says what can be asked; each command has a file in `cmd/`. Exit codes: 0 fine,
//! 1 failed, 2 wrong usage, 3 nothing to do.

mod cmd;
mod daemon;
mod render;
mod source;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// What went wrong, in a sentence that says what to do; and the exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: message.into(),
        }
    }

    /// Exit code 2: the arguments make no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 2,
            message: message.into(),
        }
    }

    /// Exit code 3: there is nothing to show or do.
    pub fn nothing(message: impl Into<String>) -> Self {
        Self {
            code: 3,
            message: message.into(),
        }
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "bypassctl",
    version,
    about = "Show and control kernel bypass for unmodified programs",
    after_help = "Examples:\n  bypassctl run -- knotd -c knot.conf   start a program under the bypass\n  bypassctl filters list                what is led past the kernel, for whom\n  bypassctl explain --all               every socket: accelerated, or why not\n  bypassctl doctor                      test this machine\n\nExit codes: 0 fine, 1 failed, 2 wrong usage, 3 nothing to do."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(cmd::run::Run),
    /// Run the privileged daemon of this network namespace.
    #[command(after_help = "\
Examples:
  bypassctl daemon                                    in the background, until bypassctl shutdown
  bypassctl daemon --foreground                       for a service manager
  ip netns exec blue bypassctl daemon --exit-when-idle

There is one daemon in each network namespace. A program of root starts one by itself when none
answers; others need one that runs. Running programs survive its end, and the next one finds them.")]
    Daemon {
        /// End about two seconds after the last program and client have gone.
        #[arg(long)]
        exit_when_idle: bool,
        /// Stay in the foreground.
        #[arg(long)]
        foreground: bool,
        /// Configuration file in place of /etc/bypass/bypass.toml.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Filters: what is led past the kernel.
    Filters {
        #[command(subcommand)]
        command: cmd::filters::Filters,
    },
    /// Network functions of PCI: list them, give one to DPDK, give it back.
    Devices {
        #[command(subcommand)]
        command: cmd::devices::Devices,
    },
    Sockets(cmd::sockets::Sockets),
    Relay(cmd::relay::RelayCommand),
    Stats(cmd::stats::Stats),
    Explain(cmd::explain::Explain),
    Rollback(cmd::rollback::Rollback),
    Adopt(cmd::rollback::Adopt),
    Doctor(cmd::doctor::Doctor),
    /// Stacks with their users, programs and interfaces.
    #[command(after_help = "Examples:\n  bypassctl stacks\n  bypassctl stacks --json")]
    Stacks(cmd::Json),
    Dump(cmd::stacks::Dump),
    /// Stop the daemon. Running programs go on.
    #[command(after_help = "Example:\n  bypassctl shutdown && bypassctl daemon    restart it")]
    Shutdown,
    /// Have the daemon read its configuration again, as SIGHUP does. A file with an error changes
    /// nothing.
    #[command(after_help = "Example:\n  bypassctl reload")]
    Reload,
    /// Shell completions on standard output.
    #[command(after_help = "\
Example:
  bypassctl completions bash > /usr/share/bash-completion/completions/bypassctl")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Manual pages: to a folder, or the main one to standard output.
    #[command(after_help = "\
Examples:
  bypassctl man | man -l -
  bypassctl man /usr/share/man/man1")]
    Man {
        /// Folder for all pages.
        folder: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            render::complain(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(run) => run.execute(),
        Command::Daemon {
            exit_when_idle,
            foreground,
            config,
        } => {
            let options = daemon::DaemonOptions {
                exit_when_idle,
                foreground,
                config,
            };
            daemon::run(&options).map_err(|error| Failure {
                code: u8::try_from(error.exit_code()).unwrap_or(1),
                message: error.to_string(),
            })
        }
        Command::Filters { command } => command.execute(),
        Command::Devices { command } => command.execute(),
        Command::Sockets(sockets) => sockets.execute(),
        Command::Relay(relay) => relay.execute(),
        Command::Stats(stats) => stats.execute(),
        Command::Explain(explain) => explain.execute(),
        Command::Rollback(rollback) => rollback.execute(),
        Command::Adopt(adopt) => adopt.execute(),
        Command::Doctor(doctor) => doctor.execute(),
        Command::Stacks(json) => cmd::stacks::list(&json),
        Command::Dump(dump) => dump.execute(),
        Command::Shutdown => cmd::filters::shutdown(),
        Command::Reload => cmd::filters::reload(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bypassctl", &mut script);
            render::text(&String::from_utf8_lossy(&script));
            Ok(())
        }
        Command::Man { folder } => manual(folder),
    }
}

fn manual(folder: Option<PathBuf>) -> Result<(), Failure> {
    let command = Cli::command();
    let failed = |error: std::io::Error| Failure::new(format!("cannot write the manual: {error}"));
    if let Some(folder) = folder {
        std::fs::create_dir_all(&folder).map_err(failed)?;
        return clap_mangen::generate_to(command, folder).map_err(failed);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(failed)?;
    render::text(&String::from_utf8_lossy(&page));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
