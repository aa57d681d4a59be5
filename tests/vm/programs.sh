# Unmodified programs over the function, and what is the kernel's.
mkdir -p /etc /var/log/nginx /var/lib/nginx; echo 'root:x:0:0::/:/bin/sh' > /etc/passwd; echo 'root:x:0:' > /etc/group
refused() { ! in_peer nc -w 60 $HERE 9 < /dev/null 2> /run/refused && grep -q refused /run/refused; }
page() { # port
  in_peer timeout 60 bash -c "exec 3<>/dev/tcp/$HERE/$1; printf 'GET /page HTTP/1.0\r\n\r\n' >&3; cat <&3" | grep "a page"; }
exceptions() { mkdir -p /run/www; echo "a page" > /run/www/page; httpd -p $HERE:8001 -h /run/www; within 60 page 8001; }
check "exception path: echo requests" pings
check "exception path: a port that nobody has" refused
check "exception path: a TCP server of the kernel" exceptions

# The physical function refuses rules, whatever ethtool's exit code is: the relay matches.
no_rules="$IF takes no rules \(ntuple\): .*not supported"
unruled() {
  shows "not supported" ethtool -N $IF flow-type udp4 dst-ip $HERE dst-port 7007 vf 0 queue 0 || return 1
  shows "udp +$HERE:7007.* vf0 +dpdk.* software: Function not implemented; $no_rules" bypassctl filters list &&
    shows "vf0: no rules elsewhere lead to it: $no_rules" bypassctl doctor vf0
}
shown() {
  shows "udp +$HERE:7007.* vf0 +dpdk.* software: Function not implemented" bypassctl filters list && shows "udp .*$HERE:7007.*dpdk" bypassctl sockets &&
    shows "$HERE:7007.*bypass" bypassctl explain --all && within 60 shows "vf0 +dpdk +redirected" bypassctl stats &&
    within 60 shows "vf0 +dpdk +rx_good_packets" bypassctl stats
}
accelerated echo udpecho --bind $HERE --port 7007; echo_pid=$started
has_filter "udp +$HERE:7007"
check "udpecho" ask 100
check "filters, sockets, explain and stats say dpdk" shown
check "the physical function takes no rules: said, and served all the same" unruled
# The card looks at checksums and writes them; a wrong one is dropped all the same.
counts() { within 60 shows "$1" bypassctl stats; }
checksums() {
  shows "vf0: the daemon serves it .*; its port checks and writes checksums" bypassctl doctor vf0 &&
    shows "$A .*RX and TX by the port" bypassctl devices list && counts "rx_checksum_found_good" && counts "tx_checksum_completed" || return 1
  in_peer forged $HERE 7007 100 && counts "rx_checksum_found_bad" && counts "checksum-bad" && ask
}
check "checksums by the card" checksums

receiver() {
  accelerated receiver udpreceiver --bind $HERE --port 7009 --count 300
  has_filter "udp +$HERE:7009" || return 1
  sent() { in_peer udpsender --port 7009 --rate 2000 --count 400 $HERE; ! kill -0 $started 2> /dev/null; }
  within 60 sent; wait $started && grep -E '^(3[0-9][0-9]|4[0-9][0-9]) ' /run/receiver.log || { cat /run/receiver.log; return 1; }
}
check "udpreceiver" receiver

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
dns() { has_filter "udp +$HERE:5300" && shows "Queries completed: +300 \(100" in_peer dnsperf -s $HERE -p 5300 -d /run/queries -n 300 -q 8 -t 60; }
accelerated knot knotd -c /run/knot.conf; knot_pid=$started
check "knotd, dnsperf" dns
kill $knot_pid

sockets() {
  has_filter "udp +$HERE:11111" || return 1
  pinged() { shows "dropped messages = 0; # duplicated messages = 0; # out-of-order" in_peer sockperf ping-pong -i $HERE -t 1 --mps 200 -m 48; }
  within 60 pinged
}
accelerated sockperf sockperf server -i $HERE; sockperf_pid=$started
check "sockperf" sockets
kill -9 $sockperf_pid

stored() {
  has_filter "tcp +$HERE:11211" || return 1
  in_peer timeout 60 bash -c "exec 3<>/dev/tcp/$HERE/11211; printf 'set k 0 0 5\r\nhello\r\nget k\r\nquit\r\n' >&3; cat <&3" > /run/stored
  cat /run/stored; grep -q STORED /run/stored && grep -q hello /run/stored
}
accelerated memcached memcached -u root -l $HERE -t 2 -m 16; memcached_pid=$started
check "memcached" stored
kill $memcached_pid

benchmark() { in_peer redis-benchmark -h $HERE -q -n $1 -c 4 -t set,get < /dev/null | tr '\r' '\n' | grep second; }
redis() { has_filter "tcp +$HERE:6379" && within 120 benchmark 200; }
start_redis() { accelerated redis redis-server --bind $HERE --protected-mode no --save '' --daemonize no; redis_pid=$started; }
again() { kill -9 $redis_pid; wait $redis_pid; start_redis; redis; }
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
pages() { local i; for i in $(seq 10); do page 8080 || return 1; done; }
children() { cat /proc/$nginx_pid/task/$nginx_pid/children; }
workers() {
  has_filter "tcp +$HERE:8080" && pages || return 1
  local victim=$(children | cut -d' ' -f1); kill -9 $victim
  within 60 eval '[ $(children | wc -w) = 2 ] && ! children | grep -qw '$victim && within 60 page 8080 && pages
}
accelerated nginx nginx -c /run/nginx/conf; nginx_pid=$started
check "nginx with two workers, one of them killed" workers
kill $nginx_pid

# A connection goes to the kernel and goes on there.
rollback() {
  accelerated tcp tcpecho --bind $HERE --port 7008
  has_filter "tcp +$HERE:7008" || return 1
  mkfifo /run/say
  in_peer bash -c "exec 3<>/dev/tcp/$HERE/7008; while read -r line; do echo \"\$line\" >&3; read -r -t 60 back <&3; echo \"\$back\"; done < /run/say" > /run/heard 2>&1 &
  local client=$!; exec 8> /run/say
  echo one >&8; within 60 grep one /run/heard && within 60 shows "estab.*$HERE:7008" bypassctl sockets && bypassctl rollback $started || return 1
  echo two >&8; within 60 grep two /run/heard; exec 8>&-; wait $client; kill $started
  grep two /run/heard
}
check "rollback of a live connection" rollback
