//! System calls that rustix does not have: one instruction each, no libc.
//!
//! rustix makes every other call of this crate. `bpf()` and one socket option of kernel 6.18 are
//! missing there, and libc's `syscall` and `setsockopt` are our own hooks in the host program.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the system call instruction of each architecture"
)]

use rustix::io::Errno;

/// `SYS_bpf`.
#[cfg(target_arch = "x86_64")]
pub(super) const BPF: usize = 321;
/// `SYS_bpf`.
#[cfg(target_arch = "aarch64")]
pub(super) const BPF: usize = 280;
/// `SYS_setsockopt`.
#[cfg(target_arch = "x86_64")]
pub(super) const SETSOCKOPT: usize = 54;
/// `SYS_setsockopt`.
#[cfg(target_arch = "aarch64")]
pub(super) const SETSOCKOPT: usize = 208;

/// Highest errno that the kernel returns, as a negative result.
const MAX_ERRNO: isize = 4095;

/// Makes a system call of up to five arguments.
///
/// # Errors
/// The kernel's errno.
///
/// # Safety
/// - Each argument that the call takes for an address points to memory that is valid for what the
///   call does with it, for as long as it runs.
/// - The call does nothing to memory or descriptors that somebody else relies on.
pub(super) unsafe fn syscall(number: usize, arguments: [usize; 5]) -> Result<usize, Errno> {
    let result: isize;
    let [one, two, three, four, five] = arguments;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise covers the call's effects; beside the result the kernel changes
    // rcx and r11 only, and it does not touch the stack of the caller.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number.cast_signed() => result,
            in("rdi") one, in("rsi") two, in("rdx") three, in("r10") four, in("r8") five,
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's promise covers the call's effects; beside the result the kernel changes
    // no register, and it does not touch the stack of the caller.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number, inlateout("x0") one.cast_signed() => result,
            in("x1") two, in("x2") three, in("x3") four, in("x4") five, options(nostack)
        );
    }
    if (-MAX_ERRNO..0).contains(&result) {
        return Err(Errno::from_raw_os_error(-(result as i32)));
    }
    Ok(result.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_command_is_an_errno() {
        // SAFETY: no bpf() command has this number, so the kernel touches nothing.
        let answer = unsafe { syscall(BPF, [1 << 20, 0, 0, 0, 0]) };
        assert!(
            matches!(answer, Err(Errno::INVAL | Errno::PERM)),
            "{answer:?}"
        );
    }
}
