//! Why a card cannot be used, in sentences.

use std::fmt;

use rustix::io::Errno;

/// What makes a VI.
const ALLOCATIONS: [&str; 2] = ["ef_vi_alloc_from_pd", "ef_vi_alloc_from_set"];

/// A call of the library that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CiulError {
    /// The function.
    pub call: &'static str,
    /// What it answered.
    pub errno: Errno,
}

impl CiulError {
    /// Of an answer: negative errnos are failures.
    pub(super) fn check(call: &'static str, answer: i32) -> Result<(), Self> {
        if answer >= 0 {
            return Ok(());
        }
        let errno = Errno::from_raw_os_error(-answer);
        Err(Self { call, errno })
    }

    /// Whether it may be stamps that are refused: the card, its firmware or its licence has none.
    /// What is used up or absent is so without them too.
    pub(super) fn may_be_of_stamps(&self) -> bool {
        let refusals = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::PERM];
        ALLOCATIONS.contains(&self.call) && refusals.contains(&self.errno)
    }

    /// What it means, where it means something of its own.
    fn meaning(&self) -> Option<&'static str> {
        Some(match (self.call, self.errno) {
            (_, Errno::LIBACC) => "libciul.so.1 and the sfc_char driver are of different releases",
            ("ef_driver_open", Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                "there is no /dev/sfc_char: the driver is not loaded"
            }
            ("ef_pd_alloc_by_name", Errno::NODEV | Errno::NOENT) => {
                "the driver does not serve this interface"
            }
            ("ef_memreg_alloc", Errno::NOSPC | Errno::BUSY | Errno::NOMEM) => {
                "the card's buffer table is used up: free huge pages (vm.nr_hugepages) take less \
                 of it"
            }
            (
                "ef_vi_alloc_from_pd" | "ef_vi_alloc_from_set" | "ef_vi_set_alloc_from_pd",
                Errno::BUSY | Errno::NOSPC,
            ) => "the card's queues are used up",
            ("ef_vi_set_alloc_from_pd" | "ef_vi_alloc_from_set", Errno::OPNOTSUPP) => {
                "the card has no sets of queues"
            }
            ("ef_vi_filter_add" | "ef_vi_set_filter_add", Errno::BUSY | Errno::NOSPC) => {
                "the card has no room for another filter"
            }
            ("ef_vi_filter_add" | "ef_vi_set_filter_add", Errno::EXIST) => {
                "another queue of the card has this filter"
            }
            (
                "ef_vi_filter_add" | "ef_vi_set_filter_add" | "ef_filter_spec_set",
                Errno::PROTONOSUPPORT | Errno::OPNOTSUPP,
            ) => "the card, or its firmware, has no such filters",
            (_, Errno::PERM | Errno::ACCESS) => "no permission",
            _ => return None,
        })
    }
}

impl fmt::Display for CiulError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (call, errno) = (self.call, self.errno);
        match self.meaning() {
            Some(meaning) => write!(out, "{meaning} ({call}: {errno})"),
            None => write!(out, "{call}: {errno}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sign_has_its_meaning() {
        let told = |call, errno: i32| match CiulError::check(call, -errno) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        let table = [
            ("ef_driver_open", 2, "the driver is not loaded"),
            ("ef_vi_alloc_from_pd", 79, "of different releases"),
            ("ef_vi_alloc_from_pd", 16, "queues are used up"),
            ("ef_vi_alloc_from_set", 28, "queues are used up"),
            ("ef_vi_set_alloc_from_pd", 95, "no sets of queues"),
            ("ef_memreg_alloc", 28, "huge pages"),
            ("ef_vi_filter_add", 16, "no room for another filter"),
            ("ef_vi_set_filter_add", 16, "no room for another filter"),
            ("ef_vi_filter_add", 17, "another queue"),
            ("ef_vi_filter_add", 93, "no such filters"),
            ("ef_vi_filter_add", 1, "no permission"),
            ("ef_vi_prime", 5, "ef_vi_prime: "),
        ];
        for (call, errno, wanted) in table {
            assert!(told(call, errno).contains(wanted), "{}", told(call, errno));
        }
        assert_eq!(told("ef_vi_prime", 0), "");
    }
}
