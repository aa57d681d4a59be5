// SPDX-License-Identifier: MIT OR Apache-2.0
/* libbypass_dpdk.so: one port of DPDK behind a table of function pointers.
 *
 * Whoever loads this needs no header of DPDK: the table has a version and its size, speaks of
 * plain numbers and bytes, and hides what differs between DPDK's releases. plugin.rs has the same
 * table in Rust. One process has one port, and one thread uses all of this.
 *
 * What DPDK has to say is kept and told by `words`: it is the reason why something failed.
 */
#define _GNU_SOURCE
/* For rte_dev_event_callback_register, which is there from 18.08 on. */
#define ALLOW_EXPERIMENTAL_API
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_ether.h>
#include <rte_flow.h>
#include <rte_ip.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_tcp.h>
#include <rte_udp.h>
#include <rte_version.h>

#define ABI 5
#define BURST 64
#define DESCRIPTORS 512
#define POOL 4095
#define XSTATS 256

/* Offloads that a port has here, in `facts`. */
#define RX_CHECKSUMS 1
#define TX_CHECKSUMS 2

/* What is known of a frame: the port has found its UDP or TCP checksum right. */
#define CHECKSUM_GOOD 1

struct facts {
	uint8_t mac[6];
	uint16_t mtu;
	int32_t wait_fd; /* readable while frames wait; -1 = the port has none */
	uint32_t offloads;
	char driver[32];
};

/* A frame that came in: it stays until all of its burst are released, before the next one. */
struct frame {
	const uint8_t *bytes;
	uint32_t length;
	uint32_t flags;
};

/* What a rule of the port matches: a protocol, our address and port, perhaps the other end's. IPv4
 * addresses are the last four bytes; ports in host order. */
struct rule {
	uint8_t local[16], remote[16];
	uint16_t local_port, remote_port;
	uint8_t protocol, is_v4, has_remote, spare;
};

/* plugin.rs says the same of its own. */
_Static_assert(sizeof(struct rule) == 40 && offsetof(struct rule, remote) == 16, "struct rule");
_Static_assert(offsetof(struct rule, local_port) == 32, "struct rule");
_Static_assert(offsetof(struct rule, remote_port) == 34, "struct rule");
_Static_assert(offsetof(struct rule, protocol) == 36, "struct rule");
_Static_assert(offsetof(struct rule, is_v4) == 37, "struct rule");
_Static_assert(offsetof(struct rule, has_remote) == 38, "struct rule");

struct statistic {
	char name[RTE_ETH_XSTATS_NAME_SIZE];
	uint64_t value;
};

struct table {
	uint32_t abi, size;
	const char *(*version)(void);
	const char *(*words)(void);
	int32_t (*start)(int32_t count, char **arguments);
	int32_t (*open)(struct facts *facts);
	uint32_t (*receive)(struct frame *into, uint32_t count);
	void (*release)(void);
	int32_t (*send)(const uint8_t *bytes, uint32_t length);
	uint32_t (*flush)(void);
	uint32_t (*statistics)(struct statistic *into, uint32_t count);
	int32_t (*is_lost)(void);
	void *(*flow_create)(const struct rule *rule);
	void (*flow_destroy)(void *flow);
	void (*answer_to)(const uint8_t *mac);
	void (*close)(void);
};

static uint16_t port = RTE_MAX_ETHPORTS;
static struct rte_mempool *pool;
static struct rte_mbuf *waiting[BURST], *lent[BURST];
static uint16_t waiting_count, lent_count;

/* The port's MAC address, and another one: frames for that become frames for the port's. */
static uint8_t own_mac[RTE_ETHER_ADDR_LEN], other_mac[RTE_ETHER_ADDR_LEN];
static int has_other;

static uint32_t offloads;
/* Frames that came with a verdict, that went with the port's checksum, and that the driver has
 * refused to complete. */
static uint64_t found_good, found_bad, completed, refused;
/* Frames that came with a partial checksum. */
static uint64_t finished;

/* Not 0: the device is to go, or must be opened anew. DPDK's thread of interrupts says so. */
static volatile int lost;
static int is_of_pci;

/* The port is an interface of this kernel, whose other end may leave checksums to the wire. */
static int has_partial;

/* What was said since it was last asked for. */
static char said[4096];
static size_t said_length;

static ssize_t hear(void *cookie, const char *text, size_t length)
{
	size_t room = sizeof(said) - 1 - said_length, taken = length < room ? length : room;

	(void)cookie;
	memcpy(said + said_length, text, taken);
	said_length += taken;
	said[said_length] = 0;
	return length;
}

