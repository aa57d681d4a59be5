# Programs of the socket conformance set: with the shim they print what they print without it, where
# everything goes by the exception path. Few of them in every run; with the file "all", all.
in_peer peer $PEER4 $PEER6 > /run/peer.log 2>&1 & peer_pid=$!
within 60 eval "in_peer cat /proc/net/tcp | grep -q :1B58" # port 7000: it is ready
same() {
  timeout 300 conformance $1 > /run/kernel.out 2>&1
  grep -q '^end$' /run/kernel.out || { cat /run/kernel.out; return 1; }
  LD_PRELOAD=/job/bin/libbypass.so timeout 300 conformance $1 > /run/shim.out 2>&1
  diff -U 3 /run/kernel.out /run/shim.out
}
cases="process_child_serves process_both tcp_fork"
[ ! -e all ] || cases=$(conformance --list | cut -d' ' -f1)
for case in $cases; do check "conformance: $case" same $case; done
kill $peer_pid
