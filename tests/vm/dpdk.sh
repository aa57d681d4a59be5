# Job: programs over a virtual function of an emulated igb card, driven by DPDK. The peer is the
# kernel's igbvf on another function of the card, in a namespace of its own.
. ./guest.sh
export LD_LIBRARY_PATH=/job/lib PATH=/job/bin:$PATH BYPASS_CONFIG=/run/bypass.toml
HERE=198.18.60.1 THERE=198.18.60.3
ip link set $IF up
# As with any two interfaces in one network: else the card's own answers for addresses of the other.
echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore

# Two functions, made for the second, which then is the kernel's again.
make() { bypassctl devices bind $IF --vf 1 && [ "$(driver $(vf 1))" = vfio-pci ] && [ "$(driver $(vf 0))" = none ]; }
back() {
  for i in 0 1; do ip link set $IF vf $i mac 02:18:06:00:01:0$i; done
  bypassctl devices unbind $IF --vf 1 && [ "$(driver $(vf 1))" = igbvf ]
}
peer() {
  ip netns add peer; local name=$(ls $D/$(vf 1)/net)
  ip link set $name netns peer name vf1 && in_peer ip addr add $THERE/24 dev vf1 && in_peer ip link set vf1 up
  within 10 in_peer grep -q 1 /sys/class/net/vf1/carrier || in_peer ip link show vf1 | grep LOWER_UP
}
check "devices bind makes functions and binds one" make
check "devices unbind gives it to igbvf" back
check "the peer's link" peer

# The daemon, first with a function that DPDK cannot have.
A=$(vf 0)
echo 128 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
printf '[[device]]\nname = "vf0"\nbackend = "dpdk"\ndevargs = "%s"\n' $A > $BYPASS_CONFIG
bypassctl daemon --foreground --config $BYPASS_CONFIG > /run/daemon.log 2>&1 &
unbound() { within 20 shows "bypassctl devices bind $A" bypassctl doctor vf0; bypassctl doctor vf0; [ $? = 1 ]; }
served() { within ${1:-20} shows "vf0: the daemon (serves it|will open it)" bypassctl doctor vf0; }
bind() { bypassctl devices bind $IF --vf 0 && bypassctl reload && served; }
check "doctor tells of a function that is not bound" unbound
check "devices bind, reload: the port opens" bind
check "devices list" shows "$A .*vfio-pci +$PF" bypassctl devices list
ip addr add $HERE/24 dev vf0

pings() { within ${1:-5} in_peer ping -c 1 -W 1 $HERE > /dev/null && in_peer ping -c 3 -i 0.2 -W 2 $HERE; }
refused() { ! in_peer nc -w 2 $HERE 9 < /dev/null 2> /run/refused && grep -q refused /run/refused; }
page() { # port
  in_peer timeout 5 bash -c "exec 3<>/dev/tcp/$HERE/$1; printf 'GET /page HTTP/1.0\r\n\r\n' >&3; cat <&3" | grep "a page"; }
exceptions() { mkdir -p /run/www; echo "a page" > /run/www/page; httpd -p $HERE:8001 -h /run/www && page 8001; }
check "exception path: echo requests" pings
check "exception path: a port that nobody has" refused
check "exception path: a TCP server of the kernel" exceptions

# Programs.
ask() { in_peer udprr --count ${1:-200} --warmup 5 $HERE; }
shown() {
  shows "udp +$HERE:7007.* vf0 +dpdk" bypassctl filters list && shows "udp .*$HERE:7007.*dpdk" bypassctl sockets &&
    shows "$HERE:7007.*bypass" bypassctl explain --all && within 3 shows "vf0 +dpdk +redirected" bypassctl stats &&
    within 3 shows "vf0 +dpdk +rx_good_packets" bypassctl stats
}
accelerated echo udpecho --bind $HERE --port 7007; echo_pid=$started
within 10 shows "$HERE:7007" bypassctl filters list > /dev/null
check "udpecho" ask
check "filters, sockets, explain and stats say dpdk" shown

cat > /run/knot.conf <<'K'
server:
  rundir: "/run/knot"
  listen: 198.18.60.1@5300
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
log:
  - target: stderr
    any: warning
database:
  storage: "/run/knot"
zone:
  - domain: bypass.test
    storage: "/run/knot"
    file: "zone"
    journal-content: none
    zonefile-sync: -1
