//! Lists for `bypassctl`, as JSON.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use bypass_backends::relay::{self, CardFilter, End, InCard, Offloads};
use bypass_proto::control::{QueryKind, VERSION};
use bypass_proto::policy::Backend;
use bypass_stack::cplane::Address;
use bypass_stack::inspect::Image;
use bypass_stack::{EndpointId, IpAddress, QueuePairInfo, SocketAddress};
use serde_json::{Value, json};

use super::counters::Counter;
use super::filters::{Filter, Flow, FlowKind, TCP, Wish};
use super::nics::{self, OpenNic};
use super::port::backend_of;
use super::process::{self, Process};
use super::server::Server;
use super::stacks::{Origin, Queue, StackEntry};
use super::statics::Purpose;
use crate::source::rtnetlink::LinkInfo;

impl Server {
    /// The answer to a query. Users other than root see their own stack and filters only.
    pub(super) fn query(&self, kind: QueryKind, asker: u32) -> Value {
        let sees = |uid: u32| asker == 0 || asker == uid;
        match kind {
            QueryKind::Filters => self.filter_list(sees),
            QueryKind::Stacks => {
                let stacks = self.stacks.iter().filter(|stack| sees(stack.uid));
                stacks.map(|stack| self.stack_object(stack)).collect()
            }
            QueryKind::Daemon => self.daemon_object(),
            QueryKind::Interfaces => {
                let links = self.mirror.links().map(|link| self.link_object(link));
                let is_there = |name: &str| self.mirror.links().any(|link| link.name == name);
                let failed = self.devices.failed().filter(|(name, _)| !is_there(name));
                let failed = failed.map(|(name, reason)| self.failed_device(name, reason));
                links.chain(failed).collect()
            }
        }
    }

    fn filter_list(&self, sees: impl Fn(u32) -> bool) -> Value {
        let mut list = Vec::new();
        let cards = self.cards(&sees);
        for stack in self.stacks.iter().filter(|stack| sees(stack.uid)) {
            let bytes = stack.copy_image().unwrap_or_default();
            let image = Image::attach(&bytes).ok();
            // Ports that the stack keeps show in the flows that use them.
            let listed = |filter: &Filter| filter.uid == stack.uid && !filter.is_port;
            for id in self.filters.ids(listed) {
                if let Some(filter) = self.filters.get(id) {
                    self.filter_objects(&filter, image.as_ref(), &cards, &mut list);
                }
            }
            self.flow_objects(stack, image.as_ref(), &cards, &mut list);
        }
        for filter in self.filters.statics.iter() {
            let (action, owner) = match &filter.purpose {
                Purpose::Keep => ("kernel", Value::Null),
                Purpose::Reserve { user, program } => (
                    "reserve",
                    json!({
                        "pid": null, "uid": user,
                        "program": (!program.is_empty()).then_some(program),
                    }),
                ),
            };
            list.push(json!({
                "id": filter.id, "protocol": protocol(filter.wish.protocol),
                "local": address(&filter.wish.local), "remote": remote(&filter.wish),
                "interface": self.interface_name(filter.wish.ifindex), "backend": null,
                "action": action, "role": null, "owner": owner, "packets": 0, "bytes": 0,
                "state": "static", "hardware": null, "matched_by": null,
            }));
        }
        list.into()
    }

    /// The filters that cards have, by interface. Asked are those with a filter that is seen, all
    /// at once: one that does not answer keeps nobody from the others' answers.
    fn cards(&self, sees: impl Fn(u32) -> bool) -> Cards {
        let is_led = |ifindex| {
            let ids = self.filters.ids(|filter| {
                let mut entries = filter.entries.iter();
                sees(filter.uid) && entries.any(|entry| entry.ifindex == ifindex)
            });
            !ids.is_empty()
        };
        let cards = || self.nics.iter().filter(|(ifindex, _)| is_led(*ifindex));
        let asked: Vec<_> = cards()
            .filter_map(|(ifindex, nic)| Some((ifindex, nic.ask_card()?)))
            .collect();
        let until = Instant::now() + relay::PATIENCE;
        let told = asked.iter().filter_map(|(ifindex, card)| {
            let filters = card.filters(until)?;
            Some((*ifindex, filters))
        });
        let own = cards().filter_map(|(ifindex, nic)| Some((ifindex, nic.rules()?)));
        told.chain(own).collect()
    }

