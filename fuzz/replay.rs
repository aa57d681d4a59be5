//! Replays a corpus through a fuzz target, for the tests of the crate that includes this file.

use std::path::PathBuf;

/// The inputs of `tests/corpus/KIND`, each as it is, cut off and with bytes changed. The target
/// counts what it has found: something must be in each.
pub fn replay(kind: &str, body: impl Fn(&[u8]) -> usize) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(kind);
    let entries = std::fs::read_dir(folder).expect("corpus");
    let files = entries.map(|entry| entry.expect("entry").path());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut count = 0;
    for file in files {
        let input = std::fs::read(&file).expect("input");
        assert!(body(&input) > 0, "{}", file.display());
        count += 1;
        for _ in 0..2000 {
            let mut changed = input.clone();
            for _ in 0..random(8) {
                let place = random(input.len());
                changed[place] = random(256) as u8;
            }
            changed.truncate(random(2 * input.len()));
            body(&changed);
        }
    }
    assert!(count > 0);
}
