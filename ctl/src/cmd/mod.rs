//! The commands, a file each.

pub mod devices;
pub mod doctor;
mod dry_run;
pub mod explain;
pub mod filters;
mod program_file;
pub mod relay;
pub mod rollback;
pub mod run;
pub mod sockets;
pub mod stacks;
pub mod stats;

/// The one option that every list has.
#[derive(Debug, clap::Args)]
pub struct Json {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
