/*
 * Request and response over TCP: on each connection sends a request, waits for its echo, notes
 * the time, and sends the next one. One connection blocks in recv, several wait with epoll.
 *
 *   tcprr [--connections C] [--count N] [--warmup N] [--size BYTES] [--port PORT] [--json] ADDRESS
 *
 * Prints exchanges per second and the times p50, p90, p99 and the largest, in microseconds.
 */
#include "common.h"

#include <netinet/tcp.h>
#include <sys/epoll.h>

enum { MAX_SIZE = 65536, MAX_CONNECTIONS = 1000 };

struct connection {
    int fd;
    size_t got;
    uint64_t start;
};

static char request[MAX_SIZE];

static void ask(struct connection *one, size_t size)
{
    one->got = 0;
    one->start = now_ns();
    if (send(one->fd, request, size, MSG_NOSIGNAL) != (ssize_t)size)
        fail("send");
}

/* Reads what is there; gives the time in nanoseconds when the response is complete, else 0. */
static uint64_t read_response(struct connection *one, size_t size)
{
    char bytes[MAX_SIZE];
    ssize_t got = recv(one->fd, bytes, size - one->got, 0);
    if (got <= 0)
        fail(got ? "recv" : "recv: the peer has closed");
    if (memcmp(bytes, request + one->got, (size_t)got))
        fail("the response is not the request");
    one->got += (size_t)got;
    return one->got == size ? now_ns() - one->start : 0;
}

static struct connection connected(const char *host, uint16_t port)
{
    struct sockaddr_storage remote;
    socklen_t length = address(host, port, &remote);
    int on = 1, fd = socket(remote.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&remote, length) < 0)
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct timeval patience = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return (struct connection){.fd = fd};
}

/* The next connection that can be read. */
static struct connection *readable(int set, struct connection *all, long connections)
{
    static struct epoll_event ready[64];
    static int count, at;
    if (connections == 1)
        return all;
    while (at == count) {
        at = 0;
        count = epoll_wait(set, ready, 64, 5000);
        if (count == 0)
            fail("nothing came for 5 s");
        count = count < 0 ? 0 : count;
    }
    return ready[at++].data.ptr;
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"connections", required_argument, 0, 'n'}, {"count", required_argument, 0, 'c'},
        {"warmup", required_argument, 0, 'w'}, {"size", required_argument, 0, 'z'},
        {"port", required_argument, 0, 'p'}, {"json", no_argument, 0, 'j'}, {0, 0, 0, 0}};
    long connections = 1, count = 10000, warmup = 500;
    size_t size = 64;
    uint16_t port = 7007;
    bool json = false;
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 'n': connections = number("connections", optarg, 1, MAX_CONNECTIONS); break;
        case 'c': count = number("count", optarg, 1, 100000000); break;
        case 'w': warmup = number("warmup", optarg, 0, 1000000); break;
        case 'z': size = (size_t)number("size", optarg, 1, MAX_SIZE); break;
        case 'p': port = (uint16_t)number("port", optarg, 1, 65535); break;
        case 'j': json = true; break;
        default: return 2;
        }
    }
    errno = 0;
    if (optind + 1 != argc)
        fail("usage: tcprr [options] ADDRESS");
    for (size_t i = 0; i < size; i++)
        request[i] = (char)('a' + i % 26);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    uint64_t *times = calloc((size_t)count, sizeof *times);
    int set = epoll_create1(EPOLL_CLOEXEC);
    if (!all || !times || set < 0)
        fail("memory");
    for (long i = 0; i < connections; i++) {
        all[i] = connected(argv[optind], port);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        if (epoll_ctl(set, EPOLL_CTL_ADD, all[i].fd, &event) < 0)
            fail("epoll_ctl");
        ask(&all[i], size);
    }
    uint64_t start = now_ns();
    for (long i = -warmup; i < count;) {
        struct connection *one = readable(set, all, connections);
        uint64_t time = read_response(one, size);
        if (!time)
            continue;
        if (i >= 0)
            times[i] = time;
        else if (i == -1)
            start = now_ns();
        i++;
        ask(one, size);
    }
    double seconds = (double)(now_ns() - start) * 1e-9;
    sort_times(times, count);
    printf(json ? "{\"count\":%ld,\"rate\":%.0f,\"p50_us\":%.2f,\"p90_us\":%.2f,\"p99_us\":%.2f,"
                  "\"max_us\":%.2f}\n"
                : "%ld exchanges, %.0f a second: p50 %.2f, p90 %.2f, p99 %.2f, largest %.2f us\n",
           count, (double)count / seconds, percentile(times, count, 0.5),
           percentile(times, count, 0.9), percentile(times, count, 0.99),
           percentile(times, count, 1.0));
    return 0;
}
