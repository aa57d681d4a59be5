//! The calls that a script makes on sockets, and what it expects of them.

use super::flow::{our_byte, peer_byte};
use super::machine::Machine;
use super::words::{Outcome, Words, comparison, errno, errno_name, fit, holds, number};
use crate::common::via;
use bypass_stack::tcp::congestion;
use bypass_stack::wire::icmp::Trouble;
use bypass_stack::*;
use std::collections::BTreeMap;

/// The sockets of a script by name.
#[derive(Debug, Default)]
pub struct Sockets {
    named: BTreeMap<String, Socket>,
    options: Option<TcpOptions>,
}

#[derive(Debug, Clone, Copy)]
struct Socket {
    id: EndpointId,
    /// Relative sequence number of the next byte to write and to read.
    written: u32,
    read: u32,
    edges: (u32, u32),
}

impl Sockets {
    pub fn all(&self) -> Vec<EndpointId> {
        self.named.values().map(|socket| socket.id).collect()
    }

    fn get(&mut self, name: &str) -> Outcome<&mut Socket> {
        self.named
            .get_mut(name)
            .ok_or_else(|| format!("no such socket: {name}"))
    }

    fn add(&mut self, name: &str, id: EndpointId) {
        let socket = Socket {
            id,
            written: 1,
            read: 1,
            edges: (0, 0),
        };
        self.named.insert(name.to_owned(), socket);
    }
}

/// A state's name as RFC 9293 writes it.
fn state_name(state: TcpState) -> &'static str {
    match state {
        TcpState::Established => "ESTABLISHED",
        TcpState::SynSent => "SYN_SENT",
        TcpState::SynReceived => "SYN_RECEIVED",
        TcpState::FinWait1 => "FIN_WAIT_1",
        TcpState::FinWait2 => "FIN_WAIT_2",
        TcpState::TimeWait => "TIME_WAIT",
        TcpState::Closed => "CLOSED",
        TcpState::CloseWait => "CLOSE_WAIT",
        TcpState::LastAck => "LAST_ACK",
        TcpState::Listen => "LISTEN",
        TcpState::Closing => "CLOSING",
    }
}

pub const CA: [&str; 5] = ["OPEN", "DISORDER", "CWR", "RECOVERY", "LOSS"];

pub const EVENTS: [(&str, u32); 6] = [
    ("IN", event::IN),
    ("OUT", event::OUT),
    ("ERR", event::ERR),
    ("HUP", event::HUP),
    ("RDHUP", event::RDHUP),
    ("PRI", event::PRI),
];

/// Fills in what we write from this relative sequence number on.
fn write_from(mut at: u32) -> impl FnMut(&mut [u8]) {
    move |piece| {
        for byte in piece {
            *byte = our_byte(at);
            at = at.wrapping_add(1);
        }
    }
}

/// What a write that makes a connection returns when its SYN took so many bytes.
fn or_in_progress(taken: usize) -> Result<usize, TcpError> {
    match taken {
        0 => Err(TcpError::Errno(libc::EINPROGRESS)),
        taken => Ok(taken),
    }
}

/// The result of a call as a script writes it.
fn result_name(result: Result<usize, TcpError>) -> String {
    match result {
        Ok(count) => count.to_string(),
        Err(TcpError::WouldBlock) => "EAGAIN".to_owned(),
        Err(TcpError::Stale) => "stale".to_owned(),
        Err(TcpError::Errno(number)) => errno_name(number),
    }
}

/// How an error begins that tells the result of a call; `-> ?` asks for it.
pub const TOLD: &str = "the result is ";

/// `-> WHAT` at the end of a call; without it the call must do all.
pub fn check_result(words: &mut Words<'_>, found: &str, usual: &str) -> Outcome<()> {
    let wanted = if words.peek() == Some("->") {
        words.next();
        words.want("result")?
    } else {
        usual
    };
    if found == wanted {
        Ok(())
    } else {
        Err(format!("{TOLD}{found}, expected {wanted}"))
    }
}

