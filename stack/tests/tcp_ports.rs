//! Ports that are kept for connections: who gets which, when they rest, when they go.

mod common;

use bypass_stack::tcp::ports::PLACES;
use bypass_stack::*;
use common::{Rig, at, via};

const CAPS: Capacities = Capacities {
    endpoints: 2048,
    chunks: 4096,
    chunk_size: 2048,
};
const SECOND: u64 = 1_000_000_000;
const SERVER: &str = "198.18.0.2:80";

struct Scene {
    rig: Rig,
    now: u64,
}

impl Scene {
    /// Ports from 40,000 on, with filters from 1 on.
    fn with(ports: u16) -> Self {
        let mut rig = Rig::new(CAPS);
        for index in 0..ports {
            let local = at(&format!("198.18.0.1:{}", 40_000 + index));
            assert!(
                rig.stack()
                    .port_add(local, u32::from(index) + 1, Instant(SECOND))
            );
        }
        Self { rig, now: SECOND }
    }

    fn connect(&mut self, remote: &str, urgent: bool) -> Result<(EndpointId, u16), NoPort> {
        let open = TcpOpen {
            family: Family::V4,
            local: at("198.18.0.1:0"),
            process: self.rig.process,
            options: TcpOptions::new(),
            shadow_cookie: 0,
            ifindex: 0,
        };
        let (remote, now) = (at(remote), Instant(self.now));
        let (mut stack, packets) = self.rig.both();
        let (id, local) = stack.tcp_open_any(&open, remote, urgent, now)?;
        stack
            .tcp_start(packets, id, remote, &via("198.18.0.1:0"), now)
            .expect("free");
        Ok((id, local.port))
    }

    /// Resets the connection and lets go of it.
    fn end(&mut self, id: EndpointId) {
        let (now, process) = (Instant(self.now), self.rig.process);
        let (mut stack, packets) = self.rig.both();
        stack.tcp_abort(packets, id, now);
        stack.tcp_close(packets, id, process, now);
        stack.flush(packets, now);
        assert_eq!(stack.take_ended(), None, "its filter stays with the port");
        while self.rig.sent(0).is_some() {}
        self.rig.check();
    }

    fn once(&mut self) -> Result<u16, NoPort> {
        let (id, port) = self.connect(SERVER, false)?;
        self.end(id);
        Ok(port)
    }

    fn used(&mut self) -> usize {
        self.rig.stack().ports().filter(|port| port.is_used).count()
    }
}

#[test]
fn ports_are_used_in_turn_and_rest_a_minute() {
    let mut scene = Scene::with(3);
    assert_eq!(scene.once(), Ok(40_000));
    assert_eq!(scene.once(), Ok(40_001));
    assert_eq!(scene.once(), Ok(40_002));
    assert_eq!(scene.once(), Err(NoPort::Few));
    scene.now += 59 * SECOND;
    assert_eq!(scene.once(), Err(NoPort::Few));
    scene.now += SECOND;
    assert_eq!(scene.once(), Ok(40_000));
}

#[test]
fn without_a_rested_one_another_will_do() {
    let mut scene = Scene::with(1);
    let (id, port) = scene.connect(SERVER, false).expect("a port");
    assert_eq!(scene.used(), 1);
    assert_eq!(scene.connect(SERVER, true), Err(NoPort::Few), "it is used");
    scene.end(id);
    assert_eq!(scene.used(), 0);
    assert_eq!(scene.connect(SERVER, false), Err(NoPort::Few));
    assert_eq!(
        scene.connect(SERVER, true).map(|(_, again)| again),
        Ok(port)
    );
}

