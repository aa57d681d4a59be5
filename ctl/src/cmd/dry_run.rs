//! `bypassctl explain --dry-run`: what the policy would say, without starting anything.
//!
//! The configuration is read as the shim reads it (`--config`, `BYPASS_CONFIG`, the default one),
//! the program's file is looked at, and where a daemon answers its list of interfaces decides
//! whether the address can be served. What only the socket itself shows (limits, a queue that
//! another user has) is not known here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bypass_proto::options::Options;
use bypass_proto::policy::{
    Address, DEFAULT_PATH, Decision, Policy, Program, Protocol, Query, Role, Rule, User,
};
use bypass_proto::reason::FallThrough;
use clap::Parser;
use clap::error::ErrorKind;
use serde_json::{Value, json};

use super::explain::{verdict, with_why};
use super::program_file;
use crate::source::Interface;
use crate::{Failure, render, source};

/// What to ask the policy.
#[derive(Debug, clap::Args)]
pub struct DryRun {
    /// Configuration to ask (dry run).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// User that would run the program, by name or number (dry run).
    #[arg(long)]
    user: Option<String>,
    #[command(flatten)]
    sockets: Asked,
    /// Program, then more sockets to ask for (dry run).
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// Sockets to ask for; they may also stand behind the program.
#[derive(Debug, Default, clap::Args)]
struct Asked {
    /// A socket that binds this address (dry run): [udp:|tcp:]ADDRESS:PORT, * = any.
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    bind: Vec<Socket>,
    /// A socket that listens there (dry run).
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    listen: Vec<Socket>,
    /// A socket that connects to this remote address (dry run).
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    connect: Vec<Socket>,
    /// A socket that sends there first (dry run).
    #[arg(long, value_name = "SOCKET", value_parser = socket)]
    send: Vec<Socket>,
}

/// The options behind the program.
#[derive(Debug, clap::Parser)]
#[command(no_binary_name = true)]
struct Behind {
    #[command(flatten)]
    sockets: Asked,
}

/// The sockets asked for behind the program. Other words there are the program's own.
fn sockets_behind(words: &[OsString], notes: &mut Vec<String>) -> Result<Asked, Failure> {
    match Behind::try_parse_from(words) {
        Ok(behind) => Ok(behind.sockets),
        Err(error) if error.kind() == ErrorKind::UnknownArgument => {
            notes.push("the program's own arguments are not looked at".to_owned());
            Ok(Asked::default())
        }
        Err(error) => Err(Failure::usage(error.render().to_string())),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    protocol: Protocol,
    address: Address,
}

fn socket(text: &str) -> Result<Socket, String> {
    let (protocol, address) = match text.split_once(':') {
        Some((word, rest)) if Protocol::from_word(word).is_some() => {
            (Protocol::from_word(word), rest)
        }
        _ => (None, text),
    };
    Ok(Socket {
        protocol: protocol.unwrap_or(Protocol::Udp),
        address: address.parse().map_err(|error| format!("{error}"))?,
    })
}

impl Asked {
    fn is_empty(&self) -> bool {
        self.list().next().is_none()
    }

    fn list(&self) -> impl Iterator<Item = (Role, Socket)> {
        let of = |role, sockets: &'_ [Socket]| -> Vec<(Role, Socket)> {
            sockets.iter().map(|socket| (role, *socket)).collect()
        };
        of(Role::Bind, &self.bind)
            .into_iter()
            .chain(of(Role::Listen, &self.listen))
            .chain(of(Role::Connect, &self.connect))
            .chain(of(Role::Send, &self.send))
    }
}

/// Everything that the answers depend on.
struct Scene {
    program: String,
    started_as: String,
    policy: Policy,
    options: Options,
    is_setid: bool,
    uid: u32,
    user: Option<String>,
    interfaces: Option<Vec<Interface>>,
    /// The local address that a socket gets which connects to this one.
    source: fn(&Address) -> Option<Address>,
}

/// Asks the kernel by connecting a UDP socket, which sends nothing.
fn source_address(remote: &Address) -> Option<Address> {
    let remote: std::net::SocketAddr = remote.to_string().parse().ok()?;
    let any: std::net::IpAddr = if remote.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    Some(Address::new(socket.local_addr().ok()?.ip(), 0))
}

impl DryRun {
    /// Whether any of its options is given.
    pub fn is_given(&self) -> bool {
        self.config.is_some()
            || self.user.is_some()
            || !self.program.is_empty()
            || !self.sockets.is_empty()
    }

