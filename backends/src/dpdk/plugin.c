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
#include <rte_mempool.h>
#include <rte_tcp.h>
#include <rte_udp.h>
#include <rte_version.h>

#define ABI 6
#define BURST 64
#define DESCRIPTORS 512
#define POOL 4095
#define XSTATS 256

/* Frames that may come into the stack's chunks, and those on their way out of them. */
#define IN_PLACE 1023
/* Stacks whose memory the card may have something of, at a time. */
#define REGIONS 4
/* Bytes of a mapping are counted in these. */
#define PAGE 4096

/* Offloads that a port has here, in `facts`. */
#define RX_CHECKSUMS 1
#define TX_CHECKSUMS 2

/* What is known of a frame: the port has found its UDP or TCP checksum right. */
#define CHECKSUM_GOOD 1
/* What the relay makes of one: the chunk that it is in is the stack's. */
#define KEPT 2
/* `chunk` of a frame that is in none. */
#define NO_CHUNK UINT32_MAX

struct facts {
	uint8_t mac[6];
	uint16_t mtu;
	int32_t wait_fd; /* readable while frames wait; -1 = the port has none */
	uint32_t offloads;
	char driver[32];
	char copies[96]; /* why no frame is left in the stack's chunks; empty = they may be */
};

/* A frame that came in: it stays until all of its burst are released, before the next one. */
struct frame {
	const uint8_t *bytes;
	uint32_t length;
	uint32_t flags;
	uint32_t chunk;
	uint32_t spare;
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
	int32_t (*open)(struct facts *facts, int32_t in_place);
	uint32_t (*receive)(struct frame *into, uint32_t count);
	void (*release)(const struct frame *frames);
	int32_t (*send)(const uint8_t *bytes, uint32_t length);
	uint32_t (*flush)(void);
	uint32_t (*statistics)(struct statistic *into, uint32_t count);
	int32_t (*is_lost)(void);
	void *(*flow_create)(const struct rule *rule);
	void (*flow_destroy)(void *flow);
	void (*answer_to)(const uint8_t *mac);
	void (*close)(void);
	int32_t (*adopt)(uint8_t *base, uint64_t bytes, uint32_t chunk_size, uint32_t headroom);
	void (*disown)(void);
	int32_t (*is_left)(int32_t region);
	uint32_t (*wants)(void);
	void (*supply)(const uint32_t *chunks, uint32_t count);
	int32_t (*send_chunk)(uint8_t *bytes, uint32_t length, uint32_t chunk);
	uint32_t (*completed)(uint32_t *into, uint32_t count);
};

static uint16_t port = RTE_MAX_ETHPORTS;
/* Of frames that are copied; of those that come in; of chunks that are sent. */
static struct rte_mempool *pool, *rx_pool, *tx_pool;
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

/* Frames without a copy: the packet memory of the stack that has the port.
 *
 *   coming in    one of `rx_pool` has a buffer of its own. When the driver takes it and there is a
 *                chunk in stock, which the stack has given, it gets that for a buffer: so the port
 *                never wants for buffers, whatever the stack does. When it comes back, it has its
 *                own again, and the chunk is in stock, or the stack's if it has kept it.
 *   going out    one of `tx_pool` has no buffer, and the chunk for one until it has left.
 *
 * A region is the memory of a stack. One that is no longer there is mapped until nothing of it is
 * with the card: each frame that still comes into it is copied. */
struct region {
	uint8_t *base;
	uint64_t bytes;
	uint32_t chunk_size, headroom;
	uint32_t held; /* chunks that the card has */
};

/* Behind each of `rx_pool`. */
struct buffer {
	struct region *region; /* NULL: its own buffer */
	uint32_t chunk;
};

/* Behind each of `tx_pool`: a chunk that is on its way out, in the list of those that are. */
struct sending {
	struct rte_mbuf_ext_shared_info shared;
	struct sending *before, *after; /* NULL: it has left */
	struct region *region;
	uint32_t chunk;
};

