//! Why an interface or a queue could not be opened, in a sentence.

use rustix::io::Errno;

/// Why an interface or queue could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicError {
    /// The kernel's errno. `EBUSY` and `EEXIST`: somebody else has the interface or the queue.
    pub errno: Errno,
    /// What was tried, on which device, and what that errno means there. Of a program that the
    /// verifier refused, its log follows in lines of its own.
    pub what: String,
}

impl NicError {
    /// The error on one line: of a log its last word.
    #[must_use]
    pub fn summary(&self) -> String {
        let head = self.what.lines().next().unwrap_or_default();
        // The log ends with statistics.
        let says = |line: &&str| !line.trim().is_empty() && !line.starts_with("processed ");
        let log = self.log().unwrap_or_default();
        match log.lines().rfind(says) {
            Some(line) => format!("{head}: {}: {}", line.trim(), self.errno),
            None => format!("{head}: {}", self.errno),
        }
    }

    /// The verifier's log, if there is one.
    #[must_use]
    pub fn log(&self) -> Option<&str> {
        self.what.split_once('\n').map(|(_, log)| log)
    }
}

impl std::fmt::Display for NicError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}", self.what, self.errno)
    }
}

impl std::error::Error for NicError {}

/// For `map_err`: an error with no more to say than what was tried.
pub(super) fn failed(what: &str) -> impl FnOnce(Errno) -> NicError + '_ {
    move |errno| NicError {
        errno,
        what: what.to_owned(),
    }
}

/// An attachment that failed.
pub(super) fn attach(name: &str, mtu: u32, errno: Errno) -> NicError {
    let why = match errno {
        Errno::BUSY | Errno::EXIST => "another XDP program is attached, to it or to its master",
        Errno::RANGE => {
            return NicError {
                errno,
                what: format!(
                    "attaching the XDP program to {name}: the driver takes none with an MTU of \
                     {mtu}"
                ),
            };
        }
        Errno::NOSPC => "the other end of the veth has more TX queues than this one RX queues",
        Errno::OPNOTSUPP => "neither its driver nor the kernel's generic path takes XDP programs",
        Errno::INVAL => {
            "the driver refuses: LRO, too many channels or other settings are in the way"
        }
        Errno::PERM | Errno::ACCESS => "CAP_NET_ADMIN and CAP_BPF are needed",
        _ => "the driver refuses",
    };
    NicError {
        errno,
        what: format!("attaching the XDP program to {name}: {why}"),
    }
}

/// A bind that failed.
pub(super) fn bind(ifindex: u32, queue_id: u32, errno: Errno) -> NicError {
    let why = match errno {
        Errno::BUSY => "another process has it",
        Errno::INVAL => "there is no such queue",
        Errno::NODEV => "the interface is gone",
        Errno::NETDOWN => "the interface is down",
        Errno::OPNOTSUPP => "its driver has no AF_XDP",
        _ => "the kernel refuses",
    };
    NicError {
        errno,
        what: format!("binding queue {queue_id} of interface {ifindex}: {why}"),
    }
}

/// Packet memory that could not be registered.
pub(super) fn register(bytes: usize, chunk_size: u32, errno: Errno) -> NicError {
    let why = match errno {
        Errno::NOBUFS => "above the limit of locked memory (RLIMIT_MEMLOCK)",
        Errno::NOMEM => "not enough memory",
        Errno::INVAL => "chunks must be 2048 or 4096 bytes, the memory page aligned",
        _ => "the kernel refuses",
    };
    NicError {
        errno,
        what: format!(
            "registering {bytes} bytes of packet memory in chunks of {chunk_size}: {why}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_the_last_word_of_a_log() {
        let what = "the verifier refused the XDP program\n0: R1=ctx()\n7: (61) r0 = *(u32 *)(r2 +0)\n\
                    R2 invalid mem access 'scalar'\nprocessed 8 insns (limit 1000000) max_states 0\n";
        let error = NicError {
            errno: Errno::ACCESS,
            what: what.to_owned(),
        };
        let summary = error.summary();
        assert!(summary.starts_with("the verifier refused the XDP program: R2 invalid mem access"));
        assert!(!summary.contains('\n') && !summary.contains("processed"));
        assert!(
            error
                .log()
                .is_some_and(|log| log.starts_with("0: R1=ctx()"))
        );
        let plain = failed("mapping")(Errno::NOMEM);
        assert_eq!((plain.summary(), plain.log()), (plain.to_string(), None));
    }
}
