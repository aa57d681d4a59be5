//! `libciul.so.1`, opened at run time: its functions by name.
//!
//! The system's library, never a bundled or linked one: it and the driver in the kernel check that
//! they are of one release. What is not there is named in the refusal.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: symbols of a C library become functions of the types in its manual"
)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::event::RawEvent;

/// Name of the library.
pub const LIBRARY: &str = "libciul.so.1";

/// An `ef_filter_spec`, whose content is the library's.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4))]
pub(super) struct Specification(pub(super) [u8; 56]);

/// An `ef_filter_cookie`: how the library knows a filter that was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cookie {
    id: c_int,
    kind: c_int,
}

impl Cookie {
    /// Its number and kind, as the library gave them.
    #[must_use]
    pub fn words(self) -> [i32; 2] {
        [self.id, self.kind]
    }
}

/// An `ef_memreg`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct RawRegistration {
    /// A DMA address for each 4 KiB.
    pub(super) addresses: *mut u64,
    pub(super) base: *mut u64,
}

/// Declares the functions: a field of each, and how they are found.
macro_rules! functions {
    ($($name:ident ( $($type:ty),* ) -> $answer:ty;)*) => {
        /// The functions that are called, by their names.
        #[derive(Clone, Copy, Debug)]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($type),*) -> $answer,)*
        }

        impl Functions {
            fn find(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        const NAME: &str = stringify!($name);
                        // SAFETY: a function of this name has this type in every release.
                        let found = unsafe { library.get(NAME.as_bytes()) };
                        *found.map_err(|_| NAME)?
                    },)*
                })
            }
        }
    };
}

functions! {
    ef_driver_open(*mut c_int) -> c_int;
    ef_driver_close(c_int) -> c_int;
    ef_pd_alloc_by_name(*mut c_void, c_int, *const c_char, c_uint) -> c_int;
    ef_pd_free(*mut c_void, c_int) -> c_int;
    ef_vi_alloc_from_pd(
        *mut c_void, c_int, *mut c_void, c_int, c_int, c_int, c_int, *mut c_void, c_int, u64
    ) -> c_int;
    ef_vi_free(*mut c_void, c_int) -> c_int;
    ef_vi_set_alloc_from_pd(*mut c_void, c_int, *mut c_void, c_int, c_int) -> c_int;
    ef_vi_set_free(*mut c_void, c_int) -> c_int;
    ef_vi_alloc_from_set(
        *mut c_void, c_int, *mut c_void, c_int, c_int, c_int, c_int, c_int, *mut c_void, c_int, u64
    ) -> c_int;
    ef_vi_mtu(*mut c_void, c_int) -> c_uint;
    ef_vi_get_mac(*mut c_void, c_int, *mut [u8; 6]) -> c_int;
    ef_memreg_alloc(*mut RawRegistration, c_int, *mut c_void, c_int, *mut c_void, usize) -> c_int;
    ef_memreg_free(*mut RawRegistration, c_int) -> c_int;
    ef_vi_receive_post(*mut c_void, u64, c_int) -> c_int;
    ef_vi_receive_unbundle(*mut c_void, *const RawEvent, *mut u32) -> c_int;
    ef_vi_receive_get_bytes(*mut c_void, *const u8, *mut u16) -> c_int;
    ef_vi_transmit_init(*mut c_void, u64, c_int, c_int) -> c_int;
    ef_vi_transmit_unbundle(*mut c_void, *const RawEvent, *mut u32) -> c_int;
    ef_vi_prime(*mut c_void, c_int, c_uint) -> c_int;
    ef_eventq_capacity(*mut c_void) -> c_int;
    ef_filter_spec_init(*mut Specification, c_uint) -> ();
    ef_filter_spec_set_ip4_local(*mut Specification, c_int, u32, c_int) -> c_int;
    ef_filter_spec_set_ip4_full(*mut Specification, c_int, u32, c_int, u32, c_int) -> c_int;
    ef_filter_spec_set_ip6_local(*mut Specification, c_int, *const [u8; 16], c_int) -> c_int;
    ef_filter_spec_set_ip6_full(
        *mut Specification, c_int, *const [u8; 16], c_int, *const [u8; 16], c_int
    ) -> c_int;
    ef_filter_spec_set_vlan(*mut Specification, c_int) -> c_int;
    ef_vi_filter_add(*mut c_void, c_int, *const Specification, *mut Cookie) -> c_int;
    ef_vi_filter_del(*mut c_void, c_int, *const Cookie) -> c_int;
    ef_vi_set_filter_add(*mut c_void, c_int, *const Specification, *mut Cookie) -> c_int;
    ef_vi_set_filter_del(*mut c_void, c_int, *const Cookie) -> c_int;
    ef_vi_version_str() -> *const c_char;
    ef_vi_driver_interface_str() -> *const c_char;
    // Internal ones that are exported: for the calibration.
    ef_vi_init(*mut c_void, c_int, c_int, c_int, u64, u8, *mut c_void) -> c_int;
    ef_vi_init_io(*mut c_void, *mut c_void) -> ();
    ef_vi_init_evq(*mut c_void, c_int, *mut c_void, c_uint) -> ();
    ef_vi_init_rxq(*mut c_void, c_int, *mut c_void, *mut c_void, c_int) -> ();
    ef_vi_init_txq(*mut c_void, c_int, *mut c_void, *mut c_void) -> ();
    ef_vi_init_state(*mut c_void) -> ();
    ef_vi_add_queue(*mut c_void, *mut c_void) -> c_int;
}

