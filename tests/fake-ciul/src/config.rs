//! What the stand-in is to be: environment variables, or [`fake_ciul_set`] in a test's own copy.

#![expect(unsafe_code, reason = "UNSAFETY: exports a setter for C callers")]

use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::layout::{LAYOUTS, Layout};

/// A failure to come.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    /// A call (`open`, `pd`, `alloc`, `set`, `member` = one of a set, `memreg`, `mac`, `mtu`,
    /// `filter`, `vlan`, `unfilter`, `prime`, `receive`, `transmit`, `stamp`, `lend`, `bytes`;
    /// `stamps` = a VI with times of frames; `departures` = one with times of those it sends;
    /// `untimed` = it does not know one (of no errno); `unbundle` = of RX, `complete` = of TX;
    /// `free` = one that frees, which does so all the same), or what the card does (`reset`,
    /// `oflow`, `txerr`, `discard`; `event:TYPE` = it tells of that, with all other bytes zero).
    what: String,
    /// Which call, or which frame, from 1 on; 0 = each.
    nth: u64,
    errno: i32,
    seen: u64,
}

/// The settings.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) layout: &'static Layout,
    pub(crate) wire: String,
    faults: Vec<Fault>,
    /// Most filters of a card.
    pub(crate) filters: usize,
    pub(crate) merges: bool,
    pub(crate) lends: bool,
    /// Completions come late and in bundles.
    pub(crate) is_late: bool,
    /// Each frame that was sent has an event of its own, with a time.
    pub(crate) is_timed: bool,
    /// The card has room for one VI.
    pub(crate) is_small: bool,
    pub(crate) prefix: usize,
    /// Path of the library whose ring code VIs have.
    pub(crate) vendor: Option<String>,
}

const NAMES: [&str; 5] = ["LAYOUT", "WIRE", "FAULT", "FILTERS", "VENDOR"];

impl Config {
    fn new() -> Self {
        let newest = LAYOUTS.iter().find(|layout| layout.name == "9.2");
        let mut config = Self {
            layout: newest.unwrap_or(&LAYOUTS[0]),
            wire: "loop".to_owned(),
            faults: Vec::new(),
            filters: 4096,
            merges: false,
            lends: false,
            is_late: false,
            is_timed: false,
            is_small: false,
            prefix: 14,
            vendor: None,
        };
        for name in NAMES {
            if let Ok(value) = std::env::var(format!("FAKE_CIUL_{name}")) {
                config.set(name, &value);
            }
        }
        config
    }

    fn set(&mut self, name: &str, value: &str) {
        match name {
            "LAYOUT" => {
                let named = LAYOUTS.iter().find(|layout| layout.name == value);
                self.layout = named.unwrap_or_else(|| panic!("no layout {value}"));
            }
            "WIRE" => value.clone_into(&mut self.wire),
            "FILTERS" => self.filters = value.parse().expect("a number of filters"),
            "FAULT" => self.set_faults(value),
            "VENDOR" => self.vendor = Some(value.to_owned()),
            other => panic!("fake libciul has no setting {other}"),
        }
    }

    fn set_faults(&mut self, value: &str) {
        self.faults.clear();
        (self.merges, self.lends, self.prefix) = (false, false, 14);
        (self.is_late, self.is_timed, self.is_small) = (false, false, false);
        for word in value.split(',').filter(|word| !word.is_empty()) {
            match word {
                "merge" => self.merges = true,
                "ref" => (self.lends, self.prefix) = (true, 0),
                "prefix0" => self.prefix = 0,
                "late" => self.is_late = true,
                "timed" => self.is_timed = true,
                "small" => self.is_small = true,
                "filter1" => self.filters = 1,
                _ => self.faults.push(fault(word)),
            }
        }
    }

    /// Counts one more of `what`; the errno if it is to fail, 0 for a fault without one.
    pub(crate) fn strikes(&mut self, what: &str) -> Option<i32> {
        let mut errno = None;
        for fault in self.faults.iter_mut().filter(|fault| fault.what == what) {
            fault.seen += 1;
            if fault.nth == 0 || fault.nth == fault.seen {
                errno = Some(fault.errno);
            }
        }
        errno
    }
}

/// `open:ENOENT`, `filter:EBUSY@3`, `reset@100`.
fn fault(word: &str) -> Fault {
    let (head, nth) = word.split_once('@').unwrap_or((word, "0"));
    let (what, errno) = head.split_once(':').unwrap_or((head, ""));
    Fault {
        what: what.to_owned(),
        nth: nth.parse().expect("the number of a fault"),
        errno: errno_of(errno),
        seen: 0,
    }
}

fn errno_of(word: &str) -> i32 {
    match word {
        "" => 0,
        "EAGAIN" => libc::EAGAIN,
        "ENOENT" => libc::ENOENT,
        "ENODEV" => libc::ENODEV,
        "EBUSY" => libc::EBUSY,
        "ENOSPC" => libc::ENOSPC,
        "ENOMEM" => libc::ENOMEM,
        "EPERM" => libc::EPERM,
        "EACCES" => libc::EACCES,
        "EINVAL" => libc::EINVAL,
        "EEXIST" => libc::EEXIST,
        "ELIBACC" => libc::ELIBACC,
        "EPROTONOSUPPORT" => libc::EPROTONOSUPPORT,
        "EOPNOTSUPP" => libc::EOPNOTSUPP,
        "ENODATA" => libc::ENODATA,
        "EL2NSYNC" => libc::EL2NSYNC,
        other => other.parse().expect("an errno"),
    }
}

/// The settings as they are now.
pub(crate) fn get() -> MutexGuard<'static, Config> {
    static CONFIG: OnceLock<Mutex<Config>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| Mutex::new(Config::new()));
    config.lock().expect("a panic ends the process")
}

/// Whether this call is to fail, and with what.
pub(crate) fn check(what: &str) -> Result<(), i32> {
    get().strikes(what).map_or(Ok(()), Err)
}

/// Changes a setting: `LAYOUT`, `WIRE`, `FAULT`, `FILTERS` or `VENDOR`. No release has this
/// function: by it the backend knows a stand-in.
///
/// # Safety
/// Both are strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_ciul_set(name: *const c_char, value: *const c_char) {
    // SAFETY: the caller's word.
    let (name, value) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(value)) };
    get().set(&name.to_string_lossy(), &value.to_string_lossy());
}
