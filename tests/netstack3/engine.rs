//! netstack3, the engine of Fuchsia, on the contexts of its own tests: they keep its time, its
//! timers, its sockets' buffers and the packets that it sends.

use bypass_stack::{IpAddress, SocketAddress};
use net_types::ip::{AddrSubnetEither, IpAddr, IpVersion, Ipv6, Ipv6Addr, Mtu};
use net_types::{SpecifiedAddr, ZonedAddr};
use netstack3_base::testutil::{FakeInstant, WithFakeTimerContext as _};
use netstack3_core::device::{
    PureIpDevice, PureIpDeviceCreationProperties, PureIpDeviceId, PureIpDeviceReceiveFrameMetadata,
    WeakDeviceId,
};
use netstack3_core::routes::{AddableEntryEither, AddableMetric};
use netstack3_core::socket::ShutdownType;
use netstack3_core::tcp::{TcpSocketId, TcpSocketState};
use netstack3_core::testutil::{
    CtxPairExt as _, DEFAULT_INTERFACE_METRIC, FakeBindingsCtx, FakeCtx,
};
use netstack3_tcp::testutil::{ClientBuffers, ProvidedBuffers, WriteBackClientBuffers};
use packet::Buf;
use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroUsize};
use std::time::Duration;

/// A socket. One of IPv6 takes IPv4 addresses too, mapped.
pub type Id = TcpSocketId<Ipv6, WeakDeviceId<FakeBindingsCtx>, FakeBindingsCtx>;

/// A connection: its socket and the program's side of its buffers, which come with the handshake.
pub struct Connection {
    id: Id,
    buffers: WriteBackClientBuffers,
}

impl Connection {
    fn buffers(&self) -> Option<ClientBuffers> {
        self.buffers.0.lock().clone()
    }
}

/// Bytes that wait behind those in the send buffer, whose limit the tests' buffers do not have.
const WAITING: usize = 20_000;

/// The engine with one device. It panics when it is dropped before what refers to it.
pub struct Engine {
    device: PureIpDeviceId<FakeBindingsCtx>,
    context: FakeCtx,
    sent: VecDeque<Vec<u8>>,
}

fn v6(
    address: IpAddress,
) -> Option<ZonedAddr<SpecifiedAddr<Ipv6Addr>, netstack3_core::device::DeviceId<FakeBindingsCtx>>> {
    SpecifiedAddr::new(Ipv6Addr::from_bytes(address.0)).map(ZonedAddr::Unzoned)
}

fn instant(now: u64) -> FakeInstant {
    FakeInstant::from(Duration::from_nanos(now))
}

impl Engine {
    pub fn new(address: IpAddress, mtu: u16, seed: u128, now: u64) -> Self {
        let mut context = FakeCtx::default();
        context.bindings_ctx.seed_rng(seed);
        context.bindings_ctx.sleep(Duration::from_nanos(now));
        let properties = PureIpDeviceCreationProperties {
            mtu: Mtu::new(u32::from(mtu)),
            tx_offload_spec: Default::default(),
        };
        let device = context
            .core_api()
            .device::<PureIpDevice>()
            .add_device_with_default_state(properties, DEFAULT_INTERFACE_METRIC);
        let any = device.clone().into();
        context.test_api().enable_device(&any);
        let (ip, prefix) = match address.to_v4() {
            Some(v4) => (IpAddr::V4(v4.into()), 24),
            None => (IpAddr::V6(Ipv6Addr::from_bytes(address.0)), 64),
        };
        let subnet = AddrSubnetEither::new(ip, prefix).expect("a subnet");
        let addresses = context.core_api();
        addresses
            .device_ip_any()
            .add_ip_addr_subnet(&any, subnet)
            .expect("an address");
        let (_, subnet) = subnet.addr_subnet();
        let metric = AddableMetric::MetricTracksInterface;
        let route = AddableEntryEither::without_gateway(subnet, any, metric);
        context.test_api().add_route(route).expect("a route");
        Self {
            context,
            device,
            sent: VecDeque::new(),
        }
    }

    fn bind(&mut self, socket: &Id, port: u16) {
        let port = NonZeroU16::new(port);
        self.context
            .core_api()
            .tcp::<Ipv6>()
            .bind(socket, None, port)
            .expect("a port");
    }

