# Job: programs over a virtual function of an emulated igb card; or, on the newest kernel, over cards
# whose drivers use the stack's memory themselves.
. ./guest.sh
if [ -e zero ]; then . ./zero.sh
else
  . ./port.sh
  . ./programs.sh
  [ ! -e all ] || . ./ratio.sh
  . ./cases.sh
  . ./life.sh
  bypassctl shutdown
  [ ! -e all ] || . ./xdp.sh
  . ./vlan.sh
fi
[ $failed = 0 ] || { cat /run/daemon.log; dmesg | tail -20; }
echo "$failed failed"
exit $((failed > 100 ? 100 : failed))
