#!/bin/bash
# mkinitrd.sh DEST OUT: from DEST (see prepare.sh) make OUT/vmlinux and OUT/base.cpio.
#
# vmlinux is taken out of the bzImage, because decompression is slow under TCG; the initramfs stays
# uncompressed for the same reason. Needs zstd, xz, cpio, kmod, binutils; no root.
set -euo pipefail
[ $# -eq 2 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dest=$(cd "$1" && pwd)
out=$(mkdir -p "$2" && cd "$2" && pwd)
guest=$dest/guest
tree=$out/tree
lib=lib/x86_64-linux-gnu
PATH=$PATH:/usr/sbin:/sbin
modules="tun igb igbvf vfio-pci vfio_iommu_type1 virtio_net virtio_pci 9p 9pnet_virtio e1000e vmxnet3 veth 8021q"
pmds="bus_pci bus_vdev mempool_ring net_e1000 net_virtio net_af_xdp net_ring net_null"

rm -rf "$tree"
mkdir -p "$tree"/{bin,lib64,$lib,proc,sys,dev,tmp,run,var,etc,job}
ln -s /run "$tree/var/run"

# 1. The kernel: try each compressed stream in the bzImage until one holds an ELF file.
version=$(cat "$dest/prepared")
moddir=$(find "$dest/kernel" -path "*/lib/modules/$version" -type d)
image=$(find "$dest/kernel/boot" "$moddir" -maxdepth 1 -name 'vmlinuz*' 2>/dev/null | head -1 || true)
extract() { # magic (a Perl pattern), decompressor
  local offset
  for offset in $(LC_ALL=C grep -aboP "$1" "$image" | cut -d: -f1); do
    tail -c +$((offset + 1)) "$image" | $2 > "$out/vmlinux" 2>/dev/null || true
    if [ "$(head -c 4 "$out/vmlinux" | tail -c 3)" = ELF ]; then return; fi
  done
  return 1
}
extract '\x28\xb5\x2f\xfd' 'zstd -dcq' || extract '\xfd7zXZ\x00' 'xz -dc --single-stream' ||
  { echo "no vmlinux inside $image" >&2; exit 1; }

# 2. Programs, DPDK drivers and every library that they link.
cp "$guest/bin/busybox" "$tree/bin/"
cp -L "$guest/lib64/ld-linux-x86-64.so.2" "$tree/lib64/"
need=()
for b in bin/bash bin/ip sbin/ethtool usr/bin/dpdk-testpmd; do
  cp -L "$guest/$b" "$tree/bin/"
  need+=("$guest/$b")
done
ln -s bash "$tree/bin/sh"
# DPDK opens librte_X.so.23.0 in its driver folder. That must be the very file which programs link
# (a symbolic link, not a copy), or drivers register twice and the mempool operations are missing.
pmddir=$(cd "$guest" && ls -d usr/$lib/dpdk/pmds-*)
mkdir -p "$tree/$pmddir"
for p in $pmds; do
  f=$(ls "$guest/$pmddir/librte_$p.so".?? | head -1)
  cp -L "$f" "$tree/$lib/"
  ln -s "/$lib/$(basename "$f")" "$tree/$pmddir/$(basename "$f").0"
  need+=("$f")
done
for f in "${need[@]}"; do
  LD_LIBRARY_PATH=$guest/$lib:$guest/usr/$lib ldd "$f" | awk '/=> \//{print $3}'
done | sort -u | while read -r f; do cp -L "$f" "$tree/$lib/"; done
cp -L "$guest/$lib/libgcc_s.so.1" "$tree/$lib/"   # opened by pthread_cancel at run time
find "$tree/$lib" -name 'lib*.so*' -type f -exec strip --strip-unneeded {} + 2>/dev/null || true

# 3. Kernel modules: those named above and what they depend on, uncompressed.
view=$out/modview
rm -rf "$view"
mkdir -p "$view/lib/modules"
ln -s "$moddir" "$view/lib/modules/$version"
[ -f "$moddir/modules.dep" ] || depmod -b "$view" "$version" 2>/dev/null
mkdir -p "$tree/lib/modules/$version"
for m in $modules; do
  modprobe -d "$view" -S "$version" --show-depends "$m" 2>/dev/null | awk '/^insmod/{print $2}'
done | sort -u | while read -r f; do
  o=$tree/lib/modules/$version/$(basename "${f%.xz}")
  case $f in *.xz) xz -dc "$f" > "$o" ;; *) cp "$f" "$o" ;; esac
  strip --strip-debug "$o"
done
cp "$moddir"/modules.{builtin,order} "$tree/lib/modules/$version/" 2>/dev/null || true
depmod -b "$tree" "$version" 2>/dev/null
rm -rf "$view"

# 4. The first process: mount, run the job, report on the second serial port, end QEMU.
cat > "$tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir -p /bb; /bin/busybox --install -s /bb
export PATH=/bin:/bb HOME=/
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; mount -t tmpfs r /run
mkdir -p /dev/shm /dev/hugepages /run/netns; mount -t tmpfs m /dev/shm
ip link set lo up; echo "GUEST-UP $(cut -d' ' -f1 /proc/uptime)"
for a in $(cat /proc/cmdline); do [ $a = share9p ] && {
  modprobe 9pnet_virtio; modprobe 9p; mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144 job /job; }; done
if [ -f /job/run.sh ]; then cd /job; bash ./run.sh; rc=$?; else rc=127; fi
echo "GUEST-EXIT $rc"; echo "GUEST-EXIT $rc" > /dev/ttyS1; sleep 0.1
printf '\000' | dd of=/dev/port bs=1 seek=244 conv=notrunc 2>/dev/null   # isa-debug-exit at 0xf4
poweroff -f
INIT
chmod +x "$tree/init"
(cd "$tree" && find . | cpio -o -H newc --quiet -R 0:0) > "$out/base.cpio"
echo "$version: vmlinux $(stat -c %s "$out/vmlinux") bytes, base.cpio $(stat -c %s "$out/base.cpio") bytes"