static const char *version(void)
{
	return rte_version();
}

static const char *words(void)
{
	said_length = 0;
	return said;
}

static void hold_signals(int how)
{
	sigset_t realtime;

	sigemptyset(&realtime);
	for (int number = SIGRTMIN; number <= SIGRTMAX; number++)
		sigaddset(&realtime, number);
	pthread_sigmask(how, &realtime, NULL);
}

/* The driver of TAP devices looks at its device only after a signal, once there was one, and takes
 * a burst then: what is left waits for the next signal. Without signals it always looks. So they
 * are held from before the driver asks for them until they are ignored. Held for longer they would
 * fill the queue of signals, which is one for all processes of a user: of a full one the kernel
 * makes a SIGIO, which ends the process, and nobody's timers work. */
static void ignore_signals(void)
{
	signal(SIGIO, SIG_IGN);
	for (int number = SIGRTMIN; number <= SIGRTMAX; number++)
		signal(number, SIG_IGN);
	hold_signals(SIG_UNBLOCK);
}

static int32_t start(int32_t count, char **arguments)
{
	cookie_io_functions_t functions = { .write = hear };
	FILE *stream = fopencookie(NULL, "w", functions);

	hold_signals(SIG_BLOCK);
	said[0] = 0;
	if (stream) {
		setvbuf(stream, NULL, _IONBF, 0);
		rte_openlog_stream(stream);
	}
	return rte_eal_init(count, arguments) < 0 ? -1 : 0;
}

/* Says what failed, and its error. */
static int32_t failed(const char *what, int error)
{
	char text[256];
	int length = snprintf(text, sizeof(text), "%s: %s\n", what, rte_strerror(error));

	hear(NULL, text, length);
	return -1;
}

/* The kernel asks for the device: somebody unbinds it, or takes the virtual functions away. */
static void device_event(const char *name, enum rte_dev_event_type event, void *nothing)
{
	(void)name;
	(void)nothing;
	if (event == RTE_DEV_EVENT_REMOVE)
		lost = 1;
}

/* The card asks for a reset, as a virtual function does when its physical one was reset. */
static int port_event(uint16_t of, enum rte_eth_event_type event, void *nothing, void *answer)
{
	(void)of;
	(void)event;
	(void)nothing;
	(void)answer;
	lost = 1;
	return 0;
}

static void listen_to_events(void)
{
	rte_dev_event_callback_register(NULL, device_event, NULL);
	rte_eth_dev_callback_register(port, RTE_ETH_EVENT_INTR_RESET, port_event, NULL);
	rte_eth_dev_callback_register(port, RTE_ETH_EVENT_INTR_RMV, port_event, NULL);
}

/* A function whose link was up and comes back after it was down has lost its filters and queues
 * when its physical one was reset, and not every driver says so. Of virtual devices only those who
 * made them know. */
static void follow_link(void)
{
	static int was_up, went_down;
	struct rte_eth_link link;

	if (!is_of_pci || rte_eth_link_get_nowait(port, &link))
		return;
	if (link.link_status == RTE_ETH_LINK_UP)
		lost |= went_down;
	was_up |= link.link_status == RTE_ETH_LINK_UP;
	went_down |= was_up && link.link_status != RTE_ETH_LINK_UP;
}

/* Asked twenty times a second: the link may be down for half of one. */
static int32_t is_lost(void)
{
	follow_link();
	return lost;
}

/* The checksum offloads of the port. Virtio's mean that the other end leaves checksums out, also
 * those of frames that the kernel gets. */
static uint32_t find_offloads(const struct rte_eth_dev_info *info)
{
	const uint64_t rx = RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
	const uint64_t tx = RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM;

	if (strstr(info->driver_name, "virtio"))
		return 0;
	return ((info->rx_offload_capa & rx) == rx ? RX_CHECKSUMS : 0) |
	       ((info->tx_offload_capa & tx) == tx ? TX_CHECKSUMS : 0);
}