impl Machine {
    /// A call on a socket.
    pub fn call(&mut self, verb: &str, words: &mut Words<'_>) -> Outcome<()> {
        let name = words.want("socket")?;
        match verb {
            "listen" => self.listen(name, words),
            "connect" => self.connect(name, words),
            "fast" => self.send_fast(name, words),
            "accept" => self.accept(name, words),
            "send" => self.send(name, words),
            "recv" => self.receive(name, words),
            "oob" => self.receive_urgent(name, words),
            "shutdown" => self.shutdown(name, words),
            "close" => self.close(name),
            "abort" => {
                let id = self.sockets.get(name)?.id;
                self.with(|stack, packets, now| stack.tcp_abort(packets, id, now));
                Ok(())
            }
            "path-mtu" => {
                let id = self.sockets.get(name)?.id;
                let mtu = fit(words.want("bytes")?)?;
                let quoted = match words.next() {
                    Some(seq) => Some(self.our_seq(fit(seq)?)),
                    None => None,
                };
                self.with(|stack, packets, now| stack.tcp_path_mtu(packets, id, mtu, quoted, now))
                    .map(|_| ())
                    .map_err(|_| "stale".to_owned())
            }
            "unreachable" => {
                let id = self.sockets.get(name)?.id;
                let wanted = words.want("errno")?;
                let error = errno(wanted).ok_or_else(|| format!("unknown errno: {wanted}"))?;
                let no_route = wanted == "EHOSTUNREACH";
                match words.next() {
                    Some(seq) => {
                        let ends_request = match wanted {
                            "EPROTO" => true,
                            "EHOSTUNREACH" => self.is_v4,
                            _ => !self.is_v4,
                        };
                        let trouble = Trouble::Unreachable {
                            errno: error,
                            no_route,
                            ends_request,
                        };
                        self.icmp(fit(seq)?, trouble);
                    }
                    None => self.with(|stack, _, now| {
                        stack.tcp_unreachable(id, (error, no_route), None, now);
                    }),
                }
                Ok(())
            }
            "option" => self.option(name, words),
            "expect" => self.expect(name, words),
            "info" => self.info(name, words),
            "edges" => self.edges(name, words),
            _ => Err(format!("unknown action: {verb}")),
        }
    }

    fn open(&mut self) -> TcpOpen {
        TcpOpen {
            family: if self.is_v4 { Family::V4 } else { Family::V6 },
            local: self.local(),
            process: self.rig.process,
            options: self.sockets.options.take().unwrap_or_default(),
            shadow_cookie: 1,
            ifindex: 0,
        }
    }

    fn listen(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let backlog = match words.next() {
            Some(count) => fit(count)?,
            None => 16,
        };
        let open = self.open();
        let id = self
            .with(|stack, _, _| stack.tcp_listen(&open, backlog))
            .map_err(|error| format!("{error:?}"))?;
        self.sockets.add(name, id);
        Ok(())
    }

    fn connect(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let flow = match words.peek() {
            None | Some("->") => 1,
            Some(number) => {
                words.next();
                fit(number)?
            }
        };
        let (open, remote) = (self.open(), self.remote(flow));
        let mut hop = via("198.18.0.1:0");
        hop.source = open.local.ip;
        hop.mtu = self.mtu;
        let result =
            self.with(|stack, packets, now| stack.tcp_connect(packets, &open, remote, &hop, now));
        match result {
            Ok(id) => {
                self.sockets.add(name, id);
                check_result(words, "0", "0")
            }
            Err(error) => check_result(words, &format!("{error:?}"), "0"),
        }
    }

    /// `fast S N [FLOW]`: sendto with MSG_FASTOPEN on a new socket.
    fn send_fast(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let len: usize = fit(words.want("length")?)?;
        let flow = match words.peek() {
            None | Some("->") => 1,
            Some(_) => fit(words.want("flow")?)?,
        };
        let (open, remote) = (self.open(), self.remote(flow));
        let mut hop = via("198.18.0.1:0");
        hop.source = open.local.ip;
        hop.mtu = self.mtu;
        let (id, taken) = self
            .with(|stack, packets, now| {
                let id = stack.tcp_open(&open)?;
                let fill = &mut write_from(1);
                let waits = false;
                let first = FirstWrite { len, fill, waits };
                let taken = stack.tcp_start_with(packets, id, (remote, &hop), first, now)?;
                Ok::<_, OpenError>((id, taken))
            })
            .map_err(|error| format!("{error:?}"))?;
        self.sockets.add(name, id);
        self.sockets.get(name)?.written += taken as u32;
        check_result(words, &result_name(or_in_progress(taken)), &len.to_string())
    }

