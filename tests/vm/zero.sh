# AF_XDP without copies, on a kernel whose drivers can: each of two cards in turn, the other one is
# its peer, in a namespace of its own.
export LD_LIBRARY_PATH=/job/lib PATH=/job/bin:$PATH BYPASS_CONFIG=/run/bypass.toml
modprobe virtio_net
VIRTIO=$(basename $(ls -d /sys/bus/virtio/devices/*/net/* | head -1))
NEAR=198.18.63.1 FAR=198.18.63.3
ip netns add peer; in_peer ip link set lo up

# The wire: this card here, that one there. To begin with XDP resets igb: its link is waited for.
wire() {
  ip link set $2 netns peer && in_peer ip addr add $FAR/24 dev $2 && in_peer ip link set $2 up || return 1
  ip addr add $NEAR/24 dev $1 && ip link set $1 up && within 60 link_is_up $1 && within 60 in_peer ping -c 1 -W 1 $NEAR
}
unwire() { ip addr flush dev $1; in_peer ip addr flush dev $2; in_peer ip link set $2 netns 1; }
served_without_copies() { within 60 shows "$1: the daemon serves it in native mode, without copies" bypassctl doctor $1; }
answers() { within 120 in_peer udprr --count 20 --warmup 5 $NEAR; }
floods() { within 120 in_peer udprr --count 2000 --warmup 5 $NEAR; }
streams() { within 120 in_peer tcprr --port 7008 --count 50 --size 5000 $NEAR; }
carried() { within 10 shows "$2 +$NEAR:$3 .* $1 +af_xdp .* [1-9][0-9]+ +[0-9]+ +live" bypassctl filters list; }
# Every queue of the card, by the word of the kernel.
listed() { bypassctl stacks --json | tee /run/stacks; grep -q '"zero_copy": *true' /run/stacks && ! grep -q '"zero_copy": *false' /run/stacks; }
pings() { within 60 in_peer ping -c 1 -W 1 $NEAR > /dev/null && in_peer ping -c 3 -i 0.2 -W 20 $NEAR; }
# More than the rings hold, to a program that does not run: the kernel's frames come all the same.
stopped() {
  kill -STOP $echo_pid $stream_pid
  in_peer udpsender --port 7007 --rate 4000 --seconds 3 $NEAR; in_peer ping -c 3 -i 0.2 -W 20 $NEAR; local code=$?
  kill -CONT $echo_pid $stream_pid; return $code
}
unloaded() { bypassctl shutdown; within 60 eval '! ip link show '$1' | grep -q xdp'; }

without_copies() {
  check "$1 without copies: the wire" wire $2 $3
  printf '[[device]]\nname = "%s"\nbackend = "af_xdp"\nzero_copy = true\n' $2 > $BYPASS_CONFIG
  bypassctl daemon --foreground --config $BYPASS_CONFIG > /run/daemon.log 2>&1 &
  within 60 shows "$2: the daemon will open it" bypassctl doctor $2 > /dev/null
  accelerated echo udpecho --bind $NEAR --port 7007; echo_pid=$started
  accelerated stream tcpecho --bind $NEAR --port 7008; stream_pid=$started
  check "$1 without copies: datagrams" answers
  check "$1 without copies: the mode" served_without_copies $2
  check "$1 without copies: all queues" listed
  check "$1 without copies: two thousand more" floods
  check "$1 without copies: a stream" streams
  check "$1 without copies: a filter has led the datagrams" carried $2 udp 7007
  check "$1 without copies: a filter has led the stream" carried $2 tcp 7008
  check "$1 without copies: the kernel answers" pings
  check "$1 without copies: it does while the programs are stopped" stopped
  check "$1 without copies: they go on" answers
  kill $echo_pid $stream_pid
  check "$1 without copies: nothing stays on the card" unloaded $2
  check "$1 without copies: the kernel has it" pings
  unwire $2 $3
}
without_copies igb $IF $VIRTIO
without_copies virtio $VIRTIO $IF