static struct region regions[REGIONS], *current;
static uint32_t stock[IN_PLACE + BURST], stock_count;
static void *idle[IN_PLACE];
static uint32_t idle_count;
static struct sending out = { .before = &out, .after = &out };
static uint32_t left[IN_PLACE], left_count;
static uint64_t came_in_place, came_copied, went_in_place, went_copied;
static struct rte_device *device;
static uint16_t tx_descriptors;

static struct buffer *buffer_of(struct rte_mbuf *chunk)
{
	return rte_mbuf_to_priv(chunk);
}

/* Gives it its own buffer again; the stack's chunk is nobody's here. */
static void take_back(struct rte_mbuf *chunk)
{
	struct buffer *buffer = buffer_of(chunk);
	uint8_t *own = (uint8_t *)chunk + sizeof(*chunk) + sizeof(*buffer);

	buffer->region->held--;
	buffer->region = NULL;
	chunk->buf_addr = own;
	chunk->buf_iova = rte_mempool_virt2iova(chunk) + (own - (uint8_t *)chunk);
}

/* The operations of `rx_pool`, which has no cache: each that the driver takes comes by. */
static int chunks_alloc(struct rte_mempool *of)
{
	(void)of;
	return 0;
}

static void chunks_free(struct rte_mempool *of)
{
	(void)of;
}

static int chunks_put(struct rte_mempool *of, void *const *objects, unsigned int count)
{
	(void)of;
	for (unsigned int i = 0; i < count; i++) {
		struct rte_mbuf *chunk = objects[i];

		/* Those that the pool is made of come first, and are nothing yet. */
		if (rx_pool && buffer_of(chunk)->region) {
			if (buffer_of(chunk)->region == current)
				stock[stock_count++] = buffer_of(chunk)->chunk;
			take_back(chunk);
		}
		idle[idle_count++] = chunk;
	}
	return 0;
}

static int chunks_get(struct rte_mempool *of, void **objects, unsigned int count)
{
	(void)of;
	if (idle_count < count)
		return -ENOBUFS;
	for (unsigned int i = 0; i < count; i++) {
		struct rte_mbuf *chunk = idle[--idle_count];

		objects[i] = chunk;
		if (!stock_count)
			continue;
		buffer_of(chunk)->chunk = stock[--stock_count];
		buffer_of(chunk)->region = current;
		current->held++;
		/* The driver leaves its headroom; frames begin where the stack's headroom ends. */
		chunk->buf_addr = current->base + current->headroom - RTE_PKTMBUF_HEADROOM +
		                  (uint64_t)current->chunk_size * buffer_of(chunk)->chunk;
		chunk->buf_iova = (uintptr_t)chunk->buf_addr;
	}
	return 0;
}

static unsigned int chunks_count(const struct rte_mempool *of)
{
	(void)of;
	return idle_count;
}

static const struct rte_mempool_ops chunks = {
	.name = "bypass_chunks",
	.alloc = chunks_alloc,
	.free = chunks_free,
	.enqueue = chunks_put,
	.dequeue = chunks_get,
	.get_count = chunks_count,
};

/* Why the driver cannot have chunks for buffers; NULL if it can. Drivers differ in what they take
 * for granted of buffers and in when they give those back that have left: these were tried. */
static const char *no_chunks(const char *driver)
{
	const char *const tried[] = { "net_tap", "net_af_packet", "net_null" };

	for (size_t i = 0; i < RTE_DIM(tried); i++)
		if (!strcmp(driver, tried[i]))
			return is_of_pci && rte_eal_iova_mode() != RTE_IOVA_VA
			               ? "no IOMMU keeps the card to the stack's memory"
			               : NULL;
	return "its driver has not been tried without copies";
}

/* Makes the pools for frames without a copy; why not, or an empty string. */
static const char *make_pools(const char *driver, int socket)
{
	const char *why = no_chunks(driver);
	struct rte_mempool *made;

	if (why)
		return why;
	if (rte_mempool_register_ops(&chunks) < 0)
		return "DPDK takes no more kinds of pools";
	made = rte_pktmbuf_pool_create_by_ops("frames", IN_PLACE, 0, sizeof(struct buffer),
	                                      RTE_MBUF_DEFAULT_BUF_SIZE, socket, chunks.name);
	tx_pool = rte_pktmbuf_pool_create("sending", IN_PLACE, 0, sizeof(struct sending), 0, socket);
	if (!made || !tx_pool)
		return "DPDK has no memory for its pools";
	rx_pool = made;
	return "";
}