    fn accept(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let id = self.sockets.get(name)?.id;
        let child = words.want("socket")?;
        let process = self.rig.process;
        let found = self
            .with(|stack, _, _| stack.tcp_accept(id, process, 2))
            .map_err(|_| "stale".to_owned())?;
        match (found, child) {
            (None, "none") => Ok(()),
            (None, _) => Err("nothing to accept".to_owned()),
            (Some(_), "none") => Err("there is a connection".to_owned()),
            (Some(id), child) => {
                self.sockets.add(child, id);
                Ok(())
            }
        }
    }

    fn send(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let len: usize = fit(words.want("length")?)?;
        let [more, ends, urgent] = ["more", "eor", "oob"].map(|word| {
            let found = words.peek() == Some(word);
            if found {
                words.next();
            }
            found
        });
        let socket = *self.sockets.get(name)?;
        let result = self.with(|stack, packets, now| {
            let fill = &mut write_from(socket.written);
            let sent = if stack
                .tcp_status(socket.id)
                .is_ok_and(|status| status.deferred)
            {
                let waits = false;
                let first = FirstWrite { len, fill, waits };
                let taken = stack.tcp_send_first(packets, socket.id, first, now);
                taken.and_then(or_in_progress)
            } else if urgent {
                stack.tcp_send_urgent(packets, socket.id, len, fill, now)
            } else {
                stack.tcp_send(packets, socket.id, len, more, fill, now)
            };
            if ends && sent == Ok(len) {
                stack.tcp_end_record(socket.id)?;
            }
            sent
        });
        if let Ok(count) = result {
            self.sockets.get(name)?.written += count as u32;
        }
        check_result(words, &result_name(result), &len.to_string())
    }

    /// recv(2) as the shim makes it of the engine's parts.
    fn receive(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let most: usize = fit(words.want("length")?)?;
        let mut socket = *self.sockets.get(name)?;
        if most > 0 && self.skips_urgent(socket.id) {
            socket.read += 1;
        }
        let mut got = Vec::new();
        let result = self.with(|stack, packets, now| {
            while got.len() < most {
                let Some(span) = stack.tcp_front(socket.id, got.len())? else {
                    break;
                };
                let start = span.offset as usize;
                let take = (span.len as usize).min(most - got.len());
                got.extend_from_slice(&packets.chunk(span.chunk)[start..start + take]);
                if take == span.len as usize {
                    let walked = stack.tcp_front(socket.id, got.len())?;
                    assert_eq!(stack.tcp_behind(socket.id, &span, got.len())?, walked);
                }
            }
            let status = stack.tcp_status(socket.id)?;
            if !got.is_empty() || most == 0 && status.readable > 0 {
                stack.tcp_consume(socket.id, got.len(), now)?;
                return Ok(got.len());
            }
            if most > 0 {
                stack.tcp_pass_urgent(socket.id, now)?;
            }
            if status.peer_fin {
                return Ok(0);
            }
            match stack.tcp_take_error(socket.id) {
                0 if status.eof => Ok(0),
                0 => Err(TcpError::WouldBlock),
                error => Err(TcpError::Errno(error)),
            }
        });
        let right = got
            .iter()
            .enumerate()
            .all(|(nth, byte)| *byte == peer_byte(socket.read.wrapping_add(nth as u32)));
        if !right {
            return Err("wrong bytes".to_owned());
        }
        self.sockets.get(name)?.read = socket.read + result.unwrap_or(0) as u32;
        check_result(words, &result_name(result), &most.to_string())
    }

    /// Whether the next read leaves the urgent byte out.
    fn skips_urgent(&mut self, id: EndpointId) -> bool {
        let mut stack = self.rig.stack();
        let inline = stack
            .tcp_options(id)
            .is_ok_and(|options| options.has(TcpOptions::OOBINLINE));
        !inline && stack.tcp_at_mark(id) == Ok(true)
    }

