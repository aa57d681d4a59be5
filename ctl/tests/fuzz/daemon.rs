//! Body for what the daemon reads. Must not panic and must come to an end.

use super::proc_text;

/// The input is a file of `/proc`, read as each of them. What was found in it.
pub fn fuzz_proc(data: &[u8]) -> usize {
    let text = String::from_utf8_lossy(data);
    if let Some(stat) = proc_text::stat(&text) {
        assert!(text.contains(stat.name) && !stat.state.is_empty());
    }
    let numbers = ["Uid:", "Gid:", "Groups:", "NSpid:", ""]
        .map(|field| proc_text::numbers(&text, field).len());
    let images = proc_text::mapped(&text, "memfd:bypass-image", "00:01").len();
    usize::from(proc_text::stat(&text).is_some()) + numbers.iter().sum::<usize>() + images
}
