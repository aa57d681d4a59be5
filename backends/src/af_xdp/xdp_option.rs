//! The AF_XDP socket option that rustix does not have.

#![expect(unsafe_code, reason = "UNSAFETY: setsockopt by its system call")]

use std::arch::asm;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// `SOL_XDP`.
const SOL_XDP: usize = 283;
/// `XDP_MAX_TX_SKB_BUDGET` of linux/if_xdp.h (kernel 6.18).
const MAX_TX_SKB_BUDGET: usize = 9;

/// Frames that one doorbell may send in copy mode.
///
/// # Errors
/// `ENOPROTOOPT` on kernels that lack the option.
pub(super) fn set_tx_budget(fd: BorrowedFd<'_>, frames: u32) -> Result<(), Errno> {
    let result: isize;
    let value = (&raw const frames) as usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: setsockopt reads four bytes at `value`; the kernel changes rax, rcx, r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") 54_isize => result,
            in("rdi") fd.as_raw_fd(), in("rsi") SOL_XDP, in("rdx") MAX_TX_SKB_BUDGET,
            in("r10") value, in("r8") size_of::<u32>(),
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; the kernel changes x0 only.
    unsafe {
        asm!(
            "svc 0",
            in("x8") 208, inlateout("x0") fd.as_raw_fd() as isize => result,
            in("x1") SOL_XDP, in("x2") MAX_TX_SKB_BUDGET, in("x3") value,
            in("x4") size_of::<u32>(), options(nostack)
        );
    }
    if result < 0 {
        Err(Errno::from_raw_os_error(-result as i32))
    } else {
        Ok(())
    }
}
