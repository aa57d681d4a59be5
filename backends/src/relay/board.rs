//! What a port has counted, on a board that the relay writes now and then and the daemon reads: a
//! memfd with a line for each number, `NAME VALUE`.

use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

/// Largest board in bytes.
const MOST: usize = 64 << 10;

/// Makes an empty board.
///
/// # Errors
/// What `memfd_create` answers.
pub(super) fn create() -> Result<OwnedFd, Errno> {
    rustix::fs::memfd_create("bypass-port", MemfdFlags::CLOEXEC)
}

/// Writes the numbers.
pub(super) fn write(board: &OwnedFd, numbers: impl Iterator<Item = (String, u64)>) {
    let mut text = String::new();
    for (name, value) in numbers {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name} {value}");
    }
    text.truncate(MOST);
    // What cannot be written is read as it was.
    let _ = rustix::io::pwrite(board, text.as_bytes(), 0);
    let _ = rustix::fs::ftruncate(board, text.len() as u64);
}

/// The numbers, as far as they are whole: the relay may be writing.
pub fn read(board: impl AsFd) -> Vec<(String, u64)> {
    let mut bytes = vec![0; MOST];
    let length = rustix::io::pread(board, &mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
    let numbers = text.lines().filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let board = create().unwrap();
        assert_eq!(read(&board), []);
        let numbers = |count: u64| (0..count).map(|at| (format!("rx q{at}"), at * 1000));
        for count in [100, 3] {
            write(&board, numbers(count));
            assert_eq!(read(&board), numbers(count).collect::<Vec<_>>());
        }
        rustix::io::pwrite(&board, b"half\nwhole 7\n", 0).unwrap();
        assert_eq!(read(&board)[0], ("whole".to_owned(), 7));
    }
}
