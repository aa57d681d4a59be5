//! Replays the corpus, and random inputs, through the fuzz targets.

mod fuzz;

use std::path::PathBuf;

use bypass_proto::control::{MAGIC, Request, RequestKind, VERSION};
use bypass_proto::options::TABLE;
use proptest::prelude::*;
use zerocopy::IntoBytes;

/// Replays a folder of inputs.
fn corpus(kind: &str, body: impl Fn(&[u8])) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(kind);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("corpus")
        .map(|entry| entry.expect("entry").path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        body(&std::fs::read(file).expect("input"));
    }
}

#[test]
fn corpus_of_messages() {
    corpus("request", fuzz::fuzz_message);
}

#[test]
fn corpus_of_policies() {
    corpus("policy", fuzz::fuzz_policy);
}

#[test]
fn corpus_of_options() {
    corpus("options", fuzz::fuzz_options);
}

#[test]
fn corpus_of_reports() {
    corpus("report", fuzz::fuzz_report);
}

/// A value as somebody might type it.
fn value() -> impl Strategy<Value = String> {
    let known = [
        "0",
        "1",
        "off",
        "latency",
        "yes",
        "-1",
        "4294967296",
        "/x",
        "auto",
        "",
        " 1",
    ];
    prop_oneof![
        proptest::sample::select(known.to_vec()).prop_map(str::to_owned),
        "\\PC{0,12}",
    ]
}

proptest! {
    #[test]
    fn any_message(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        fuzz::fuzz_message(&bytes);
    }

    #[test]
    fn a_message_with_bytes_changed(
        fields in any::<[u8; size_of::<Request>()]>(),
        keep in 0..13_usize,
        length in 0..2 * size_of::<Request>(),
    ) {
        let mut bytes = fields.to_vec();
        let good = Request { magic: MAGIC, version: VERSION, ..Request::new(RequestKind::Attach) };
        bytes[..keep].copy_from_slice(&good.as_bytes()[..keep]);
        bytes.resize(length, 7);
        fuzz::fuzz_message(&bytes);
        bytes.resize(size_of::<Request>(), 7);
        fuzz::fuzz_message(&bytes);
    }

    #[test]
    fn any_policy(bytes in proptest::collection::vec(any::<u8>(), 0..256), text in "\\PC{0,64}") {
        fuzz::fuzz_policy(&bytes);
        fuzz::fuzz_policy(text.as_bytes());
    }

    #[test]
    fn any_environment(lines in proptest::collection::vec((0..2 * TABLE.len(), value()), 0..8)) {
        let mut text = String::new();
        for (index, value) in lines {
            let name = TABLE.get(index).map_or("BYPASS_NO_SUCH", |info| info.name);
            text += &format!("{name}={}\n", value.replace('\n', ""));
        }
        fuzz::fuzz_options(text.as_bytes());
    }

    #[test]
    fn any_report(bytes in proptest::collection::vec(any::<u8>(), 0..8192)) {
        fuzz::fuzz_report(&bytes);
    }
}
