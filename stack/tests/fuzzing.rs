//! Replays the corpus, and random inputs, through the fuzz targets.

mod common;
mod fuzz;

use bypass_stack::wire::icmp;
use common::{Random, TcpFields, at, datagram, tcp_frame};
use proptest::prelude::*;
use std::path::PathBuf;

/// Inputs that once failed or that reach deep, as files.
fn corpus(kind: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(kind);
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

#[test]
fn corpus_of_frames() {
    let inputs = corpus("frame");
    assert!(!inputs.is_empty());
    inputs.iter().for_each(|data| fuzz::fuzz_frame(data));
}

#[test]
fn corpus_of_segments() {
    let inputs = corpus("segment");
    assert!(!inputs.is_empty());
    inputs.iter().for_each(|data| fuzz::fuzz_segment(data));
}

#[test]
fn corpus_of_icmp() {
    let inputs = corpus("icmp");
    assert!(!inputs.is_empty());
    let errors = |bytes: &Vec<u8>| [icmp::parse_v4(bytes), icmp::parse_v6(bytes)];
    assert!(
        inputs
            .iter()
            .filter_map(|input| errors(input).into_iter().flatten().next())
            .count()
            >= 2
    );
    inputs.iter().for_each(|input| fuzz::fuzz_icmp(input));
}

#[test]
fn icmp_errors_with_a_few_bytes_changed() {
    let inputs = corpus("icmp");
    let mut random = Random(5);
    for _ in 0..20_000 {
        let mut bytes = inputs[random.below(inputs.len() as u64) as usize].clone();
        for _ in 0..random.below(4) {
            let place = random.below(bytes.len() as u64) as usize;
            bytes[place] = random.next() as u8;
        }
        bytes.truncate(random.below(2 * bytes.len() as u64) as usize);
        fuzz::fuzz_icmp(&bytes);
    }
}

#[test]
fn corpus_of_tcp() {
    let inputs = corpus("tcp");
    assert!(!inputs.is_empty());
    inputs
        .iter()
        .for_each(|data| fuzz::connections::fuzz_tcp(data));
}

/// Random programs of segments, calls and time; `BYPASS_ROUNDS=n` for more of them, from
/// `BYPASS_SEED` on.
#[test]
fn segments_and_calls_in_any_order() {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let first: u64 = number("BYPASS_SEED").unwrap_or(1);
    for seed in first..first + number("BYPASS_ROUNDS").unwrap_or(300) {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        let len = 20 + random.below(900);
        let data: Vec<_> = (0..len).map(|_| (random.next() >> 32) as u8).collect();
        let done = std::panic::catch_unwind(|| fuzz::connections::fuzz_tcp(&data));
        assert!(done.is_ok(), "seed {seed}");
    }
}

#[test]
fn corpus_of_images() {
    let inputs = corpus("image");
    assert!(!inputs.is_empty());
    inputs.iter().for_each(|data| fuzz::fuzz_image(data));
}

#[test]
fn frames_with_a_few_bytes_changed() {
    let mut random = Random(0xf00d);
    let frames = [
        datagram(
            at("198.18.0.2:6000"),
            at("198.18.0.1:5000"),
            b"some payload",
        ),
        datagram(
            at("[2001:db8::2]:6000"),
            at("[2001:db8::1]:5000"),
            b"some payload",
        ),
    ];
    for round in 0..4000 {
        let mut data = vec![random.next() as u8];
        data.extend(&frames[round % 2]);
        for _ in 0..random.below(4) {
            let place = random.below(data.len() as u64) as usize;
            data[place] = random.next() as u8;
        }
        data.truncate(data.len() - random.below(3) as usize);
        fuzz::fuzz_frame(&data);
    }
}

/// Options of every kind behind a good header, right and wrong, with a few bytes changed.
#[test]
fn segments_with_odd_options() {
    let mut random = Random(0x0b7);
    let pieces: [&[u8]; 8] = [
        &[1],
        &[0],
        &[2, 4, 5, 180],
        &[3, 3, 200],
        &[4, 2],
        &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
        &[5, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        &[254, 4, 0xf9, 0x89],
    ];
    for round in 0..6000 {
        let mut options = Vec::new();
        while options.len() < 36 && random.chance(80) {
            options.extend(pieces[random.below(8) as usize]);
        }
        options.resize(options.len().min(40).next_multiple_of(4), 0);
        if !options.is_empty() && random.chance(50) {
            let place = random.below(options.len() as u64) as usize;
            options[place] = random.below(12) as u8;
        }
        let (from, to) = if round % 2 == 0 {
            ("198.18.0.2:6000", "198.18.0.1:5000")
        } else {
            ("[2001:db8::2]:6000", "[2001:db8::1]:5000")
        };
        let fields = TcpFields {
            flags: random.next() as u16 & 0xfff,
            options: &options,
            payload: &[7; 9][..random.below(9) as usize],
            ..TcpFields::default()
        };
        let mut data = vec![random.next() as u8];
        data.extend(tcp_frame(at(from), at(to), &fields));
        if random.chance(20) {
            let place = random.below(data.len() as u64) as usize;
            data[place] ^= 1 << random.below(8);
        }
        fuzz::fuzz_segment(&data);
    }
}

/// Changes that hit what matters: the head, the tables, endpoints and chunk slots, with values that
/// are plausible links.
#[test]
fn images_with_plausible_changes() {
    let mut random = Random(0xbad1);
    for _ in 0..1000 {
        let mut data = Vec::new();
        for _ in 0..1 + random.below(12) {
            let place = match random.below(4) {
                0 => 64 + random.below(32),
                1 => 3168 + random.below(600),
                _ => 7800 + random.below(128 + 8 * 192 + 16 * 64),
            };
            let value = match random.below(4) {
                0 => 0xff,
                1 => random.below(20) as u8,
                2 => random.below(4) as u8,
                _ => random.next() as u8,
            };
            data.extend([place as u8, (place >> 8) as u8, 0, value]);
        }
        fuzz::fuzz_image(&data);
    }
}

/// Changes of whole words anywhere, so that control blocks, minisockets and segments are hit too.
#[test]
fn images_with_changed_words() {
    let mut random = Random(0x70b5);
    for _ in 0..500 {
        let mut data = Vec::new();
        for _ in 0..1 + random.below(40) {
            let place = random.below(1 << 22) as u32 * 4;
            let value = match random.below(4) {
                0 => u32::MAX,
                1 => random.below(20) as u32,
                2 => 1 << random.below(32),
                _ => random.next() as u32,
            };
            for (nth, byte) in value.to_le_bytes().into_iter().enumerate() {
                let place = (place + nth as u32).to_le_bytes();
                data.extend([place[0], place[1], place[2], byte]);
            }
        }
        fuzz::fuzz_image(&data);
    }
}

proptest! {
    #[test]
    fn arbitrary_frames(data: Vec<u8>) {
        fuzz::fuzz_frame(&data);
    }

    #[test]
    fn arbitrary_icmp(data: Vec<u8>) {
        fuzz::fuzz_icmp(&data);
    }

    #[test]
    fn arbitrary_segments(data: Vec<u8>) {
        fuzz::fuzz_segment(&data);
    }

    #[test]
    fn arbitrary_changes_of_images(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz::fuzz_image(&data);
    }

    #[test]
    fn arbitrary_bytes_are_no_image(words in proptest::collection::vec(any::<u64>(), 0..2000)) {
        use zerocopy::IntoBytes;
        let mut words = words;
        if let Some(first) = words.first_mut() {
            *first = bypass_stack::MAGIC;
        }
        if let Some(second) = words.get_mut(1) {
            *second = u64::from(bypass_stack::LAYOUT_VERSION) | 1 << 32;
        }
        let _ = bypass_stack::Stack::attach(words.as_mut_bytes());
        let _ = bypass_stack::inspect::Image::attach(words.as_bytes());
    }
}