    /// `oob S -> RESULT`: the urgent byte as its sequence number, or an errno.
    fn receive_urgent(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let id = self.sockets.get(name)?.id;
        let found = self.with(|stack, _, _| stack.tcp_receive_urgent(id, false));
        let wanted = words.want("->").and_then(|_| words.want("result"))?;
        let same = match found {
            Ok(byte) => fit::<u32>(wanted).is_ok_and(|seq| peer_byte(seq) == byte),
            Err(error) => result_name(Err(error)) == wanted,
        };
        if same {
            Ok(())
        } else {
            Err(format!("the urgent byte is {found:?}, expected {wanted}"))
        }
    }

    fn shutdown(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let how = match words.want("direction")? {
            "rd" => Shutdown::Read,
            "wr" => Shutdown::Write,
            "rdwr" => Shutdown::Both,
            word => return Err(format!("no direction: {word}")),
        };
        let id = self.sockets.get(name)?.id;
        let result = self.with(|stack, packets, now| stack.tcp_shutdown(packets, id, how, now));
        check_result(words, &result_name(result.map(|()| 0)), "0")
    }

    fn close(&mut self, name: &str) -> Outcome<()> {
        let id = self.sockets.get(name)?.id;
        let process = self.rig.process;
        self.with(|stack, packets, now| stack.tcp_close(packets, id, process, now));
        Ok(())
    }

    /// `option S NAME=VALUE…`, or `option next NAME=VALUE…` for the next socket to be made.
    fn option(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        if name == "next" {
            let mut options = self.sockets.options.unwrap_or_default();
            while let Some(word) = words.next() {
                set_option(&mut options, word)?;
            }
            self.sockets.options = Some(options);
            return Ok(());
        }
        let id = self.sockets.get(name)?.id;
        while let Some(word) = words.next() {
            if let Some(value) = word.strip_prefix("quickack=") {
                let value = number(value)? as i32;
                self.with(|stack, _, now| stack.tcp_set_quick_ack(id, value, now))
                    .map_err(|_| "stale".to_owned())?;
                continue;
            }
            let mut stack = self.rig.stack();
            let options = stack.tcp_options(id).map_err(|_| "stale".to_owned())?;
            set_option(options, word)?;
            self.with(|stack, packets, now| stack.tcp_options_changed(packets, id, now));
            if word == "nodelay=1" {
                self.with(|stack, packets, now| stack.tcp_push(packets, id, now));
            }
        }
        Ok(())
    }

    /// `expect S ESTABLISHED IN !OUT error=ECONNRESET readable=5`.
    fn expect(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let id = self.sockets.get(name)?.id;
        while let Some(word) = words.next() {
            let found = self.rig.stack().tcp_status(id);
            if word == "gone" {
                if found.is_ok() {
                    return Err("it is not gone".to_owned());
                }
                continue;
            }
            let status = found.map_err(|_| "it is gone".to_owned())?;
            let (bare, on) = match word.strip_prefix('!') {
                Some(bare) => (bare, false),
                None => (word, true),
            };
            if let Some((_, bit)) = EVENTS.iter().find(|(name, _)| *name == bare) {
                let events = self.rig.stack().readiness(id).map_or(0, |r| r.events);
                if (events & bit != 0) != on {
                    return Err(format!("events are {events:#x}, expected {word}"));
                }
            } else if bare.starts_with(char::is_uppercase) {
                if state_name(status.state) != word {
                    let name = state_name(status.state);
                    return Err(format!("the state is {name}, expected {word}"));
                }
            } else {
                self.expect_field(id, &status, word)?;
            }
        }
        Ok(())
    }

    fn expect_field(&mut self, id: EndpointId, status: &TcpStatus, word: &str) -> Outcome<()> {
        let (name, sign, value) = comparison(word)?;
        let found = match name {
            "error" => {
                let found = errno_name(self.rig.stack().tcp_socket_error(id));
                return if found == value {
                    Ok(())
                } else {
                    Err(format!("the error is {found}, expected {value}"))
                };
            }
            // FIONREAD ends at the urgent mark, as the shim has it.
            "readable" if self.skips_urgent(id) => 0,
            "readable" => status.readable,
            "unacked" => status.unacked,
            "unsent" => status.unsent,
            "space" => status.send_space,
            "eof" => u32::from(status.eof),
            "atmark" => u32::from(self.rig.stack().tcp_at_mark(id) == Ok(true)),
            "accepts" => status.accept_queue,
            _ => return Err(format!("no such field: {name}")),
        };
        if holds(u64::from(found), sign, number(value)?) {
            Ok(())
        } else {
            Err(format!("{name} is {found}, expected {sign}{value}"))
        }
    }