    fn filter_objects(
        &self,
        filter: &Filter,
        image: Option<&Image<'_>>,
        cards: &Cards,
        list: &mut Vec<Value>,
    ) {
        let is_live = filter.is_closing()
            || image.is_some_and(|image| image.endpoint(filter.endpoint).is_some());
        let owner = self.owner(filter, image);
        let object = |nic: Option<(u32, &OpenNic)>, hardware: Value, packets, bytes| {
            let (packets, bytes): (u64, u64) = (packets, bytes);
            json!({
                "id": filter.id, "protocol": protocol(filter.wish.protocol),
                "local": address(&filter.wish.local), "remote": remote(&filter.wish),
                "interface": nic.map(|(ifindex, _)| self.interface_name(ifindex)),
                "backend": nic.map(|(_, nic)| nic.backend().word()), "action": "steer",
                "role": role(filter), "owner": owner, "packets": packets, "bytes": bytes,
                "state": if is_live { "live" } else { "orphan" },
                "matched_by": nic.map(|(_, nic)| matched_by(nic, &hardware)),
                "hardware": hardware,
            })
        };
        let mut seen = false;
        for (ifindex, nic) in self.nics.iter() {
            let mine = || {
                filter
                    .entries
                    .iter()
                    .filter(|entry| entry.ifindex == ifindex)
            };
            if mine().next().is_none() {
                continue;
            }
            let (mut packets, mut bytes) = (0, 0);
            for entry in mine() {
                let now = nic.filter_counters(&entry.flow);
                packets += now.packets.saturating_sub(entry.before.packets);
                bytes += now.bytes.saturating_sub(entry.before.bytes);
            }
            seen = true;
            let flows: Vec<Flow> = mine().map(|entry| entry.flow).collect();
            let hardware = hardware(cards, ifindex, &flows);
            list.push(object(Some((ifindex, nic)), hardware, packets, bytes));
        }
        if !seen {
            list.push(object(None, Value::Null, 0, 0));
        }
    }

    /// The TCP flows of a stack, each with the filter that grants it. Others do nothing.
    fn flow_objects(
        &self,
        stack: &StackEntry,
        image: Option<&Image<'_>>,
        cards: &Cards,
        list: &mut Vec<Value>,
    ) {
        let mut grants = HashMap::new();
        for id in self.filters.ids(|filter| filter.uid == stack.uid) {
            if let Some(filter) = self
                .filters
                .get(id)
                .filter(|filter| filter.wish.protocol == TCP)
            {
                let entries = filter.entries.iter();
                let places = entries.map(|entry| (entry.flow.local, entry.ifindex));
                let filter = Rc::new(filter.clone());
                grants.extend(places.map(|(local, at)| (local, (Rc::clone(&filter), at))));
            }
        }
        for flow in stack.flows.iter() {
            let Some((filter, ifindex)) = grants.get(&flow.local) else {
                continue;
            };
            let hardware = hardware(cards, *ifindex, &[grant(flow.local)]);
            let nic = self.nics.get(*ifindex);
            list.push(json!({
                "id": filter.id, "protocol": protocol(TCP),
                "local": flow.local.to_string(), "remote": flow.remote.to_string(),
                "interface": self.interface_name(*ifindex), "backend": self.backend_word(*ifindex),
                "action": "steer", "role": "flow",
                "owner": self.owner_of(flow.endpoint, filter, image),
                "packets": flow.packets, "bytes": flow.bytes, "state": "live",
                "matched_by": nic.map(|nic| matched_by(nic, &hardware)), "hardware": hardware,
            }));
        }
    }

    fn owner(&self, filter: &Filter, image: Option<&Image<'_>>) -> Value {
        self.owner_of(filter.endpoint, filter, image)
    }

