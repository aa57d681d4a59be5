// SPDX-License-Identifier: MIT OR Apache-2.0
/* The steering program: matched flows go to our queue, everything else to the kernel.
 *
 * Order: exact flow; then, for UDP and for a TCP SYN, the listener of the destination address, then
 * the listener of any address. Group addresses, VLAN tags, fragments, IP options, IPv6 extension
 * headers, other protocols and every miss pass. An empty slot passes too, so a dead program cannot
 * black-hole the host. Counters are per entry and per reason.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define SECTION(name) __attribute__((section(name), used))
#define QUEUES_PER_SLOT 64
#define KEEP_IN_KERNEL 1

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NET16(value) __builtin_bswap16(value)
#else
#define NET16(value) (value)
#endif

static void *(*lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*redirect)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;

struct map {
	__u32 type, key_size, value_size, max_entries, flags;
};

struct listener_key {
	__u8 ip[16]; /* v4-mapped; all zero = any */
	__u16 port;  /* host order */
	__u8 protocol;
	__u8 any;    /* with ip all zero: 4 or 6; else 0 */
};

struct flow_key {
	__u8 local[16], remote[16];
	__u16 local_port, remote_port;
	__u32 protocol;
};

struct target {
	__u32 slot, flags;
	__u64 packets, bytes;
};

struct map xsks SECTION("maps") = { BPF_MAP_TYPE_XSKMAP, 4, 4, 1024, 0 };
struct map listeners SECTION("maps") = {
	BPF_MAP_TYPE_HASH, sizeof(struct listener_key), sizeof(struct target), 16384, 0 };
struct map flows SECTION("maps") = {
	BPF_MAP_TYPE_HASH, sizeof(struct flow_key), sizeof(struct target), 65536, 0 };
struct map counters SECTION("maps") = { BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, 16, 0 };

enum reason {
	REDIRECTED, UNMATCHED, NOT_IP, GROUP, TRUNCATED, OPTIONS, FRAGMENT, OTHER_PROTOCOL,
	KEPT, EMPTY_SLOT,
};

static __attribute__((always_inline)) int pass(__u32 reason)
{
	__u64 *count = lookup(&counters, &reason);

	if (count)
		*count += 1;
	return XDP_PASS;
}

SECTION("xdp") int steer(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethhdr *ethernet = data;
	struct flow_key flow = {};
	struct listener_key listener = {};
	struct target *target;
	void *transport;
	__u8 protocol, version;
	__u32 reason = REDIRECTED;
	int opens = 1;

	if (data + sizeof(*ethernet) > end)
		return pass(TRUNCATED);
	if (ethernet->h_dest[0] & 1)
		return pass(GROUP);
	if (ethernet->h_proto == NET16(ETH_P_IP)) {
		struct iphdr *ip = data + sizeof(*ethernet);
		__u8 first;

		if ((void *)(ip + 1) > end)
			return pass(TRUNCATED);
		if (ip->ihl != 5 || ip->version != 4)
			return pass(OPTIONS);
		if (ip->frag_off & NET16(0x3fff))
			return pass(FRAGMENT);
		first = ip->daddr & 0xff;
		if (first >= 224)
			return pass(GROUP);
		version = 4;
		protocol = ip->protocol;
		flow.local[10] = flow.local[11] = flow.remote[10] = flow.remote[11] = 0xff;
		__builtin_memcpy(flow.local + 12, &ip->daddr, 4);
		__builtin_memcpy(flow.remote + 12, &ip->saddr, 4);
		transport = ip + 1;
	} else if (ethernet->h_proto == NET16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + sizeof(*ethernet);

		if ((void *)(ip + 1) > end)
			return pass(TRUNCATED);
		if (ip->daddr.in6_u.u6_addr8[0] == 0xff)
			return pass(GROUP);
		version = 6;
		protocol = ip->nexthdr;
		__builtin_memcpy(flow.local, &ip->daddr, 16);
		__builtin_memcpy(flow.remote, &ip->saddr, 16);
		transport = ip + 1;
	} else {
		return pass(NOT_IP);
	}
	if (protocol == IPPROTO_UDP) {
		struct udphdr *udp = transport;

		if ((void *)(udp + 1) > end)
			return pass(TRUNCATED);
		flow.local_port = NET16(udp->dest);
		flow.remote_port = NET16(udp->source);
	} else if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = transport;

		if ((void *)(tcp + 1) > end)
			return pass(TRUNCATED);
		flow.local_port = NET16(tcp->dest);
		flow.remote_port = NET16(tcp->source);
		opens = tcp->syn && !tcp->ack;
	} else {
		return pass(OTHER_PROTOCOL);
	}
	flow.protocol = protocol;
	target = lookup(&flows, &flow);
	if (!target && opens) {
		__builtin_memcpy(listener.ip, flow.local, 16);
		listener.port = flow.local_port;
		listener.protocol = protocol;
		target = lookup(&listeners, &listener);
		if (!target) {
			__builtin_memset(listener.ip, 0, 16);
			listener.any = version;
			target = lookup(&listeners, &listener);
		}
	}
	if (!target)
		return pass(UNMATCHED);
	if (target->flags & KEEP_IN_KERNEL)
		return pass(KEPT);
	__sync_fetch_and_add(&target->packets, 1);
	__sync_fetch_and_add(&target->bytes, (__u64)(end - data));
	{
		__u64 *count = lookup(&counters, &reason);

		if (count)
			*count += 1;
	}
	return redirect(&xsks, target->slot * QUEUES_PER_SLOT + context->rx_queue_index, XDP_PASS);
}
