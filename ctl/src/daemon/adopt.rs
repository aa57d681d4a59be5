//! Taking over what a daemon that is gone has left with running programs.

use super::server::Server;

impl Server {
    /// Finds the stacks of this network namespace that programs have mapped, and goes on with them.
    pub(super) fn adopt_stacks(&mut self) {}
}