    /// `info S cwnd=10 rto>=200ms ca=OPEN`: fields of TCP_INFO.
    fn info(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let id = self.sockets.get(name)?.id;
        let now = Instant(self.now);
        let info = self.rig.stack().tcp_info(id, now);
        let info = info.map_err(|_| "stale".to_owned())?;
        while let Some(word) = words.next() {
            let (name, sign, value) = comparison(word)?;
            if name == "ca" {
                let found = CA.get(usize::from(info.ca_state)).copied().unwrap_or("?");
                if found != value {
                    return Err(format!("ca is {found}, expected {value}"));
                }
                continue;
            }
            let found = info_field(&info, name).ok_or_else(|| format!("no field: {name}"))?;
            if !holds(found, sign, number(value)?) {
                return Err(format!("{name} is {found}, expected {sign}{value}"));
            }
        }
        Ok(())
    }

    /// What a program can see of a socket, as words of `expect`.
    pub fn observe(&mut self, name: &str) -> Outcome<String> {
        let id = self.sockets.get(name)?.id;
        let stale = |_| "stale".to_owned();
        let status = self.rig.stack().tcp_status(id).map_err(stale)?;
        let events = self.rig.stack().readiness(id).map_err(stale)?.events;
        let mut words = vec![state_name(status.state).to_owned()];
        for (name, bit) in EVENTS {
            let not = if events & bit == 0 { "!" } else { "" };
            words.push(format!("{not}{name}"));
        }
        if status.state == TcpState::Listen {
            words.push(format!("accepts={}", status.accept_queue));
            return Ok(words.join(" "));
        }
        let at_mark = self.rig.stack().tcp_at_mark(id) == Ok(true);
        let skips = self.skips_urgent(id);
        let readable = if skips { 0 } else { status.readable };
        words.push(format!("readable={readable}"));
        words.push(format!("unacked={}", status.unacked));
        words.push(format!("unsent={}", status.unsent));
        words.push(format!("atmark={}", u32::from(at_mark)));
        Ok(words.join(" "))
    }

    /// Takes SO_ERROR: its name.
    pub fn take_error(&mut self, name: &str) -> Outcome<String> {
        let id = self.sockets.get(name)?.id;
        Ok(errno_name(self.rig.stack().tcp_socket_error(id)))
    }

    /// `edges S in=1 out=0`: edges since the last look; a bare `edges S` only looks.
    fn edges(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let id = self.sockets.get(name)?.id;
        let ready = self.rig.stack().readiness(id);
        let ready = ready.map_err(|_| "stale".to_owned())?;
        let socket = self.sockets.get(name)?;
        let before = std::mem::replace(&mut socket.edges, (ready.in_edge, ready.out_edge));
        while let Some(word) = words.next() {
            let (name, sign, value) = comparison(word)?;
            let found = match name {
                "in" => ready.in_edge.wrapping_sub(before.0),
                "out" => ready.out_edge.wrapping_sub(before.1),
                _ => return Err(format!("no such edge: {name}")),
            };
            if !holds(u64::from(found), sign, number(value)?) {
                return Err(format!("{name} edges are {found}, expected {sign}{value}"));
            }
        }
        Ok(())
    }
}

