/*
 * One AF_XDP socket on one queue, on the raw kernel interface: no library.
 *
 *   memory (UMEM): CHUNKS chunks; the first half is for receiving, the second half for sending
 *
 *   fill  ring   we -> kernel   empty chunks to receive into
 *   RX    ring   kernel -> we   received frames
 *   TX    ring   we -> kernel   frames to send
 *   compl ring   kernel -> we   chunks whose frame has been sent
 */
#ifndef XSK_H
#define XSK_H

#include <linux/if_xdp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CHUNK_BYTES = 2048, CHUNKS = 8192, RECEIVE_CHUNKS = CHUNKS / 2, RING_ENTRIES = 2048 };

/* One ring as mapped from the kernel. `mine` is the cursor that only we move. */
struct ring {
    _Atomic uint32_t *producer, *consumer;
    void *entries;
    uint32_t mine;
};

struct xsk {
    int fd, map, link;
    unsigned ifindex, queue;
    char *memory;
    struct ring fill, completion, rx, tx;
};

/* Opens and binds a socket on a queue of an interface; ends the program when that fails. */
void xsk_open(struct xsk *xsk, const char *interface, unsigned queue);

/* Leads IPv4 UDP datagrams for a port to the socket; everything else stays with the kernel. */
void xsk_steer(struct xsk *xsk, uint16_t port);

/* Up to `most` received frames; each chunk is ours until xsk_refill gives it back. */
uint32_t xsk_receive(struct xsk *xsk, struct xdp_desc *frames, uint32_t most);
void xsk_refill(struct xsk *xsk, const struct xdp_desc *frames, uint32_t count);

/* Puts frames on the TX ring; gives how many fitted. xsk_doorbell makes the kernel send them. */
uint32_t xsk_send(struct xsk *xsk, const struct xdp_desc *frames, uint32_t count);
void xsk_doorbell(struct xsk *xsk);

/* Up to `most` addresses of chunks whose frames have been sent. */
uint32_t xsk_complete(struct xsk *xsk, uint64_t *addresses, uint32_t most);

static inline char *xsk_at(struct xsk *xsk, uint64_t address)
{
    return xsk->memory + address;
}

#endif
