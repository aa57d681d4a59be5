# The card itself by AF_XDP, without functions. The peer is a virtio card on the same wire.
kill -9 $(jobs -p) 2> /dev/null; wait # with them goes their stack
ip link set $IF down; echo 0 > $D/$PF/sriov_numvfs
modprobe virtio_net
ip netns del peer; ip netns add peer; ip addr flush dev $IF
XDP=198.18.61
wire() {
  local name=$(basename $(ls -d /sys/bus/virtio/devices/*/net/* | head -1))
  ip link set $name netns peer name v && in_peer ip addr add $XDP.3/24 dev v && in_peer ip link set v up || return 1
  ip addr add $XDP.1/24 dev $IF && ip link set $IF up && within 60 link_is_up $IF && within 60 in_peer ping -c 1 -W 1 $XDP.1
}
served_natively() { within 60 shows "$IF: the daemon serves it in native mode" bypassctl doctor $IF; }
answers() { within 120 in_peer udprr --count 20 --warmup 5 $XDP.1; }
carried() { within 10 shows "udp +$XDP.1:7007 .* $IF +af_xdp .* [1-9][0-9]+ +[0-9]+ +live" bypassctl filters list; }
# The driver refuses rules: the daemon has asked for a queue of its own, and all are served. (ethtool
# ends as if it had entered one.)
all_queues() {
  shows "not supported" ethtool -N $IF flow-type udp4 dst-port 7007 action 1 || return 1
  shows "$IF: all queues are served: it takes no rules \(ntuple\): .*not supported" bypassctl doctor $IF || return 1
  shows "live +software: all queues are served: it takes no rules" bypassctl filters list || return 1
  bypassctl stacks --json | grep -o '"queue": *[01]' | sort -u | wc -l | grep -x 2 || return 1
  shows "$IF: RX queues: 2, all of them are served" bypassctl doctor $IF
}
# With zero_copy = true in the configuration: this kernel's igb copies all the same.
copies() { shows "$IF: frames of queue 0 are copied: the driver cannot without" bypassctl doctor $IF; }
table() { ethtool -x $IF | grep -A20 indirection; }
same_table() { table > /run/table && diff /run/table.before /run/table; }
unloaded() { bypassctl shutdown; within 60 eval '! ip link show '$IF' | grep -q xdp'; }
check "af_xdp: the wire" wire
ethtool -X $IF weight 3 1; table > /run/table.before # Not the driver's own.
printf '[[device]]\nname = "%s"\nbackend = "af_xdp"\nzero_copy = true\nown_queue = true\n' $IF > $BYPASS_CONFIG
bypassctl daemon --foreground --config $BYPASS_CONFIG > /run/daemon.log 2>&1 &
within 60 shows "$IF: the daemon will open it" bypassctl doctor $IF > /dev/null
accelerated echo udpecho --bind $XDP.1 --port 7007
check "af_xdp: udpecho" answers
check "af_xdp: native mode" served_natively
check "af_xdp: frames are copied, and why" copies
check "af_xdp: a filter has led it" carried
check "af_xdp: all queues are served, no rule can be had" all_queues
kill $started
check "af_xdp: the RSS table is as before" same_table
check "af_xdp: nothing stays on the card" unloaded
check "af_xdp: nor in its RSS table" same_table