    /// Prints the answers.
    ///
    /// # Errors
    /// When the configuration cannot be read (with line and column); then a program would run on
    /// the kernel. Exit code 2 for arguments that make no sense.
    pub fn execute(&self, json: bool) -> Result<(), Failure> {
        let (program, behind) = self
            .program
            .split_first()
            .ok_or_else(|| Failure::usage("which program? explain --dry-run -- PROGRAM"))?;
        let mut notes = Vec::new();
        let behind = sockets_behind(behind, &mut notes)?;
        let file = program_file::find(program);
        if file.is_none() {
            notes.push("no such program here: asked by its name only".to_owned());
        }
        notes.extend(
            file.as_deref()
                .and_then(program_file::problem)
                .map(str::to_owned),
        );
        let (policy, options, config) = self.read(&mut notes)?;
        let (uid, user) = self.user()?;
        let name_of = |file: Option<&Path>| {
            let name = file.map_or(program.as_os_str(), Path::as_os_str);
            name.to_string_lossy().into_owned()
        };
        let target = file.as_ref().and_then(|file| file.canonicalize().ok());
        let scene = Scene {
            program: name_of(target.as_deref()),
            started_as: name_of(file.as_deref()),
            is_setid: file.as_deref().is_some_and(program_file::is_setid),
            interfaces: source::interfaces(),
            source: source_address,
            policy,
            options,
            uid,
            user,
        };
        if scene.interfaces.is_none() {
            notes.push("no daemon answers: interfaces are not considered".to_owned());
        }
        let mut asked: Vec<_> = self.sockets.list().chain(behind.list()).collect();
        if asked.is_empty() {
            notes.push("no address given (--bind, --connect, …): asked for port 53".to_owned());
            let address = Address {
                port: 53,
                ..Address::ANY
            };
            asked.push((
                Role::Bind,
                Socket {
                    protocol: Protocol::Udp,
                    address,
                },
            ));
        }
        let sockets: Vec<Value> = asked
            .iter()
            .map(|(role, socket)| scene.ask(*role, *socket))
            .collect();
        scene.print(&config, &notes, sockets, json);
        Ok(())
    }

    /// Policy and options as a program with this environment would have them, and their origin.
    fn read(&self, notes: &mut Vec<String>) -> Result<(Policy, Options, String), Failure> {
        let variables = || {
            std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            })
        };
        let named = match &self.config {
            Some(path) => Some(path.clone()),
            None => Options::from_env(variables()).0.config.map(PathBuf::from),
        };
        let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
        let (policy, origin) = match std::fs::read_to_string(&path) {
            Ok(text) => {
                let policy = Policy::parse(&text).map_err(|error| {
                    Failure::new(format!(
                        "{}: {error}; everything would run on the kernel",
                        path.display()
                    ))
                })?;
                (policy, path.display().to_string())
            }
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => (
                Policy::default(),
                format!("built-in ({DEFAULT_PATH} does not exist)"),
            ),
            Err(error) => {
                return Err(Failure::new(format!(
                    "cannot read {}: {error}; everything would run on the kernel",
                    path.display()
                )));
            }
        };
        let (options, messages) = Options::resolve(&policy.options, variables());
        notes.extend(messages);
        Ok((policy, options, origin))
    }

    fn user(&self) -> Result<(u32, Option<String>), Failure> {
        let Some(wanted) = &self.user else {
            let uid = rustix::process::geteuid().as_raw();
            return Ok((uid, source::user_name(uid)));
        };
        if let Some((name, uid)) = source::users().find(|(name, _)| name == wanted) {
            return Ok((uid, Some(name)));
        }
        match wanted.parse() {
            Ok(uid) => Ok((uid, source::user_name(uid))),
            Err(_) => Err(Failure::usage(format!("there is no user {wanted}"))),
        }
    }
}

impl Scene {
    fn ask(&self, role: Role, socket: Socket) -> Value {
        let fixes_local = matches!(role, Role::Bind | Role::Listen);
        let local = match role {
            Role::Bind | Role::Listen => socket.address,
            Role::Connect => (self.source)(&socket.address).unwrap_or(Address::ANY),
            Role::Send => Address::ANY,
        };
        let interface = self.interface_of(&local);
        let query = Query {
            program: Program {
                file: &self.program,
                started_as: &self.started_as,
            },
            user: User {
                uid: self.uid,
                name: self.user.as_deref(),
            },
            protocol: socket.protocol,
            role,
            local: Some(local),
            remote: (!fixes_local).then_some(socket.address),
            interface: interface.map(|interface| interface.name.as_str()),
        };
        let decision = self.policy.decide(&query);
        let reason = self.reason(&query, &decision, interface);
        let mut answer = verdict(reason, decision.rule());
        answer["protocol"] = socket.protocol.word().into();
        answer["role"] = role.word().into();
        answer["local"] = local.to_string().into();
        answer["remote"] = query.remote.map(|remote| remote.to_string()).into();
        if let (
            None,
            Decision::Accelerate {
                interface, backend, ..
            },
        ) = (reason, decision)
        {
            answer["interface"] = interface.or(query.interface).into();
            answer["backend"] = backend.word().into();
        }
        answer
    }

