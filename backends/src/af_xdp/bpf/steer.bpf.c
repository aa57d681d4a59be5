// SPDX-License-Identifier: MIT OR Apache-2.0
/* The steering program: matched flows go to our queue, everything else to the kernel.
 *
 * UDP: exact flow, then the listener of the destination address, then the listener of any address
 * of the same IP version. TCP: a flow in the table of the stack that was granted the local address
 * and port, then, for a SYN without ACK only, the listeners as for UDP; where the stack says that
 * too many of its connections are half open, that SYN passes: the kernel's listener has it. Group
 * addresses, VLAN tags, fragments, IP options, IPv6 extension headers, other protocols and every
 * miss pass. An empty slot passes too, so a dead program cannot black-hole the host. Counters are
 * per entry and per reason; an entry counts what was redirected only. A frame that is longer than
 * the chunks of its listener or UDP flow passes. (TCP peers send no such: the stack tells them how
 * long a segment may be.)
 *
 * The tables of TCP flows are written by the stacks themselves (flow_table.rs): a tag is published
 * after the flow it stands for, and taken back before another takes its place. A stack finds
 * nothing there for addresses and ports that it was not granted, whatever it writes.
 *
 * The destination MAC is not compared: the NIC has done that, and one in promiscuous mode that
 * leads us a unicast frame to an address of ours does no harm.
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
#define BUCKET_FLOWS 8

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NET16(value) __builtin_bswap16(value)
#else
#define NET16(value) (value)
#endif

static void *(*lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*redirect)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;
/* Of the whole frame. What lies before data_end may be its beginning only. */
static __u64 (*length)(struct xdp_md *context) = (void *)BPF_FUNC_xdp_get_buff_len;

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
	__u32 slot;
	__u32 most; /* bytes of a frame that the slot's chunks hold; 0 = keep in the kernel */
	__u64 packets, bytes;
};

struct grant {
	__u32 slot;
	__u32 mask; /* buckets of the stack's flow table - 1 */
	__u64 packets, bytes;
	__u64 seed; /* of that table */
};

/* One cache line. Addresses as in flow_key, ports as in memory there. */
struct tcp_flow {
	__u64 local[2], remote[2];
	__u32 ports, spare;
	__u64 owner, packets, bytes;
};

struct bucket {
	__u32 tags[BUCKET_FLOWS]; /* 0 = free */
	__u64 header[4];          /* of the table, in its first bucket; the last: marked ports */
	struct tcp_flow flows[BUCKET_FLOWS];
};

struct map xsks SECTION("maps") = { BPF_MAP_TYPE_XSKMAP, 4, 4, 1024, 0 };
struct map listeners SECTION("maps") = {
	BPF_MAP_TYPE_HASH, sizeof(struct listener_key), sizeof(struct target), 16384, 0 };
struct map flows SECTION("maps") = {
	BPF_MAP_TYPE_HASH, sizeof(struct flow_key), sizeof(struct target), 65536, 0 };
/* Keys as of listeners, with any = 0. */
struct map grants SECTION("maps") = {
	BPF_MAP_TYPE_HASH, sizeof(struct listener_key), sizeof(struct grant), 131072,
	BPF_F_NO_PREALLOC };
/* By slot: an array of struct bucket. */
struct map tables SECTION("maps") = { BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 16, 0 };

/* Order and number as COUNTERS of program.rs. */
enum reason {
	REDIRECTED, UNMATCHED, KEPT, EMPTY_SLOT, NOT_IP, VLAN, GROUP, TRUNCATED, OPTIONS, FRAGMENT,
	ICMP, OTHER_PROTOCOL, NO_FLOW, TOO_LONG, PRESSED, REASONS
};

struct map counters SECTION("maps") = { BPF_MAP_TYPE_PERCPU_ARRAY, 4, 8, REASONS, 0 };

static __attribute__((always_inline)) void count(__u32 reason)
{
	__u64 *counter = lookup(&counters, &reason);

	if (counter)
		*counter += 1;
}

static __attribute__((always_inline)) int pass(enum reason reason)
{
	count(reason);
	return XDP_PASS;
}

static __attribute__((always_inline)) int
lead(struct xdp_md *context, __u64 size, __u32 slot, __u64 *packets, __u64 *bytes)
{
	/* A queue beyond the slot's share would be the next slot's. */
	if (context->rx_queue_index >= QUEUES_PER_SLOT ||
	    redirect(&xsks, slot * QUEUES_PER_SLOT + context->rx_queue_index, XDP_PASS) !=
		    XDP_REDIRECT)
		return pass(EMPTY_SLOT);
	__sync_fetch_and_add(packets, 1);
	__sync_fetch_and_add(bytes, size);
	count(REDIRECTED);
	return XDP_REDIRECT;
}

/* As FlowTable::hash of flow_table.rs. */
static __attribute__((always_inline)) __u64 mix(__u64 hash, __u64 word, __u64 factor)
{
	hash = (hash ^ word) * factor;
	return hash ^ hash >> 32;
}