/* Has the port use this memory, in chunks that the stack gives. A number for it, or -1. */
static int32_t adopt(uint8_t *base, uint64_t bytes, uint32_t chunk_size, uint32_t headroom)
{
	struct region *region = regions;

	while (region < regions + REGIONS && region->base)
		region++;
	if (!rx_pool || region == regions + REGIONS) {
		hear(NULL, "the card still has memory of stacks before\n", 43);
		return -1;
	}
	if (is_of_pci) {
		if (rte_extmem_register(base, bytes, NULL, 0, PAGE))
			return failed("registering the stack's memory", rte_errno);
		if (rte_dev_dma_map(device, base, (uintptr_t)base, bytes)) {
			failed("mapping the stack's memory for the card", rte_errno);
			rte_extmem_unregister(base, bytes);
			return -1;
		}
	}
	*region = (struct region){ base, bytes, chunk_size, headroom, 0 };
	current = region;
	return region - regions;
}

/* The stack is gone: no chunk of it goes to the card any more. */
static void disown(void)
{
	current = NULL;
	stock_count = left_count = 0;
}

/* Gives memory of a stack that is gone back, if nothing of it is with the card; whether it did. */
static int32_t is_left(int32_t number)
{
	struct region *region = regions + number;

	if (region == current || region->held)
		return 0;
	if (is_of_pci) {
		rte_dev_dma_unmap(device, region->base, (uintptr_t)region->base, region->bytes);
		rte_extmem_unregister(region->base, region->bytes);
	}
	region->base = NULL;
	return 1;
}

/* How many chunks are wanted for frames to come into. */
static uint32_t wants(void)
{
	return stock_count < BURST ? BURST - stock_count : 0;
}

/* Gives as many chunks, none of which the card has. */
static void supply(const uint32_t *given, uint32_t count)
{
	memcpy(stock + stock_count, given, count * sizeof(stock[0]));
	stock_count += count;
}

/* A frame in the memory of a stack that is gone gets a buffer of our own: others write there. */
static void bring_home(struct rte_mbuf *chunk)
{
	const void *bytes = rte_pktmbuf_mtod(chunk, const void *);

	take_back(chunk);
	memcpy(rte_pktmbuf_mtod(chunk, void *), bytes, chunk->data_len);
}

/* Says in which chunk a frame is. */
static void name_chunk(struct frame *frame, struct rte_mbuf *chunk)
{
	/* net_ring passes on what was sent. */
	int has_buffer = chunk->pool == rx_pool;

	if (has_buffer && buffer_of(chunk)->region == current && current) {
		frame->chunk = buffer_of(chunk)->chunk;
		came_in_place++;
		return;
	}
	if (has_buffer && buffer_of(chunk)->region) {
		bring_home(chunk);
		frame->bytes = rte_pktmbuf_mtod(chunk, const uint8_t *);
	}
	came_copied++;
}

/* A chunk has left. */
static void settle(struct sending *sending)
{
	sending->before->after = sending->after;
	sending->after->before = sending->before;
	sending->before = sending->after = NULL;
	sending->region->held--;
	if (sending->region == current)
		left[left_count++] = sending->chunk;
}

static void has_left(void *bytes, void *sending)
{
	(void)bytes;
	if (((struct sending *)sending)->after)
		settle(sending);
}

