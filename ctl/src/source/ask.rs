//! The daemon's answers.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use bypass_proto::control::{
    ADDRESS, MAGIC, MAX_TEXT, QueryKind, Refusal, Reply, ReplyKind, Request, RequestKind, VERSION,
};
use bypass_proto::policy::Backend;
use bypass_stack::SocketAddress;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with, sockopt,
};
use serde_json::{Value, json};
use zerocopy::{FromBytes, IntoBytes};

use crate::Failure;

/// Most bytes of text that an answer may have.
const MAX_ANSWER: usize = 64 << 20;

/// Sends a request to the daemon and collects its text and reply. An answer without text is an
/// object with `filter`, `count` and `detail`.
///
/// # Errors
/// When no daemon runs here (exit code 3), when it does not answer, or refuses.
pub fn ask(request: &Request) -> Result<Value, Failure> {
    let socket = open()?;
    let lost = |errno| {
        Failure::new(format!(
            "the daemon does not answer: {errno}; see whether it runs or hangs"
        ))
    };
    send(&socket, request.as_bytes(), SendFlags::NOSIGNAL).map_err(lost)?;
    let mut text = Vec::new();
    let mut packet = vec![MaybeUninit::<u8>::uninit(); MAX_TEXT + 1];
    loop {
        let ((bytes, _), _) = recv(&socket, &mut packet[..], RecvFlags::empty()).map_err(lost)?;
        if bytes.is_empty() {
            return Err(Failure::new(
                "the daemon closed the connection: it ends, or is too busy",
            ));
        }
        match Reply::read_from_bytes(bytes) {
            Ok(reply) if reply.magic == MAGIC && reply.version == VERSION => {
                return finish(reply, &text);
            }
            Ok(reply) if reply.magic == MAGIC => {
                return Err(Failure::new(
                    "the daemon speaks another protocol version: restart it from this package",
                ));
            }
            _ => text.extend_from_slice(bytes),
        }
        if text.len() > MAX_ANSWER {
            return Err(Failure::new("the daemon's answer has no end"));
        }
    }
}

fn open() -> Result<OwnedFd, Failure> {
    let system = |errno| Failure::new(format!("cannot make a socket to the daemon: {errno}"));
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(system)?;
    let patience = Some(std::time::Duration::from_secs(5));
    for direction in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&socket, direction, patience).map_err(system)?;
    }
    let address = SocketAddrUnix::new_abstract_name(ADDRESS).map_err(system)?;
    match connect(&socket, &address) {
        Ok(()) => Ok(socket),
        Err(Errno::CONNREFUSED) => Err(Failure::nothing(
            "no daemon runs in this network namespace: the first program of root that runs under \
             the bypass starts one, or bypassctl daemon does",
        )),
        Err(errno) => Err(Failure::new(format!(
            "cannot connect to the daemon: {errno}"
        ))),
    }
}

fn finish(reply: Reply, text: &[u8]) -> Result<Value, Failure> {
    if ReplyKind::from_wire(reply.kind) == Some(ReplyKind::Refused) {
        return Err(refused(Refusal::from_wire(reply.refusal), reply.detail));
    }
    if text.is_empty() {
        return Ok(json!({
            "filter": reply.filter, "count": reply.count, "detail": reply.detail,
        }));
    }
    serde_json::from_slice(text)
        .map_err(|error| Failure::new(format!("the daemon's answer is not JSON: {error}")))
}

/// What a refusal means for whoever called `bypassctl`. `detail` is an errno or 0.
pub fn refused(refusal: Option<Refusal>, detail: u32) -> Failure {
    let why = match refusal {
        None => "for a reason that this version does not know: use one package for both",
        Some(Refusal::Version) => {
            "it speaks another protocol version: restart it from this package"
        }
        Some(Refusal::Malformed) => {
            "it does not understand the request, or finds nothing of that id"
        }
        Some(Refusal::NotOwner) => "the address is not the caller's",
        Some(Refusal::NoInterface) => "no interface with a usable backend: see bypassctl doctor",
        Some(Refusal::QueueBusy) => "the queue belongs to another user: see bypassctl stacks",
        Some(Refusal::NotAllowed) => "this user may not: become root, or see [daemon] allow",
        Some(Refusal::Limit) => "a limit is reached: see [daemon] in bypass.toml",
        Some(Refusal::Conflict) => "another filter has the address: see bypassctl filters list",
        Some(Refusal::PidNamespace) => "programs of another pid namespace have the user's stack",
        Some(Refusal::System) => {
            let errno = Errno::from_raw_os_error(i32::try_from(detail).unwrap_or(0));
            return Failure::new(format!("the daemon refuses: the system said {errno}"));
        }
    };
    Failure::new(format!("the daemon refuses: {why}"))
}