/// Functions that lend packets: where there are none, no card of that kind is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lending {
    pub(super) get: unsafe extern "C" fn(*mut c_void, u32) -> *const u8,
    pub(super) release: unsafe extern "C" fn(*mut c_void, u32),
}

/// `struct timespec`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanoseconds: i64,
}

/// `ef_vi_receive_get_timestamp_with_sync_flags`: a packet (its prefix included), its time and what
/// the card's clock is worth.
pub(super) type GetStamp =
    unsafe extern "C" fn(*mut c_void, *const u8, *mut Time, *mut c_uint) -> c_int;

/// The library, loaded.
#[derive(Debug)]
pub struct Ciul {
    pub(super) functions: Functions,
    pub(super) lending: Option<Lending>,
    pub(super) get_stamp: Option<GetStamp>,
    /// Addresses of `ef10_ef_eventq_poll`, `ef10_ef_eventq_prime` and, where it is there,
    /// `ef10_receive_get_precise_timestamp`.
    pub(super) marks: [Option<usize>; 3],
    /// Whether it says of itself that it is none: the tests' stand-in, which needs no card.
    pub(super) is_stand_in: bool,
    /// Keeps the code.
    _library: Library,
}

impl Ciul {
    /// Loads the library at a path, or of this name from where libraries are.
    ///
    /// # Errors
    /// A sentence: it is not installed, or lacks a function.
    pub fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: its constructors prepare the library and do nothing else.
        let opened = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let library = opened.map_err(|error| {
            let cause = std::error::Error::source(&error);
            let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
            format!("{} is not installed: {cause}", path.display())
        })?;
        let functions = Functions::find(&library)
            .map_err(|name| format!("{} has no {name}", path.display()))?;
        let marks = [
            c"ef10_ef_eventq_poll",
            c"ef10_ef_eventq_prime",
            c"ef10_receive_get_precise_timestamp",
        ];
        Ok(Self {
            functions,
            lending: lending(&library),
            get_stamp: get_stamp(&library),
            marks: marks.map(|name| address(&library, name)),
            is_stand_in: address(&library, c"fake_ciul_set").is_some(),
            _library: library,
        })
    }

    /// What it says of its release; for people.
    #[must_use]
    pub fn version(&self) -> String {
        // SAFETY: a string of the library.
        unsafe { text((self.functions.ef_vi_version_str)()) }
    }

    /// The interface that it wants the driver to have.
    #[must_use]
    pub fn driver_interface(&self) -> String {
        // SAFETY: a string of the library.
        unsafe { text((self.functions.ef_vi_driver_interface_str)()) }
    }

    /// Whether an address is of the library's code or data.
    pub(super) fn owns(&self, address: usize) -> bool {
        let own = self.functions.ef_vi_init as *const () as usize;
        object_of(address).is_some_and(|object| Some(object) == object_of(own))
    }
}

fn lending(library: &Library) -> Option<Lending> {
    // SAFETY: functions of these names have these types in every release.
    let get = unsafe { library.get(b"efct_vi_rxpkt_get") }.ok()?;
    // SAFETY: the same.
    let release = unsafe { library.get(b"efct_vi_rxpkt_release") }.ok()?;
    Some(Lending {
        get: *get,
        release: *release,
    })
}

fn get_stamp(library: &Library) -> Option<GetStamp> {
    // SAFETY: a function of this name has this type in every release.
    let found = unsafe { library.get(b"ef_vi_receive_get_timestamp_with_sync_flags") };
    found.ok().map(|found| *found)
}

fn address(library: &Library, name: &CStr) -> Option<usize> {
    // SAFETY: only the address is used.
    let found = unsafe { library.get::<*const c_void>(name.to_bytes_with_nul()) }.ok()?;
    Some(found.into_raw() as usize)
}

/// Where the object begins that an address belongs to.
fn object_of(address: usize) -> Option<usize> {
    #[repr(C)]
    struct Info {
        file: *const c_char,
        base: *mut c_void,
        symbol: *const c_char,
        address: *mut c_void,
    }
    unsafe extern "C" {
        fn dladdr(address: *const c_void, info: *mut Info) -> c_int;
    }
    let mut info = Info {
        file: std::ptr::null(),
        base: std::ptr::null_mut(),
        symbol: std::ptr::null(),
        address: std::ptr::null_mut(),
    };
    // SAFETY: any address may be asked for; `info` is written.
    let found = unsafe { dladdr(address as *const c_void, &raw mut info) };
    (found != 0).then_some(info.base as usize)
}

/// # Safety
/// A string that ends with NUL and stays while it is copied.
unsafe fn text(string: *const c_char) -> String {
    // SAFETY: the caller's word.
    let string = unsafe { CStr::from_ptr(string) };
    string.to_string_lossy().trim().to_owned()
}
