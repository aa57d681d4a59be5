//! What VIs are made in: driver handles, the protection domain of an interface, a set of VIs.
//!
//! ```text
//!   Handle ──► Domain ──► Set, where there is to be more than one VI
//!                                    (dropped from the right to the left)
//! ```

#![expect(
    unsafe_code,
    reason = "UNSAFETY: makes and frees the library's objects"
)]

use std::ffi::{CString, c_int, c_void};
use std::sync::Arc;

use rustix::io::Errno;

use super::library::Ciul;
use super::reason::CiulError;

/// An open `/dev/sfc_char`. One for each VI: its events wake it.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) ciul: Arc<Ciul>,
    pub(super) fd: c_int,
}

impl Handle {
    pub(super) fn open(ciul: &Arc<Ciul>) -> Result<Arc<Self>, CiulError> {
        let mut fd = -1;
        // SAFETY: writes a descriptor.
        let answer = unsafe { (ciul.functions.ef_driver_open)(&raw mut fd) };
        CiulError::check("ef_driver_open", answer)?;
        let ciul = Arc::clone(ciul);
        Ok(Arc::new(Self { ciul, fd }))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by `open`; nothing that was made by it is left.
        let _ = unsafe { (self.ciul.functions.ef_driver_close)(self.fd) };
    }
}

/// Room for an `ef_pd` (40 bytes in the known releases) or an `ef_vi_set` (16).
#[derive(Debug)]
#[repr(C, align(64))]
struct Place([u8; 128]);

impl Place {
    fn new() -> Box<Self> {
        Box::new(Self([0; 128]))
    }
}

/// A protection domain of an interface.
#[derive(Debug)]
pub(super) struct Domain {
    place: Box<Place>,
    pub(super) handle: Arc<Handle>,
}

impl Domain {
    pub(super) fn of(handle: Arc<Handle>, interface: &str) -> Result<Self, CiulError> {
        let name = CString::new(interface).map_err(|_| CiulError {
            call: "ef_pd_alloc_by_name",
            errno: Errno::INVAL,
        })?;
        let mut place = Place::new();
        let pd = (&raw mut *place).cast();
        let alloc = handle.ciul.functions.ef_pd_alloc_by_name;
        // SAFETY: more room than an ef_pd needs; a string.
        let answer = unsafe { alloc(pd, handle.fd, name.as_ptr(), 0) };
        CiulError::check("ef_pd_alloc_by_name", answer)?;
        Ok(Self { place, handle })
    }

    pub(super) fn pointer(&mut self) -> *mut c_void {
        (&raw mut *self.place).cast()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let pd = self.pointer();
        // SAFETY: allocated by `of`; nothing in it is left.
        let _ = unsafe { (self.handle.ciul.functions.ef_pd_free)(pd, self.handle.fd) };
    }
}

/// A set of VIs, over which the card spreads the flows of each filter by a hash. The library has
/// it point to its domain: that is to live longer, where it is.
#[derive(Debug)]
pub(super) struct Set {
    place: Box<Place>,
    pub(super) handle: Arc<Handle>,
}

impl Set {
    /// A set that so many VIs are to be of.
    pub(super) fn of(domain: &mut Domain, count: u32) -> Result<Self, CiulError> {
        let mut place = Place::new();
        let handle = Arc::clone(&domain.handle);
        let (set, pd, fd) = ((&raw mut *place).cast(), domain.pointer(), handle.fd);
        let alloc = handle.ciul.functions.ef_vi_set_alloc_from_pd;
        // SAFETY: more room than an ef_vi_set needs; a domain and its handle.
        let answer = unsafe { alloc(set, fd, pd, fd, count as c_int) };
        CiulError::check("ef_vi_set_alloc_from_pd", answer)?;
        Ok(Self { place, handle })
    }

    pub(super) fn pointer(&mut self) -> *mut c_void {
        (&raw mut *self.place).cast()
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        let set = self.pointer();
        // SAFETY: allocated by `of`; no VI of it is left.
        let _ = unsafe { (self.handle.ciul.functions.ef_vi_set_free)(set, self.handle.fd) };
    }
}