    /// The first living holder of the endpoint; without one, the process that asked.
    fn owner_of(&self, of: EndpointId, filter: &Filter, image: Option<&Image<'_>>) -> Value {
        let holder = image.and_then(|image| {
            let endpoint = image.endpoint(of)?;
            image
                .processes()
                .find(|process| endpoint.is_held_by(process.id))
        });
        let pid = holder
            .and_then(|holder| self.watch.of_slot(filter.uid, holder.id))
            .and_then(|number| self.watch.get(number))
            .map_or(filter.pid, |watched| watched.pid);
        let process = Process::find(pid);
        let program = process.as_ref().map(|process| process.name().to_owned());
        let uid = process.map_or(filter.uid, |process| process.uid);
        json!({"pid": pid, "program": program, "uid": uid})
    }

    fn stack_object(&self, stack: &StackEntry) -> Value {
        let bytes = stack.copy_image().unwrap_or_default();
        let image = Image::attach(&bytes).ok();
        let mut processes: Vec<_> = self
            .watch
            .iter()
            .filter(|(_, watched)| watched.uid == stack.uid)
            .collect();
        processes.sort_by_key(|(_, watched)| watched.slot);
        let processes: Vec<Value> = processes
            .into_iter()
            .map(|(_, watched)| {
                let process = Process::find(watched.pid);
                json!({
                    "slot": watched.slot.0, "pid": watched.pid,
                    "program": process.as_ref().map(|process| process.name().to_owned()),
                    "uid": process.map_or(stack.uid, |process| process.uid),
                })
            })
            .collect();
        let state = match (processes.is_empty(), stack.origin) {
            (true, _) => "idle",
            (false, _) if stack.is_crowded => "crowded",
            (false, Origin::Adopted) => "adopted",
            (false, Origin::Made) => "live",
        };
        json!({
            "id": format!("{:016x}", stack.id), "uid": stack.uid,
            "user": process::user_name(stack.uid),
            "endpoints": image.map(|image| image.endpoints().count()),
            "endpoints_max": stack.capacities.endpoints,
            "chunks": stack.capacities.chunks,
            "chunks_free": image.map(|image| image.chunks().free),
            "chunk_size": stack.chunk_size,
            "filters": self.filters.endpoints(stack.uid).len(),
            "processes": processes,
            "queue_pairs": self.queue_pair_list(stack, image.as_ref()),
            "state": state,
        })
    }

    fn queue_pair_list(&self, stack: &StackEntry, image: Option<&Image<'_>>) -> Value {
        let infos = image
            .map(|image| image.queue_pairs().as_slice())
            .unwrap_or_default();
        let pairs = stack.queues().iter().zip(infos).enumerate();
        pairs
            .filter_map(|(index, (queue, info))| queue.as_ref().map(|queue| (index, queue, info)))
            .map(|(index, queue, info)| {
                json!({
                    "index": index, "interface": self.interface_name(queue.ifindex),
                    "queue": queue.queue, "backend": queue.backend.word(),
                    "mode": self.nics.get(queue.ifindex).map(OpenNic::mode),
                    "zero_copy": info.flags & QueuePairInfo::ZERO_COPY != 0,
                    "live": info.is_live(), "mtu": info.mtu,
                    "rx_packets": info.rx_packets, "rx_bytes": info.rx_bytes,
                    "tx_packets": info.tx_packets, "tx_bytes": info.tx_bytes,
                    "tx_doorbells": info.tx_doorbells,
                })
            })
            .collect()
    }

