/*
 * Request and response over UDP: sends a datagram, waits (blocking) for its echo, notes the time.
 *
 *   udprr [--count N] [--warmup N] [--interval-us U] [--size BYTES] [--port PORT] [--json] ADDRESS
 *
 * Prints the round-trip times p50, p90, p99, p99.9 and the largest, in microseconds. A response
 * that does not come within a second counts as lost.
 */
#include "common.h"

enum { MAX_SIZE = 9000 };

/* One exchange; gives the time in nanoseconds, 0 when the response is lost. */
static uint64_t exchange(int fd, char *datagram, size_t size, uint64_t sequence)
{
    char response[MAX_SIZE];
    memcpy(datagram, &sequence, sizeof sequence);
    uint64_t start = now_ns();
    if (send(fd, datagram, size, 0) < 0 && errno != ECONNREFUSED)
        fail("send");
    for (;;) {
        ssize_t got = recv(fd, response, sizeof response, 0);
        if (got < 0)
            return 0;
        uint64_t end = now_ns(), echoed;
        memcpy(&echoed, response, sizeof echoed);
        /* An echo that comes after its time was up is not the answer to this request. */
        if ((size_t)got == size && echoed == sequence)
            return end - start;
    }
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"count", required_argument, 0, 'c'}, {"warmup", required_argument, 0, 'w'},
        {"interval-us", required_argument, 0, 'i'}, {"size", required_argument, 0, 'z'},
        {"port", required_argument, 0, 'p'}, {"json", no_argument, 0, 'j'}, {0, 0, 0, 0}};
    long count = 10000, warmup = 500, interval_us = 0;
    size_t size = 64;
    uint16_t port = 7007;
    bool json = false;
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'c': count = number("count", optarg, 1, 100000000); break;
        case 'w': warmup = number("warmup", optarg, 0, 1000000); break;
        case 'i': interval_us = number("interval-us", optarg, 0, 10000000); break;
        case 'z': size = (size_t)number("size", optarg, 8, MAX_SIZE); break;
        case 'p': port = (uint16_t)number("port", optarg, 1, 65535); break;
        case 'j': json = true; break;
        default: return 2;
        }
    }
    errno = 0;
    if (optind + 1 != argc)
        fail("usage: udprr [options] ADDRESS");
    stop_on_signals();
    struct sockaddr_storage remote;
    socklen_t length = address(argv[optind], port, &remote);
    int fd = socket(remote.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&remote, length) < 0)
        fail("connect");
    struct timeval patience = {.tv_sec = 1};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);

    uint64_t *times = calloc((size_t)count, sizeof *times);
    if (!times)
        fail("memory");
    char datagram[MAX_SIZE] = {0};
    long kept = 0, lost = 0;
    for (long i = -warmup; i < count && !atomic_load(&stopping); i++) {
        uint64_t time = exchange(fd, datagram, size, (uint64_t)(i + warmup + 1));
        if (i >= 0 && time)
            times[kept++] = time;
        lost += i >= 0 && !time;
        if (interval_us) {
            struct timespec pause = {interval_us / 1000000, interval_us % 1000000 * 1000};
            nanosleep(&pause, NULL);
        }
    }
    sort_times(times, kept);
    printf(json ? "{\"count\":%ld,\"lost\":%ld,\"p50_us\":%.2f,\"p90_us\":%.2f,\"p99_us\":%.2f,"
                  "\"p999_us\":%.2f,\"max_us\":%.2f}\n"
                : "%ld round trips, %ld lost: p50 %.2f, p90 %.2f, p99 %.2f, p99.9 %.2f, "
                  "largest %.2f us\n",
           kept, lost, percentile(times, kept, 0.5), percentile(times, kept, 0.9),
           percentile(times, kept, 0.99), percentile(times, kept, 0.999),
           percentile(times, kept, 1.0));
    return lost * 100 > count ? 1 : 0;
}
