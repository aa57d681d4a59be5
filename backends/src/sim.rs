//! A queue pair over plain memory: two of them make a wire for tests.
//!
//! [`wire`] gives two ends. What one end submits the other receives, in its own chunks, in order;
//! [`Faults`] drops, duplicates, reorders and corrupts by a seeded generator, so that equal seeds
//! give
//! equal runs.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::{QueueError, QueuePair, Received, Transmit};

/// Probabilities in 1/1024.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A frame vanishes.
    pub loss: u16,
    /// A frame arrives twice.
    pub duplicate: u16,
    /// A frame overtakes the one before it.
    pub reorder: u16,
    /// One bit of a frame flips.
    pub corrupt: u16,
}

/// Packet memory that both the test and the wire can reach.
pub type SharedMemory = Arc<Mutex<Vec<u8>>>;

#[derive(Debug, Default)]
struct Direction {
    frames: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Link {
    toward: [Direction; 2],
    faults: Faults,
    state: u64,
}

impl Link {
    /// xorshift64*: small, seeded, good enough for choosing faults.
    fn draw(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn happens(&mut self, per_1024: u16) -> bool {
        self.draw() % 1024 < u64::from(per_1024)
    }

    fn carry(&mut self, to: usize, mut frame: Vec<u8>) {
        if self.happens(self.faults.loss) {
            return;
        }
        if self.happens(self.faults.corrupt) && !frame.is_empty() {
            let bit = self.draw() as usize % (frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        let (twice, overtakes) = (
            self.happens(self.faults.duplicate),
            self.happens(self.faults.reorder),
        );
        let queue = &mut self.toward[to].frames;
        if twice {
            queue.push_back(frame.clone());
        }
        if overtakes && !queue.is_empty() {
            let last = queue.len() - 1;
            queue.insert(last, frame);
        } else {
            queue.push_back(frame);
        }
    }
}

/// One end of a wire.
#[derive(Debug)]
pub struct SimQueuePair {
    link: Arc<Mutex<Link>>,
    side: usize,
    memory: SharedMemory,
    chunk_size: usize,
    posted: VecDeque<u32>,
    sent: VecDeque<u32>,
    entries: usize,
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two ends of a wire, each over its own memory, with rings of `entries`.
#[must_use]
pub fn wire(
    memories: [SharedMemory; 2],
    chunk_size: usize,
    entries: usize,
    faults: Faults,
    seed: u64,
) -> [SimQueuePair; 2] {
    let link = Link {
        toward: Default::default(),
        faults,
        state: seed | 1,
    };
    let link = Arc::new(Mutex::new(link));
    let [one, two] = memories;
    [(0, one), (1, two)].map(|(side, memory)| SimQueuePair {
        link: Arc::clone(&link),
        side,
        memory,
        chunk_size,
        posted: VecDeque::new(),
        sent: VecDeque::new(),
        entries,
    })
}

impl QueuePair for SimQueuePair {
    fn receive(&mut self, into: &mut [Received]) -> usize {
        let mut link = held(&self.link);
        let mut memory = held(&self.memory);
        let queue = &mut link.toward[self.side].frames;
        let mut count = 0;
        while count < into.len() && !queue.is_empty() {
            let Some(chunk) = self.posted.pop_front() else {
                break;
            };
            let Some(frame) = queue.pop_front() else {
                break;
            };
            let start = chunk as usize * self.chunk_size;
            let length = frame.len().min(self.chunk_size);
            if let Some(place) = memory.get_mut(start..start + length) {
                place.copy_from_slice(&frame[..length]);
            }
            into[count] = Received {
                chunk,
                offset: 0,
                len: length as u32,
            };
            count += 1;
        }
        count
    }

    fn rx_pending(&self) -> bool {
        !held(&self.link).toward[self.side].frames.is_empty() && !self.posted.is_empty()
    }

    fn fill_space(&self) -> u32 {
        (self.entries - self.posted.len().min(self.entries)) as u32
    }

    fn fill(&mut self, chunks: &[u32]) -> usize {
        let count = chunks.len().min(self.fill_space() as usize);
        self.posted.extend(&chunks[..count]);
        count
    }

    fn submit(&mut self, frames: &[Transmit]) -> usize {
        let count = frames
            .len()
            .min(self.entries - self.sent.len().min(self.entries));
        let mut link = held(&self.link);
        let memory = held(&self.memory);
        for frame in &frames[..count] {
            let start = frame.chunk as usize * self.chunk_size + frame.offset as usize;
            if let Some(bytes) = memory.get(start..start + frame.len as usize) {
                link.carry(1 - self.side, bytes.to_vec());
            }
            self.sent.push_back(frame.chunk);
        }
        count
    }

    fn complete(&mut self, into: &mut [u32]) -> usize {
        let count = into.len().min(self.sent.len());
        for (to, chunk) in into.iter_mut().zip(self.sent.drain(..count)) {
            *to = chunk;
        }
        count
    }

    fn needs_doorbell(&self) -> bool {
        false
    }

    fn ring_doorbell(&self) -> Result<(), QueueError> {
        Ok(())
    }

    fn in_rings(&self, each: &mut dyn FnMut(u32)) {
        self.posted
            .iter()
            .chain(&self.sent)
            .for_each(|&chunk| each(chunk));
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(faults: Faults, seed: u64) -> Vec<u8> {
        let memory = || Arc::new(Mutex::new(vec![0_u8; 64 * 64]));
        let (left, right) = (memory(), memory());
        let [mut one, mut two] = wire(
            [Arc::clone(&left), Arc::clone(&right)],
            64,
            32,
            faults,
            seed,
        );
        assert_eq!(two.fill(&(0..32).collect::<Vec<_>>()), 32);
        for number in 0..16_u8 {
            held(&left)[0] = number;
            assert_eq!(
                one.submit(&[Transmit {
                    chunk: 0,
                    offset: 0,
                    len: 1
                }]),
                1
            );
        }
        let mut got = [Received::default(); 64];
        let count = two.receive(&mut got);
        got[..count]
            .iter()
            .map(|frame| held(&right)[frame.chunk as usize * 64])
            .collect()
    }

    #[test]
    fn a_perfect_wire_keeps_order() {
        assert_eq!(run(Faults::default(), 1), (0..16).collect::<Vec<_>>());
    }

    #[test]
    fn equal_seeds_give_equal_faults() {
        let faults = Faults {
            loss: 200,
            duplicate: 200,
            reorder: 200,
            corrupt: 100,
        };
        assert_eq!(run(faults, 7), run(faults, 7));
        assert_ne!(run(faults, 7), (0..16).collect::<Vec<_>>());
    }
}
