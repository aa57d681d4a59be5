//! The simulated wire: order, time, faults, conservation.

use proptest::prelude::*;

use super::*;

const SHAPE: Shape = Shape {
    chunk_size: 64,
    entries: 32,
    headroom: 16,
};
const NOISY: Faults = Faults {
    loss: 200,
    duplicate: 200,
    reorder: 200,
    corrupt: 100,
    delay_ns: 0,
    jitter_ns: 0,
    bits_per_second: 0,
    longest: 0,
    in_flight: 0,
};

fn memory() -> SharedMemory {
    Arc::new(Mutex::new(vec![0; 64 * 64]))
}

struct Pair {
    link: SimLink,
    memories: [SharedMemory; 2],
    one: SimQueuePair,
    two: SimQueuePair,
}

fn pair(faults: Faults, seed: u64) -> Pair {
    let memories = [memory(), memory()];
    let (link, [one, mut two]) = SimLink::new(memories.clone(), SHAPE, faults, seed);
    assert_eq!(two.fill(&(0..40).collect::<Vec<_>>()), 32);
    Pair {
        link,
        memories,
        one,
        two,
    }
}

impl Pair {
    fn send(&mut self, byte: u8) {
        held(&self.memories[0])[0] = byte;
        let frame = Transmit {
            chunk: 0,
            offset: 0,
            len: 1,
            stamp: 0,
        };
        assert_eq!(self.one.submit(&[frame]), 1);
        assert!(self.one.needs_doorbell());
        self.one.ring_doorbell().unwrap();
        assert_eq!(self.one.complete(&mut [0; 4]), 1);
    }

    fn received(&mut self) -> Vec<u8> {
        let mut got = [Received::default(); 64];
        let count = self.two.receive(&mut got);
        self.two.received(count);
        let memory = held(&self.memories[1]);
        got[..count]
            .iter()
            .map(|frame| memory[frame.chunk as usize * 64 + frame.offset as usize])
            .collect()
    }
}

fn run(faults: Faults, seed: u64) -> Vec<u8> {
    let mut pair = pair(faults, seed);
    (0..16).for_each(|byte| pair.send(byte));
    pair.received()
}

#[test]
fn a_perfect_wire_keeps_order() {
    assert_eq!(run(Faults::default(), 1), (0..16).collect::<Vec<_>>());
}

#[test]
fn equal_seeds_give_equal_faults_and_others_others() {
    assert_eq!(run(NOISY, 6), run(NOISY, 6));
    assert_ne!(run(NOISY, 6), run(NOISY, 7));
    assert_ne!(run(NOISY, 6), (0..16).collect::<Vec<_>>());
}

#[test]
fn a_frame_arrives_when_its_time_has_come() {
    let faults = Faults {
        delay_ns: 1000,
        ..Faults::default()
    };
    let mut pair = pair(faults, 1);
    pair.send(1);
    pair.link.advance(600);
    pair.send(2);
    assert_eq!(pair.link.next_arrival(), Some(1000));
    pair.link.advance(399);
    assert!(!pair.two.rx_pending());
    pair.link.advance(1);
    assert_eq!(pair.received(), [1]);
    assert_eq!((pair.link.now(), pair.link.in_flight()), (1000, 1));
    pair.link.advance(600);
    assert_eq!(pair.received(), [2]);
    assert_eq!(pair.link.next_arrival(), None);
}

#[test]
fn a_direction_carries_so_many_bits_in_a_second() {
    let faults = Faults {
        bits_per_second: 8_000_000,
        ..Faults::default()
    };
    let mut pair = pair(faults, 1);
    pair.send(1);
    pair.send(2);
    assert_eq!(pair.link.next_arrival(), Some(1000));
    pair.link.advance(1999);
    assert_eq!(pair.received(), [1]);
    pair.link.advance(1);
    assert_eq!(pair.received(), [2]);
}

