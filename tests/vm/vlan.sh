# A VLAN interface on a card by ef_vi. No such card: libciul is the tests' stand-in, over a veth. Here,
# because a machine that builds this may have no VLAN interfaces at all.
kill -9 $(jobs -p) 2> /dev/null; wait # with them goes their stack
modprobe 8021q; modprobe veth
CARD=198.18.62
in_far() { ip netns exec far "$@"; }
tagged_wire() {
  ip netns add far && ip link add card0 type veth peer name c netns far || return 1
  ip link set card0 up && ip link add link card0 name card0.7 type vlan id 7 || return 1
  ip addr add $CARD.1/24 dev card0.7 && ip link set card0.7 up || return 1
  in_far ip link set c up && in_far ip link add link c name c.7 type vlan id 7 || return 1
  in_far ip addr add $CARD.2/24 dev c.7 && in_far ip link set c.7 up || return 1
  # No card leaves checksums to its peer.
  in_far ethtool -K c tx off && in_far ethtool -K c.7 tx off
  within 60 in_far ping -c 1 -W 1 $CARD.1
}
opens_card() { within 60 shows "card0.7: a card that ef_vi serves" bypassctl doctor card0.7; }
asks() { within 120 in_far udprr --count 20 --warmup 5 $CARD.1; }
streams() { within 120 in_far tcprr --port 7008 --count 50 --size 5000 $CARD.1; }
led() { within 20 shows "$1 +$CARD.1:$2 .* card0.7 +ef_vi .* [1-9][0-9]+ +[0-9]+ +live" bypassctl filters list; }
check "vlan: the wire" tagged_wire
printf '[[device]]\nname = "card0.7"\nbackend = "ef_vi"\nlibrary = "/job/bin/libfake_ciul.so"\n' > $BYPASS_CONFIG
FAKE_CIUL_WIRE=packet bypassctl daemon --foreground --config $BYPASS_CONFIG > /run/daemon.log 2>&1 &
check "vlan: the card is open" opens_card
accelerated echo udpecho --bind $CARD.1 --port 7007
accelerated stream tcpecho --bind $CARD.1 --port 7008
check "vlan: datagrams" asks
check "vlan: a stream" streams
check "vlan: a filter has led the datagrams" led udp 7007
check "vlan: a filter has led the stream" led tcp 7008
bypassctl shutdown