#[test]
fn when_there_is_no_room_for_more_the_one_that_rested_longest_is_next() {
    let mut scene = Scene::with(PLACES as u16);
    let local = at("198.18.0.1:1025");
    assert!(!scene.rig.stack().port_add(local, 9999, Instant(SECOND)));
    for turn in 0..2 {
        for port in 0..PLACES as u16 {
            assert_eq!(scene.once(), Ok(40_000 + port), "turn {turn}");
        }
    }
    let all: Vec<EndpointId> = (0..PLACES)
        .map(|_| scene.connect(SERVER, false).expect("a port").0)
        .collect();
    assert_eq!(scene.connect(SERVER, true), Err(NoPort::Exhausted));
    for id in all {
        scene.end(id);
    }
    assert_eq!(scene.once(), Ok(40_000));
}

#[test]
fn other_addresses_have_ports_of_their_own() {
    let mut scene = Scene::with(1);
    let other = at("198.18.0.9:50000");
    assert!(scene.rig.stack().port_add(other, 77, Instant(SECOND)));
    assert_eq!(scene.once(), Ok(40_000));
    assert_eq!(scene.once(), Err(NoPort::Few));
}

#[test]
fn ports_that_nobody_needs_go_back() {
    let mut scene = Scene::with(2);
    assert_eq!(scene.once(), Ok(40_000));
    let (id, _) = scene.connect(SERVER, false).expect("a port");
    let reclaim = |scene: &mut Scene, seconds| {
        scene.now += seconds * SECOND;
        let mut stack = scene.rig.stack();
        stack.ports_reclaim(Instant(scene.now), |_| false);
        stack.ports().map(|port| port.filter).collect::<Vec<u32>>()
    };
    assert_eq!(reclaim(&mut scene, 119), [1, 2]);
    assert_eq!(reclaim(&mut scene, 1), [2], "the other one is used");
    assert_eq!(reclaim(&mut scene, 1000), [2]);
    scene.end(id);
    assert_eq!(reclaim(&mut scene, 120), []);
    assert_eq!(scene.once(), Err(NoPort::Few));
}

#[test]
fn a_program_that_binds_a_port_gets_it_if_it_rests() {
    let mut scene = Scene::with(2);
    let (id, port) = scene.connect(SERVER, false).expect("a port");
    assert_eq!(scene.rig.stack().port_forget(port), None);
    scene.end(id);
    assert_eq!(scene.rig.stack().port_forget(port), Some(1));
    assert_eq!(scene.rig.stack().port_forget(port), None);
    assert_eq!(scene.once(), Ok(40_001));
}

#[test]
fn ports_that_the_owner_has_lost_go_when_they_rest() {
    let mut scene = Scene::with(2);
    let (id, _) = scene.connect(SERVER, false).expect("a port");
    let now = Instant(scene.now);
    let reclaim = |scene: &mut Scene| {
        let mut stack = scene.rig.stack();
        stack.ports_reclaim(now, |_| true);
        stack.ports().count()
    };
    assert_eq!(reclaim(&mut scene), 1);
    scene.end(id);
    assert_eq!(reclaim(&mut scene), 0);
}

#[test]
fn a_connection_whose_port_could_not_be_adopted_ends_without_it() {
    let mut scene = Scene::with(1);
    let (id, _) = scene.connect(SERVER, false).expect("a port");
    scene.rig.stack().port_adopted(0, None);
    assert_eq!(scene.rig.stack().ports().count(), 0);
    let local = at("198.18.0.1:50000");
    assert!(scene.rig.stack().port_add(local, 2, Instant(scene.now)));
    let (other, port) = scene.connect(SERVER, false).expect("the new one");
    assert_eq!(port, 50_000);
    scene.end(id);
    assert_eq!(scene.used(), 1, "the place is another's now");
    scene.end(other);
    assert_eq!(scene.used(), 0);
}

#[test]
fn after_a_recovery_ports_are_used_by_whoever_has_them() {
    let mut scene = Scene::with(3);
    let (id, _) = scene.connect(SERVER, false).expect("a port");
    scene.rig.recover(&[]);
    assert_eq!(scene.used(), 1);
    scene.end(id);
    assert_eq!(scene.used(), 0);
}
