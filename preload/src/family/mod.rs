//! The hooked calls, a file for each libc family. Each function is what the hook of that name does:
//! anything that is not ours goes to the original at once.

#![expect(
    missing_docs,
    reason = "each function is the libc call of its name; see its man page"
)]

pub mod epoll;
pub mod fd;
pub mod io;
pub mod ioctl;
pub mod poll;
pub mod process;
pub mod raw;
pub mod recv;
pub mod select;
pub mod send;
pub mod socket;
pub mod stdio;
pub mod uring;