fn set_option(options: &mut TcpOptions, word: &str) -> Outcome<()> {
    let (name, _, text) = comparison(word)?;
    if name == "congestion" {
        options.congestion = congestion::by_name(text.as_bytes()).ok_or("no such algorithm")?;
        return Ok(());
    }
    let value = number(text)?;
    let on = value != 0;
    match name {
        "nodelay" => options.set(TcpOptions::NODELAY, on),
        "reuseport" => options.set(TcpOptions::REUSE_PORT, on),
        "cork" => options.set(TcpOptions::CORK, on),
        "keepalive" => options.set(TcpOptions::KEEPALIVE, on),
        "oobinline" => options.set(TcpOptions::OOBINLINE, on),
        "recverr" => options.set(TcpOptions::RECVERR, on),
        "keepidle" => options.keep_idle_s = value as u32,
        "keepintvl" => options.keep_interval_s = value as u32,
        "keepcnt" => options.keep_count = value as u8,
        "linger" => {
            options.set(TcpOptions::LINGER, true);
            options.linger_s = value as u32;
        }
        "rcvbuf" => {
            options.rcvbuf_bytes = value as u32;
            options.set(TcpOptions::RCVBUF_LOCKED, true);
        }
        "sndbuf" => {
            options.sndbuf_bytes = value as u32;
            options.set(TcpOptions::SNDBUF_LOCKED, true);
        }
        "rcvlowat" => options.rcvlowat = value as u32,
        "notsent-lowat" => options.notsent_lowat = value as u32,
        "window-clamp" => options.window_clamp = value as u32,
        "defer-accept" => options.defer_accept_s = value as u32,
        "linger2" => options.linger2_s = if text == "max" { -1 } else { value as i32 },
        "maxseg" => options.max_seg = value as u16,
        "fastopen" => options.fast_open_queue = value as u16,
        "fastopen-connect" => options.set(TcpOptions::FAST_OPEN_CONNECT, on),
        "fastopen-no-cookie" => options.set(TcpOptions::FAST_OPEN_NO_COOKIE, on),
        "syncnt" => options.syn_count = value as u8,
        "max-pacing-rate" => options.max_pacing_rate = value,
        "user-timeout-ms" => options.user_timeout_ms = value as u32,
        _ => return Err(format!("no such option: {name}")),
    }
    Ok(())
}

/// A field of TCP_INFO by its name in linux/tcp.h without `tcpi_`.
pub fn info_field(info: &TcpInfo, name: &str) -> Option<u64> {
    Some(match name {
        "retransmits" => info.retransmits.into(),
        "probes" => info.probes.into(),
        "backoff" => info.backoff.into(),
        "options" => info.options.into(),
        "snd_wscale" => (info.wscale & 15).into(),
        "rcv_wscale" => (info.wscale >> 4).into(),
        "app_limited" => (info.rate_flags & 1).into(),
        "fastopen_client_fail" => (info.rate_flags >> 1 & 3).into(),
        "rto" => info.rto.into(),
        "ato" => info.ato.into(),
        "snd_mss" => info.snd_mss.into(),
        "rcv_mss" => info.rcv_mss.into(),
        "unacked" => info.unacked.into(),
        "sacked" => info.sacked.into(),
        "lost" => info.lost.into(),
        "retrans" => info.retrans.into(),
        "last_data_sent" => info.last_data_sent_ms.into(),
        "last_data_recv" => info.last_data_recv_ms.into(),
        "last_ack_recv" => info.last_ack_recv_ms.into(),
        "pmtu" => info.pmtu.into(),
        "rtt" => info.rtt.into(),
        "rttvar" => info.rttvar.into(),
        "ssthresh" => info.snd_ssthresh.into(),
        "cwnd" => info.snd_cwnd.into(),
        "advmss" => info.advmss.into(),
        "reordering" => info.reordering.into(),
        "total_retrans" => info.total_retrans.into(),
        "bytes_acked" => info.bytes_acked,
        "bytes_received" => info.bytes_received,
        "bytes_sent" => info.bytes_sent,
        "bytes_retrans" => info.bytes_retrans,
        "segs_out" => info.segs_out.into(),
        "segs_in" => info.segs_in.into(),
        "data_segs_in" => info.data_segs_in.into(),
        "data_segs_out" => info.data_segs_out.into(),
        "notsent_bytes" => info.notsent_bytes.into(),
        "min_rtt" => info.min_rtt.into(),
        "delivery_rate" => info.delivery_rate,
        "busy_time" => info.busy_time,
        "rwnd_limited" => info.rwnd_limited,
        "sndbuf_limited" => info.sndbuf_limited,
        "delivered" => info.delivered.into(),
        "delivered_ce" => info.delivered_ce.into(),
        "dsack_dups" => info.dsack_dups.into(),
        "reord_seen" => info.reord_seen.into(),
        "pacing_rate" => info.pacing_rate,
        "rcv_ooopack" => info.rcv_ooopack.into(),
        "snd_wnd" => info.snd_wnd.into(),
        "rcv_wnd" => info.rcv_wnd.into(),
        "total_rto" => info.total_rto.into(),
        _ => return None,
    })
}
