/*
 * Counts UDP datagrams on a bare AF_XDP socket: the most that a receiver on this queue can do.
 *
 *   bare/receiver [--queue N] [--port PORT] [--seconds S] [--spin] [--json] INTERFACE
 *
 * --seconds counts from the first datagram. Without --spin an empty ring leads to poll(2).
 */
#include "common.h"
#include "xsk.h"

#include <poll.h>

enum { BATCH = 256 };

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"queue", required_argument, 0, 'q'},   {"port", required_argument, 0, 'p'},
        {"seconds", required_argument, 0, 's'}, {"spin", no_argument, 0, 'x'},
        {"json", no_argument, 0, 'j'},          {0, 0, 0, 0},
    };
    unsigned queue = 0;
    uint16_t port = 4321;
    long seconds = 3;
    bool spin = false, json = false;
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'q': queue = (unsigned)number("queue", optarg, 0, 63); break;
        case 'p': port = (uint16_t)number("port", optarg, 1, 65535); break;
        case 's': seconds = number("seconds", optarg, 1, 86400); break;
        case 'x': spin = true; break;
        case 'j': json = true; break;
        default: return 2;
        }
    }
    errno = 0;
    if (optind + 1 != argc)
        fail("usage: receiver [options] INTERFACE");
    stop_on_signals();
    struct xsk xsk;
    xsk_open(&xsk, argv[optind], queue);
    xsk_steer(&xsk, port);
    fprintf(stderr, "ready\n");

    unsigned long long packets = 0, bytes = 0;
    uint64_t first = 0, last = 0, cpu = 0;
    while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
        struct xdp_desc frames[BATCH];
        uint32_t got = xsk_receive(&xsk, frames, BATCH);
        if (got == 0) {
            struct pollfd wait = {xsk.fd, POLLIN, 0};
            if (!spin)
                poll(&wait, 1, 100);
            if (first && now_ns() - first > (uint64_t)seconds * 1000000000u)
                break;
            continue;
        }
        for (uint32_t i = 0; i < got; i++)
            bytes += frames[i].len;
        xsk_refill(&xsk, frames, got);
        packets += got;
        last = now_ns();
        if (!first) {
            first = last;
            cpu = cpu_ns();
        }
        if (last - first > (uint64_t)seconds * 1000000000u)
            break;
    }
    double took = (double)(last - first) * 1e-9;
    double rate = took > 0 ? (double)packets / took : 0;
    double each = packets ? (double)(cpu_ns() - cpu) / (double)packets : 0;
    printf(json ? "{\"packets\":%llu,\"bytes\":%llu,\"seconds\":%.6f,\"rate\":%.0f,"
                  "\"cpu_ns_per_packet\":%.1f}\n"
                : "%llu packets, %llu bytes in %.3f s: %.0f packets/s, %.0f ns of processor time "
                  "each\n",
           packets, bytes, took, rate, each);
    return 0;
}