K
mkdir -p /run/knot
printf '$ORIGIN bypass.test.\n$TTL 3600\n@ SOA ns hostmaster 1 3600 600 86400 300\n@ NS ns\nns A 192.0.2.1\nweb A 192.0.2.2\n' > /run/knot/zone
echo "web.bypass.test A" > /run/queries
dns() {
  within 15 shows "udp +$HERE:5300.*dpdk" bypassctl filters list > /dev/null
  shows "Queries completed: +300 \(100" in_peer dnsperf -s $HERE -p 5300 -d /run/queries -n 300 -q 8 -t 5
}
accelerated knot knotd -c /run/knot.conf; knot_pid=$started
check "knotd, dnsperf" dns
kill $knot_pid

redis() { within 10 shows "tcp +$HERE:6379.*dpdk" bypassctl filters list > /dev/null; in_peer redis-benchmark -h $HERE -q -n ${1:-400} -c 4 -t set,get | tr '\r' '\n' | grep second; }
start_redis() { accelerated redis redis-server --bind $HERE --protected-mode no --save '' --daemonize no; redis_pid=$started; }
again() { kill -9 $redis_pid; start_redis; redis 200; }
start_redis
check "redis" redis
check "redis: killed, and another one on the same function" again

mkdir -p /run/nginx
cat > /run/nginx/conf <<'N'
daemon off; worker_processes 2; pid /run/nginx/pid; error_log stderr; user root;
events { worker_connections 64; }
http { access_log off; client_body_temp_path /run/nginx/b; proxy_temp_path /run/nginx/p;
fastcgi_temp_path /run/nginx/f; uwsgi_temp_path /run/nginx/u; scgi_temp_path /run/nginx/s;
server { listen 198.18.60.1:8080; root /run/www; } }
N
mkdir -p /etc /var/log/nginx /var/lib/nginx; echo 'root:x:0:0::/:/bin/sh' > /etc/passwd; echo 'root:x:0:' > /etc/group
pages() { local i; for i in $(seq 20); do page 8080 || return 1; done; }
workers() { pages || return 1; kill -9 $(cat /proc/$nginx_pid/task/$nginx_pid/children | cut -d' ' -f1); sleep 0.5; pages; }
accelerated nginx nginx -c /run/nginx/conf; nginx_pid=$started
within 15 shows "tcp +$HERE:8080.*dpdk" bypassctl filters list > /dev/null
check "nginx with two workers, one of them killed" workers
kill $nginx_pid

# A connection goes to the kernel and goes on there.
rollback() {
  accelerated tcp tcpecho --bind $HERE --port 7008
  within 10 shows "$HERE:7008" bypassctl filters list > /dev/null
  in_peer tcprr --count 1500 --warmup 5 --port 7008 $HERE > /run/tcprr.log 2>&1 & local client=$!
  within 10 shows "estab.*$HERE:7008" bypassctl sockets && bypassctl rollback $started && wait $client || { cat /run/tcprr.log; return 1; }
  kill $started
}
check "rollback of a live connection" rollback

# The function's life.
tagged() {
  for i in 0 1; do ip link set $IF vf $i vlan 100; done; pings 10 && ask 50 || return 1
  for i in 0 1; do ip link set $IF vf $i vlan 0; done; pings 10
}
relay() { grep -lsz '^relay$' /proc/[0-9]*/cmdline | cut -d/ -f3; }
no_huge_pages() {
  echo 0 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages; local before=$(relay); kill -9 $before
  within 20 eval '[ -n "$(relay)" ] && [ "$(relay)" != '$before' ]' && served && within 10 ask 50 && grep Huge /proc/meminfo
}
check "the functions in a VLAN of their own" tagged
check "the relay killed, and its memory without huge pages" no_huge_pages
down_and_up() { ip link set $IF down; sleep 1; ip link set $IF up; within 10 link_is_up $IF; pings 40 && within 10 ask 50; }
unplugged() { timeout 20 bypassctl devices unbind $IF --vf 0 && within 20 shows "bypassctl devices bind $A" bypassctl doctor vf0 && kill -0 $echo_pid; }
plugged() { bypassctl devices bind $IF --vf 0 && bypassctl reload && served && pings 10 && within 10 ask 50; }
gone() {
  timeout 20 bash -c "echo 0 > $D/$PF/sriov_numvfs" && within 20 shows "no device at $A" bypassctl doctor vf0 &&
    kill -0 $echo_pid $redis_pid; }
check "the physical function down and up" down_and_up
check "devices unbind in use" unplugged
check "devices bind again: the same programs go on" plugged
check "no functions any more, in use" gone
bypassctl shutdown
[ $failed = 0 ] || { cat /run/daemon.log; dmesg | tail -20; }
echo "$failed failed"
exit $((failed > 100 ? 100 : failed))
