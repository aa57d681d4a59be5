//! Our stack and netstack3, the engine of Fuchsia, over a bad wire. One seed decides everything:
//! `BYPASS_SEED=n` repeats one, `BYPASS_SEEDS=n` runs so many.

#[path = "../../stack/tests/common/mod.rs"]
mod common;
mod engine;
#[path = "../../stack/tests/tcp_sim/mod.rs"]
mod tcp_sim;

use bypass_stack::SocketAddress;
use common::Random;
use engine::{Connection, Engine, Id};
use netstack3_core::tcp::TcpSocketState;
use tcp_sim::host::address;
use tcp_sim::peer::{self, CLIENT, Peer};
use tcp_sim::plan::Plan;

/// netstack3 with one connection.
struct Netstack3 {
    listener: Option<Id>,
    connection: Option<Connection>,
    engine: Engine,
}

impl Netstack3 {
    fn state(&mut self) -> Option<TcpSocketState> {
        let connection = self.connection.as_ref()?;
        Some(self.engine.state(connection))
    }
}

impl Peer for Netstack3 {
    fn new(plan: &Plan, random: &mut Random) -> Self {
        let seed = u128::from(random.next()) << 64 | 1;
        let address = address(1, plan.ipv6);
        Self {
            engine: Engine::new(address, plan.mtu[1], seed, plan.start_ns),
            listener: None,
            connection: None,
        }
    }

    fn listen(&mut self, port: u16) {
        self.listener = Some(self.engine.listen(port, 4));
    }

    fn connect(&mut self, to: SocketAddress) {
        self.connection = Some(self.engine.connect(CLIENT, to));
    }

    fn receive(&mut self, packet: Vec<u8>, now: u64) {
        self.engine.run_timers(now);
        self.engine.receive(packet);
    }

    fn poll(&mut self, now: u64) {
        self.engine.run_timers(now);
        if let (Some(listener), None) = (&self.listener, &self.connection) {
            self.connection = self.engine.accept(listener);
        }
    }

    fn next_at(&mut self, _: u64) -> Option<u64> {
        self.engine.next_deadline()
    }

    fn sent(&mut self) -> Option<Vec<u8>> {
        self.engine.sent()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        match &self.connection {
            Some(connection) => self.engine.write(connection, bytes),
            None => 0,
        }
    }

    fn read(&mut self, into: &mut [u8]) -> Option<usize> {
        let Some(connection) = &self.connection else {
            return Some(0);
        };
        let got = self.engine.read(connection, into);
        let ended = matches!(
            self.engine.state(connection),
            TcpSocketState::CloseWait
                | TcpSocketState::Closing
                | TcpSocketState::LastAck
                | TcpSocketState::TimeWait
                | TcpSocketState::Close
        );
        (got > 0 || !ended).then_some(got)
    }

    fn shut_down(&mut self) -> bool {
        let may = !matches!(self.state(), None | Some(TcpSocketState::SynSent));
        if may && let Some(connection) = &self.connection {
            self.engine.shut_down(connection);
        }
        may
    }

    fn is_over(&mut self) -> bool {
        matches!(
            self.state(),
            Some(TcpSocketState::Close | TcpSocketState::TimeWait)
        )
    }
}

#[test]
fn seeds() {
    peer::run_seeds::<Netstack3>(60);
}