    pub fn listen(&mut self, port: u16, backlog: usize) -> Id {
        let mut api = self.context.core_api().tcp::<Ipv6>();
        let socket = api.create(ProvidedBuffers::NoBuffers);
        self.bind(&socket, port);
        let backlog = NonZeroUsize::new(backlog).expect("a backlog");
        let mut api = self.context.core_api().tcp::<Ipv6>();
        api.listen(&socket, backlog).expect("a listener");
        socket
    }

    pub fn accept(&mut self, listener: &Id) -> Option<Connection> {
        let accepted = self.context.core_api().tcp::<Ipv6>().accept(listener);
        let (id, _, given) = accepted.ok()?;
        let buffers = WriteBackClientBuffers::default();
        *buffers.0.lock() = Some(given);
        Some(Connection { id, buffers })
    }

    pub fn connect(&mut self, from: u16, to: SocketAddress) -> Connection {
        let buffers = WriteBackClientBuffers::default();
        let provided = ProvidedBuffers::Buffers(buffers.clone());
        let id = self.context.core_api().tcp::<Ipv6>().create(provided);
        self.bind(&id, from);
        let port = NonZeroU16::new(to.port).expect("a port");
        let mut api = self.context.core_api().tcp::<Ipv6>();
        api.connect(&id, v6(to.ip), port).expect("a SYN");
        Connection { id, buffers }
    }

    pub fn receive(&mut self, packet: Vec<u8>) {
        let ip_version = match packet[0] >> 4 {
            4 => IpVersion::V4,
            _ => IpVersion::V6,
        };
        let meta = PureIpDeviceReceiveFrameMetadata {
            device_id: self.device.clone(),
            ip_version,
            parsing_context: Default::default(),
        };
        let mut api = self.context.core_api().device::<PureIpDevice>();
        api.receive_frame(meta, Buf::new(packet, ..));
    }

    /// Runs the timers that are due; time is `now` afterwards.
    pub fn run_timers(&mut self, now: u64) {
        let _ran: Vec<_> = self.context.trigger_timers_until_instant(instant(now));
    }

    pub fn next_deadline(&self) -> Option<u64> {
        self.context.with_fake_timer_ctx(|timers| {
            let next = timers.timers.peek()?;
            Some(next.0.offset.as_nanos() as u64)
        })
    }

    /// The next TCP segment that leaves; what else the engine sends to the network is left out.
    pub fn sent(&mut self) -> Option<Vec<u8>> {
        let fresh = self.context.bindings_ctx.take_ip_frames();
        let is_tcp = |packet: &Vec<u8>| match packet[0] >> 4 {
            4 => packet[9] == 6,
            _ => packet[6] == 6,
        };
        let packets = fresh.into_iter().map(|(_, packet)| packet);
        self.sent.extend(packets.filter(is_tcp));
        self.sent.pop_front()
    }

    pub fn write(&mut self, connection: &Connection, bytes: &[u8]) -> usize {
        let Some(buffers) = connection.buffers() else {
            return 0;
        };
        let mut waiting = buffers.send.lock();
        let taken = bytes.len().min(WAITING.saturating_sub(waiting.len()));
        waiting.extend_from_slice(&bytes[..taken]);
        drop(waiting);
        self.context
            .core_api()
            .tcp::<Ipv6>()
            .do_send(&connection.id);
        taken
    }

    pub fn read(&mut self, connection: &Connection, into: &mut [u8]) -> usize {
        let Some(buffers) = connection.buffers() else {
            return 0;
        };
        let mut got = 0;
        buffers.receive.lock().read_with(|pieces| {
            for piece in pieces {
                let len = piece.len().min(into.len() - got);
                into[got..got + len].copy_from_slice(&piece[..len]);
                got += len;
            }
            got
        });
        if got > 0 {
            let mut api = self.context.core_api().tcp::<Ipv6>();
            api.on_receive_buffer_read(&connection.id);
        }
        got
    }

    pub fn shut_down(&mut self, connection: &Connection) {
        let mut api = self.context.core_api().tcp::<Ipv6>();
        api.shutdown(&connection.id, ShutdownType::Send)
            .expect("a connection");
    }

    pub fn state(&mut self, connection: &Connection) -> TcpSocketState {
        let mut api = self.context.core_api().tcp::<Ipv6>();
        api.get_tcp_info(&connection.id).state
    }
}
