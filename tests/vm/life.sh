# What can happen to the function while programs use it. Somebody sends all the time.
in_peer bash -c "while :; do udpsender --port 7007 --rate 300 --seconds 600 $HERE; sleep 0.5; done" > /dev/null 2>&1 & sender=$!

tagged() {
  for i in 0 1; do ip link set $IF vf $i vlan 100; done; pings && ask || return 1
  for i in 0 1; do ip link set $IF vf $i vlan 0; done; pings
}
relay() { grep -lsz '^relay$' /proc/[0-9]*/cmdline | cut -d/ -f3; }
no_huge_pages() {
  echo 0 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages; local before=$(relay); kill -9 $before
  within 120 eval '[ -n "$(relay)" ] && [ "$(relay)" != '$before' ]' && served && ask && grep Huge /proc/meminfo
}
check "the functions in a VLAN of their own" tagged
check "the relay killed, and its memory without huge pages" no_huge_pages
down_and_up() { ip link set $IF down; sleep ${1:-0}; ip link set $IF up; within 60 link_is_up $IF; pings && ask; }
unplugged() { timeout 120 bypassctl devices unbind $IF --vf 0 && fails "bypassctl devices bind $A" && kill -0 $echo_pid; }
plugged() { bypassctl devices bind $IF --vf 0 && bypassctl reload && served && pings && ask; }
gone() {
  timeout 120 bash -c "echo 0 > $D/$PF/sriov_numvfs" && fails "no device at $A" && kill -0 $echo_pid $redis_pid; }
anew() { make && back && peer && plugged; }
check "the physical function down and up" down_and_up
check "the physical function down for a while, and up" down_and_up 3
check "devices unbind in use" unplugged
check "devices bind again: the same programs go on" plugged
check "no functions any more, in use" gone
check "functions again: the same programs go on" anew
kill $sender
