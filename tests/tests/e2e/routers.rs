//! A router between the program under test and its peer: the client's side of the test bed forwards
//! to a namespace of the peer's own, and sends ICMP errors.
//!
//! ```text
//!   program (server's side) ── 1500 ── router (client's side) ── 1300 ── peer
//! ```

use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;

use super::harness::Scene;
use super::streams::{client, subject};

/// Behind the router: the peer, and two networks to which there is no way.
const PEER: &str = "198.18.77.2";
const ROUTER: &str = "198.18.77.1/24";
const PEERS_NETWORK: &str = "198.18.77.0/24";
const UNREACHABLE: [&str; 2] = ["198.18.78.0/24", "fd98:78::/64"];
const PROHIBITED: [&str; 2] = ["198.18.79.0/24", "fd98:79::/64"];

/// Answers a stream that has ended with its digest. It announces segments for 1500 bytes although
/// the path has room for 1300.
const PEER_PROGRAM: &str = "\
import hashlib, os, socket, subprocess, time
print(os.getpid(), flush=True)
while 'far' not in dict(map(reversed, socket.if_nameindex())):
    time.sleep(0.01)
for line in ('addr add 198.18.77.2/24 dev far', 'link set far up',
             'route add default via 198.18.77.1 mtu lock 1300 advmss 1460'):
    subprocess.check_call(['ip', *line.split()])
listener = socket.create_server(('', 5001))
print('listens', flush=True)
connection, _ = listener.accept()
digest = hashlib.sha256()
while piece := connection.recv(65536):
    digest.update(piece)
connection.sendall(digest.hexdigest().encode())
connection.close()
";

const SENDER: &str = "\
import hashlib, socket
data = bytes(i * 7 % 251 for i in range(1 << 20)) * 3
s = socket.create_connection(('198.18.77.2', 5001))
s.settimeout(30)
s.sendall(data)
s.shutdown(socket.SHUT_WR)
told = s.makefile().read()
assert told == hashlib.sha256(data).hexdigest(), told
print('path', s.getsockopt(socket.IPPROTO_IP, 14))
";

/// Prints what connects to networks without a way come to.
const CALLER: &str = "\
import errno, socket
for host in ('198.18.78.9', '198.18.79.9', 'fd98:78::9', 'fd98:79::9'):
    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
    print(errno.errorcode[s.connect_ex((host, 5001))])
";

/// Makes the client's side forward, and leads the networks behind it there.
fn forward(scene: &Scene, networks: &[&str]) -> Result<()> {
    let bed = &scene.bed;
    let settings = "echo 1 > /proc/sys/net/ipv4/ip_forward\n\
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n\
        echo 0 > /proc/sys/net/ipv4/icmp_ratelimit\n\
        echo 0 > /proc/sys/net/ipv6/icmp/ratelimit";
    client(scene, "sh", &["-e", "-c", settings])?;
    for network in networks {
        let router = if network.contains(':') {
            bed.ipv6(Side::Client)
        } else {
            bed.ipv4(Side::Client)
        };
        bed.ip(Side::Server, &["route", "add", network, "via", &router])?;
    }
    Ok(())
}

/// The peer, in a namespace that ends with it.
fn peer(scene: &Scene) -> Result<Running> {
    let bed = &scene.bed;
    let mut program = bed.program(Side::Client, "unshare");
    let peer = program
        .args(["-n", "python3", "-c", PEER_PROGRAM])
        .spawn()?;
    let limit = Duration::from_secs(20);
    wait_until("the peer's process", limit, || peer.stdout().contains('\n'))?;
    let pid = peer.stdout().lines().next().unwrap_or_default().to_owned();
    let link = "link add near mtu 1500 type veth peer name far mtu 1500 netns";
    let add: Vec<&str> = link.split(' ').chain([pid.as_str()]).collect();
    bed.ip(Side::Client, &["addr", "show"])?;
    bed.ip(Side::Client, &add)?;
    bed.ip(Side::Client, &["addr", "add", ROUTER, "dev", "near"])?;
    bed.ip(Side::Client, &["link", "set", "near", "mtu", "1300", "up"])?;
    wait_until("the peer listens", limit, || {
        peer.stdout().contains("listens")
    })
    .map_err(|error| format!("{error}: {}", peer.stderr()))?;
    Ok(peer)
}

/// Segments that are too long for the path are sent again shorter, as the router tells.
pub(crate) fn small_path(scene: &Scene) -> Result<()> {
    forward(scene, &[PEERS_NETWORK])?;
    let peer = peer(scene)?;
    client(scene, "ping", &["-c1", "-W5", PEER])?;
    let mut sender = subject(scene, Side::Server, "python3");
    sender.args(["-c", SENDER]).timeout(Duration::from_secs(60));
    let run = sender.run()?.check()?;
    if run.stdout.trim() != "path 1300" {
        return Err(format!("{}{}", run.stdout, run.stderr).into());
    }
    peer.wait(Duration::from_secs(20))?.check()?;
    Ok(())
}

/// A connect to where there is no way fails with the error that the router's message stands for.
pub(crate) fn no_way(scene: &Scene) -> Result<()> {
    forward(scene, &UNREACHABLE)?;
    forward(scene, &PROHIBITED)?;
    for (kind, networks) in [("unreachable", UNREACHABLE), ("prohibit", PROHIBITED)] {
        for network in networks {
            scene
                .bed
                .ip(Side::Client, &["route", "add", kind, network])?;
        }
    }
    let mut caller = subject(scene, Side::Server, "python3");
    caller.args(["-c", CALLER]).timeout(Duration::from_secs(60));
    let run = caller.run()?.check()?;
    let told: Vec<&str> = run.stdout.lines().collect();
    if told != ["EHOSTUNREACH", "EHOSTUNREACH", "ENETUNREACH", "EACCES"] {
        return Err(format!("{told:?} {}", run.stderr).into());
    }
    Ok(())
}
