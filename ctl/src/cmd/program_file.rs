//! A program's file: where it is, and whether LD_PRELOAD reaches it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of the file that are looked at: the ELF header and its program headers.
const HEAD: u64 = 4096;
/// `PT_INTERP`: the dynamic loader's name, which a static program lacks.
const INTERPRETER: u32 = 3;

/// The path by which a shell would run this name; it may be a link.
pub(super) fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        let path = std::path::absolute(program).ok();
        return path.filter(|path| path.exists());
    }
    let folders = std::env::var_os("PATH")?;
    let mut files = std::env::split_paths(&folders).map(|folder| folder.join(program));
    files.find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|facts| facts.is_file() && facts.mode() & 0o111 != 0)
}

/// Why LD_PRELOAD does not reach this program; `None` = nothing speaks against it.
pub(super) fn problem(file: &Path) -> Option<&'static str> {
    if is_setid(file) {
        return Some(
            "it is setuid or setgid: the loader ignores LD_PRELOAD, all stays in the kernel",
        );
    }
    let mut head = Vec::new();
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(file)
        .ok()?;
    file.take(HEAD).read_to_end(&mut head).ok()?;
    if is_static(&head) == Some(true) {
        return Some("it is a static program: LD_PRELOAD does nothing, all stays in the kernel");
    }
    None
}

/// Whether the program runs with raised privilege.
pub(super) fn is_setid(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|facts| facts.is_file() && facts.mode() & 0o6000 != 0)
}

/// Whether a 64-bit little-endian ELF file names no dynamic loader; `None` for any other file.
fn is_static(head: &[u8]) -> Option<bool> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | usize::from(*byte)),
        )
    };
    if head.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        if number(table.checked_add(index * entry)?, 4)? == INTERPRETER as usize {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let shell = find(OsStr::new("sh")).expect("a shell");
        assert_eq!(problem(&shell), None);
        assert_eq!(find(OsStr::new("no-such-program-here")), None);
        let mut head = vec![0; 120];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (head[32], head[54], head[56]) = (64, 56, 1);
        assert_eq!(is_static(&head), Some(true));
        head[64] = 3;
        assert_eq!(is_static(&head), Some(false));
        assert_eq!(is_static(b"#!/bin/sh\n"), None);
        for cut in 0..head.len() {
            let _ = is_static(&head[..cut]);
        }
        head[32..40].fill(0xff);
        assert_eq!(is_static(&head), None);
    }
}