static __attribute__((always_inline)) struct tcp_flow *
find_in(struct bucket *bucket, const __u64 *key, __u32 ports, __u32 tag)
{
#pragma unroll
	for (int i = 0; i < BUCKET_FLOWS; i++) {
		struct tcp_flow *flow = &bucket->flows[i];

		if (*(volatile __u32 *)&bucket->tags[i] == tag && flow->ports == ports &&
		    flow->remote[1] == key[3] && flow->remote[0] == key[2] &&
		    flow->local[1] == key[1] && flow->local[0] == key[0])
			return flow;
	}
	return 0;
}

static __attribute__((always_inline)) struct tcp_flow *
find_flow(const struct grant *grant, const struct flow_key *flow)
{
	const __u64 *key = (const __u64 *)flow;
	__u32 ports = flow->local_port | (__u32)flow->remote_port << 16, slot = grant->slot, at, tag;
	__u64 factor = grant->seed | 1, hash;
	struct tcp_flow *found;
	struct bucket *bucket;
	void *table = lookup(&tables, &slot);

	if (!table)
		return 0;
	hash = mix(grant->seed, key[0], factor);
	hash = mix(hash, key[1], factor);
	hash = mix(hash, key[2], factor);
	hash = mix(hash, key[3], factor);
	hash = mix(hash, ports, factor);
	tag = hash >> 32 | 1;
	at = hash & grant->mask;
	bucket = lookup(table, &at);
	if (bucket) {
		found = find_in(bucket, key, ports, tag);
		if (found)
			return found;
	}
	at = hash >> 20 & grant->mask;
	bucket = lookup(table, &at);
	return bucket ? find_in(bucket, key, ports, tag) : 0;
}

/* As FlowTable::is_marked of flow_table.rs. */
static __attribute__((always_inline)) int is_pressed(const struct grant *grant, __u16 port)
{
	__u32 slot = grant->slot, first = 0;
	struct bucket *bucket = 0;
	void *table = lookup(&tables, &slot);

	if (table)
		bucket = lookup(table, &first);
	return bucket && *(volatile __u64 *)&bucket->header[3] >> ((port ^ port >> 6) & 63) & 1;
}

static __attribute__((always_inline)) void
set_key(struct listener_key *listener, const struct flow_key *flow, __u8 protocol)
{
	__builtin_memcpy(listener->ip, flow->local, 16);
	listener->port = flow->local_port;
	listener->protocol = protocol;
}

static __attribute__((always_inline)) struct target *
find_listener(struct listener_key *listener, __u8 version)
{
	struct target *target = lookup(&listeners, listener);

	if (!target) {
		__builtin_memset(listener->ip, 0, 16);
		listener->any = version;
		target = lookup(&listeners, listener);
	}
	return target;
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
	int opens = 0;
	__u64 size;

	if (data + sizeof(*ethernet) > end)
		return pass(TRUNCATED);
	if (ethernet->h_dest[0] & 1)
		return pass(GROUP);
	if (ethernet->h_proto == NET16(ETH_P_IP)) {
		struct iphdr *ip = data + sizeof(*ethernet);

		if ((void *)(ip + 1) > end)
			return pass(TRUNCATED);
		if (ip->version != 4)
			return pass(NOT_IP);
		if (ip->ihl != 5)
			return pass(OPTIONS);
		if (ip->frag_off & NET16(0x3fff))
			return pass(FRAGMENT);
		if (*(__u8 *)&ip->daddr >= 224)
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
	} else if (ethernet->h_proto == NET16(ETH_P_8021Q) || ethernet->h_proto == NET16(ETH_P_8021AD)) {
		return pass(VLAN);
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
	} else if (version == 6 && protocol == IPPROTO_FRAGMENT) {
		return pass(FRAGMENT);
	} else if (version == 6 && (protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
				    protocol == IPPROTO_DSTOPTS)) {
		return pass(OPTIONS);
	} else if (protocol == (version == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		return pass(ICMP);
	} else {
		return pass(OTHER_PROTOCOL);
	}
	if (protocol == IPPROTO_TCP) {
		struct grant *grant;

		set_key(&listener, &flow, protocol);
		grant = lookup(&grants, &listener);
		if (grant) {
			struct tcp_flow *known = find_flow(grant, &flow);

			if (known) {
				int action;

				size = length(context);
				action = lead(context, size, grant->slot, &known->packets, &known->bytes);

				if (action == XDP_REDIRECT) {
					__sync_fetch_and_add(&grant->packets, 1);
					__sync_fetch_and_add(&grant->bytes, size);
				}
				return action;
			}
		}
		if (!opens)
			return pass(grant ? NO_FLOW : UNMATCHED);
		target = find_listener(&listener, version);
		if (target && target->most && grant && is_pressed(grant, flow.local_port))
			return pass(PRESSED);
	} else {
		flow.protocol = protocol;
		target = lookup(&flows, &flow);
		if (!target) {
			set_key(&listener, &flow, protocol);
			target = find_listener(&listener, version);
		}
	}
	if (!target)
		return pass(UNMATCHED);
	if (!target->most)
		return pass(KEPT);
	size = length(context);
	if (size > target->most)
		return pass(TOO_LONG);
	return lead(context, size, target->slot, &target->packets, &target->bytes);
}
