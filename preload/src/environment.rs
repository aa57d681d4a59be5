//! The environment of a program that is about to be executed, with our variables put back.
//!
//! nginx starts its successor with an environment of two variables; without this it would run
//! without us. Variables that the program set itself are left as they are.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: walks the caller's array of C strings"
)]

use std::ffi::{CString, c_char};

use once_cell::sync::OnceCell;

use crate::config;
use crate::family::process::bytes;
use crate::tcp::heir;

/// Our variables, as they were when this program started.
static OURS: OnceCell<Vec<CString>> = OnceCell::new();

/// Notes LD_PRELOAD and BYPASS_* of this process, unless it is one that takes them away for good
/// reasons: sudo, a login server.
pub fn remember() {
    if config::is_kernels() {
        return;
    }
    let _ = OURS.get_or_init(|| {
        std::env::vars_os()
            .filter_map(|(name, value)| {
                let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
                (name == "LD_PRELOAD" || name.starts_with("BYPASS_"))
                    .then(|| CString::new(format!("{name}={value}")).ok())
                    .flatten()
            })
            .collect()
    });
}

/// An array of C strings that ends with a null pointer.
#[derive(Debug)]
pub struct Environment {
    pointers: Vec<*const c_char>,
    /// What the last pointer but one may point to.
    _bequest: Option<CString>,
}

impl Environment {
    /// The given environment, plus those of our variables that it lacks, with the listeners that
    /// the next program inherits.
    ///
    /// # Safety
    /// `envp` is null or an array of C strings that ends with a null pointer; the strings outlive
    /// the result.
    pub unsafe fn with_preload(envp: *const *const c_char) -> Self {
        let mut pointers = Vec::new();
        let mut at = envp;
        // SAFETY: the caller's promise.
        while !at.is_null() && !unsafe { at.read() }.is_null() {
            // SAFETY: not the end yet.
            let string = unsafe { at.read() };
            // SAFETY: the caller's string.
            if !is_named(unsafe { bytes(string) }, heir::VARIABLE.as_bytes()) {
                pointers.push(string);
            }
            // SAFETY: as above.
            at = unsafe { at.add(1) };
        }
        let given = pointers.len();
        for ours in OURS.get().map_or(&[][..], Vec::as_slice) {
            let name = ours
                .to_bytes()
                .split(|&byte| byte == b'=')
                .next()
                .unwrap_or_default();
            let has = pointers[..given].iter().any(|&string| {
                // SAFETY: the caller's strings.
                is_named(unsafe { bytes(string) }, name)
            });
            if !has {
                pointers.push(ours.as_ptr());
            }
        }
        let bequest = heir::bequest();
        pointers.extend(bequest.as_ref().map(|bequest| bequest.as_ptr()));
        pointers.push(std::ptr::null());
        Self {
            pointers,
            _bequest: bequest,
        }
    }

    /// The array, valid while `self` lives.
    pub fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Whether a string of an environment sets this variable.
fn is_named(string: &[u8], name: &[u8]) -> bool {
    string.starts_with(name) && string.get(name.len()) == Some(&b'=')
}
