//! The commands.

pub mod doctor;
pub mod explain;
pub mod filters;
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
