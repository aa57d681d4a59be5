# The same work by the kernel's igbvf, a third function in a namespace of its own, and by the bypass with
# DPDK on the first one; the peer asks them in turns. What that says, and what not: docs/adr/0018-dpdk.md.
NATIVE=198.18.60.5 ROUNDS=7
in_native() { ip netns exec native "$@"; }
native() {
  within 60 test -d $D/$(vf 2)/net || return 1; local name=$(ls $D/$(vf 2)/net)
  ip netns add native && ip link set $name netns native name vf2 && in_native ip link set lo up || return 1
  in_native ip link set vf2 up && in_native ip addr add $NATIVE/24 dev vf2 || return 1
  within 60 in_peer ping -c 1 -W 1 $NATIVE
}
check "ratio: a function of igbvf" native
in_native redis-server --bind $NATIVE --protected-mode no --save '' --daemonize no > /run/redis-native.log 2>&1 & native_redis=$!
in_native udpecho --bind $NATIVE --port 7007 > /run/echo-native.log 2>&1 & native_echo=$!

# One figure each: GETs a second; microseconds of a datagram there and back, the median of 200.
gets() {
  in_peer timeout 60 redis-benchmark -h $1 -q -n 600 -c 4 -t get < /dev/null | tr '\r' '\n' |
    sed -n 's/^GET: \([0-9.]*\) requests per second.*/\1/p' | tail -1
}
echoes() { in_peer udprr --json --count 200 --warmup 20 $1 | sed -n 's/.*"p50_us": *\([0-9.]*\).*/\1/p' | tail -1; }
median() { sort -n "$1" | sed -n "$((ROUNDS / 2 + 1))p"; }

# measured WHAT FUNCTION: both, in turns; a line with the medians and their ratio.
measured() {
  local round; rm -f /run/ours /run/theirs
  for round in $(seq $ROUNDS); do
    $2 $HERE >> /run/ours; $2 $NATIVE >> /run/theirs
  done
  [ "$(wc -w < /run/ours)" = $ROUNDS ] && [ "$(wc -w < /run/theirs)" = $ROUNDS ] || { cat /run/ours /run/theirs; return 1; }
  awk -v what="$1" -v a=$(median /run/ours) -v b=$(median /run/theirs) \
    'BEGIN { printf "ratio %s: bypass %s, igbvf %s: %.2f\n", what, a, b, a / b }' > /run/ratio
}
check "ratio: redis" measured "redis, GETs a second (more is better)" gets; cat /run/ratio
check "ratio: datagrams" measured "udpecho, us there and back (less is better)" echoes; cat /run/ratio
kill $native_redis $native_echo