static int configure(uint16_t *receives, uint16_t *sends)
{
	struct rte_eth_conf conf = { .intr_conf = { .rxq = 1 } };
	int error;

	if (offloads & RX_CHECKSUMS)
		conf.rxmode.offloads = RTE_ETH_RX_OFFLOAD_UDP_CKSUM | RTE_ETH_RX_OFFLOAD_TCP_CKSUM;
	if (offloads & TX_CHECKSUMS)
		conf.txmode.offloads = RTE_ETH_TX_OFFLOAD_UDP_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
	error = rte_eth_dev_configure(port, 1, 1, &conf);

	if (error) {
		/* Not every driver has interrupts. */
		conf.intr_conf.rxq = 0;
		error = rte_eth_dev_configure(port, 1, 1, &conf);
	}
	if (error && offloads) {
		/* Nor does every one that advertises checksums take them. */
		offloads = conf.rxmode.offloads = conf.txmode.offloads = 0;
		error = rte_eth_dev_configure(port, 1, 1, &conf);
	}
	return error ? error : rte_eth_dev_adjust_nb_rx_tx_desc(port, receives, sends);
}

static int32_t wait_fd(const char *driver)
{
	/* That of a card, or of virtio, is an eventfd, which must be armed and read; that of a TAP
	 * device is the source of its frames. */
	if (strcmp(driver, "net_tap"))
		return -1;
	return rte_eth_dev_rx_intr_ctl_q_get_fd(port, 0);
}

static int32_t open_port(struct facts *facts)
{
	uint16_t receives = DESCRIPTORS, sends = DESCRIPTORS;
	struct rte_ether_addr mac;
	struct rte_eth_dev_info info;
	int error, socket;

	port = rte_eth_find_next(0);
	if (port >= RTE_MAX_ETHPORTS) {
		hear(NULL, "no port came of the device arguments\n", 37);
		return -1;
	}
	socket = rte_eth_dev_socket_id(port);
	error = rte_eth_dev_info_get(port, &info);
	if (error)
		return failed("asking for the port", -error);
	pool = rte_pktmbuf_pool_create("chunks", POOL, 250, 0, RTE_MBUF_DEFAULT_BUF_SIZE, socket);
	if (!pool)
		return failed("making chunks", rte_errno);
	offloads = find_offloads(&info);
	error = configure(&receives, &sends);
	if (error)
		return failed("configuring the port", -error);
	error = rte_eth_rx_queue_setup(port, 0, receives, socket, NULL, pool);
	if (error)
		return failed("setting up the RX queue", -error);
	error = rte_eth_tx_queue_setup(port, 0, sends, socket, NULL);
	if (error)
		return failed("setting up the TX queue", -error);
	listen_to_events();
	error = rte_eth_dev_start(port);
	if (error)
		return failed("starting the port", -error);
	/* For neighbour discovery. Without it the driver takes all groups, or only those it knows. */
	rte_eth_allmulticast_enable(port);
	error = rte_eth_macaddr_get(port, &mac);
	if (error)
		return failed("asking for the MAC address", -error);
	/* net_ring has none. */
	if (rte_is_zero_ether_addr(&mac))
		memcpy(mac.addr_bytes, (const uint8_t[]){ 2, 'r', 'i', 'n', 'g', 1 }, sizeof(mac));
	memcpy(facts->mac, mac.addr_bytes, sizeof(facts->mac));
	memcpy(own_mac, mac.addr_bytes, sizeof(own_mac));
	if (rte_eth_dev_get_mtu(port, &facts->mtu))
		facts->mtu = RTE_ETHER_MTU;
	snprintf(facts->driver, sizeof(facts->driver), "%s", info.driver_name);
	facts->wait_fd = wait_fd(info.driver_name);
	facts->offloads = offloads;
	has_partial = !strcmp(info.driver_name, "net_af_xdp") ||
	              !strcmp(info.driver_name, "net_af_packet");
	is_of_pci = strchr(rte_dev_name(info.device), ':') != NULL;
	ignore_signals();
	return 0;
}

/* What the port says of a frame's checksum. Of a tunnel it speaks of the inner one. */
static uint32_t verdict(const struct rte_mbuf *chunk)
{
	uint64_t said = chunk->ol_flags & RTE_MBUF_F_RX_L4_CKSUM_MASK;

	found_bad += said == RTE_MBUF_F_RX_L4_CKSUM_BAD;
	if (said != RTE_MBUF_F_RX_L4_CKSUM_GOOD || chunk->packet_type & RTE_PTYPE_TUNNEL_MASK)
		return 0;
	found_good++;
	return CHECKSUM_GOOD;
}

/* Frames for this MAC address come too, by rules elsewhere in the card: they are the port's. */
static void answer_to(const uint8_t *mac)
{
	memcpy(other_mac, mac, sizeof(other_mac));
	has_other = 1;
}