static int32_t open_port(struct facts *facts, int32_t in_place)
{
	uint16_t receives = DESCRIPTORS, sends = DESCRIPTORS;
	struct rte_ether_addr mac;
	struct rte_eth_dev_info info;
	int error, socket;
	const char *copies;

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
	is_of_pci = strchr(rte_dev_name(info.device), ':') != NULL;
	device = info.device;
	copies = in_place ? make_pools(info.driver_name, socket) : "";
	snprintf(facts->copies, sizeof(facts->copies), "%s", copies);
	offloads = find_offloads(&info);
	error = configure(&receives, &sends);
	if (error)
		return failed("configuring the port", -error);
	error = rte_eth_rx_queue_setup(port, 0, receives, socket, NULL, rx_pool ? rx_pool : pool);
	if (error)
		return failed("setting up the RX queue", -error);
	tx_descriptors = sends;
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
	uint8_t *sum = partial_sum(chunk, &flag);
	uint32_t before = RTE_ETHER_HDR_LEN + chunk->l3_len;
	uint16_t whole;

	if (!sum)
		return;
	/* The sum of the pseudo-header is in its place: it counts as it stands there. Lengths are
	 * those of the frame, for a program may write to its chunk at this moment. */
	whole = ~rte_raw_cksum(rte_pktmbuf_mtod_offset(chunk, void *, before),
	                       chunk->data_len - before);
	if (whole == 0)
		whole = 0xffff;
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
		into[kept].chunk = NO_CHUNK;
		lent[kept++] = chunk;
	}
	if (rx_pool)
		for (uint16_t i = 0; i < kept; i++)
			name_chunk(&into[i], lent[i]);
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

/* Ends the burst: `frames` says which of its chunks the stack keeps. */
static void release(const struct frame *frames)
{
	if (rx_pool)
		for (uint16_t i = 0; i < lent_count; i++)
			if (frames[i].flags & KEPT)
				take_back(lent[i]);
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
	went_copied++;
	return 0;
}

/* Takes a frame for sending that stays in its chunk. 0, or -1 when there is no room. */
static int32_t send_chunk(uint8_t *bytes, uint32_t length, uint32_t number)
{
	struct rte_mbuf *chunk;
	struct sending *sending;

	if (waiting_count == BURST && flush() == BURST)
		return -1;
	chunk = rte_pktmbuf_alloc(tx_pool);
	if (!chunk)
		return -1;
	sending = rte_mbuf_to_priv(chunk);
	*sending = (struct sending){
		.shared = { .free_cb = has_left, .fcb_opaque = sending },
		.before = out.before, .after = &out, .region = current, .chunk = number,
	};
	sending->before->after = out.before = sending;
	current->held++;
	rte_mbuf_ext_refcnt_set(&sending->shared, 1);
	rte_pktmbuf_attach_extbuf(chunk, bytes, (uintptr_t)bytes, length, &sending->shared);
	chunk->data_len = chunk->pkt_len = length;
	if (offloads & TX_CHECKSUMS)
		complete(chunk);
	waiting[waiting_count++] = chunk;
	went_in_place++;
	return 0;
}

/* A driver of cards gives a frame back when it wants its place in the ring. That frames have left
 * shows earlier: when the last of them has, all have. */
static void look_behind(void)
{
	if (!is_of_pci || waiting_count || out.after == &out)
		return;
	if (rte_eth_tx_descriptor_status(port, 0, tx_descriptors - 1) == RTE_ETH_TX_DESC_DONE)
		while (out.after != &out)
			settle(out.after);
}

/* Chunks that have left, each once. */
static uint32_t chunks_left(uint32_t *into, uint32_t count)
{
	uint32_t got;

	look_behind();
	got = left_count < count ? left_count : count;
	left_count -= got;
	memcpy(into, left + left_count, got * sizeof(into[0]));
	return got;
}

/* Frames that stayed where they were, and those that did not. */
static uint32_t place_statistics(struct statistic *into, uint32_t count)
{
	const struct statistic own[] = {
		{ "rx_in_place", came_in_place }, { "rx_copied", came_copied },
		{ "tx_in_place", went_in_place }, { "tx_copied", went_copied },
	};

	if (!rx_pool || count < RTE_DIM(own))
		return 0;
	memcpy(into, own, sizeof(own));
	return RTE_DIM(own);
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

	got += place_statistics(into + got, count - got);
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
	.adopt = adopt,
	.disown = disown,
	.is_left = is_left,
	.wants = wants,
	.supply = supply,
	.send_chunk = send_chunk,
	.completed = chunks_left,
};
