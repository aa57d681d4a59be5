/*
 * Sends UDP datagrams back from a bare AF_XDP socket: the shortest round trip of this queue.
 *
 *   bare/echo [--queue N] [--port PORT] [--poll] INTERFACE
 *
 * Spins on the RX ring; with --poll it sleeps in poll(2) while the ring is empty.
 */
#include "common.h"
#include "frame.h"
#include "xsk.h"

#include <poll.h>

enum { BATCH = 64 };

int main(int argc, char **argv)
{
    static const struct option names[] = {{"queue", required_argument, 0, 'q'},
                                          {"port", required_argument, 0, 'p'},
                                          {"poll", no_argument, 0, 'w'},
                                          {0, 0, 0, 0}};
    unsigned queue = 0;
    uint16_t port = 7007;
    bool sleep_when_empty = false;
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'q': queue = (unsigned)number("queue", optarg, 0, 63); break;
        case 'p': port = (uint16_t)number("port", optarg, 1, 65535); break;
        case 'w': sleep_when_empty = true; break;
        default: return 2;
        }
    }
    errno = 0;
    if (optind + 1 != argc)
        fail("usage: echo [options] INTERFACE");
    stop_on_signals();
    struct xsk xsk;
    xsk_open(&xsk, argv[optind], queue);
    xsk_steer(&xsk, port);
    fprintf(stderr, "ready\n");

    while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
        struct xdp_desc frames[BATCH];
        uint32_t got = xsk_receive(&xsk, frames, BATCH);
        if (got == 0) {
            struct pollfd wait = {xsk.fd, POLLIN, 0};
            if (sleep_when_empty)
                poll(&wait, 1, 100);
            continue;
        }
        for (uint32_t i = 0; i < got; i++)
            turn_round(xsk_at(&xsk, frames[i].addr));
        uint32_t sent = 0;
        while (sent < got && !atomic_load_explicit(&stopping, memory_order_relaxed)) {
            sent += xsk_send(&xsk, frames + sent, got - sent);
            xsk_doorbell(&xsk);
        }
        /* The chunk of an answer goes back to the fill ring when the answer is out. */
        for (uint32_t back = 0; back < sent && !atomic_load(&stopping);) {
            uint64_t done[BATCH];
            struct xdp_desc empty[BATCH];
            uint32_t count = xsk_complete(&xsk, done, BATCH);
            for (uint32_t i = 0; i < count; i++)
                empty[i].addr = done[i];
            xsk_refill(&xsk, empty, count);
            back += count;
            if (count == 0)
                xsk_doorbell(&xsk);
        }
    }
    return 0;
}