static void take_for_own(struct rte_mbuf *chunk)
{
	uint8_t *to = rte_pktmbuf_mtod(chunk, uint8_t *);

	if (chunk->data_len >= sizeof(own_mac) && !memcmp(to, other_mac, sizeof(other_mac)))
		memcpy(to, own_mac, sizeof(own_mac));
}

/* The transport header of a frame, and the sum of its pseudo-header; NULL unless it is UDP or TCP
 * right behind an IP header whose length is the frame's. */
static void *transport(struct rte_mbuf *chunk, uint8_t *protocol, uint16_t *sum)
{
	uint8_t *bytes = rte_pktmbuf_mtod(chunk, uint8_t *);
	struct rte_ipv4_hdr *v4 = (void *)(bytes + RTE_ETHER_HDR_LEN);
	struct rte_ipv6_hdr *v6 = (void *)(bytes + RTE_ETHER_HDR_LEN);
	uint16_t kind, most = chunk->data_len - RTE_ETHER_HDR_LEN;

	if (chunk->data_len < RTE_ETHER_HDR_LEN + sizeof(*v4) + sizeof(struct rte_udp_hdr))
		return NULL;
	kind = ((struct rte_ether_hdr *)bytes)->ether_type;
	chunk->l2_len = RTE_ETHER_HDR_LEN;
	if (kind == rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV4)) {
		if (v4->version_ihl != 0x45 || rte_be_to_cpu_16(v4->total_length) != most ||
		    v4->fragment_offset & rte_cpu_to_be_16(0x3fff))
			return NULL;
		chunk->l3_len = sizeof(*v4);
		*protocol = v4->next_proto_id;
		*sum = rte_ipv4_phdr_cksum(v4, 0);
		return v4 + 1;
	}
	if (kind != rte_cpu_to_be_16(RTE_ETHER_TYPE_IPV6) || most < sizeof(*v6) ||
	    rte_be_to_cpu_16(v6->payload_len) != most - sizeof(*v6))
		return NULL;
	chunk->l3_len = sizeof(*v6);
	*protocol = v6->proto;
	*sum = rte_ipv6_phdr_cksum(v6, 0);
	return v6 + 1;
}

/* The checksum of a frame, if it is only the sum of the pseudo-header, and the flag by which a port
 * is told to complete it; else NULL. (One that is whole and happens to be the same number comes
 * out as it was.) */
static uint8_t *partial_sum(struct rte_mbuf *chunk, uint64_t *flag)
{
	uint16_t sum, room = chunk->data_len - RTE_ETHER_HDR_LEN;
	uint8_t protocol;
	void *header = transport(chunk, &protocol, &sum);
	struct rte_udp_hdr *udp = header;
	struct rte_tcp_hdr *tcp = header;

	if (!header)
		return NULL;
	room -= chunk->l3_len;
	*flag = protocol == IPPROTO_UDP ? RTE_MBUF_F_TX_UDP_CKSUM : RTE_MBUF_F_TX_TCP_CKSUM;
	if (protocol == IPPROTO_UDP && room >= sizeof(*udp) && udp->dgram_cksum == sum)
		return (uint8_t *)header + offsetof(struct rte_udp_hdr, dgram_cksum);
	if (protocol == IPPROTO_TCP && room >= sizeof(*tcp) && tcp->cksum == sum)
		return (uint8_t *)header + offsetof(struct rte_tcp_hdr, cksum);
	return NULL;
}

/* Has the port complete such a checksum. */
static void complete(struct rte_mbuf *chunk)
{
	uint64_t flag;

	if (!partial_sum(chunk, &flag))
		return;
	chunk->ol_flags |= flag;
	chunk->ol_flags |= chunk->l3_len == sizeof(struct rte_ipv4_hdr) ? RTE_MBUF_F_TX_IPV4
	                                                                : RTE_MBUF_F_TX_IPV6;
	completed++;
}

/* Completes such a checksum here: neither the stack nor the kernel behind the TAP knows that the
 * sender, a kernel on this machine, has left it out. */
static void finish(struct rte_mbuf *chunk)
{
	uint64_t flag;
	uint16_t whole = 0;
	uint8_t *sum = partial_sum(chunk, &flag);
	uint8_t *ip = rte_pktmbuf_mtod_offset(chunk, uint8_t *, RTE_ETHER_HDR_LEN);

	if (!sum)
		return;
	memcpy(sum, &whole, sizeof(whole));
	whole = chunk->l3_len == sizeof(struct rte_ipv4_hdr)
	                ? rte_ipv4_udptcp_cksum((void *)ip, ip + chunk->l3_len)
	                : rte_ipv6_udptcp_cksum((void *)ip, ip + chunk->l3_len);
	memcpy(sum, &whole, sizeof(whole));
	finished++;
}

