/*
 * Sends UDP datagrams as fast as it can, or at a given rate.
 *
 * Every thread has a connected socket to one of the destinations (thread i takes destination i
 * modulo their number) and gives up to a batch of datagrams to sendmmsg(2).
 *
 *   udpsender [--threads N] [--batch N] [--size BYTES] [--rate PER_SECOND] [--bind ADDRESS]
 *             [--port PORT] [--seconds S] [--count N] [--json] ADDRESS...
 */
#include "common.h"

#include <pthread.h>

enum { MAX_THREADS = 64, MAX_BATCH = 1024, MAX_SIZE = 65507 };

static struct {
    char **destinations;
    int destination_count;
    const char *local;
    uint16_t port;
    int threads, batch, size;
    long seconds, count, rate;
    bool json;
} options = {.port = 4321, .threads = 1, .batch = MAX_BATCH, .size = 32, .seconds = 0};

static struct counter {
    _Alignas(64) atomic_ullong packets;
    atomic_ullong refused;
} counters[MAX_THREADS];

static atomic_int running;

static void parse(int argc, char **argv)
{
    static const struct option names[] = {
        {"threads", required_argument, 0, 't'}, {"batch", required_argument, 0, 'n'},
        {"size", required_argument, 0, 'z'},    {"rate", required_argument, 0, 'r'},
        {"bind", required_argument, 0, 'b'},    {"port", required_argument, 0, 'p'},
        {"seconds", required_argument, 0, 's'}, {"count", required_argument, 0, 'c'},
        {"json", no_argument, 0, 'j'},          {0, 0, 0, 0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (option) {
        case 't': options.threads = (int)number("threads", optarg, 1, MAX_THREADS); break;
        case 'n': options.batch = (int)number("batch", optarg, 1, MAX_BATCH); break;
        case 'z': options.size = (int)number("size", optarg, 0, MAX_SIZE); break;
        case 'r': options.rate = number("rate", optarg, 1, 100000000); break;
        case 'b': options.local = optarg; break;
        case 'p': options.port = (uint16_t)number("port", optarg, 1, 65535); break;
        case 's': options.seconds = number("seconds", optarg, 1, 86400); break;
        case 'c': options.count = number("count", optarg, 1, 1L << 40); break;
        case 'j': options.json = true; break;
        default: exit(2);
        }
    }
    options.destinations = argv + optind;
    options.destination_count = argc - optind;
    errno = 0;
    if (options.destination_count == 0)
        fail("usage: udpsender [options] ADDRESS...");
}

/* How many datagrams this thread may send now, by --rate and --count. */
static unsigned allowance(uint64_t start, unsigned long long sent)
{
    unsigned long long most = (unsigned)options.batch;
    if (options.count) {
        unsigned long long share = (unsigned long long)options.count / (unsigned)options.threads;
        unsigned long long left = share > sent ? share - sent : 0;
        most = left < most ? left : most;
    }
    if (options.rate) {
        double elapsed = (double)(now_ns() - start) * 1e-9;
        double due = elapsed * (double)options.rate / options.threads - (double)sent;
        if (due < 1)
            return 0;
        most = due < (double)most ? (unsigned long long)due : most;
    }
    return (unsigned)most;
}

static void *send_all(void *argument)
{
    struct counter *counter = argument;
    int index = (int)(counter - counters);
    struct sockaddr_storage remote;
    const char *to = options.destinations[index % options.destination_count];
    socklen_t length = address(to, options.port, &remote);
    int fd = options.local ? bound_socket(options.local, 0, false)
                           : socket(remote.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&remote, length) < 0)
        fail("connect %s", to);

    static char payload[MAX_SIZE];
    struct iovec content = {payload, (size_t)options.size};
    struct mmsghdr *messages = calloc((size_t)options.batch, sizeof *messages);
    if (!messages)
        fail("memory");
    for (int i = 0; i < options.batch; i++) {
        messages[i].msg_hdr.msg_iov = &content;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    uint64_t start = now_ns();
    unsigned long long sent = 0;
    while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
        unsigned some = allowance(start, sent);
        if (some == 0) {
            unsigned long long share =
                (unsigned long long)options.count / (unsigned)options.threads;
            if (options.count && sent >= share)
                break;
            sleep_ms(0);
            continue;
        }
        int done = sendmmsg(fd, messages, some, 0);
        if (done < 0) {
            /* Nobody listens (yet), or the device's queue is full: both are worth another try. */
            if (errno != ECONNREFUSED && errno != ENOBUFS && errno != EAGAIN && errno != EINTR)
                fail("sendmmsg");
            atomic_fetch_add_explicit(&counter->refused, 1, memory_order_relaxed);
            continue;
        }
        sent += (unsigned)done;
        atomic_fetch_add_explicit(&counter->packets, (unsigned)done, memory_order_relaxed);
    }
    atomic_fetch_sub(&running, 1);
    return NULL;
}

static unsigned long long total(void)
{
    unsigned long long packets = 0;
    for (int i = 0; i < options.threads; i++)
        packets += atomic_load_explicit(&counters[i].packets, memory_order_relaxed);
    return packets;
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    stop_on_signals();
    setvbuf(stdout, NULL, _IOLBF, 0);
    pthread_t threads[MAX_THREADS];
    atomic_store(&running, options.threads);
    uint64_t start = now_ns(), second = start;
    for (int i = 0; i < options.threads; i++)
        if (pthread_create(&threads[i], NULL, send_all, &counters[i]))
            fail("pthread_create");

    unsigned long long shown = 0;
    while (!atomic_load(&stopping) && atomic_load(&running) > 0) {
        sleep_ms(2);
        uint64_t now = now_ns();
        if (now - second >= 1000000000u) {
            unsigned long long packets = total();
            if (!options.json)
                printf("%6.1f s  %10.0f packets/s\n", (double)(now - start) * 1e-9,
                       (double)(packets - shown) * 1e9 / (double)(now - second));
            shown = packets;
            second = now;
        }
        if (options.seconds && now - start >= (uint64_t)options.seconds * 1000000000u)
            atomic_store(&stopping, true);
    }
    for (int i = 0; i < options.threads; i++)
        pthread_join(threads[i], NULL);

    double seconds = (double)(now_ns() - start) * 1e-9;
    unsigned long long packets = total();
    double cpu = packets ? (double)cpu_ns() / (double)packets : 0;
    printf(options.json ? "{\"packets\":%llu,\"seconds\":%.6f,\"rate\":%.0f,"
                          "\"cpu_ns_per_packet\":%.1f}\n"
                        : "%llu packets in %.3f s: %.0f packets/s, %.0f ns of processor time "
                          "each\n",
           packets, seconds, (double)packets / seconds, cpu);
    return 0;
}
