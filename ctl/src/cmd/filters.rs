//! `bypassctl filters`, `bypassctl reload` and `bypassctl shutdown`.

use bypass_proto::control::{PROGRAM_NAME, QueryKind, Request, RequestKind};
use bypass_proto::policy::{Address, Protocol};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use serde_json::{Value, json};

use super::Json;
use crate::{Failure, render, source};

/// Filters: what is led past the kernel.
#[derive(Debug, clap::Subcommand)]
pub enum Filters {
    /// Every filter with its owner, backend, packets and bytes, and who matches its frames; of one
    /// in a card also the card's queue and cookie.
    List(Json),
    /// Keep an address or a flow in the kernel, or reserve an address for some programs.
    #[command(after_help = "\
Examples:
  bypassctl filters add udp 198.18.0.1:53                          the kernel has it, whoever asks
  bypassctl filters add udp *:53 --interface eth0                  on one interface
  bypassctl filters add udp 198.18.0.1:53 --remote 198.18.0.2:999  one peer's packets only
  bypassctl filters add udp *:53 --for-user knot                   programs of others: the kernel
  bypassctl filters add udp *:53 --for-program knotd

A program is accelerated if every static filter that covers its address allows it. They last until
they are removed, or the daemon and all accelerated programs have ended; rules in bypass.toml are
for good.")]
    Add(Add),
    /// Remove a static filter.
    #[command(after_help = "Example:\n  bypassctl filters del 7")]
    Del {
        /// Its number in filters list.
        id: u32,
    },
}

/// Keep an address or a flow in the kernel, or reserve an address.
#[derive(Debug, clap::Args)]
pub struct Add {
    /// tcp or udp.
    #[arg(value_parser = protocol)]
    protocol: Protocol,
    /// Local address and port: 198.18.0.1:53, [2001:db8::1]:53; *:53 = any address.
    #[arg(value_parser = address)]
    local: Address,
    /// Only packets from this address and port; those of others may be accelerated.
    #[arg(long, value_parser = address, conflicts_with_all = ["for_user", "for_program"])]
    remote: Option<Address>,
    /// Only on this interface.
    #[arg(long)]
    interface: Option<String>,
    /// Programs of this user may have it, others not. Name or number.
    #[arg(long, value_parser = user)]
    for_user: Option<u32>,
    /// Programs with this file name may have it, others not. Anybody can name a program so: add
    /// --for-user where that matters.
    #[arg(long, value_parser = program)]
    for_program: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn protocol(word: &str) -> Result<Protocol, String> {
    Protocol::from_word(word).ok_or_else(|| "expected tcp or udp".to_owned())
}

fn address(text: &str) -> Result<Address, String> {
    let address: Address = text.parse().map_err(|error| format!("{error}"))?;
    if address.port == 0 {
        return Err("the port is missing, as in 198.18.0.1:53".to_owned());
    }
    Ok(address)
}

fn user(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let mut users = source::users();
    let found = users.find(|(name, _)| name == text);
    found
        .map(|(_, number)| number)
        .ok_or_else(|| format!("no user {text}"))
}

fn program(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > PROGRAM_NAME || text.contains(['/', '\0']) {
        return Err(format!(
            "expected a file name without its folder, at most {PROGRAM_NAME} bytes long"
        ));
    }
    Ok(text.to_owned())
}

impl Filters {
    /// Runs the command.
    ///
    /// # Errors
    /// When no daemon runs (exit code 3) or it refuses.
    pub fn execute(&self) -> Result<(), Failure> {
        match self {
            Self::List(json) => list(json),
            Self::Add(add) => add.execute(),
            Self::Del { id } => delete(*id),
        }
    }
}

impl Add {
    fn execute(&self) -> Result<(), Failure> {
        let answer = source::ask(&self.request()?)?;
        if answer["detail"] == Errno::EXIST.raw_os_error() {
            return Err(Failure::nothing(format!(
                "static filter {} says that already",
                answer["filter"]
            )));
        }
        if self.json {
            render::json(&json!({ "id": answer["filter"], "interfaces": answer["count"] }));
        } else {
            let id = &answer["filter"];
            let local = self.local;
            let what = match (&self.remote, self.is_reserve()) {
                (_, true) => format!("{local} is reserved"),
                (Some(remote), _) => format!("{local} from {remote} stays in the kernel"),
                _ => format!("{local} stays in the kernel"),
            };
            render::line(&format!("static filter {id}: {what}"));
        }
        Ok(())
    }

    fn is_reserve(&self) -> bool {
        self.for_user.is_some() || self.for_program.is_some()
    }

