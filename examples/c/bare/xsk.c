/* See xsk.h. */
#include "xsk.h"

#include "common.h"

#include <linux/bpf.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef SOL_XDP
#define SOL_XDP 283
#endif
/* Frames per doorbell; kernel 6.18 and later, ignored by others. */
enum { MAX_TX_SKB_BUDGET = 9 };

static void map_ring(int fd, struct ring *ring, off_t which, const struct xdp_ring_offset *at,
                     size_t entry_bytes)
{
    size_t length = at->desc + RING_ENTRIES * entry_bytes;
    char *base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, which);
    if (base == MAP_FAILED)
        fail("mmap of a ring");
    ring->producer = (_Atomic uint32_t *)(base + at->producer);
    ring->consumer = (_Atomic uint32_t *)(base + at->consumer);
    ring->entries = base + at->desc;
    ring->mine = 0;
}

static void set_size(int fd, int option)
{
    int entries = RING_ENTRIES;
    if (setsockopt(fd, SOL_XDP, option, &entries, sizeof entries) < 0)
        fail("size of a ring");
}

static void bind_to_queue(const struct xsk *xsk)
{
    struct sockaddr_xdp at = {
        .sxdp_family = AF_XDP,
        .sxdp_ifindex = xsk->ifindex,
        .sxdp_queue_id = xsk->queue,
        .sxdp_flags = XDP_COPY | XDP_USE_NEED_WAKEUP,
    };
    /* The kernel frees a queue some milliseconds after its last user is gone. */
    for (int try = 0; bind(xsk->fd, (struct sockaddr *)&at, sizeof at) < 0; try++) {
        if (errno != EBUSY || try == 100)
            fail("bind to queue %u", xsk->queue);
        sleep_ms(10);
    }
}

