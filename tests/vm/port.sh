# Two virtual functions of the card: one is driven by DPDK, in a relay of the daemon. The other one is
# the peer, the kernel's igbvf, in a namespace of its own.
export LD_LIBRARY_PATH=/job/lib PATH=/job/bin:$PATH BYPASS_CONFIG=/run/bypass.toml
HERE=198.18.60.1 THERE=198.18.60.3
export HOST4=$HERE HOST6=fd98:60::1 PEER4=$THERE PEER6=fd98:60::3
ip link set $IF up
# As with any two interfaces in one network: else the card's own answers for addresses of the other.
echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore

# Three functions, made for the third, which then is the kernel's, as is the second.
make() { bypassctl devices bind $IF --vf 2 && bypassctl devices bind $IF --vf 1 && [ "$(driver $(vf 1))" = vfio-pci ] && [ "$(driver $(vf 0))" = none ]; }
back() {
  for i in 0 1 2; do ip link set $IF vf $i mac 02:18:06:00:01:0$i; done
  bypassctl devices unbind $IF --vf 2 && bypassctl devices unbind $IF --vf 1 && [ "$(driver $(vf 1))" = igbvf ]
}
peer() {
  within 60 test -d $D/$(vf 1)/net || return 1; local name=$(ls $D/$(vf 1)/net)
  [ -e /run/netns/peer ] || ip netns add peer
  ip link set $name netns peer name vf1 && in_peer ip link set lo up && in_peer ip link set vf1 up || return 1
  in_peer ip addr add $PEER4/24 dev vf1 && in_peer ip addr add $PEER6/64 dev vf1 nodad || return 1
  within 60 eval 'in_peer ip link show vf1 | grep LOWER_UP'
}
check "devices bind makes functions and binds one" make
check "devices unbind gives it to igbvf" back
check "the peer's link" peer

# The daemon, first with a function that DPDK cannot have: testpmd has it, which ends with its input.
A=$(vf 0)
echo 128 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
# Not the card itself: to begin with XDP igb resets it, and its functions with it, which would happen
# with the first socket of any address and again with the last.
printf '[daemon]\ninterfaces = { exclude = ["%s"] }\n' $IF > $BYPASS_CONFIG
printf '[[device]]\nname = "vf0"\nbackend = "dpdk"\ndevargs = "%s"\nphysical_rules = true\n' $A >> $BYPASS_CONFIG
mkfifo /run/hold
held() {
  bypassctl devices bind $IF --vf 0 || return 1
  dpdk-testpmd --no-huge -m 64 -l 0-1 -a $A --file-prefix=other -- -i --total-num-mbufs=2048 < /run/hold > /run/testpmd.log 2>&1 &
  exec 7> /run/hold
  within 120 grep -q 'testpmd> ' /run/testpmd.log || { cat /run/testpmd.log; return 1; }
}
# doctor fails, and gives this reason.
fails() { within 120 shows "$1" bypassctl doctor vf0 || return 1; bypassctl doctor vf0; [ $? = 1 ]; }
served() { within 120 shows "vf0: the daemon (serves it|will open it)" bypassctl doctor vf0; }
free() { exec 7>&-; within 60 eval '! pidof dpdk-testpmd > /dev/null' && served; }
check "devices bind, and testpmd has it" held
bypassctl daemon --foreground --config $BYPASS_CONFIG > /run/daemon.log 2>&1 7>&- &
check "doctor tells of a function that another program has" fails "vf0: DPDK: .*Device or resource busy"
check "that one ends: the port opens" free
check "devices list" shows "$A +vfio-pci .*$PF" bypassctl devices list
ip addr add $HOST4/24 dev vf0; ip addr add $HOST6/64 dev vf0 nodad

pings() { within 120 in_peer ping -c 1 -W 1 $HERE > /dev/null && in_peer ping -c 3 -i 0.2 -W 20 $HERE; }
has_filter() { within 60 shows "$1 .*dpdk" bypassctl filters list > /dev/null || { bypassctl filters list; return 1; }; }
# On a machine with much else to do an answer may be late, which counts as lost.
ask() { within 120 in_peer udprr --count ${1:-20} --warmup 5 $HERE; }