    /// The reasons in the order in which the shim finds them.
    fn reason(
        &self,
        query: &Query<'_>,
        decision: &Decision<'_>,
        interface: Option<&Interface>,
    ) -> Option<FallThrough> {
        if self.is_setid {
            return Some(FallThrough::Secure);
        }
        if self.options.disable {
            return Some(FallThrough::Disabled);
        }
        if query.protocol == Protocol::Tcp && !self.options.tcp {
            return Some(FallThrough::TcpOff);
        }
        if let Some(reason) = decision.reason() {
            return Some(reason);
        }
        let interfaces = self.interfaces.as_ref()?;
        let is_own = |address: &Address| self.interface_of(address).is_some();
        if query.remote.as_ref().is_some_and(is_own) && !self.options.accelerate_local {
            return Some(FallThrough::LocalRoute);
        }
        let only = match decision {
            Decision::Accelerate { interface, .. } => *interface,
            Decision::Kernel { .. } => None,
        };
        let local = query.local.filter(|local| !local.is_any());
        let served = match (local, interface) {
            (None, _) => interfaces.iter().any(|interface| {
                interface.reason.is_none() && only.is_none_or(|only| interface.name == only)
            }),
            (Some(_), interface) => interface.is_some_and(|interface| {
                interface.reason.is_none() && only.is_none_or(|only| interface.name == only)
            }),
        };
        (!served).then_some(FallThrough::NoInterface)
    }

    fn interface_of(&self, address: &Address) -> Option<&Interface> {
        let same = |text: &String| {
            text.parse::<std::net::IpAddr>()
                .is_ok_and(|ip| Address::new(ip, 0).ip == address.ip)
        };
        let mut interfaces = self.interfaces.iter().flatten();
        interfaces.find(|interface| !address.is_any() && interface.addresses.iter().any(same))
    }

