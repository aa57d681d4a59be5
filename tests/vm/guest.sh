# Sourced by a job in the guest: the igb card, its virtual functions, and checks.
modprobe igb; modprobe igbvf; modprobe vfio_iommu_type1; modprobe vfio-pci; modprobe tun
PF=$(basename $(ls -d /sys/bus/pci/drivers/igb/0000:* | head -1)); D=/sys/bus/pci/devices
IF=$(ls $D/$PF/net)
failed=0

# Tries a command for so many seconds.
within() { local end=$((SECONDS + $1)); shift; until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done; }
vf() { basename $(readlink $D/$PF/virtfn$1); }
driver() { basename $(readlink $D/$1/driver 2>/dev/null || echo none); }
link_is_up() { [ "$(cat /sys/class/net/$1/carrier 2>/dev/null)" = 1 ]; }
in_peer() { ip netns exec peer "$@"; }

# check NAME COMMAND...: says ok, or FAIL with what the command printed.
check() {
  local name=$1 before=$SECONDS; shift
  if "$@" > /run/check.log 2>&1; then echo "ok    $name ($((SECONDS - before)) s)"
  else echo "FAIL  $name ($((SECONDS - before)) s)"; sed 's/^/      /' /run/check.log | tail -40; failed=$((failed + 1)); fi
}

# The output of a command has a line with this pattern.
shows() { local pattern=$1 text; shift; text=$("$@" 2>&1); echo "$text"; grep -Eq -- "$pattern" <<< "$text"; }

# With the shim: a program in the background, its output in /run/NAME.log, its process in $started.
accelerated() {
  local name=$1; shift
  LD_PRELOAD=/job/bin/libbypass.so "$@" > /run/$name.log 2>&1 &
  started=$!
}