void xsk_open(struct xsk *xsk, const char *interface, unsigned queue)
{
    memset(xsk, 0, sizeof *xsk);
    xsk->map = xsk->link = -1;
    xsk->queue = queue;
    xsk->ifindex = if_nametoindex(interface);
    if (!xsk->ifindex)
        fail("%s", interface);
    xsk->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (xsk->fd < 0)
        fail("AF_XDP socket");
    size_t bytes = (size_t)CHUNKS * CHUNK_BYTES;
    xsk->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (xsk->memory == MAP_FAILED)
        fail("packet memory");
    struct xdp_umem_reg region = {
        .addr = (uint64_t)(uintptr_t)xsk->memory, .len = bytes, .chunk_size = CHUNK_BYTES};
    if (setsockopt(xsk->fd, SOL_XDP, XDP_UMEM_REG, &region, sizeof region) < 0)
        fail("XDP_UMEM_REG");
    set_size(xsk->fd, XDP_UMEM_FILL_RING);
    set_size(xsk->fd, XDP_UMEM_COMPLETION_RING);
    set_size(xsk->fd, XDP_RX_RING);
    set_size(xsk->fd, XDP_TX_RING);

    struct xdp_mmap_offsets at;
    socklen_t length = sizeof at;
    if (getsockopt(xsk->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &length) < 0)
        fail("XDP_MMAP_OFFSETS");
    map_ring(xsk->fd, &xsk->fill, XDP_UMEM_PGOFF_FILL_RING, &at.fr, sizeof(uint64_t));
    map_ring(xsk->fd, &xsk->completion, XDP_UMEM_PGOFF_COMPLETION_RING, &at.cr, sizeof(uint64_t));
    map_ring(xsk->fd, &xsk->rx, XDP_PGOFF_RX_RING, &at.rx, sizeof(struct xdp_desc));
    map_ring(xsk->fd, &xsk->tx, XDP_PGOFF_TX_RING, &at.tx, sizeof(struct xdp_desc));

    int budget = 256, send_buffer = 16 << 20;
    setsockopt(xsk->fd, SOL_XDP, MAX_TX_SKB_BUDGET, &budget, sizeof budget);
    if (setsockopt(xsk->fd, SOL_SOCKET, SO_SNDBUFFORCE, &send_buffer, sizeof send_buffer) < 0)
        setsockopt(xsk->fd, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
    bind_to_queue(xsk);

    uint64_t *empty = xsk->fill.entries;
    for (uint32_t i = 0; i < RING_ENTRIES; i++)
        empty[i] = (uint64_t)i * CHUNK_BYTES;
    xsk->fill.mine = RING_ENTRIES;
    atomic_store_explicit(xsk->fill.producer, RING_ENTRIES, memory_order_release);
}

static int bpf(enum bpf_cmd command, union bpf_attr *attributes)
{
    return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

#define INSTRUCTION(CODE, TO, FROM, OFF, IMM) \
    ((struct bpf_insn){                          \
        .code = (CODE), .dst_reg = (TO), .src_reg = (FROM), .off = (OFF), .imm = (IMM)})
#define LOAD(SIZE, TO, FROM, OFF) INSTRUCTION(BPF_LDX | BPF_MEM | (SIZE), TO, FROM, OFF, 0)
#define COPY(TO, FROM) INSTRUCTION(BPF_ALU64 | BPF_MOV | BPF_X, TO, FROM, 0, 0)
#define SET(TO, IMM) INSTRUCTION(BPF_ALU64 | BPF_MOV | BPF_K, TO, 0, 0, IMM)
#define UNLESS_EQUAL(REG, IMM, OFF) INSTRUCTION(BPF_JMP | BPF_JNE | BPF_K, REG, 0, OFF, IMM)

/* Loads the program that redirects IPv4 UDP datagrams for `port`; gives its descriptor. */
static int load_program(int map, uint16_t port)
{
    enum { R0, R1, R2, R3, R4 };
    const struct bpf_insn program[] = {
        /*  0 */ LOAD(BPF_W, R2, R1, offsetof(struct xdp_md, data)),
        /*  1 */ LOAD(BPF_W, R3, R1, offsetof(struct xdp_md, data_end)),
        /*  2 */ COPY(R4, R2),
        /*  3 */ INSTRUCTION(BPF_ALU64 | BPF_ADD | BPF_K, R4, 0, 0, 42),
        /*  4 */ INSTRUCTION(BPF_JMP | BPF_JGT | BPF_X, R4, R3, 17, 0),
        /*  5 */ LOAD(BPF_H, R4, R2, 12), /* EtherType IPv4 */
        /*  6 */ UNLESS_EQUAL(R4, htons(0x0800), 15),
        /*  7 */ LOAD(BPF_B, R4, R2, 14), /* version 4, no options */
        /*  8 */ UNLESS_EQUAL(R4, 0x45, 13),
        /*  9 */ LOAD(BPF_H, R4, R2, 20), /* no fragment */
        /* 10 */ INSTRUCTION(BPF_ALU64 | BPF_AND | BPF_K, R4, 0, 0, htons(0x3fff)),
        /* 11 */ UNLESS_EQUAL(R4, 0, 10),
        /* 12 */ LOAD(BPF_B, R4, R2, 23), /* protocol UDP */
        /* 13 */ UNLESS_EQUAL(R4, 17, 8),
        /* 14 */ LOAD(BPF_H, R4, R2, 36), /* destination port */
        /* 15 */ UNLESS_EQUAL(R4, htons(port), 6),
        /* 16 */ LOAD(BPF_W, R2, R1, offsetof(struct xdp_md, rx_queue_index)),
        /* 17 */ INSTRUCTION(BPF_LD | BPF_DW | BPF_IMM, R1, BPF_PSEUDO_MAP_FD, 0, map),
        /* 18 */ INSTRUCTION(0, 0, 0, 0, 0),
        /* 19 */ SET(R3, XDP_PASS), /* what an empty slot does */
        /* 20 */ INSTRUCTION(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map),
        /* 21 */ INSTRUCTION(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        /* 22 */ SET(R0, XDP_PASS),
        /* 23 */ INSTRUCTION(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    static char log[16384];
    union bpf_attr load = {
        .prog_type = BPF_PROG_TYPE_XDP,
        .insns = (uint64_t)(uintptr_t)program,
        .insn_cnt = sizeof program / sizeof program[0],
        .license = (uint64_t)(uintptr_t)"Dual MIT/GPL",
        .log_buf = (uint64_t)(uintptr_t)log,
        .log_size = sizeof log,
        .log_level = 1,
    };
    int fd = bpf(BPF_PROG_LOAD, &load);
    if (fd < 0)
        fail("load of the XDP program\n%s", log);
    return fd;
}

void xsk_steer(struct xsk *xsk, uint16_t port)
{
    union bpf_attr create = {
        .map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 64};
    xsk->map = bpf(BPF_MAP_CREATE, &create);
    if (xsk->map < 0)
        fail("XSKMAP");
    union bpf_attr update = {
        .map_fd = (uint32_t)xsk->map,
        .key = (uint64_t)(uintptr_t)&xsk->queue,
        .value = (uint64_t)(uintptr_t)&xsk->fd,
    };
    if (bpf(BPF_MAP_UPDATE_ELEM, &update) < 0)
        fail("slot of the XSKMAP");
    union bpf_attr attach = {0};
    attach.link_create.prog_fd = (uint32_t)load_program(xsk->map, port);
    attach.link_create.target_ifindex = xsk->ifindex;
    attach.link_create.attach_type = BPF_XDP;
    attach.link_create.flags = XDP_FLAGS_DRV_MODE;
    xsk->link = bpf(BPF_LINK_CREATE, &attach);
    if (xsk->link < 0)
        fail("attach of the XDP program");
}

uint32_t xsk_receive(struct xsk *xsk, struct xdp_desc *frames, uint32_t most)
{
    struct ring *ring = &xsk->rx;
    uint32_t ready = atomic_load_explicit(ring->producer, memory_order_acquire) - ring->mine;
    if (ready > most)
        ready = most;
    const struct xdp_desc *entries = ring->entries;
    for (uint32_t i = 0; i < ready; i++)
        frames[i] = entries[(ring->mine + i) % RING_ENTRIES];
    ring->mine += ready;
    atomic_store_explicit(ring->consumer, ring->mine, memory_order_release);
    return ready;
}

void xsk_refill(struct xsk *xsk, const struct xdp_desc *frames, uint32_t count)
{
    /* As many chunks as the ring has entries: the ones in our hands always fit. */
    struct ring *ring = &xsk->fill;
    uint64_t *entries = ring->entries;
    for (uint32_t i = 0; i < count; i++)
        entries[(ring->mine + i) % RING_ENTRIES] = frames[i].addr / CHUNK_BYTES * CHUNK_BYTES;
    ring->mine += count;
    atomic_store_explicit(ring->producer, ring->mine, memory_order_release);
}

uint32_t xsk_send(struct xsk *xsk, const struct xdp_desc *frames, uint32_t count)
{
    struct ring *ring = &xsk->tx;
    uint32_t used = ring->mine - atomic_load_explicit(ring->consumer, memory_order_acquire);
    if (count > RING_ENTRIES - used)
        count = RING_ENTRIES - used;
    struct xdp_desc *entries = ring->entries;
    for (uint32_t i = 0; i < count; i++)
        entries[(ring->mine + i) % RING_ENTRIES] = frames[i];
    ring->mine += count;
    atomic_store_explicit(ring->producer, ring->mine, memory_order_release);
    return count;
}

void xsk_doorbell(struct xsk *xsk)
{
    if (sendto(xsk->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY &&
        errno != ENOBUFS && errno != ENETDOWN && errno != EINTR)
        fail("doorbell");
}

uint32_t xsk_complete(struct xsk *xsk, uint64_t *addresses, uint32_t most)
{
    struct ring *ring = &xsk->completion;
    uint32_t ready = atomic_load_explicit(ring->producer, memory_order_acquire) - ring->mine;
    if (ready > most)
        ready = most;
    const uint64_t *entries = ring->entries;
    for (uint32_t i = 0; i < ready; i++)
        addresses[i] = entries[(ring->mine + i) % RING_ENTRIES];
    ring->mine += ready;
    atomic_store_explicit(ring->consumer, ring->mine, memory_order_release);
    return ready;
}
