# Job: programs over a virtual function of an emulated igb card.
. ./guest.sh
. ./port.sh
. ./programs.sh
. ./cases.sh
. ./life.sh
bypassctl shutdown
[ ! -e all ] || . ./xdp.sh
. ./vlan.sh
[ $failed = 0 ] || { cat /run/daemon.log; dmesg | tail -20; }
echo "$failed failed"
exit $((failed > 100 ? 100 : failed))
