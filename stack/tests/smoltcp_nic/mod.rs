//! A NIC of smoltcp between two queues: what has arrived, and what it has sent.

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use std::collections::VecDeque;

/// The NIC; its frames are IP packets.
#[derive(Debug)]
pub struct Nic {
    mtu: usize,
    pub arrived: VecDeque<Vec<u8>>,
    pub sent: VecDeque<Vec<u8>>,
}

impl Nic {
    /// With an MTU in bytes.
    pub fn new(mtu: usize) -> Self {
        Self {
            mtu,
            arrived: VecDeque::new(),
            sent: VecDeque::new(),
        }
    }
}

#[derive(Debug)]
pub struct Arrived(Vec<u8>);

#[derive(Debug)]
pub struct Leaves<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Leaves<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Nic {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaves<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Leaves<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Leaves(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Leaves<'_>> {
        Some(Leaves(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}