/* Frames of one burst, which stay what they are until they are released. */
static uint32_t receive(struct frame *into, uint32_t count)
{
	uint16_t most = count < BURST ? count : BURST;
	uint16_t got = rte_eth_rx_burst(port, 0, lent, most), kept = 0;

	for (uint16_t i = 0; i < got; i++) {
		struct rte_mbuf *chunk = lent[i];

		/* Nobody has asked for scattered frames. */
		if (unlikely(chunk->nb_segs != 1)) {
			rte_pktmbuf_free(chunk);
			continue;
		}
		into[kept].bytes = rte_pktmbuf_mtod(chunk, const uint8_t *);
		into[kept].length = chunk->data_len;
		into[kept].flags = 0;
		lent[kept++] = chunk;
	}
	if (offloads & RX_CHECKSUMS)
		for (uint16_t i = 0; i < kept; i++)
			into[i].flags = verdict(lent[i]);
	if (has_other)
		for (uint16_t i = 0; i < kept; i++)
			take_for_own(lent[i]);
	if (has_partial)
		for (uint16_t i = 0; i < kept; i++)
			finish(lent[i]);
	lent_count = kept;
	return kept;
}

static void release(void)
{
	rte_pktmbuf_free_bulk(lent, lent_count);
	lent_count = 0;
}

/* How many of those that wait may go: a frame that the driver refuses is dropped. */
static uint16_t prepared(void)
{
	uint16_t ready;

	if (!(offloads & TX_CHECKSUMS))
		return waiting_count;
	ready = rte_eth_tx_prepare(port, 0, waiting, waiting_count);
	if (ready < waiting_count) {
		rte_pktmbuf_free(waiting[ready]);
		refused++;
		waiting_count--;
		memmove(waiting + ready, waiting + ready + 1,
		        (waiting_count - ready) * sizeof(waiting[0]));
	}
	return ready;
}

/* Sends what waits; how many frames still wait then. */
static uint32_t flush(void)
{
	uint16_t sent = rte_eth_tx_burst(port, 0, waiting, prepared());

	waiting_count -= sent;
	memmove(waiting, waiting + sent, waiting_count * sizeof(waiting[0]));
	return waiting_count;
}

/* Takes a frame for sending: it goes with the next flush. 0, or -1 when there is no room. */
static int32_t send_frame(const uint8_t *bytes, uint32_t length)
{
	struct rte_mbuf *chunk;
	void *to;

	if (waiting_count == BURST && flush() == BURST)
		return -1;
	chunk = rte_pktmbuf_alloc(pool);
	if (!chunk)
		return -1;
	to = length <= UINT16_MAX ? rte_pktmbuf_append(chunk, length) : NULL;
	if (!to) {
		rte_pktmbuf_free(chunk);
		return -1;
	}
	memcpy(to, bytes, length);
	if (offloads & TX_CHECKSUMS)
		complete(chunk);
	waiting[waiting_count++] = chunk;
	return 0;
}

static uint32_t own_statistics(struct statistic *into, uint32_t count)
{
	const struct statistic own[] = {
		{ "rx_checksum_found_good", found_good },
		{ "rx_checksum_found_bad", found_bad },
		{ "tx_checksum_completed", completed },
		{ "tx_checksum_refused", refused },
	};

	if (has_partial && count) {
		*into = (struct statistic){ "rx_checksum_finished", finished };
		return 1;
	}
	if (!offloads || count < RTE_DIM(own))
		return 0;
	memcpy(into, own, sizeof(own));
	return RTE_DIM(own);
}

static uint32_t statistics(struct statistic *into, uint32_t count)
{
	static struct rte_eth_xstat_name names[XSTATS];
	static struct rte_eth_xstat values[XSTATS];
	int named = rte_eth_xstats_get_names(port, names, XSTATS);
	int valued = rte_eth_xstats_get(port, values, XSTATS);
	uint32_t got = own_statistics(into, count);

	if (named < 0 || valued < 0 || named > XSTATS || valued > XSTATS)
		return got;
	for (int i = 0; i < valued && got < count; i++) {
		if (values[i].id >= (uint64_t)named)
			continue;
		memcpy(into[got].name, names[values[i].id].name, sizeof(into[got].name));
		into[got++].value = values[i].value;
	}
	return got;
}