#[test]
fn nothing_goes_without_a_doorbell_and_nothing_comes_without_a_chunk() {
    let mut pair = pair(Faults::default(), 1);
    let frame = Transmit {
        chunk: 3,
        offset: 8,
        len: 1,
        stamp: 0,
    };
    assert_eq!(pair.two.submit(&[frame]), 1);
    assert_eq!(pair.two.complete(&mut [0; 4]), 0);
    pair.two.ring_doorbell().unwrap();
    assert_eq!(pair.two.complete(&mut [0; 4]), 1);
    assert!(!pair.one.rx_pending());
    assert_eq!(pair.link.statistics().unposted, 1);
}

#[test]
fn long_frames_and_full_wires_lose() {
    let faults = Faults {
        longest: 8,
        in_flight: 2,
        delay_ns: 10,
        ..Faults::default()
    };
    let mut pair = pair(faults, 1);
    let long = Transmit {
        chunk: 0,
        offset: 0,
        len: 9,
        stamp: 0,
    };
    pair.one.submit(&[long]);
    pair.one.ring_doorbell().unwrap();
    pair.one.complete(&mut [0; 4]);
    (0..3).for_each(|byte| pair.send(byte));
    pair.link.advance(10);
    let mut got = [Received::default(); 8];
    assert_eq!(pair.two.receive(&mut got), 2);
    pair.two.received(2);
    assert_eq!(pair.link.statistics().lost, 2);
    pair.link.set_faults(Faults::default());
    pair.send(9);
    assert_eq!(pair.received(), [9]);
}

fn chunks_in(pair: &SimQueuePair) -> Vec<u32> {
    let mut chunks = Vec::new();
    pair.in_rings(&mut |chunk| chunks.push(chunk));
    chunks
}

proptest! {
    /// No chunk is lost or doubled and every frame is accounted for, whatever happens.
    #[test]
    fn chunks_and_frames_are_conserved(
        seed in any::<u64>(),
        chances in any::<[u16; 4]>(),
        jitter_ns in 0_u64..50,
        steps in prop::collection::vec((0_u8..6, 1_usize..9), 1..80),
    ) {
        let [loss, duplicate, reorder, corrupt] = chances.map(|chance| chance % 600);
        let faults = Faults {
            loss, duplicate, reorder, corrupt, jitter_ns,
            ..Faults::default()
        };
        let memories = [memory(), memory()];
        let (link, [mut one, mut two]) = SimLink::new(memories, SHAPE, faults, seed);
        // Chunks that neither end has given away.
        let mut free = [(0..64).collect::<Vec<u32>>(), (0..64).collect::<Vec<u32>>()];
        for (step, count) in steps {
            for (pair, free) in [&mut one, &mut two].into_iter().zip(&mut free) {
                match step {
                    0 => {
                        let given = free.split_off(free.len().saturating_sub(count));
                        let fitted = pair.fill(&given);
                        free.extend(&given[fitted..]);
                    }
                    1 => {
                        let given = free.split_off(free.len().saturating_sub(count));
                        let frames: Vec<Transmit> = given
                            .iter()
                            .map(|&chunk| Transmit { chunk, offset: 4, len: 20, stamp: 0 })
                            .collect();
                        let fitted = pair.submit(&frames);
                        free.extend(&given[fitted..]);
                    }
                    2 => pair.ring_doorbell().unwrap(),
                    3 => {
                        let mut got = vec![Received::default(); count];
                        let got_count = pair.receive(&mut got);
                        pair.received(got_count);
                        free.extend(got[..got_count].iter().map(|frame| frame.chunk));
                    }
                    4 => {
                        let mut done = vec![0; count];
                        let done_count = pair.complete(&mut done);
                        free.extend(&done[..done_count]);
                    }
                    _ => link.advance(count as u64 * 10),
                }
                let mut all = [free.clone(), chunks_in(pair)].concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..64).collect::<Vec<u32>>());
            }
            let Statistics { sent, duplicated, lost, unposted, delivered } = link.statistics();
            let ended = delivered + lost + unposted + link.in_flight() as u64;
            prop_assert_eq!(sent + duplicated, ended);
        }
    }
}