    fn daemon_object(&self) -> Value {
        // The asker is not among the clients while it is served.
        let counters: Vec<Value> = Counter::ALL
            .iter()
            .map(|&counter| {
                json!({
                    "name": counter.name(), "value": self.counters.get(counter),
                    "sentence": counter.sentence(),
                })
            })
            .collect();
        json!({
            "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"), "protocol": VERSION,
            "uptime_s": self.started.elapsed().as_secs(), "netns": process::own_namespace(),
            "exit_when_idle": self.exit_when_idle,
            "config": self.config.path, "config_error": self.config.error,
            "reload_error": self.reload_error,
            "clients": self.clients.len() + 1, "stacks": self.stacks.len(),
            "filters": self.filters.len(), "counters": counters, "ports": self.port_objects(),
        })
    }

    /// What has been counted in steering: by the relays of devices, then their drivers, and by the
    /// programs on interfaces.
    fn port_objects(&self) -> Value {
        let sentence = |name: &str| {
            let known = relay::COUNTERS.iter().find(|(known, _)| *known == name);
            known.map_or("Counted by the port's driver.", |(_, sentence)| sentence)
        };
        let counter = |(name, value): (String, u64)| {
            let sentence = sentence(&name);
            json!({ "name": name, "value": value, "sentence": sentence })
        };
        let ports = self.devices.counted().map(|(name, backend, numbers)| {
            let counters: Vec<Value> = numbers.into_iter().map(counter).collect();
            json!({ "name": name, "backend": backend.word(), "counters": counters })
        });
        let interfaces = self.nics.iter().filter_map(|(ifindex, nic)| {
            let counters: Vec<Value> = nic.counted()?.map(counter).collect();
            let name = self.interface_name(ifindex);
            Some(json!({ "name": name, "backend": nic.backend().word(), "counters": counters }))
        });
        ports.chain(interfaces).collect()
    }

    fn link_object(&self, link: &LinkInfo) -> Value {
        let is_open = self.nics.get(link.ifindex).is_some();
        let reason = if is_open { None } else { self.why_not(link) };
        self.interface_object(link, reason)
    }

    /// A device of the configuration that is no interface.
    fn failed_device(&self, name: &str, reason: &str) -> Value {
        let link = LinkInfo {
            name: name.to_owned(),
            ..LinkInfo::default()
        };
        let mut object = self.interface_object(&link, Some(reason.to_owned()));
        // No other backend has what is not there.
        for none in ["mac", "given_up"] {
            object[none] = Value::Null;
        }
        object
    }

    fn interface_object(&self, link: &LinkInfo, reason: Option<String>) -> Value {
        let nic = self.nics.get(link.ifindex);
        let has_backend = reason.is_none();
        json!({
            "name": link.name, "ifindex": link.ifindex, "device": self.devices.has(&link.name),
            "mac": mac(&link.mac), "mtu": link.mtu,
            "up": link.is_up(),
            "addresses": self.addresses_of(link.ifindex),
            "backend": has_backend.then(|| self.backend_word(link.ifindex)),
            "mode": nic.map(OpenNic::mode),
            "queues": nic.map_or(link.rx_queues, |nic| nic.queues().len() as u32),
            "own_queue": nic.filter(|nic| nic.rules().is_some()).map(|nic| nic.queues().start),
            "shared": nic.and_then(|nic| nic.shared.as_deref()),
            "unled": nic.and_then(OpenNic::unled),
            "partial_checksums":
                nic.map_or(link.kind == "veth", |nic| nic.has_partial_checksums()),
            "checksums": checksums(self.offloads(link.ifindex)),
            "address": self.devices.address(&link.name),
            "zero_copy": nic.is_some_and(|nic| self.is_zero_copy(link.ifindex, nic)),
            "copies": nic.and_then(|nic| nic.copies.as_deref()),
            "owner": nic.map(|nic| nic.owner),
            "reason": reason, "log": reason.as_ref().and_then(|_| self.nics.failure_log(link.ifindex)),
            "condition": nic.and_then(OpenNic::condition),
            "given_up": self.devices.given_up(&link.name),
        })
    }

    /// What a port does with checksums, also one that no stack has yet.
    fn offloads(&self, ifindex: u32) -> Offloads {
        let of_port = || self.devices.port(ifindex).map(|(nic, _)| nic.offloads);
        let open = self.nics.get(ifindex).map(OpenNic::offloads);
        open.or_else(of_port).unwrap_or_default()
    }

    /// Whether the driver uses the packet memory itself, in all queues of an open interface.
    fn is_zero_copy(&self, ifindex: u32, nic: &OpenNic) -> bool {
        let stack = self.stacks.get(nic.owner);
        let queues = stack.into_iter().flat_map(StackEntry::queues).flatten();
        let mut queues = queues.filter(|queue| queue.ifindex == ifindex).peekable();
        queues.peek().is_some() && queues.all(Queue::is_zero_copy)
    }

    /// Why an interface that is not open could not serve a socket now.
    fn why_not(&self, link: &LinkInfo) -> Option<String> {
        const LARGEST_CHUNK: u32 = 4096;
        let is_port = self.devices.port(link.ifindex).is_some();
        nics::unfit(link, is_port, &self.config.policy.daemon)
            .or_else(|| self.devices.unfit(&link.name))
            .or_else(|| (!link.is_up()).then(|| "it is down".to_owned()))
            .or_else(|| nics::too_big(link, LARGEST_CHUNK))
            .or_else(|| self.nics.failure(link.ifindex).map(str::to_owned))
            .or_else(|| {
                let program = link.xdp_program;
                (program != 0).then(|| {
                    format!("another program has XDP on it (program id {program}; see bpftool net)")
                })
            })
    }

    /// What drives an interface, or would.
    fn backend_word(&self, ifindex: u32) -> &'static str {
        let port = self.devices.port(ifindex);
        let backend = match self.nics.get(ifindex) {
            Some(nic) => nic.backend(),
            None => port.map_or(Backend::AfXdp, |(nic, _)| backend_of(nic)),
        };
        backend.word()
    }

    fn addresses_of(&self, ifindex: u32) -> Vec<String> {
        let mine = self
            .mirror
            .addresses()
            .iter()
            .filter(|address| address.ifindex == ifindex);
        mine.map(prefix).collect()
    }

    fn interface_name(&self, ifindex: u32) -> Value {
        self.mirror
            .link(ifindex)
            .map(|link| link.name.as_str())
            .into()
    }
}