    fn print(&self, config: &str, notes: &[String], sockets: Vec<Value>, json: bool) {
        let rules: Vec<String> = self.policy.rules.iter().map(Rule::to_string).collect();
        if json {
            render::json(&json!({
                "program": self.program, "config": config, "notes": notes, "rules": rules,
                "sockets": sockets,
            }));
            return;
        }
        render::line(&format!("program: {}", self.program));
        render::line(&format!("policy:  {config}"));
        for (index, rule) in rules.iter().enumerate() {
            render::line(&format!("rule {}:  {rule}", index + 1));
        }
        for note in notes {
            render::line(&format!("note:    {note}"));
        }
        let columns = [
            ("PROTO", "protocol"),
            ("BY", "role"),
            ("LOCAL", "local"),
            ("REMOTE", "remote"),
            ("SERVED BY", "served_by"),
            ("INTERFACE", "interface"),
            ("BACKEND", "backend"),
            ("RULE", "rule"),
            ("WHY, AND WHAT TO DO", "why"),
        ];
        let sockets: Vec<Value> = sockets.into_iter().map(with_why).collect();
        render::objects(&columns, &sockets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(policy: &str, interfaces: Option<Vec<Interface>>) -> Scene {
        Scene {
            program: "/usr/sbin/knotd".to_owned(),
            started_as: "/usr/sbin/knotd".to_owned(),
            policy: Policy::parse(policy).expect("a policy"),
            options: Options::default(),
            is_setid: false,
            uid: 1000,
            user: Some("alice".to_owned()),
            interfaces,
            source: |_| None,
        }
    }

    fn veth(reason: Option<&str>) -> Option<Vec<Interface>> {
        Some(vec![Interface {
            name: "veth0".to_owned(),
            addresses: vec!["198.18.0.1".to_owned(), "fd00::1".to_owned()],
            reason: reason.map(str::to_owned),
            ..Interface::default()
        }])
    }

    fn reason(scene: &Scene, role: Role, text: &str) -> Value {
        scene.ask(role, socket(text).expect(text))["reason"].clone()
    }

    #[test]
    fn sockets_are_read() {
        for (text, protocol, address) in [
            ("udp:198.18.0.1:53", Protocol::Udp, "198.18.0.1:53"),
            ("tcp:[fd00::1]:80", Protocol::Tcp, "[fd00::1]:80"),
            ("198.18.0.1:53", Protocol::Udp, "198.18.0.1:53"),
            ("*:53", Protocol::Udp, "*:53"),
            ("udp:*", Protocol::Udp, "*:*"),
        ] {
            let read = socket(text).expect(text);
            assert_eq!(
                (read.protocol, read.address.to_string().as_str()),
                (protocol, address)
            );
        }
        assert!(socket("sctp:198.18.0.1:1").is_err() && socket("udp:").is_ok());
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of sockets and answers")]
    fn answers_name_the_first_reason() {
        let open = scene("", veth(None));
        assert_eq!(reason(&open, Role::Bind, "198.18.0.1:53"), Value::Null);
        assert_eq!(reason(&open, Role::Bind, "[fd00::1]:53"), Value::Null);
        assert_eq!(reason(&open, Role::Bind, "*:53"), Value::Null);
        assert_eq!(reason(&open, Role::Bind, "198.18.9.9:53"), "no-interface");
        assert_eq!(reason(&open, Role::Bind, "127.0.0.1:53"), "loopback");
        assert_eq!(
            reason(&open, Role::Listen, "tcp:198.18.0.1:80"),
            Value::Null
        );
        let no_tcp = Scene {
            options: Options {
                tcp: false,
                ..Options::default()
            },
            ..scene("", veth(None))
        };
        assert_eq!(
            reason(&no_tcp, Role::Listen, "tcp:198.18.0.1:80"),
            "tcp-off"
        );
        assert_eq!(reason(&open, Role::Connect, "198.18.0.2:9"), Value::Null);
        assert_eq!(reason(&open, Role::Connect, "198.18.0.1:9"), "local-route");
        assert_eq!(reason(&open, Role::Send, "224.0.0.1:9"), "multicast");
        let closed = scene("", veth(Some("it is down")));
        assert_eq!(reason(&closed, Role::Bind, "*:53"), "no-interface");
        let unknown = scene("", None);
        assert_eq!(reason(&unknown, Role::Bind, "198.18.9.9:53"), Value::Null);
        let ruled = scene("[[rule]]\nprogram = \"knot*\"\naction = \"kernel\"", None);
        assert_eq!(reason(&ruled, Role::Bind, "*:53"), "rule");
        assert_eq!(
            ruled.ask(Role::Bind, socket("*:53").expect("one"))["rule"],
            1
        );
        let only = |name: &str| {
            let rule = format!("[[rule]]\ninterface = \"{name}\"\naction = \"accelerate\"");
            scene(&rule, veth(None))
        };
        assert_eq!(reason(&only("veth0"), Role::Bind, "*:53"), Value::Null);
        assert_eq!(reason(&only("eth9"), Role::Bind, "*:53"), "no-interface");
        // A rule of another interface does not match: the built-in policy answers.
        let other = only("eth9").ask(Role::Bind, socket("198.18.0.1:53").expect("one"));
        assert_eq!(
            (&other["reason"], &other["rule"]),
            (&Value::Null, &Value::Null)
        );
        let leaving = Scene {
            source: |_| Some(Address::new([198, 18, 0, 1].into(), 0)),
            ..scene(
                "[[rule]]\ninterface = \"veth0\"\naction = \"kernel\"",
                veth(None),
            )
        };
        assert_eq!(reason(&leaving, Role::Connect, "198.18.0.2:9"), "rule");
        assert_eq!(reason(&leaving, Role::Send, "198.18.0.2:9"), Value::Null);
        let backend = scene(
            "[[rule]]\naction = \"accelerate\"\nbackend = \"dpdk\"",
            veth(None),
        );
        assert_eq!(reason(&backend, Role::Bind, "*:53"), "backend");
        let setid = Scene {
            is_setid: true,
            ..scene("", None)
        };
        assert_eq!(reason(&setid, Role::Bind, "*:53"), "secure");
    }

    #[test]
    fn sockets_may_stand_behind_the_program() {
        let behind = |words: &[&str]| {
            let mut notes = Vec::new();
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let asked = sockets_behind(&words, &mut notes);
            asked.map(|asked| (asked.list().count(), notes.len())).ok()
        };
        let two = ["--bind", "udp:*:53", "--connect", "198.18.0.1:1"];
        assert_eq!(behind(&two), Some((2, 0)));
        assert_eq!(behind(&["-c", "/etc/knot/knot.conf"]), Some((0, 1)));
        assert_eq!(behind(&["--port", "7", "stay"]), Some((0, 1)));
        assert_eq!(behind(&["--bind", "nonsense"]), None);
    }
}