    fn request(&self) -> Result<Request, Failure> {
        /// [`Request::family`]: IPv4, both, IPv6.
        const FAMILIES: [u8; 3] = [0, 1, 2];
        let family = match (self.local.is_any(), self.local.v4()) {
            (true, _) => FAMILIES[1],
            (false, Some(_)) => FAMILIES[0],
            (false, None) => FAMILIES[2],
        };
        let remote = self.remote.unwrap_or(Address::ANY);
        let mut program = [0; PROGRAM_NAME];
        let name = self.for_program.as_deref().unwrap_or_default();
        for (to, from) in program.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Ok(Request {
            local: self.local.ip,
            local_port: self.local.port,
            remote: remote.ip,
            remote_port: remote.port,
            user: self.for_user.unwrap_or(0),
            has_user: self.for_user.is_some().into(),
            program,
            protocol: self.protocol as u8,
            family,
            keep_in_kernel: (!self.is_reserve()).into(),
            ifindex: self.interface.as_deref().map_or(Ok(0), ifindex)?,
            ..Request::new(RequestKind::AddStatic)
        })
    }
}

fn delete(id: u32) -> Result<(), Failure> {
    let filters = source::query(QueryKind::Filters)?;
    let of_id = |filter: &&Value| filter["id"] == id;
    match filters.as_array().into_iter().flatten().find(of_id) {
        None => {
            return Err(Failure::nothing(format!(
                "no filter {id}: see bypassctl filters list"
            )));
        }
        Some(filter) if filter["action"] == "steer" => {
            return Err(Failure::new(format!(
                "filter {id} is a socket's and goes with it; to keep its address in the kernel, \
                 see bypassctl filters add"
            )));
        }
        Some(_) => {}
    }
    let request = Request {
        filter: id,
        ..Request::new(RequestKind::RemoveStatic)
    };
    source::ask(&request)?;
    render::line(&format!("static filter {id} is removed"));
    Ok(())
}

fn ifindex(name: &str) -> Result<u32, Failure> {
    let failed = |errno| Failure::new(format!("no interface {name}: {errno}"));
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(failed)?;
    netdevice::name_to_index(&socket, name).map_err(failed)
}

fn list(json: &Json) -> Result<(), Failure> {
    let answer = match source::query(QueryKind::Filters) {
        // Without a daemon nothing new is steered: an empty list is the truth.
        Err(failure) if failure.code == 3 && json.json => Value::Array(Vec::new()),
        answer => answer?,
    };
    if json.json {
        render::json(&answer);
        return Ok(());
    }
    let list = answer.as_array().map_or(&[][..], Vec::as_slice);
    if list.is_empty() {
        return Err(Failure::nothing(
            "no filters: no accelerated socket has been used yet",
        ));
    }
    let mut columns = vec![
        ("ID", "id"),
        ("PROTO", "protocol"),
        ("LOCAL", "local"),
        ("REMOTE", "remote"),
        ("INTERFACE", "interface"),
        ("BACKEND", "backend"),
        ("ACTION", "action"),
        ("ROLE", "role"),
        ("PID", "owner.pid"),
        ("PROGRAM", "owner.program"),
        ("UID", "owner.uid"),
        ("QUEUE", "queues"),
        ("COOKIE", "cookies"),
        ("PACKETS", "packets"),
        ("BYTES", "bytes"),
        ("STATE", "state"),
        ("MATCHED BY", "matched_by"),
    ];
    let rows: Vec<Value> = list.iter().map(row).collect();
    if rows.iter().all(|row| row["cookies"].is_null()) {
        columns.retain(|(_, path)| !["queues", "cookies"].contains(path));
    }
    render::objects(&columns, &rows);
    Ok(())
}

/// A filter with the words of the card's own filters, of which it may have several: one for each
/// address.
fn row(filter: &Value) -> Value {
    let mut row = filter.clone();
    let hardware = filter["hardware"].as_array();
    for (column, word) in [("queues", "queue"), ("cookies", "cookie")] {
        let mut words: Vec<String> = Vec::new();
        for own in hardware.into_iter().flatten() {
            let word = own[word].to_string();
            if !words.contains(&word) {
                words.push(word);
            }
        }
        row[column] = (!words.is_empty()).then(|| words.join(" ")).into();
    }
    row
}

/// Has the daemon read its configuration again.
///
/// # Errors
/// When none runs (exit code 3), when it refuses, or when something is wrong with the file.
pub fn reload() -> Result<(), Failure> {
    let answer = source::ask(&Request::new(RequestKind::Reload))?;
    match answer["error"].as_str() {
        Some(error) => Err(Failure::new(format!(
            "{error}; the configuration before stays"
        ))),
        None => {
            let path = answer["config"].as_str();
            render::line(&path.map_or_else(
                || "there is no configuration file: the default policy".to_owned(),
                |path| format!("{path} is read"),
            ));
            Ok(())
        }
    }
}

/// Stops the daemon.
///
/// # Errors
/// When none runs (exit code 3) or it refuses.
pub fn shutdown() -> Result<(), Failure> {
    source::ask(&Request::new(RequestKind::Shutdown)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cards_filters_are_in_one_row() {
        let own = |cookie| json!({ "queue": 16, "cookie": cookie });
        let filter = json!({ "id": 1, "hardware": [own(3), own(4)] });
        let shown = row(&filter);
        assert_eq!(
            (&shown["queues"], &shown["cookies"]),
            (&json!("16"), &json!("3 4"))
        );
        for none in [
            json!({ "hardware": null }),
            json!({ "hardware": [] }),
            json!({}),
        ] {
            assert!(row(&none)["cookies"].is_null());
        }
    }

    #[test]
    fn addresses_have_their_family() {
        for (text, family) in [("198.18.0.1:53", 0), ("*:53", 1), ("[fd00::1]:53", 2)] {
            let add = Add {
                protocol: Protocol::Udp,
                local: address(text).expect(text),
                remote: None,
                interface: None,
                for_user: None,
                for_program: None,
                json: false,
            };
            let request = add.request().expect("no interface to look up");
            assert_eq!((request.family, request.local_port), (family, 53), "{text}");
            assert_eq!((request.keep_in_kernel, request.protocol), (1, 17));
        }
        assert!(user("root") == Ok(0) && user("7") == Ok(7) && user("no such user").is_err());
        assert!(
            program("/usr/sbin/knotd").is_err() && program(&"a".repeat(PROGRAM_NAME + 1)).is_err()
        );
        assert!(address("198.18.0.1").is_err() && address("x:1").is_err());
        assert!(ifindex("no-such-if").is_err() && ifindex("lo").is_ok());
    }
}