/// One of the daemon's lists.
///
/// # Errors
/// As [`ask`].
pub fn query(kind: QueryKind) -> Result<Value, Failure> {
    ask(&Request {
        query: kind as u32,
        ..Request::new(RequestKind::Query)
    })
}

/// An interface as the daemon sees it.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Whether it is a device of the configuration.
    pub is_device: bool,
    /// Addresses without their prefix length.
    pub addresses: Vec<String>,
    /// What drives it, if anything does or could.
    pub backend: Option<String>,
    /// Why it has no backend; `None` when it has one.
    pub reason: Option<String>,
    /// The verifier's log, where that is the reason.
    pub log: Option<String>,
    /// "native" or "generic", or the driver of a relay's port, once it is open.
    pub mode: Option<String>,
    /// What must be set for that mode, here or at the other end.
    pub condition: Option<String>,
    /// Whether its port looks at the checksums of frames that come in, and writes those of frames
    /// that go out.
    pub checksums: [bool; 2],
    /// Whether the driver uses packet memory itself.
    pub zero_copy: bool,
    /// Why it does not, where it was to.
    pub copies: Option<String>,
    /// PCI address of the device that it is the face of.
    pub address: Option<String>,
    /// The queue that is the stack's alone.
    pub own_queue: Option<u64>,
    /// Why there is none, where there was to be one.
    pub shared: Option<String>,
    /// Why no rules at a physical function lead to it, where they were to.
    pub unled: Option<String>,
    /// Why it is not driven as the card that the configuration says it is.
    pub given_up: Option<String>,
}

/// The interfaces of this network namespace; `None` when no daemon answers.
pub fn interfaces() -> Option<Vec<Interface>> {
    let answer = query(QueryKind::Interfaces).ok()?;
    Some(answer.as_array()?.iter().map(interface).collect())
}

/// What drives the sockets of a local address: its interface's backend, or for any address those of
/// all that are open.
#[must_use]
pub fn backend_of(local: SocketAddress, interfaces: &[Interface]) -> String {
    let text = local.ip.to_string();
    let is_its = |interface: &&Interface| match local.ip.is_unspecified() {
        true => interface.mode.is_some(),
        false => interface.addresses.contains(&text),
    };
    let its = interfaces.iter().filter(is_its);
    let mut backends: Vec<&str> = its.filter_map(|it| it.backend.as_deref()).collect();
    backends.sort_unstable();
    backends.dedup();
    if backends.is_empty() {
        return Backend::AfXdp.word().to_owned();
    }
    backends.join(",")
}

fn interface(value: &Value) -> Interface {
    let text = |field: &str| value[field].as_str().map(str::to_owned);
    let addresses = value["addresses"].as_array().into_iter().flatten();
    let bare = |address: &Value| Some(address.as_str()?.split('/').next()?.to_owned());
    Interface {
        name: text("name").unwrap_or_default(),
        is_device: value["device"] == true,
        addresses: addresses.filter_map(bare).collect(),
        backend: text("backend"),
        reason: text("reason"),
        log: text("log"),
        mode: text("mode"),
        condition: text("condition"),
        checksums: ["rx", "tx"].map(|way| value["checksums"][way] == "port"),
        zero_copy: value["zero_copy"] == true,
        copies: text("copies"),
        address: text("address"),
        own_queue: value["own_queue"].as_u64(),
        shared: text("shared"),
        unled: text("unled"),
        given_up: text("given_up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_sentence() {
        for refusal in Refusal::ALL {
            assert!(refused(Some(refusal), 13).message.len() > 20);
        }
        assert!(
            refused(Some(Refusal::System), 13)
                .message
                .contains("ermission")
        );
    }

    #[test]
    fn odd_answers_are_refused() {
        let end = Reply::new(ReplyKind::End);
        assert!(finish(end, b"{").is_err());
        assert!(finish(end, b"[]").is_ok());
        let refusal = Reply {
            refusal: 999,
            ..Reply::new(ReplyKind::Refused)
        };
        assert!(finish(refusal, b"").is_err());
    }

    #[test]
    fn an_interface_is_read_from_anything() {
        for value in [
            json!(null),
            json!([]),
            json!({"addresses": 7, "name": null}),
        ] {
            assert!(interface(&value).name.is_empty());
        }
        let read = interface(&json!({"name": "veth0", "addresses": ["198.18.0.1/24"]}));
        assert_eq!(read.addresses, ["198.18.0.1"]);
    }
}