/// Filters of cards, by interface.
type Cards = HashMap<u32, Vec<InCard>>;

/// The card's filters for these flows, in the card's own words; null where no card filters.
fn hardware(cards: &Cards, ifindex: u32, flows: &[Flow]) -> Value {
    let Some(there) = cards.get(&ifindex) else {
        return Value::Null;
    };
    let wanted: Vec<CardFilter> = flows.iter().map(nics::of_card).collect();
    let mine = there.iter().filter(|it| wanted.contains(&it.filter));
    let end = |(ip, port): End| SocketAddress::new(IpAddress(ip), port).to_string();
    mine.map(|it| {
        let [number, kind] = it.cookie;
        json!({
            "local": end(it.filter.local), "remote": it.filter.remote.map(end),
            "queue": it.queue, "cookie": number, "cookie_type": kind,
        })
    })
    .collect()
}

/// Who matches the frames of a filter, of which the card has these.
fn matched_by(nic: &OpenNic, hardware: &Value) -> String {
    let is_physical = |it: &&Value| it["cookie_type"] == relay::PHYSICAL;
    let there = || hardware.as_array().into_iter().flatten();
    let physical = there().filter(is_physical).count();
    nic.matched_by(there().count() > physical, physical > 0)
}

/// The flow that grants a stack the connections of an address.
fn grant(local: SocketAddress) -> Flow {
    Flow {
        local,
        remote: SocketAddress::UNSPECIFIED,
        protocol: TCP,
        kind: FlowKind::Grant,
    }
}

fn protocol(number: u8) -> &'static str {
    if number == TCP { "tcp" } else { "udp" }
}

/// What a TCP filter is for.
fn role(filter: &Filter) -> Option<&'static str> {
    let role = match (filter.wish.listens, filter.is_closing()) {
        (true, _) => "listen",
        (false, true) => "closing",
        (false, false) => "connect",
    };
    (filter.wish.protocol == TCP).then_some(role)
}

/// Who looks at the checksums of frames that come in, and who writes those of frames that go out.
fn checksums(offloads: Offloads) -> Value {
    let who = |is_port| if is_port { "port" } else { "software" };
    json!({ "rx": who(offloads.rx_checksums), "tx": who(offloads.tx_checksums) })
}

fn address(address: &SocketAddress) -> String {
    if address.ip.is_unspecified() {
        format!("*:{}", address.port)
    } else {
        address.to_string()
    }
}

fn remote(wish: &Wish) -> Option<String> {
    (wish.remote != SocketAddress::UNSPECIFIED).then(|| wish.remote.to_string())
}

fn prefix(address: &Address) -> String {
    let bits = if address.ip.is_v4() {
        address.prefix_len.saturating_sub(96)
    } else {
        address.prefix_len
    };
    format!("{}/{bits}", address.ip)
}

fn mac(bytes: &[u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