/* The addresses of a rule as an item of rte_flow: those of frames that come in, whose destination
 * we are. */
static struct rte_flow_item addresses(const struct rule *rule)
{
	static struct rte_flow_item_ipv4 v4, v4_mask;
	static struct rte_flow_item_ipv6 v6, v6_mask;
	int both = rule->has_remote ? 0xff : 0;

	if (rule->is_v4) {
		memcpy(&v4.hdr.dst_addr, rule->local + 12, 4);
		memcpy(&v4.hdr.src_addr, rule->remote + 12, 4);
		memset(&v4_mask.hdr.dst_addr, 0xff, 4);
		memset(&v4_mask.hdr.src_addr, both, 4);
		return (struct rte_flow_item){
			.type = RTE_FLOW_ITEM_TYPE_IPV4, .spec = &v4, .mask = &v4_mask,
		};
	}
	memcpy(&v6.hdr.dst_addr, rule->local, 16);
	memcpy(&v6.hdr.src_addr, rule->remote, 16);
	memset(&v6_mask.hdr.dst_addr, 0xff, 16);
	memset(&v6_mask.hdr.src_addr, both, 16);
	return (struct rte_flow_item){
		.type = RTE_FLOW_ITEM_TYPE_IPV6, .spec = &v6, .mask = &v6_mask,
	};
}

static struct rte_flow_item ports(const struct rule *rule)
{
	/* UDP and TCP begin with the same two ports. */
	static struct rte_flow_item_udp udp, udp_mask;
	static struct rte_flow_item_tcp tcp, tcp_mask;
	uint16_t both = rule->has_remote ? 0xffff : 0;

	if (rule->protocol == IPPROTO_UDP) {
		udp.hdr.dst_port = rte_cpu_to_be_16(rule->local_port);
		udp.hdr.src_port = rte_cpu_to_be_16(rule->remote_port);
		udp_mask.hdr.dst_port = 0xffff;
		udp_mask.hdr.src_port = both;
		return (struct rte_flow_item){
			.type = RTE_FLOW_ITEM_TYPE_UDP, .spec = &udp, .mask = &udp_mask,
		};
	}
	tcp.hdr.dst_port = rte_cpu_to_be_16(rule->local_port);
	tcp.hdr.src_port = rte_cpu_to_be_16(rule->remote_port);
	tcp_mask.hdr.dst_port = 0xffff;
	tcp_mask.hdr.src_port = both;
	return (struct rte_flow_item){
		.type = RTE_FLOW_ITEM_TYPE_TCP, .spec = &tcp, .mask = &tcp_mask,
	};
}

/* Has the port itself lead a rule's frames to our queue. NULL when it does not, with its words. */
static void *flow_create(const struct rule *rule)
{
	const struct rte_flow_attr incoming = { .ingress = 1 };
	const struct rte_flow_action_queue ours = { .index = 0 };
	const struct rte_flow_item items[] = {
		{ .type = RTE_FLOW_ITEM_TYPE_ETH }, addresses(rule), ports(rule),
		{ .type = RTE_FLOW_ITEM_TYPE_END },
	};
	const struct rte_flow_action actions[] = {
		{ .type = RTE_FLOW_ACTION_TYPE_QUEUE, .conf = &ours },
		{ .type = RTE_FLOW_ACTION_TYPE_END },
	};
	struct rte_flow_error error = { .message = NULL };
	struct rte_flow *flow = rte_flow_create(port, &incoming, items, actions, &error);

	if (flow)
		return flow;
	/* The driver's reason, not its log. */
	said_length = 0;
	if (error.message)
		hear(NULL, error.message, strlen(error.message));
	else
		failed("the driver takes no rule", rte_errno);
	return NULL;
}

static void flow_destroy(void *flow)
{
	struct rte_flow_error error;

	rte_flow_destroy(port, flow, &error);
}

static void close_port(void)
{
	if (port < RTE_MAX_ETHPORTS && rte_eth_dev_stop(port) == 0)
		rte_eth_dev_close(port);
	rte_eal_cleanup();
}

__attribute__((visibility("default"))) const struct table bypass_dpdk = {
	.abi = ABI,
	.size = sizeof(struct table),
	.version = version,
	.words = words,
	.start = start,
	.open = open_port,
	.receive = receive,
	.release = release,
	.send = send_frame,
	.flush = flush,
	.statistics = statistics,
	.is_lost = is_lost,
	.flow_create = flow_create,
	.flow_destroy = flow_destroy,
	.answer_to = answer_to,
	.close = close_port,
};
