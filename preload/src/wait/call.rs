//! A call that may wait: what it holds from its first wait on until it returns.

use bypass_stack::EndpointId;
use libc::sigset_t;

use super::signals::Held;
use crate::fdtable::{self, Entry};
use crate::{family, sharing};

/// One call of the program. Costs nothing until it waits.
#[derive(Debug, Default)]
pub struct Call {
    held: Held,
    kept: Vec<Entry>,
}

impl Call {
    /// Holds back signals; the mask that is in force outside of the call.
    pub fn hold(&mut self) -> *const sigset_t {
        self.held.hold()
    }

    /// Whether it has waited.
    #[must_use]
    pub fn has_waited(&self) -> bool {
        self.held.is_held()
    }

    /// Keeps what the descriptor leads to, should another thread close it meanwhile. To be called
    /// before the first wait.
    pub fn keep(&mut self, fd: i32, endpoint: EndpointId) {
        let entry = fdtable::get(fd);
        if !self.has_waited() && entry.endpoint() == Some(endpoint) {
            self.keep_entry(entry);
        }
    }

    /// Keeps the epoll set that the descriptor leads to.
    pub fn keep_set(&mut self, epfd: i32) {
        let entry = fdtable::get(epfd);
        if !self.has_waited() && matches!(entry, Entry::Epoll(_)) {
            self.keep_entry(entry);
        }
    }

    fn keep_entry(&mut self, entry: Entry) {
        if sharing::call_begins(entry) {
            self.kept.push(entry);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        for entry in self.kept.drain(..) {
            if sharing::call_ends(entry) {
                family::fd::ended(-1, entry);
            }
        }
    }
}
